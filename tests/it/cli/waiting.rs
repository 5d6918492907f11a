//! `resilver wait` where there is nothing to wait for; over real clusters: `wait.rs`.

use std::io::{Read, Write};
use std::net::TcpListener;

use tempfile::TempDir;

use super::{EXIT_USAGE, Running, SERVER, output, path, resilver, text};

/// `resilver wait`: exit code and stderr.
fn wait(arguments: &[&str]) -> (Option<i32>, String) {
    let output = resilver().arg("wait").args(arguments).output().unwrap();
    (output.status.code(), text(&output.stderr))
}

#[test]
fn wait_says_what_is_wrong_with_its_arguments() {
    for (arguments, word) in [
        (&[][..], "--mirrored"),
        (&["--mirrored", "--timeout", "5"], "needs its unit"),
        (&["--mirrored", "--proxy", "a:b"], "port"),
        (&["--mirrored", "--bogus"], "--bogus"),
        (&["--mirrored", "extra"], "extra"),
    ] {
        let (code, stderr) = wait(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(word), "{arguments:?}: {stderr}");
    }
    let help = output(&["wait", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("Usage: resilver wait"), "{}", text(&help.stdout));
    // It is a word of its own only in first place: everywhere else it is what it was.
    assert_eq!(output(&["-p", "0", "wait"]).status.code(), Some(EXIT_USAGE));
}

#[test]
fn wait_names_a_proxy_that_does_not_answer() {
    let dir = TempDir::new().unwrap();
    let (_, socket) = path(&dir, "nobody");
    for proxy in [SERVER[1], &socket] {
        let (code, stderr) = wait(&["--mirrored", "--proxy", proxy, "--timeout", "1ms"]);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(&format!("proxy {proxy}: ")) && stderr.contains("within 1ms"), "{stderr}");
    }
}

/// One that hangs and one that is something else.
#[test]
fn wait_never_hangs_and_tells_a_proxy_from_a_memcached() {
    let (hung, other) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let (code, stderr) = wait(&["--mirrored", "--timeout", "1ms", "--proxy", &hung.local_addr().unwrap().to_string()]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("no answer within"), "{stderr}");
    let addr = other.local_addr().unwrap().to_string();
    let answers = std::thread::spawn(move || {
        let (mut client, _) = other.accept().unwrap();
        let mut request = *b"stats resync\r\n";
        client.read_exact(&mut request).unwrap();
        // memcached's answer to a command that it does not know; to the second one too.
        let _ = client.write_all(b"ERROR\r\nERROR\r\n");
        let _ = client.read_to_end(&mut Vec::new());
    });
    let (code, stderr) = wait(&["--mirrored", "--proxy", &addr]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains(&format!("{addr} is no resilver")), "{stderr}");
    answers.join().unwrap();
}

#[test]
fn wait_does_not_wait_for_what_never_comes() {
    for (more, words) in [(&[][..], "no backups"), (&["-b", "127.0.0.1:2", "--resync=off"], "--resync=off")] {
        let dir = TempDir::new().unwrap();
        let (socket, socket_text) = path(&dir, "s");
        let answered = || std::os::unix::net::UnixStream::connect(&socket).is_ok();
        let _running = Running::start(&[&["-p", "0", "-f", &socket_text], more].concat(), answered);
        let (code, stderr) = wait(&["--mirrored", "--proxy", &socket_text]);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
        for ready in ["--mirrored", "--ready"] {
            let (code, stderr) = wait(&[ready, "--proxy", &socket_text, "--pool", "nosuch"]);
            assert_eq!(code, Some(2), "{stderr}");
            assert!(stderr.contains("pool nosuch refuses to say it: "), "{stderr}");
        }
    }
}
