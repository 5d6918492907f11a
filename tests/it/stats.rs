//! What monitors and operators ask through the proxy, beside what a real memcached says: `stats`
//! and its parts, lists of keys, commands for one server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::binary::packet;
use crate::binary_differential::{Connection, Packet};
use crate::counters::COUNTERS;
use crate::support::client::{Failure, storage};
use crate::support::cluster::fill;
use crate::support::memcached::signal;
use crate::support::{Client, Cluster, DEADLINE, Memcached, Shape, wait_until};

/// Everything up to the last line of an answer: one that begins no list.
fn whole(client: &mut Client, command: &str) -> String {
    client.send(format!("{command}\r\n").as_bytes()).expect("sent");
    let mut lines = String::new();
    loop {
        let line = String::from_utf8(client.line().unwrap_or_else(|e| panic!("{command}: {e}"))).expect("text");
        lines.push_str(&line);
        lines.push('\n');
        let more = ["STAT ", "ITEM ", "PREFIX "].iter().any(|begin| line.starts_with(begin));
        if !more || matches!(command, "stats sizes_enable" | "stats sizes_disable") {
            return lines;
        }
    }
}

fn names(list: &str) -> BTreeSet<&str> {
    list.lines().filter_map(|line| line.strip_prefix("STAT ")?.split(' ').next()).collect()
}

fn values(list: &str) -> BTreeMap<&str, &str> {
    list.lines().filter_map(|line| line.strip_prefix("STAT ")?.split_once(' ')).collect()
}

/// Where one thing is asked and the answer is always the same.
const FIXED: [&str; 49] = [
    "stats sizes",
    "stats sizes_enable",
    "stats sizes",
    "stats sizes_disable",
    "stats sizes x",
    "stats detail",
    "stats detail on",
    "stats detail dump",
    "stats detail off",
    "stats detail x",
    "stats cachedump",
    "stats cachedump 1",
    "stats cachedump x 1",
    "stats cachedump 300 1",
    "stats cachedump 0 1",
    "stats cachedump 63 0",
    "stats cachedump 4294967297 1",
    "stats cachedump 1 4294967297",
    "stats extstore",
    "stats nosuch",
    "stats malloc",
    "stats noreply",
    "stats reset",
    "stats reset x",
    "lru_crawler",
    "lru_crawler metadump",
    "lru_crawler metadump x",
    "lru_crawler metadump 300",
    "lru_crawler metadump ,",
    "lru_crawler metadump all x",
    "lru_crawler sleep x",
    "lru_crawler mgdump all",
    "cache_memlimit",
    "cache_memlimit x",
    "cache_memlimit 1",
    "slabs",
    "slabs automove x",
    "slabs automove 3",
    "slabs automove ratio",
    "slabs automove ratio x",
    "lru",
    "lru x",
    "extstore",
    "extstore x",
    "shutdown",
    "shutdown x",
    "refresh_certs",
    "debugtime p",
    "misbehave",
];

#[test]
fn whatever_a_monitor_asks_is_answered_as_by_memcached() {
    let node = Memcached::start(&[]);
    let cluster = Cluster::start(&Shape::new(2, 1).patient());
    let (mut real, mut ours) = (node.client(), cluster.client());
    for command in FIXED {
        assert_eq!(whole(&mut ours, command), whole(&mut real, command), "{command}");
    }
    // What a server is told is refused in the words of one that has it switched off.
    for (command, answer) in [
        ("cache_memlimit 64", "MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust\n"),
        ("slabs reassign 1 2", "CLIENT_ERROR slab reassignment disabled\n"),
        ("slabs automove 1", "CLIENT_ERROR slab reassignment disabled\n"),
        ("lru mode flat", "ERROR\n"),
        ("lru_crawler crawl 1", "CLIENT_ERROR lru crawler disabled\n"),
        ("lru_crawler disable", "ERROR failed to stop lru crawler thread\n"),
        ("watch", "CLIENT_ERROR watch commands not allowed\n"),
    ] {
        assert_eq!(whole(&mut ours, command), answer, "{command}");
    }
    ours.send(b"cache_memlimit 64 noreply\r\nwatch noreply\r\nslabs automove 1 noreply\r\n").expect("sent");
    ours.send(b"lru mode flat noreply\r\nextstore item_size 1 noreply\r\nversion\r\n").expect("sent");
    assert!(ours.text().expect("an answer").starts_with("VERSION "));

    for client in [&mut real, &mut ours] {
        fill(client, "k", 300, 50);
        fill(client, "large", 40, 5_000);
        client.set("number", b"5").expect("stored");
        let token = client.gets("number").expect("read").expect("there").cas.expect("a token");
        client.cas("number", 0, 0, b"6", token).expect("stored");
        client.cas("number", 0, 0, b"7", token).expect("exists");
        client.cas("nosuch", 0, 0, b"7", 1).expect("not found");
        client.incr("number", 2).expect("counted");
        client.incr("nosuch", 2).expect("not found");
        client.arithmetic("decr", "number", 1).expect("counted");
        client.arithmetic("decr", "nosuch", 1).expect("not found");
        client.arithmetic("decr", "nosuch", 1).expect("not found");
        client.delete("number").expect("deleted");
        client.delete("number").expect("not found");
        client.touch("k:1", 0).expect("touched");
        client.touch("nosuch", 0).expect("not found");
        client.gat(0, "k:2").expect("read");
        client.gat(0, "nosuch").expect("not found");
        client.get("nosuch").expect("a miss");
        let large = client.store("set", "huge", 0, 0, &vec![b'x'; 2 << 20]);
        assert!(matches!(large, Err(Failure::Server(_))), "{large:?}");
        client.command("flush_all 1000000").expect("noted");
    }
    for command in ["stats", "stats settings", "stats slabs", "stats items"] {
        let (told, stock) = (whole(&mut ours, command), whole(&mut real, command));
        assert!(told.ends_with("END\n"), "{told}");
        let missing: Vec<&str> = names(&stock).difference(&names(&told)).copied().collect();
        assert_eq!(missing, [""; 0], "{command}: not in {told}");
    }
    let (told, stock) = (whole(&mut ours, "stats"), whole(&mut real, "stats"));
    let (told, stock) = (values(&told), values(&stock));
    for name in COUNTERS.into_iter().chain(["version", "accepting_conns", "curr_connections"]) {
        assert_eq!(told.get(name), stock.get(name), "{name}");
    }
    assert_eq!((told["servers_asked"], told["servers_not_asked"]), ("2", "0"));
    // Two connections and a listening socket: this test has one.
    let (conns, stock) = (whole(&mut ours, "stats conns"), whole(&mut real, "stats conns"));
    let fields = |list: &str| -> BTreeSet<String> {
        names(list).into_iter().filter_map(|name| Some(name.split_once(':')?.1.to_owned())).collect()
    };
    assert_eq!(fields(&conns), fields(&stock), "{conns}");
    assert!(conns.contains(&format!(":listen_addr tcp:{}\n", cluster.proxy.addr())), "{conns}");
    assert!(conns.contains(":state conn_listening\n") && conns.contains(":state conn_parse_cmd\n"), "{conns}");
    // The clients' items on the two servers that lead, and a few of the proxy's own.
    let items: i64 = told["curr_items"].parse().expect("a number");
    assert!((341..341 + 2 * 20).contains(&items), "{items}");
}

/// What is counted by a server and by the proxy alike begins anew, and what there is stays, name by
/// name as a real memcached does it; also where another server leads later, or was not reached.
#[test]
fn a_reset_clears_what_memcached_clears() {
    // Of the process or the moment, or cleared by mistake (below zero then).
    const APART: [&str; 8] = [
        "pid",
        "uptime",
        "time",
        "rusage_user",
        "rusage_system",
        "response_obj_count",
        "response_obj_bytes",
        "lru_maintainer_juggles",
    ];
    const LISTS: [&str; 3] = ["stats", "stats slabs", "stats items"];
    let node = Memcached::start(&["-m", "4"]);
    let mut cluster = Cluster::start(&Shape::new(1, 1).patient().nodes(&["-m", "4"]));
    let (mut real, mut ours) = (node.client(), cluster.client());
    let mut told = Vec::new();
    for client in [&mut real, &mut ours] {
        assert_eq!(whole(client, "stats detail on"), "OK\n");
        for (size, count) in [(50, 60), (20_000, 400)] {
            fill(client, &format!("k{size}"), count, size);
        }
        client.set("number", b"5").expect("stored");
        for _ in 0..40 {
            client.get("k50:1").expect("read");
            client.get("nosuch").expect("read");
            client.incr("number", 1).expect("counted");
            client.arithmetic("decr", "number", 1).expect("counted");
            let token = client.gets("number").expect("read").expect("there").cas.expect("a token");
            client.cas("number", 0, 0, b"6", token).expect("stored");
            client.cas("number", 0, 0, b"7", token).expect("exists");
            client.touch("k50:1", 0).expect("touched");
            client.set("gone", b"x").expect("stored");
            client.delete("gone").expect("deleted");
            client.raw_command("no command").expect("ERROR");
        }
        let before: String = LISTS.map(|list| whole(client, list)).concat();
        assert_eq!(whole(client, "stats reset"), "RESET\n");
        assert_eq!(whole(client, "stats detail dump"), "END\n");
        told.push((before, LISTS.map(|list| whole(client, list)).concat()));
    }
    let number = |list: &BTreeMap<&str, &str>, name: &str| -> Option<u64> { list.get(name)?.parse().ok() };
    let [stock, proxy] = [&told[0], &told[1]].map(|(before, after)| (values(before), values(after)));
    let mut cleared = BTreeSet::new();
    for name in stock.0.keys().filter(|name| !APART.contains(name)) {
        let (Some(was), Some(is)) = (number(&stock.0, name), number(&stock.1, name)) else { continue };
        let (Some(our), Some(now)) = (number(&proxy.0, name), number(&proxy.1, name)) else { continue };
        // What happened a few times only may happen again meanwhile.
        if was < 20 {
            continue;
        }
        if is * 4 < was {
            // The proxy's probes go on.
            assert!(now * 4 < our || now < 20, "{name}: memcached {was} {is}, proxy {our} {now}");
            cleared.insert(name.rsplit(':').next().expect("a name"));
        } else {
            assert!(our < 20 || now * 4 >= our * 3, "{name}: memcached {was} {is}, proxy {our} {now}");
        }
    }
    for name in [
        "total_items",
        "evictions",
        "evicted",
        "cmd_get",
        "cmd_set",
        "get_hits",
        "get_misses",
        "delete_hits",
        "incr_hits",
        "cas_badval",
        "touch_hits",
        "bytes_read",
    ] {
        assert!(cleared.contains(name), "{name} of {cleared:?}");
    }

    // What another server counts counts from then on too.
    ours.get("k50:1").expect("read");
    assert_eq!(whole(&mut ours, "stats detail dump"), "PREFIX k50 get 1 hit 1 set 0 del 0\nEND\n");
    let dead = cluster.primaries[0].addr();
    cluster.primaries[0].kill();
    cluster.wait_lost(&dead);
    ours.set("k50:1", b"value").expect("stored");
    assert_eq!(whole(&mut ours, "stats detail dump"), "PREFIX k50 get 0 hit 0 set 1 del 0\nEND\n");
    // One that did not answer counts from when it is asked again.
    cluster.backups[0].pause();
    assert_eq!(whole(&mut ours, "stats reset"), "RESET\n");
    signal(cluster.backups[0].pid(), "CONT");
    wait_until("it answers again", DEADLINE, || values(&whole(&mut ours, "stats"))["servers_asked"] == "1");
    assert_eq!(whole(&mut ours, "stats detail dump"), "END\n");
    ours.set("k50:1", b"value").expect("stored");
    assert_eq!(whole(&mut ours, "stats detail dump"), "PREFIX k50 get 0 hit 0 set 1 del 0\nEND\n");
}

#[test]
fn statistics_in_the_binary_protocol() {
    let node = Memcached::start(&[]);
    let cluster = Cluster::start(&Shape::new(1, 1).patient());
    let [mut real, mut ours] = [node.addr(), cluster.proxy.addr()].map(|addr| Connection::open(&addr));
    for client in [&mut node.client(), &mut cluster.client()] {
        fill(client, "k", 10, 50);
    }
    let names = |connection: &mut Connection, key: &str| -> (u16, BTreeSet<String>) {
        let (packets, closed) = connection.ask(&packet(0x10, &[], key.as_bytes(), &[]));
        assert!(!closed, "{key}");
        let name = |packet: &Packet| {
            let len = u16::from_be_bytes([packet.bytes[2], packet.bytes[3]]).into();
            String::from_utf8_lossy(&packet.body()[..len]).into_owned()
        };
        (packets.last().map_or(0, Packet::status), packets.iter().map(name).collect())
    };
    for key in [
        "",
        "settings",
        "slabs",
        "items",
        "sizes",
        "detail on",
        "detail off",
        "cachedump 1 0",
        "conns",
        "nosuch",
        " settings",
        "settingsx",
        "settings x",
        "slabs x",
        "items x",
        "sizes x",
        "detail onx",
        "detail offx",
        "detailx",
        "resetx",
        "reset",
    ] {
        let (stock, told) = (names(&mut real, key), names(&mut ours, key));
        assert_eq!(told.0, stock.0, "{key:?}");
        let missing: Vec<&String> = stock.1.difference(&told.1).collect();
        assert!(missing.is_empty(), "{key:?}: {missing:?}");
    }
    for connection in [&mut real, &mut ours] {
        names(connection, "detail on");
        connection.ask(&packet(0x00, &[], b"k:1", &[]));
        for key in ["detail dump", "detail dumpx"] {
            assert_eq!(names(connection, key).1, ["", "detailed"].map(str::to_owned).into());
        }
    }
}

/// Where the numbers come from is told of each.
#[test]
fn the_reference_names_whatever_a_server_tells() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
    let text = std::fs::read_to_string(path).expect("docs/reference.md");
    let node = Memcached::start(&[]);
    let mut client = node.client();
    for command in ["stats", "stats settings"] {
        let told = whole(&mut client, command);
        let known =
            |name: &&str| text.contains(&format!("`{name}`")) || name.starts_with("ext_") || name.starts_with("ssl_");
        let unknown: Vec<&str> = names(&told).into_iter().filter(|name| !known(name)).collect();
        assert_eq!(unknown, [""; 0], "{command}");
    }
}

/// The keys in a list of `lru_crawler metadump`, each once.
fn listed(client: &mut Client, which: &str) -> BTreeSet<String> {
    client.send(format!("lru_crawler metadump {which}\r\n").as_bytes()).expect("sent");
    let lines = client.dump_lines().unwrap_or_else(|e| panic!("{which}: {e}"));
    let key = |line: &Vec<u8>| {
        let line = String::from_utf8_lossy(line).into_owned();
        line.strip_prefix("key=").and_then(|rest| rest.split(' ').next()).expect("a key").replace("%3A", ":")
    };
    let keys: BTreeSet<String> = lines.iter().map(key).collect();
    assert_eq!(keys.len(), lines.len(), "each key once");
    keys
}

fn dumped(client: &mut Client, limit: usize) -> Vec<String> {
    let mut keys = Vec::new();
    let items = whole(client, "stats items");
    let classes: BTreeSet<&str> = names(&items).into_iter().filter_map(|name| name.split(':').nth(1)).collect();
    for class in classes {
        let list = whole(client, &format!("stats cachedump {class} {limit}"));
        assert!(list.ends_with("END\n"), "{list}");
        keys.extend(list.lines().filter_map(|line| Some(line.strip_prefix("ITEM ")?.split(' ').next()?.to_owned())));
    }
    keys
}

#[test]
fn keys_are_listed_once_and_the_proxy_s_own_are_not() {
    let mut cluster = Cluster::start(&Shape::new(2, 1).patient());
    let mut client = cluster.client();
    fill(&mut client, "k", 2_000, 50);
    let all: BTreeSet<String> = (0..2_000).map(|i| format!("k:{i}")).collect();
    for which in ["all", "hash"] {
        assert_eq!(listed(&mut client, which), all, "{which}");
    }
    let by_class: Vec<BTreeSet<String>> = (1..64).map(|class| listed(&mut client, &class.to_string())).collect();
    assert_eq!(by_class.iter().map(BTreeSet::len).sum::<usize>(), all.len());
    assert_eq!(listed(&mut client, "1,2,3,4,5,6,7"), all);
    // Items come into the part of the lists that is shown within a second or so.
    wait_until("all keys are shown", Duration::from_secs(20), || {
        let keys = dumped(&mut client, 0);
        keys.iter().all(|key| key.starts_with("k:")) && keys.into_iter().collect::<BTreeSet<_>>() == all
    });
    assert!(dumped(&mut client, 5).len() <= 5 * 63);

    let dead = cluster.primaries[0].addr();
    cluster.primaries[0].kill();
    cluster.wait_lost(&dead);
    assert_eq!(listed(&mut client, "all"), all, "led by the backup now");
    let told = whole(&mut client, "stats");
    assert_eq!(values(&told)["servers_not_asked"], "0", "{told}");
}

/// memcached's own script, and libmemcached's list of keys. (`make test-clients` has more of them.)
#[test]
fn tools_that_list_keys_and_statistics_work() {
    const TOOL: &str = "/usr/share/memcached/scripts/memcached-tool";
    if !Path::new(TOOL).exists() || Command::new("memcdump").arg("--help").output().is_err() {
        println!("SKIPPED: memcached-tool or memcdump is not installed");
        return;
    }
    let cluster = Cluster::start(&Shape::new(2, 1).patient());
    let mut client = cluster.client();
    fill(&mut client, "k", 100, 50);
    let all: BTreeSet<String> = (0..100).map(|i| format!("k:{i}")).collect();
    let addr = cluster.proxy.addr();
    // None of them has a deadline of its own.
    let run = |command: &[&str]| {
        let output = Command::new("timeout").arg("30").args(command).output().expect("run timeout(1)");
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let tool = |what: &str| run(&["perl", TOOL, &addr, what]);
    let keys = |text: &str, begin: &str| -> BTreeSet<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(begin)?.split(' ').next());
        lines.map(|key| key.replace("%3A", ":")).collect()
    };
    assert_eq!(keys(&tool("keys"), "key="), all);
    assert_eq!(keys(&tool("dump"), "add "), all);
    for (what, part) in [("stats", "curr_items"), ("settings", "maxbytes"), ("sizes", ""), ("display", "#")] {
        assert!(tool(what).contains(part), "{what}");
    }
    let servers = format!("--servers={addr}");
    wait_until("all keys are where cachedump looks", Duration::from_secs(20), || {
        keys(&run(&["memcdump", &servers]), "") == all
    });
}

/// Who reads no list, or leaves in its midst, costs neither memory nor the list of the next one.
#[test]
fn a_list_that_nobody_reads_makes_the_proxy_no_larger() {
    const KEYS: usize = 60_000;
    let cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    let (long, mut batch) = ("x".repeat(200), Vec::new());
    for i in 0..KEYS {
        batch.extend(storage("set", &format!("{long}{i}"), 0, 0, b"v", " noreply"));
        if batch.len() > 1 << 20 {
            client.send(&std::mem::take(&mut batch)).expect("sent");
        }
    }
    client.send(&batch).expect("sent");
    assert!(client.command("version").is_ok());
    let before = cluster.proxy.resident_bytes();
    let mut stopped: Vec<Client> = (0..2).map(|_| cluster.client()).collect();
    for client in &mut stopped {
        client.send(b"lru_crawler metadump all\r\n").expect("sent");
    }
    // 17 MB are listed for each.
    let listings =
        |client: &mut Client| client.stats("").expect("stats").into_iter().find(|(n, _)| n == "lru_crawler_starts");
    wait_until("both are listed", Duration::from_secs(20), || {
        listings(&mut client).is_some_and(|(_, count)| count.parse::<u64>().expect("a number") >= 2)
    });
    let grown = cluster.proxy.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes for two lists of 17 MB");
    assert_eq!(client.raw_command("lru_crawler metadump all"), Ok("BUSY currently processing crawler request".into()));
    // One goes on, and misses nothing.
    let mut patient = stopped.pop().expect("two");
    assert_eq!(patient.dump_lines().expect("the whole list").len(), KEYS);
    // The other leaves, and makes room.
    drop(stopped);
    let mut left = 0;
    wait_until("there is room again", Duration::from_secs(20), || {
        client.send(b"lru_crawler metadump hash\r\n").expect("sent");
        left = client.dump_lines().map_or(0, |lines| lines.len());
        left == KEYS
    });
}

/// A server that does not answer is told, and keeps nobody waiting.
#[test]
fn stats_end_although_a_server_hangs() {
    let cluster = Cluster::start(&Shape::new(2, 0).proxy(&["--leader-timeout", "20s"]));
    let mut client = cluster.client();
    let hung = &cluster.primaries[0];
    // Of a server that the start has not seen yet nobody knows that it leads.
    wait_until("both servers to be in use", DEADLINE, || values(&whole(&mut client, "stats"))["servers_asked"] == "2");
    hung.pause();
    let told = whole(&mut client, "stats");
    let slabs = whole(&mut client, "stats slabs");
    let dump = whole(&mut client, "stats cachedump 1 0");
    let node = whole(&mut client, &format!("node {} version", hung.addr()));
    signal(hung.pid(), "CONT");
    assert_eq!((values(&told)["servers_asked"], values(&told)["servers_not_asked"]), ("1", "1"), "{told}");
    assert_eq!(values(&slabs)["servers_not_asked"], "1", "{slabs}");
    assert!(
        dump.ends_with(&format!("SERVER_ERROR 1 of 2 servers is shown: {} did not answer in time\n", hung.addr())),
        "{dump}"
    );
    assert_eq!(node, format!("SERVER_ERROR node: {} did not answer in time\n", hung.addr()));
    let log = cluster.proxy.log_so_far();
    assert!(log.contains("a server did not answer what a client asked of all") && log.contains(&hung.addr()), "{log}");
}

#[test]
fn the_operator_sends_one_server_a_command() {
    let mut cluster = Cluster::start(&Shape::new(1, 1).nodes(&["-A"]));
    let mut client = cluster.client();
    let (primary, backup) = (cluster.primaries[0].addr(), cluster.backups[0].addr());
    client.set("k", b"value").expect("stored");
    let mut ask = |command: &str| client.raw_command(command).expect("an answer");
    assert_eq!(ask(&format!("node {backup} version")), "VERSION 1.6.18");
    assert_eq!(ask(&format!("node {backup} cache_memlimit 100")), "OK");
    assert_eq!(ask(&format!("node {backup} verbosity 0")), "OK");
    for (command, part) in [
        (format!("node {backup} set k 0 0 1"), "CLIENT_ERROR node: it would change one of two copies"),
        (format!("node {backup} flush_all"), "CLIENT_ERROR node: flush_all: it would empty one copy"),
        (format!("node {backup} stats reset"), "CLIENT_ERROR node: stats reset: the proxy needs"),
        (format!("node {backup} watch"), "CLIENT_ERROR node: watch: it never ends"),
        (format!("node {backup}"), "CLIENT_ERROR node: which server, and which command?"),
        ("node".to_owned(), "CLIENT_ERROR node: which server, and which command?"),
        ("node nosuch:1 version".to_owned(), "CLIENT_ERROR node: unknown node or word nosuch:1; nodes are"),
    ] {
        let said = ask(&command);
        assert!(said.starts_with(part), "{command}: {said}");
    }
    let settings = whole(&mut client, &format!("node {backup} stats settings"));
    assert_eq!(values(&settings)["maxbytes"], (100_u32 << 20).to_string(), "{settings}");
    client.send(format!("node {primary} get k\r\n").as_bytes()).expect("sent");
    assert_eq!(client.values().expect("values")[0].value, b"value");

    assert_eq!(client.raw_command(&format!("node {primary} shutdown")), Ok("OK".into()));
    cluster.primaries[0].kill();
    cluster.wait_lost(&primary);
    assert_eq!(client.get("k").expect("read").expect("there").value, b"value");
    let said = client.raw_command(&format!("node {backup} shutdown")).expect("an answer");
    assert!(said.starts_with(&format!("CLIENT_ERROR node: {backup} holds the only full copy of keys")), "{said}");
}
