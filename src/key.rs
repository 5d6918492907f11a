//! `resilver key KEY`: the pair that a key lives in, who leads it, and what each of its two servers
//! holds of it, all asked through the proxy.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::backend::ANSWER_MAX;
use crate::console::command::{EXIT_USAGE, complain, failed, print, run};
use crate::console::connection::Said;
use crate::console::proxy::{Proxy, ProxyArg, WHOLE_TIMEOUT, refused, stranger};
use crate::console::table::{Table, Terminal, Tone};
use crate::ids::Place;
use crate::protocol::KEY_LEN_MAX;
use crate::protocol::item::{Answer, Code};
use crate::report::figures::time;
use crate::report::names::STATE;
use crate::report::seen::Fields;

/// The two copies differ, or one of them could not be seen.
const EXIT_DIFFERENT: u8 = 1;
/// The proxy cannot be asked: as with wrong arguments nothing was compared.
const EXIT_UNASKED: u8 = EXIT_USAGE;

/// A write reaches one server after the other: what differs is looked at again so often before it
/// is called different.
const LOOKS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(100);
/// Values of more bytes are not compared: the answers that hold them would not be passed on.
const COMPARED_MAX: u64 = ANSWER_MAX as u64 - 1024;
/// The remaining times of two copies may differ by the seconds that pass between two looks, and by
/// those that servers round differently.
const TTL_SLACK: i64 = 2;

/// The arguments of `resilver key`.
#[derive(Parser, Debug)]
#[command(
    name = "resilver key",
    bin_name = "resilver key",
    about = "Shows which pair owns a key, which server leads it, and what each of the two servers holds.",
    after_help = "The value itself is not shown. It uses the command node: with --operator-commands off, give the path \
                  of the admin socket as --proxy.\n\n\
                  Exit codes: 0 both servers hold the same, or nothing; 1 they differ, or one did not answer; \
                  2 wrong arguments, or the proxy does not answer.",
    max_term_width = 120
)]
pub struct KeyArgs {
    #[command(flatten)]
    at: ProxyArg,

    /// The key, as clients write it in the text protocol
    #[arg(value_name = "KEY")]
    key: String,
}

/// What one server holds of a key.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Held {
    Nothing,
    Item {
        bytes: u64,
        /// `None`: it was not asked for.
        value: Option<Vec<u8>>,
        flags: u32,
        ttl: Option<i64>,
        cas: u64,
        /// A client has said that it is out of date, or recomputes it.
        stale: bool,
    },
    /// It could not be asked.
    Unknown(String),
}

impl Held {
    /// From the answer to `mg KEY f t c` with `v` or `s`.
    fn of(said: &Said) -> Held {
        let strange = || Held::Unknown(said.line());
        let Some(frame) = said.frame() else { return strange() };
        let Ok(Answer { code, flags, ttl, cas, size, stale, .. }) = Answer::to_unechoed(&frame) else {
            return strange();
        };
        let value = frame.data().map(|data| data.to_vec());
        let bytes = match (code, &value) {
            (Code::Missing, _) => return Held::Nothing,
            (Code::Value, Some(value)) => Some(value.len() as u64),
            (Code::Done, _) => size,
            _ => None,
        };
        let Some(bytes) = bytes else { return strange() };
        Held::Item { bytes, value, flags, ttl: (ttl >= 0).then_some(ttl), cas, stale }
    }

    /// Whether its value can be asked for.
    fn is_known(&self) -> bool {
        match self {
            Held::Nothing => true,
            Held::Item { bytes, .. } => *bytes <= COMPARED_MAX,
            Held::Unknown(_) => false,
        }
    }

    fn is_stale(&self) -> bool {
        matches!(self, Held::Item { stale: true, .. })
    }

    /// `None`: nobody knows. (What is stale the leader keeps alone.)
    fn is_matched_by(&self, follower: &Held) -> Option<bool> {
        match (self, follower) {
            (_, Held::Item { stale: true, .. }) => Some(false),
            (Held::Item { stale: true, .. }, other) => Held::Nothing.is_the_same_as(other),
            (one, other) => one.is_the_same_as(other),
        }
    }

    /// `None`: nobody knows.
    fn is_the_same_as(&self, other: &Held) -> Option<bool> {
        match (self, other) {
            (Held::Unknown(_), _) | (_, Held::Unknown(_)) => None,
            (Held::Nothing, Held::Nothing) => Some(true),
            (
                Held::Item { bytes, value, flags, ttl, .. },
                Held::Item { bytes: bytes2, value: value2, flags: flags2, ttl: ttl2, .. },
            ) => {
                let as_long = match (ttl, ttl2) {
                    (None, None) => true,
                    (Some(ttl), Some(ttl2)) => (ttl - ttl2).abs() <= TTL_SLACK,
                    _ => false,
                };
                Some(bytes == bytes2 && value == value2 && flags == flags2 && as_long)
            }
            _ => Some(false),
        }
    }

    /// Whether it is there, its size, its time, its flags and its cas id.
    fn cells(&self) -> [String; 5] {
        let dash = || "-".to_owned();
        match self {
            Held::Nothing => ["nothing".to_owned(), dash(), dash(), dash(), dash()],
            Held::Unknown(_) => ["unknown".to_owned(), dash(), dash(), dash(), dash()],
            Held::Item { bytes, flags, ttl, cas, stale, .. } => [
                if *stale { "a stale item" } else { "an item" }.to_owned(),
                bytes.to_string(),
                ttl.map_or("never ends".to_owned(), |ttl| time(ttl.max(0) as u64)),
                flags.to_string(),
                cas.to_string(),
            ],
        }
    }
}

/// Where it lives, and what is held there.
struct Found {
    pair: Fields,
    /// By server.
    held: Vec<(String, Held)>,
}

/// Runs `resilver key`; `arguments` begins with the program's name as shown in messages.
pub(crate) fn main(arguments: Vec<std::ffi::OsString>) -> ExitCode {
    run(arguments, EXIT_USAGE, show)
}

/// A key of one pool has nothing to do with the same key of another one: where none is named, each
/// is asked.
fn show(args: KeyArgs) -> ExitCode {
    let each = match judge(&args.key).and_then(|()| args.at.each()) {
        Ok(each) => each,
        Err(why) => return failed("key", why, EXIT_UNASKED),
    };
    let colours = Terminal::stdout().colours;
    let mut code = 0;
    for (number, at) in each.iter().enumerate() {
        let gap = if number == 0 { "" } else { "\n" };
        let head = match &at.pool {
            Some(pool) if each.len() > 1 => format!("{gap}pool {pool}\n"),
            _ => String::new(),
        };
        let shown = settled(at, &args.key).and_then(|found| {
            print(&format!("{head}{}", found.shown(&args.key, &at.again(), colours)))?;
            Ok(found.same())
        });
        code = code.max(match shown {
            Ok(Some(true)) => 0,
            Ok(_) => EXIT_DIFFERENT,
            Err(why) => {
                complain("key", why);
                EXIT_UNASKED
            }
        });
    }
    ExitCode::from(code)
}

/// What differs is looked at again.
fn settled(at: &ProxyArg, key: &str) -> Result<Found, String> {
    let mut found = look(at, key)?;
    for _ in 1..LOOKS {
        if found.same() != Some(false) {
            break;
        }
        std::thread::sleep(PAUSE);
        found = look(at, key)?;
    }
    Ok(found)
}

fn judge(key: &str) -> Result<(), String> {
    let why = if key.is_empty() {
        "an empty key"
    } else if key.len() > KEY_LEN_MAX {
        "a key has at most 250 bytes"
    } else if key.bytes().any(|byte| byte <= b' ' || byte == 127) {
        "a key with blanks or control bytes cannot be asked for in the text protocol"
    } else {
        return Ok(());
    };
    Err(format!("{key:?}: {why}"))
}

fn look(at: &ProxyArg, key: &str) -> Result<Found, String> {
    let mut proxy = Proxy::open(at)?;
    let said = Fields::of(proxy.stats(&format!("stats key {key}"))?);
    let name = said.text("pair").to_owned();
    if name.is_empty() {
        return Err(stranger(&at.proxy));
    }
    // From here on it is the servers that are asked, and one of them may hang.
    proxy.be_patient(WHOLE_TIMEOUT);
    let servers: Vec<&str> = name.split('|').filter(|server| !server.is_empty()).collect();
    let mut ask = |what: &str| {
        let mut held = Vec::new();
        for server in &servers {
            let answer = proxy.ask(&format!("node {server} mg {key} {what} f t c"))?;
            if answer.line().starts_with("CLIENT_ERROR") {
                return Err(refused(&at.proxy, &answer.line()));
            }
            held.push(((*server).to_owned(), Held::of(&answer)));
        }
        Ok(held)
    };
    let mut held = ask("s")?;
    if held.iter().all(|(_, held)| held.is_known()) && held.iter().any(|(_, held)| *held != Held::Nothing) {
        held = ask("v")?;
    }
    Ok(Found { pair: said.behind(&format!("pair:{name}:")), held })
}

impl Found {
    fn same(&self) -> Option<bool> {
        match self.held.as_slice() {
            [(name, one), (_, other)] if *name == self.pair.text("leader") => one.is_matched_by(other),
            [(_, one), (name, other)] if *name == self.pair.text("leader") => other.is_matched_by(one),
            [(_, one), (_, other)] => one.is_the_same_as(other),
            [(_, Held::Unknown(_))] => None,
            _ => Some(true),
        }
    }

    /// `again`: what stands behind a command that is named.
    fn shown(&self, key: &str, again: &str, colours: bool) -> String {
        let pair = &self.pair;
        let names: Vec<&str> = self.held.iter().map(|(name, _)| name.as_str()).collect();
        let leader = pair.text("leader");
        let led = if leader == "none" { "nobody leads: it is refused".to_owned() } else { format!("led by {leader}") };
        let mut out = format!("key {key}\npair {}  {}, {led}\n", names.join("|"), pair.text(STATE));
        let head = ["SERVER", "PLACE", "ROLE", "HOLDS", "BYTES", "ENDS IN", "FLAGS", "CAS"];
        let mut table = Table::new(&head, colours);
        for (place, (name, held)) in [Place::Primary, Place::Backup].iter().zip(&self.held) {
            let role = match leader {
                "none" => "-",
                _ if name == leader => "leader",
                _ => "follower",
            };
            let mut cells = vec![name.clone(), place.to_string(), role.to_owned()];
            cells.extend(held.cells());
            table.row(cells, if matches!(held, Held::Unknown(_)) { Tone::Warning } else { Tone::Plain });
        }
        out.push_str(&table.to_string());
        for (name, held) in &self.held {
            if let Held::Unknown(why) = held {
                out.push_str(&format!("! {name} could not be asked: {why}\n"));
            }
        }
        let (sentence, tone) = match (self.held.len(), self.same()) {
            (1, _) => ("there are no backups: it is held once", Tone::Plain),
            (_, Some(true)) if self.held.iter().all(|(_, held)| *held == Held::Nothing) => {
                ("neither server holds it", Tone::Plain)
            }
            (_, Some(true)) if self.held.iter().any(|(_, held)| held.is_stale()) => {
                ("stale, or being recomputed: the leader alone keeps it, as it should", Tone::Good)
            }
            (_, Some(true)) if self.held.iter().any(|(_, held)| matches!(held, Held::Item { value: None, .. })) => {
                ("the same on both: size, flags and time (values of 3 MiB and more are not compared)", Tone::Good)
            }
            (_, Some(true)) => {
                ("the same on both: value, flags and time (each server has cas ids of its own)", Tone::Good)
            }
            (_, Some(false)) => (
                &*format!("! DIFFERENT, in several looks: resilver verify{again} compares all keys and mends"),
                Tone::Bad,
            ),
            (_, None) => ("! not known whether they are the same", Tone::Warning),
        };
        out.push_str(&tone.paint(sentence, colours));
        out.push('\n');
        out
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::protocol::reply::parse_reply;

    fn item(value: &str, ttl: Option<i64>) -> Held {
        Held::Item { bytes: value.len() as u64, value: Some(value.into()), flags: 5, ttl, cas: 7, stale: false }
    }

    #[test]
    fn copies_are_the_same_by_value_flags_and_time() {
        let one = item("v", Some(60));
        assert_eq!(one.is_the_same_as(&item("v", Some(59))), Some(true), "a second has passed");
        let (bytes, value, ttl) = (1, Some(b"v".into()), Some(60));
        let other_flags = Held::Item { bytes, value: value.clone(), flags: 6, ttl, cas: 7, stale: false };
        let other_cas = Held::Item { bytes, value, flags: 5, ttl, cas: 8, stale: false };
        for other in [item("w", Some(60)), item("v", None), item("v", Some(50)), other_flags, Held::Nothing] {
            assert_eq!(one.is_the_same_as(&other), Some(false), "{other:?}");
        }
        assert_eq!(one.is_the_same_as(&other_cas), Some(true));
        assert_eq!(one.is_the_same_as(&Held::Unknown("late".to_owned())), None);
        assert_eq!(Held::Nothing.is_the_same_as(&Held::Nothing), Some(true));
    }

    /// As the connection reads it.
    fn held(said: &str) -> Held {
        let bytes = Bytes::copy_from_slice(said.as_bytes());
        let reply = parse_reply(&bytes).unwrap().unwrap();
        Held::of(&Said::Reply(bytes, reply))
    }

    #[test]
    fn what_a_server_holds_is_read_from_its_answer() {
        assert_eq!(held("VA 1 f5 t60 c7\r\nv\r\n"), item("v", Some(60)));
        assert_eq!(held("VA 1 f5 t-1 c7\r\nv\r\n"), item("v", None));
        // It has expired this second.
        assert_eq!(held("VA 1 f5 t-2 c7\r\nv\r\n"), item("v", Some(0)));
        for mark in ["X", "Z", "W"] {
            assert!(held(&format!("VA 1 f5 t-1 c7 {mark}\r\nv\r\n")).is_stale(), "{mark}");
        }
        assert_eq!(held("EN\r\n"), Held::Nothing);
        let large = held("HD s5000000 f5 t-1 c7\r\n");
        assert_eq!((large.is_known(), large.is_the_same_as(&large)), (false, Some(true)));
        assert_eq!(large.is_the_same_as(&held("HD s5000001 f5 t-1 c7\r\n")), Some(false));
        for strange in ["HD\r\n", "ERROR\r\n", "VA 1 f5 t60 cx\r\nv\r\n"] {
            assert_eq!(held(strange), Held::Unknown(strange.lines().next().unwrap().to_owned()));
        }
    }

    #[test]
    fn what_is_stale_is_the_leaders_alone() {
        let stale = Held::Item { bytes: 1, value: Some(b"v".into()), flags: 5, ttl: None, cas: 7, stale: true };
        assert_eq!(stale.is_matched_by(&Held::Nothing), Some(true));
        assert_eq!(stale.is_matched_by(&item("v", None)), Some(false));
        assert_eq!(stale.is_matched_by(&Held::Unknown("late".to_owned())), None);
        for leader in [stale.clone(), item("v", None), Held::Nothing] {
            assert_eq!(leader.is_matched_by(&stale), Some(false), "{leader:?}");
        }
    }

    #[test]
    fn a_key_that_text_cannot_carry_is_named() {
        for (key, why) in [("", "empty"), ("a b", "blanks"), ("a\rb", "control"), (&"x".repeat(251)[..], "250")] {
            assert!(judge(key).is_err_and(|error| error.contains(why)), "{key}");
        }
        assert_eq!(judge("user:17"), Ok(()));
    }
}
