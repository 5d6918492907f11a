//! The 24 bytes that every request and every answer begins with; commands and statuses by name.

use super::super::out::OutQueue;

/// The first byte of a request, which no text command begins with.
pub const MAGIC_REQUEST: u8 = 0x80;
/// That of an answer.
pub(crate) const MAGIC_RESPONSE: u8 = 0x81;

pub const HEADER_LEN: usize = 24;

/// A command, and what of it its variants change: whether the key comes back, and whether nothing
/// is said where all is well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opcode(pub u8);

/// What is asked for, whatever the variant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    Get,
    Gat,
    Touch,
    Set,
    Add,
    Replace,
    Append,
    Prepend,
    Delete,
    Increment,
    Decrement,
    Flush,
    Noop,
    Version,
    Stat,
    Quit,
    SaslList,
    SaslAuth,
}

impl Opcode {
    pub(crate) const NOOP: Opcode = Opcode(0x0a);

    /// `None`: memcached 1.6.18 does not know it.
    pub(super) fn verb(self) -> Option<Verb> {
        Some(match self.0 {
            0x00 | 0x09 | 0x0c | 0x0d => Verb::Get,
            0x01 | 0x11 => Verb::Set,
            0x02 | 0x12 => Verb::Add,
            0x03 | 0x13 => Verb::Replace,
            0x04 | 0x14 => Verb::Delete,
            0x05 | 0x15 => Verb::Increment,
            0x06 | 0x16 => Verb::Decrement,
            0x07 | 0x17 => Verb::Quit,
            0x08 | 0x18 => Verb::Flush,
            0x0a => Verb::Noop,
            0x0b => Verb::Version,
            0x0e | 0x19 => Verb::Append,
            0x0f | 0x1a => Verb::Prepend,
            0x10 => Verb::Stat,
            0x1c => Verb::Touch,
            0x1d | 0x1e | 0x23 | 0x24 => Verb::Gat,
            0x20 => Verb::SaslList,
            0x21 | 0x22 => Verb::SaslAuth,
            _ => return None,
        })
    }

    /// Nothing is said of a read that finds nothing, nor of anything else that is done.
    pub fn is_quiet(self) -> bool {
        matches!(self.0, 0x09 | 0x0d | 0x11..=0x1a | 0x1e | 0x24)
    }

    pub(crate) fn is_quit(self) -> bool {
        self.verb() == Some(Verb::Quit)
    }

    pub(crate) fn is_stat(self) -> bool {
        self.verb() == Some(Verb::Stat)
    }

    /// The answer to a read names the key.
    pub(super) fn names_key(self) -> bool {
        matches!(self.0, 0x0c | 0x0d | 0x23 | 0x24)
    }
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Status {
    Success = 0x00,
    NotFound = 0x01,
    Exists = 0x02,
    TooLarge = 0x03,
    Invalid = 0x04,
    NotStored = 0x05,
    NotNumeric = 0x06,
    Unknown = 0x81,
    OutOfMemory = 0x82,
    /// Not one of memcached's: of the protocol's description, for what a proxy alone can meet.
    Internal = 0x84,
}

impl Status {
    /// memcached's words for it.
    pub(super) fn words(self) -> &'static str {
        match self {
            Status::Success => "",
            Status::NotFound => "Not found",
            Status::Exists => "Data exists for key.",
            Status::TooLarge => "Too large.",
            Status::Invalid => "Invalid arguments",
            Status::NotStored => "Not stored.",
            Status::NotNumeric => "Non-numeric server-side value for incr or decr",
            Status::Unknown => "Unknown command",
            Status::OutOfMemory => "Out of memory",
            Status::Internal => "Internal error",
        }
    }
}

/// The header of a request, or of an answer, which has its status where nothing of a request is
/// read. What follows it: extras, key, value.
pub(crate) struct Header {
    pub(crate) opcode: Opcode,
    pub(super) extras_len: usize,
    pub(crate) key_len: usize,
    /// All three.
    pub(crate) body_len: usize,
    /// Comes back as it is.
    pub(crate) opaque: [u8; 4],
    pub(super) cas: u64,
}

impl Header {
    pub(crate) fn read(bytes: &[u8; HEADER_LEN]) -> Header {
        let [_, opcode, k1, k0, extras, _, _, _, b3, b2, b1, b0, o0, o1, o2, o3, cas @ ..] = *bytes;
        Header {
            opcode: Opcode(opcode),
            extras_len: extras.into(),
            key_len: u16::from_be_bytes([k1, k0]).into(),
            body_len: u32::from_be_bytes([b3, b2, b1, b0]) as usize,
            opaque: [o0, o1, o2, o3],
            cas: u64::from_be_bytes(cas),
        }
    }

    /// Whether there is room for the extras and the key in the body.
    pub(crate) fn fits(&self) -> bool {
        self.extras_len + self.key_len <= self.body_len
    }
}

/// An answer's header; `extras_len` and `key_len` are parts of `body_len`.
#[derive(Default)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) extras_len: u8,
    pub(super) key_len: u16,
    pub(super) body_len: u32,
    pub(super) cas: u64,
}

impl Answer {
    pub(super) fn put(&self, opcode: Opcode, opaque: [u8; 4], out: &mut OutQueue) {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = MAGIC_RESPONSE;
        bytes[1] = opcode.0;
        bytes[2..4].copy_from_slice(&self.key_len.to_be_bytes());
        bytes[4] = self.extras_len;
        bytes[6..8].copy_from_slice(&self.status.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.body_len.to_be_bytes());
        bytes[12..16].copy_from_slice(&opaque);
        bytes[16..24].copy_from_slice(&self.cas.to_be_bytes());
        out.put(&bytes);
    }
}
