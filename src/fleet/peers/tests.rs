//! Callers of the peer listener: welcome, not welcome, and no proxies at all.

use super::*;
use crate::config::{CommandLine, Host as Machine};
use crate::fleet::standbys::Fitness;
use crate::lease::Boot;
use crate::lease::process::{Clock, Needs, Process};
use crate::stats::closings::count_of;

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_candidate_that_other_hosts_do_not_reach_is_told_to_say_where_it_is() {
    let at = |members: &[&str], candidate| FleetSettings {
        register: RegisterSettings::Etcd {
            members: members.iter().map(|&member| member.to_owned()).collect(),
            name: "a".to_owned(),
        },
        login: None,
        advertise: None,
        lease: LONG,
        candidate,
        takeover_wait: LONG,
        former_grace: LONG,
        prove_writes: false,
    };
    assert!(may_be_elsewhere(&at(&["127.0.0.1:2379", "e2:2379"], true)));
    assert!(!may_be_elsewhere(&at(&["e2:2379"], false)), "nobody is to reach it");
    assert!(!may_be_elsewhere(&at(&["127.0.0.1:2379", "localhost:2379", "[::1]:2379"], true)));
}

fn caller() -> Caller {
    let (address, connects) = ("10.0.0.6:1".to_owned(), over_tcp());
    Caller { name: "a".into(), address, candidate: true, lease: LONG, connects }
}

fn serving() -> Serving {
    let (worker, _) = tokio::sync::mpsc::unbounded_channel();
    Serving {
        generation: Generation(7),
        hands_on: to_workers(vec![worker]),
        leaving: CancellationToken::new(),
        others: TaskTracker::new(),
        standbys: Arc::default(),
    }
}

/// A peer listener of the fleet `a`, and where it is.
async fn listening(serves: Option<Serving>) -> String {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (tells, serves) = watch::channel(serves);
    tokio::spawn(async move {
        listen(listener, Host { name: "a".into(), serves, lease: LONG }).await;
        drop(tells);
    });
    address
}

async fn says(address: &str, line: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(line.as_bytes()).await.unwrap();
    tokio::time::timeout(LONG, first_line(&mut stream)).await.expect("an answer").unwrap()
}

#[tokio::test]
async fn who_is_not_welcome_is_told_why_and_a_later_version_is_answered_with_ones_own() {
    let address = listening(Some(serving())).await;
    for (line, answer) in [
        ("proxy 1 7 data a\r\n", "PROXY 1 7"),
        ("proxy 2 7 data a\r\n", "PROXY 2 7"),
        ("proxy 3 7 data a what a later one says\r\n", "PROXY 2 7"),
        ("proxy 0 7 data a\r\n", "REFUSED this proxy speaks versions 1 to 2 of this line, and not 0"),
        ("proxy x 7 data a\r\n", "REFUSED this proxy speaks versions 1 to 2 of this line, and not x"),
        ("proxy 1 7 data b\r\n", "REFUSED this proxy is of the fleet a"),
        ("proxy 1 6 data a\r\n", "REFUSED this is generation 7"),
        ("proxy 1 8 data a\r\n", "REFUSED this is generation 7"),
        ("proxy 1 7 spy a\r\n", "REFUSED spy is no purpose of a connection between proxies that this one knows"),
        ("get a\r\n", "REFUSED this is the line between proxies, and no client's"),
    ] {
        assert_eq!(says(&address, line).await, answer, "{line}");
    }
    let standby = listening(None).await;
    assert_eq!(says(&standby, "proxy 1 7 control a\r\n").await, "REFUSED this proxy is not active");
    let leaves = serving();
    leaves.leaving.cancel();
    let leaves = listening(Some(leaves)).await;
    assert_eq!(says(&leaves, "proxy 1 7 data a\r\n").await, "REFUSED this proxy is leaving");
    let words: Vec<&str> = "proxy 1 7 data a".split(' ').collect();
    let suspended = judge(&words, "a", Some(serving()), false).map(|(_, purpose, _)| purpose);
    assert_eq!(suspended, Err("this proxy is suspended".to_owned()));
}

#[tokio::test]
async fn who_says_too_much_or_nothing_is_told_what_is_to_be_said() {
    let address = listening(Some(serving())).await;
    let counts = || [Closing::PeerRefused, Closing::PeerSilent].map(count_of);
    let before = counts();
    let long = says(&address, &"x".repeat(LINE_MAX)).await;
    assert_eq!(long, "REFUSED this is the line between proxies, and no client's");
    let silent = says(&address, "proxy 1 7").await;
    assert_eq!(silent, "REFUSED the line between proxies has to come within one second");
    let counted = async {
        while !counts().iter().zip(before).all(|(count, before)| *count > before) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, counted).await.expect("one of each");
}

#[tokio::test]
async fn an_active_proxy_of_a_version_that_nobody_here_knows_is_refused_with_a_sentence() {
    for (answer, wanted) in [
        ("PROXY 1 7", None),
        ("PROXY 2 7 what a later one says", None),
        (
            "PROXY 3 7",
            Some("it refuses this proxy: it speaks version 3 of the line between proxies, and this one 1 to 2"),
        ),
        ("REFUSED this proxy speaks versions 3 to 4 of this line, and not 1", Some("versions 3 to 4")),
        ("PROXY 1 8", Some("no active proxy")),
        ("ERROR", Some("no active proxy")),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let answers = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let line = first_line(&mut stream).await.unwrap();
            stream.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
            line
        });
        let dialled = dial(&caller(), &address, Generation(7), Purpose::Control).await;
        let release = env!("CARGO_PKG_VERSION");
        assert_eq!(answers.await.unwrap(), format!("proxy 2 7 control a 10.0.0.6:1 yes {release}"));
        match (dialled, wanted) {
            (Ok(_), None) => {}
            (Err(why), Some(wanted)) => assert!(why.to_string().contains(wanted), "{why}"),
            (dialled, _) => panic!("{answer}: {dialled:?}"),
        }
    }
}

#[tokio::test]
async fn who_has_a_control_connection_is_known_as_long_as_that_lasts() {
    let serving = serving();
    let standbys = serving.standbys.clone();
    let address = listening(Some(serving)).await;
    let mut stream = dial(&caller(), &address, Generation(7), Purpose::Control).await.unwrap();
    // Answered once it is kept.
    stream.write_all(&[Fitness::Fit.byte()]).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), PONG);
    assert_eq!(standbys.successors(), Ok(vec!["10.0.0.6:1".to_owned()]));
    stream.write_all(&[Fitness::NoStore.byte()]).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), PONG);
    assert!(standbys.successors().is_err(), "it goes by the present version, and cannot");
    drop(stream);
    let gone = async {
        while !standbys.all().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, gone).await.expect("it is forgotten");
}

/// What stands in the way of a listener with that line.
fn bound(line: &str) -> io::Result<(StdListener, String)> {
    let line = format!("resilver -s a:1 -b b:2 {line}");
    let Ok(CommandLine::Run(plan)) = CommandLine::parse(line.split_whitespace(), &Machine::this()) else {
        panic!("{line}")
    };
    bind(&plan.pools[0], plan.pools[0].fleet.as_ref().expect("a fleet"))
}

/// All clients of a standby dial the active proxy anew at once. Whoever finds no room waits for a
/// second, and longer the next time.
#[test]
fn as_many_may_wait_to_be_taken_as_at_the_clients_own_door() {
    let (listener, address) = bound("--coordinate etcd://127.0.0.1:1/a").unwrap();
    let address = address.parse().unwrap();
    let dial = |_| std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)).map_err(|error| error.kind());
    // More than the usual 128.
    let waiting: Result<Vec<_>, _> = (0..200).map(dial).collect();
    assert!(waiting.is_ok(), "{:?}", waiting.err());
    drop(listener);
}

/// Debian's /etc/hosts has the machine's own name so.
#[test]
fn a_name_that_leads_to_this_machine_alone_is_refused_where_others_have_to_reach_it() {
    let hides = "--advertise localhost:11300 leads to ";
    for (line, words) in [
        ("--coordinate etcd://10.0.0.9:2379/a --advertise localhost:11300", hides),
        ("--coordinate etcd://10.0.0.9:2379/a --advertise no.such.name.invalid:1", "--advertise no.such.name"),
    ] {
        let error = bound(line).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("give an"), "{error}");
    }
    for line in [
        "--coordinate etcd://10.0.0.9:2379/a --advertise localhost:11300 --candidate no",
        "--coordinate etcd://127.0.0.1:2379/a --advertise localhost:11300",
    ] {
        // (Somebody may have that port.)
        assert!(bound(line).err().is_none_or(|error| !error.to_string().contains(hides)), "{line}");
    }
}

/// Its standbys would be called ready while nobody is served.
#[tokio::test]
async fn a_suspended_proxy_answers_no_question_whether_it_is_there() {
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut asks = TcpStream::connect(door.local_addr().unwrap()).await.unwrap();
    let (stream, _) = door.accept().await.unwrap();
    let process = Process::new(Clock::new(1, 1000));
    tokio::spawn(process.clone().run(Needs::Turns, keep(Stream::Tcp(stream), serving(), (None, 2))));
    asks.write_all(&[Fitness::Fit.byte()]).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), asks.read_u8()).await.is_err(), "it is suspended");
    process.run(Needs::Turns, async { lease::extend(Boot(u64::MAX - 1)) }).await;
    asks.write_all(&[Fitness::Fit.byte()]).await.unwrap();
    assert_eq!(tokio::time::timeout(LONG, asks.read_u8()).await.expect("an answer").unwrap(), PONG);
}

/// A program that goes wrong, say, would take all files of the active proxy.
#[tokio::test]
async fn control_connections_have_a_bound() {
    let serving = serving();
    let mut others: Vec<_> = (1..CONTROLS).map(|_| serving.others.token()).collect();
    let words: Vec<&str> = "proxy 1 7 control a".split(' ').collect();
    let control = || judge(&words, "a", Some(serving.clone()), true).map(|(_, purpose, _)| purpose);
    assert_eq!(control(), Ok(Purpose::Control));
    others.push(serving.others.token());
    assert_eq!(control(), Err("1000 control connections to this proxy are open".to_owned()));
    let data: Vec<&str> = "proxy 1 7 data a".split(' ').collect();
    assert!(judge(&data, "a", Some(serving.clone()), true).is_ok(), "clients are served");
}
