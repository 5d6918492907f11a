use crate::protocol::dialect::Dialect;
use crate::protocol::request::{Limits, Parsed, Request};
use crate::ring::Topology;

use super::*;

const KINDS: [Kind; 14] = [
    Kind::Get,
    Kind::Gets,
    Kind::Gat,
    Kind::Gats,
    Kind::Set,
    Kind::Add,
    Kind::Replace,
    Kind::Append,
    Kind::Prepend,
    Kind::Cas,
    Kind::Incr,
    Kind::Decr,
    Kind::Delete,
    Kind::Touch,
];

fn replies() -> Vec<ReplyKind> {
    use ReplyKind::*;
    let value = Value { key: 0..1, flags: 0, data: 0..0, cas: None };
    let mut all = vec![value, End, Stored, NotStored, Exists, NotFound, Deleted, Touched, Ok, Number(7), Reset, Error];
    all.extend([
        ClientError,
        ServerError,
        Busy,
        MetaHd,
        MetaVa { data: 0..0 },
        MetaEn,
        MetaNs,
        MetaEx,
        MetaNf,
        MetaMn,
        MetaMe,
    ]);
    all
}

/// Every command with every answer: the pairs that are not listed are no answer to the command, and
/// cost the connection.
#[test]
fn what_the_leaders_answer_means() {
    use ReplyKind as R;
    for kind in KINDS {
        for reply in replies() {
            let expected = match (kind, &reply) {
                (Kind::Get | Kind::Gets, R::ServerError) => Some(Effect::Nothing),
                (_, R::ServerError) => Some(Effect::Unknown),
                (_, R::ClientError | R::Error) => Some(Effect::Nothing),
                (Kind::Get | Kind::Gets, R::Value { .. } | R::End) => Some(Effect::Nothing),
                (Kind::Gat | Kind::Gats, R::Value { .. }) => Some(Effect::Done),
                (Kind::Gat | Kind::Gats, R::End) => Some(Effect::Nothing),
                (Kind::Set | Kind::Add | Kind::Replace | Kind::Append | Kind::Prepend | Kind::Cas, R::Stored) => {
                    Some(Effect::Done)
                }
                (Kind::Set, R::NotStored) => Some(Effect::Unknown),
                (Kind::Add | Kind::Replace | Kind::Append | Kind::Prepend | Kind::Cas, R::NotStored) => {
                    Some(Effect::Nothing)
                }
                (Kind::Cas, R::Exists | R::NotFound) => Some(Effect::Nothing),
                (Kind::Incr | Kind::Decr, R::Number(_)) => Some(Effect::Done),
                (Kind::Delete, R::Deleted | R::NotFound) => Some(Effect::Done),
                (Kind::Touch, R::Touched) => Some(Effect::Done),
                (Kind::Incr | Kind::Decr | Kind::Touch, R::NotFound) => Some(Effect::Nothing),
                _ => None,
            };
            assert_eq!(effect(kind, &reply), expected, "{kind:?} answered {reply:?}");
        }
    }
}

/// Section 4's table: what a follower is sent. A filling one is never made to compute.
#[test]
fn what_a_follower_is_sent() {
    for kind in KINDS.into_iter().filter(|k| k.is_write()) {
        let (expected, filling) = match kind {
            Kind::Set | Kind::Add | Kind::Replace | Kind::Cas => (Mirror::Set, Mirror::Set),
            Kind::Delete => (Mirror::Delete, Mirror::Delete),
            Kind::Incr | Kind::Decr => (Mirror::Arithmetic, Mirror::Drop),
            Kind::Append | Kind::Prepend => (Mirror::Concat, Mirror::Drop),
            _ => (Mirror::Touch, Mirror::Drop),
        };
        assert_eq!((mirror(kind), mirror_filling(kind)), (expected, filling), "{kind:?}");
    }
}

#[test]
fn when_the_follower_agrees() {
    use ReplyKind as R;
    for sent in [Mirror::Set, Mirror::Delete, Mirror::Drop, Mirror::Arithmetic, Mirror::Concat, Mirror::Touch] {
        for reply in replies() {
            let expected = match (sent, &reply) {
                (_, R::ServerError | R::ClientError | R::Error) => Some(Agreement::Differ),
                (Mirror::Set | Mirror::Concat, R::Stored) => Some(Agreement::Agree),
                (Mirror::Set | Mirror::Concat, R::NotStored) => Some(Agreement::Differ),
                (Mirror::Delete | Mirror::Drop, R::Deleted | R::NotFound) => Some(Agreement::Agree),
                (Mirror::Arithmetic, R::Number(_)) => Some(Agreement::Agree),
                (Mirror::Touch, R::Touched) => Some(Agreement::Agree),
                (Mirror::Arithmetic | Mirror::Touch, R::NotFound) => Some(Agreement::Differ),
                _ => None,
            };
            assert_eq!(agreement(sent, 7, &reply), expected, "{sent:?} answered {reply:?}");
        }
    }
    assert_eq!(
        agreement(Mirror::Arithmetic, 8, &ReplyKind::Number(7)),
        Some(Agreement::Differ),
        "they count differently"
    );
}

fn op(text: &str) -> Op {
    let raw = Bytes::copy_from_slice(text.as_bytes());
    let parsed = Dialect::default().next(&raw, &Limits::default());
    let Parsed::Request { request: Request::Keyed(request), .. } = parsed else { panic!("{text}") };
    let (start, end) = (request.keys.span.start as u32, request.keys.span.end as u32);
    Op {
        data: (request.data.start as u32, request.data.end as u32),
        flags: request.flags,
        exptime: request.exptime,
        cas: request.cas,
        delta: request.delta,
        ..Op::new(Origin::Control(Ticket(0)), request.kind, PairId(0), Topology::key_hash(b"k"), raw, (start, end))
    }
}

fn written(write: impl Fn(&mut OutQueue)) -> String {
    let mut out = OutQueue::default();
    write(&mut out);
    let mut slices = [std::io::IoSlice::new(&[]); crate::protocol::out::MAX_SLICES];
    let count = out.slices(&mut slices);
    slices[..count].iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect()
}

/// Lines are written anew from what was understood: `noreply` goes, odd blanks go, the token loses
/// its term.
#[test]
fn commands_are_written_anew() {
    let token = client_cas(99, Term(7));
    let set = "set k 5 100 3\r\nabc\r\n";
    let cases = [
        ("get k\r\n", "get k\r\n", ""),
        ("gets k\r\n", "gets k\r\n", ""),
        ("gat 60 k\r\n", "gat 60 k\r\n", "touch k 60\r\n"),
        ("gats 60 k\r\n", "gats 60 k\r\n", "touch k 60\r\n"),
        ("set  k 5 100 3 noreply\r\nabc\r\n", set, set),
        ("add k 5 100 3\r\nabc\r\n", "add k 5 100 3\r\nabc\r\n", set),
        ("replace k 5 100 3\r\nabc\r\n", "replace k 5 100 3\r\nabc\r\n", set),
        ("append k 5 100 3\r\nabc\r\n", "append k 5 100 3\r\nabc\r\n", "append k 5 100 3\r\nabc\r\n"),
        ("prepend k 5 100 3\r\nabc\r\n", "prepend k 5 100 3\r\nabc\r\n", "prepend k 5 100 3\r\nabc\r\n"),
        (&format!("cas k 5 100 3 {token}\r\nabc\r\n"), "cas k 5 100 3 99\r\nabc\r\n", set),
        (
            "incr k 18446744073709551615 noreply\r\n",
            "incr k 18446744073709551615\r\n",
            "incr k 18446744073709551615\r\n",
        ),
        ("decr k 2\r\n", "decr k 2\r\n", "decr k 2\r\n"),
        ("delete k noreply\r\n", "delete k\r\n", "delete k\r\n"),
        ("touch k -1 noreply\r\n", "touch k -1\r\n", "touch k -1\r\n"),
    ];
    for (text, leader, follower) in cases {
        let op = op(text);
        assert_eq!(written(|out| op.encode_leader(out, Some(Term(7)), op.exptime)), leader, "{text}");
        if op.kind.is_write() {
            assert_eq!(written(|out| op.encode_follower(out, mirror(op.kind), op.exptime)), follower, "{text}");
            assert_eq!(written(|out| op.encode_follower(out, Mirror::Delete, op.exptime)), "delete k\r\n", "{text}");
        }
    }
    // Without backups tokens are the node's own, all 64 bits of them.
    let op = op(&format!("cas k 0 0 1 {}\r\nx\r\n", u64::MAX));
    assert_eq!(written(|out| op.encode_leader(out, None, op.exptime)), format!("cas k 0 0 1 {}\r\nx\r\n", u64::MAX));
}

#[test]
fn a_token_carries_the_term_above_the_nodes_own_id() {
    for term in [1, 7, 0x7fff, 0x8001, 0x1_2345] {
        for raw in [0, 1, 99, (1 << 48) - 1] {
            let token = client_cas(raw, Term(term));
            assert!(i64::try_from(token).is_ok(), "clients without unsigned integers read it right");
            assert_eq!(node_cas(token, Some(Term(term))), raw);
            assert_eq!(node_cas(token, Some(Term(term).next())), u64::MAX, "another term's token equals no item's id");
            assert_eq!(node_cas(token, None), token);
        }
    }
    let spilled = client_cas(u64::MAX, Term(3));
    assert_eq!(
        node_cas(spilled, Some(Term(3))),
        (1 << 48) - 1,
        "an id of more than 48 bits does not spill into the term"
    );
}
