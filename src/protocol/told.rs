//! What a node's answer to a meta command means in the words of the classic protocol, which are
//! what the data plane judges answers by; and what a meta answer says beside.

use super::meta;
use super::number::{parse_i64, parse_u64};
use super::reply::{Reply, ReplyKind, meta_flag};
use super::request::{Family, Kind};

/// See the module's words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Told {
    /// `Value` for an item: its key's range is empty, for the command's place in the stream tells
    /// whose it is.
    pub kind: ReplyKind,
    /// Client flags, where they were asked for.
    pub flags: u32,
    /// The node's cas id, where it was asked for.
    pub cas: u64,
    /// Seconds that are left, where that was asked for; -1 = never expires.
    pub ttl: i64,
}

/// A node's answer to such a command; `unit`: its bytes. `None`: it is no answer to that.
pub fn of_node(kind: Kind, reply: &Reply, unit: &[u8]) -> Option<Told> {
    use ReplyKind as R;
    let line = &unit[reply.line.clone()];
    let number = |flag| meta_flag(line, flag).and_then(parse_u64);
    let flags = number(b'f').and_then(|flags| u32::try_from(flags).ok()).unwrap_or_default();
    let cas = number(b'c').unwrap_or_default();
    let ttl = meta_flag(line, b't').and_then(parse_i64).unwrap_or(-1);
    let done = match kind.family() {
        Family::Store => R::Stored,
        Family::Delete => R::Deleted,
        Family::Touch => R::Touched,
        Family::Retrieve | Family::Arithmetic | Family::Meta | Family::Mend => R::MetaHd,
    };
    let absent = if kind.family() == Family::Retrieve { R::End } else { R::NotFound };
    let kind = match &reply.kind {
        R::MetaHd => done,
        R::MetaNs => R::NotStored,
        R::MetaEx => R::Exists,
        R::MetaNf | R::MetaEn => absent,
        R::MetaVa { .. } if kind.family() == Family::Arithmetic => R::Number(meta::answer::number(reply, unit)?),
        R::MetaVa { data } => R::Value { key: 0..0, flags, data: data.clone(), cas: Some(cas) },
        other @ (R::ServerError | R::ClientError | R::Error) => other.clone(),
        _ => return None,
    };
    Some(Told { kind, flags, cas, ttl })
}

#[cfg(test)]
mod tests {
    use super::super::reply::parse_reply;
    use super::*;

    fn told(kind: Kind, answer: &[u8]) -> Option<Told> {
        let reply = parse_reply(answer).unwrap().unwrap();
        of_node(kind, &reply, answer)
    }

    #[test]
    fn answers_have_the_classic_words() {
        use ReplyKind as R;
        for (kind, answer, expected, cas) in [
            (Kind::Set, &b"HD c7\r\n"[..], R::Stored, 7),
            (Kind::Add, b"NS c0\r\n", R::NotStored, 0),
            (Kind::Cas, b"EX c0\r\n", R::Exists, 0),
            (Kind::Cas, b"NF c0\r\n", R::NotFound, 0),
            (Kind::Delete, b"HD\r\n", R::Deleted, 0),
            (Kind::Delete, b"NF\r\n", R::NotFound, 0),
            (Kind::Touch, b"HD f3 c9\r\n", R::Touched, 9),
            (Kind::Touch, b"EN\r\n", R::NotFound, 0),
            (Kind::Gets, b"EN\r\n", R::End, 0),
            (Kind::Incr, b"VA 2 c8\r\n12\r\n", R::Number(12), 8),
            (Kind::Incr, b"VA 2 c8 t60\r\n12\r\n", R::Number(12), 8),
            (Kind::Decr, b"NF\r\n", R::NotFound, 0),
            (Kind::Set, b"SERVER_ERROR out of memory storing object\r\n", R::ServerError, 0),
        ] {
            let told = told(kind, answer).unwrap();
            assert_eq!((told.kind, told.cas), (expected, cas), "{kind:?} {}", answer.escape_ascii());
        }
        assert_eq!(told(Kind::Incr, b"VA 1 c8 t60\r\n1\r\n").unwrap().ttl, 60);
        let item = told(Kind::Gats, b"VA 2 f3 c9\r\nab\r\n").unwrap();
        assert_eq!((item.flags, item.cas), (3, 9));
        assert!(matches!(item.kind, R::Value { flags: 3, cas: Some(9), .. }));
        assert_eq!(told(Kind::Incr, b"VA 2 c8\r\nxx\r\n"), None);
        assert_eq!(told(Kind::Set, b"STORED\r\n"), None);
    }
}
