//! Nothing waits for a node without a deadline: also not what no unanswered command shows.

use std::time::Duration;

use crate::ids::{AddressNumber, Incarnation, Life, NodeId, PairId};
use crate::keys::{Lone, Missed, MissedBudget};
use crate::pair::Reason;
use crate::proxy::handles::{ConnId, OpId};
use crate::proxy::link::{Flight, Link};
use crate::proxy::route::{Flow, Follower, Route};
use crate::ring::Distribution;

use super::super::*;
use super::shell::{client_says, events, node_hears, node_says};
use super::world::alone;

const A: NodeId = NodeId(0);
pub(super) const TIMEOUT_US: u64 = 250_000;
pub(super) const PATIENCE_US: u64 = 2_000_000;

/// One worker of a ring with one primary and several backups; `incarnation`: of the primary.
pub(super) fn core(backups: usize, incarnation: Option<Incarnation>) -> Core {
    let backups: Vec<_> = (0..backups).map(|i| format!("b{i}:1").parse().unwrap()).collect();
    let topology = Arc::new(Topology::new(&["a:1".parse().unwrap()], &backups, Distribution::Modula));
    let settings = alone((TIMEOUT_US, PATIENCE_US), 8 << 20);
    let stats = Arc::new(WorkerStats::new(topology.node_count()));
    let mut core = Core::new(settings, topology.clone(), stats, Arc::default());
    for pair in topology.pairs() {
        let follower = topology.nodes_of(pair).1.filter(|_| incarnation.is_some() && topology.pair_count() == 1);
        let flow = Flow {
            leader: A,
            follower: follower.map_or(Follower::None, Follower::InSync),
            term: None,
            writable: true,
            missed: Arc::new(Missed::new(Arc::new(MissedBudget::new(1 << 20)))),
            lone: Arc::new(Lone::new(Arc::new(MissedBudget::new(1 << 20)))),
            written: None,
        };
        core.handle_command(Now::default(), Command::Open { pair, route: Route::Open(flow) });
    }
    for node in topology.nodes() {
        core.handle_command(
            Now::default(),
            Command::Allow { node, incarnation: incarnation.filter(|_| node == A), life: Life(1) },
        );
        core.handle_conn_up(Now::default(), ConnId::first(node));
    }
    core
}

fn key_of(core: &Core, pair: usize) -> String {
    let mut keys = (0..).map(|i| format!("k{i}"));
    keys.find(|key| core.topology.pair_of(key.as_bytes()).index() == pair).unwrap()
}

fn says(core: &mut Core, node: NodeId, text: &str) {
    node_says(core, core.now, node, text.as_bytes());
}

fn sent(core: &mut Core, node: NodeId) -> String {
    node_hears(core, core.now, node)
}

/// Ticks until twice the longest deadline, with what the node answers to each; returns when it was
/// found late, and whether beyond it.
fn found_late(core: &mut Core, mut answer: impl FnMut(&mut Core)) -> Vec<(u64, bool)> {
    let mut found: Vec<(u64, bool)> = Vec::new();
    let mut now = Now::default();
    while now.us < 2 * PATIENCE_US {
        now.us += 10_000;
        core.handle_tick(now);
        for event in events(core) {
            let Event::Late { node: A, age, .. } = event else { continue };
            for (limit, patience_over) in [(TIMEOUT_US, false), (PATIENCE_US, true)] {
                // Lateness is reported repeatedly: take the first report.
                if age > Duration::from_micros(limit) && !found.iter().any(|told| told.1 == patience_over) {
                    found.push((now.us, patience_over));
                }
            }
        }
        answer(core);
    }
    found
}

const ON_TIME: [(u64, bool); 2] = [(TIMEOUT_US + 10_000, false), (PATIENCE_US + 10_000, true)];

/// Two pairs have one leader. One of them is led by somebody else from now on, and what it has
/// asked counts for nothing; the other one's large values wait for room behind that. Nobody asked
/// who waited for the answer, and they waited for ever.
#[test]
fn what_waits_for_room_behind_void_answers_is_not_forgotten() {
    let mut core = core(2, None);
    let client = core.handle_connect(Now::default()).id;
    let (one, other) = (key_of(&core, 0), key_of(&core, 1));
    core.client_has_met(client, 3 << 20);
    client_says(&mut core, Now::default(), client, format!("get {one}\r\n").as_bytes());
    assert_eq!(sent(&mut core, A), format!("get {one}\r\n"));
    core.handle_command(Now::default(), Command::Close { pair: PairId(0), void: Some(A), round: 1 });
    let new = core.handle_connect(Now::default()).id;
    core.client_has_met(new, 3 << 20);
    client_says(&mut core, Now::default(), new, format!("get {other}\r\n").as_bytes());
    assert_eq!(sent(&mut core, A), "", "it waits for room");
    assert_eq!(found_late(&mut core, |_| {}), ON_TIME);
}

/// The marker alone is gone, and the node refuses it again and again (it is full, with -M).
#[test]
fn what_waits_for_a_marker_that_is_not_written_again_is_not_forgotten() {
    let mut core = core(0, Some(Incarnation(7)));
    let client = core.handle_connect(Now::default()).id;
    client_says(&mut core, Now::default(), client, b"get k\r\n");
    let no_marker = |core: &mut Core| {
        let asked = sent(core, A).matches("mg __resilver__").count();
        says(core, A, &"EN\r\n".repeat(asked));
    };
    assert_eq!(found_late(&mut core, no_marker), ON_TIME);
}

/// The same for a repair, behind which other clients' writes wait.
#[test]
fn a_repair_that_waits_for_a_marker_is_not_forgotten() {
    let mut core = core(1, Some(Incarnation(7)));
    let marker = format!("VA 16\r\n{}\r\n", Incarnation(7));
    sent(&mut core, A);
    says(&mut core, A, &marker);
    let client = core.handle_connect(Now::default()).id;
    client_says(&mut core, Now::default(), client, b"incr k 1\r\n");
    sent(&mut core, A);
    says(&mut core, A, "5\r\n");
    sent(&mut core, NodeId(1));
    says(&mut core, NodeId(1), "HD s1\r\n9\r\n");
    let repair = |core: &mut Core| {
        for command in sent(core, A).split_inclusive("\r\n") {
            let answer = if command.contains("__resilver__") { "EN\r\n" } else { "VA 1 kk f0 t-1 c9\r\n5\r\n" };
            says(core, A, answer);
        }
    };
    repair(&mut core);
    let late = found_late(&mut core, repair);
    assert_eq!(late.iter().map(|(_, patience_over)| *patience_over).collect::<Vec<_>>(), [false, true]);
    assert!(late[0].0 <= TIMEOUT_US + 30_000 && late[1].0 <= PATIENCE_US + 30_000, "{late:?}");
}

/// All workers' connections to a node have their part of what it is asked at once.
#[test]
fn what_a_node_is_asked_at_once_is_bounded_over_all_connections() {
    for (workers, lanes, each) in [(1, 1, 4 << 20), (2, 2, 4 << 20), (8, 2, 1 << 20), (64, 4, 256 << 10)] {
        let link = Link::new(lanes, workers);
        let mut asked = 0;
        for mut conn in link.conns {
            let mut bytes = 0;
            while conn.has_room(100_000) {
                conn.push(Flight::Get(OpId(0)), 0, 100_000);
                bytes += 100_000;
            }
            assert!(bytes <= each && bytes + 100_000 > each, "{workers} x {lanes}: {bytes}");
            asked += usize::from(workers) * bytes;
        }
        assert!(asked <= 16 << 20 || usize::from(workers * lanes) > 64, "{workers} x {lanes}: {asked}");
    }
}

/// The socket of the connection before took no more (io_uring tells nobody how a send ended whose
/// socket was closed), so the shell had kept the connection as one that is still to be written.
#[test]
fn a_connection_that_follows_one_with_a_full_socket_is_written_to() {
    let now = Now::default();
    let ended: [fn(&mut Core, Now); 3] = [
        |core, now| core.handle_conn_down(now, ConnId::first(A), Reason::Reset),
        |core, now| core.handle_conn_ended(now, ConnId::first(A), true),
        |core, now| core.handle_command(now, Command::Moved { node: A, address: AddressNumber(1) }),
    ];
    for end in ended {
        let mut core = core(1, Some(Incarnation(7)));
        core.handle_conn_blocked(ConnId::first(A));
        end(&mut core, now);
        core.dial(ConnId::first(A));
        while core.poll_dirty_conn().is_some() {}
        core.handle_conn_up(now, ConnId::first(A));
        assert_eq!(core.poll_dirty_conn(), Some(ConnId::first(A)), "its marker is asked for");
    }
}
