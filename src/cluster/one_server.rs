//! `node HOST:PORT COMMAND…`: the operator sends one server one command, over a connection of its
//! own.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use crate::ids::NodeId;
use crate::pair::State;
use crate::protocol::answer::{self, client_error, server_error};
use crate::protocol::item::Answer;
use crate::protocol::key::from_base64;
use crate::protocol::outcome::Outcome;
use crate::protocol::reply::{Frame, parse_reply};
use crate::protocol::spelled;

use super::Cluster;
use super::asker::Asker;
use super::events::Internal;
use crate::backend::{ANSWER_MAX, InquiryError, NodeError};

/// Commands on their way at a time.
const AT_ONCE: usize = 8;

/// How long a server is waited for at most, with the dial: less than the desk waits, and
/// `resilver key`, which asks two servers of which one may hang.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a command does to the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Effect {
    /// It tells something, or changes how the server works.
    Harmless,
    /// It ends the server.
    Shutdown,
}

/// Whether this command may be sent to one server alone; `Err`: why not.
fn judge(command: &str) -> Result<Effect, &'static str> {
    let words: Vec<&str> = command.split_ascii_whitespace().collect();
    if words.last() == Some(&"noreply") {
        return Err("noreply: nothing would come back");
    }
    match words.first().copied().unwrap_or_default() {
        "version" | "get" | "gets" | "me" | "verbosity" | "slabs" | "lru" | "refresh_certs" => Ok(Effect::Harmless),
        // What a server evicts because of it is counted, and its pairs are called incomplete.
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

    /// Which server is meant, and the command for it.
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
        if self.operators.commanded >= AT_ONCE {
            return Err(server_error("node: other commands are on their way"));
        }
        Ok((node, command))
    }

    /// Whether it holds the only full copy of some pair.
    fn holds_an_only_copy(&self, node: NodeId) -> bool {
        let place = self.topology.place(node);
        self.topology.pairs_of(node).filter(|&p| self.topology.pair_is_used(p)).any(|p| {
            match self.pairs[p].pair.state() {
                State::Mirrored => !self.topology.has_backups(),
                State::Degraded { leader } | State::Recovering { leader } => leader == place,
                State::Dark { in_sync, .. } => in_sync.is_none_or(|holder| holder == place),
            }
        })
    }

    fn command_node(&mut self, asker: Asker, node: NodeId, command: String) {
        self.operators.commanded += 1;
        let (inquirer, name) = (self.operators.inquirers[node].clone(), self.topology.addr(node).to_string());
        // A key may be a secret: the id of somebody's session.
        let told = command.split(' ').next().unwrap_or_default();
        tracing::info!(node = %name, command = told, "an operator sends a server a command");
        self.spawn(async move {
            let until = Instant::now() + PATIENCE;
            let told = timeout_at(until, inquirer.tell(&command, ANSWER_MAX)).await;
            let told = told.unwrap_or(Err(InquiryError::Node(NodeError::Timeout)));
            let answer = match told {
                Ok(answer) => {
                    // The right to recompute belongs to clients: give it back.
                    if let Some((key, binary, cas)) = won(&command, &answer)
                        && let Err(error) = timeout_at(until, inquirer.give_back(key, binary, cas))
                            .await
                            .unwrap_or(Err(NodeError::Timeout))
                    {
                        tracing::warn!(node = %name, %error, "an operator's mg has taken the right to recompute a stale item, and could not give it back");
                    }
                    answer
                }
                // It has no other answer to that.
                Err(InquiryError::Node(NodeError::Reset)) if command.starts_with("shutdown") => {
                    Bytes::from_static(answer::OK)
                }
                Err(error) => server_error(format_args!("node: {name} {error}")),
            };
            Internal::NodeAnswered { asker, answer }
        });
    }

    pub(super) fn node_answered(&mut self, asker: Asker, answer: Bytes) {
        self.operators.commanded -= 1;
        self.answer(asker, Outcome::Raw(answer));
    }
}

/// The key of a stale item that this answer gives the right to recompute, whether it is written in
/// base64, and the item's cas id, if the command has asked for it.
fn won(command: &str, answer: &Bytes) -> Option<(Bytes, bool, Option<u64>)> {
    let mut words = command.split_ascii_whitespace();
    let key = words.next().filter(|verb| *verb == "mg").and_then(|_| words.next())?;
    let flags: Vec<&str> = words.collect();
    let binary = flags.contains(&"b");
    let reply = parse_reply(answer).ok()??;
    let answer = Answer::to_unechoed(&Frame::first(answer, &reply, Duration::ZERO)).ok()?;
    let key = if binary { from_base64(key.as_bytes())? } else { Bytes::from(spelled::bytes(key)) };
    answer.won.then(|| (key, binary, flags.contains(&"c").then_some(answer.cas)))
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::cluster::alone::unanswered;
    use crate::cluster::desk::Request;
    use crate::proxy::Question;

    /// However long requests may wait for it: who asks gives up before that.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_hangs_is_waited_for_no_longer_than_whoever_asks_waits() {
        let mut cluster = unanswered("--timeout 1h -s 127.0.0.1:1 -b 127.0.0.1:2");
        cluster.begin_open(State::Mirrored);
        let mut inbox = cluster.inbox.take().unwrap();
        let (reply, mut answer) = oneshot::channel();
        let begun = Instant::now();
        cluster.asked_at_the_desk(Request::Command(Question::Node("127.0.0.1:1 version".to_owned()), reply));
        while answer.try_recv().is_err() {
            cluster.own_task_said(inbox.recv().await.unwrap());
            assert!(begun.elapsed() < Duration::from_secs(20), "the desk has given up");
        }
    }

    #[test]
    fn what_a_look_has_won_is_told_from_what_it_shows() {
        let told = |command: &str, answer: &'static str| {
            let told = won(command, &Bytes::from_static(answer.as_bytes()));
            told.map(|(key, binary, cas)| (String::from_utf8_lossy(&key).into_owned(), binary, cas))
        };
        let a = |cas| Some(("a".to_owned(), false, cas));
        assert_eq!(told("mg a v f t c", "VA 1 f0 t-1 c7 X W\r\nW\r\n"), a(Some(7)));
        assert_eq!(told("mg a", "HD X W\r\n"), a(None));
        assert_eq!(told("mg YQ== v b c", "VA 1 b c7 X W\r\nx\r\n"), Some(("a".to_owned(), true, Some(7))));
        for (command, answer) in [
            ("mg W k c", "HD kW c7 Z X\r\n"),
            ("mg a v", "VA 3\r\n X W\r\n"),
            ("mg a", "EN\r\n"),
            ("me a", "ME a exp=-1 X W\r\n"),
            ("mg", "CLIENT_ERROR bad command line format\r\n"),
        ] {
            assert_eq!(told(command, answer), None, "{command}");
        }
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
