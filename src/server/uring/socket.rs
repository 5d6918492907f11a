//! One socket of an io_uring instance, and what its operations use.

use std::io::IoSlice;
use std::os::fd::OwnedFd;

use bytes::BytesMut;
use nix::libc;

use crate::protocol::out::{MAX_SLICES, OutQueue};
use crate::proxy::Share;

use super::{Owner, SEND_MOST};

/// One socket.
pub(super) struct Slot {
    pub(super) fd: OwnedFd,
    pub(super) owner: Owner,
    /// Operations whose last completion was not taken yet. Until there are none the socket stays
    /// open and everything where it is.
    pub(super) ops: u32,
    pub(super) out: OutQueue,
    /// The pieces of `out` as the kernel wants them, where there are several.
    pub(super) message: Option<Box<Message>>,
    /// What `out` takes of the clients' account.
    pub(super) share: Option<Box<Share>>,
    pub(super) sending: bool,
    /// Whether somebody waits for the send to be done.
    pub(super) waits: bool,
    pub(super) broken: bool,
    /// The first error was not of the node's making.
    pub(super) unproven: bool,
    pub(super) receiving: bool,
    /// Where a node's bytes go, while it is received from.
    pub(super) room: BytesMut,
    /// Whether to receive again when the receive ends (a client's).
    pub(super) wanted: bool,
    /// It waits for buffers.
    pub(super) unbuffered: bool,
    /// The client sends no more.
    pub(super) ended: bool,
    pub(super) cancelling: bool,
    /// Its owner has given it up.
    pub(super) closed: bool,
}

/// The argument of a send of several pieces.
pub(super) struct Message {
    pub(super) header: libc::msghdr,
    pub(super) slices: [libc::iovec; MAX_SLICES],
}

impl Message {
    pub(super) fn new() -> Box<Message> {
        // SAFETY: both are plain C data, for which zeroes are a valid value.
        Box::new(unsafe { std::mem::zeroed() })
    }

    /// Points to the front of `out`, which must neither change nor go away while this is in use.
    pub(super) fn fill(&mut self, out: &OutQueue) -> *const libc::msghdr {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let count = out.slices(&mut slices);
        let (mut left, mut used) = (SEND_MOST, 0);
        for (to, from) in self.slices.iter_mut().zip(&slices[..count]) {
            let len = from.len().min(left);
            *to = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: len };
            (left, used) = (left - len, used + 1);
            if left == 0 {
                break;
            }
        }
        self.header.msg_iov = self.slices.as_mut_ptr();
        self.header.msg_iovlen = used as _;
        &raw const self.header
    }
}
