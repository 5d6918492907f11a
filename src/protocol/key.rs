//! How a key is written to a node: as it is, or in base64. Chosen here and nowhere else.

use bytes::Bytes;

use super::out::OutQueue;
use super::{KEY_LEN_MAX, base64};

/// A key on its way to a node.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    bytes: &'a [u8],
    /// Written in base64, with the `b` flag behind it.
    binary: bool,
}

impl<'a> Key<'a> {
    /// `binary`: as [`wire_form`] says.
    pub fn new(bytes: &'a [u8], binary: bool) -> Key<'a> {
        Key { bytes, binary }
    }

    /// One of which it is not known how a client has written it. (What can be written in no way is
    /// no key of any item.)
    pub fn known(bytes: &'a [u8]) -> Key<'a> {
        Key { bytes, binary: wire_form(bytes) == Some(true) }
    }

    /// One that a classic client has written, or one of the proxy's own.
    pub fn plain(bytes: &'a [u8]) -> Key<'a> {
        Key { bytes, binary: false }
    }

    /// `k`, where it is safe: the answer is to name it.
    pub(super) fn put_named(self, out: &mut OutQueue) {
        if may_be_named(self.bytes) {
            out.put(b" k");
        }
    }

    /// The key itself.
    pub(super) fn put(self, out: &mut OutQueue) {
        match self.binary {
            true => out.put(&base64::encode(self.bytes)),
            false => out.put(self.bytes),
        }
    }

    /// The flag that goes with it; in `ms` it stands behind the length.
    pub(super) fn put_flag(self, out: &mut OutQueue) {
        if self.binary {
            out.put(b" b");
        }
    }
}

/// Whether a node may be asked to name the key in its answer (`k`). memcached 1.6.18 forgets of an
/// item that it made itself (`N`, or a counter's initial number) that its key came in base64, and
/// names it as it is: a line end in it would end the answer in the middle of its line.
pub fn may_be_named(key: &[u8]) -> bool {
    !key.contains(&b'\n')
}

/// Whether the key cannot stand on a command line as it is. (With any other byte it can, with
/// memcached 1.6.18 to 1.6.45, and is then shown as memcached shows it.)
pub fn needs_base64(key: &[u8]) -> bool {
    key.iter().any(|&b| matches!(b, 0 | b' ' | b'\r' | b'\n'))
}

/// How a key is written on the wire: whether in base64; `None` = in no way.
///
/// base64 makes a key a third longer, and memcached limits what is written.
pub fn wire_form(key: &[u8]) -> Option<bool> {
    if key.is_empty() || key.len() > KEY_LEN_MAX {
        return None;
    }
    if !needs_base64(key) {
        return Some(false);
    }
    (key.len().div_ceil(3) * 4 <= KEY_LEN_MAX).then_some(true)
}

/// The key that a text in base64 stands for.
pub fn from_base64(text: &[u8]) -> Option<Bytes> {
    let mut out = [0; KEY_LEN_MAX];
    let len = base64::decode(text, &mut out)?;
    Some(Bytes::copy_from_slice(&out[..len]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_find_their_form() {
        assert_eq!(wire_form(b"plain"), Some(false));
        assert_eq!(wire_form(b"with space"), Some(true));
        for byte in 1..=0xff {
            // As a text client has written it, so that a copy is shown under the same name.
            assert_eq!(wire_form(&[b'k', byte]), Some(matches!(byte, b' ' | b'\r' | b'\n')), "{byte:#x}");
        }
        assert_eq!(wire_form(&[b'\t'; 250]), Some(false));
        assert_eq!(wire_form(&[b' '; 250]), None);
        assert_eq!(wire_form(&[0xff; 250]), Some(false));
        assert_eq!(wire_form(b""), None);
    }
}
