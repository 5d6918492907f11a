//! What a proxy of a fleet says of itself.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::watch;

use crate::lease;
use crate::report::lines::Lines;
use crate::stats::closings::{Closed, closed};

use super::keeper::{Known, Role};
use super::over::Ends;
use super::reach::Reached;
use super::standbys::{Fitness, Standbys};

/// What others may look at.
#[derive(Default)]
pub(super) struct Shown {
    pub(super) forwarded: AtomicU64,
    /// Clients of this proxy as a standby that were closed, by why.
    pub(super) ends: Ends,
    /// A control connection to the active proxy is open.
    pub(super) reached: AtomicBool,
    /// What of the servers this proxy reaches itself.
    pub(super) reached_servers: watch::Sender<Reached>,
    /// This is the active proxy, and its start over the servers is done.
    pub(super) serves: Arc<AtomicBool>,
    /// The active proxy, where this is it, waits for the former one to be gone.
    pub(super) former: Arc<AtomicBool>,
    /// The standbys that have called the active proxy, where this is it.
    pub(super) standbys: Arc<Standbys>,
}

impl Shown {
    /// As a standby it serves clients, and could become active.
    pub(super) fn is_ready_standby(&self, known: &Known) -> bool {
        self.reached.load(Ordering::Relaxed) && !known.unfit
    }

    /// The answer to `stats proxy`.
    pub(super) fn lines(&self, known: &Known, own: &str) -> Bytes {
        let is_starting = known.role == Role::Active && !self.serves.load(Ordering::Relaxed);
        let ready =
            known.role == Role::Active && !is_starting || known.role == Role::Standby && self.is_ready_standby(known);
        let lease_ms = match known.role {
            Role::Active => lease::left().as_millis(),
            Role::Standby | Role::Suspended => 0,
        };
        let mut out = Lines::default();
        let mut put = |name: &str, value: &dyn Display| {
            // What others say of themselves may be anything.
            let printable = |text: String| text.replace(char::is_control, "?");
            out.put(printable(format!("proxy:{name}")), printable(value.to_string()));
        };
        put("role", &known.role.word());
        put("generation", &known.generation);
        put("active", &known.active.as_deref().unwrap_or("none"));
        put("own", &own);
        put("lease_ms", &lease_ms);
        put("former", &if self.former.load(Ordering::Relaxed) { "awaited" } else { "none" });
        put("ready", &u8::from(ready));
        if is_starting {
            put("starting", &1);
        }
        put("forwarded", &self.forwarded.load(Ordering::Relaxed));
        self.ends.all().for_each(|(why, count)| put(why, &count));
        for Closed { listener, reason, count } in closed() {
            put(&format!("{listener}_closed_{reason}"), &count);
        }
        if let Some(trouble) = self.trouble(known) {
            put("trouble", &trouble.replace(char::is_control, " "));
        }
        for (address, what) in self.others(known) {
            put(&format!("peer:{address}"), &what);
        }
        out.end()
    }

    /// What keeps this proxy, or all of them, from being active.
    fn trouble(&self, known: &Known) -> Option<String> {
        known.trouble.clone().or_else(|| self.no_server(known))
    }

    /// Where no proxy is active: that none can be, for no server answers.
    pub(super) fn no_server(&self, known: &Known) -> Option<String> {
        match &*self.reached_servers.borrow() {
            Reached::None(why) if known.active.is_none() || known.silent => Some(format!("no server answers ({why})")),
            _ => None,
        }
    }

    /// What a standby tells the active proxy.
    pub(super) fn fitness(&self, known: &Known) -> Fitness {
        match &*self.reached_servers.borrow() {
            _ if known.trouble.is_some() => Fitness::NoStore,
            Reached::None(_) => Fitness::NoServer,
            Reached::All => Fitness::ReachesAll,
            Reached::Unknown | Reached::Some => Fitness::Fit,
        }
    }

    /// A sentence about a standby.
    pub(super) fn in_one_line(&self, known: &Known) -> String {
        let trouble = self.trouble(known).map_or(String::new(), |why| format!("; {why}"));
        let reached = self.reached.load(Ordering::Relaxed);
        match &known.active {
            Some(active) if reached => format!("STANDBY: clients are served by the active proxy, {active}{trouble}"),
            Some(active) => format!("STANDBY: the active proxy, {active}, is not reached: clients wait{trouble}"),
            None => format!("STANDBY: no proxy is active: clients wait{trouble}"),
        }
    }

    /// The other proxies, as this one knows them: standbys call the active one, and know it alone.
    fn others(&self, known: &Known) -> Vec<(String, String)> {
        let active = match (&known.active, known.role) {
            (_, Role::Active | Role::Suspended) => return self.standbys.all(),
            (Some(active), Role::Standby) => active,
            (None, Role::Standby) => return Vec::new(),
        };
        let how = match self.reached.load(Ordering::Relaxed) {
            true => "reached",
            false if known.silent => "silent",
            false => "not reached",
        };
        vec![(active.clone(), format!("active, {how}"))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::standbys::Peer;

    /// A rolling upgrade waits for it before the next proxy is stopped.
    #[test]
    fn a_standby_that_could_not_become_active_is_not_ready() {
        let shown = Shown::default();
        shown.reached.store(true, Ordering::Relaxed);
        for (unfit, ready) in [(false, "proxy:ready 1"), (true, "proxy:ready 0")] {
            let known = Known { unfit, ..Known::default() };
            let lines = String::from_utf8(shown.lines(&known, "10.0.0.5:1").to_vec()).unwrap();
            assert!(lines.contains(ready), "{lines}");
            assert_eq!(shown.is_ready_standby(&known), !unfit);
        }
    }

    #[test]
    fn nothing_that_others_say_of_themselves_begins_a_line() {
        let shown = Shown::default();
        let _entry = shown.standbys.enter(Peer::of(&["10.0.0.6:1\r\nSTAT", "yes", "1.0\r\nEND\r\n"]), 2);
        let active = Some("10.0.0.5:1\rEND".to_owned());
        let known = Known { role: Role::Active, active, trouble: Some("two\nlines".to_owned()), ..Known::default() };
        let lines = String::from_utf8(shown.lines(&known, "10.0.0.5:1").to_vec()).unwrap();
        let lines: Vec<&str> = lines.strip_suffix("END\r\n").unwrap().split_terminator("\r\n").collect();
        assert!(
            lines.iter().all(|line| line.starts_with("STAT proxy:") && !line.contains(char::is_control)),
            "{lines:?}"
        );
        assert!(lines.iter().any(|line| line.contains("proxy:peer:10.0.0.6:1") && line.contains("candidate")));
    }
}
