use tokio::io::AsyncWriteExt;

use super::*;
use crate::fleet::relay::tests::{client, hear};
use crate::fleet::relay::{OWED_MAX, Target};
use crate::fleet::testing::{Active, LONG, ends, shared};

/// A packet of the binary protocol.
fn packet(magic: u8, opcode: u8, opaque: [u8; 4]) -> [u8; 24] {
    let mut packet = [0; 24];
    (packet[0], packet[1]) = (magic, opcode);
    packet[12..16].copy_from_slice(&opaque);
    packet
}

/// A quiet request, the question behind it, what is answered to both, and what of it is the
/// client's.
type Asked = (Vec<u8>, Vec<u8>, Vec<u8>, Vec<u8>);

fn quiet() -> Vec<Asked> {
    let text = [
        ("ms k 1 q\r\nx\r\n", "MN\r\n", ""),
        ("ms k 1 q\r\nx\r\n", "NS\r\nMN\r\n", "NS\r\n"),
        ("md k q\r\n", "MN\r\n", ""),
        ("ma k q\r\n", "NF\r\nMN\r\n", "NF\r\n"),
        ("mg a v q\r\n", "VA 4\r\nMN\r\n\r\nMN\r\n", "VA 4\r\nMN\r\n\r\n"),
        ("mg a v q\r\nmg b v\r\n", "VA 1\r\nM\r\nMN\r\n", "VA 1\r\nM\r\n"),
        ("mg a v q\r\nmn\r\nmg a v q\r\n", "MN\r\nMN\r\n", "MN\r\n"),
        ("set n 0 0 1 noreply\r\nx\r\nms k 1 q\r\nx\r\n", "MN\r\n", ""),
        ("ms k 1 q\r\nx\r\nset n 0 0 1 noreply\r\nx\r\n", "MN\r\n", ""),
        ("set n 0 0 1 noreply\r\nx\r\n", "SERVER_ERROR late\r\nMN\r\n", "SERVER_ERROR late\r\n"),
    ];
    let bytes = |text: &str| text.as_bytes().to_vec();
    let mut all: Vec<Asked> =
        text.map(|(request, said, told)| (bytes(request), bytes("mn\r\n"), bytes(said), bytes(told))).into();
    let (deleteq, get) = (packet(0x80, 0x14, *b"1234"), packet(0x81, 0x14, *b"1234"));
    let own = packet(0x81, 0x0a, OPAQUE);
    all.push((deleteq.to_vec(), BINARY_NOOP.to_vec(), own.to_vec(), Vec::new()));
    all.push((deleteq.to_vec(), BINARY_NOOP.to_vec(), [get, own].concat(), get.to_vec()));
    all
}

/// Else its client takes it for the answer to what it asks next, and so on.
#[tokio::test]
async fn the_answer_to_this_proxys_own_question_is_never_its_clients() {
    for (request, question, said, told) in quiet() {
        let (one, two) = (Active::new(1).await, Active::new(2).await);
        let (mut client, shows, _shared) = client(one.target(), LONG).await;
        client.write_all(&request).await.unwrap();
        let mut link = one.welcome("data").await;
        hear(&mut link, &request).await;
        shows.send_replace(Target { leaving: true, ..one.target() });
        hear(&mut link, &question).await;
        link.write_all(&said).await.unwrap();
        // It is settled: the planned change waits for this client no longer, and it stays.
        ends(&mut link).await;
        shows.send_replace(two.target());
        client.write_all(&request).await.unwrap();
        let mut next = two.welcome("data").await;
        hear(&mut next, &request).await;
        next.write_all(b"NF\r\n").await.unwrap();
        hear(&mut client, [&told[..], b"NF\r\n"].concat()).await;
    }
}

fn relay() -> Relay {
    let (_shows, target) = tokio::sync::watch::channel(Target::default());
    let (client, _) = tokio::net::UnixStream::pair().unwrap();
    Relay::new(crate::server::Stream::Unix(client), std::sync::Arc::new(shared(target, LONG, LONG)))
}

#[tokio::test]
async fn however_it_is_cut() {
    for (request, question, said, told) in quiet() {
        for size in 1..=said.len() {
            let (mut relay, (link, _there)) = (relay(), tokio::net::UnixStream::pair().unwrap());
            relay.dialled(crate::ids::Generation(1), Ok(crate::server::Stream::Unix(link)));
            relay.input.extend_from_slice(&request);
            relay.pass_on();
            relay.ask_behind();
            relay.ask_behind();
            assert_eq!(relay.to_link[..], [&request[..], &question[..]].concat(), "it is asked once");
            said.chunks(size).for_each(|piece| relay.answered(piece));
            let what = format!("{} in pieces of {size}", said.escape_ascii());
            assert_eq!(relay.to_client[..].escape_ascii().to_string(), told.escape_ascii().to_string(), "{what}");
            assert!(relay.owed.is_empty() && !relay.asks && !relay.opaque && !relay.is_amid_answer(), "{what}");
        }
    }
}

/// What it was owed for one quiet command is known by what came behind that: also a change that
/// nobody has planned does it no harm.
#[tokio::test]
async fn an_answer_that_a_quiet_command_never_gets_settles_it() {
    for (requests, said) in [
        ("ms k 1 q\r\nx\r\nget a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n"),
        ("ms k 1 q\r\nx\r\nmg a v\r\n", "VA 1\r\n1\r\n"),
        ("md k q\r\nms a 1\r\n1\r\n", "HD\r\n"),
        ("mg none v q\r\nmg none v\r\n", "EN\r\n"),
        ("mg none v q\r\nincr a 1\r\n", "2\r\n"),
        ("md k q\r\nset n 0 0 1 noreply\r\nx\r\nmd k q\r\ntouch a 1\r\n", "TOUCHED\r\n"),
    ] {
        let (one, two) = (Active::new(1).await, Active::new(2).await);
        let (mut client, shows, _shared) = client(one.target(), LONG).await;
        client.write_all(requests.as_bytes()).await.unwrap();
        let mut link = one.welcome("data").await;
        hear(&mut link, requests).await;
        link.write_all(said.as_bytes()).await.unwrap();
        hear(&mut client, said).await;
        shows.send_replace(two.target());
        ends(&mut link).await;
        client.write_all(b"get b\r\n").await.unwrap();
        hear(&mut two.welcome("data").await, "get b\r\n").await;
    }
}

/// Such words are told of quiet commands, too: whose they are is not known.
#[tokio::test]
async fn an_answer_that_a_quiet_command_may_get_settles_nothing() {
    for (requests, said) in [
        ("mg a v q\r\nmg a v\r\n", "VA 1\r\n1\r\n"),
        ("mg a q\r\nms a 1\r\n1\r\n", "HD\r\n"),
        ("ms k 1 q\r\nx\r\nget a\r\n", "SERVER_ERROR late\r\n"),
        ("md k q\r\nms a 1 MA\r\n1\r\n", "NS\r\n"),
    ] {
        let (mut relay, (link, _there)) = (relay(), tokio::net::UnixStream::pair().unwrap());
        relay.dialled(crate::ids::Generation(1), Ok(crate::server::Stream::Unix(link)));
        relay.input.extend_from_slice(requests.as_bytes());
        relay.pass_on();
        relay.answered(said.as_bytes());
        assert_eq!((relay.owed.len(), relay.opaque), (2, false), "{requests}");
    }
}

/// It would wait for ever, and all that its client asks behind it.
#[tokio::test]
async fn what_this_proxy_tells_itself_is_told_behind_a_quiet_command() {
    let one = Active::new(1).await;
    let (mut client, _shows, _shared) = client(one.target(), LONG).await;
    client.write_all(b"ms k 1 q\r\nx\r\nstats proxy\r\nget a\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "ms k 1 q\r\nx\r\nmn\r\n").await;
    link.write_all(b"MN\r\n").await.unwrap();
    hear(&mut client, "STAT proxy:role standby\r\nEND\r\n").await;
    hear(&mut link, "get a\r\n").await;
}

/// Else nobody knows of such a client any more, for ever.
#[tokio::test]
async fn many_quiet_commands_are_settled_by_a_question_among_them() {
    let one = Active::new(1).await;
    let (mut client, _shows, _shared) = client(one.target(), LONG).await;
    client.write_all(&b"md k q\r\n".repeat(OWED_MAX + 1)).await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, b"md k q\r\n".repeat(OWED_MAX)).await;
    hear(&mut link, "mn\r\n").await;
    link.write_all(b"MN\r\n").await.unwrap();
    hear(&mut link, "md k q\r\n").await;
}
