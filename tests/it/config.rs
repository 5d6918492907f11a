//! Settings from a file and from the environment, of a real process.

use std::process::Command;

use crate::status::run;
use crate::support::{Cluster, Proxy, Shape};

#[test]
fn a_proxy_runs_with_the_settings_of_its_file_and_says_what_is_wrong_with_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("resilver.toml");
    let text = path.to_str().expect("text");
    std::fs::write(&path, "resync-rate = 77\nleader-timeout = \"3s\"\nmax-clients = 99\n").expect("written");
    let cluster = Cluster::start(&Shape::new(1, 1).proxy(&["--config", text, "-n", "55"]));
    let settings = cluster.client().stats("settings").expect("stats settings");
    let of = |name: &str| settings.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    assert_eq!((of("resync_rate"), of("maxconns")), (Some("77"), Some("55")), "{settings:?}");

    // (It names no server: those of this proxy are on its command line.)
    let (code, printed, complaint) = run(&["check-config", text]);
    assert_eq!((code, printed.as_str()), (Some(64), ""), "{complaint}");
    std::fs::write(&path, "server = [\"127.0.0.1:1\"]\nport = 23\ntimeouts = 3\nprot = 5\n").expect("written");
    let (code, _, complaint) = run(&["check-config", text]);
    assert!(code == Some(64) && complaint.contains(&format!("{text}:3: timeouts: ")), "{complaint}");
    assert!(complaint.contains(&format!("{text}:4: prot: ")) && complaint.ends_with(": 2 faults\n"), "{complaint}");
    let started = Command::new(Proxy::binary()).args(["--config", text]).output().expect("run resilver");
    let why = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(started.status.code() == Some(64) && why.contains(&format!("resilver: {text}:3: timeouts: ")), "{why}");
    std::fs::write(&path, "server = [\"127.0.0.1:1\"]\nport = 23\n").expect("written");
    let (code, printed, _) = run(&["check-config", text]);
    assert_eq!((code, printed), (Some(0), format!("{text}: good: 1 primaries, 0 backups, clients on 127.0.0.1:23\n")));
    let (code, printed, _) = run(&["check-config", "--defaults"]);
    assert!(code == Some(0) && printed.contains("\n#leader-timeout = \"2s\"\n"), "{printed}");
    // The environment, too.
    let wrong = Command::new(Proxy::binary())
        .env(concat!("RESILVER", "_PORT"), "x")
        .args(["-s", "a:1"])
        .output()
        .expect("run it");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("resilver: RESILVER_PORT x: must be"));
}
