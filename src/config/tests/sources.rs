//! A file of settings, and the environment.

use std::path::Path;

use super::*;

#[test]
fn the_command_line_wins_over_variables_and_these_over_the_file() {
    let text = "server = [\"a:1\", \"b:1\"]\nport = 1\nmax-clients = 1_0\nverbose = 2\nketama = true\ntimeout = \"1s\"\n\
                daemon = true\noperator-commands = false\nresync-rate = 0x10\nbackup = \"c:1\"";
    let of_file = file(text, "", &[]).expect("a good file");
    assert_eq!((addresses(&of_file.primaries), of_file.listen[0].port()), (vec!["a:1".into(), "b:1".into()], 1));
    assert_eq!((of_file.max_clients, of_file.timeout, of_file.resync_rate), (10, ms(1000), Some(16)));
    assert!(of_file.process.daemonize && !of_file.operator_commands && of_file.process.log.filter.contains("trace"));
    assert_eq!((of_file.distribution, addresses(&of_file.backups)), (Distribution::Ketama, vec!["c:1".into()]));
    let variables = [("PORT", "2"), ("SERVER", "x:1, y:1"), ("TIMEOUT", "2s")];
    let both = file(text, "", &variables).expect("good variables");
    assert_eq!((addresses(&both.primaries), both.listen[0].port()), (vec!["x:1".into(), "y:1".into()], 2));
    let all = file(text, "-p 3 -s z:1 -D", &variables).expect("a good line");
    assert_eq!((addresses(&all.primaries), all.listen[0].port()), (vec!["z:1".into()], 3));
    assert_eq!((all.timeout, all.max_clients, all.process.daemonize), (ms(2000), 10, false));
    // A switch that is off is said, too.
    let off = file(text, "", &[("KETAMA", "no"), ("VERBOSE", "0")]).expect("good variables");
    assert!(off.distribution == Distribution::Modula && off.process.log.filter == "warn,resilver=info");
    // … and says nothing of its opposite.
    for variable in ["FOREGROUND", "KETAMA"] {
        assert!(file(text, "", &[(variable, "no")]).expect("good variables").process.daemonize, "{variable}");
    }
    assert!(!file(text, "", &[("FOREGROUND", "yes")]).expect("good variables").process.daemonize);
    // Without a file.
    let host = Host { variables: vec![variable("KETAMA", "yes")], ..host() };
    assert_eq!(run_on("-s a:1", &host).distribution, Distribution::Ketama);
}

#[test]
fn all_that_is_wrong_is_told_with_where_it_stands() {
    let text = "server = [\"a:1\",\n \"a:1\"]\nport = 99999\nmax_clients = 10\nn = 3\ntimeout = \"250\"\nresync = \"never\"\n\
                ketama = \"perhaps\"\nthreads = 1.5\nconfig = \"x\"\nbackground-child = true\nidle-timeout = [\"1s\", \"2s\"]\n\
                [log]\nfile = \"x\"\n[[pool]]\nport = 1";
    let faults = file(text, "", &[("LEADER_TIMEOUT", "soon"), ("THREADS", "tcp://10.0.0.1:1")]);
    let faults = faults.expect_err("it is wrong");
    for fault in [
        "r.toml:2: server a:1: stands twice on this ring",
        "r.toml:3: port 99999: must be a whole number",
        "r.toml:4: max_clients: there is no such option; did you mean max-clients?",
        "r.toml:5: n: write it out: max-clients",
        "r.toml:6: timeout 250: a time needs its unit",
        "r.toml:7: resync never: there is no such mode",
        "r.toml:8: ketama perhaps: must be true or false",
        "r.toml:9: threads: is a float",
        "r.toml:10: config: is for the command line alone",
        "r.toml:11: background-child: is for the command line alone",
        "r.toml:12: idle-timeout was given twice, as 1s and as 2s",
        "r.toml:13: [log]: there are no tables",
        "r.toml:15: pool: write [pool.NAME]",
        &format!("{VARIABLES}LEADER_TIMEOUT soon: not a time"),
        &format!("{VARIABLES}THREADS tcp://10.0.0.1:1: Kubernetes sets it"),
    ] {
        assert_eq!(faults.iter().filter(|told| told.starts_with(fault)).count(), 1, "{fault}: {faults:#?}");
    }
    assert_eq!(faults.len(), 15, "{faults:#?}");
    let faults = file("server = [\"a:1\",\n \"b c\"]", "", &[]).expect_err("no server's name");
    assert!(faults.len() == 1 && faults[0].starts_with("r.toml:2: server \"b c\": "), "{faults:?}");
    let faults = file("server = [\"a:1\"]\nport = 3\n\nport = 4\nlisten = \"x\n", "", &[]).expect_err("no TOML");
    assert!(faults.iter().any(|told| told.starts_with("r.toml:4: port: stands twice")), "{faults:?}");
    assert!(faults.iter().any(|told| told.starts_with("r.toml:5: ")), "{faults:?}");
    assert!(faults.iter().any(|told| told.ends_with("values are checked once this is right")), "{faults:?}");
    // What stands twice hides nothing else.
    let text =
        "server = [\"127.0.0.1:3\"]\nport = 3\nport = 4\ntimeout = \"0\"\ncoordinate = \"file:/x\"\nlease = [[1]]";
    let faults = file(text, "", &[]).expect_err("five faults");
    for fault in [
        "r.toml:1: server 127.0.0.1:3: the proxy would listen there itself",
        "r.toml:3: port: stands twice; write it once",
        "r.toml:4: timeout 0: cannot be zero",
        "r.toml:5: coordinate needs backups",
        "r.toml:6: lease: is an array",
    ] {
        assert_eq!(faults.iter().filter(|told| told.starts_with(fault)).count(), 1, "{fault}: {faults:#?}");
    }
    assert_eq!(faults.len(), 5, "{faults:#?}");
    assert!(faults_on("--config /nosuch/file", &host())[0].starts_with("/nosuch/file: cannot be read: "));
    let host = Host { variables: vec![variable("TIMOUT", "1s")], ..host() };
    assert_eq!(run_on("-s a:1", &host).process.unknown_variables, [variable("TIMOUT", "").0]);
}

/// The file with every option: it is what is printed, and with the comment signs taken away where
/// it states a default it changes nothing.
#[test]
fn the_file_of_defaults_has_every_option_and_changes_nothing() {
    let text = crate::config::sources::defaults();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = std::fs::read_to_string(root.join("examples/resilver.toml")).unwrap();
    assert_eq!(text, example, "resilver check-config --defaults > examples/resilver.toml");
    let is_option = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
    let options: Vec<&str> = text.lines().filter(is_option).map(|line| &line[1..]).collect();
    assert!(options.len() > 35, "{options:?}");
    let stated = options.iter().filter(|line| {
        let value = line.split(" = ").nth(1).unwrap_or_default().trim_matches('"');
        let word = value.len() > 1 && value.chars().all(|c| c.is_ascii_uppercase() || c == ':');
        !(value.starts_with('[') || word)
    });
    let stated: Vec<&str> = stated.copied().collect();
    // Limits of resyncs are refused without backups, also when they are the defaults,
    // and settings of a fleet without `--coordinate`.
    let fleet = ["lease", "candidate", "former-grace", "prove-writes"];
    let stated: Vec<&str> =
        stated.into_iter().filter(|line| !fleet.contains(&line.split(' ').next().unwrap_or_default())).collect();
    let text = format!("server = [\"a:1\"]\nbackup = [\"b:1\"]\n{}", stated.join("\n"));
    let mut with = file(&text, "", &[]).unwrap_or_else(|faults| panic!("{faults:#?}"));
    with.process.config = None;
    assert_eq!(format!("{with:?}"), format!("{:?}", run("-s a:1 -b b:1")));
    let small = std::fs::read_to_string(root.join("examples/resilver-small.toml")).unwrap();
    assert_eq!(small.lines().count(), 10, "a file of ten lines");
    assert_eq!(file(&small, "", &[]).expect("a good file").primaries.len(), 2);
}
