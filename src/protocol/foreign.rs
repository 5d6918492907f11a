//! What is no protocol of memcached's, known by the first bytes of a connection. Such a client
//! would wait for an answer that never comes: it gets one at once, in its own protocol, and the
//! connection is closed.

/// A protocol that is not spoken here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Foreign {
    /// A hello.
    Tls,
    Http,
    /// Redis's.
    Resp,
}

/// Methods, each with its blank. A path, an address or `*` stands behind it, which no key of a
/// mistaken `GET key` looks like.
const METHODS: [&[u8]; 9] =
    [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"TRACE ", b"PRI "];

impl Foreign {
    /// By what a connection begins with.
    pub fn of(first: &[u8]) -> Option<Foreign> {
        match first {
            [0x16] | [0x16, 0x03, ..] => Some(Foreign::Tls),
            [b'*', b'0'..=b'9', ..] => Some(Foreign::Resp),
            [b'A'..=b'Z', ..] => is_http(first).then_some(Foreign::Http),
            _ => None,
        }
    }

    /// What it is told.
    pub fn answer(self) -> &'static [u8] {
        match self {
            // A fatal alert, handshake_failure: a TLS client gets a reason, and not an end of file.
            Foreign::Tls => b"\x15\x03\x01\x00\x02\x02\x28",
            Foreign::Http => {
                b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 45\r\nConnection: close\r\n\r\nThis port speaks memcached's protocol alone.\n"
            }
            Foreign::Resp => b"-ERR this port speaks memcached's protocol alone\r\n",
        }
    }
}

fn is_http(first: &[u8]) -> bool {
    let target = METHODS.iter().find_map(|method| first.strip_prefix(*method));
    target.is_some_and(|target| matches!(target.first(), Some(b'/' | b'*')) || target.starts_with(b"http"))
        || first.starts_with(b"CONNECT ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_known_by_their_first_bytes() {
        for (first, who) in [
            (&b"\x16\x03\x01\x02\x00\x01"[..], Some(Foreign::Tls)),
            (b"\x16", Some(Foreign::Tls)),
            (b"GET / HTTP/1.1\r\n", Some(Foreign::Http)),
            (b"POST /x", Some(Foreign::Http)),
            (b"OPTIONS *", Some(Foreign::Http)),
            (b"CONNECT a:443 HTTP/1.1\r\n", Some(Foreign::Http)),
            (b"PRI * HTTP/2.0\r\n", Some(Foreign::Http)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Foreign::Resp)),
            (b"get / HTTP/1.1\r\n", None),
            (b"GET key\r\n", None),
            (b"set k 0 0 1\r\n", None),
            (b"*\r\n", None),
            (b"\x80\x00", None),
            (b"", None),
        ] {
            assert_eq!(Foreign::of(first), who, "{}", first.escape_ascii());
        }
    }

    #[test]
    fn the_answer_to_http_is_as_long_as_it_says() {
        let text = String::from_utf8(Foreign::Http.answer().to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
    }
}
