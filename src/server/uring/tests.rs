//! An io_uring instance over pairs of unix sockets.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use std::sync::mpsc;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;

use super::completions::is_end_by_node;
use super::*;
use crate::backend::gives_up;
use crate::ids::NodeId;
use crate::protocol::out::MAX_SLICES;
use crate::proxy::Lane;

const CONN: ConnId = ConnId { node: NodeId(3), lane: Lane(1) };

impl Uring {
    /// An io_uring instance, or a word that the system has none.
    pub(in crate::server) fn for_test() -> Option<Uring> {
        match Uring::new() {
            Ok(uring) => Some(uring),
            Err(error) => {
                assert!(
                    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EINVAL)),
                    "not for want of io_uring: {error}"
                );
                eprintln!("NOT TESTED: no io_uring here: {error}");
                None
            }
        }
    }

    /// As many queues as a burst leaves.
    pub(in crate::server) fn stretch(&mut self) {
        self.spare_queues.extend((0..SPARE).map(|_| OutQueue::default()));
    }
}

/// An io_uring instance, and what it has told.
struct World {
    uring: Uring,
    /// Of clients.
    heard: HashMap<u32, Vec<u8>>,
    /// Of the node, as long as nothing is received from it.
    room: Option<BytesMut>,
    ended: Vec<Owner>,
    sent: Vec<Owner>,
    /// Our own kernel has ended the node's connection, as it was to do.
    given_up: Option<bool>,
}

impl World {
    /// `None` where the system has no io_uring.
    fn start() -> Option<World> {
        let uring = Uring::for_test()?.start().expect("started on this thread");
        Some(World { uring, heard: HashMap::new(), room: None, ended: Vec::new(), sent: Vec::new(), given_up: None })
    }

    /// A client and its slot.
    fn connect(&mut self, owner: u32) -> (UnixStream, SocketId) {
        let (far, slot) = self.add(Owner::Client(ClientId(owner)));
        self.uring.receive(slot);
        (far, slot)
    }

    /// The node and its slot.
    fn dial(&mut self) -> (UnixStream, SocketId) {
        self.add(Owner::Node(CONN))
    }

    fn add(&mut self, owner: Owner) -> (UnixStream, SocketId) {
        let (far, near) = UnixStream::pair().expect("a pair");
        far.set_nonblocking(true).expect("set");
        (far, self.uring.add(near.into(), owner))
    }

    /// Takes all there is now.
    fn take(&mut self) {
        let mut in_vain = 0;
        // A turn completes about twenty operations, and none of them need be news.
        while in_vain < 2 + self.slots() / 10 {
            in_vain = if self.take_turn() { 0 } else { in_vain + 1 };
        }
    }

    /// Takes what one turn brings. Returns whether that is anything.
    fn take_turn(&mut self) -> bool {
        self.uring.turn();
        self.take_news()
    }

    fn take_news(&mut self) -> bool {
        let mut any = false;
        while let Some(news) = self.uring.next() {
            any = true;
            match news {
                News::Input(owner, input) => {
                    self.heard.entry(owner.0).or_default().extend_from_slice(self.uring.input(&input));
                    self.uring.give(input);
                }
                News::Filled(at, room) => {
                    assert_eq!(at, CONN);
                    assert!(self.room.replace(room).is_none(), "asked once");
                }
                News::End(client) => self.ended.push(Owner::Client(client)),
                News::NodeEnd { at, by_node } => {
                    match &mut self.given_up {
                        Some(given_up) => *given_up = !by_node,
                        None => assert!(by_node, "nothing here comes from our own kernel"),
                    }
                    self.ended.push(Owner::Node(at));
                }
                News::Sent(owner) => self.sent.push(owner),
            }
        }
        any
    }

    /// Sleeps as a worker does. A minute is too long.
    fn sleep(&mut self) {
        let (woken, in_time) = mpsc::channel::<()>();
        let watch = std::thread::spawn(move || {
            if let Err(mpsc::RecvTimeoutError::Timeout) = in_time.recv_timeout(Duration::from_secs(60)) {
                // Whatever would wake it may be what is broken.
                eprintln!("nothing woke the uring");
                std::process::abort();
            }
        });
        self.uring.sleep();
        drop(woken);
        watch.join().expect("joined");
    }

    /// Slots in use, of clients that are gone too.
    fn slots(&self) -> usize {
        self.uring.slots.len()
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
    world.ended.sort_unstable_by_key(|owner| if let Owner::Client(client) = owner { client.0 } else { u32::MAX });
    let everyone: Vec<_> = (0..3 * u32::from(BUFFERS)).map(|owner| Owner::Client(ClientId(owner))).collect();
    assert_eq!(world.ended, everyone, "everyone's end is heard of once");
}

/// 400 clients had brought half a megabyte each by the time that they were stopped.
#[test]
fn where_no_bursts_are_taken_a_turn_brings_little_and_everybody_is_heard_to_the_end() {
    const SENT: usize = 100_000;
    let Some(mut world) = World::start() else { return };
    let mut clients: Vec<_> = (0..2 * u32::from(BUFFERS)).map(|owner| world.connect(owner)).collect();
    world.take();
    world.uring.takes_bursts(false);
    for round in 1..=2 {
        for (client, _) in &mut clients {
            client.write_all(&[b'x'; SENT]).expect("written");
        }
        // What the kernel has in hand already is used up in the first round.
        let mut heard = world.heard.values().map(Vec::len).sum::<usize>();
        for turn in 0.. {
            world.take_turn();
            let now = world.heard.values().map(Vec::len).sum();
            assert!(round == 1 || now - heard <= usize::from(FEW_BUFFERS) * 16 * 1024, "turn {turn}: {}", now - heard);
            heard = now;
            if heard == round * clients.len() * SENT {
                break;
            }
            assert!(turn < 100_000, "heard no more than {heard} bytes");
        }
    }
    assert!(world.heard.values().all(|heard| heard.len() == 2 * SENT));
    world.uring.takes_bursts(true);
    for (client, _) in &mut clients {
        client.write_all(b"y").expect("written");
    }
    world.take();
    assert!(world.heard.values().all(|heard| heard.len() == 2 * SENT + 1 && heard.ends_with(b"y")));
}

/// Those who go on first have sent nothing, and would be slept on, with everybody behind them.
#[test]
fn nobody_who_waits_for_buffers_is_slept_on() {
    let Some(mut world) = World::start() else { return };
    world.uring.takes_bursts(false);
    let (mut busy, _) = world.connect(0);
    // All that the kernel has.
    let mut held = Vec::new();
    while held.len() < usize::from(BUFFERS) {
        busy.write_all(b"x").expect("written");
        world.uring.turn();
        while let Some(news) = world.uring.next() {
            let News::Input(ClientId(0), input) = news else { panic!("{news:?}") };
            held.push(input);
        }
    }
    let mut others: Vec<_> = (1..=3 * u32::from(FEW_BUFFERS)).map(|owner| world.connect(owner)).collect();
    world.take();
    assert_eq!(world.uring.unbuffered.len(), others.len(), "they found no buffer");
    held.into_iter().for_each(|input| world.uring.give(input));
    let (last, _) = others.last_mut().expect("many");
    last.write_all(b"y").expect("written");
    assert!(world.uring.alarm().take(), "nothing else was looked to yet");
    while world.heard.is_empty() {
        world.sleep();
        world.take_news();
    }
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
            world.sleep();
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
    assert!(world.uring.send(slot, &mut out), "nothing is under way");
    assert!(out.is_empty());
    out.put(b"END\r\n");
    assert!(!world.uring.send(slot, &mut out), "one at a time");
    assert_eq!(out.len(), 5, "what is not taken stays");
    let mut got = Vec::new();
    while got.len() < expected.len() {
        world.take();
        got.extend(read_now(&mut client));
    }
    world.take();
    assert!(got == expected);
    assert_eq!(
        (world.uring.take_sent(), &world.sent[..]),
        (expected.len(), &[Owner::Client(ClientId(7))][..]),
        "told once, for it was asked"
    );
    assert!(world.uring.send(slot, &mut out));
    world.take();
    assert_eq!(read_now(&mut client), b"END\r\n");
    assert_eq!(world.sent, [Owner::Client(ClientId(7))], "nobody waited");
}

#[test]
fn a_client_whose_receiving_stopped_goes_on_and_loses_nothing() {
    let Some(mut world) = World::start() else { return };
    let (mut client, slot) = world.connect(1);
    client.write_all(b"one ").expect("written");
    world.take();
    world.uring.stop_receiving(slot);
    world.take();
    client.write_all(b"two ").expect("written");
    world.take();
    assert_eq!(world.heard[&1], b"one ");
    // Both in one turn, in either order.
    world.uring.receive(slot);
    world.uring.stop_receiving(slot);
    world.uring.receive(slot);
    world.take();
    client.write_all(b"three ").expect("written");
    world.uring.stop_receiving(slot);
    world.uring.receive(slot);
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
    world.uring.close(slot);
    assert_eq!(world.slots(), 1, "its receive is under way");
    world.take();
    assert_eq!((world.slots(), world.heard.len(), world.ended.len()), (0, 0, 0));
    assert_eq!(client.read(&mut [0; 1]).map_err(|e| e.kind()).unwrap_or(0), 0, "closed");
    // With an answer under way that nobody reads.
    let (_client, slot) = world.connect(2);
    let mut out = OutQueue::default();
    out.put(&vec![b'x'; 4 << 20]);
    assert!(world.uring.send(slot, &mut out));
    world.take();
    world.uring.close(slot);
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
    assert!(world.uring.send(slot, &mut out));
    world.take();
    assert!(world.uring.is_broken(slot));
    assert_eq!(
        (&world.ended[..], &world.sent[..]),
        (&[Owner::Client(ClientId(1))][..], &[Owner::Client(ClientId(1))][..])
    );
}

#[test]
fn a_uring_that_is_given_up_waits_for_what_is_under_way() {
    let Some(mut world) = World::start() else { return };
    let mut clients: Vec<_> = (0..100).map(|owner| world.connect(owner)).collect();
    world.take();
    for (_, slot) in &clients {
        let mut out = OutQueue::default();
        out.put(&vec![b'x'; 1 << 20]);
        assert!(world.uring.send(*slot, &mut out));
    }
    world.uring.turn();
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
        assert!(world.uring.send(*slot, &mut out));
    }
    world.take();
    for _ in 0..5 {
        // All their sends go on by a socket buffer, and none is done.
        for (reader, _) in &mut readers {
            assert!(!read_now(reader).is_empty());
        }
        other.write_all(b"x").expect("written");
        while !world.heard.contains_key(&100) {
            world.sleep();
            world.take();
        }
        world.heard.clear();
    }
}

#[test]
fn an_alarm_from_any_thread_ends_every_sleep_and_is_never_missed() {
    let Some(mut world) = World::start() else { return };
    let alarm = world.uring.alarm().clone();
    assert!(alarm.take(), "it urings at first, for nothing was looked to yet");
    let (asleep, about_to) = mpsc::channel();
    let waker = Waker::from(alarm.clone());
    let ringer = std::thread::spawn(move || {
        while about_to.recv().is_ok() {
            // Just before the sleep, in it, or just as it begins.
            waker.wake_by_ref();
        }
    });
    for _ in 0..2_000 {
        asleep.send(()).expect("the ringer lives");
        while !alarm.take() {
            world.sleep();
            assert!(world.uring.next().is_none(), "that is nobody's news");
        }
    }
    drop(asleep);
    ringer.join().expect("joined");
}

#[test]
fn whoever_is_awake_is_not_signalled() {
    let Some(mut world) = World::start() else { return };
    let alarm = world.uring.alarm().clone();
    let waker = Waker::from(alarm.clone());
    for _ in 0..10 {
        waker.wake_by_ref();
        assert!(alarm.take() && !alarm.take());
        waker.wake_by_ref();
        world.uring.sleep();
        assert!(alarm.take(), "it does not sleep while it urings");
    }
    let mut signals = [0; 8];
    assert_eq!(nix::unistd::read(alarm.event(), &mut signals), Err(Errno::EAGAIN), "never signalled");
}

#[test]
fn a_node_fills_the_room_that_it_is_given_behind_what_is_there() {
    let Some(mut world) = World::start() else { return };
    let (mut node, slot) = world.dial();
    node.write_all(b"VALUE").expect("written");
    world.take();
    assert!(world.room.is_none(), "nobody has asked");
    let mut expected = b"the beginning, VALUE".to_vec();
    let mut room = BytesMut::with_capacity(1 << 16);
    room.extend_from_slice(b"the beginning, ");
    let at = room.as_ptr();
    world.uring.receive_into(slot, room, true);
    world.take();
    for round in 0..200 {
        let room = world.room.take().expect("filled");
        assert_eq!((&room[..], room.as_ptr()), (&expected[..], at));
        world.uring.receive_into(slot, room, round % 2 == 0);
        world.take();
        assert!(world.room.is_none(), "nothing has come");
        let more = vec![round as u8; 7 * round + 1];
        node.write_all(&more).expect("written");
        expected.extend(more);
        expected.truncate(1 << 16);
        if expected.len() == 1 << 16 {
            break;
        }
        while world.room.is_none() {
            world.sleep();
            world.take();
        }
    }
    // What there is no room for stays where it is.
    world.take();
    let room = world.room.take().expect("filled");
    assert_eq!((room.len(), room.capacity()), (1 << 16, 1 << 16));
    assert!(room == expected);
    world.uring.receive_into(slot, BytesMut::with_capacity(1 << 16), true);
    world.take();
    assert!(world.room.take().is_some_and(|rest| !rest.is_empty() && rest.iter().all(|b| *b == rest[0])));
    let mut out = OutQueue::default();
    out.put(b"get key\r\n");
    assert!(world.uring.send(slot, &mut out));
    world.take();
    assert_eq!((read_now(&mut node).len(), world.uring.take_sent()), (9, 0), "counted is what clients get");
    drop(node);
    world.uring.receive_into(slot, BytesMut::with_capacity(100), false);
    world.take();
    assert_eq!(world.ended, [Owner::Node(CONN)]);
    world.uring.close(slot);
    assert_eq!(world.slots(), 0);
}

#[test]
fn a_node_that_is_given_up_while_it_is_received_from_keeps_its_room_until_the_kernel_is_done() {
    let Some(mut world) = World::start() else { return };
    let (mut node, slot) = world.dial();
    world.uring.receive_into(slot, BytesMut::with_capacity(1 << 16), false);
    world.take();
    node.write_all(b"too late").expect("written");
    world.uring.close(slot);
    assert_eq!(world.slots(), 1, "its receive is under way");
    world.take();
    assert_eq!((world.slots(), world.room.is_none(), world.ended.len()), (0, true, 0));
}

#[test]
fn a_node_to_which_nothing_can_be_sent_is_heard_of_by_receiving() {
    let Some(mut world) = World::start() else { return };
    let (mut node, slot) = world.dial();
    world.uring.receive_into(slot, BytesMut::with_capacity(100), false);
    world.take();
    node.shutdown(Shutdown::Read).expect("half closed");
    let mut out = OutQueue::default();
    out.put(b"get key\r\n");
    assert!(world.uring.send(slot, &mut out));
    world.take();
    assert!(world.uring.is_broken(slot));
    // It may still carry out what it was sent before, so only it can end the connection.
    assert!(world.ended.is_empty());
    node.write_all(b"STORED\r\n").expect("sent");
    world.take();
    assert_eq!(world.room.take().as_deref(), Some(&b"STORED\r\n"[..]));
    world.uring.receive_into(slot, BytesMut::with_capacity(100), false);
    node.set_nonblocking(false).expect("set");
    assert_eq!(node.read(&mut [0; 1]).ok(), Some(0), "it sees that nothing more comes");
    drop(node);
    world.take();
    assert_eq!(world.ended, [Owner::Node(CONN)]);
}

#[test]
fn a_node_to_which_a_send_fails_for_want_of_memory_sees_that_nothing_more_comes() {
    let Some(mut world) = World::start() else { return };
    let (mut node, slot) = world.dial();
    world.uring.receive_into(slot, BytesMut::with_capacity(100), false);
    world.take();
    // As if one had been under way.
    (world.uring.slots[slot.0].ops, world.uring.slots[slot.0].sending) = (2, true);
    assert!(matches!(world.uring.has_sent(slot, -libc::ENOMEM), Some(News::Sent(_))));
    assert!(world.uring.is_broken(slot));
    assert_eq!(node.read(&mut [0; 1]).ok(), Some(0), "its end");
    world.take();
    assert!(world.ended.is_empty(), "not before it ends the connection itself");
    drop(node);
    world.take();
    assert_eq!(world.ended, [Owner::Node(CONN)]);
}

#[test]
fn a_node_whose_framing_is_in_doubt_sees_the_end_and_is_heard_out() {
    let Some(mut world) = World::start() else { return };
    let (mut node, slot) = world.dial();
    world.uring.receive_into(slot, BytesMut::with_capacity(100), false);
    let mut out = OutQueue::default();
    out.put(&vec![b'x'; 4 << 20]);
    assert!(world.uring.send(slot, &mut out), "more than fits");
    world.take();
    world.uring.shut(slot);
    world.take();
    let got = read_now(&mut node);
    assert!(got.len() < 4 << 20 && got.iter().all(|&b| b == b'x'));
    assert_eq!(node.read(&mut [0; 1]).ok(), Some(0), "its end");
    assert!(world.ended.is_empty(), "not before it ends the connection itself");
    node.write_all(b"STORED\r\n").expect("sent");
    world.take();
    assert_eq!(world.room.take().as_deref(), Some(&b"STORED\r\n"[..]));
}

/// A node that reads nothing, whose kernel is full, until ours gives the connection up: by
/// `receiving`, or by a send that is under way. An error is told once, and behind it comes what
/// looks like an end.
fn is_given_up(receiving: bool) -> Option<bool> {
    let mut world = World::start()?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
    let mut stream = std::net::TcpStream::connect(listener.local_addr().expect("its address")).expect("connected");
    SockRef::from(&stream).set_tcp_user_timeout(Some(Duration::from_millis(50))).expect("set");
    stream.set_nonblocking(true).expect("set");
    while stream.write(&[b'x'; 1 << 16]).is_ok() {}
    let slot = world.uring.add(stream.into(), Owner::Node(CONN));
    world.given_up = Some(false);
    if !receiving {
        let mut out = OutQueue::default();
        out.put(&[b'x'; 1 << 16]);
        assert!(world.uring.send(slot, &mut out));
    }
    let begun = std::time::Instant::now();
    let mut asked = false;
    while world.ended.is_empty() {
        if !asked && (receiving || world.uring.is_broken(slot)) {
            world.uring.receive_into(slot, BytesMut::with_capacity(100), false);
            asked = true;
        }
        world.take();
        assert!(begun.elapsed() < Duration::from_secs(20), "it was never given up");
        std::thread::sleep(Duration::from_millis(1));
    }
    world.given_up
}

#[test]
fn a_connection_that_our_own_kernel_gave_up_was_not_ended_by_the_node() {
    for receiving in [true, false] {
        assert_ne!(is_given_up(receiving), Some(false), "found by receiving: {receiving}");
    }
}

#[test]
fn what_a_burst_has_needed_is_given_back() {
    const MANY: usize = 20_000;
    let Some(mut uring) = Uring::for_test() else { return };
    for list in 0..4 {
        match list {
            0 => uring.spare_queues.extend((0..SPARE).map(|_| OutQueue::default())),
            1 => uring.spare_messages.extend((0..SPARE).map(|_| Message::new())),
            2 => uring.unbuffered.extend((0..MANY).map(SocketId)),
            _ => uring.waiting.extend((0..MANY).map(|_| opcode::Nop::new().build())),
        }
        uring.unbuffered.clear();
        uring.waiting.clear();
        assert!(uring.is_stretched(), "list {list}");
        uring.give_back();
        assert!(!uring.is_stretched(), "list {list}");
    }
    assert_eq!((uring.spare_queues.len(), uring.spare_messages.len()), (SPARE_KEPT, SPARE_KEPT));
}

#[test]
fn an_end_is_the_nodes_only_if_its_kernel_has_told_it() {
    for (errno, expected) in [(0, true), (libc::ECONNRESET, true), (libc::EPIPE, true)] {
        assert_eq!(is_end_by_node(-errno), expected, "{errno}");
    }
    for errno in [libc::ETIMEDOUT, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ECONNABORTED, libc::ENOTCONN] {
        assert!(!is_end_by_node(-errno), "{errno}");
        assert!(gives_up(&io::Error::from_raw_os_error(errno)), "{errno}");
    }
    for errno in [libc::ENOMEM, libc::ENOBUFS, libc::ECONNRESET, libc::EPIPE] {
        assert!(!gives_up(&io::Error::from_raw_os_error(errno)), "a send that failed so: {errno}");
    }
}
