//! What operators ask: `stats`, `resync`, `flush_all` over the text protocol, the first two over
//! the admin socket too, and the whole report for the admin listener.

use bytes::Bytes;

use crate::ids::{NodeId, PairId, Place};
use crate::pair::{self, FillEvent, State};
use crate::protocol::KEY_LEN_MAX;
use crate::protocol::answer::{self, client_error};
use crate::protocol::outcome::Outcome;
use crate::protocol::spelled;
use crate::protocol::statistics::Stats;
use crate::proxy::{Command, Question};
use crate::report::lines::Lines;
use crate::ring::Distribution;

use super::Cluster;
use super::asker::Asker;
use super::desk::{Looker, Request};
use super::inquiries::Inquiry;

const OK: Bytes = Bytes::from_static(answer::OK);

impl Cluster {
    pub(super) fn answer(&mut self, asker: Asker, outcome: Outcome) {
        if asker.worker == Asker::AT_THE_DESK {
            return self.operators.desk.answer(asker.slot, outcome);
        }
        let answer = Command::Answer { client: asker.client, slot: asker.slot, outcome };
        let _ = self.workers[asker.worker.index()].send(answer);
    }

    /// Whether the asker still waits, as far as is known here.
    pub(super) fn still_waits(&self, asker: &Asker) -> bool {
        asker.worker != Asker::AT_THE_DESK || self.operators.desk.is_awaited(asker.slot)
    }

    pub(super) fn asked(&mut self, asker: Asker, question: Question) {
        let answer = match question {
            Question::FlushAll { delay } => return self.flush_all(asker, delay),
            Question::Stats(args) => match args.split_ascii_whitespace().next() {
                Some("servers") => {
                    self.ask_what_is_held();
                    self.report().stats_servers().end()
                }
                Some("resync") => {
                    self.ask_what_is_held();
                    self.report().resync_status(false).end()
                }
                Some("traffic") => self.report().stats_traffic().end(),
                Some("key") => self.key_asked(&args),
                Some("proxy") => self.fleet.losses.shown().unwrap_or_else(|| Lines::of_proxy("active", true).end()),
                Some("conns") => return self.stats_conns(asker),
                _ => match Inquiry::parse(&args) {
                    Ok(inquiry) => return self.inquire(asker, inquiry),
                    Err(answer) => answer,
                },
            },
            Question::Resync(args) => self.resync_asked(&args),
            Question::List(classes) => return self.list(asker, &classes),
            Question::Node(args) => return self.node_asked(asker, &args),
        };
        self.answer(asker, Outcome::Raw(answer));
    }

    pub(super) fn asked_at_the_desk(&mut self, request: Request) {
        // While the lease was over the request waited: its sender may have given up.
        if request.is_given_up() {
            return;
        }
        match request {
            // The receiver of the reply may be gone.
            Request::Report(looker, reply) => {
                if looker == Looker::Person {
                    self.ask_what_is_held();
                }
                drop(reply.send(Box::new(self.report())));
            }
            Request::Settings(new, reply) => {
                self.take_settings(&new);
                let _ = reply.send(());
            }
            Request::Command(question, reply) => {
                let asker = Asker::at_the_desk(self.operators.desk.wait_for(reply));
                self.asked(asker, question);
            }
            Request::List(classes, pieces, end) => {
                let asker = Asker::at_the_desk(self.operators.desk.wait_for(end));
                self.list_at_the_desk(asker, &classes, pieces);
            }
        }
    }

    /// `stats key KEY`: where it belongs.
    fn key_asked(&self, args: &str) -> Bytes {
        match args.split_ascii_whitespace().collect::<Vec<_>>().as_slice() {
            [_, name] => match spelled::bytes(name) {
                key if key.len() <= KEY_LEN_MAX => {
                    self.report().stats_key(name, self.topology.pair_of(&key).index()).end()
                }
                _ => client_error(format_args!("stats key: a key has at most {KEY_LEN_MAX} bytes")),
            },
            _ => client_error("stats key: which key? stats key <key>"),
        }
    }

    fn resync_asked(&mut self, args: &str) -> Bytes {
        let mut words = args.split_ascii_whitespace();
        let (first, second, third) = (words.next(), words.next(), words.next());
        if third.is_some() {
            return client_error(
                "resync: too many words; try resync, resync <host:port>, resync status [all], resync verify [<host:port>], resync cancel [<host:port>], resync lead <host:port>, resync gone, resync handover",
            );
        }
        match (first, second) {
            (Some("status"), None) => self.report().resync_status(false).end(),
            (Some("status"), Some("all")) => self.report().resync_status(true).end(),
            (Some("status"), Some(word)) => client_error(format_args!(
                "resync status: unexpected word {word}; try resync status, or resync status all"
            )),
            (Some("handover"), None) => match self.fleet.losses.hand_over() {
                Ok(successors) => Bytes::from(format!("OK {}\r\n", successors.join(" "))),
                Err(why) => client_error(format_args!("resync handover: {why}")),
            },
            _ if !self.topology.has_backups() => {
                client_error("resync: there are no backups (-b), so there is nothing to refill from")
            }
            (None, _) => {
                for node in self.topology.nodes() {
                    self.ask_refill(node);
                }
                OK
            }
            (Some("verify"), name) => {
                let node = match name.map(|name| self.topology.node_by_name(name).ok_or(name)) {
                    None => None,
                    Some(Ok(node)) => Some(node),
                    Some(Err(name)) => return self.unknown_node("resync", name),
                };
                match self.begin_verify(node) {
                    Ok(()) => OK,
                    Err(why) => client_error(format_args!("resync verify: {why}")),
                }
            }
            (Some("cancel"), None) => {
                self.cancel_verify();
                for node in self.topology.nodes() {
                    self.cancel_job(node);
                }
                OK
            }
            (Some("cancel"), Some(name)) => match self.topology.node_by_name(name) {
                Some(node) if self.cancel_job(node) => OK,
                Some(_) => client_error(format_args!("resync cancel: no resync of {name} is under way")),
                None => self.unknown_node("resync", name),
            },
            (Some("gone"), None) if self.awaits_former() => {
                self.former_gone(None, "the operator says so");
                OK
            }
            (Some("gone"), None) => client_error("resync gone: no former active proxy is waited for"),
            (Some("lead"), None) => client_error("resync lead: which server? resync lead <host:port>"),
            (Some("lead"), Some(name)) => match self.topology.node_by_name(name) {
                Some(node) => self.promote(node, name),
                None => self.unknown_node("resync", name),
            },
            (Some(name), None) => match self.topology.node_by_name(name) {
                Some(node) => self.distrust(node, name),
                None => self.unknown_node("resync", name),
            },
            (Some(_), Some(word)) => client_error(format_args!("resync: unexpected word {word}")),
        }
    }

    pub(super) fn unknown_node(&self, command: &str, name: &str) -> Bytes {
        let known: Vec<String> = self.topology.nodes().map(|n| self.topology.addr(n).to_string()).collect();
        client_error(format_args!("{command}: unknown node or word {name}; nodes are {}", known.join(" ")))
    }

    fn ask_refill(&mut self, node: NodeId) {
        let run = &mut self.nodes[node];
        run.refills.ask();
        self.unsettled.node(node);
    }

    /// Refills a node in full, even if it seems fine.
    fn distrust(&mut self, node: NodeId, name: &str) -> Bytes {
        let place = self.topology.place(node);
        let leads_alone = |p: PairId| matches!(self.pairs[p].pair.state(), State::Degraded { leader } | State::Recovering { leader } if leader == place);
        if self.topology.pairs_of(node).all(leads_alone) {
            return client_error(format_args!(
                "resync: {name} holds the only full copy of its keys, there is nothing to refill it from"
            ));
        }
        if self.topology.pairs_of(node).any(|p| self.pairs[p].pair.is_foreign()) {
            return client_error("resync: another proxy works on these servers; stop one of the two first");
        }
        for pair in self.topology.pairs_of(node) {
            let state = self.pairs[pair].pair.state();
            if matches!(state, State::Degraded { leader } if leader != place) {
                // In full, also where only a part was to be filled.
                self.plan(pair, FillEvent::Operator);
            }
            self.apply(pair, pair::Event::Distrust(place));
        }
        self.ask_refill(node);
        OK
    }

    /// The operator gives up what only the other nodes hold: this one leads its dark pairs with
    /// what it has.
    fn promote(&mut self, node: NodeId, name: &str) -> Bytes {
        let place = self.topology.place(node);
        let dark: Vec<PairId> = self
            .topology
            .pairs_of(node)
            .filter(|p| matches!(self.pairs[*p].pair.state(), State::Dark { .. }))
            .collect();
        let run = &self.nodes[node];
        if dark.is_empty() {
            return client_error(format_args!("resync lead: {name} has no dark pair"));
        }
        if !run.health.is_up() || !run.is_drained() {
            return client_error(format_args!("resync lead: {name} does not answer, or has old commands to execute"));
        }
        if run.refills.job.is_some() {
            return client_error(format_args!(
                "resync lead: what {name} holds is being changed by a resync; see resync status"
            ));
        }
        for pair in dark {
            tracing::error!(pair = %self.pair_name(pair), leader = name,
                "the operator makes a node lead with what it holds: writes that only the other node has are lost");
            self.pairs[pair].beginning.undecided = false;
            if let Some(lacks) = self.given_up_for(pair, place) {
                self.items_lost(pair, lacks);
            }
            // The other one holds what this one never saw, and no list of it.
            self.plan(pair, FillEvent::Operator);
            self.apply(pair, pair::Event::Promote(place));
        }
        OK
    }

    /// The proxy's own.
    pub(super) fn reset_counters(&mut self) {
        let now = self.counters();
        self.operators.reset_counters(&now);
        self.suspects.reset_counters();
    }

    /// `servers`: what they say of theirs, which is shown where it is not the proxy's own.
    pub(super) fn stats_settings(&self, servers: Stats) -> Bytes {
        let s = &self.settings;
        let mut out = Lines::over(servers);
        out.put("maxconns", s.max_clients);
        out.put("tcpport", s.listen.first().map_or(0, |a| a.port()));
        out.put("udpport", 0);
        out.put("umask", format_args!("{:o}", s.unix_socket_mode));
        out.put("shutdown_command", "no");
        out.put("num_threads_per_udp", s.threads);
        out.put("binding_protocol", "auto-negotiate");
        out.put("auth_enabled_sasl", "no");
        out.put("auth_enabled_ascii", "no");
        out.put("maxconns_fast", "yes");
        out.put("flush_enabled", "yes");
        out.put("dump_enabled", "yes");
        out.put("idle_timeout", s.idle_timeout.map_or(0, |time| time.as_secs()));
        out.put("ssl_enabled", "no");
        out.put("inter", s.listen.first().map_or("NULL".to_owned(), |a| a.ip().to_string()));
        out.put("domain_socket", s.unix_socket.as_ref().map_or("NULL".to_owned(), |p| p.display().to_string()));
        out.put("num_threads", s.threads);
        out.put("item_size_max", s.item_size_max);
        out.put("client_memory", s.client_memory);
        out.put("distribution", if s.distribution == Distribution::Ketama { "ketama" } else { "modula" });
        out.put("node_connections", s.node_connections);
        out.put("resync", self.mode());
        out.put("resync_rate", s.resync_rate.unwrap_or(0));
        out.put("resync_memory", s.resync_memory);
        out.put(
            "resync_latency",
            s.resync_latency.map_or("off".to_owned(), |time| humantime::format_duration(time).to_string()),
        );
        out.put("verify_rate", s.verify_rate.unwrap_or(0));
        out.put("timeout", humantime::format_duration(s.timeout));
        out.put("leader_timeout", humantime::format_duration(s.leader_timeout));
        out.put("leader_grace", humantime::format_duration(s.leader_grace));
        out.put("probe_interval", humantime::format_duration(s.probe_interval));
        out.put("probe_timeout", humantime::format_duration(s.probe_timeout));
        out.put("probe_successes", s.probe_successes);
        let primaries = self.topology.nodes().filter(|n| self.topology.place(*n) == Place::Primary).count();
        out.put("primaries", primaries);
        out.put("backups", self.topology.node_count() - primaries);
        out.end()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc::unbounded_channel;
    use tokio::sync::oneshot;

    use super::*;
    use crate::cluster::alone::{alone, unanswered};
    use crate::cluster::asker::NOBODY;
    use crate::config::Settings;
    use crate::ids::WorkerId;
    use crate::proxy::SlotNumber;

    /// Its servers hang: what it is it says all the same, to clients and operators, and within a
    /// second what it knows; what else it is asked waits.
    #[tokio::test(start_paused = true)]
    async fn a_proxy_says_that_it_is_starting() {
        let mut cluster = unanswered("--timeout 1h -s 127.0.0.1:1 -b 127.0.0.1:2");
        let patience = Duration::from_secs(2);
        let (worker, mut told) = unbounded_channel();
        cluster.workers = vec![worker];
        let (desk, (event, events)) = (cluster.desk(), unbounded_channel());
        tokio::spawn(cluster.run(events));
        let ask = |words: &str| Question::Stats(words.to_owned());
        let said = tokio::time::timeout(patience, desk.command(ask("proxy"))).await.expect("at once").unwrap();
        assert_eq!(said, "STAT proxy:role starting\r\nSTAT proxy:ready 0\r\nEND\r\n");
        let list = Question::List(String::new());
        for question in [list, ask("resync"), ask(""), Question::Resync("status".to_owned()), ask("proxy")] {
            let (worker, client, slot) = (WorkerId(0), NOBODY, SlotNumber(3));
            event.send(crate::proxy::Event::Ask { worker, client, slot, question }).unwrap();
        }
        let begun = tokio::time::Instant::now();
        let at_the_desk = (desk.command(ask("servers")), desk.command(ask("")), desk.report());
        let (servers, all, report) = futures::future::join3(at_the_desk.0, at_the_desk.1, at_the_desk.2).await;
        let (servers, all) = (text(&servers.expect("an answer")), text(&all.expect("an answer")));
        assert!(servers.starts_with("SERVER_ERROR this proxy is starting"), "{servers}");
        assert!(all.starts_with("STAT pid ") && all.ends_with(&text(&said)), "{all}");
        assert!(report.is_none(), "there is nothing to tell");
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        let mut answers = Vec::new();
        while let Ok(Command::Answer { outcome, .. }) = told.try_recv() {
            answers.push(match outcome {
                Outcome::Raw(bytes) => text(&bytes),
                Outcome::Refused(refusal) => refusal.words().to_owned(),
                other => panic!("{other:?}"),
            });
        }
        let [proxy, resync, all, status] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!(*proxy, text(&said), "at once");
        assert!(all.starts_with("STAT pid ") && resync.starts_with("this proxy is starting") && resync == status);
    }

    fn text(bytes: &Bytes) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// Whoever was told that there is no answer finds everything as it was.
    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_any_more_is_not_done() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2 --threads 1");
        cluster.begin_open(State::Mirrored);
        for waits in [false, true] {
            let (reply, answer) = oneshot::channel();
            let answer = waits.then_some(answer);
            let question = Question::Resync("127.0.0.1:2".to_owned());
            cluster.asked_at_the_desk(Request::Command(question, reply));
            let untouched = cluster.pairs[PairId(0)].pair.state() == State::Mirrored;
            assert_eq!((untouched, answer.is_some_and(|mut answer| answer.try_recv().is_ok())), (!waits, waits));
            let (reply, answer) = oneshot::channel();
            let answer = waits.then_some(answer);
            let new = Settings { max_clients: 5, ..cluster.settings.clone() };
            cluster.asked_at_the_desk(Request::Settings(Box::new(new), reply));
            assert_eq!((cluster.settings.max_clients == 5, answer.is_some()), (waits, waits));
        }
    }
}
