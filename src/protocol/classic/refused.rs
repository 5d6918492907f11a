//! Commands that change how a server works, or how long it does: they are for one server, and so
//! refused here, in the words that memcached has for those that are switched off. The operator
//! sends them by `node HOST:PORT …`.

use super::super::answer;
use super::super::line::Words;
use super::super::number::client_u32;
use super::super::request::{Admin, Parsed};
use super::command::{Args, Command};

/// The longest `lru_crawler sleep`, microseconds.
const SLEEP_MAX: u32 = 1_000_000;

impl Command<'_> {
    /// Of these one is answered: the list of all keys.
    pub(super) fn lru_crawler(&self, words: Words<'_>) -> Parsed {
        let args = Args::collect(self.buf, words);
        match (args.count, args.word(0)) {
            (2, b"metadump") => self.administer(Admin::List(args.range(1)), false),
            (2, b"crawl") => self.reject(answer::CRAWLER_OFF, false),
            (2, b"tocrawl" | b"sleep") => match client_u32(args.word(1)) {
                None => self.reject(answer::BAD_FORMAT, false),
                Some(us) if args.word(0) == b"sleep" && us > SLEEP_MAX => {
                    self.reject(b"CLIENT_ERROR sleep must be one second or less\r\n", false)
                }
                Some(_) => self.reject(answer::CRAWLER_OFF, false),
            },
            (1, b"enable") => self.reject(b"ERROR failed to start lru crawler thread\r\n", false),
            (1, b"disable") => self.reject(b"ERROR failed to stop lru crawler thread\r\n", false),
            _ => self.reject(answer::ERROR, false),
        }
    }

    pub(super) fn cache_memlimit(&self, words: Words<'_>) -> Parsed {
        const LEAST: u32 = 8;
        const MOST: u32 = 1_000_000_000;
        let args = Args::collect(self.buf, words);
        if args.count != 1 && args.count != 2 {
            return self.reject(answer::ERROR, false);
        }
        let said: &[u8] = match client_u32(args.word(0)) {
            None => answer::ERROR,
            Some(0..LEAST) => b"MEMLIMIT_TOO_SMALL cannot set maxbytes to less than 8m\r\n",
            Some(LEAST..=MOST) => b"MEMLIMIT_ADJUST_FAILED out of bounds or unable to adjust\r\n",
            Some(_) => b"MEMLIMIT_ADJUST_FAILED input value is megabytes not bytes\r\n",
        };
        self.reject(said, args.noreply())
    }

    pub(super) fn slabs(&self, words: Words<'_>) -> Parsed {
        const DISABLED: &[u8] = b"CLIENT_ERROR slab reassignment disabled\r\n";
        let args = Args::collect(self.buf, words);
        match (args.count, args.word(0)) {
            (3, b"reassign") => self.reject(DISABLED, false),
            (2.., b"automove") => {
                let said = match (args.word(1), client_u32(args.word(1))) {
                    (b"ratio", _) if args.count > 2 && is_ratio(args.word(2)) => DISABLED,
                    (_, Some(0..=2)) => DISABLED,
                    (b"ratio", _) | (_, Some(_)) => answer::ERROR,
                    _ => answer::BAD_FORMAT,
                };
                self.reject(said, args.noreply())
            }
            _ => self.reject(answer::ERROR, false),
        }
    }

    /// `lru` and `extstore`: memcached's one word where it adjusts nothing.
    pub(super) fn unadjusted(&self, words: Words<'_>) -> Parsed {
        self.reject(answer::ERROR, Args::collect(self.buf, words).noreply())
    }

    pub(super) fn watch(&self, words: Words<'_>) -> Parsed {
        let args = Args::collect(self.buf, words);
        self.reject(b"CLIENT_ERROR watch commands not allowed\r\n", args.noreply())
    }

    pub(super) fn shutdown(&self) -> Parsed {
        self.reject(b"ERROR: shutdown not enabled\r\n", false)
    }

    pub(super) fn refresh_certs(&self) -> Parsed {
        self.reject(b"Error TLS not enabled\r\n", false)
    }
}

fn is_ratio(word: &[u8]) -> bool {
    str::from_utf8(word).is_ok_and(|word| word.parse::<f64>().is_ok())
}
