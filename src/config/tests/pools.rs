//! Several pools in one file.

use super::*;

/// A file with pools, and what is wrong with it (without its path) or what it sets.
fn pools_on(text: &str, line: &str, host: Host) -> Result<Plan, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    match CommandLine::parse(format!("resilver --config {path} {line}").split_whitespace(), &host) {
        Ok(CommandLine::Run(plan)) => Ok(*plan),
        Err(UsageErrors(faults)) => Err(faults.iter().map(|fault| fault.replace(path, "r.toml")).collect()),
        Ok(other) => panic!("{other:?}"),
    }
}

fn pools(text: &str) -> Result<Plan, Vec<String>> {
    pools_on(text, "", host())
}

const GOOD: &str = "timeout = \"1s\"\nmax-clients = 100\nketama = true\nadmin = \"127.0.0.1:9150\"\nresync-rate = 7\n\
                    unix-socket-mode = \"770\"\n\
                    [pool.sessions]\nport = 12000\nserver = [\"a:1\", \"b:1\"]\nbackup = \"c:1\"\nunix-socket = \"/s\"\n\
                    [pool.fragments]\nport = 12001\nserver = \"a:2\"\nketama = false\nmax-clients = 9\n";

#[test]
fn what_stands_above_the_pools_counts_for_each_that_says_nothing_else() {
    let plan = pools(GOOD).expect("a good file");
    let [sessions, fragments] = plan.pools.as_slice() else { panic!("{plan:?}") };
    let name = |settings: &Settings| settings.pool.as_deref().unwrap_or_default().to_owned();
    assert_eq!([name(sessions), name(fragments)], ["sessions", "fragments"], "in the order of the file");
    assert_eq!(
        (addresses(&sessions.primaries), addresses(&sessions.backups)),
        (vec!["a:1".into(), "b:1".into()], vec!["c:1".into()])
    );
    assert_eq!((addresses(&fragments.primaries), fragments.backups.len()), (vec!["a:2".into()], 0));
    assert_eq!([sessions.listen[0].port(), fragments.listen[0].port()], [12000, 12001]);
    assert_eq!((sessions.timeout, fragments.timeout, sessions.resync_rate), (ms(1000), ms(1000), Some(7)));
    assert_eq!([sessions.max_clients, fragments.max_clients], [100, 9]);
    assert_eq!([sessions.distribution, fragments.distribution], [Distribution::Ketama, Distribution::Modula]);
    assert_eq!(
        (sessions.unix_socket.is_some(), sessions.unix_socket_mode, fragments.unix_socket.is_none()),
        (true, 0o770, true)
    );
    assert_eq!(plan.process.admin.map(|admin| admin.port()), Some(9150));
    // The 8 cores of this host: 4 threads for a pool that is alone.
    assert_eq!([sessions.threads, fragments.threads], [2, 2]);

    // What stands in a pool wins over the command line and variables, and these over what is above.
    let host = Host { variables: vec![variable("RESYNC_RATE", "8"), variable("KETAMA", "no")], ..host() };
    let plan = pools_on(GOOD, "--timeout 2s -n 50 --threads 3 -vv", host).expect("good");
    let [sessions, fragments] = plan.pools.as_slice() else { panic!("{plan:?}") };
    assert_eq!((sessions.timeout, sessions.resync_rate, sessions.threads), (ms(2000), Some(8), 3));
    assert_eq!([sessions.max_clients, fragments.max_clients], [50, 9]);
    assert_eq!(sessions.distribution, Distribution::Modula);
    assert!(plan.process.log.filter.contains("trace"));
}

#[test]
fn all_that_is_wrong_with_all_pools_is_told_with_where_it_stands() {
    let text = "timeout = \"0\"\nserver = \"x:1\"\nlease = \"1s\"\n\
                [pool.a]\nport = 99999\nserver = \"b:1\"\nadmin = \"127.0.0.1:1\"\ndaemon = false\n\
                [pool.b]\nprot = 5\nresync-rate = 3\nserver = [\"c:1\", \"c:1\"]\ncoordinate = \"file:/x\"\n\
                [pool.\"c d\"]\nport = 5\n[log]\nfile = \"x\"";
    let faults = pools(text).expect_err("it is wrong");
    for fault in [
        "r.toml:1: timeout 0: ",
        "r.toml:2: server: the file has pools, and no two have this alike",
        "r.toml:3: lease: a proxy of a fleet ends its process",
        "r.toml:5: port 99999: must be a whole number",
        "r.toml:7: admin: belongs to the process, not to one pool",
        "r.toml:8: daemon: belongs to the process, not to one pool",
        "r.toml:10: prot: there is no such option",
        "r.toml:11: resync-rate without -b/--backup",
        "r.toml:12: server c:1: stands twice on this ring",
        "r.toml:13: coordinate: a proxy of a fleet ends its process",
        "r.toml:14: pool \"c d\": a pool's name must be",
        "r.toml:14: pool c d: -s/--server: no server was given",
        "r.toml:16: [log]: there are no tables but [pool.NAME]",
    ] {
        assert_eq!(faults.iter().filter(|told| told.starts_with(fault)).count(), 1, "{fault}: {faults:#?}");
    }
    assert_eq!(faults.len(), 13, "{faults:#?}");
    let many: String =
        (0..65).map(|at| format!("[pool.p{at}]\nport = {}\nserver = \"a:{}\"\n", at + 1, at + 1)).collect();
    assert_eq!(pools(&many).expect_err("too many"), ["r.toml:193: pool: 65 pools are too many; 64 is the most"]);
    for (text, fault) in [
        ("pool = 3", "r.toml:1: pool: write [pool.NAME]"),
        ("[[pool]]\nport = 1", "r.toml:1: pool: write [pool.NAME]"),
        ("[pool]\nport = 1\n[pool.a]\nserver = \"a:1\"", "r.toml:2: pool.port: stands in no pool"),
        ("[pool.a]\nserver = \"a:1\"\n[pool.a.b]\nport = 1", "r.toml:3: [b]: there are no tables"),
    ] {
        let faults = pools(text).expect_err(text);
        assert!(faults.iter().any(|told| told.starts_with(fault)), "{text}: {faults:#?}");
    }
}

#[test]
fn no_two_pools_have_a_server_or_a_listener_alike() {
    let file = |first: &str, second: &str| format!("[pool.a]\n{first}\n[pool.b]\n{second}\n");
    let (a, b) = ("port = 5\nserver = [\"a:1\",\n\"B.:2\"]", "port = 6\nserver = \"c:1\"");
    assert!(pools(&file(a, b)).is_ok());
    for (second, fault) in [
        ("port = 6\nserver = \"c:1\"\nbackup = \"b:2\"", "r.toml:8: pool b: server b:2 is the pool a's too (r.toml:4)"),
        (
            "port = 5\nserver = \"c:1\"",
            "r.toml:6: pool b: listens on 127.0.0.1:5, and the pool a on 127.0.0.1:5 (r.toml:2)",
        ),
        (
            "listen = \"0.0.0.0\"\nport = 5\nserver = \"c:1\"",
            "r.toml:7: pool b: listens on 0.0.0.0:5, and the pool a on",
        ),
        ("listen = \"::\"\nport = 5\nserver = \"c:1\"", "r.toml:7: pool b: listens on [::]:5, and the pool a on"),
        ("port = 6\nserver = \"127.0.0.1:5\"", "r.toml:7: pool b: server 127.0.0.1:5: the pool a listens there itself"),
    ] {
        let faults = pools(&file(a, second)).expect_err(second);
        assert!(faults.len() == 1 && faults[0].starts_with(fault), "{second}: {faults:#?}");
    }
    for (first, second, known_as) in [
        ("localhost:7", "127.0.0.1:7", " as localhost:7"),
        ("127.0.0.1:7", "LocalHost.:7", " as 127.0.0.1:7"),
        ("[::ffff:10.0.0.1]:7", "10.0.0.1:7", " as [::ffff:10.0.0.1]:7"),
        // By what a name leads to.
        ("six:7", "[::1]:7", " as six:7"),
        ("[::1]:7", "six:7", " as [::1]:7"),
        ("six:7", "localhost:7", " as six:7"),
        ("x:8\", \"six:7", "[::1]:7", " as six:7"),
        ("nowhere:7", "nowhere:7", ""),
    ] {
        let of = |server: &str, port: u16| format!("port = {port}\nserver = [\"{server}\"]");
        let faults = pools(&file(&of(first, 5), &of(second, 6))).expect_err(second);
        let told = format!("is the pool a's too{known_as} (r.toml:3); each would take");
        assert!(faults.len() == 1 && faults[0].contains(&told), "{first} {second}: {faults:#?}");
    }
    for (first, second) in [("six:7", "[::1]:8"), ("six:7", "127.0.0.1:7"), ("nowhere:7", "elsewhere:7")] {
        let of = |server: &str, port: u16| format!("port = {port}\nserver = [\"{server}\"]");
        assert!(pools(&file(&of(first, 5), &of(second, 6))).is_ok(), "{first} {second}");
    }
    // One address each of the same port, and one that takes no IPv4.
    assert!(pools(&file(a, "listen = \"127.0.0.2\"\nport = 5\nserver = \"c:1\"")).is_ok());
    assert!(pools(&file(a, "listen = [\"::\", \"127.0.0.2\"]\nport = 5\nserver = \"c:1\"")).is_ok());
    let socket = |port: u16| format!("port = {port}\nserver = \"c:{port}\"\nunix-socket = \"/x\"");
    let faults = pools(&file(&socket(5), &socket(6))).expect_err("one socket");
    assert_eq!(faults, ["r.toml:6: pool b: the unix socket /x is the pool a's too (r.toml:2); give another path"]);
    let faults = pools(&format!("admin = \"127.0.0.1:6\"\n{}", file(a, b))).expect_err("clients are there");
    assert!(faults.len() == 1 && faults[0].starts_with("r.toml:1: admin 127.0.0.1:6: clients are"), "{faults:#?}");
}

#[test]
fn what_can_mean_nothing_beside_pools_is_refused_by_name() {
    let host = || Host { variables: vec![variable("SERVER", "x:1"), variable("LEASE", "1s")], ..host() };
    let faults = pools_on(GOOD, "-b y:1 --leave-fleet -f /x", host()).expect_err("it means nothing");
    for fault in [
        "--backup: the file has pools",
        "--unix-socket: the file has pools",
        "--leave-fleet: a proxy of a fleet ends its process",
        &format!("{VARIABLES}SERVER: the file has pools"),
        &format!("{VARIABLES}LEASE: a proxy of a fleet ends its process"),
    ] {
        assert_eq!(faults.iter().filter(|told| told.starts_with(fault)).count(), 1, "{fault}: {faults:#?}");
    }
    assert_eq!(faults.len(), 5, "{faults:#?}");
}

#[test]
fn what_is_wrong_with_the_process_is_told_once_and_of_no_pool() {
    let faults = pools_on(GOOD, "-d -D -u root -u nobody", host()).expect_err("it is a contradiction");
    for fault in ["-d/--daemon contradicts -D/--foreground", "-u/--user was given twice"] {
        let told: Vec<_> = faults.iter().filter(|told| told.contains(fault)).collect();
        assert!(matches!(told.as_slice(), [told] if told.starts_with(fault)), "{faults:#?}");
    }
}

/// It is what docs/reference.md points to.
#[test]
fn the_example_with_pools_is_good() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let plan =
        pools(&std::fs::read_to_string(root.join("examples/resilver-pools.toml")).unwrap()).expect("a good file");
    assert!(plan.pools.len() > 1 && plan.process.admin.is_some());
}
