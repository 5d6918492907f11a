//! `node HOST:PORT COMMAND…`: the operator sends one server one command, over a connection of its
//! own.

use bytes::Bytes;

use crate::ids::NodeId;
use crate::pair::State;
use crate::protocol::answer::{self, client_error};
use crate::protocol::outcome::Outcome;

use super::Cluster;
use super::ask::Asker;
use super::events::Internal;
use crate::backend::{Inquirer, InquiryError, NodeError};

/// The longest answer that is passed on, in bytes: a value of a usual `-I`, and a listing of
/// statistics.
const ANSWER_MAX: usize = 3 << 20;
/// Commands on their way at a time.
const AT_ONCE: usize = 8;
/// The right to recompute an item is given back so often, where clients store over it meanwhile.
const GIVE_BACK_TRIES: usize = 4;

/// What a command does to the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effect {
    /// It tells something, or changes how the server works.
    Harmless,
    /// It ends the server.
    Shutdown,
}

/// Whether one server alone may be told this; `Err`: why not.
fn judge(command: &str) -> Result<Effect, &'static str> {
    let words: Vec<&str> = command.split_ascii_whitespace().collect();
    if words.last() == Some(&"noreply") {
        return Err("noreply: nothing would come back");
    }
    match words.first().copied().unwrap_or_default() {
        "version" | "get" | "gets" | "me" | "verbosity" | "slabs" | "lru" | "refresh_certs" => Ok(Effect::Harmless),
        // What a server evicts for it is counted, and the copies are told to be incomplete.
        "cache_memlimit" => Ok(Effect::Harmless),
        "stats" => match words.get(1) {
            // A marker that is gone means that the memory is, unless the counters say otherwise.
            Some(&"reset") => Err("stats reset: the proxy needs the server's counters to know its memory again"),
            _ => Ok(Effect::Harmless),
        },
        "mg" => {
            match words.iter().skip(2).all(|flag| matches!(*flag, "v" | "f" | "s" | "c" | "t" | "k" | "h" | "l" | "b"))
            {
                true => Ok(Effect::Harmless),
                false => Err("mg: of its flags only v f s c t k h l b, which change nothing and are always answered"),
            }
        }
        "lru_crawler" => match words.get(1) {
            Some(&("metadump" | "mgdump")) => {
                Err("lru_crawler metadump: a list that nobody reads stops the server; ask for it without node")
            }
            _ => Ok(Effect::Harmless),
        },
        "shutdown" => Ok(Effect::Shutdown),
        "watch" => Err("watch: it never ends; connect to the server itself"),
        "debugtime" => Err("debugtime: items would end at other times than their copies"),
        "flush_all" => Err("flush_all: it would empty one copy; say flush_all, or resync HOST:PORT"),
        "set" | "add" | "replace" | "append" | "prepend" | "cas" | "incr" | "decr" | "delete" | "touch" | "gat"
        | "gats" | "ms" | "md" | "ma" => Err("it would change one of two copies; send it to the proxy"),
        _ => Err(
            "no such command; known are version, stats, get, gets, mg, me, verbosity, cache_memlimit, slabs, lru, lru_crawler, refresh_certs, shutdown",
        ),
    }
}

impl Cluster {
    pub(super) fn node_asked(&mut self, asker: Asker, args: &str) {
        match self.node_command(args) {
            Ok((node, command)) => self.command_node(asker, node, command.to_owned()),
            Err(refusal) => self.answer(asker, Outcome::Raw(refusal)),
        }
    }

    /// Which server is meant, and what it may be told.
    fn node_command<'a>(&self, args: &'a str) -> Result<(NodeId, &'a str), Bytes> {
        let (name, command) = args.split_once(' ').unwrap_or((args, ""));
        let command = command.trim();
        if name.is_empty() || command.is_empty() {
            return Err(client_error("node: which server, and which command? node <host:port> <command…>"));
        }
        let Some(node) = self.topology.node_by_name(name) else { return Err(self.unknown_node("node", name)) };
        let effect = judge(command).map_err(|why| client_error(format_args!("node: {why}")))?;
        if effect == Effect::Shutdown && self.holds_an_only_copy(node) {
            return Err(client_error(format_args!("node: {name} holds the only full copy of keys; see resync status")));
        }
        if self.commanded >= AT_ONCE {
            return Err(Bytes::from_static(b"SERVER_ERROR node: other commands are on their way\r\n"));
        }
        Ok((node, command))
    }

    /// Whether what it holds of some pair nobody else has in full.
    fn holds_an_only_copy(&self, node: NodeId) -> bool {
        let place = self.topology.place(node);
        self.topology.pairs_of(node).filter(|&p| self.topology.pair_is_used(p)).any(|p| {
            match self.pairs[p.index()].pair.state() {
                State::Mirrored => !self.topology.has_backups(),
                State::Degraded { leader } | State::Recovering { leader } => leader == place,
                State::Dark { in_sync, .. } => in_sync.is_none_or(|holder| holder == place),
            }
        })
    }

    fn command_node(&mut self, asker: Asker, node: NodeId, command: String) {
        self.commanded += 1;
        let (inquirer, name) = (self.inquirers[node.index()].clone(), self.topology.addr(node).to_string());
        // A key may be a secret: the id of somebody's session.
        let told = command.split(' ').next().unwrap_or_default();
        tracing::info!(node = %name, command = told, "an operator sends a server a command");
        self.spawn(async move {
            let answer = match inquirer.tell(&command, ANSWER_MAX).await {
                Ok(answer) => {
                    if let Some(key) = Looked::key(&command)
                        && Looked::of(&answer).won
                        && let Err(error) = give_back(&inquirer, &key, Looked::of(&answer)).await
                    {
                        tracing::warn!(node = %name, %error, "an operator's mg has taken the right to recompute a stale item, and could not give it back");
                    }
                    answer
                }
                // It has no other answer to that.
                Err(InquiryError::Node(NodeError::Reset)) if command.starts_with("shutdown") => {
                    Bytes::from_static(answer::OK)
                }
                Err(error) => Bytes::from(format!("SERVER_ERROR node: {name} {error}\r\n")),
            };
            Internal::NodeAnswered { asker, answer }
        });
    }

    pub(super) fn node_answered(&mut self, asker: Asker, answer: Bytes) {
        self.commanded -= 1;
        self.answer(asker, Outcome::Raw(answer));
    }
}

/// What `mg` shows of an item beside what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Looked {
    /// Whoever has asked is to recompute it.
    won: bool,
    /// A client has said that it is out of date.
    invalid: bool,
    cas: Option<u64>,
}

impl Looked {
    /// The key with its flag, where the command is one.
    fn key(command: &str) -> Option<String> {
        let mut words = command.split_ascii_whitespace();
        let key = words.next().filter(|verb| *verb == "mg").and_then(|_| words.next())?;
        Some(if words.any(|flag| flag == "b") { format!("{key} b") } else { key.to_owned() })
    }

    fn of(answer: &[u8]) -> Looked {
        let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let text = String::from_utf8_lossy(line);
        let flags = || text.split(' ').skip(1);
        let has = |wanted: &str| flags().any(|flag| flag == wanted);
        let cas = flags().find_map(|flag| flag.strip_prefix('c')?.parse().ok());
        Looked { won: has("W"), invalid: has("X"), cas }
    }
}

/// The right to recompute a stale item is a client's. Where a client has stored what is stale as
/// well over it meanwhile, memcached goes on to keep in mind that somebody recomputes it.
async fn give_back(inquirer: &Inquirer, key: &str, mut looked: Looked) -> Result<(), InquiryError> {
    for _ in 0..GIVE_BACK_TRIES {
        if looked.cas.is_none() {
            looked = Looked::of(&inquirer.tell(&format!("mg {key} c"), ANSWER_MAX).await?);
        }
        // (Without cas ids it could hit the fresh item that a client has just stored.)
        let Some(cas) = looked.cas.filter(|cas| looked.invalid && *cas != 0) else { break };
        if !inquirer.tell(&format!("md {key} I C{cas}"), ANSWER_MAX).await?.starts_with(b"EX") {
            break;
        }
        looked.cas = None;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_look_has_won_is_told_from_what_it_shows() {
        let looked = |won, invalid, cas| Looked { won, invalid, cas };
        assert_eq!(Looked::of(b"VA 1 f0 t-1 c7 X W\r\nW\r\n"), looked(true, true, Some(7)));
        assert_eq!(Looked::of(b"HD kW c7 Z X\r\n"), looked(false, true, Some(7)));
        assert_eq!(Looked::of(b"VA 3\r\n X W\r\n"), looked(false, false, None));
        assert_eq!(Looked::of(b"EN\r\n"), looked(false, false, None));
        assert_eq!(Looked::key("mg a v c"), Some("a".to_owned()));
        assert_eq!(Looked::key("mg YQ== v b c"), Some("YQ== b".to_owned()));
        assert_eq!(Looked::key("me a"), None);
        assert_eq!(Looked::key("mg"), None);
    }

    #[test]
    fn nothing_that_would_make_copies_different_is_sent_to_one_server() {
        for command in [
            "set k 0 0 1",
            "ms k 1",
            "md k",
            "ma k",
            "mg k v T5",
            "mg k N5",
            "mg k q",
            "delete k",
            "incr k 1",
            "gat 5 k",
            "touch k 5",
            "flush_all",
            "flush_all 5",
            "stats reset",
            "watch",
            "debugtime 5",
            "lru_crawler metadump all",
            "verbosity 1 noreply",
            "nosuch",
            "quit",
            "",
        ] {
            assert!(judge(command).is_err(), "{command}");
        }
        for command in [
            "version",
            "stats",
            "stats items",
            "get a b",
            "mg k v t",
            "me k",
            "cache_memlimit 100",
            "slabs automove 1",
            "lru tune 10 20 0.1 2",
            "lru_crawler enable",
            "verbosity 1",
        ] {
            assert_eq!(judge(command), Ok(Effect::Harmless), "{command}");
        }
        assert_eq!(judge("shutdown graceful"), Ok(Effect::Shutdown));
    }
}
