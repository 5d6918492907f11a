//! Memory that was needed once goes back to the system.
//!
//! glibc moves its limit of what is mapped alone up to 32 MiB with each large block that is freed,
//! and keeps what is smaller: seen, 200 MB of values that were gone, for good. Of many small blocks
//! it gives back what is free at the end of an arena, and a few that are still needed lie there:
//! seen, 170 MB of 3,000 clients that had left. A thread looks to that, some time after anything
//! was done, and sleeps while nothing is.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, Thread};
use std::time::Duration;

/// Blocks from this size on, in bytes, are the system's own and go back to it as soon as they are
/// free.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_BLOCK: i32 = 128 << 10;

/// The heap is looked at so long after something was done, and no more often.
const PAUSE: Duration = Duration::from_secs(5);

/// So much more that is free, in bytes, is worth giving back. (With 16 MiB a burst of 600 clients
/// left 9 MB for good. What is needed again costs a thousand page faults, every five seconds.)
const MUCH: u32 = 4 << 20;

/// Something was done since the heap was looked at.
static STIRRED: AtomicBool = AtomicBool::new(false);

/// The thread that looks at it.
static KEEPER: OnceLock<Thread> = OnceLock::new();

/// To be called before there are other threads.
pub fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "there is no other way to say it but the environment, which is read before we run")]
    // SAFETY: no pointers; called before there are other threads.
    unsafe {
        nix::libc::mallopt(nix::libc::M_MMAP_THRESHOLD, OWN_BLOCK);
    }
}

/// From now on what many small blocks have left goes back, too.
///
/// # Errors
///
/// There is no thread to be had.
pub fn keep_heap_small() -> io::Result<()> {
    let keeper = thread::Builder::new().name("heap".to_owned()).spawn(|| {
        let mut free = Free::default();
        loop {
            while !STIRRED.load(Relaxed) {
                thread::park();
            }
            thread::sleep(PAUSE);
            STIRRED.store(false, Relaxed);
            if free.is_much(free_bytes()) {
                trim();
            }
        }
    })?;
    // A second one would never be told of anything, and sleeps.
    let _ = KEEPER.set(keeper.thread().clone());
    Ok(())
}

/// Something was done that may have left free memory behind.
pub(crate) fn stir() {
    if !STIRRED.load(Relaxed)
        && !STIRRED.swap(true, Relaxed)
        && let Some(keeper) = KEEPER.get()
    {
        keeper.unpark();
    }
}

/// How much was free when it was last given back, or the least since. (What was given back still
/// counts as free.)
#[derive(Default)]
struct Free {
    least: u32,
}

impl Free {
    /// Whether so much is free now that it is to be given back.
    fn is_much(&mut self, now: u32) -> bool {
        let much = now.saturating_sub(self.least) >= MUCH;
        if much || now < self.least {
            self.least = now;
        }
        much
    }
}

/// Bytes that the allocator holds and nobody needs, modulo 4 GiB.
fn free_bytes() -> u32 {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "nobody else knows")]
    // SAFETY: no pointers; it takes the allocator's locks itself. (`mallinfo2` would take glibc
    // 2.33.)
    unsafe {
        nix::libc::mallinfo().fordblks.cast_unsigned()
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    0
}

fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "there is no other way to say it")]
    // SAFETY: no pointers; it takes the allocator's locks itself.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_become_free_is_given_back_once() {
        let mut free = Free::default();
        let looks = [MUCH - 1, MUCH, 2 * MUCH - 1, 3 * MUCH, 3 * MUCH, MUCH / 2, MUCH, 2 * MUCH];
        let given = looks.map(|now| free.is_much(now));
        assert_eq!(given, [false, true, false, true, false, false, false, true]);
    }
}
