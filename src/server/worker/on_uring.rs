//! A worker whose sockets are on io_uring: instead of tasks, one loop that takes completed receives
//! and submits sends.

use std::io;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use crate::backend::NodeStream;
use crate::lease;
use crate::proxy::{Backlog, ClientId, ConnId, Core, Now, Reading, Room};
use crate::server::stream::into_blocking;
use crate::server::uring::{News, Owner, SocketId, Uring};

use super::flusher::GATHER_ENOUGH;
use super::node_ios::{NodeIo, NodeSocket};
use super::{ClientIo, Listener, Shell, Worker, WorkerSetup};

/// News taken before others have their turn.
const NEWS_PER_TURN: usize = 256;

/// How long what clients had sent by the shutdown is listened to at most: some send without end.
const LAST_CALL: Duration = Duration::from_millis(500);

pub(super) struct UringClient {
    /// Its place there.
    pub(super) slot: SocketId,
    /// Its input has to wait.
    pub(super) held: bool,
    /// What came nevertheless, until io_uring stopped receiving.
    pub(super) backlog: Option<Box<Backlog>>,
    /// Nothing comes behind the backlog.
    pub(super) ended: bool,
}

impl UringClient {
    pub(super) fn new(slot: SocketId) -> UringClient {
        UringClient { slot, held: false, backlog: None, ended: false }
    }
}

/// Runs a worker whose sockets are on `uring` on the current thread, until `shutdown`, then until
/// its clients are answered or `--shutdown-grace` is over. In the context of a runtime that another
/// thread drives: what tokio has for it (timers, listeners, messages) comes by the alarm.
pub(crate) fn run_on_uring(
    core: Core,
    setup: WorkerSetup,
    (uring, listeners): (Uring, Vec<Listener>),
    (nodes, lanes): (usize, usize),
    shutdown: CancellationToken,
) {
    let alarm = uring.alarm().clone();
    let waker = Waker::from(alarm.clone());
    let mut cx = Context::from_waker(&waker);
    let tasks = LocalSet::new();
    let _entered = tasks.enter();
    let (worker, beginning) = Worker::new(core, setup, Some(uring), (nodes, lanes));
    let mut serving = pin!(tasks.run_until(worker.clone().serve(beginning, listeners, shutdown)));
    loop {
        if alarm.take() && serving.as_mut().poll(&mut cx).is_ready() {
            return;
        }
        worker.uring_cycle(&mut cx);
    }
}

impl Worker {
    /// Takes what has come, hands over what there is to be sent, and waits where nothing is left to
    /// be done.
    fn uring_cycle(&self, cx: &mut Context<'_>) {
        // The clock is read before the core gets any event, see `uring_news`.
        let shell = &mut *self.shell.borrow_mut();
        shell.tell_uring_of_memory();
        shell.take_news();
        // With many answers to write, the nodes would idle meanwhile: then theirs comes first.
        if shell.core.dirty_clients() < GATHER_ENOUGH {
            // Clients that were just answered ask again, so a node gets their requests in one piece
            // and not in many.
            self.flush_clients(shell, cx);
            shell.turn_uring();
            shell.take_news();
        }
        self.flush_all(shell, cx);
        shell.receive_from_nodes();
        // Before the sleep: else nothing would become late in it.
        shell.wake();
        // Clients with more input go on after all others that have sent something.
        let is_left = shell.has_output();
        let Some(uring) = &mut shell.uring else { return };
        shell.stats.gave(uring.take_sent());
        lease::pass();
        if is_left {
            uring.turn();
        } else {
            uring.sleep();
        }
    }
}

impl Shell {
    /// Once a cycle, so that a client which has to wait for memory brings little more.
    fn tell_uring_of_memory(&mut self) {
        if let Some(uring) = &mut self.uring {
            uring.takes_bursts(self.core.takes_bursts());
        }
    }

    pub(super) fn turn_uring(&mut self) {
        // It may take long where much is sent.
        self.reads_on_clock = 0;
        if let Some(uring) = &mut self.uring {
            lease::pass();
            uring.turn();
        }
    }

    /// Puts a node's connection where its bytes are seen to.
    pub(super) fn take_on(&mut self, at: ConnId, stream: NodeStream) -> io::Result<NodeSocket> {
        let Some(uring) = &mut self.uring else { return Ok(NodeSocket::Stream(stream)) };
        match stream.into_tcp() {
            Ok(stream) => {
                let slot = uring.add(into_blocking(stream)?, Owner::Node(at));
                self.to_receive.push((at, false));
                Ok(NodeSocket::Uring(slot))
            }
            Err(stream) => Ok(NodeSocket::Stream(stream)),
        }
    }

    /// Goes on with the nodes from which something has come.
    fn receive_from_nodes(&mut self) {
        let Shell { core, nodes, to_receive, uring: Some(uring), .. } = self else { return };
        for (at, more) in to_receive.drain(..) {
            if let Some(NodeIo { stream: NodeSocket::Uring(slot), .. }) = nodes[at] {
                uring.receive_into(slot, std::mem::take(core.conn_room(at)), more);
            }
        }
    }

    /// Takes what has come.
    fn take_news(&mut self) {
        for _ in 0..NEWS_PER_TURN {
            let Some(news) = self.uring.as_mut().and_then(Uring::next) else { return };
            self.turn_of_many();
            self.uring_news(news);
        }
    }

    fn uring_news(&mut self, news: News) {
        match news {
            News::Input(owner, input) => {
                let now = self.now();
                let Shell { core, clients, block, uring: Some(uring), .. } = self else { return };
                let bytes = uring.input(&input);
                self.reads = self.reads.wrapping_add(1);
                self.stats.took(bytes.len());
                let Some(Some(ClientIo::Uring(io))) = clients.get_mut(owner.index()) else { return uring.give(input) };
                let over = io.ended || core.reading(owner) == Reading::Over;
                if !over && !io.held && take((core, now), block, owner, bytes) {
                    io.held = core.is_stalled(owner);
                } else {
                    if !over {
                        io.backlog.get_or_insert_with(|| Box::new(core.backlog())).put(bytes);
                    }
                    uring.stop_receiving(io.slot);
                }
                uring.give(input);
            }
            News::Filled(at, room) => {
                let full = room.len() == room.capacity();
                self.core.return_room(at, room);
                self.node_received(at);
                self.to_receive.push((at, full));
            }
            News::NodeEnd { at, by_node } => {
                if let Some(NodeIo { stream: NodeSocket::Uring(slot), .. }) = self.nodes[at].take()
                    && let Some(uring) = &mut self.uring
                {
                    uring.close(slot);
                }
                self.core.handle_conn_ended(self.clock.now(), at, by_node);
            }
            News::Sent(Owner::Node(at)) => self.core.handle_conn_writable(at),
            News::End(owner) => {
                let Some(Some(ClientIo::Uring(io))) = self.clients.get_mut(owner.index()) else { return };
                if !std::mem::replace(&mut io.ended, true) && !io.held {
                    // What it asked for and can still read (a half-closed connection) is answered;
                    // then the flusher closes it.
                    self.core.handle_finished(self.clock.now(), owner);
                }
            }
            News::Sent(Owner::Client(owner)) => self.core.handle_client_writable(owner),
        }
    }

    /// Goes on with a client that had to wait, after the core has.
    pub(super) fn resume_on_uring(&mut self, id: ClientId) {
        let now = self.now();
        let Shell { core, clients, block, uring: Some(uring), .. } = self else { return };
        let Some(Some(ClientIo::Uring(io))) = clients.get_mut(id.index()) else { return };
        loop {
            io.held = core.is_stalled(id);
            if io.held {
                return;
            }
            let Some(piece) = io.backlog.as_mut().and_then(|backlog| backlog.piece()) else { break };
            let taken = take((core, now), block, id, piece);
            debug_assert!(taken || core.reading(id) == Reading::Over, "it was not stalled");
        }
        io.backlog = None;
        if io.ended {
            core.handle_finished(now, id);
        } else {
            uring.receive(io.slot);
        }
    }

    /// Takes all that clients have sent by now, without a look at the clock (see `last_calls`).
    pub(super) fn take_all_news(&mut self) {
        // The kernel does some twenty pieces of deferred work in a turn, all of which may be sends
        // of which nothing is told.
        let (begun, patience) = (Instant::now(), 1 + self.core.client_count() / 10);
        let mut in_vain = 0;
        loop {
            self.tell_uring_of_memory();
            self.turn_uring();
            in_vain += 1;
            while let Some(news) = self.uring.as_mut().and_then(Uring::next) {
                self.uring_news(news);
                in_vain = 0;
            }
            if in_vain > patience || begun.elapsed() >= LAST_CALL {
                return;
            }
        }
    }

    /// Nothing more is taken from a client.
    pub(super) fn last_uring_call(&mut self, id: ClientId) {
        let now = self.now();
        let Shell { core, clients, uring: Some(uring), .. } = self else { return };
        let Some(Some(ClientIo::Uring(io))) = clients.get_mut(id.index()) else { return };
        uring.stop_receiving(io.slot);
        io.ended = true;
        if !io.held {
            core.handle_finished(now, id);
        }
    }
}

/// Passes on what a client sent, behind the beginning of a request if it has sent one.
/// `false`: nothing is to be read from it now.
fn take((core, now): (&mut Core, Now), block: &mut BytesMut, id: ClientId, bytes: &[u8]) -> bool {
    match core.client_room(id, block) {
        Room::Own(room) => {
            room.extend_from_slice(bytes);
            core.handle_more(now, id);
            true
        }
        Room::Block(room) => {
            room.extend_from_slice(bytes);
            core.handle_input(now, id, block.split());
            true
        }
        Room::Waits | Room::Over => false,
    }
}
