//! One client connection as the data plane sees it: requests in order, answers in the same order.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::op::Answer;
use super::out::OutQueue;

/// Requests of one client that may be unanswered at once; more stay unread in its socket.
pub(super) const MAX_PIPELINE: usize = 2048;

/// Bytes of answers that may wait for a client to read them; past it no request of the client is begun.
pub(super) const MAX_UNSENT: usize = 4 * 1024 * 1024;

/// Bytes of requests that one client may have in flight; past it no further request of the client is begun.
pub(super) const MAX_IN_FLIGHT_BYTES: usize = 4 * 1024 * 1024;

/// A request whose answer is not written yet.
#[derive(Debug)]
pub(super) struct Slot {
    /// Keys (or the one command) still unanswered.
    pending: u32,
    noreply: bool,
    bytes: u32,
    reply: Reply,
}

#[derive(Debug)]
enum Reply {
    None,
    One(Answer),
    /// The values of a get of several keys, in request order; then `END`.
    Many(Vec<Option<Bytes>>),
    /// What is said instead of any value: an error of one key's node.
    Failed(Answer),
}

/// A key of an unanswered request: commands of the same client on the same key keep their order.
#[derive(Clone, Copy, Debug)]
struct PendingKey {
    slot: u64,
    hash: u32,
    write: bool,
}

/// A client connection.
#[derive(Debug)]
pub struct Client {
    /// The occupant count of this place in the worker's table.
    pub generation: u32,
    /// A request that has not arrived whole.
    pub partial: BytesMut,
    /// How long the request in `partial` will be, once known.
    pub need: usize,
    /// Data of a refused item still to be thrown away.
    pub swallow: usize,
    /// Answers to be written.
    pub out: OutQueue,
    /// Nothing more is read from it; it is closed when `out` is empty and no slot is left.
    pub closing: bool,
    /// Nothing more will be read from it, but what was read is still to be begun.
    pub finished: bool,
    /// The last request could not be begun yet: input waits for an answer.
    pub stalled: bool,
    /// A command that is answered by the control plane is unanswered: nothing behind it begins.
    pub exclusive: bool,
    /// Already on the worker's list of clients to be written to.
    pub dirty: bool,
    /// When it last sent something, microseconds of the worker's clock.
    pub heard_us: u64,
    slots: VecDeque<Slot>,
    /// Number of the first slot.
    first: u64,
    keys: VecDeque<PendingKey>,
    writes: u32,
    bytes: usize,
}

impl Client {
    /// A client that has just connected.
    pub fn new(generation: u32, now_us: u64) -> Client {
        Client {
            generation,
            partial: BytesMut::new(),
            need: 0,
            swallow: 0,
            out: OutQueue::default(),
            closing: false,
            finished: false,
            stalled: false,
            exclusive: false,
            dirty: false,
            heard_us: now_us,
            slots: VecDeque::new(),
            first: 0,
            keys: VecDeque::new(),
            writes: 0,
            bytes: 0,
        }
    }

    /// Whether another request may begin.
    pub fn has_room(&self) -> bool {
        self.slots.len() < MAX_PIPELINE
            && self.out.len() < MAX_UNSENT
            && self.bytes < MAX_IN_FLIGHT_BYTES
            && !self.exclusive
    }

    /// Whether every request is answered.
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty()
    }

    /// Opens a slot for a request of `keys` keys (0: one command without a key); returns its number.
    pub fn open_slot(&mut self, keys: u32, multi: bool, noreply: bool, bytes: usize) -> u64 {
        let number = self.first + self.slots.len() as u64;
        let reply = if multi { Reply::Many(vec![None; keys as usize]) } else { Reply::None };
        self.slots.push_back(Slot { pending: keys.max(1), noreply, bytes: bytes as u32, reply });
        self.bytes += bytes;
        number
    }

    /// Notes that the slot's request is about a key.
    pub fn note_key(&mut self, slot: u64, hash: u32, write: bool) {
        self.keys.push_back(PendingKey { slot, hash, write });
        self.writes += u32::from(write);
    }

    /// Whether a command on a key must wait for an unanswered one of this client: a read behind its own write (nodes are reached over
    /// several connections, so it could overtake), a write behind its own read.
    pub fn conflicts(&self, hash: u32, write: bool) -> bool {
        if !write && self.writes == 0 {
            return false;
        }
        // Two writes of one key keep their order at the key's owner.
        self.keys.iter().any(|k| k.hash == hash && k.write != write)
    }

    /// Answers a request, or one key of it, and moves what can be sent to `out`. Returns whether anything was moved.
    pub fn answer(&mut self, slot: u64, part: u32, answer: Answer) -> bool {
        let Some(at) = slot.checked_sub(self.first) else { return false };
        let Some(entry) = self.slots.get_mut(at as usize) else { return false };
        match (&mut entry.reply, answer) {
            (Reply::Failed(_), _) => {}
            (Reply::Many(values), Answer::Bytes(bytes)) if bytes.starts_with(b"VALUE ") => {
                values[part as usize] = Some(bytes)
            }
            (Reply::Many(_), Answer::Static(b"END\r\n")) => {}
            (reply @ Reply::Many(_), failure) => *reply = Reply::Failed(failure),
            (reply, answer) => *reply = Reply::One(answer),
        }
        entry.pending -= 1;
        if entry.pending > 0 || at > 0 {
            return false;
        }
        self.flush_slots()
    }

    fn flush_slots(&mut self) -> bool {
        let mut moved = false;
        while let Some(slot) = self.slots.front()
            && slot.pending == 0
        {
            let Some(slot) = self.slots.pop_front() else { break };
            self.bytes -= slot.bytes as usize;
            while let Some(key) = self.keys.front()
                && key.slot == self.first
            {
                self.writes -= u32::from(key.write);
                self.keys.pop_front();
            }
            self.first += 1;
            moved = true;
            if slot.noreply {
                continue;
            }
            match slot.reply {
                Reply::None => {}
                Reply::One(answer) | Reply::Failed(answer) => self.put(answer),
                Reply::Many(values) => {
                    for value in values.into_iter().flatten() {
                        self.out.put_shared(value);
                    }
                    self.out.put(b"END\r\n");
                }
            }
        }
        moved
    }

    fn put(&mut self, answer: Answer) {
        match answer {
            Answer::Static(bytes) => self.out.put(bytes),
            Answer::Bytes(bytes) => self.out.put_shared(bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(client: &mut Client) -> String {
        let mut slices = [std::io::IoSlice::new(&[]); super::super::out::MAX_SLICES];
        let count = client.out.slices(&mut slices);
        let text = slices[..count].iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect();
        let len = client.out.len();
        client.out.advance(len);
        text
    }

    #[test]
    fn answers_leave_in_the_order_of_the_requests() {
        let mut client = Client::new(0, 0);
        let a = client.open_slot(1, false, false, 10);
        let b = client.open_slot(1, false, true, 10);
        let c = client.open_slot(1, false, false, 10);
        client.note_key(a, 7, true);
        assert!(!client.answer(c, 0, Answer::Static(b"C\r\n")));
        assert!(!client.answer(b, 0, Answer::Static(b"noreply\r\n")));
        assert_eq!(sent(&mut client), "");
        assert!(client.conflicts(7, false) && !client.conflicts(7, true) && !client.conflicts(8, false));
        assert!(client.answer(a, 0, Answer::Static(b"A\r\n")));
        assert_eq!(sent(&mut client), "A\r\nC\r\n");
        assert!(client.is_idle() && !client.conflicts(7, false));
    }

    #[test]
    fn values_of_several_keys_leave_in_request_order_and_one_error_stands_for_all() {
        let mut client = Client::new(0, 0);
        let a = client.open_slot(3, true, false, 0);
        client.answer(a, 2, Answer::Bytes(Bytes::from_static(b"VALUE c 0 1\r\n3\r\n")));
        client.answer(a, 1, Answer::Static(b"END\r\n"));
        client.answer(a, 0, Answer::Bytes(Bytes::from_static(b"VALUE a 0 1\r\n1\r\n")));
        assert_eq!(sent(&mut client), "VALUE a 0 1\r\n1\r\nVALUE c 0 1\r\n3\r\nEND\r\n");
        let b = client.open_slot(2, true, false, 0);
        client.answer(b, 0, Answer::Static(b"SERVER_ERROR gone\r\n"));
        client.answer(b, 1, Answer::Bytes(Bytes::from_static(b"VALUE a 0 1\r\n1\r\n")));
        assert_eq!(sent(&mut client), "SERVER_ERROR gone\r\n");
    }
}
