//! Several proxies over one pair of servers.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::command::told;
use super::port::Port;
use super::{Client, DEADLINE, Memcached, Proxy, Stored, compare_rings, read_ring, wait_until};

/// Ends so whoever was replaced: to be started again.
pub const FENCED: i32 = 75;

/// Long enough for a machine that has too much to do.
pub const LEASE: &str = "2s";

/// Where the proxies agree, more arguments, variables.
pub type Apart<'a> = (String, &'a [&'a str], Vec<(&'static str, PathBuf)>);

/// The fields' order is the order of dropping: proxies go first.
pub struct Fleet {
    pub proxies: Vec<Proxy>,
    pub primaries: Vec<Memcached>,
    pub backups: Vec<Memcached>,
    pub _dir: Option<tempfile::TempDir>,
}

/// `more` takes the place of what is usual here.
pub fn args(fleet: &str, primaries: &[Memcached], backups: &[Memcached], more: &[&str]) -> Vec<String> {
    const USUAL: [[&str; 2]; 4] =
        [["--timeout", "250ms"], ["--probe-interval", "50ms"], ["--threads", "1"], ["--lease", LEASE]];
    let mut args: Vec<String> = USUAL
        .iter()
        .filter(|[flag, _]| !more.contains(flag))
        .flatten()
        .copied()
        .chain(["--coordinate", fleet])
        .chain(more.iter().copied())
        .map(str::to_owned)
        .collect();
    for (flag, nodes) in [("-s", primaries), ("-b", backups)] {
        args.extend(nodes.iter().flat_map(|node| [flag.to_owned(), node.known_as()]));
    }
    args
}

/// These work while this is done, and before and after it; a step says whether it came to its end.
pub fn while_at_work<S: Send>(workers: Vec<S>, step: impl Fn(&mut S) -> bool + Sync, act: impl FnOnce()) {
    let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _ends = Ends(&over);
        for mut worker in workers {
            let (over, done, step) = (&over, &done, &step);
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    done.fetch_add(u64::from(step(&mut worker)), Ordering::SeqCst);
                }
            });
        }
        let goes_on = |what: &str| {
            let before = done.load(Ordering::SeqCst);
            wait_until(what, DEADLINE, || done.load(Ordering::SeqCst) > before + 50);
        };
        goes_on("clients are at work");
        act();
        goes_on("clients are at work afterwards");
    });
}

/// When dropped: also where something fails in between, which a scope would wait for for ever.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A client at each of these doors counts on a key of its own while this is done, and before and
/// after it: nothing that it asks fails or is done twice. `also`: what it does after each step,
/// with its key and count.
pub fn while_clients_count(
    doors: &[&str],
    keys: &str,
    also: impl Fn(&mut Client, &str, u64) + Sync,
    act: impl FnOnce(),
) {
    let counts = |(n, door): (usize, &&str)| {
        let (mut client, key) = (Client::connect(door), format!("{keys}:{n}"));
        assert_eq!(client.set(&key, b"0"), Ok(Stored::Stored));
        (client, key, 0)
    };
    let step = |(client, key, count): &mut (Client, String, u64)| {
        *count += 1;
        assert_eq!(client.incr(key, 1), Ok(Some(*count)), "{key}");
        also(client, key, *count);
        true
    };
    while_at_work(doors.iter().enumerate().map(counts).collect(), step, act);
}

impl Fleet {
    /// This many proxies that agree there, over one pair; one of them is active, and all are ready.
    pub fn start(proxies: usize, fleet: &str) -> Fleet {
        Fleet::start_with(proxies, fleet, &[])
    }

    pub fn start_with(proxies: usize, fleet: &str, more: &[&str]) -> Fleet {
        Fleet::start_each(fleet, &vec![more; proxies])
    }

    /// Each with arguments of its own.
    pub fn start_each(fleet: &str, each: &[&[&str]]) -> Fleet {
        let alike: Vec<_> = each.iter().map(|more| (fleet.to_owned(), *more, vec![])).collect();
        Fleet::start_apart(&alike)
    }

    /// Each with a way of its own to where they agree, arguments, and variables.
    pub fn start_apart(each: &[Apart<'_>]) -> Fleet {
        let (primaries, backups) = (vec![Memcached::start(&[])], vec![Memcached::start(&[])]);
        let mut fleet = Fleet { proxies: vec![], primaries, backups, _dir: None };
        for (place, more, variables) in each {
            let args = args(place, &fleet.primaries, &fleet.backups, more);
            fleet.proxies.push(Proxy::start_where(&args, variables.clone()));
            // The first is active.
            fleet.all_ready();
        }
        fleet
    }

    /// By a file.
    pub fn by_file(proxies: usize) -> Fleet {
        Fleet::by_file_with(proxies, &[])
    }

    pub fn by_file_with(proxies: usize, more: &[&str]) -> Fleet {
        let dir = tempfile::tempdir().expect("temporary directory");
        let fleet = Fleet::start_with(proxies, &format!("file:{}", dir.path().join("fleet").display()), more);
        Fleet { _dir: Some(dir), ..fleet }
    }

    pub fn all_ready(&self) {
        for proxy in &self.proxies {
            wait_until("a proxy is ready", DEADLINE, || shown(proxy, "ready") == "1");
        }
    }

    pub fn find_active(&self) -> Option<usize> {
        (0..self.proxies.len()).find(|&i| shown(&self.proxies[i], "role") == "active")
    }

    /// Waits until another one is. (That one, which may hang, is not asked.)
    pub fn active_but(&self, former: usize) -> usize {
        let mut found = None;
        wait_until("another one is active", DEADLINE, || {
            let mut others = (0..self.proxies.len()).filter(|&i| i != former);
            found = others.find(|&i| shown(&self.proxies[i], "role") == "active");
            found.is_some()
        });
        found.expect("waited for")
    }

    pub fn active(&self) -> usize {
        let mut found = None;
        wait_until("a proxy is active", DEADLINE, || {
            found = self.find_active();
            found.is_some()
        });
        found.expect("waited for")
    }

    /// One that is not.
    pub fn standby(&self) -> &Proxy {
        let active = self.active();
        &self.proxies[(active + 1) % self.proxies.len()]
    }

    pub fn mirrored(&self) {
        self.proxies[self.active()].wait_mirrored(DEADLINE);
    }

    pub fn copies_are_equal(&self) {
        let different = compare_rings(&read_ring(&self.primaries), &read_ring(&self.backups));
        assert!(different.is_empty(), "the copies differ: {different:#?}");
    }
}

/// A line of `stats proxy`; empty where the proxy does not answer.
pub fn shown(proxy: &Proxy, name: &str) -> String {
    let Ok(mut client) = Client::try_connect(&proxy.addr()) else { return String::new() };
    client.set_deadline(Duration::from_millis(500));
    let lines = client.stats("proxy").unwrap_or_default();
    let name = format!("proxy:{name}");
    lines.into_iter().find(|(n, _)| *n == name).map_or(String::new(), |(_, value)| value)
}

pub fn get(client: &mut Client, key: &str) -> Option<String> {
    client.get(key).expect("get").map(|item| String::from_utf8(item.value).expect("a text"))
}

/// What an operator's command says of that proxy, with its exit code.
pub fn said(proxy: &Proxy, command: &[&str]) -> (Option<i32>, String) {
    told(&[command, &["--proxy", &proxy.addr()]].concat())
}

/// What the admin listener answers: the code and the body.
pub fn asked_for(admin: &Port, path: &str) -> (String, String) {
    let mut stream = std::net::TcpStream::connect(admin.addr()).expect("the admin listener");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).unwrap_or_default().to_owned(), body.to_owned())
}
