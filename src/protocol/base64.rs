//! base64 as memcached reads it and everybody writes it: of keys, and of what etcd keeps.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// With padding.
pub(crate) fn encode(bytes: &[u8]) -> Vec<u8> {
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
/// Nor more than `out` has room for.
pub(crate) fn decode(text: &[u8], out: &mut [u8]) -> Option<usize> {
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
            assert_eq!(encode(plain.as_bytes()), coded.as_bytes());
        }
    }

    #[test]
    fn base64_is_read_as_memcached_reads_it() {
        let decoded = |text: &[u8]| {
            let mut out = [0; 250];
            decode(text, &mut out).map(|len| out[..len].to_vec())
        };
        for len in 1..=187 {
            let key: Vec<u8> = (0..len).map(|i| (i * 37 + len) as u8).collect();
            assert_eq!(decoded(&encode(&key)), Some(key));
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
}
