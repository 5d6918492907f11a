//! Which statistics a command asks for, by its words; and how long whoever asks waits for those
//! that are not to be had yet.

use std::time::Duration;

/// Monitors wait for a second. Where nobody can tell all of it by then (no proxy is active, or it
/// is starting), they are told in time what is known.
pub const PATIENCE: Duration = Duration::from_millis(700);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Statistics {
    /// `stats`.
    All,
    /// `stats proxy`: the proxy's own, which it always has.
    OfProxy,
    /// Another part of them, or `resync status`.
    Part,
}

impl Statistics {
    /// `None`: it asks for something else.
    pub fn asked_by<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Statistics> {
        match (words.next()?, words.next()) {
            ("stats", None) => Some(Statistics::All),
            ("stats", Some("proxy")) => Some(Statistics::OfProxy),
            ("stats", Some(_)) | ("resync", Some("status")) => Some(Statistics::Part),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_asked_for_in_these_words() {
        for (line, asked) in [
            ("stats", Some(Statistics::All)),
            ("stats proxy", Some(Statistics::OfProxy)),
            ("stats servers", Some(Statistics::Part)),
            ("resync status all", Some(Statistics::Part)),
            ("resync 10.0.0.5:1", None),
            ("resync", None),
            ("get stats", None),
            ("", None),
        ] {
            assert_eq!(Statistics::asked_by(line.split_ascii_whitespace()), asked, "{line}");
        }
    }
}
