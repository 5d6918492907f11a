//! A ring over pairs of unix sockets.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};

use super::*;

/// A ring, its event (in the runtime that it belongs to), and what it has told by owner.
struct World {
    ring: Ring,
    runtime: Runtime,
    event: AsyncFd<OwnedFd>,
    heard: HashMap<u32, Vec<u8>>,
    ended: Vec<u32>,
    sent: Vec<u32>,
}

impl World {
    /// `None` (and a word about it) where the system has no io_uring.
    fn start() -> Option<World> {
        let ring = match Ring::new() {
            Ok(ring) => ring,
            Err(error) => {
                assert!(
                    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EINVAL)),
                    "not for want of io_uring: {error}"
                );
                eprintln!("NOT TESTED: no io_uring here: {error}");
                return None;
            }
        };
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (ring, event) = runtime.block_on(async { ring.start() }).expect("started on this thread");
        Some(World { ring, runtime, event, heard: HashMap::new(), ended: Vec::new(), sent: Vec::new() })
    }

    /// A client and its slot.
    fn connect(&mut self, owner: u32) -> (UnixStream, usize) {
        let (far, near) = UnixStream::pair().expect("a pair");
        far.set_nonblocking(true).expect("set");
        let slot = self.ring.add(near.into(), owner);
        (far, slot)
    }

    /// Takes all there is now.
    fn take(&mut self) {
        loop {
            self.ring.turn();
            while let Some(news) = self.ring.next() {
                match news {
                    News::Input(owner, input) => {
                        self.heard.entry(owner).or_default().extend_from_slice(self.ring.input(&input));
                        self.ring.give(input);
                    }
                    News::End(owner) => self.ended.push(owner),
                    News::Sent(owner) => self.sent.push(owner),
                }
            }
            if !self.ring.has_more() {
                return;
            }
        }
    }

    /// Sleeps as a worker does. Returns whether it was woken (within a minute).
    fn sleep(&mut self) -> bool {
        if !self.ring.sleep() {
            return true;
        }
        let woken = self.runtime.block_on(async {
            match tokio::time::timeout(std::time::Duration::from_secs(60), self.event.readable()).await {
                Ok(ready) => {
                    ready.expect("ready").clear_ready();
                    true
                }
                Err(_) => false,
            }
        });
        self.ring.awake();
        woken
    }

    /// Slots in use, of clients that are gone too.
    fn slots(&self) -> usize {
        self.ring.slots.len()
    }
}

/// Reads what is there now.
fn read_now(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut block = vec![0; 1 << 16];
    while let Ok(n @ 1..) = stream.read(&mut block) {
        all.extend_from_slice(&block[..n]);
    }
    all
}

#[test]
fn more_clients_than_buffers_are_all_heard_again_and_again() {
    let Some(mut world) = World::start() else { return };
    let mut clients: Vec<_> = (0..3 * u32::from(BUFFERS)).map(|owner| world.connect(owner)).collect();
    world.take();
    for round in 0..3 {
        for (owner, (client, _)) in clients.iter_mut().enumerate() {
            client.write_all(format!("{owner} in round {round};").as_bytes()).expect("written");
        }
        world.take();
        for owner in 0..clients.len() {
            let heard = world.heard.remove(&(owner as u32)).expect("heard");
            assert_eq!(heard, format!("{owner} in round {round};").as_bytes());
        }
    }
    drop(clients);
    world.take();
    world.ended.sort_unstable();
    assert_eq!(world.ended, (0..3 * u32::from(BUFFERS)).collect::<Vec<_>>(), "everyone's end is heard of once");
}

#[test]
fn a_sleeping_worker_is_woken_by_every_client() {
    let Some(mut world) = World::start() else { return };
    let mut clients: Vec<_> = (0..50).map(|owner| world.connect(owner)).collect();
    world.take();
    for round in 0..200 {
        let (client, _) = &mut clients[round % 50];
        let mut client = client.try_clone().expect("cloned");
        let writer = std::thread::spawn(move || client.write_all(b"x").expect("written"));
        while world.heard.is_empty() {
            assert!(world.sleep(), "round {round}: nothing woke it");
            world.take();
        }
        writer.join().expect("joined");
        assert_eq!(world.heard.remove(&(round as u32 % 50)), Some(b"x".to_vec()));
    }
}

#[test]
fn a_large_answer_of_many_pieces_arrives_whole_and_in_order_however_slowly_it_is_read() {
    let Some(mut world) = World::start() else { return };
    let (mut client, slot) = world.connect(7);
    let mut expected = Vec::new();
    let mut out = OutQueue::default();
    for i in 0..3 * MAX_SLICES {
        let value = vec![i as u8; 10_000];
        out.put(b"VALUE ");
        out.put_shared(Bytes::from(value.clone()));
        expected.extend_from_slice(b"VALUE ");
        expected.extend_from_slice(&value);
    }
    assert!(world.ring.send(slot, &mut out), "nothing is under way");
    assert!(out.is_empty());
    out.put(b"END\r\n");
    assert!(!world.ring.send(slot, &mut out), "one at a time");
    assert_eq!(out.len(), 5, "what is not taken stays");
    let mut got = Vec::new();
    while got.len() < expected.len() {
        world.take();
        got.extend(read_now(&mut client));
    }
    world.take();
    assert!(got == expected);
    assert_eq!((world.ring.take_sent(), &world.sent[..]), (expected.len(), &[7][..]), "told once, for it was asked");
    assert!(world.ring.send(slot, &mut out));
    world.take();
    assert_eq!(read_now(&mut client), b"END\r\n");
    assert_eq!(world.sent, [7], "nobody waited");
}

#[test]
fn a_hushed_client_is_not_read_until_it_goes_on_and_loses_nothing() {
    let Some(mut world) = World::start() else { return };
    let (mut client, slot) = world.connect(1);
    client.write_all(b"one ").expect("written");
    world.take();
    world.ring.hush(slot);
    world.take();
    client.write_all(b"two ").expect("written");
    world.take();
    assert_eq!(world.heard[&1], b"one ");
    // Both in one turn, in either order.
    world.ring.receive(slot);
    world.ring.hush(slot);
    world.ring.receive(slot);
    world.take();
    client.write_all(b"three ").expect("written");
    world.ring.hush(slot);
    world.ring.receive(slot);
    world.take();
    client.write_all(b"four").expect("written");
    world.take();
    assert_eq!(String::from_utf8_lossy(&world.heard[&1]), "one two three four");
}

#[test]
fn a_client_that_is_gone_leaves_nothing_behind_and_is_told_of_no_more() {
    let Some(mut world) = World::start() else { return };
    let (mut client, slot) = world.connect(1);
    world.take();
    client.write_all(b"too late").expect("written");
    world.ring.close(slot);
    assert_eq!(world.slots(), 1, "its receive is under way");
    world.take();
    assert_eq!((world.slots(), world.heard.len(), world.ended.len()), (0, 0, 0));
    assert_eq!(client.read(&mut [0; 1]).map_err(|e| e.kind()).unwrap_or(0), 0, "closed");
    // With an answer under way that nobody reads.
    let (_client, slot) = world.connect(2);
    let mut out = OutQueue::default();
    out.put(&vec![b'x'; 4 << 20]);
    assert!(world.ring.send(slot, &mut out));
    world.take();
    world.ring.close(slot);
    world.take();
    assert_eq!((world.slots(), world.sent.len()), (0, 0));
}

#[test]
fn a_send_that_fails_says_so() {
    let Some(mut world) = World::start() else { return };
    let (client, slot) = world.connect(1);
    world.take();
    drop(client);
    let mut out = OutQueue::default();
    out.put(b"anybody?");
    assert!(world.ring.send(slot, &mut out));
    world.take();
    assert!(world.ring.is_broken(slot));
    assert_eq!((&world.ended[..], &world.sent[..]), (&[1][..], &[1][..]));
}

#[test]
fn a_ring_that_is_given_up_waits_for_what_is_under_way() {
    let Some(mut world) = World::start() else { return };
    let mut clients: Vec<_> = (0..100).map(|owner| world.connect(owner)).collect();
    world.take();
    for (_, slot) in &clients {
        let mut out = OutQueue::default();
        out.put(&vec![b'x'; 1 << 20]);
        assert!(world.ring.send(*slot, &mut out));
    }
    world.ring.turn();
    drop(world);
    for (client, _) in &mut clients {
        let got = read_now(client);
        assert!(got.iter().all(|&b| b == b'x'));
        assert_eq!(client.read(&mut [0; 1]).ok(), Some(0), "closed");
    }
}

#[test]
fn slow_readers_of_large_answers_keep_nobody_from_being_heard() {
    let Some(mut world) = World::start() else { return };
    let mut readers: Vec<_> = (0..100).map(|owner| world.connect(owner)).collect();
    let (mut other, _) = world.connect(100);
    for (_, slot) in &readers {
        let mut out = OutQueue::default();
        out.put(&vec![b'x'; 8 << 20]);
        assert!(world.ring.send(*slot, &mut out));
    }
    world.take();
    for round in 0..5 {
        // All their sends go on by a socket buffer, and none is done.
        for (reader, _) in &mut readers {
            assert!(!read_now(reader).is_empty());
        }
        other.write_all(b"x").expect("written");
        while !world.heard.contains_key(&100) {
            assert!(world.sleep(), "round {round}: nothing woke it");
            world.take();
        }
        world.heard.clear();
    }
}
