//! The tables of what a leader's answer means for the follower, in full.

use crate::protocol::dialect::Dialect;
use crate::protocol::reply::Reply;
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

/// Every meta command with every answer, as above.
#[test]
fn what_the_leaders_meta_answer_means() {
    use ReplyKind as R;
    let (ex, nf, ns, en) = (R::MetaEx, R::MetaNf, R::MetaNs, R::MetaEn);
    let va = || R::MetaVa { data: 0..0 };
    let nothing = Some(Effect::Nothing);
    let done = Some(Effect::Done);
    let unknown = Some(Effect::Unknown);
    for (text, answers) in [
        ("mg k v\r\n", vec![(R::MetaHd, nothing), (va(), nothing), (en.clone(), nothing), (R::ServerError, nothing)]),
        ("mg k T5\r\n", vec![(R::MetaHd, done), (va(), done), (en.clone(), nothing), (R::ServerError, unknown)]),
        (
            "mg k N5 R5\r\n",
            vec![(R::MetaHd, nothing), (va(), nothing), (en.clone(), nothing), (R::ServerError, unknown)],
        ),
        ("me k\r\n", vec![(R::MetaMe, nothing), (en, nothing), (R::ServerError, nothing)]),
        (
            "ms k 1\r\nx\r\n",
            vec![
                (R::MetaHd, done),
                (ns.clone(), unknown),
                (nf.clone(), nothing),
                (ex.clone(), nothing),
                (R::ServerError, unknown),
            ],
        ),
        (
            "ms k 1 ME\r\nx\r\n",
            vec![
                (R::MetaHd, done),
                (ns.clone(), nothing),
                (nf.clone(), nothing),
                (ex.clone(), nothing),
                (R::ServerError, unknown),
            ],
        ),
        (
            "ms k 1 I C5\r\nx\r\n",
            vec![
                (R::MetaHd, unknown),
                (ns.clone(), unknown),
                (nf.clone(), nothing),
                (ex.clone(), nothing),
                (R::ServerError, unknown),
            ],
        ),
        (
            "md k I\r\n",
            vec![
                (R::MetaHd, done),
                (nf.clone(), done),
                (ns.clone(), unknown),
                (ex.clone(), nothing),
                (R::ServerError, unknown),
            ],
        ),
        (
            "md k x\r\n",
            vec![
                (R::MetaHd, unknown),
                (nf.clone(), done),
                (ns.clone(), unknown),
                (ex.clone(), nothing),
                (R::ServerError, unknown),
            ],
        ),
        (
            "ma k\r\n",
            vec![
                (va(), done),
                (nf.clone(), nothing),
                (ns.clone(), nothing),
                (ex.clone(), nothing),
                (R::ServerError, unknown),
            ],
        ),
        ("ma k T5\r\n", vec![(va(), unknown), (nf, nothing), (ns, nothing), (ex, nothing), (R::ServerError, unknown)]),
    ] {
        for reply in replies() {
            let expected = match &reply {
                R::ClientError | R::Error => Some(Effect::Nothing),
                reply => answers.iter().find(|(given, _)| given == reply).and_then(|(_, effect)| *effect),
            };
            assert_eq!(effect(op(text).kind, &reply), expected, "{text} answered {reply:?}");
        }
    }
}

#[test]
fn what_a_follower_is_sent_of_a_meta_command() {
    let token = client_cas(99, Term(7));
    for (text, leader, sent, filling, follower) in [
        ("mg k v T60 q\r\n", "mg k v T60\r\n", Mirror::Touch, Mirror::Drop, "mg k T60\r\n"),
        ("mg k v N60\r\n", "mg k v N60\r\n", Mirror::Touch, Mirror::Drop, "mg k T0\r\n"),
        ("ms k 1 T60 F5 q\r\nx\r\n", "ms k 1 T60 F5\r\nx\r\n", Mirror::Set, Mirror::Set, "ms k 1 T60 F5\r\nx\r\n"),
        ("ms k 1 ME\r\nx\r\n", "ms k 1 ME\r\nx\r\n", Mirror::Set, Mirror::Set, "ms k 1\r\nx\r\n"),
        (&format!("ms k 1 C{token}\r\nx\r\n"), "ms k 1 C99\r\nx\r\n", Mirror::Set, Mirror::Set, "ms k 1\r\nx\r\n"),
        ("ms k 1 C5\r\nx\r\n", "ms k 1 C18446744073709551615\r\nx\r\n", Mirror::Set, Mirror::Set, "ms k 1\r\nx\r\n"),
        ("ms k 1 MA C0 N5\r\nx\r\n", "ms k 1 MA C0 N5\r\nx\r\n", Mirror::Concat, Mirror::Drop, "ms k 1 MA\r\nx\r\n"),
        ("md k q\r\n", "md k\r\n", Mirror::Delete, Mirror::Delete, "md k\r\n"),
        ("md k I T5\r\n", "md k I T5\r\n", Mirror::Withhold, Mirror::Drop, "md k\r\n"),
        ("md k x\r\n", "md k x\r\n", Mirror::Withhold, Mirror::Drop, "md k\r\n"),
        ("ma k MD C0\r\n", "ma k MD C0 v\r\n", Mirror::Arithmetic, Mirror::Drop, "ma k MD D1 v\r\n"),
    ] {
        let op = op(text);
        assert_eq!(written(|out| op.encode_leader(out, Some(Term(7)), op.exptime)), leader, "{text}");
        assert_eq!((mirror(op.kind), mirror_filling(op.kind)), (sent, filling), "{text}");
        assert_eq!(written(|out| op.encode_follower(out, sent, op.exptime)), follower, "{text}");
        assert_eq!(written(|out| op.encode_follower(out, Mirror::Drop, op.exptime)), "md k\r\n", "{text}");
    }
}

#[test]
fn when_the_follower_agrees_to_a_meta_command() {
    use ReplyKind as R;
    let all = [
        Mirror::Set,
        Mirror::Delete,
        Mirror::Drop,
        Mirror::Withhold,
        Mirror::Arithmetic,
        Mirror::Concat,
        Mirror::Touch,
    ];
    for sent in all {
        for kind in replies() {
            let kind = if matches!(kind, R::MetaVa { .. }) { R::MetaVa { data: 6..7 } } else { kind };
            let expected = match (sent, &kind) {
                (_, R::ServerError | R::ClientError | R::Error) => Some(Agreement::Differ),
                (Mirror::Set | Mirror::Concat, R::MetaHd) => Some(Agreement::Agree),
                (Mirror::Set | Mirror::Concat, R::MetaNs) => Some(Agreement::Differ),
                (Mirror::Delete | Mirror::Drop | Mirror::Withhold, R::MetaHd | R::MetaNf) => Some(Agreement::Agree),
                (Mirror::Arithmetic, R::MetaVa { .. }) => Some(Agreement::Agree),
                (Mirror::Arithmetic, R::MetaNf) => Some(Agreement::Differ),
                (Mirror::Touch, R::MetaHd) => Some(Agreement::Agree),
                (Mirror::Touch, R::MetaEn) => Some(Agreement::Differ),
                _ => None,
            };
            let reply = Reply { kind, line: 0..4, len: 9 };
            assert_eq!(meta_agreement(sent, 7, &reply, b"VA 1\r\n7\r\n"), expected, "{sent:?} answered {reply:?}");
            if let (Mirror::Arithmetic, R::MetaVa { .. }) = (sent, &reply.kind) {
                let other = meta_agreement(sent, 8, &reply, b"VA 1\r\n7\r\n");
                assert_eq!(other, Some(Agreement::Differ), "they count differently");
            }
        }
    }
}

#[test]
fn what_a_meta_answer_says_of_absence() {
    let shows = |text: &str, reply| shows_absence(op(text).kind, &reply);
    for text in ["mg k\r\n", "me k\r\n", "md k\r\n", "ma k\r\n", "ms k 0 C5\r\n\r\n"] {
        assert!(shows(text, ReplyKind::MetaEn) && shows(text, ReplyKind::MetaNf));
        assert!(!shows(text, ReplyKind::MetaHd) && !shows(text, ReplyKind::MetaEx), "{text}");
    }
    assert!(shows("ms k 0 ME\r\n\r\n", ReplyKind::MetaHd) && shows("ms k 0 MA N5\r\n\r\n", ReplyKind::MetaHd));
    assert!(!shows("ms k 0 ME\r\n\r\n", ReplyKind::MetaNs) && !shows("ms k 0\r\n\r\n", ReplyKind::MetaNs));
    assert!(shows("ms k 0 MA\r\n\r\n", ReplyKind::MetaNs) && shows("ms k 0 MR\r\n\r\n", ReplyKind::MetaNs));
}
