//! The release after this one, as far as tests play it: in a debug build with
//! `RESILVER_TEST_LATER` a proxy speaks the next version of the line between proxies, and says and
//! writes words that this release knows nothing of. So a fleet of two releases that follow each
//! other is tested before there are two.

use std::sync::OnceLock;

/// What stands behind all words of this release.
pub const WORD: &str = " later=1";

/// A line on a control connection that no release knows.
pub const LINE: &[u8] = b"later! what a later release says\r\n";

/// Whether this process is to be taken for a later release.
pub fn is_played() -> bool {
    static PLAYED: OnceLock<bool> = OnceLock::new();
    cfg!(debug_assertions) && *PLAYED.get_or_init(|| std::env::var_os("RESILVER_TEST_LATER").is_some())
}

/// What such a one writes behind all that this release writes.
pub fn word() -> &'static str {
    if is_played() { WORD } else { "" }
}
