//! Several proxies that agree in a file: what others do to it, or have put in its place.

use std::process::Command;

use crate::support::command::{ended, resilver};
use crate::support::fleet::{args, shown};
use crate::support::port::Port;
use crate::support::{DEADLINE, Fleet, Stored, wait_until};

#[test]
fn a_standby_whose_file_was_removed_takes_over_all_the_same() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let record = dir.path().join("fleet");
    let mut fleet = Fleet::start(2, &format!("file:{}", record.display()));
    let active = fleet.active();
    let said = std::fs::read_to_string(&record).expect("a record");
    let of_standby = || {
        let names = dir.path().read_dir().expect("a folder").map(|entry| entry.expect("an entry").file_name());
        let ends = names.filter_map(|name| name.to_str()?.strip_prefix("fleet.").map(str::to_owned));
        ends.filter(|end| end.len() == 16 && !said.contains(end.as_str())).collect::<Vec<_>>()
    };
    let files = of_standby();
    assert_eq!(files.len(), 1, "{said}: {files:?}");
    std::fs::remove_file(dir.path().join(format!("fleet.{}", files[0]))).expect("it is removed");
    let standby = &fleet.proxies[1 - active];
    wait_until("it is made again", DEADLINE, || of_standby() == files && shown(standby, "ready") == "1");
    // (The log is written beside it.)
    wait_until("it says so", DEADLINE, || standby.log_so_far().contains("was removed, and is made again"));
    let mut client = standby.client();
    fleet.proxies[active].kill();
    assert_eq!(fleet.active_but(active), 1 - active);
    assert_eq!(client.set("k", b"v"), Ok(Stored::Stored));
}

#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs").success());
    for (path, what) in [(dir.path(), "a directory"), (pipe.as_path(), "a pipe")] {
        let port = Port::reserve();
        let servers = ["-s", "127.0.0.1:1", "-b", "127.0.0.1:2"];
        let given = args(&format!("file:{}", path.display()), &[], &[], &servers);
        let own = ["-l", "127.0.0.1", "-p", &port.number.to_string()].map(str::to_owned);
        let (code, _, why) = ended(resilver().args(own).args(given));
        assert_eq!(code, Some(71), "{why}");
        assert!(why.contains(&format!("that is {what}")), "{why}");
    }
}
