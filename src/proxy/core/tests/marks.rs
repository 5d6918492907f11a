//! `--prove-writes`: nobody is told of a write before the fleet's mark was read behind it.

use std::time::Duration;

use crate::ids::{AddressNumber, Generation, Incarnation, NodeId, PairId, Place};
use crate::pair::{Reason, State};
use crate::protocol::mark::FleetMark;
use crate::proxy::handles::{ClientId, ConnId};
use crate::proxy::route::{Flow, Follower, Route};

use super::super::*;
use super::explore::{Errors, explore, holds};
use super::history::Req::{self, *};
use super::shell::{client_hears, client_says, events, node_hears, node_says};
use super::waits;
use super::world::{Fault, KEY, World};

const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);
const MARK: &str = "mg __resilver__:fleet v\r\n";

/// Of this generation.
pub(super) fn mark(generation: u64) -> FleetMark {
    let (name, address) = ("a".to_owned(), "here:1".to_owned());
    FleetMark { name, generation: Generation(generation), address, lease: Duration::ZERO }
}

/// As a node answers it.
fn shown(mark: &FleetMark) -> String {
    let text = mark.to_string();
    format!("VA {}\r\n{text}\r\n", text.len())
}

/// One pair, mirrored or with a leader alone, whose connections are ready; and a client.
fn core(mirrored: bool) -> (Core, ClientId) {
    let mut core = waits::core(usize::from(mirrored), Some(Incarnation(7)));
    node_hears(&mut core, Now::default(), A);
    says(&mut core, A, &format!("VA 16\r\n{}\r\n", Incarnation(7)));
    core.prove_writes(mark(7));
    let client = core.handle_connect(Now::default()).id;
    (core, client)
}

fn says(core: &mut Core, node: NodeId, text: &str) {
    node_says(core, core.now, node, text.as_bytes());
}

fn hears(core: &mut Core, node: NodeId) -> String {
    node_hears(core, core.now, node)
}

fn asks(core: &mut Core, client: ClientId, text: &str) {
    client_says(core, core.now, client, text.as_bytes());
}

fn told(core: &mut Core, client: ClientId) -> String {
    String::from_utf8(client_hears(core, client)).unwrap()
}

fn tick(core: &mut Core) {
    let now = Now { us: core.now.us + 10_000, date_us: core.now.date_us + 10_000 };
    core.handle_tick(now);
}

/// Both have executed it; the mark is asked for.
fn set(core: &mut Core, client: ClientId) {
    asks(core, client, "set k 0 0 1\r\n1\r\n");
    assert_eq!(hears(core, A), "set k 0 0 1\r\n1\r\n");
    says(core, A, "STORED\r\n");
    assert_eq!(hears(core, B), format!("set k 0 0 1\r\n1\r\n{MARK}"));
    says(core, B, "STORED\r\n");
    assert_eq!(told(core, client), "", "before the mark has come");
}

#[test]
fn a_write_is_told_of_once_the_followers_mark_was_read_behind_it() {
    let (mut core, client) = core(true);
    set(&mut core, client);
    says(&mut core, B, &shown(&mark(7)));
    assert_eq!(told(&mut core, client), "STORED\r\n");
    assert!(core.is_quiet() && events(&mut core).is_empty());
    // Reads are not proved so.
    asks(&mut core, client, "get k\r\n");
    assert_eq!(hears(&mut core, A), "get k\r\n");
    says(&mut core, A, "VALUE k 0 1\r\n1\r\nEND\r\n");
    assert_eq!(told(&mut core, client), "VALUE k 0 1\r\n1\r\nEND\r\n");
}

#[test]
fn all_writes_of_a_turn_share_one_mark_and_later_ones_need_another() {
    let (mut core, client) = core(true);
    asks(&mut core, client, &"set k 0 0 1\r\n1\r\n".repeat(3));
    hears(&mut core, A);
    says(&mut core, A, &"STORED\r\n".repeat(2));
    assert_eq!(hears(&mut core, B).matches(MARK).count(), 1);
    // The third is sent behind that one.
    says(&mut core, A, "STORED\r\n");
    assert_eq!(hears(&mut core, B).matches(MARK).count(), 1);
    says(&mut core, B, &"STORED\r\n".repeat(2));
    assert_eq!(told(&mut core, client), "");
    says(&mut core, B, &shown(&mark(7)));
    assert_eq!(told(&mut core, client), "STORED\r\n".repeat(2));
    says(&mut core, B, "STORED\r\n");
    assert_eq!(told(&mut core, client), "", "the mark was read before it");
    says(&mut core, B, &shown(&mark(7)));
    assert_eq!(told(&mut core, client), "STORED\r\n");
}

/// It is replaced between the write and the proof.
#[test]
fn anothers_mark_ends_the_proxy_and_its_writes_are_refused() {
    for found in
        [mark(8), FleetMark { name: "b".to_owned(), ..mark(1) }, FleetMark { address: "x:1".to_owned(), ..mark(7) }]
    {
        let (mut core, client) = core(true);
        let other = core.handle_connect(Now::default()).id;
        set(&mut core, client);
        asks(&mut core, other, "set l 0 0 1\r\n1\r\n");
        hears(&mut core, A);
        says(&mut core, B, &shown(&found));
        assert!(told(&mut core, client).starts_with("SERVER_ERROR another proxy"), "{found}");
        assert_eq!(events(&mut core), [Event::Marked { node: B, found }]);
        // What is done from now on is refused without a mark.
        says(&mut core, A, "STORED\r\n");
        hears(&mut core, B);
        says(&mut core, B, "STORED\r\n");
        assert!(told(&mut core, other).starts_with("SERVER_ERROR another proxy"));
        says(&mut core, B, &shown(&mark(7)));
        assert!(core.is_quiet() && events(&mut core).is_empty());
    }
}

/// The follower gets no part of it; a mark that was asked for before the leader has decided says
/// nothing of that moment.
#[test]
fn what_the_leader_alone_decides_needs_a_mark_that_is_asked_for_afterwards() {
    let (mut core, client) = core(true);
    let other = core.handle_connect(Now::default()).id;
    asks(&mut core, other, "set l 0 0 1\r\n1\r\n");
    hears(&mut core, A);
    says(&mut core, A, "STORED\r\n");
    assert!(hears(&mut core, B).ends_with(MARK));
    asks(&mut core, client, "cas k 0 0 1 9\r\n1\r\n");
    assert!(!hears(&mut core, A).contains(MARK));
    says(&mut core, A, "EXISTS\r\n");
    assert_eq!((told(&mut core, client), hears(&mut core, B)), (String::new(), MARK.to_owned()));
    says(&mut core, B, &format!("STORED\r\n{}", shown(&mark(7))));
    assert_eq!((told(&mut core, other), told(&mut core, client)), ("STORED\r\n".to_owned(), String::new()));
    says(&mut core, B, &shown(&mark(7)));
    assert_eq!(told(&mut core, client), "EXISTS\r\n");
}

#[test]
fn a_leader_alone_shows_the_mark_itself() {
    let (mut core, client) = core(false);
    asks(&mut core, client, "set k 0 0 1\r\n1\r\n");
    assert_eq!(hears(&mut core, A), format!("set k 0 0 1\r\n1\r\n{MARK}"));
    says(&mut core, A, "STORED\r\n");
    assert_eq!(told(&mut core, client), "");
    says(&mut core, A, &shown(&mark(8)));
    assert!(told(&mut core, client).starts_with("SERVER_ERROR another proxy"));
}

/// The control plane writes it again.
#[test]
fn a_mark_that_is_missing_or_earlier_is_waited_for() {
    for found in ["EN\r\n".to_owned(), shown(&mark(6)), "VA 3\r\n???\r\n".to_owned()] {
        let (mut core, client) = core(true);
        set(&mut core, client);
        says(&mut core, B, &found);
        assert_eq!((told(&mut core, client), events(&mut core)), (String::new(), vec![Event::Hint { node: B }]));
        assert_eq!(hears(&mut core, B), "");
        tick(&mut core);
        assert_eq!(hears(&mut core, B), MARK);
        tick(&mut core);
        assert_eq!(hears(&mut core, B), "", "it is asked for already");
        says(&mut core, B, &shown(&mark(7)));
        assert_eq!(told(&mut core, client), "STORED\r\n");
    }
}

/// … as long as an answer is, and the node is late then.
#[test]
fn a_mark_that_is_not_written_again_makes_its_node_late() {
    let (mut core, client) = core(true);
    set(&mut core, client);
    says(&mut core, B, "EN\r\n");
    let mut late = false;
    for _ in 0..40 {
        tick(&mut core);
        if !hears(&mut core, B).is_empty() {
            says(&mut core, B, "EN\r\n");
        }
        late |= events(&mut core)
            .iter()
            .any(|event| matches!(event, Event::Late { node: B, age, .. } if age.as_micros() >= u128::from(waits::TIMEOUT_US)));
    }
    assert!(late);
}

/// Its quiet writes are done when a client is told something behind them.
#[test]
fn quiet_writes_wait_as_others_do() {
    for (quiet, answer) in [("set k 0 0 1 noreply\r\n1\r\n", "STORED\r\n"), ("ms k 1 q\r\n1\r\n", "HD\r\n")] {
        let (mut core, client) = core(true);
        asks(&mut core, client, &format!("{quiet}mn\r\n"));
        hears(&mut core, A);
        says(&mut core, A, answer);
        hears(&mut core, B);
        says(&mut core, B, answer);
        assert_eq!(told(&mut core, client), "", "{quiet}");
        says(&mut core, B, &shown(&mark(7)));
        assert_eq!(told(&mut core, client), "MN\r\n", "{quiet}");
    }
}

/// Each way in which a node is lost with a write that waits for its mark.
#[test]
fn a_node_that_is_lost_before_it_shows_the_mark_keeps_nobody_waiting() {
    let losses: [fn(&mut Core, NodeId); 4] = [
        |core, node| core.handle_conn_down(core.now, ConnId::first(node), Reason::Reset),
        |core, node| says(core, node, "what is that?\r\n"),
        |core, node| core.handle_command(core.now, Command::Moved { node, address: AddressNumber(1) }),
        |_, _| {},
    ];
    for lose in losses {
        let (mut core, client) = core(true);
        set(&mut core, client);
        lose(&mut core, B);
        core.handle_command(core.now, Command::Close { pair: PairId(0), void: Some(B), round: 1 });
        assert!(events(&mut core).iter().any(|event| matches!(event, Event::Closed { .. })), "the gate closes");
        let flow = core.pairs[PairId(0)].flow.clone().unwrap();
        let alone = Flow { follower: Follower::None, ..flow };
        core.handle_command(core.now, Command::Open { pair: PairId(0), route: Route::Open(alone) });
        assert_eq!((told(&mut core, client), hears(&mut core, A)), (String::new(), MARK.to_owned()));
        says(&mut core, A, &shown(&mark(7)));
        assert_eq!(told(&mut core, client), "STORED\r\n");
    }
}

/// The fault is told, for nothing else waits on that connection.
#[test]
fn a_connection_that_breaks_with_a_write_that_waits_is_a_fault() {
    let (mut core, client) = core(true);
    set(&mut core, client);
    says(&mut core, B, "EN\r\n");
    events(&mut core);
    core.handle_conn_down(core.now, ConnId::first(B), Reason::Reset);
    let events = events(&mut core);
    assert!(events.iter().any(|event| matches!(event, Event::Fault { node: B, .. })), "{events:?}");
}

/// No connection stands on which it could be read: one is made, and asked as soon as it stands.
#[test]
fn a_mark_is_asked_for_on_a_connection_that_is_made_for_it() {
    let (mut core, client) = core(true);
    while core.poll_dial().is_some() {}
    core.handle_conn_down(core.now, ConnId::first(B), Reason::Reset);
    asks(&mut core, client, "cas k 0 0 1 9\r\n1\r\n");
    hears(&mut core, A);
    says(&mut core, A, "EXISTS\r\n");
    assert_eq!(core.poll_dial().map(|(at, _)| at), Some(ConnId::first(B)));
    while let Some(at) = core.poll_dirty_conn() {
        core.conn_to_write(core.now, at);
    }
    core.handle_conn_up(core.now, ConnId::first(B));
    assert_eq!(core.poll_dirty_conn(), Some(ConnId::first(B)));
    assert_eq!(hears(&mut core, B), MARK);
    says(&mut core, B, &shown(&mark(7)));
    assert_eq!(told(&mut core, client), "EXISTS\r\n");
}

/// A repaired write is in flight again while it waits for the mark: the next repair of the key
/// waits for all that are.
#[test]
fn a_repaired_write_that_waits_for_its_mark_counts_among_those_in_flight() {
    let (mut core, client) = core(true);
    let incr = "incr k 1\r\n";
    asks(&mut core, client, incr);
    hears(&mut core, A);
    says(&mut core, A, "5\r\n");
    let count = format!("mg k s u\r\n{incr}");
    assert_eq!(hears(&mut core, B), format!("{count}{MARK}"));
    says(&mut core, B, &format!("HD s1\r\n9\r\n{}", shown(&mark(7))));
    assert!(hears(&mut core, A).starts_with("mg k"));
    says(&mut core, A, &format!("VA 1 kk f0 t-1 c9\r\n5\r\nVA 16\r\n{}\r\n", Incarnation(7)));
    assert!(hears(&mut core, B).starts_with("md k"));
    says(&mut core, B, "HD\r\nHD\r\n");
    assert!(hears(&mut core, A).starts_with("mg k"));
    says(&mut core, A, "HD c9\r\n");
    assert_eq!((hears(&mut core, B), told(&mut core, client)), (MARK.to_owned(), String::new()));
    for _ in 0..2 {
        let other = core.handle_connect(Now::default()).id;
        asks(&mut core, other, incr);
    }
    hears(&mut core, A);
    says(&mut core, A, "6\r\n7\r\n");
    assert_eq!(hears(&mut core, B), format!("{count}{count}{MARK}"));
    says(&mut core, B, &shown(&mark(7)));
    assert_eq!(told(&mut core, client), "5\r\n");
    // Number 99 was checked in `put_up`.
    says(&mut core, B, "HD s1\r\n99\r\n");
    assert_eq!(hears(&mut core, A), "", "the repair waits for the third");
    says(&mut core, B, &format!("HD s1\r\n7\r\n{}", shown(&mark(7))));
    assert!(hears(&mut core, A).starts_with("mg k"));
}

const WRITES: [Req; 11] =
    [Gat, Set("7"), Add("7"), Replace("7"), Append("7"), Prepend("7"), Cas("7"), Incr, Decr, Delete, Touch];

fn world(proves: bool, state: State, item: Option<&str>, program: &[Req], fault: Option<Fault>) -> World {
    let mut world = World::new(1, state, item, &[program]);
    if proves {
        world.prove_writes(mark(7));
    }
    world.fault = fault;
    world
}

/// Another proxy marks both servers, at any moment of a command; from then on it serves the key
/// from the backup, and empties the primary. Whatever is told of a write afterwards must be so
/// there.
#[test]
fn nobody_is_told_of_a_write_after_the_next_proxy_has_begun() {
    let walk = |proves, req, item| {
        let program = [req];
        explore(|| world(proves, State::Mirrored, item, &program, Some(Fault::Replace)), Errors::Allowed)
    };
    let mut wrong = vec![];
    for req in WRITES.into_iter().filter(|req| !matches!(req, Cas(_))) {
        for item in [None, Some("5")] {
            if let Err(story) = walk(true, req, item) {
                panic!("{req:?} with {item:?}: {story}");
            }
            if walk(false, req, item).is_err() {
                wrong.push(format!("{req:?} with {item:?}"));
            }
        }
    }
    assert!(wrong.len() >= 4, "what is not proved goes wrong: {wrong:?}");
}

/// … and one node's failure is as little noticed as without.
#[test]
fn a_node_that_fails_is_not_noticed_where_writes_are_proved() {
    let faults = [
        Fault::Kill(0),
        Fault::Kill(1),
        Fault::Reset(0),
        Fault::Reset(1),
        Fault::Restart(1),
        Fault::Hang(0),
        Fault::Hang(1),
        Fault::Flush(0),
        Fault::Flush(1),
        Fault::Evict(0),
        Fault::Evict(1),
        Fault::EvictMark(1),
    ];
    for fault in faults {
        for (req, item) in
            [(Set("7"), None), (Add("7"), Some("5")), (Add("7"), None), (Incr, Some("5")), (Delete, None)]
        {
            let make = || world(true, State::Mirrored, item, &[req, Get], Some(fault));
            holds(&format!("{req:?} with {item:?}, {fault:?}"), make, Errors::None);
        }
    }
    for leader in [Place::Primary, Place::Backup] {
        for req in [Set("7"), Incr, Append("7"), Add("7")] {
            let make = || world(true, State::Recovering { leader }, Some("5"), &[req, Get], None);
            holds(&format!("{req:?} during a resync from the {leader}"), make, Errors::None);
        }
    }
}

/// Copies that differ: what a repair has made equal is told of behind a mark, too.
#[test]
fn a_repaired_write_is_proved_as_others_are() {
    let unequal = |fault| {
        let mut world = world(true, State::Mirrored, Some("5"), &[Incr, Get], fault);
        world.nodes[1].put(KEY, "8");
        world.unequal = true;
        world
    };
    for fault in [None, Some(Fault::Reset(1)), Some(Fault::Kill(1)), Some(Fault::EvictMark(1))] {
        holds(&format!("repair, {fault:?}"), || unequal(fault), Errors::Allowed);
    }
}
