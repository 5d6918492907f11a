use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::fleet::relay::Shared;
use crate::fleet::relay::tests::{client, hear, served, until};
use crate::fleet::testing::{Active, LONG, ends, shared};
use crate::protocol::answer::TOO_MANY;

/// Who asks what is the matter just when all places are taken has to be answered.
#[tokio::test]
async fn operators_are_let_in_where_all_places_are_taken() {
    let one = Active::new(1).await;
    let (_first, _shows, shared) = client(one.target(), LONG).await;
    until(|| !shared.clients.is_empty()).await;
    let mut others = Vec::new();
    for _ in 0..16 {
        let mut operator = served(&shared).await;
        operator.write_all(b"stats proxy\r\nver").await.unwrap();
        hear(&mut operator, "STAT proxy:role standby\r\nEND\r\n").await;
        others.push(operator);
    }
    hear(&mut served(&shared).await, TOO_MANY).await;
    let operator = &mut others[0];
    operator.write_all(b"sion\r\n").await.unwrap();
    let mut link = one.welcome("data").await;
    hear(&mut link, "version\r\n").await;
    link.write_all(b"VERSION 1\r\n").await.unwrap();
    hear(operator, "VERSION 1\r\n").await;
}

/// An operator's program asks at once.
#[tokio::test]
async fn whoever_says_nothing_has_no_place_among_the_operators() {
    let one = Active::new(1).await;
    let (_first, _shows, shared) = client(one.target(), LONG).await;
    let (mut silent, mut binary) = (served(&shared).await, served(&shared).await);
    let noop = [&[0x80, 0x0a][..], &[0; 22]].concat();
    binary.write_all(&noop).await.unwrap();
    // In its own words.
    hear(&mut binary, [0x81, 0x0a, 0, 0, 0, 0, 0, 0x85]).await;
    hear(&mut silent, TOO_MANY).await;
    ends(&mut silent).await;
}

/// What it waits for is not its silence.
#[tokio::test]
async fn a_client_that_is_silent_is_closed_but_one_that_waits() {
    let one = Active::new(1).await;
    for (requests, waits) in [("", false), ("get a\r\n", true), ("ms k 1 q\r\nx\r\n", false), ("get", false)] {
        let (_shows, target) = watch::channel(one.target());
        let shared = Shared { idle_timeout: Some(Duration::from_millis(50)), ..shared(target, LONG, LONG) };
        let shared = Arc::new(shared);
        let mut client = served(&shared).await;
        client.write_all(requests.as_bytes()).await.unwrap();
        let mut links = Vec::new();
        if !requests.is_empty() {
            // For the beginning of a request, too, the active proxy is dialled.
            links.push(one.welcome("data").await);
        }
        for link in links.iter_mut().filter(|_| requests.ends_with('\n')) {
            hear(link, requests).await;
        }
        if waits {
            assert!(timeout(Duration::from_millis(150), client.read_u8()).await.is_err(), "it waits");
            links[0].write_all(b"END\r\n").await.unwrap();
            hear(&mut client, "END\r\n").await;
        }
        ends(&mut client).await;
        assert_eq!(shared.shown.ends.of(Over::Idle), 1, "{requests}");
    }
}
