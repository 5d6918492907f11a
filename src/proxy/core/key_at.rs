//! Where a request's key stands, and what it hashes to.

use std::ops::Range;

use crate::protocol::meta::{Decoded, Flag};
use crate::protocol::request::{Keyed, Kind};
use crate::ring::Topology;

/// A key of a request, which may stand there in base64.
#[derive(Clone, Copy)]
pub(super) struct KeyAt {
    /// Where it stands in the request's bytes.
    pub(super) place: (u32, u32),
    pub(super) hash: u32,
}

impl KeyAt {
    /// `input`: what the request begins.
    #[inline(always)]
    pub(super) fn new(input: &[u8], key: Range<usize>) -> KeyAt {
        KeyAt { place: (key.start as u32, key.end as u32), hash: Topology::key_hash(&input[key]) }
    }

    /// `input`: what the request begins.
    #[inline(always)]
    pub(super) fn of(input: &[u8], request: &Keyed) -> KeyAt {
        let span = request.keys.span.clone();
        if is_encoded(request.kind) { KeyAt::encoded(input, span) } else { KeyAt::new(input, span) }
    }

    /// One that stands there in base64, as it will stand in the place of that.
    #[cold]
    #[inline(never)]
    fn encoded(input: &[u8], key: Range<usize>) -> KeyAt {
        let Some(decoded) = Decoded::of(&input[key.clone()]) else { return KeyAt::new(input, key) };
        let bytes = decoded.bytes();
        let place = (key.start as u32, (key.start + bytes.len()) as u32);
        KeyAt { place, hash: Topology::key_hash(bytes) }
    }
}

/// Puts a key in the place of its base64.
#[cold]
#[inline(never)]
pub(super) fn decode_in_place(input: &mut [u8], key: Range<usize>) {
    if let Some(decoded) = Decoded::of(&input[key.clone()]) {
        let bytes = decoded.bytes();
        input[key.start..key.start + bytes.len()].copy_from_slice(bytes);
    }
}

/// Whether a request of this kind has its key in base64.
#[inline(always)]
pub(super) fn is_encoded(kind: Kind) -> bool {
    matches!(kind, Kind::Meta(meta) if meta.has(Flag::Binary))
}
