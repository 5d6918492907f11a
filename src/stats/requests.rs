//! Clients' requests by what was asked and what came of it, and how long they waited.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::protocol::meta::{Meta, Verb};
use crate::protocol::outcome::{Outcome, Refusal};
use crate::protocol::request::Kind;

use super::{Latencies, add};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($word:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum $name {
            $($word,)*
        }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$word,)*];

            pub fn text(self) -> &'static str {
                match self {
                    $($name::$word => $text,)*
                }
            }
        }
    };
}

words! {
    /// What was asked for, as the classic protocol calls it in whatever protocol it was asked.
    Asked {
        Get = "get",
        Gets = "gets",
        Gat = "gat",
        Gats = "gats",
        Set = "set",
        Add = "add",
        Replace = "replace",
        Append = "append",
        Prepend = "prepend",
        Cas = "cas",
        Incr = "incr",
        Decr = "decr",
        Delete = "delete",
        Touch = "touch",
        MetaGet = "mg",
        MetaSet = "ms",
        MetaDelete = "md",
        MetaArithmetic = "ma",
        MetaDebug = "me",
        // Commands without a key, and what is no command.
        Other = "other",
    }
}

words! {
    /// What came of it.
    Came {
        Hit = "hit",
        Miss = "miss",
        Stored = "stored",
        NotStored = "not_stored",
        Exists = "exists",
        NotFound = "not_found",
        Deleted = "deleted",
        Touched = "touched",
        // Counted, done, or told in lines.
        Ok = "ok",
        ClientError = "client_error",
        ServerError = "server_error",
    }
}

words! {
    /// Commands that wait alike.
    Family {
        Read = "read",
        Write = "write",
        Other = "other",
    }
}

impl Asked {
    #[inline(always)]
    pub fn of(kind: Kind) -> Asked {
        match kind {
            Kind::Get => Asked::Get,
            Kind::Gets => Asked::Gets,
            Kind::Gat => Asked::Gat,
            Kind::Gats => Asked::Gats,
            Kind::Set => Asked::Set,
            Kind::Add => Asked::Add,
            Kind::Replace => Asked::Replace,
            Kind::Append => Asked::Append,
            Kind::Prepend => Asked::Prepend,
            Kind::Cas => Asked::Cas,
            Kind::Incr => Asked::Incr,
            Kind::Decr => Asked::Decr,
            Kind::Delete => Asked::Delete,
            Kind::Touch => Asked::Touch,
            Kind::Meta(Meta { verb, .. }) => match verb {
                Verb::Get => Asked::MetaGet,
                Verb::Set => Asked::MetaSet,
                Verb::Delete => Asked::MetaDelete,
                Verb::Arithmetic => Asked::MetaArithmetic,
                Verb::Debug => Asked::MetaDebug,
            },
            Kind::Mend => Asked::Other,
        }
    }

    /// Reads are answered by one server, writes by two, one after the other.
    pub fn family(self) -> Family {
        match self {
            Asked::Get | Asked::Gets | Asked::MetaGet | Asked::MetaDebug => Family::Read,
            Asked::Other => Family::Other,
            _ => Family::Write,
        }
    }
}

impl Came {
    #[inline(always)]
    pub fn of(asked: Asked, outcome: &Outcome) -> Came {
        match outcome {
            Outcome::Hit(_) | Outcome::Item(_) => Came::Hit,
            Outcome::Miss | Outcome::MissOf(_) => Came::Miss,
            Outcome::Stored | Outcome::StoredAs(_) => Came::Stored,
            Outcome::NotStored => Came::NotStored,
            Outcome::Exists => Came::Exists,
            Outcome::NotFound => Came::NotFound,
            Outcome::Deleted => Came::Deleted,
            Outcome::Touched => Came::Touched,
            Outcome::Refused(Refusal::Client(_)) => Came::ClientError,
            Outcome::Refused(_) => Came::ServerError,
            Outcome::Raw(bytes) => Came::of_line(asked, bytes),
            Outcome::Own(bytes) => Came::of_line(asked, bytes),
            Outcome::Done | Outcome::Number(_) | Outcome::NumberAs { .. } | Outcome::Version(_) | Outcome::Quit => {
                Came::Ok
            }
        }
    }

    /// By the line that is passed on: every answer of the meta protocol.
    #[inline(never)]
    fn of_line(asked: Asked, line: &[u8]) -> Came {
        let meta = (Asked::MetaGet as u8..=Asked::MetaDebug as u8).contains(&(asked as u8));
        match line.get(..2).unwrap_or_default() {
            b"HD" | b"VA" | b"ME" if meta => match asked {
                Asked::MetaGet | Asked::MetaDebug => Came::Hit,
                Asked::MetaSet => Came::Stored,
                Asked::MetaDelete => Came::Deleted,
                _ => Came::Ok,
            },
            b"EN" if meta => Came::Miss,
            b"NF" if meta => Came::NotFound,
            b"NS" if meta => Came::NotStored,
            b"EX" if meta => Came::Exists,
            _ if line.starts_with(b"SERVER_ERROR") => Came::ServerError,
            _ if line.starts_with(b"CLIENT_ERROR") || line.starts_with(b"ERROR") => Came::ClientError,
            _ => Came::Ok,
        }
    }
}

const ASKED: usize = Asked::ALL.len();
/// Rounded up to what a shift multiplies with.
const CAME: usize = Came::ALL.len().next_power_of_two();

/// One worker's.
#[derive(Debug)]
pub struct Requests {
    counts: [[AtomicU64; CAME]; ASKED],
    waits: [Latencies; ASKED],
}

impl Default for Requests {
    fn default() -> Requests {
        let zeroes = |_| std::array::from_fn(|_| AtomicU64::new(0));
        Requests { counts: std::array::from_fn(zeroes), waits: std::array::from_fn(|_| Latencies::default()) }
    }
}

impl Requests {
    /// A request, or one key of it, is answered.
    #[inline(always)]
    pub(crate) fn count(&self, asked: Asked, outcome: &Outcome) {
        add(&self.counts[asked as usize][Came::of(asked, outcome) as usize], 1);
    }

    /// A request is answered in full, so long after it was begun.
    #[inline(always)]
    pub(crate) fn waited(&self, asked: Asked, us: u32) {
        self.waits[asked as usize].add_coarsely(us);
    }

    pub fn of(&self, asked: Asked, came: Came) -> u64 {
        self.counts[asked as usize][came as usize].load(Relaxed)
    }

    /// What belongs to a counter that memcached has by this name.
    pub fn under(&self, name: &str) -> u64 {
        let all = |asked: &[Asked]| -> u64 {
            let counts = asked.iter().flat_map(|&asked| &self.counts[asked as usize]);
            counts.map(|count| count.load(Relaxed)).sum()
        };
        match name {
            "cmd_get" => all(&[Asked::Get, Asked::Gets]),
            "cmd_set" => {
                // memcached counts them once it has the value: not those that are too large. They
                // are left out of the sum, not subtracted: more may have come since it was made.
                let stores = [Asked::Set, Asked::Add, Asked::Replace, Asked::Append, Asked::Prepend, Asked::Cas];
                let came = Came::ALL.iter().filter(|came| **came != Came::ServerError);
                came.flat_map(|&came| stores.map(|asked| self.of(asked, came))).sum()
            }
            "cmd_touch" => all(&[Asked::Touch, Asked::Gat, Asked::Gats]),
            "cmd_delete" => all(&[Asked::Delete]),
            "cmd_arithmetic" => all(&[Asked::Incr, Asked::Decr]),
            "get_hits" => self.of(Asked::Get, Came::Hit) + self.of(Asked::Gets, Came::Hit),
            "get_misses" => self.of(Asked::Get, Came::Miss) + self.of(Asked::Gets, Came::Miss),
            _ => 0,
        }
    }

    /// Of all commands of a family.
    pub fn waits(&self, family: Family) -> impl Iterator<Item = &Latencies> {
        let all = Asked::ALL.iter().filter(move |asked| asked.family() == family);
        all.map(|&asked| &self.waits[asked as usize])
    }

    pub fn waits_of(&self, asked: Asked) -> &Latencies {
        &self.waits[asked as usize]
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.counts.iter().flatten().map(|count| count.load(Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn what_came_of_a_request_has_one_word_in_every_protocol() {
        let raw = |line: &'static [u8]| Outcome::Raw(Bytes::from_static(line));
        for (asked, outcome, came) in [
            (Asked::Get, Outcome::Miss, Came::Miss),
            (Asked::MetaGet, raw(b"HD\r\n"), Came::Hit),
            (Asked::MetaGet, raw(b"VA 2 f0\r\nhi\r\n"), Came::Hit),
            (Asked::MetaGet, raw(b"EN\r\n"), Came::Miss),
            (Asked::MetaSet, raw(b"HD\r\n"), Came::Stored),
            (Asked::MetaSet, raw(b"NS\r\n"), Came::NotStored),
            (Asked::MetaDelete, raw(b"HD\r\n"), Came::Deleted),
            (Asked::MetaDelete, raw(b"NF\r\n"), Came::NotFound),
            (Asked::MetaArithmetic, raw(b"VA 1\r\n2\r\n"), Came::Ok),
            (Asked::MetaSet, raw(b"EX\r\n"), Came::Exists),
            (Asked::Get, raw(b"SERVER_ERROR out of memory\r\n"), Came::ServerError),
            (Asked::Other, Outcome::Own(b"ERROR\r\n"), Came::ClientError),
            // `END` begins like the meta miss `EN`.
            (Asked::Other, raw(b"END\r\n"), Came::Ok),
            (Asked::Set, Outcome::Refused(Refusal::TooLarge), Came::ServerError),
            (Asked::Set, Outcome::Refused(Refusal::Client("no")), Came::ClientError),
            (Asked::Incr, Outcome::Number(3), Came::Ok),
        ] {
            assert_eq!(Came::of(asked, &outcome), came, "{asked:?} {outcome:?}");
        }
        let requests = Requests::default();
        requests.count(Asked::Get, &Outcome::Miss);
        requests.count(Asked::Get, &Outcome::Miss);
        assert_eq!((requests.of(Asked::Get, Came::Miss), requests.of(Asked::Get, Came::Hit)), (2, 0));
        assert_eq!(requests.total(), 2);
        requests.count(Asked::Gat, &Outcome::Miss);
        requests.count(Asked::Cas, &Outcome::Exists);
        requests.count(Asked::Set, &Outcome::Refused(Refusal::TooLarge));
        let under = ["cmd_get", "cmd_set", "cmd_touch", "get_misses", "get_hits", "pid"].map(|n| requests.under(n));
        assert_eq!(under, [2, 1, 1, 2, 0, 0]);
    }

    #[test]
    fn stores_that_are_refused_while_they_are_counted_do_not_make_the_others_fewer_than_none() {
        let requests = Requests::default();
        std::thread::scope(|scope| {
            let refused = scope.spawn(|| {
                (0..200_000).for_each(|_| requests.count(Asked::Set, &Outcome::Refused(Refusal::TooLarge)));
            });
            while !refused.is_finished() {
                assert_eq!(requests.under("cmd_set"), 0);
            }
        });
    }
}
