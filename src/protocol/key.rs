//! How a key is written to a node: as it is, or in base64. Chosen here and nowhere else.

use bytes::Bytes;

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

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Standard base64 with padding.
pub(crate) fn base64(bytes: &[u8]) -> Vec<u8> {
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

/// What base64 says, as memcached reads it from clients: what does not belong there is passed over,
/// and so is all behind the first padded group. `None`: nothing, or not whole groups of four.
///
/// `out` is as long as a key may be, and so is `text` at most.
pub(super) fn decode_base64(text: &[u8], out: &mut [u8; KEY_LEN_MAX]) -> Option<usize> {
    let sextets = text.iter().filter_map(|&byte| sextet(byte).map(|bits| (bits, byte == b'=')));
    let mut len = 0;
    let mut count = 0;
    let mut group = 0u32;
    let mut padding = 0;
    let mut ended = false;
    for (bits, pad) in sextets {
        count += 1;
        if ended {
            continue;
        }
        padding += usize::from(pad);
        group = group << 6 | u32::from(bits);
        if count % 4 == 0 {
            // memcached decodes a group with more padding to nothing.
            let bytes = 3usize.checked_sub(padding).filter(|&bytes| bytes > 0)?;
            let three = group.to_be_bytes();
            out.get_mut(len..len + bytes)?.copy_from_slice(&three[1..1 + bytes]);
            len += bytes;
            group = 0;
            ended = padding > 0;
        }
    }
    (count > 0 && count % 4 == 0).then_some(len)
}

/// The same for a key that stands by itself.
pub fn from_base64(text: &[u8]) -> Option<Bytes> {
    let mut out = [0; KEY_LEN_MAX];
    let len = decode_base64(text, &mut out)?;
    Some(Bytes::copy_from_slice(&out[..len]))
}

fn sextet(byte: u8) -> Option<u8> {
    Some(match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        b'=' => 0,
        _ => return None,
    })
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
    fn base64_is_read_as_memcached_reads_it() {
        let decoded = |text: &[u8]| {
            let mut out = [0; KEY_LEN_MAX];
            decode_base64(text, &mut out).map(|len| out[..len].to_vec())
        };
        for len in 1..=187 {
            let key: Vec<u8> = (0..len).map(|i| (i * 37 + len) as u8).collect();
            assert_eq!(decoded(&base64(&key)), Some(key));
        }
        for (text, key) in [
            (&b""[..], None),
            (b"Zg", None),
            (b"Zg=", None),
            (b"====", None),
            (b"Z===", None),
            (b"!!!!", None),
            (b"Zg==", Some(&b"f"[..])),
            (b"Z!g=,=", Some(b"f")),
            (b"Zg==Zm9v", Some(b"f")),
            (b"Zg==Zm9", None),
            (b"Zm9vZg==", Some(b"foof")),
            (b"=m9v", Some(b"\x02\x6f")),
        ] {
            assert_eq!(decoded(text).as_deref(), key, "{}", text.escape_ascii());
        }
    }

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
