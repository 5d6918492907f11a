//! `resilver wait --mirrored`: what an operator's script runs between two restarts of servers; and
//! `--ready`, between two restarts of proxies.
//!
//! A proxy that has not noticed a restart yet says `mirrored`, and whoever believes it restarts the
//! only full copy next. So the proxy's word is held against the servers themselves: each must
//! answer, and carry the incarnation marker that the proxy knows it by. The marker dies with the
//! memory, so a server that has just come back empty does not carry it before the proxy has taken
//! it back, and from then on the proxy's own word is true.
//!
//! The proxy is asked first and the servers after it: a restart between the two is then seen, never
//! hidden.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use thiserror::Error;

use crate::backend::marker;
use crate::console::command::{EXIT_USAGE, complain, run};
use crate::console::connection::{Connection, Endpoint};
use crate::console::proxy::{ANSWER_TIMEOUT, Answer, ProxyArg, patience, stats};
use crate::ids::Place;
use crate::protocol::statistics::Stats;
use crate::report::names;
use crate::report::seen::Fields;
use crate::ring::NodeAddr;

/// Not within the time.
const EXIT_TIMEOUT: u8 = 1;
/// Waiting makes no sense, as with wrong arguments: no proxy of ours, nothing that heals.
const EXIT_POINTLESS: u8 = EXIT_USAGE;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// This many looks in a row must find nothing. A server that kept its memory over a restart carries
/// the right marker at once; what tells is that its connections broke, and the proxy may still be
/// about to read that.
const LOOKS: u32 = 2;

/// The arguments of `resilver wait`.
#[derive(Parser, Debug)]
#[command(
    name = "resilver wait",
    bin_name = "resilver wait",
    about = "Waits until every item has two copies (before and after restarting a server), or until the proxy serves \
             its clients (after restarting one of several proxies).",
    after_help = "--mirrored asks the proxy, and then each server whether it still has the memory that the proxy knows: \
                  just after a restart the proxy may not have noticed it yet. Run it after the restart command has \
                  returned.\n\n\
                  Exit codes: 0 it is so; 1 not within --timeout, stderr says what is missing; 2 wrong arguments, no \
                  proxy, or one that can never be mirrored (no backups, --resync=off).",
    max_term_width = 120,
    group = clap::ArgGroup::new("what").required(true).args(["mirrored", "ready"])
)]
pub struct WaitArgs {
    /// Wait until every item is known to have two copies, and every server is up
    #[arg(long)]
    mirrored: bool,

    /// Wait until the proxy serves its clients: it is the active one, or reaches it
    #[arg(long, conflicts_with = "proxy_only")]
    ready: bool,

    #[command(flatten)]
    at: ProxyArg,

    /// How long to wait at most
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = patience)]
    timeout: Duration,

    /// Ask only the proxy, if the servers cannot be reached from here; it may not have noticed the
    /// last restart yet
    #[arg(long)]
    proxy_only: bool,
}

/// Why waiting makes no sense.
#[derive(Debug, Error)]
enum Pointless {
    #[error("{0} is no resilver: it answered {1:?}")]
    NoProxy(String, String),
    #[error("{0} refuses to say it: {1}")]
    Refused(String, String),
    #[error("{0} has no backups (-b): nothing is held twice")]
    NoBackups(String),
    #[error("{0} runs with --resync=off: a server that came back is never refilled")]
    Off(String),
}

/// What one look found.
enum Look {
    /// What is missing, a sentence each; none = mirrored.
    Missing(Vec<String>),
    Pointless(Pointless),
}

/// Runs `resilver wait`; `arguments` begins with the program's name as shown in messages.
pub(crate) fn main(arguments: Vec<std::ffi::OsString>) -> ExitCode {
    run(arguments, EXIT_USAGE, look_again_and_again)
}

fn look_again_and_again(args: WaitArgs) -> ExitCode {
    let say = |line: &str| complain("wait", line);
    let deadline = Instant::now() + args.timeout;
    let (mut good, mut told) = (0, String::new());
    let (what, looks) = if args.ready { ("ready", 1) } else { ("mirrored", LOOKS) };
    // A process keeps its pools: ask once.
    let mut pools: Option<Vec<ProxyArg>> = None;
    loop {
        let looked = match &pools {
            _ if args.ready => look_ready(&args),
            Some(pools) => look_at_all(pools, args.proxy_only, deadline),
            None => look(&args.at, args.proxy_only, deadline),
        };
        // One that has several says nothing of all at once.
        if let (Look::Pointless(Pointless::Refused(..)), None) = (&looked, &pools)
            && let Ok(each) = args.at.each()
            && each.len() > 1
        {
            pools = Some(each);
            continue;
        }
        let missing = match looked {
            Look::Pointless(why) => {
                say(&why.to_string());
                return ExitCode::from(EXIT_POINTLESS);
            }
            Look::Missing(missing) => missing,
        };
        good = if missing.is_empty() { good + 1 } else { 0 };
        if good >= looks {
            let _ = writeln!(std::io::stdout(), "{what}");
            return ExitCode::SUCCESS;
        }
        if Instant::now() >= deadline {
            say(&format!("not {what} within {}", crate::config::show_time(args.timeout)));
            missing.iter().for_each(|line| say(line));
            return ExitCode::from(EXIT_TIMEOUT);
        }
        // Said once, so that a wrong address is not waited for in silence.
        if let Some(first) = missing.first().filter(|first| **first != told) {
            say(&format!("waiting: {first}"));
            told.clone_from(first);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Asks the proxy whether it serves.
fn look_ready(args: &WaitArgs) -> Look {
    let proxy = args.at.name();
    let asked = args.at.connect().and_then(|mut connection| stats(&mut connection, "stats proxy"));
    let said = match answered(&proxy, asked) {
        Ok(said) => Fields::of(said),
        Err(look) => return look,
    };
    match (said.text(names::READY), said.text(names::ROLE)) {
        ("1", _) => Look::Missing(Vec::new()),
        (_, "starting") | ("0", "active") => {
            Look::Missing(vec![format!("proxy {proxy} is starting: its servers are looked at")])
        }
        (_, "") => Look::Pointless(Pointless::NoProxy(proxy, "a word of another proxy's".to_owned())),
        (_, role) => {
            let active = match said.text(names::ACTIVE) {
                "none" => "no proxy is active".to_owned(),
                active => format!("the active one is {active}"),
            };
            let why = match said.text(names::TROUBLE) {
                "" => String::new(),
                trouble => format!("; {trouble}"),
            };
            Look::Missing(vec![format!("proxy {proxy} is {role}, and serves nobody; {active}{why}")])
        }
    }
}

/// What is missing of each, by its name.
fn look_at_all(pools: &[ProxyArg], proxy_only: bool, deadline: Instant) -> Look {
    let mut all = Vec::new();
    for at in pools {
        let name = at.pool.as_ref().map_or(String::new(), |pool| format!("pool {pool}: "));
        match look(at, proxy_only, deadline) {
            Look::Missing(missing) => all.extend(missing.into_iter().map(|why| format!("{name}{why}"))),
            pointless => return pointless,
        }
    }
    Look::Missing(all)
}

/// Asks the proxy, and then every server. Past the deadline what is missing already is enough: 256
/// servers that hang would be waited for, one after the other, for minutes more.
fn look(at: &ProxyArg, proxy_only: bool, deadline: Instant) -> Look {
    let proxy = at.name();
    let mut connection = match at.connect() {
        Ok(connection) => connection,
        Err(error) => return unanswered(&proxy, &error),
    };
    let mut ask = |what| answered(&proxy, stats(&mut connection, what));
    // Not `resync status`, which `--operator-commands off` refuses to clients. Who says no closes
    // the connection: to ask on would hide the sentence behind "Connection reset".
    let both = ask("stats resync").and_then(|status| Ok((status, ask("stats servers")?)));
    let (status, servers) = match both {
        Ok(both) => both,
        Err(look) => return look,
    };
    let found = |list: &[(String, String)], name: &str| {
        list.iter().find(|(n, _)| n == name).map_or(String::new(), |(_, v)| v.clone())
    };
    match found(&status, names::MODE).as_str() {
        "" => return Look::Pointless(Pointless::NoProxy(proxy, "a status without a mode".to_owned())),
        "off" => return Look::Pointless(Pointless::Off(proxy)),
        _ => {}
    }
    let of_place = servers.iter().filter_map(|(name, _)| name.strip_suffix(names::PLACE)?.strip_suffix(':'));
    let nodes: Vec<String> = of_place.map(str::to_owned).collect();
    if !nodes.iter().any(|node| found(&servers, &format!("{node}:{}", names::PLACE)) == Place::Backup.to_string()) {
        return Look::Pointless(Pointless::NoBackups(proxy));
    }
    // The proxy's own words: it knows more than its pairs' states.
    let obstacles = status.iter().filter(|(name, _)| name.starts_with(names::OBSTACLE));
    let mut missing: Vec<String> = obstacles.map(|(_, sentence)| sentence.clone()).collect();
    if missing.is_empty() && found(&status, names::MIRRORED) != "1" {
        missing.push("the proxy says that it is not mirrored".to_owned());
    }
    for node in nodes.iter().filter(|_| !proxy_only) {
        if !missing.is_empty() && Instant::now() >= deadline {
            break;
        }
        let of = |field: &str| found(&servers, &format!("{node}:{field}"));
        if of(names::STATE) == "up"
            && let Err(why) = carries_marker(node, &of(names::INCARNATION))
        {
            missing.push(format!("server {node} {why}"));
        }
    }
    Look::Missing(missing)
}

/// What the proxy has said; or what follows from that it has not.
fn answered(proxy: &str, asked: std::io::Result<Answer>) -> Result<Stats, Look> {
    match asked {
        Ok(Answer::Stats(said)) => Ok(said),
        Ok(Answer::Other(line)) if line.starts_with("CLIENT_ERROR ") => {
            Err(Look::Pointless(Pointless::Refused(proxy.to_owned(), line)))
        }
        // `ERROR Too many open connections`: that passes.
        Ok(Answer::Other(line)) if line.contains("ERROR ") => {
            Err(Look::Missing(vec![format!("proxy {proxy}: {line}")]))
        }
        Ok(Answer::Other(line)) => Err(Look::Pointless(Pointless::NoProxy(proxy.to_owned(), line))),
        Err(error) => Err(unanswered(proxy, &error)),
    }
}

fn unanswered(proxy: &str, error: &std::io::Error) -> Look {
    match error.kind() {
        // No such pool.
        ErrorKind::InvalidInput => Look::Pointless(Pointless::Refused(proxy.to_owned(), error.to_string())),
        _ => Look::Missing(vec![format!("proxy {proxy}: {error}")]),
    }
}

/// Whether a server's memory is the one that the proxy knows.
fn carries_marker(node: &str, known: &str) -> Result<(), String> {
    let addr: NodeAddr = node.parse().map_err(|error| format!("is not understood: {error}"))?;
    let asked = Connection::open(&Endpoint::Tcp(addr), ANSWER_TIMEOUT)
        .and_then(|mut node| value(&mut node, marker::INCARNATION_KEY));
    match asked {
        Ok(Some(found)) if found == known => Ok(()),
        Ok(_) => Err("does not hold the memory that the proxy knows: it has not been taken back yet".to_owned()),
        Err(error) => Err(format!("does not answer from here ({error}); --proxy-only leaves this out")),
    }
}

fn value(connection: &mut Connection, key: &str) -> std::io::Result<Option<String>> {
    let said = connection.ask(&format!("get {key}"))?;
    let value = match said.item() {
        Some((found, value)) if found == key.as_bytes() => String::from_utf8_lossy(value).into_owned(),
        _ if said.is_end() => return Ok(None),
        _ => return Err(std::io::Error::other(format!("it answered {:?}", said.line()))),
    };
    connection.reply()?;
    Ok(Some(value))
}
