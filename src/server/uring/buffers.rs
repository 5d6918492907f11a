//! Memory for what clients send, which the kernel fills.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

/// Buffers for what clients send, over all of a worker's clients; a power of two. Where they are
/// all used, a client's receive ends and is begun again.
pub(super) const BUFFERS: u16 = 128;

/// This many of them are in the kernel's hands at a time where a client must not bring much before
/// it is stopped. The kernel goes on with one client for 32 buffers.
pub(super) const FEW_BUFFERS: u16 = 4;

/// Bytes of each.
const BUFFER_LEN: usize = 16 * 1024;

/// Memory for what comes, lent to the kernel.
pub(super) struct Buffers {
    memory: NonNull<u8>,
    /// The list of those that the kernel may use, which it reads.
    entries: NonNull<BufRingEntry>,
    /// Where the list ends; `published`: what of that the kernel knows.
    tail: u16,
    published: u16,
    /// Those that the kernel may use, as far as is known.
    lent: u16,
    /// The kernel may still use it.
    pub(super) leaked: bool,
}

impl Buffers {
    const MEMORY: Layout = match Layout::from_size_align(BUFFERS as usize * BUFFER_LEN, 16) {
        Ok(layout) => layout,
        Err(_) => unreachable!(),
    };
    /// In whole pages, which must not be larger than this.
    const ENTRIES: Layout = match Layout::from_size_align(BUFFERS as usize * size_of::<BufRingEntry>(), 64 * 1024) {
        Ok(layout) => layout,
        Err(_) => unreachable!(),
    };

    pub(super) fn new() -> Buffers {
        fn zeroed(layout: Layout) -> NonNull<u8> {
            // SAFETY: neither is of size zero.
            NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
        }
        // Pages take memory once they are used.
        let (memory, entries) = (zeroed(Self::MEMORY), zeroed(Self::ENTRIES).cast());
        Buffers { memory, entries, tail: 0, published: 0, lent: 0, leaked: false }
    }

    /// Where the list is.
    pub(super) fn list(&self) -> u64 {
        self.entries.as_ptr() as u64
    }

    fn at(&self, buffer: u16) -> *mut u8 {
        assert!(buffer < BUFFERS);
        // SAFETY: within the memory.
        unsafe { self.memory.as_ptr().add(usize::from(buffer) * BUFFER_LEN) }
    }

    pub(super) fn bytes(&self, buffer: u16, len: usize) -> &[u8] {
        assert!(len <= BUFFER_LEN);
        // SAFETY: initialised (zeroes at first), and the kernel leaves it alone until it is given
        // back, for which `Input` must be given up.
        unsafe { std::slice::from_raw_parts(self.at(buffer), len) }
    }

    pub(super) fn give(&mut self, buffer: u16) {
        let at = self.at(buffer) as u64;
        // SAFETY: within the list; the kernel reads this place only once the tail is behind it.
        let entry = unsafe { &mut *self.entries.as_ptr().add(usize::from(self.tail & (BUFFERS - 1))) };
        entry.set_addr(at);
        entry.set_len(BUFFER_LEN as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// The kernel has used one.
    pub(super) fn is_used(&mut self) {
        self.lent -= 1;
    }

    /// How many the kernel may still use, as far as is known.
    pub(super) fn lent(&self) -> u16 {
        self.lent
    }

    /// Tells the kernel of what was given, as long as it has no more than this many.
    pub(super) fn publish(&mut self, most: u16) {
        let more = self.tail.wrapping_sub(self.published).min(most.saturating_sub(self.lent));
        if more == 0 {
            return;
        }
        self.lent += more;
        self.published = self.published.wrapping_add(more);
        // SAFETY: the tail's place is part of the list's first entry, aligned, and nobody else
        // writes there.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.as_ptr()).cast_mut()) };
        tail.store(self.published, Ordering::Release);
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if !self.leaked {
            // SAFETY: from `alloc_zeroed` with these layouts, and the kernel uses them no more.
            unsafe {
                dealloc(self.memory.as_ptr(), Self::MEMORY);
                dealloc(self.entries.as_ptr().cast(), Self::ENTRIES);
            }
        }
    }
}
