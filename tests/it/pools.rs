//! Several pools in one process, over real servers.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use crate::admin::{check_metrics, get, series};
use crate::supervised::Manager;
use crate::support::cluster::{count_filled, fill};
use crate::support::command::{Running, ended, resilver, run};
use crate::support::memcached::signal;
use crate::support::port::Port;
use crate::support::rings::read_node;
use crate::support::{Client, DEADLINE, Memcached, Proxy, Stored, wait_until};

/// Two pools of a primary and a backup each: `near`, where the harness looks, and `far`.
struct Two {
    proxy: Proxy,
    far: Port,
    admin: Port,
    dir: tempfile::TempDir,
    /// Primary and backup of `near`, and of `far`.
    nodes: [Memcached; 4],
}

/// The file, with lines above the pools and in each of them.
fn write(dir: &tempfile::TempDir, nodes: &[Memcached; 4], (admin, far): (&Port, &Port), lines: [&str; 3]) -> String {
    let [above, near, of_far] = lines;
    let path = dir.path().join("r.toml").to_str().expect("text").to_owned();
    let text = format!(
        "admin = {:?}\nadmin-socket = {:?}\nprobe-interval = \"50ms\"\nthreads = 1\n{above}\n\
         [pool.near]\nserver = {:?}\nbackup = {:?}\n{near}\n\
         [pool.far]\nserver = {:?}\nbackup = {:?}\nport = {}\n{of_far}\n",
        admin.addr(),
        dir.path().join("admin.sock"),
        nodes[0].addr(),
        nodes[1].addr(),
        nodes[2].addr(),
        nodes[3].addr(),
        far.number
    );
    std::fs::write(&path, text).expect("written");
    path
}

/// To be started without the harness: `near` has a port of its own.
struct ByHand {
    dir: tempfile::TempDir,
    nodes: [Memcached; 4],
    far: Port,
    /// Kept free until it is dropped.
    _others: [Port; 2],
    file: String,
}

impl ByHand {
    fn new() -> ByHand {
        let dir = tempfile::tempdir().expect("a folder");
        let nodes = [(); 4].map(|()| Memcached::start(&[]));
        let (admin, far, near) = (Port::reserve(), Port::reserve(), Port::reserve());
        let port = format!("port = {}", near.number);
        let file = write(&dir, &nodes, (&admin, &far), ["", &port, ""]);
        ByHand { dir, nodes, far, _others: [admin, near], file }
    }
}

impl Two {
    fn start(lines: [&str; 3]) -> Two {
        let dir = tempfile::tempdir().expect("a folder");
        let nodes = [(); 4].map(|()| Memcached::start(&[]));
        let (admin, far) = (Port::reserve(), Port::reserve());
        let file = write(&dir, &nodes, (&admin, &far), lines);
        // `near` has the port of the harness, which stands on the command line for all.
        let proxy = Proxy::start(&["--config".to_owned(), file]);
        let two = Two { proxy, far, admin, dir, nodes };
        two.wait_mirrored();
        two
    }

    fn wait_mirrored(&self) {
        let mirrored = |json: &Value| json["mirrored"] == true;
        wait_until("both to be mirrored", DEADLINE, || mirrored(&self.status("/status.json")));
    }

    fn write(&self, lines: [&str; 3]) {
        write(&self.dir, &self.nodes, (&self.admin, &self.far), lines);
    }

    fn status(&self, path: &str) -> Value {
        serde_json::from_str(&get(&self.admin, path)).expect("JSON")
    }

    fn far(&self) -> Client {
        Client::connect(&self.far.addr())
    }

    fn socket(&self) -> String {
        self.dir.path().join("admin.sock").to_str().expect("text").to_owned()
    }
}

fn value(client: &mut Client, key: &str) -> Option<Vec<u8>> {
    client.get(key).expect("an answer").map(|item| item.value)
}

#[test]
fn a_server_of_one_pool_dies_and_is_filled_and_the_other_pool_serves_undisturbed() {
    const KEYS: usize = 3_000;
    let mut two = Two::start(["", "resync-rate = 5000", ""]);
    let (mut near, mut far) = (two.proxy.client(), two.far());
    assert_eq!(near.set("k", b"of near"), Ok(Stored::Stored));
    assert_eq!(value(&mut far, "k"), None);
    assert_eq!(far.set("k", b"of far"), Ok(Stored::Stored));
    fill(&mut near, "n", KEYS, 100);
    assert_eq!((value(&mut near, "k"), value(&mut far, "k")), (Some(b"of near".to_vec()), Some(b"of far".to_vec())));
    for (node, whose) in two.nodes.iter().zip(["of near", "of near", "of far", "of far"]) {
        let held = read_node(&node.addr());
        let count = if whose == "of near" { KEYS + 1 } else { 1 };
        assert_eq!((held[&b"k"[..]].value.as_slice(), held.len()), (whose.as_bytes(), count));
    }

    let dead = two.nodes[0].addr();
    two.nodes[0].kill();
    two.proxy.wait_node(&dead, "lost");
    assert_eq!(get(&two.admin, "/readyz"), "ready\n");
    wait_until("the loss to be shown", DEADLINE, || two.status("/status.json")["word"] == "degraded");
    let json = two.status("/status.json");
    assert_eq!((&json["mirrored"], &json["version"]), (&false.into(), &1.into()));
    let words: Vec<&Value> = json["pools"].as_array().expect("pools").iter().map(|pool| &pool["word"]).collect();
    assert_eq!(words, ["degraded", "mirrored"]);
    let mut asked = 0u32;
    let mut is_mirrored = |two: &Two, far: &mut Client| {
        asked += 1;
        let said = format!("{asked}");
        assert_eq!(far.set("n", said.as_bytes()), Ok(Stored::Stored));
        assert_eq!(value(far, "n"), Some(said.into_bytes()));
        two.proxy.status().mirrored()
    };
    assert!(!is_mirrored(&two, &mut far));
    two.nodes[0].restart();
    wait_until("it to be filled again", DEADLINE, || is_mirrored(&two, &mut far));
    assert_eq!(count_filled(&mut near, "n", KEYS, 100), KEYS);
    assert_eq!(value(&mut near, "k"), Some(b"of near".to_vec()));

    // Nothing has happened in the other one.
    let far_now = two.status("/status.json?pool=far");
    assert_eq!((&far_now["pool"], &far_now["mirrored"]), (&"far".into(), &true.into()));
    assert!(far_now["servers"].as_array().expect("servers").iter().all(|server| server["lost"] == 0), "{far_now}");
    let text = get(&two.admin, "/metrics");
    let lost = format!("resilver_server_lost_total{{pool=\"near\",server=\"{dead}\"");
    assert!(text.contains(&lost) && !text.contains("resilver_server_lost_total{pool=\"far\""), "{text}");
    // The log names the pool.
    let log = two.proxy.log();
    let of_loss: Vec<&str> = log.lines().filter(|line| line.contains(&dead)).collect();
    assert!(!of_loss.is_empty() && of_loss.iter().all(|line| line.contains("pool=near")), "{of_loss:#?}");
    assert!(log.lines().any(|line| line.contains(" started ") && line.contains("pool=far")), "{log}");

    // All of it ends, and all is there again.
    assert!(two.proxy.stop().success());
    two.proxy.spawn();
    two.proxy.wait_listening(DEADLINE);
    two.wait_mirrored();
    assert_eq!(value(&mut two.far(), "k"), Some(b"of far".to_vec()));
    assert_eq!(count_filled(&mut two.proxy.client(), "n", KEYS, 100), KEYS);
}

#[test]
fn metrics_name_the_pool_and_are_each_told_once() {
    let two = Two::start(["", "", "max-clients = 77"]);
    two.far().set("x", b"1").expect("stored");
    let counted = || get(&two.admin, "/metrics");
    let of = |pool: &str| format!(r#"resilver_requests_total{{pool="{pool}",command="set",result="stored"}}"#);
    wait_until("it to be counted", DEADLINE, || series(&counted(), &of("far")) == 1.0);
    let text = counted();
    assert_eq!(series(&text, &of("near")), 0.0);
    for (name, value) in [
        (r#"clients_max{pool="far"}"#, 77.0),
        (r#"clients_max{pool="near"}"#, 4096.0),
        (r#"mirrored{pool="far"}"#, 1.0),
        (r#"ready{pool="near"}"#, 1.0),
    ] {
        assert_eq!(series(&text, &format!("resilver_{name}")), value, "{name}: {text}");
    }
    for name in ["process_start_time_seconds", "process_threads"] {
        assert!(series(&text, &format!("resilver_{name}")) > 0.0, "{name}: {text}");
    }
    assert_eq!(text.matches("resilver_build_info{version").count(), 1);
    check_metrics(&text);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", two.proxy.pid())).expect("threads");
    let names: Vec<String> = tasks
        .map(|task| std::fs::read_to_string(task.expect("a thread").path().join("comm")).expect("a name"))
        .collect();
    for name in ["near:pool\n", "near:worker-0\n", "far:pool\n", "far:worker-0\n"] {
        assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
    }
    let far = get(&two.admin, "/metrics?pool=far");
    assert!(far.contains(r#"mirrored{pool="far"} 1"#) && !far.contains("near"), "{far}");
}

#[test]
fn a_pool_that_cannot_serve_is_named_and_the_other_one_is_ready() {
    let mut two = Two::start(["", "", ""]);
    two.nodes[2].kill();
    two.nodes[3].kill();
    let dark = || two.status("/status.json?pool=far")["word"] == "dark";
    wait_until("the far pool to be dark", DEADLINE, dark);
    let (code, body) = crate::admin::answer(&two.admin, "/readyz");
    assert_eq!(
        (code.as_str(), body.as_str()),
        ("503", "pool far: every key is refused: no pair has a server that leads\n")
    );
    assert_eq!(get(&two.admin, "/readyz?pool=near"), "ready\n");
    assert_eq!(
        crate::admin::answer(&two.admin, "/readyz?pool=x"),
        ("404".into(), "there is no such pool; there are near, far\n".into())
    );
    assert_eq!(two.proxy.client().set("k", b"v"), Ok(Stored::Stored));
}

#[test]
fn the_admin_socket_and_the_commands_are_told_which_pool_is_meant() {
    let two = Two::start(["", "", ""]);
    let socket = two.socket();
    let of = |word: &str, pool: &str| run(&[word, "--proxy", &socket, "--pool", pool]);
    let (code, text, complaint) = of("status", "far");
    assert_eq!((code, complaint.as_str()), (Some(0), ""));
    assert!(text.contains(&format!("{socket} pool far")) && text.contains(&two.nodes[2].addr()), "{text}");
    assert!(!text.contains(&two.nodes[0].addr()), "{text}");
    let (code, text, _) = run(&["wait", "--mirrored", "--proxy", &socket, "--pool", "near"]);
    assert_eq!((code, text.as_str()), (Some(0), "mirrored\n"));
    let (code, _, complaint) = of("status", "x");
    assert!(code == Some(3) && complaint.contains("there is none of this name; there are near, far"), "{complaint}");
    let (code, _, complaint) = run(&["stats", "--proxy", &socket]);
    assert!(code == Some(1) && complaint.contains("of which pool? There are near, far"), "{complaint}");
    let (code, _, complaint) = run(&["status", "--proxy", &two.far.addr(), "--pool", "far"]);
    assert!(code == Some(3) && complaint.contains("--pool NAME is for the admin socket"), "{complaint}");
    // Where its clients connect there is no question; and what is done to one is not to the other.
    assert_eq!(run(&["resync", "--proxy", &two.far.addr()]).0, Some(0));
    let (code, _, complaint) = run(&["resync", &two.nodes[3].addr(), "--proxy", &socket, "--pool", "far"]);
    assert_eq!(code, Some(0), "{complaint}");
    let kind = || two.status("/status.json?pool=far")["servers"][1]["kind"] == "full";
    wait_until("it to be filled", DEADLINE, kind);
    let near = two.status("/status.json?pool=near");
    assert!(
        near["servers"]
            .as_array()
            .expect("servers")
            .iter()
            .all(|server| server["kind"] == Value::Null || server["kind"] == "none"),
        "{near}"
    );
    let (code, _, complaint) = run(&["resync", &two.nodes[3].addr(), "--proxy", &socket, "--pool", "near"]);
    assert!(code == Some(1) && complaint.contains("unknown node or word"), "{complaint}");
}

/// A server is in one pool alone, and a key may be in each.
#[test]
fn a_command_that_names_a_server_finds_its_pool_and_a_key_is_looked_for_in_all() {
    let two = Two::start(["", "", ""]);
    let socket = two.socket();
    let (near, far) = (two.nodes[0].addr(), two.nodes[3].addr());
    assert_eq!(two.far().set("k", b"v"), Ok(Stored::Stored));
    let value = |server: &str| {
        let (code, text, complaint) = run(&["node", server, "mg", "k", "v", "--proxy", &socket]);
        assert_eq!((code, complaint.as_str()), (Some(0), ""));
        text
    };
    assert_eq!([value(&near), value(&far)], ["EN\n", "VA 1\r\nv\n"]);
    let (code, _, complaint) = run(&["resync", "x:1", "--proxy", &socket]);
    assert!(
        code == Some(1) && complaint.contains("no pool has a server x:1; there are the pools near, far"),
        "{complaint}"
    );

    let (code, text, complaint) = run(&["key", "k", "--proxy", &socket]);
    assert_eq!((code, complaint.as_str()), (Some(0), ""));
    let parts: Vec<&str> = text.split("\n\n").collect();
    assert!(parts.len() == 2 && parts[0].starts_with("pool near\nkey k\n"), "{text}");
    assert!(parts[0].contains("neither server holds it"), "{text}");
    assert!(parts[1].starts_with("pool far\nkey k\n") && parts[1].contains("the same on both"), "{text}");
    // Its copies differ in one of them.
    two.nodes[3].client().set("k", b"w").expect("written past the proxy");
    let (code, text, _) = run(&["key", "k", "--proxy", &socket]);
    assert!(code == Some(1) && text.contains("DIFFERENT"), "{text}");
    assert_eq!(run(&["key", "k", "--proxy", &socket, "--pool", "near"]).0, Some(0));
    for word in ["verify", "resync"] {
        assert_eq!(run(&[word, &far, "--proxy", &socket]), (Some(0), "OK\n".to_owned(), String::new()), "{word}");
    }
}

/// Nobody has to know the names.
#[test]
fn where_no_pool_is_named_all_are_shown_and_the_worst_decides() {
    let mut two = Two::start(["", "", ""]);
    let socket = two.socket();
    let (code, text, complaint) = run(&["status", "--proxy", &socket]);
    assert_eq!((code, complaint.as_str()), (Some(0), ""), "{text}");
    for part in [
        &format!(
            "resilver {socket}  2 pools: MIRRORED\nPOOL  STATE     WHY\nnear  MIRRORED  every item has two copies\n"
        ),
        &format!(" {socket} pool near  clients "),
        &format!(" {socket} pool far  clients "),
        &two.nodes[0].addr(),
        &two.nodes[2].addr(),
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, text, complaint) = run(&["wait", "--mirrored", "--proxy", &socket]);
    assert_eq!((code, text.as_str()), (Some(0), "mirrored\n"), "{complaint}");
    let (code, text, complaint) = run(&["top", "--once", "--every", "100ms", "--proxy", &socket]);
    assert_eq!(code, Some(0), "{complaint}");
    assert!(["near", "far"].iter().all(|pool| text.contains(&format!("{socket} pool {pool}  MIRRORED"))), "{text}");

    two.nodes[2].kill();
    let degraded = || run(&["status", "--proxy", &socket]).0 == Some(1);
    wait_until("the far pool to be degraded", DEADLINE, degraded);
    let (_, text, _) = run(&["status", "--proxy", &socket]);
    assert!(text.starts_with(&format!("resilver {socket}  2 pools: DEGRADED\n")), "{text}");
    assert!(text.contains(&format!("next: start memcached on {}", two.nodes[2].addr())), "{text}");
    let (code, text, _) = run(&["status", "--json", "--proxy", &socket]);
    let json: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &json["word"], &json["mirrored"]), (Some(1), &"degraded".into(), &false.into()));
    let pools = json["pools"].as_array().expect("a list");
    let words: Vec<_> = pools.iter().map(|pool| (&pool["pool"], &pool["word"])).collect();
    assert_eq!(words, [(&"near".into(), &"mirrored".into()), (&"far".into(), &"degraded".into())]);
    assert!(pools.iter().all(|pool| pool["servers"].is_array()));
    let (code, line, _) = run(&["status", "--check", "--proxy", &socket]);
    assert!(code == Some(1) && line.starts_with("RESILVER WARNING: pool far DEGRADED, "), "{line}");
    let (code, _, complaint) = run(&["wait", "--mirrored", "--timeout", "100ms", "--proxy", &socket]);
    assert!(code == Some(1) && complaint.contains("resilver wait: pool far: "), "{complaint}");

    two.nodes[3].kill();
    let refused = || run(&["status", "--proxy", &socket]).0 == Some(2);
    wait_until("the far pool to refuse its keys", DEADLINE, refused);
}

#[test]
fn the_page_fetches_one_pool_whole_and_of_the_others_how_they_are() {
    let two = Two::start(["", "", ""]);
    for (path, whole) in
        [("far", [false, true]), ("near", [true, false]), ("", [true, false]), ("unheard-of", [true, false])]
    {
        let json = two.status(&format!("/status.json?whole={path}"));
        assert_eq!((&json["word"], &json["mirrored"]), (&"mirrored".into(), &true.into()));
        let pools = json["pools"].as_array().expect("a list");
        assert_eq!([0, 1].map(|at| pools[at]["servers"].is_array()), whole, "{path}: {json}");
        let short = &pools[whole.iter().position(|whole| !whole).expect("one")];
        let names: Vec<&String> = short.as_object().expect("an object").keys().collect();
        assert_eq!(names, ["mirrored", "pool", "version", "why", "word"]);
        assert_eq!((&short["word"], &short["why"]), (&"mirrored".into(), &"every item has two copies".into()));
    }
}

#[test]
fn a_file_is_read_again_as_a_whole_and_each_pool_takes_its_part() {
    let two = Two::start(["resync-rate = 10", "", ""]);
    let mut far = two.far();
    let setting = |client: &mut Client, name: &str| {
        let settings = client.stats("settings").expect("stats settings");
        settings.into_iter().find(|(n, _)| n == name).map_or(String::new(), |(_, value)| value)
    };
    let socket = two.socket();
    let reload = || run(&["reload", "--proxy", &socket]);
    // What is wrong with one changes nothing in the other.
    two.write(["resync-rate = 20", "max-clients = 55", "timeouts = 3"]);
    let (code, _, complaint) = reload();
    assert!(code == Some(1) && complaint.contains(": timeouts: there is no such option"), "{complaint}");
    two.write(["resync-rate = 20", "max-clients = 55", "listen = \"203.0.113.7\""]);
    let (code, _, complaint) = reload();
    assert!(code == Some(1) && complaint.contains("cannot listen on 203.0.113.7"), "{complaint}");
    assert_eq!(
        (setting(&mut far, "resync_rate"), setting(&mut two.proxy.client(), "maxconns")),
        ("10".into(), "4096".into())
    );

    two.write([
        "resync-rate = 20\nlog-format = \"json\"",
        "max-clients = 55",
        "resync-rate = 30\n[pool.more]\nserver = \"127.0.0.1:1\"\nport = 3",
    ]);
    let (code, said, complaint) = reload();
    assert_eq!((code, complaint.as_str()), (Some(0), ""));
    for part in [
        "only at the next start: log-format, the new pool more",
        "pool near: changed: max-clients, resync-rate",
        "pool far: changed: resync-rate",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!((setting(&mut far, "resync_rate"), setting(&mut far, "maxconns")), ("30".into(), "4096".into()));
    let mut near = two.proxy.client();
    assert_eq!((setting(&mut near, "resync_rate"), setting(&mut near, "maxconns")), ("20".into(), "55".into()));
    two.write(["", "", ""]);
    signal(two.proxy.pid(), "HUP");
    wait_until("it to be read again", DEADLINE, || setting(&mut far, "resync_rate") == "0");
}

#[test]
fn a_pool_that_cannot_begin_is_named_and_nothing_is_served() {
    let (ByHand { dir, nodes, far, file, .. }, manager) = (ByHand::new(), Manager::new());
    let start = || {
        let mut command = resilver();
        manager.watches(command.args(["--config", &file]));
        let (code, _, said) = ended(&mut command);
        (code, said)
    };
    let taken = std::net::TcpListener::bind(far.addr()).expect("a port");
    let (code, said) = start();
    assert!(code == Some(71) && said.contains(&format!("cannot listen on {}", far.addr())), "{said}");
    drop(taken);

    // The servers of one belong to a fleet.
    let record = dir.path().join("fleet").to_str().expect("text").to_owned();
    let of_fleet = ["-s", &nodes[2].addr(), "-b", &nodes[3].addr(), "--coordinate", &format!("file:{record}")];
    let mut fleet = Proxy::start(&of_fleet.map(str::to_owned));
    fleet.wait_mirrored(DEADLINE);
    assert!(fleet.stop().success());
    let (code, said) = start();
    assert!(code == Some(71) && said.contains("resilver: pool far: the servers belong to the fleet"), "{said}");
    // Nobody was told that it serves, and no server of the other pool is marked.
    assert!(manager.heard_nothing() && !said.contains(" started "), "{said}");
    let marker = nodes[0].client().get("__resilver__:session").expect("an answer");
    assert!(marker.is_none());
}

#[test]
fn where_one_pool_does_not_answer_the_process_is_not_ready_and_no_pool_takes_new_settings() {
    let dir = tempfile::tempdir().expect("a folder");
    let nodes = [(); 4].map(|()| Memcached::start(&[]));
    let (admin, far) = (Port::reserve(), Port::reserve());
    // Its servers take connections and say nothing: its control plane looks at them.
    let slow = "timeout = \"300s\"";
    nodes[2].pause();
    let file = write(&dir, &nodes, (&admin, &far), ["", "", slow]);
    let proxy = Proxy::start(&["--config".to_owned(), file]);
    let two = Two { proxy, far, admin, dir, nodes };
    let socket = two.socket();
    let stats_proxy = || {
        let mut stream = UnixStream::connect(&socket).expect("the socket");
        stream.write_all(b"stats proxy\r\nquit\r\n").expect("asked");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("an answer");
        said
    };
    let most = || {
        let settings = two.proxy.client().stats("settings").expect("stats settings");
        settings.into_iter().find(|(name, _)| name == "maxconns").expect("a setting").1
    };
    two.proxy.client().set("k", b"v").expect("the other pool serves");
    assert!(stats_proxy().contains("proxy:ready 0\r\n"), "{}", stats_proxy());
    two.write(["", "max-clients = 55", slow]);
    let (code, said, complaint) = run(&["reload", "--proxy", &socket]);
    assert!(code == Some(1) && complaint.contains("pool far: the control plane does not answer"), "{said}{complaint}");
    assert_eq!(most(), "4096");

    two.nodes[2].resume();
    wait_until("both pools to answer", DEADLINE, || stats_proxy().contains("proxy:ready 1\r\n"));
    let (code, _, complaint) = run(&["reload", "--proxy", &socket]);
    assert_eq!((code, complaint.as_str(), most()), (Some(0), "", "55".to_owned()));
}

#[test]
fn a_service_manager_hears_of_all_pools() {
    let (by_hand, manager) = (ByHand::new(), Manager::new());
    let mut command = resilver();
    manager.watches(command.args(["--config", &by_hand.file]));
    let mut proxy = Running::start(&mut command);
    manager.hears("READY=1");
    let mut said = manager.hears("STATUS=near MIRRORED: ");
    while !said.contains("; far MIRRORED: ") {
        said = manager.hears("STATUS=near MIRRORED: ");
    }
    assert!(said.contains("WATCHDOG=1"), "{said}");
    signal(proxy.0.id(), "TERM");
    manager.hears("STOPPING=1");
    assert!(proxy.0.wait().expect("ended").success());
}

#[test]
fn the_page_tells_of_all_pools_and_shows_the_one_that_its_address_names() {
    let mut two = Two::start(["", "", ""]);
    two.nodes[2].kill();
    let degraded = || two.status("/status.json?pool=far")["word"] == "degraded";
    wait_until("the far pool to be degraded", DEADLINE, degraded);
    let url = format!("http://{}/", two.admin.addr());
    let Some(page) = crate::page::seen(&url) else { return };
    for part in [
        r##"<a href="#near" aria-current="true"><b class="good">✓ near</b> mirrored</a>"##,
        r##"<a href="#far"><b class="warn">! far</b> degraded</a>"##,
        r#"data-word="mirrored""#,
        &two.nodes[0].addr(),
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(!page.contains(&two.nodes[2].addr()), "{page}");
    let page = crate::page::seen(&format!("{url}#far")).expect("a browser");
    let dead = two.nodes[2].addr();
    for part in [r##"<a href="#far" aria-current="true">"##, r#"data-word="degraded""#, dead.as_str()] {
        assert!(page.contains(part), "{part}: {page}");
    }
}

#[test]
fn check_config_judges_all_pools() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("r.toml");
    let text = path.to_str().expect("text");
    std::fs::write(&path, "[pool.a]\nserver = \"a:1\"\nport = 1\n[pool.b]\nserver = \"a:1\"\nport = 1\nuser = \"x\"\n")
        .expect("written");
    let (code, _, complaint) = run(&["check-config", text]);
    let lines: Vec<&str> = complaint.lines().collect();
    assert_eq!((code, lines.len()), (Some(64), 4), "{complaint}");
    assert!(
        lines[0].starts_with(&format!("{text}:5: pool b: server a:1 is the pool a's too ({text}:2)")),
        "{complaint}"
    );
    assert!(lines[1].starts_with(&format!("{text}:6: pool b: listens on 127.0.0.1:1")), "{complaint}");
    assert!(lines[2].starts_with(&format!("{text}:7: user: belongs to the process")), "{complaint}");
    assert_eq!(lines[3], format!("{text}: 3 faults"));
    std::fs::write(
        &path,
        "[pool.a]\nserver = \"127.0.0.1:7\"\nport = 1\n[pool.b]\nserver = \"127.0.0.1:8\"\nport = 2\n",
    )
    .expect("written");
    let (code, said, _) = run(&["check-config", text]);
    let (a, b) = ("a 1 primary, 0 backups, clients on 127.0.0.1:1", "b 1 primary, 0 backups, clients on 127.0.0.1:2");
    assert_eq!((code, said), (Some(0), format!("{text}: good: 2 pools: {a}; {b}\n")));
}
