//! Several proxies: what clients of all doors have in common - a counter, a lock, a value behind
//! cas tokens - while another proxy becomes active: planned, after a crash, after a pause.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::support::fleet::{FENCED, get, shown, while_at_work, while_clients_count};
use crate::support::{Client, DEADLINE, Etcd, Failure, Fleet, Stored, wait_until};

/// Whether what was asked may have been done all the same; each failure says it.
fn may_be_done(failure: &Failure) -> bool {
    match failure {
        Failure::Closed(_) => true,
        Failure::Server(why) => {
            let not_asked = why.contains("no proxy is active") || why.contains("takes no connection");
            assert!(not_asked || why.contains("nobody knows whether this was done"), "no client knows more by: {why}");
            !not_asked
        }
        other => panic!("{other}"),
    }
}

/// A number that each change raises by one.
struct Tally {
    key: String,
    /// What clients were told to have made of it.
    told: Mutex<BTreeSet<u64>>,
    /// Changes of which nobody knows.
    perhaps: AtomicU64,
}

impl Tally {
    fn new(key: String, client: &mut Client) -> Tally {
        assert_eq!(client.set(&key, b"0"), Ok(Stored::Stored));
        Tally { key, told: Mutex::default(), perhaps: AtomicU64::new(0) }
    }

    /// The greatest of which a client was told.
    fn least(&self) -> u64 {
        self.told.lock().expect("no client has failed").last().copied().unwrap_or(0)
    }

    /// `least`: before it was asked.
    fn is_told(&self, number: u64, least: u64) {
        assert!(number > least, "{}: {number} is not above {least}, which was acknowledged", self.key);
        let is_new = self.told.lock().expect("no client has failed").insert(number);
        assert!(is_new, "{}: two clients were told of {number}", self.key);
    }

    fn failed(&self, failure: Failure) -> Failure {
        self.perhaps.fetch_add(u64::from(may_be_done(&failure)), Ordering::SeqCst);
        failure
    }

    /// Each that was acknowledged counts once, and each of which nobody knows once at most.
    fn adds_up(&self, client: &mut Client) {
        let number: u64 = get(client, &self.key).expect("it is there").parse().expect("a number");
        let told = self.told.lock().expect("no client has failed").len() as u64;
        let perhaps = self.perhaps.load(Ordering::SeqCst);
        assert!(
            (told..=told + perhaps).contains(&number) && number >= self.least(),
            "{} is {number}; {told} were acknowledged, and {perhaps} may have been made",
            self.key
        );
    }
}

/// See the head of this file.
struct Shared {
    counter: Tally,
    value: Tally,
    lock: String,
    /// Of a lock that may be held or not nobody knows more: the next one takes its place.
    present: AtomicUsize,
    /// The locks that somebody has.
    held: Mutex<BTreeSet<usize>>,
}

impl Shared {
    fn new(round: &str, client: &mut Client) -> Shared {
        let [counter, value] = ["counter", "value"].map(|name| Tally::new(format!("{name}:{round}"), client));
        let lock = format!("lock:{round}");
        Shared { counter, value, lock, present: AtomicUsize::new(0), held: Mutex::default() }
    }

    fn turn(&self, client: &mut Client, me: &str) -> Result<(), Failure> {
        let least = self.counter.least();
        let count = client.incr(&self.counter.key, 1).map_err(|failure| self.counter.failed(failure))?;
        self.counter.is_told(count.expect("it is there"), least);
        let at = self.present.load(Ordering::SeqCst);
        self.lock(client, me, at).inspect_err(|_| _ = self.present.fetch_max(at + 1, Ordering::SeqCst))?;
        let least = self.value.least();
        let item = client.gets(&self.value.key)?.expect("it is there");
        let found = String::from_utf8(item.value).expect("a text").parse::<u64>().expect("a number");
        assert!(found >= least, "{found} was read after {least} was acknowledged");
        let next = found + 1;
        let token = item.cas.expect("a token");
        match client.cas(&self.value.key, 0, 0, next.to_string().as_bytes(), token) {
            Ok(Stored::Stored) => self.value.is_told(next, least),
            Ok(other) => assert_eq!(other, Stored::Exists),
            Err(failure) => return Err(self.value.failed(failure)),
        }
        Ok(())
    }

    /// Takes it, if nobody has it, and gives it back.
    fn lock(&self, client: &mut Client, me: &str, at: usize) -> Result<(), Failure> {
        let key = format!("{}:{at}", self.lock);
        if client.store("add", &key, 0, 0, me.as_bytes())? != Stored::Stored {
            return Ok(());
        }
        assert!(self.held.lock().expect("no client has failed").insert(at), "two clients have {key}");
        let holder = client.get(&key);
        assert!(self.held.lock().expect("no client has failed").remove(&at));
        assert_eq!(holder?.map(|item| item.value).as_deref(), Some(me.as_bytes()), "{me} has {key}");
        assert!(client.delete(&key)?, "{me} had {key}");
        Ok(())
    }

    fn adds_up(&self, client: &mut Client) {
        for tally in [&self.counter, &self.value] {
            tally.adds_up(client);
        }
    }
}

#[test]
fn a_planned_change_costs_no_client_of_another_door_an_error_and_no_compare() {
    let etcd = Etcd::start();
    let mut fleet = Fleet::start(3, &etcd.fleet("planned"));
    fleet.mirrored();
    for round in 0..3 {
        let active = fleet.active();
        let others: Vec<String> = (0..3).filter(|&i| i != active).map(|i| fleet.proxies[i].addr()).collect();
        let shared = Shared::new(&round.to_string(), &mut fleet.proxies[active].client());
        let doors: Vec<&str> = others.iter().map(String::as_str).cycle().take(6).collect();
        let also = |client: &mut Client, me: &str, _: u64| shared.turn(client, me).expect("no error");
        while_clients_count(&doors, &format!("planned:{round}"), also, || {
            assert_eq!(fleet.proxies[active].stop().code(), Some(0));
        });
        let next = fleet.active();
        shared.adds_up(&mut fleet.proxies[next].client());
        fleet.mirrored();
        let log = fleet.proxies[next].log();
        assert!(!log.contains("resync begins"), "round {round}: copies were compared:\n{log}");
        fleet.proxies[active].spawn();
        fleet.all_ready();
    }
    fleet.copies_are_equal();
}

/// One that comes back through its door whenever its connection ends.
struct Guest {
    door: String,
    name: String,
    client: Option<Client>,
}

impl Guest {
    fn asks(&mut self, ask: impl FnOnce(&mut Client, &str) -> Result<(), Failure>) -> bool {
        self.client = self.client.take().or_else(|| Client::try_connect(&self.door).ok());
        let Some(client) = &mut self.client else {
            std::thread::sleep(std::time::Duration::from_millis(5));
            return false;
        };
        let Err(failure) = ask(client, &self.name) else { return true };
        may_be_done(&failure);
        if matches!(failure, Failure::Closed(_)) {
            self.client = None;
        }
        false
    }
}

/// Killed, and paused for longer than its lease. Its own clients come back through its door too.
#[test]
fn an_active_proxy_that_is_lost_costs_no_count_no_lock_and_no_change() {
    let etcd = Etcd::start();
    let mut fleet = Fleet::start_with(3, &etcd.fleet("lost"), &["--lease", "1s"]);
    for round in ["killed", "paused"] {
        fleet.mirrored();
        let active = fleet.active();
        let shared = Shared::new(round, &mut fleet.proxies[active].client());
        let guests = (0..6).map(|n| {
            let door = fleet.proxies[n % 3].addr();
            Guest { door, name: format!("{round}:{n}"), client: None }
        });
        let step = |guest: &mut Guest| guest.asks(|client, me| shared.turn(client, me));
        while_at_work(guests.collect(), step, || {
            if round == "killed" {
                fleet.proxies[active].kill();
            } else {
                fleet.proxies[active].pause();
            }
            let next = fleet.active_but(active);
            if round == "paused" {
                let told = || shared.counter.least();
                let before = told();
                wait_until("clients are served meanwhile", DEADLINE, || told() > before + 10);
                assert_eq!(shown(&fleet.proxies[next], "former"), "awaited");
                fleet.proxies[active].resume();
                assert_eq!(fleet.proxies[active].wait_exit().code(), Some(FENCED));
            }
            fleet.proxies[active].spawn();
            fleet.all_ready();
        });
        fleet.mirrored();
        shared.adds_up(&mut fleet.proxies[fleet.active()].client());
        fleet.copies_are_equal();
    }
}
