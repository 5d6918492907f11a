//! What one key costs while very many are asked for, or wait, at once: it stays flat. No work for
//! one request may grow with what else is pending, whoever asked for it. Counted with 1,000, 10,000
//! and 100,000 keys, by shape of request and by structure.

use std::sync::Arc;

use bytes::Bytes;

use resilver::internals::ids::{NodeId, PairId};
use resilver::internals::keys::{Lone, Missed, MissedBudget, Recopy};
use resilver::internals::proxy::{Command, Flow, Follower, Route};

use crate::drive::{Drive, Workload};
use crate::{GET, beside, callgrind, skipped};

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];

/// How much more a key may cost among ten or a hundred times as many, in hundredths: tables and
/// queues that grow are copied now and then, and a tree is a little deeper. (What walks all keys
/// costs ten times as much.)
const GROWTH_MAX: u64 = 140;

/// What one client of many has in flight: more than some two thousand would wait in its socket.
const IN_FLIGHT: usize = 1_000;

const TICKS: u64 = 20;

type Shape = (&'static str, Of, fn(usize));

/// What is counted.
#[derive(Clone, Copy)]
enum Of {
    /// All that is done, by key.
    Keys,
    /// What is done between two boundaries of the shape's own, by key.
    Part,
    /// The same of this many structures, each with as many keys, as make up for chance: how many
    /// parts of a table have just grown at 1,000 keys is rolled anew in each process.
    KeysOfSeveral,
    /// A few ticks, whatever waits meanwhile; between two boundaries of the shape's own.
    Ticks,
}

/// Of one client, in one pipeline.
const REQUESTS: [Shape; 9] = [
    ("get", Of::Keys, |keys| pour(false, |text, answers| get("get ", 0..keys, text, answers))),
    ("gat", Of::Keys, |keys| {
        pour(false, |text, answers| {
            get("gat 0 ", 0..keys / 2, text, answers);
            get("gat 0 ", 0..keys - keys / 2, text, answers);
        })
    }),
    ("set and get of other keys, twice", Of::Keys, |keys| {
        pour(false, |text, answers| {
            for keys in [0..keys / 2, keys / 2..keys] {
                set(keys.end, "", text, answers);
                get("get ", keys, text, answers);
            }
        })
    }),
    ("set of all, get of all", Of::Keys, |keys| {
        pour(false, |text, answers| {
            (0..keys / 2).for_each(|key| set(key, "", text, answers));
            get("get ", 0..keys / 2, text, answers);
        })
    }),
    ("set, noreply", Of::Keys, |keys| {
        pour(false, |text, answers| (0..keys).for_each(|key| set(key, " noreply", text, answers)))
    }),
    ("set and get by turns, mirrored", Of::Keys, |keys| {
        pour(true, |text, answers| {
            for key in 0..keys / 2 {
                set(key, "", text, answers);
                get("get ", key * 7 % keys..key * 7 % keys + 1, text, answers);
            }
        })
    }),
    ("a byte of a line that comes byte by byte", Of::Part, |bytes| {
        let mut drive = Drive::new(&Workload { value: 1, ..GET });
        let (mut text, mut answers) = (Vec::new(), Vec::new());
        get("get ", 0..bytes.div_ceil(7), &mut text, &mut answers);
        drive.expect(0, answers);
        callgrind::boundary();
        text[..bytes].iter().for_each(|byte| drive.offer(0, &mut std::slice::from_ref(byte)));
        callgrind::boundary();
        let mut rest = &text[bytes..];
        while !rest.is_empty() {
            drive.offer(0, &mut rest);
        }
        drive.exchange();
        drive.assert_answered(0);
    }),
    // What is done in one turn, before others have theirs.
    ("a line's parsing, and its first keys", Of::Part, |keys| {
        let mut drive = Drive::new(&Workload { value: 1, ..GET });
        let (mut text, mut answers) = (Vec::new(), Vec::new());
        get("get ", 0..keys, &mut text, &mut answers);
        drive.expect(0, answers);
        callgrind::boundary();
        drive.offer(0, &mut text.as_slice());
        callgrind::boundary();
        drive.exchange();
        drive.assert_answered(0);
    }),
    ("get of few keys behind sets, mirrored", Of::Keys, |keys| {
        pour(true, |text, answers| {
            for key in (0..keys).step_by(20) {
                (key..key + 10).for_each(|key| set(key, "", text, answers));
                get("get ", key..key + 10, text, answers);
            }
        })
    }),
];

/// What waits inside, of many clients.
const STRUCTURES: [Shape; 9] = [
    ("a tick while operations are parked", Of::Ticks, |keys| Crowd::new(keys).tick_parked()),
    ("a tick behind answers that count for nothing", Of::Ticks, |keys| Crowd::new(keys).tick_void()),
    ("in flight to a node that is lost", Of::Keys, |keys| Crowd::new(keys).fail_over()),
    ("parked, and begun under the next route", Of::Keys, |keys| Crowd::new(keys).park()),
    ("a gate that closes over what is in flight", Of::Part, |keys| Crowd::new(keys).close_over()),
    ("missed, past the bound", Of::KeysOfSeveral, |keys| {
        for _ in 0..several(keys) {
            let missed = Missed::new(Arc::new(MissedBudget::new(keys * 50)));
            missed.reset();
            (0..keys).for_each(|i| counted_missed(&missed, &key(i)));
            assert!(missed.overflowed());
        }
    }),
    // What was missed so far is freed by another thread, and by this one where it is little.
    ("missed, and one too many", Of::Ticks, |keys| {
        let budget = Arc::new(MissedBudget::new(usize::MAX));
        let missed = Missed::new(budget.clone());
        missed.reset();
        missed.insert(&key(0));
        let full = Missed::new(Arc::new(MissedBudget::new(keys * budget.used())));
        full.reset();
        (0..keys).for_each(|i| full.insert(&key(i)));
        assert!(!full.overflowed());
        callgrind::boundary();
        counted_missed(&full, b"one too many");
        callgrind::boundary();
        assert!(full.overflowed());
    }),
    ("missed", Of::KeysOfSeveral, |keys| {
        for _ in 0..several(keys) {
            let missed = Missed::new(Arc::new(MissedBudget::new(1 << 30)));
            missed.reset();
            (0..keys).for_each(|i| counted_missed(&missed, &key(i)));
        }
    }),
    // Once its table has grown: see `KeysOfSeveral`.
    ("recopy", Of::Part, |keys| {
        let recopy = Recopy::new();
        let round = || {
            // Past its bound it forgets them.
            for batch in (0..keys).step_by(50_000) {
                (batch..keys.min(batch + 50_000)).for_each(|i| counted_recopy(&recopy, key(i).into()));
                while !counted_take_batch(&recopy).is_empty() {}
            }
        };
        round();
        callgrind::boundary();
        round();
        callgrind::boundary();
    }),
];

/// Of many clients, every one of which finds a difference.
const REPAIRS: [Shape; 2] = [
    ("copies that differ", Of::Keys, |keys| Crowd::new(keys).diverge()),
    ("copies of one key that differ", Of::Keys, |keys| Crowd::new(keys).diverge_at_one()),
];

/// Many clients with a pipeline each.
struct Crowd {
    drive: Drive,
    keys: usize,
    /// The pairs of the first node, and where else they may be led.
    pairs: Vec<(PairId, NodeId)>,
}

impl Crowd {
    fn new(keys: usize) -> Crowd {
        let clients = keys / IN_FLIGHT;
        let drive = Drive::new(&Workload { mirrored: true, clients, value: 1, ..GET });
        let topology = drive.topology();
        let of_first = topology.pairs().map(|pair| (pair, topology.nodes_of(pair)));
        let pairs =
            of_first.filter(|(_, nodes)| nodes.0 == NodeId(0)).filter_map(|(pair, nodes)| Some((pair, nodes.1?)));
        let pairs = pairs.collect();
        Crowd { drive, keys, pairs }
    }

    /// Every client's requests are taken, and nothing is answered.
    fn ask(&mut self, request: fn(usize, &mut Vec<u8>, &mut Vec<u8>)) {
        for client in 0..self.keys / IN_FLIGHT {
            let (mut text, mut answers) = (Vec::new(), Vec::new());
            (0..IN_FLIGHT).for_each(|i| request(client * IN_FLIGHT + i, &mut text, &mut answers));
            self.drive.expect(client, answers);
            let mut left = text.as_slice();
            while !left.is_empty() {
                self.drive.offer(client, &mut left);
                self.drive.resume();
            }
        }
    }

    fn close(&mut self, void: Option<NodeId>) {
        for (pair, _) in self.pairs.clone() {
            self.drive.command(Command::Close { pair, void, round: 1 });
        }
    }

    fn open(&mut self) {
        let missed = Arc::new(Missed::new(Arc::new(MissedBudget::new(1 << 30))));
        missed.reset();
        for (pair, leader) in self.pairs.clone() {
            let missed = missed.clone();
            let lone = Arc::new(Lone::new(Arc::new(MissedBudget::new(0))));
            let flow =
                Flow { leader, follower: Follower::None, term: None, writable: true, missed, lone, written: None };
            self.drive.command(Command::Open { pair, route: Route::Open(flow) });
        }
    }

    fn assert_answered(&mut self) {
        self.drive.take_events();
        self.drive.exchange();
        (0..self.keys / IN_FLIGHT).for_each(|client| self.drive.assert_answered(client));
    }

    /// What a node was asked goes to the other ones.
    fn fail_over(mut self) {
        self.ask(|key, text, answers| set(key, "", text, answers));
        self.drive.write_to_nodes();
        self.close(Some(NodeId(0)));
        self.drive.lose(NodeId(0));
        self.drive.take_events();
        self.open();
        self.assert_answered();
    }

    /// The pairs of one node change their roles, and what was asked meanwhile goes on.
    fn park(mut self) {
        self.close(None);
        self.ask(|key, text, answers| set(key, "", text, answers));
        self.open();
        self.assert_answered();
    }

    /// A node's pairs are closed while very much is in flight.
    fn close_over(mut self) {
        self.ask(|key, text, answers| set(key, "", text, answers));
        self.drive.write_to_nodes();
        callgrind::boundary();
        self.close(None);
        callgrind::boundary();
        self.drive.answer_nodes();
        self.drive.take_events();
        self.open();
        self.assert_answered();
    }

    /// Ticks while the pairs of one node change their roles.
    fn tick_parked(mut self) {
        self.close(None);
        self.ask(|key, text, answers| set(key, "", text, answers));
        self.tick();
        self.open();
        self.assert_answered();
    }

    /// Ticks while a node that was given up owes answers.
    fn tick_void(mut self) {
        self.ask(|key, text, answers| set(key, "", text, answers));
        self.drive.write_to_nodes();
        self.close(Some(NodeId(0)));
        self.tick();
        self.drive.lose(NodeId(0));
        self.open();
        self.assert_answered();
    }

    fn tick(&mut self) {
        self.drive.tick(25_000);
        callgrind::boundary();
        (0..TICKS).for_each(|_| self.drive.tick(5_000));
        callgrind::boundary();
    }

    /// Leader and follower count differently, every time.
    fn diverge(mut self) {
        self.ask(|key, text, answers| {
            text.extend_from_slice(format!("incr k{key:05} 1\r\n").as_bytes());
            answers.extend_from_slice(b"8\r\n");
        });
        self.assert_answered();
    }

    /// The same of one key, behind whose repair all others wait.
    fn diverge_at_one(mut self) {
        self.ask(|_, text, answers| {
            text.extend_from_slice(b"incr hot 1\r\n");
            answers.extend_from_slice(b"8\r\n");
        });
        self.assert_answered();
    }
}

#[inline(never)]
fn counted_missed(missed: &Missed, key: &[u8]) {
    missed.insert(key);
}

#[inline(never)]
fn counted_recopy(recopy: &Recopy, key: Bytes) {
    recopy.push(key);
}

#[inline(never)]
fn counted_take_batch(recopy: &Recopy) -> Vec<Bytes> {
    recopy.take_batch(64)
}

// Three tests, so that three processes can be under callgrind at once.

#[test]
fn a_request_costs_the_same_however_many_there_are() {
    stays_flat("growth::a_request_costs_the_same_however_many_there_are", &REQUESTS);
}

#[test]
fn what_waits_costs_the_same_however_much_there_is() {
    stays_flat("growth::what_waits_costs_the_same_however_much_there_is", &STRUCTURES);
}

#[test]
fn a_repair_costs_the_same_however_many_there_are() {
    stays_flat("growth::a_repair_costs_the_same_however_many_there_are", &REPAIRS);
}

/// Counts each shape with all sizes; `test` is the caller's name.
fn stays_flat(test: &str, shapes: &[Shape]) {
    if callgrind::is_child() {
        for (_, of, run) in shapes {
            for size in SIZES {
                match of {
                    Of::Keys | Of::KeysOfSeveral => each_key(|| run(size)),
                    Of::Part | Of::Ticks => run(size),
                }
            }
        }
        return;
    }
    let _beside = beside();
    let counts = match callgrind::run(test, shapes.len() * SIZES.len()) {
        Ok(counts) => counts,
        Err(why) => return skipped("instructions of a key among many", &why),
    };
    let mut broken = Vec::new();
    println!("instructions of a key among {SIZES:?}:");
    for ((shape, of, _), counts) in shapes.iter().zip(counts.chunks(SIZES.len())) {
        let by = |keys| match of {
            Of::Keys | Of::Part => keys as u64,
            Of::KeysOfSeveral => (keys * several(keys)) as u64,
            Of::Ticks => TICKS,
        };
        let each: Vec<u64> = counts.iter().zip(SIZES).map(|(count, keys)| count / by(keys)).collect();
        println!("  {shape:<40} {each:>7?}");
        if each.iter().any(|&each_of_many| each_of_many * 100 > each[0] * GROWTH_MAX) {
            broken.push(format!("{shape}: {each:?}"));
        }
    }
    assert!(broken.is_empty(), "a key costs more the more there are {SIZES:?}: {broken:#?}");
}

fn each_key(work: impl FnOnce()) {
    callgrind::boundary();
    work();
    callgrind::boundary();
}

fn several(keys: usize) -> usize {
    (10_000 / keys).max(1)
}

fn key(i: usize) -> Vec<u8> {
    format!("k{i:05}").into_bytes()
}

fn set(i: usize, noreply: &str, text: &mut Vec<u8>, answers: &mut Vec<u8>) {
    text.extend_from_slice(format!("set k{i:05} 0 0 1{noreply}\r\nv\r\n").as_bytes());
    if noreply.is_empty() {
        answers.extend_from_slice(b"STORED\r\n");
    }
}

fn get(verb: &str, keys: std::ops::Range<usize>, text: &mut Vec<u8>, answers: &mut Vec<u8>) {
    text.extend_from_slice(verb.trim_end().as_bytes());
    for i in keys {
        text.extend_from_slice(format!(" k{i:05}").as_bytes());
        answers.extend_from_slice(format!("VALUE k{i:05} 0 1\r\nv\r\n").as_bytes());
    }
    text.extend_from_slice(b"\r\n");
    answers.extend_from_slice(b"END\r\n");
}

/// One client's pipeline.
fn pour(mirrored: bool, write: impl FnOnce(&mut Vec<u8>, &mut Vec<u8>)) {
    let mut drive = Drive::new(&Workload { mirrored, value: 1, ..GET });
    let (mut text, mut answers) = (Vec::new(), Vec::new());
    write(&mut text, &mut answers);
    drive.pour(0, &text, answers);
}
