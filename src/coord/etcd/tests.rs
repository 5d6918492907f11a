//! An etcd for real, one that says what a test wants, and members that do not answer.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::coord::NameServer;
use crate::coord::record::Holder;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// A real one, of one member.
struct Server {
    child: Child,
    client: String,
    peer: String,
    dir: tempfile::TempDir,
    more: Vec<&'static str>,
}

impl Server {
    fn start(more: &[&'static str]) -> Server {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        // Where it is memory: its fsyncs cost nothing there.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let (client, peer) = (free(), free());
        let child = Server::spawn(dir.path(), &client, &peer, more);
        let server = Server { child, client, peer, dir, more: more.to_vec() };
        server.await_answer();
        server
    }

    fn spawn(dir: &Path, client: &str, peer: &str, more: &[&str]) -> Child {
        let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
        Command::new("etcd")
            .args(["--name", "a", "--heartbeat-interval", "25", "--election-timeout", "250"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("a={peer}"), "--data-dir"])
            .arg(dir)
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is there: scripts/need-etcd installs it")
    }

    fn await_answer(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !matches!(self.register().judge(soon()), Ok(None)) {
            assert!(Instant::now() < deadline, "etcd on {} does not answer", self.client);
            // It tells nobody when it begins to answer.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn register(&self) -> Etcd {
        Etcd::new(std::slice::from_ref(&self.client), "test", None)
    }

    fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.child = Server::spawn(self.dir.path(), &self.client, &self.peer, &self.more);
        self.await_answer();
    }

    fn ask(&self, path: &str, body: &Json) -> Json {
        let answer = Http::new(self.client.clone()).ask(path, Some(&body.to_string()), None, soon()).unwrap();
        serde_json::from_str(&answer.body).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where nobody listens, and nobody else comes to listen as long as the second is held.
fn nobody() -> (String, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap().to_string();
    (address, socket)
}

fn record(heartbeat: u64) -> Record {
    Record { heartbeat, ..Record::of(Holder(1)) }
}

/// All on one server, which takes 0.3 s to start.
#[test]
fn a_real_etcd_is_read_and_swapped_restarts_and_refuses() {
    let mut server = Server::start(&[]);
    let mut register = server.register();
    let absent = register.read(soon()).unwrap();
    assert_eq!(absent, Seen { revision: 0, value: Value::Absent });
    let Ok(Swapped::Done(first)) = register.swap(&absent, &record(1), soon()) else { panic!("not made") };
    let seen = Seen { revision: first, value: Value::Record(record(1)) };
    assert_eq!(register.read(soon()).unwrap(), seen);
    assert_eq!(server.register().swap(&absent, &record(2), soon()), Ok(Swapped::Refused), "it is there");
    // The same revision with another value, as after a restore: the value is compared too.
    let restored = Seen { revision: first, value: Value::Record(record(9)) };
    assert_eq!(register.swap(&restored, &record(2), soon()), Ok(Swapped::Refused));
    let later = Seen { revision: first + 1, ..seen.clone() };
    assert_eq!(register.swap(&later, &record(2), soon()), Ok(Swapped::Refused));
    assert_eq!(Etcd::new(std::slice::from_ref(&server.client), "other", None).read(soon()).unwrap(), absent);

    // What a later release adds is compared as it stands there.
    let more = json!({ "key": register.key, "value": base64(format!("{} and more", record(3)).as_bytes()) });
    server.ask("/v3/kv/put", &more);
    let seen = register.read(soon()).unwrap();
    assert_eq!(seen.value, Value::Record(record(3)));
    assert!(matches!(register.swap(&seen, &record(4), soon()), Ok(Swapped::Done(_))));
    server.ask("/v3/kv/put", &json!({ "key": register.key, "value": base64(b"not a record") }));
    assert_eq!(register.read(soon()).unwrap().value, Value::Unreadable);

    // It is killed, and comes back with what it had; a member that is not there is passed over.
    let written =
        server.ask("/v3/kv/put", &json!({ "key": register.key, "value": base64(record(5).to_string().as_bytes()) }));
    let revision = number(&written["header"]["revision"]).unwrap();
    server.end();
    let away = register.read(soon()).unwrap_err().to_string();
    assert!(away.contains(&server.client), "{away}");
    assert!(register.swap(&seen, &record(6), soon()).is_err());
    server.start_again();
    let seen = Seen { revision, value: Value::Record(record(5)) };
    assert_eq!(register.read(soon()).unwrap(), seen);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // A memcached.
    let serving = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"ERROR\r\nERROR\r\n").unwrap());
    let said = Etcd::new(std::slice::from_ref(&address), "test", None).judge(soon()).unwrap().unwrap();
    assert!(said.contains(&address) && said.contains("HTTP"), "{said}");
    serving.join().unwrap();
    let (nobody, _held) = nobody();
    let mut several = Etcd::new(&[nobody, server.client.clone()], "test", None);
    assert!(matches!(several.swap(&seen, &record(7), soon()), Ok(Swapped::Done(_))));

    // Users.
    server.ask("/v3/auth/user/add", &json!({ "name": "root", "password": "secret" }));
    server.ask("/v3/auth/role/add", &json!({ "name": "root" }));
    server.ask("/v3/auth/user/grant", &json!({ "user": "root", "role": "root" }));
    server.ask("/v3/auth/enable", &json!({}));
    let as_user = |password: &str| {
        let access = Access { user: "root".to_owned(), password: password.to_owned() };
        Etcd::new(std::slice::from_ref(&server.client), "test", Some(access))
    };
    let refused = server.register().judge(soon()).unwrap().expect("it asks for a user");
    assert!(refused.contains(&server.client) && refused.contains("refuses access"), "{refused}");
    assert!(as_user("wrong").judge(soon()).unwrap().is_some());
    let mut right = as_user("secret");
    assert_eq!(right.judge(soon()), Ok(None));
    assert!(matches!(right.read(soon()).unwrap().value, Value::Record(_)));
    right.token = Some("of yesterday".to_owned());
    assert!(right.read(soon()).is_ok(), "it logs in again");
    assert!(!format!("{:?}", right.access).contains("secret"));
    let ask = |path: &str, body: Json| assert_eq!(right_call(&server, path, &body), None, "{path}");
    // Somebody who may read, and no more.
    let (from, to) = (base64(b"/"), base64(b"0"));
    ask("/v3/auth/role/add", json!({ "name": "reader" }));
    let perm = json!({ "permType": "READ", "key": from, "range_end": to });
    ask("/v3/auth/role/grant", json!({ "name": "reader", "perm": perm }));
    ask("/v3/auth/user/add", json!({ "name": "reader", "password": "secret" }));
    ask("/v3/auth/user/grant", json!({ "user": "reader", "role": "reader" }));
    let reader = Access { user: "reader".to_owned(), password: "secret".to_owned() };
    let mut reads = Etcd::new(std::slice::from_ref(&server.client), "test", Some(reader));
    let refused = reads.judge(soon()).unwrap().expect("it could never become active");
    assert!(refused.contains("not write"), "{refused}");
    // The token is of before that.
    assert!(right.read(soon()).is_ok(), "it logs in again");
    // The file says another password by then.
    ask("/v3/auth/user/changepw", json!({ "name": "root", "password": "another" }));
    let mut right = right.told_by(|| Some(Access { user: "root".to_owned(), password: "another".to_owned() }));
    let late = Instant::now() + Duration::from_millis(1);
    assert!(right.log_in(late).is_ok(), "a log-in has a time of its own");
    right.token = None;
    right.tells = Some(Box::new(|| None));
    assert!(right.read(soon()).is_ok(), "what was known before counts");
}

/// As root. Returns what it refuses.
fn right_call(server: &Server, path: &str, body: &Json) -> Option<String> {
    let access = Access { user: "root".to_owned(), password: "secret".to_owned() };
    let mut root = Etcd::new(std::slice::from_ref(&server.client), "test", Some(access));
    root.call(path, body, soon()).err().map(|failed| Unread::from(failed).0)
}

/// It closes what it does not understand, and says nothing.
#[test]
fn an_etcd_that_speaks_tls_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut block = [0; 8192];
            let count = stream.read(&mut block).unwrap();
            // What a real one answers: an alert.
            if block[..count].starts_with(b"\x16\x03") {
                stream.write_all(b"\x15\x03\x01\x00\x02\x02\x0a").unwrap();
            }
        }
    });
    let said =
        Etcd::new(std::slice::from_ref(&address), "test", None).judge(soon()).unwrap().expect("it will never do");
    assert!(said.contains(&address) && said.contains("TLS"), "{said}");
}

#[test]
fn a_full_etcd_says_so() {
    let server = Server::start(&["--quota-backend-bytes", "60000"]);
    let mut register = server.register();
    let absent = register.read(soon()).unwrap();
    let big = json!({ "key": base64(b"big"), "value": base64(&[0; 40_000]) });
    let full = (0..20).any(|_| server.ask("/v3/kv/put", &big)["error"].is_string());
    assert!(full, "it takes all");
    let said = register.swap(&absent, &record(1), soon()).unwrap_err().to_string();
    assert!(said.contains("full") && said.contains("compact"), "{said}");
    assert!(register.read(soon()).is_ok(), "it can be read");
}

/// Answers every request with that; how many there were.
fn door(status: u16, body: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let counts = asked.clone();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let counts = counts.clone();
            std::thread::spawn(move || {
                while stream.read(&mut [0; 8192]).is_ok_and(|n| n > 0) {
                    counts.fetch_add(1, Ordering::SeqCst);
                    let length = body.len();
                    write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
                }
            });
        }
    });
    (address, asked)
}

/// What a member without a record says to all that is asked here.
const HEALTHY: &str = r#"{"etcdserver":"3.5.0","header":{"revision":"1"},"succeeded":true}"#;

#[test]
fn a_member_that_answers_with_an_error_is_left_and_what_it_was_asked_is_not_asked_again() {
    for (status, body) in [
        (503, "<html>no backend</html>"),
        (404, "404 page not found"),
        (429, r#"{"error":"etcdserver: too many requests"}"#),
        (501, r#"{"error":"etcdserver: rpc not supported for learner"}"#),
        (200, "hello"),
    ] {
        let ((bad, _), (good, asked)) = (door(status, body), door(200, HEALTHY));
        let mut etcd = Etcd::new(&[bad.clone(), good], "test", None);
        let seen = Seen { revision: 0, value: Value::Absent };
        let said = etcd.swap(&seen, &record(1), soon()).unwrap_err().to_string();
        assert!(said.contains(&bad), "{said}");
        assert_eq!(asked.load(Ordering::SeqCst), 0, "nobody knows whether it was done");
        assert_eq!(etcd.read(soon()), Ok(seen.clone()), "{status}");
        assert_eq!(etcd.swap(&seen, &record(2), soon()), Ok(Swapped::Done(1)));
    }
    // A denial is the word of all.
    let ((bad, _), (good, asked)) = (door(403, r#"{"error":"etcdserver: permission denied"}"#), door(200, HEALTHY));
    let mut etcd = Etcd::new(&[bad, good], "test", None);
    for _ in 0..2 {
        assert!(etcd.read(soon()).is_err());
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

/// Whoever asked the next one at once would hear that a swap is refused which the first has made.
#[test]
fn what_a_silent_member_was_asked_is_asked_of_no_other_and_the_next_one_is_asked_next() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (good, asked) = door(200, HEALTHY);
    let mut etcd = Etcd::new(&[silent.local_addr().unwrap().to_string(), good], "test", None);
    let absent = Seen { revision: 0, value: Value::Absent };
    let late = Instant::now() + Duration::from_millis(100);
    assert!(etcd.swap(&absent, &record(1), late).is_err());
    assert_eq!(asked.load(Ordering::SeqCst), 0, "it may have been done");
    assert_eq!(etcd.swap(&absent, &record(2), Instant::now() + Duration::from_secs(2)), Ok(Swapped::Done(1)));
}

/// Three that answered after 100 ms were too slow for a lease of which one may take 150.
#[test]
fn members_leave_each_other_time_to_be_reached_and_each_has_all_the_time_to_answer() {
    let mut etcd = Etcd::new(&["a:1", "b:1", "c:1"].map(str::to_owned), "test", None);
    let (deadline, mut given) = (soon(), Vec::new());
    let none = etcd.each(deadline, |_, _, until| {
        given.push(until);
        Err(HttpError::NotSent("it is away".to_owned()))
    });
    assert!(none.is_err() && given.len() == 3);
    assert!(given.iter().all(|until| until.answered == deadline), "{given:?}");
    assert!(given[0].reached < given[1].reached && given[1].reached < given[2].reached, "{given:?}");
    // It may have done it: nobody else would be asked in the time that is left.
    let mut asked = 0;
    let silent = etcd.each(deadline, |_, _, _| {
        asked += 1;
        Err(HttpError::Unanswered("not in time".to_owned()))
    });
    assert!(silent.is_err() && asked == 1);
}

/// Answers what comes on one connection, by its head and body.
fn answering(mut answer: impl FnMut(&str) -> (u16, String) + Send + 'static) -> Etcd {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut block = [0; 8192];
        while let Ok(n @ 1..) = stream.read(&mut block) {
            let (status, body) = answer(&String::from_utf8_lossy(&block[..n]));
            write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    });
    let access = Access { user: "root".to_owned(), password: "secret".to_owned() };
    Etcd::new(&[address], "test", Some(access))
}

/// In both ways in which etcd says so.
#[test]
fn who_is_told_that_its_token_is_over_logs_in_again() {
    for (status, body) in [(401, "{}"), (400, r#"{"error":"etcdserver: invalid auth token"}"#)] {
        let mut tokens = 0;
        let mut etcd = answering(move |asked| {
            if asked.contains("/v3/auth/authenticate") {
                tokens += 1;
                (200, format!(r#"{{"token":"t{tokens}"}}"#))
            } else if asked.contains("Authorization: t1\r\n") {
                (status, body.to_owned())
            } else {
                (200, HEALTHY.to_owned())
            }
        });
        assert_eq!(etcd.read(soon()).map(|seen| seen.value), Ok(Value::Absent), "{status}");
    }
}

/// A start waits for neither: one is given a user that is none, and the other's tokens are worth
/// nothing to itself.
#[test]
fn an_etcd_that_knows_no_users_or_takes_none_of_its_tokens_is_named() {
    let mut knows_none = answering(|asked| match asked.contains("/v3/auth/authenticate") {
        true => (400, r#"{"error":"etcdserver: authentication is not enabled"}"#.to_owned()),
        false => (200, HEALTHY.to_owned()),
    });
    let said = knows_none.judge(soon()).unwrap().expect("it will never do");
    assert!(said.contains("refuses access") && said.contains("not enabled"), "{said}");
    let mut takes_none = answering(|asked| match asked.contains("/v3/auth/authenticate") {
        true => (200, r#"{"token":"t"}"#.to_owned()),
        false => (401, "{}".to_owned()),
    });
    let said = takes_none.read(soon()).unwrap_err().to_string();
    assert!(said.contains("takes no token that it has just given"), "{said}");
    let mut gives_none = answering(|_| (200, "{}".to_owned()));
    let said = gives_none.read(soon()).unwrap_err().to_string();
    assert!(said.contains("says: no token"), "{said}");
}

#[test]
fn a_swap_that_is_made_has_a_revision() {
    let (strange, _) = door(200, r#"{"header":{"revision":"0"},"succeeded":true}"#);
    let mut etcd = Etcd::new(&[strange], "test", None);
    assert!(etcd.swap(&Seen { revision: 0, value: Value::Absent }, &record(1), soon()).is_err());
}

#[test]
fn one_member_that_will_do_is_enough_for_a_start() {
    for (status, body) in [
        (503, "no backend"),
        (404, "not found"),
        (200, "hello"),
        (200, r#"{"etcdserver":"3.3.25","etcdcluster":"3.3.0"}"#),
    ] {
        let ((bad, _), (good, _)) = (door(status, body), door(200, HEALTHY));
        assert_eq!(Etcd::new(&[bad, good], "test", None).judge(soon()), Ok(None), "{status} {body}");
    }
    let (away, _) = door(503, "no backend");
    let said = Etcd::new(std::slice::from_ref(&away), "test", None).judge(soon()).unwrap_err().to_string();
    assert!(said.contains(&away) && said.contains("503"), "{said}");
}

#[test]
fn a_name_server_that_is_slow_takes_no_others_time() {
    let (nobody, _held) = nobody();
    let (good, _) = door(200, HEALTHY);
    let absent = Seen { revision: 0, value: Value::Absent };
    let ((slow, name), mut etcd) = (NameServer::new(), Etcd::new(&[nobody.clone(), good.clone()], "test", None));
    etcd.members[0] = Http::with_name("slow".to_owned(), name);
    // What is not known is asked last, and once it is, in its turn.
    assert_eq!(etcd.order(), [1, 0]);
    slow.answer(&[&nobody]);
    while etcd.order() != [0, 1] {
        std::thread::yield_now();
    }
    // It refuses, and is looked up for as long as this test runs.
    for _ in 0..3 {
        etcd.present = 0;
        assert_eq!(etcd.read(Instant::now() + Duration::from_secs(2)), Ok(absent.clone()));
    }
    assert_eq!(slow.asked(), 2, "one look-up at a time");
}

#[test]
fn what_is_no_etcd_or_too_old_is_named() {
    for (answer, word) in [
        (r#"{"etcdserver":"3.3.25","etcdcluster":"3.3.0"}"#, "3.3.25"),
        (r#"{"etcdserver":"2.0"}"#, "too old"),
        ("hello", "no etcd"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            let length = answer.len();
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{answer}").unwrap();
        });
        let said = Etcd::new(std::slice::from_ref(&address), "test", None).judge(soon()).unwrap().unwrap();
        assert!(said.contains(&address) && said.contains(word), "{said}");
        serving.join().unwrap();
    }
    let (nobody, _held) = nobody();
    let unreachable = Etcd::new(std::slice::from_ref(&nobody), "test", None).judge(soon()).unwrap_err().to_string();
    assert!(unreachable.contains(&nobody), "{unreachable}");
}

#[test]
fn texts_are_those_of_the_gateway() {
    for (plain, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
        assert_eq!(base64(plain.as_bytes()), text);
        assert_eq!(unbase64(text).unwrap(), plain.as_bytes());
    }
    let all: Vec<u8> = (0..=255).collect();
    assert_eq!(unbase64(&base64(&all)).unwrap(), all);
    assert_eq!((unbase64("Zg"), unbase64("Z!==")), (None, None));
}
