//! Clients of a standby, before active proxies that hand over, fall silent or say what they like.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::config::{CommandLine, Host, UsageErrors};
use crate::fleet::testing::{Active, LONG, ends, shared};
use crate::testing::log::Log;

/// Exactly that comes next.
pub(super) async fn hear(stream: &mut (impl tokio::io::AsyncRead + Unpin), wanted: impl AsRef<[u8]>) {
    let wanted = wanted.as_ref();
    let mut got = vec![0; wanted.len()];
    let came = timeout(LONG, stream.read_exact(&mut got)).await;
    came.unwrap_or_else(|_| panic!("{} does not come", wanted.escape_ascii())).unwrap();
    assert_eq!(got.escape_ascii().to_string(), wanted.escape_ascii().to_string());
}

pub(super) async fn until(mut is: impl FnMut() -> bool) {
    let waits = async {
        while !is() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, waits).await.expect("it becomes so");
}

/// A client of a relay, and what the relay goes by.
pub(super) async fn client(first: Target, takeover_wait: Duration) -> (TcpStream, watch::Sender<Target>, Arc<Shared>) {
    let (shows, target) = watch::channel(first);
    let shared = Arc::new(shared(target, takeover_wait, LONG));
    (served(&shared).await, shows, shared)
}

pub(super) async fn served(shared: &Arc<Shared>) -> TcpStream {
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(door.local_addr().unwrap()).await.unwrap();
    let (stream, _) = door.accept().await.unwrap();
    tokio::spawn(serve(Stream::Tcp(stream), shared.clone(), None));
    client
}

#[tokio::test]
async fn what_was_passed_on_is_never_sent_again_but_for_reads() {
    let (one, two) = (Active::new(1).await, Active::new(2).await);
    let (mut client, shows, _shared) = client(one.target(), LONG).await;
    let requests = "set a 0 0 1\r\n1\r\nget a\r\nincr b 1\r\n";
    client.write_all(requests.as_bytes()).await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, requests).await;
    // A part of a large request, too: the rest of it goes nowhere.
    let part = format!("set d 0 0 70002\r\n{}", "a".repeat(70_000));
    client.write_all(part.as_bytes()).await.unwrap();
    hear(&mut link, &part).await;
    shows.send_replace(two.target());
    let mut next = two.welcome("data").await;
    hear(&mut next, "get a\r\n").await;
    client.write_all(b"cd\r\ndelete e\r\n").await.unwrap();
    hear(&mut next, "delete e\r\n").await;
    next.write_all(b"VALUE a 0 1\r\n1\r\nEND\r\nDELETED\r\n").await.unwrap();
    let unknown = "SERVER_ERROR the active proxy was replaced: nobody knows whether this was done\r\n";
    hear(&mut client, &format!("{unknown}VALUE a 0 1\r\n1\r\nEND\r\n{unknown}{unknown}DELETED\r\n")).await;
}

#[tokio::test]
async fn a_proxy_that_hands_over_is_sent_nothing_new_and_answers_what_it_has() {
    let (one, two) = (Active::new(1).await, Active::new(2).await);
    let (mut client, shows, shared) = client(one.target(), LONG).await;
    client.write_all(b"set a 0 0 1\r\n1\r\ndelete b noreply\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "set a 0 0 1\r\n1\r\ndelete b noreply\r\n").await;
    shows.send_replace(Target { leaving: true, ..one.target() });
    client.write_all(b"get a\r\n").await.unwrap();
    link.write_all(b"STORED\r\n").await.unwrap();
    hear(&mut client, "STORED\r\n").await;
    // Nobody answers the delete: this tells that it was done.
    hear(&mut link, "mn\r\n").await;
    assert_eq!(shared.links.len(), 1);
    link.write_all(b"MN\r\n").await.unwrap();
    assert_eq!(timeout(LONG, link.read(&mut [0])).await.unwrap().unwrap(), 0, "it is closed");
    assert_eq!(shared.links.len(), 0);
    shows.send_replace(two.target());
    let mut next = two.welcome("data").await;
    hear(&mut next, "get a\r\n").await;
    next.write_all(b"END\r\n").await.unwrap();
    hear(&mut client, "END\r\n").await;
}

#[tokio::test]
async fn requests_wait_for_an_active_proxy_and_are_refused_in_the_end() {
    let nobody = Target { why: "etcd is away".to_owned(), ..Target::default() };
    let (mut client, shows, shared) = client(nobody, Duration::from_millis(50)).await;
    client.write_all(b"stats proxy\r\nset a 0 0 1\r\n1\r\nset b 0 0 1 noreply\r\n1\r\nget a\r\n").await.unwrap();
    let refused = "SERVER_ERROR no proxy is active: etcd is away\r\n";
    hear(&mut client, &format!("STAT proxy:role standby\r\nEND\r\n{refused}{refused}")).await;
    // It stays.
    let one = Active::new(1).await;
    shows.send_replace(one.target());
    client.write_all(b"get a\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "get a\r\n").await;
    // Half of an answer has come: nobody can make up the rest.
    link.write_all(b"VALUE a 0 3\r\n1").await.unwrap();
    hear(&mut client, "VALUE a 0 3\r\n1").await;
    drop(link);
    assert_eq!(timeout(LONG, client.read(&mut [0])).await.unwrap().unwrap(), 0, "it is closed");
    until(|| shared.clients.is_empty()).await;
}

/// Within a second, and in its place; also while one is dialled that does not answer.
#[tokio::test]
async fn who_asks_for_statistics_hears_from_this_proxy_where_none_is_active() {
    let silent = Active::new(1).await;
    let nobody = Target { why: "etcd is away".to_owned(), ..Target::default() };
    for (first, why) in
        [(nobody, "etcd is away".to_owned()), (silent.target(), format!("that on {}", silent.address()))]
    {
        let (mut client, shows, _shared) = client(first, LONG).await;
        let begun = Instant::now();
        client.write_all(b"stats\r\nstats servers\r\nresync status\r\nget a\r\n").await.unwrap();
        hear(&mut client, "STAT proxy:role standby\r\nEND\r\n").await;
        for _ in 0..2 {
            hear(&mut client, &format!("SERVER_ERROR no proxy is active: {why}")).await;
            while client.read_u8().await.unwrap() != b'\n' {}
        }
        assert!(begun.elapsed() < LONG, "it did not wait for an active one");
        // What is no question of that kind waits, and one that comes behind it.
        client.write_all(b"stats\r\n").await.unwrap();
        let one = Active::new(2).await;
        shows.send_replace(one.target());
        let mut link = one.welcome("data").await;
        hear(&mut link, "get a\r\nstats\r\n").await;
    }
}

/// In the binary protocol's words, which a line of text is not.
#[tokio::test]
async fn a_binary_client_is_told_that_no_proxy_is_active() {
    let (mut client, _shows, shared) = client(Target::default(), Duration::from_millis(50)).await;
    let mut get = vec![0x80, 0x00, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1];
    get.extend([0; 12]);
    get.push(b'k');
    client.write_all(&get).await.unwrap();
    let mut said = Vec::new();
    timeout(LONG, client.read_to_end(&mut said)).await.expect("it is closed").unwrap();
    assert_eq!((said[0], said[6], said[7]), (0x81, 0, 0x84), "an internal error");
    let words = Over::NoneActive.last_words().expect("it is told");
    assert_eq!(String::from_utf8_lossy(&said[24..]), words);
    assert_eq!(shared.shown.ends.of(Over::NoneActive), 1);
}

#[tokio::test]
async fn one_client_too_many_is_told_so_and_the_next_one_is_served() {
    let one = Active::new(1).await;
    let (first, _shows, shared) = client(one.target(), LONG).await;
    let mut second = served(&shared).await;
    second.write_all(b"stats proxy\r\nget a\r\n").await.unwrap();
    hear(&mut second, TOO_MANY).await;
    ends(&mut second).await;
    assert_eq!(shared.shown.ends.of(Over::TooMany), 1);
    drop(first);
    shared.clients.close();
    timeout(LONG, shared.clients.wait()).await.expect("it goes");
    let mut third = served(&shared).await;
    third.write_all(b"get a\r\n").await.unwrap();
    hear(&mut one.welcome("data").await, "get a\r\n").await;
}

#[tokio::test]
async fn what_is_perhaps_owed_is_known_behind_a_no_op() {
    let (one, two) = (Active::new(1).await, Active::new(2).await);
    let (mut client, shows, shared) = client(one.target(), LONG).await;
    client.write_all(b"mg a v q\r\nmg b v q\r\nmn\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "mg a v q\r\nmg b v q\r\nmn\r\n").await;
    link.write_all(b"VA 1\r\n1\r\nMN\r\n").await.unwrap();
    hear(&mut client, "VA 1\r\n1\r\nMN\r\n").await;
    // All is answered: it stays when the active proxy changes.
    shows.send_replace(two.target());
    client.write_all(b"mg a v q\r\n").await.unwrap();
    let mut next = two.welcome("data").await;
    hear(&mut next, "mg a v q\r\n").await;
    // Nobody knows what this one comes to.
    drop(next);
    told_why(&mut client, &shared, Over::Replaced).await;
}

/// It is told why in its last words, closed, and counted so.
async fn told_why(client: &mut TcpStream, shared: &Shared, why: Over) {
    let words = why.last_words().expect("it is told");
    hear(client, &format!("SERVER_ERROR {words}\r\n")).await;
    ends(client).await;
    assert_eq!(shared.shown.ends.of(why), 1, "{why:?}");
}

#[tokio::test]
async fn a_line_that_is_longer_than_what_is_held_is_passed_on() {
    let one = Active::new(1).await;
    let (mut client, _shows, _shared) = client(one.target(), LONG).await;
    let request = format!("get {}\r\n", "abcdefghi ".repeat(7000));
    let (mut link, ()) =
        tokio::join!(one.welcome("data"), async { client.write_all(request.as_bytes()).await.unwrap() });
    hear(&mut link, &request).await;
    link.write_all(b"END\r\n").await.unwrap();
    hear(&mut client, "END\r\n").await;
}

#[tokio::test]
async fn a_client_that_closes_its_half_is_told_all_that_it_is_owed() {
    let one = Active::new(1).await;
    for (request, answer) in
        [("get a\r\n", "END\r\n"), ("stats\r\nquit\r\n", "STAT a 1\r\nEND\r\n"), ("mg a v q\r\n", "")]
    {
        let (mut client, _shows, _shared) = client(one.target(), LONG).await;
        client.write_all(request.as_bytes()).await.unwrap();
        client.shutdown().await.unwrap();
        let mut link = one.welcome("data").await;
        hear(&mut link, request).await;
        if request != "get a\r\n" {
            ends(&mut link).await;
        }
        link.write_all(answer.as_bytes()).await.unwrap();
        hear(&mut client, answer).await;
        drop(link);
        ends(&mut client).await;
    }
}

#[tokio::test]
async fn a_write_without_an_answer_ends_its_client_where_its_proxy_breaks() {
    let one = Active::new(1).await;
    let (mut client, _shows, shared) = client(one.target(), LONG).await;
    let requests = "set c 0 0 1 noreply\r\n2\r\nget c\r\n";
    client.write_all(requests.as_bytes()).await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, requests).await;
    drop(link);
    told_why(&mut client, &shared, Over::Replaced).await;
}

#[tokio::test]
async fn nothing_new_is_sent_to_a_silent_proxy_before_it_has_closed_the_former_link() {
    let one = Active::new(1).await;
    let silent = Target { silent: true, ..one.target() };
    let second = "set a 0 0 1\r\n2\r\n";
    for goes_on in [None, Some(true), Some(false)] {
        let (mut client, shows, shared) = client(silent.clone(), Duration::from_millis(300)).await;
        client.write_all(b"set a 0 0 1\r\n1\r\n").await.unwrap();
        let mut link = one.welcome("data").await;
        hear(&mut link, "set a 0 0 1\r\n1\r\n").await;
        let unknown = "SERVER_ERROR the active proxy does not answer: nobody knows whether this was done\r\n";
        hear(&mut client, unknown).await;
        client.write_all(second.as_bytes()).await.unwrap();
        ends(&mut link).await;
        assert!(timeout(Duration::from_millis(30), one.listener.accept()).await.is_err(), "the former one is open");
        let Some(closes) = goes_on else {
            drop(link);
            hear(&mut one.welcome("data").await, second).await;
            continue;
        };
        // It may be suspended for long, and closes nothing meanwhile: its client is told, and
        // stays.
        let why = format!("SERVER_ERROR no proxy is active: that on {} does not answer\r\n", one.address());
        hear(&mut client, &why).await;
        client.write_all(second.as_bytes()).await.unwrap();
        hear(&mut client, &why).await;
        shows.send_replace(one.target());
        if closes {
            drop(link);
            client.write_all(second.as_bytes()).await.unwrap();
            hear(&mut one.welcome("data").await, second).await;
        } else {
            told_why(&mut client, &shared, Over::Former).await;
        }
    }
}

/// It has been told all, or waits for nothing: a proxy that is suspended for long parts with nobody
/// for that.
#[tokio::test]
async fn a_client_that_waits_for_nothing_stays_however_long_its_proxy_is_silent() {
    let (before, one) = (Active::new(1).await, Active::new(2).await);
    for (request, answer) in [("get a\r\n", "END\r\n"), ("set a 0 0 1 noreply\r\n1\r\n", "")] {
        let (mut client, shows, shared) = client(before.target(), Duration::from_millis(30)).await;
        // It has waited for something that nobody will answer.
        client.write_all(b"incr n 1\r\n").await.unwrap();
        let mut former = before.welcome("data").await;
        hear(&mut former, "incr n 1\r\n").await;
        shows.send_replace(one.target());
        hear(&mut client, "SERVER_ERROR the active proxy was replaced: nobody knows whether this was done\r\n").await;
        client.write_all(request.as_bytes()).await.unwrap();
        let mut link = one.welcome("data").await;
        hear(&mut link, request).await;
        link.write_all(answer.as_bytes()).await.unwrap();
        hear(&mut client, answer).await;
        shows.send_replace(Target { silent: true, ..one.target() });
        let closed = timeout(Duration::from_millis(120), link.read_u8()).await;
        assert!(closed.is_err(), "{request}: {closed:?}");
        shows.send_replace(one.target());
        client.write_all(b"get b\r\n").await.unwrap();
        hear(&mut link, "get b\r\n").await;
        link.write_all(b"END\r\n").await.unwrap();
        hear(&mut client, "END\r\n").await;
        drop(client);
        until(|| shared.clients.is_empty()).await;
    }
}

#[tokio::test]
async fn who_asks_a_silent_proxy_again_and_again_is_told_all_the_same() {
    let one = Active::new(1).await;
    let silent = Target { silent: true, ..one.target() };
    let (client, _shows, _shared) = client(silent, Duration::from_millis(200)).await;
    let (mut hears, mut asks) = client.into_split();
    let asks = async move {
        while asks.write_all(b"set a 0 0 1\r\n1\r\n").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let told = async {
        tokio::select! {
            () = asks => panic!("it is closed"),
            () = hear(&mut hears, "SERVER_ERROR the active proxy does not answer") => {}
        }
    };
    let (_link, ()) = tokio::join!(one.welcome("data"), told);
}

/// Else the relay looks at it again and again without a pause, and its client hears nothing before
/// the lease is over.
#[tokio::test]
async fn a_proxy_that_falls_silent_while_it_hands_over_is_waited_for_like_any_other() {
    let one = Active::new(1).await;
    let (mut client, shows, _shared) = client(one.target(), Duration::from_millis(300)).await;
    client.write_all(b"set a 0 0 1\r\n1\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "set a 0 0 1\r\n1\r\n").await;
    shows.send_replace(Target { leaving: true, silent: true, ..one.target() });
    hear(&mut client, "SERVER_ERROR the active proxy does not answer: nobody knows whether this was done\r\n").await;
}

#[tokio::test]
async fn a_client_of_which_nobody_knows_what_it_is_owed_keeps_no_planned_change_waiting() {
    let one = Active::new(1).await;
    let (mut perhaps, shows, _shared) = client(one.target(), LONG).await;
    perhaps.write_all(b"mg a v q\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "mg a v q\r\n").await;
    shows.send_replace(Target { leaving: true, ..one.target() });
    hear(&mut link, "mn\r\n").await;
    link.write_all(b"MN\r\n").await.unwrap();
    ends(&mut link).await;
    let (mut opaque, shows, shared) = client(one.target(), LONG).await;
    opaque.write_all(b"watch\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "watch\r\n").await;
    shows.send_replace(Target { leaving: true, ..one.target() });
    ends(&mut link).await;
    // Whether something half told stands before it, nobody knows either.
    ends(&mut opaque).await;
    assert_eq!(shared.shown.ends.of(Over::Planned), 1);
}

/// What waits for a later proxy is not made for a client that is gone.
#[tokio::test]
async fn nothing_is_asked_of_the_next_proxy_for_a_client_that_went_while_it_waited() {
    let one = Active::new(1).await;
    for whole in [true, false] {
        let (mut client, shows, shared) = client(Target::default(), LONG).await;
        let request: &[u8] = if whole { b"set a 0 0 1\r\n1\r\n" } else { b"set a 0 0 9\r\n1" };
        client.write_all(request).await.unwrap();
        until(|| !shared.clients.is_empty()).await;
        drop(client);
        shared.clients.close();
        timeout(LONG, shared.clients.wait()).await.expect("it is dropped");
        shows.send_replace(one.target());
        assert!(timeout(Duration::from_millis(30), one.listener.accept()).await.is_err(), "it is dialled for nobody");
    }
}

/// A request that was sent in part waits here for its rest, as long as it is not large.
#[tokio::test]
async fn a_client_in_the_middle_of_a_request_keeps_no_planned_change_waiting() {
    let (one, two) = (Active::new(1).await, Active::new(2).await);
    let (mut small, shows, _shared) = client(one.target(), LONG).await;
    small.write_all(b"get a\r\nset b 0 0 4\r\n12").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "get a\r\n").await;
    link.write_all(b"END\r\n").await.unwrap();
    hear(&mut small, "END\r\n").await;
    shows.send_replace(Target { leaving: true, ..one.target() });
    ends(&mut link).await;
    shows.send_replace(two.target());
    small.write_all(b"34\r\n").await.unwrap();
    hear(&mut two.welcome("data").await, "set b 0 0 4\r\n1234\r\n").await;

    let (mut large, shows, _shared) = client(one.target(), LONG).await;
    let begun = format!("set b 0 0 100000\r\n{}", "x".repeat(80_000));
    large.write_all(begun.as_bytes()).await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, &begun).await;
    shows.send_replace(Target { leaving: true, ..one.target() });
    ends(&mut link).await;
    hear(&mut large, "SERVER_ERROR the active proxy hands over: nobody knows whether this was done\r\n").await;
    shows.send_replace(two.target());
    large.write_all(format!("{}\r\nget c\r\n", "x".repeat(20_000)).as_bytes()).await.unwrap();
    hear(&mut two.welcome("data").await, "get c\r\n").await;
}

/// It was killed, and clients were told that it hands over. Or it lives, and goes on with what it
/// has received in part.
#[tokio::test]
async fn of_a_proxy_that_has_not_said_so_nobody_says_that_it_hands_over() {
    for lives in [false, true] {
        let one = Active::new(1).await;
        let (mut client, shows, _shared) = client(one.target(), LONG).await;
        let begun = format!("set b 0 0 100000\r\n{}", "x".repeat(80_000));
        client.write_all(begun.as_bytes()).await.unwrap();
        let mut link = one.welcome("data").await;
        hear(&mut link, &begun).await;
        // It would be given up at once, where others wait for it.
        tokio::time::sleep(Duration::from_millis(100)).await;
        shows.send_replace(Target { leaving: true, unsaid: true, ..one.target() });
        tokio::task::yield_now().await;
        if lives {
            shows.send_replace(one.target());
            let rest = format!("{}\r\n", "x".repeat(20_000));
            client.write_all(rest.as_bytes()).await.unwrap();
            hear(&mut link, &rest).await;
            link.write_all(b"STORED\r\n").await.unwrap();
            hear(&mut client, "STORED\r\n").await;
        } else {
            drop(link);
            let closed = "SERVER_ERROR the active proxy closed the connection: nobody knows whether this was done\r\n";
            hear(&mut client, closed).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_keeps_no_planned_change_waiting() {
    let one = Active::new(1).await;
    let (mut client, shows, _shared) = client(one.target(), LONG).await;
    client.write_all(b"get a\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "get a\r\n").await;
    let (mut reads, mut writes) = link.into_split();
    // More than all sockets hold.
    let writes = tokio::spawn(async move {
        let value = vec![b'x'; 1 << 20];
        writes.write_all(b"VALUE a 0 1000000000\r\n").await.unwrap();
        while writes.write_all(&value).await.is_ok() {}
    });
    tokio::task::yield_now().await;
    shows.send_replace(Target { leaving: true, ..one.target() });
    assert_eq!(timeout(LONG, reads.read(&mut [0])).await.expect("it is closed").unwrap_or(0), 0, "it is closed");
    timeout(LONG, writes).await.expect("it takes no more").unwrap();
}

/// What it has asked for is answered, however long that takes.
#[tokio::test]
async fn a_client_that_reads_is_answered_before_a_planned_change() {
    let one = Active::new(1).await;
    let (mut client, shows, shared) = client(one.target(), LONG).await;
    client.write_all(b"set a 0 0 1\r\n1\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "set a 0 0 1\r\n1\r\n").await;
    shows.send_replace(Target { leaving: true, ..one.target() });
    // For longer than one that does not read.
    assert!(timeout(Duration::from_millis(250), link.read(&mut [0])).await.is_err(), "it is waited for");
    assert_eq!(shared.links.len(), 1);
    link.write_all(b"STORED\r\n").await.unwrap();
    hear(&mut client, "STORED\r\n").await;
    ends(&mut link).await;
}

/// Whoever asks for much and reads nothing takes no memory.
#[tokio::test]
async fn answers_of_this_proxy_are_held_up_to_a_bound_and_all_are_told_in_the_end() {
    let question = b"stats proxy\r\n";
    let many = HELD / question.len();
    let (_shows, target) = watch::channel(Target::default());
    let shared = Arc::new(shared(target, LONG, LONG));
    let (here, _there) = tokio::net::UnixStream::pair().unwrap();
    let mut relay = Relay::new(Stream::Unix(here), shared.clone());
    relay.input.extend_from_slice(&question.repeat(many));
    relay.pass_on();
    let answer = (shared.show)();
    assert!(relay.to_client.len() < HELD + answer.len(), "{} bytes are held", relay.to_client.len());

    // More than all sockets hold, and read when all is asked.
    let answer = vec![b'x'; 8 << 10];
    let (_shows, target) = watch::channel(Target::default());
    let mut shared = self::shared(target, LONG, LONG);
    let shown = Bytes::from(answer.clone());
    shared.show = Box::new(move || shown.clone());
    let mut client = served(&Arc::new(shared)).await;
    client.write_all(&question.repeat(many)).await.unwrap();
    client.shutdown().await.unwrap();
    let mut told = Vec::new();
    timeout(LONG, client.read_to_end(&mut told)).await.expect("all is told").unwrap();
    assert_eq!(told.len(), many * answer.len());
}

#[tokio::test]
async fn an_operator_has_the_settings_of_this_very_proxy_read_again() {
    let one = Active::new(1).await;
    let line = ["resilver", "-s", "a:1", "-b", "b:2"];
    let Ok(CommandLine::Run(plan)) = CommandLine::parse(line, &Host::this()) else { panic!("{line:?}") };
    let wrong = || Err(UsageErrors(vec!["nobody knows --timeouts".to_owned()]));
    let reload = Arc::new(Reload::new(Arc::new(wrong), *plan));
    let (_shows, target) = watch::channel(one.target());
    let (here, mut operator) = tokio::net::UnixStream::pair().unwrap();
    tokio::spawn(serve(Stream::Unix(here), Arc::new(shared(target, LONG, LONG)), Some(reload)));
    // In its order.
    operator.write_all(b"get a\r\nreload\r\nreload\r\nget b\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "get a\r\n").await;
    link.write_all(b"END\r\n").await.unwrap();
    let told = "SERVER_ERROR not reloaded: nobody knows --timeouts\r\n";
    hear(&mut operator, &format!("END\r\n{told}{told}")).await;
    hear(&mut link, "get b\r\n").await;
    // Of a client it is for nobody, as the active one says.
    let (mut client, _shows, _shared) = client(one.target(), LONG).await;
    client.write_all(b"reload\r\n").await.unwrap();
    hear(&mut one.welcome("data").await, "reload\r\n").await;
}

/// Who it is that does not answer is said, and that it was replaced only where it was.
#[tokio::test]
async fn clients_are_told_which_proxy_does_not_answer() {
    let one = Active::new(1).await;
    let (target, address) = (one.target(), one.target().active.unwrap().1);
    let (mut client_of_one, _shows, _shared) = client(target.clone(), LONG).await;
    client_of_one.write_all(b"set a 0 0 1\r\n1\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "set a 0 0 1\r\n1\r\n").await;
    drop(link);
    let closed = "SERVER_ERROR the active proxy closed the connection: nobody knows whether this was done\r\n";
    hear(&mut client_of_one, closed).await;
    // Nothing listens there.
    drop(one);
    // Of one whose control connection stands it is not said that none is active.
    let (mut client_of_one, _shows, shared) = client(target.clone(), Duration::from_millis(300)).await;
    shared.shown.reached.store(true, Ordering::Relaxed);
    client_of_one.write_all(b"get a\r\n").await.unwrap();
    let refused = format!("SERVER_ERROR the active proxy, on {address}, takes no connection for this client\r\n");
    hear(&mut client_of_one, &refused).await;
    for (target, why) in [
        (target.clone(), format!("that on {address} does not answer")),
        (Target { leaving: true, ..target.clone() }, format!("that on {address} hands over")),
        (Target { leaving: true, unsaid: true, ..target }, format!("that on {address} has ended, or is cut off")),
        (Target::default(), "the record names none".to_owned()),
    ] {
        let (mut client, _shows, _shared) = client(target, Duration::from_millis(50)).await;
        client.write_all(b"get a\r\n").await.unwrap();
        hear(&mut client, &format!("SERVER_ERROR no proxy is active: {why}\r\n")).await;
    }
}

/// Nobody has to be told: it went, was told, or asked to be closed.
#[tokio::test]
async fn clients_that_end_for_no_fault_are_counted_by_their_reason() {
    let one = Active::new(1).await;
    let (gone, _shows, shared) = client(one.target(), LONG).await;
    until(|| !shared.clients.is_empty()).await;
    drop(gone);
    until(|| shared.shown.ends.of(Over::Left) == 1).await;

    let (mut quits, _shows, shared) = client(one.target(), LONG).await;
    quits.write_all(b"quit\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "quit\r\n").await;
    drop(link);
    ends(&mut quits).await;
    assert_eq!(shared.shown.ends.of(Over::ByActive), 1);

    let (mut rests, _shows, shared) = client(one.target(), LONG).await;
    until(|| !shared.clients.is_empty()).await;
    shared.over.cancel();
    ends(&mut rests).await;
    assert_eq!(shared.shown.ends.of(Over::Shutdown), 1);
}

/// What it is owed is told before the end of this proxy.
#[tokio::test]
async fn a_client_that_waits_for_an_answer_is_closed_behind_it() {
    let one = Active::new(1).await;
    let (mut waits, _shows, shared) = client(one.target(), LONG).await;
    waits.write_all(b"set a 0 0 1\r\n1\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "set a 0 0 1\r\n1\r\n").await;
    shared.over.cancel();
    link.write_all(b"STORED\r\n").await.unwrap();
    hear(&mut waits, "STORED\r\n").await;
    ends(&mut waits).await;
    assert_eq!(shared.shown.ends.of(Over::Shutdown), 1);
}

/// It sends no more, and whether anything is owed to it nobody knows.
#[tokio::test]
async fn a_client_whose_answers_do_not_come_is_told_so() {
    let log = Log::listen();
    let one = Active::new(1).await;
    let (mut client, _shows, shared) = client(one.target(), Duration::from_millis(50)).await;
    client.write_all(b"mg a v q\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "mg a v q\r\n").await;
    ends(&mut link).await;
    told_why(&mut client, &shared, Over::Unanswered).await;
    let line = ["a client of this standby is closed", "127.0.0.1:", "the active proxy did not answer"];
    assert_eq!(log.count(&line), 1);
}

/// `printf 'get a' | nc -N`: nothing is waited for, and it is told.
#[tokio::test]
async fn a_client_that_sends_no_more_is_told_that_no_proxy_is_active() {
    let nobody = Target { why: "etcd is away".to_owned(), ..Target::default() };
    let (mut client, _shows, _shared) = client(nobody, LONG).await;
    client.write_all(b"get a\r\nset b 0 0 1\r\n1\r\n").await.unwrap();
    client.shutdown().await.unwrap();
    let refused = "SERVER_ERROR no proxy is active: etcd is away\r\n";
    hear(&mut client, &format!("{refused}{refused}")).await;
    ends(&mut client).await;
}

/// It would wait for an answer that nobody gives, or be told more than the active proxy says.
#[tokio::test]
async fn who_speaks_no_protocol_of_memcacheds_is_told_so_here() {
    for first in [&b"\x16\x03\x01\x02\0\x01\0"[..], b"*1\r\n$4\r\nPING\r\n", b"GET / HTTP/1.1\r\n\r\n"] {
        let one = Active::new(1).await;
        let (mut client, _shows, shared) = client(one.target(), LONG).await;
        client.write_all(first).await.unwrap();
        let Dialect::Foreign(who) = Dialect::of(first) else { panic!("{}", first.escape_ascii()) };
        hear(&mut client, who.answer()).await;
        ends(&mut client).await;
        assert_eq!(shared.shown.ends.of(Over::Foreign), 1);
    }
}

/// It answers, and closes: there is nothing to add.
#[tokio::test]
async fn a_binary_client_that_the_active_proxy_closes_for_its_fault_is_told_no_more() {
    let get = |key: u8, body: u8| [&[0x80, 0, 0, key, 0, 0, 0, 0, 0, 0, 0, body][..], &[0; 12], &[b'k'; 1]].concat();
    for faulty in [get(9, 1), [get(1, 1), b"get k\r\n".to_vec()].concat()] {
        let one = Active::new(1).await;
        let (mut client, _shows, shared) = client(one.target(), LONG).await;
        client.write_all(&faulty).await.unwrap();
        let mut link = one.welcome("data").await;
        hear(&mut link, &faulty).await;
        link.write_all(b"what it says").await.unwrap();
        drop(link);
        hear(&mut client, "what it says").await;
        ends(&mut client).await;
        assert_eq!(shared.shown.ends.of(Over::ByActive), 1);
    }
}

/// Its control connection broke, and it lives: nobody is given up for that any more.
#[tokio::test]
async fn a_proxy_that_does_not_hand_over_after_all_waits_for_its_clients() {
    let one = Active::new(1).await;
    let (shows, target) = watch::channel(Target { leaving: true, ..one.target() });
    let ((here, _client), (link, _there)) =
        (tokio::net::UnixStream::pair().unwrap(), tokio::net::UnixStream::pair().unwrap());
    let mut relay = Relay::new(Stream::Unix(here), Arc::new(shared(target, LONG, LONG)));
    relay.dialled(Generation(1), Ok(Stream::Unix(link)));
    relay.opaque = true;
    for leaving in [true, false] {
        shows.send_replace(Target { leaving, ..one.target() });
        assert!(relay.follow_target().is_ok());
        assert_eq!(relay.given_up_at().is_some(), leaving);
    }
}
