//! What tests of the daemon bring about at a moment that nobody could hit from outside. In debug
//! builds alone.

use std::fs;
use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, raise};

use super::Boot;

/// While this file is there the clock that leases go by stands still, as that of a machine does
/// which is stopped with it.
const CLOCK: &str = "RESILVER_TEST_CLOCK";

/// The process stops itself between its look at the lease and the sending of something to a server
/// that this file's text is a part of. The file is gone then.
const STOP: &str = "RESILVER_TEST_STOP";

/// Nothing: the clock runs.
static STANDS_AT: AtomicU64 = AtomicU64::new(0);

fn named(variable: &str) -> Option<PathBuf> {
    std::env::var_os(variable).map(PathBuf::from)
}

/// What the clock shows.
pub(super) fn clock(now: Boot) -> Boot {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(file) = FILE.get_or_init(|| named(CLOCK)) else { return now };
    if !file.exists() {
        STANDS_AT.store(0, Ordering::SeqCst);
        return now;
    }
    match STANDS_AT.compare_exchange(0, now.0, Ordering::SeqCst, Ordering::SeqCst) {
        Ok(_) => now,
        Err(stands_at) => Boot(stands_at),
    }
}

/// This is about to be sent to a server.
pub(super) fn before_sending(slices: &[IoSlice<'_>]) {
    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(file) = FILE.get_or_init(|| named(STOP)) else { return };
    let Ok(text) = fs::read(file) else { return };
    let sends: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
    if !text.is_empty() && memchr::memmem::find(&sends, &text).is_some() && fs::remove_file(file).is_ok() {
        // Raising a valid signal does not fail.
        let _ = raise(Signal::SIGSTOP);
    }
}
