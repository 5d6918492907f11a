//! How a key is written to a node: as it is, or in base64. Chosen here and nowhere else.

use super::KEY_LEN_MAX;
use super::out::OutQueue;

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

    /// One that a classic client has written, or one of the proxy's own.
    pub fn plain(bytes: &'a [u8]) -> Key<'a> {
        Key { bytes, binary: false }
    }

    /// The key itself.
    pub(super) fn put(self, out: &mut OutQueue) {
        match self.binary {
            true => out.put(&base64(self.bytes)),
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

/// Whether the key cannot stand on a command line as it is.
pub fn needs_base64(key: &[u8]) -> bool {
    key.iter().any(|&b| b <= 0x20 || b == 0x7f)
}

/// How a key is written on the wire: whether in base64; `None` = in no way.
///
/// base64 makes a key a third longer, and memcached limits what is written: a long key with a
/// control byte, which a classic client may store, is only reachable plain.
pub fn wire_form(key: &[u8]) -> Option<bool> {
    if key.is_empty() || key.len() > KEY_LEN_MAX {
        return None;
    }
    if !needs_base64(key) {
        return Some(false);
    }
    if key.len().div_ceil(3) * 4 <= KEY_LEN_MAX {
        return Some(true);
    }
    is_plain(key).then_some(false)
}

/// Whether a classic client can write the key.
pub fn is_plain(key: &[u8]) -> bool {
    !key.iter().any(|&b| matches!(b, 0 | b' ' | b'\r' | b'\n'))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard base64 with padding.
pub(super) fn base64(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let three = [group[0], group.get(1).copied().unwrap_or(0), group.get(2).copied().unwrap_or(0)];
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for i in 0..4 {
            let six = (bits >> (18 - 6 * i)) & 63;
            out.push(if i <= group.len() { ALPHABET[six as usize] } else { b'=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_rfc() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(plain.as_bytes()), coded.as_bytes());
        }
    }

    #[test]
    fn keys_find_their_form() {
        assert_eq!(wire_form(b"plain"), Some(false));
        assert_eq!(wire_form(b"with space"), Some(true));
        assert_eq!(wire_form(&[b'\t'; 250]), Some(false));
        assert_eq!(wire_form(&[b' '; 250]), None);
        assert_eq!(wire_form(&[0xff; 250]), Some(false));
        assert_eq!(wire_form(b""), None);
    }
}
