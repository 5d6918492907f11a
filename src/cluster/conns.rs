//! `stats conns`: the workers are asked who is connected, all of them in a round.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::ids::WorkerId;
use crate::protocol::outcome::Outcome;
use crate::proxy::{Command, Connected};
use crate::report::lines::Lines;

use super::Cluster;
use super::asker::Asker;

/// The round under way.
#[derive(Default)]
pub(super) struct Conns {
    round: u64,
    /// Who gets the answer of this round; requests that come meanwhile wait for the next one.
    askers: Vec<Asker>,
    waiting: Vec<Asker>,
    /// Who has not said yet who is connected.
    unheard: BTreeSet<WorkerId>,
    found: Vec<Connected>,
    more: usize,
}

impl Cluster {
    pub(super) fn stats_conns(&mut self, asker: Asker) {
        self.operators.conns.waiting.push(asker);
        self.ask_conns();
    }

    fn ask_conns(&mut self) {
        if !self.operators.conns.unheard.is_empty() || self.operators.conns.waiting.is_empty() {
            return;
        }
        let conns = &mut self.operators.conns;
        conns.round += 1;
        conns.askers = std::mem::take(&mut conns.waiting);
        conns.unheard = WorkerId::all(self.workers.len()).collect();
        for worker in &self.workers {
            let _ = worker.send(Command::WhoIsConnected { round: conns.round });
        }
    }

    pub(super) fn connected(&mut self, worker: WorkerId, round: u64, told: Vec<Connected>, more: usize) {
        let conns = &mut self.operators.conns;
        if round != conns.round || !conns.unheard.remove(&worker) {
            return;
        }
        conns.found.extend(told);
        conns.more += more;
        if conns.unheard.is_empty() {
            let told = self.tell_conns();
            for asker in std::mem::take(&mut self.operators.conns.askers) {
                self.answer(asker, Outcome::Raw(told.clone()));
            }
            self.ask_conns();
        }
    }

    /// Numbered as memcached numbers them by their descriptors.
    fn tell_conns(&mut self) -> Bytes {
        let mut out = Lines::default();
        let mut number = 0;
        let mut next = || {
            number += 1;
            number
        };
        let uptime = self.begun.at.elapsed().as_secs();
        let tcp = self.settings.listen.iter().map(|at| format!("tcp:{at}"));
        let unix = self.settings.unix_socket.iter().map(|path| format!("unix:{}", path.display()));
        for at in tcp.chain(unix) {
            let fd = next();
            out.put(format_args!("{fd}:addr"), at);
            out.put(format_args!("{fd}:state"), "conn_listening");
            out.put(format_args!("{fd}:secs_since_last_cmd"), uptime);
        }
        for client in std::mem::take(&mut self.operators.conns.found) {
            let fd = next();
            out.put(format_args!("{fd}:addr"), client.peer);
            out.put(format_args!("{fd}:listen_addr"), client.local);
            out.put(format_args!("{fd}:state"), client.state);
            out.put(format_args!("{fd}:secs_since_last_cmd"), client.silent.as_secs());
        }
        let more = std::mem::take(&mut self.operators.conns.more);
        if more > 0 {
            out.put("conns_not_shown", more);
        }
        out.end()
    }
}
