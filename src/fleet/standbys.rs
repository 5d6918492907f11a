//! What the active proxy knows of the standbys that have called it: who they are, and whether each
//! could take its place.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Since this version of the line between proxies a standby says whether it could take over.
const SAYS_WHETHER_FIT: u32 = 2;

/// What a standby says of itself each time that it asks, in one byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fitness {
    /// The store given by `--coordinate` does not answer it.
    NoStore,
    /// It reaches no server, and so never takes another proxy's place.
    NoServer,
    /// It could take over.
    Fit,
    /// And it has just reached all servers.
    ReachesAll,
}

impl Fitness {
    /// An earlier release takes what it does not know for a question all the same, by one that does
    /// not reach all servers.
    pub(super) fn byte(self) -> u8 {
        match self {
            Fitness::NoStore => b'-',
            Fitness::NoServer => b'0',
            Fitness::Fit => b'?',
            Fitness::ReachesAll => b'+',
        }
    }

    fn of(byte: u8) -> Option<Fitness> {
        let all = [Fitness::NoStore, Fitness::NoServer, Fitness::Fit, Fitness::ReachesAll];
        all.into_iter().find(|fitness| fitness.byte() == byte)
    }
}

/// Another proxy, as it tells of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Peer {
    address: String,
    candidate: bool,
    release: String,
}

impl Peer {
    /// From the words behind the name. A proxy that sends fewer is not shown.
    pub(super) fn of(words: &[&str]) -> Option<Peer> {
        let [address, candidate, release, ..] = words else { return None };
        let (address, release) = ((*address).to_owned(), (*release).to_owned());
        Some(Peer { address, candidate: *candidate == "yes", release })
    }
}

/// One that has a control connection.
#[derive(Debug)]
struct Known {
    peer: Peer,
    /// Of the line between the two.
    version: u32,
    /// What it said last.
    said: Option<Fitness>,
}

impl Known {
    /// Why it could not take over. An earlier release does not tell.
    fn unfit(&self) -> Option<&'static str> {
        if self.version < SAYS_WHETHER_FIT {
            return None;
        }
        match self.said {
            None => Some("has not said yet whether it could"),
            Some(Fitness::NoStore) => Some("does not reach where the proxies agree (--coordinate)"),
            Some(Fitness::NoServer) => Some("reaches no server"),
            Some(Fitness::Fit | Fitness::ReachesAll) => None,
        }
    }
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Peer { candidate, release, .. } = &self.peer;
        let what = if *candidate { "candidate" } else { "no candidate" };
        write!(f, "standby, {what}, {release}")?;
        match self.unfit().filter(|_| *candidate) {
            Some(why) => write!(f, ", cannot take over: {why}"),
            None => Ok(()),
        }
    }
}

/// All that have a control connection to this proxy.
#[derive(Default, Debug)]
pub(super) struct Standbys(Mutex<(u64, BTreeMap<u64, Known>)>);

impl Standbys {
    fn held(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Known>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where each is reached, and what it is.
    pub(super) fn all(&self) -> Vec<(String, String)> {
        self.held().1.values().map(|known| (known.peer.address.clone(), known.to_string())).collect()
    }

    /// Whether a candidate among them reaches all servers.
    pub(super) fn one_reaches_all(&self) -> bool {
        self.held().1.values().any(|known| known.peer.candidate && known.said == Some(Fitness::ReachesAll))
    }

    /// Where those are reached that could take this one's place.
    ///
    /// # Errors
    ///
    /// Why none could, in words.
    pub(super) fn successors(&self) -> Result<Vec<String>, String> {
        let held = self.held();
        let (mut fit, mut unfit) = (Vec::new(), Vec::new());
        for known in held.1.values().filter(|known| known.peer.candidate) {
            let address = known.peer.address.replace(char::is_control, "?");
            match known.unfit() {
                None => fit.push(address),
                Some(why) => unfit.push(format!("{address} {why}")),
            }
        }
        if !fit.is_empty() {
            fit.sort();
            return Ok(fit);
        }
        if unfit.is_empty() {
            return Err("no other candidate is connected to this proxy, which is the active one; start one, and wait \
                        until its proxy:ready is 1"
                .to_owned());
        }
        Err(format!("no other proxy could take over: {}", unfit.join("; ")))
    }

    /// From now on it is one of them, until that is dropped.
    pub(super) fn enter(self: &Arc<Self>, peer: Option<Peer>, version: u32) -> Entry {
        let mut held = self.held();
        held.0 += 1;
        let number = held.0;
        if let Some(peer) = peer {
            held.1.insert(number, Known { peer, version, said: None });
        }
        drop(held);
        Entry { standbys: self.clone(), number }
    }
}

pub(super) struct Entry {
    standbys: Arc<Standbys>,
    number: u64,
}

impl Entry {
    /// It has asked by that byte. (Whatever else a later release says is answered all the same.)
    pub(super) fn asked(&self, byte: u8) {
        let mut held = self.standbys.held();
        if let (Some(known), Some(fitness)) = (held.1.get_mut(&self.number), Fitness::of(byte)) {
            known.said = Some(fitness);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.standbys.held().1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str, candidate: &str) -> Option<Peer> {
        Peer::of(&[address, candidate, "1.0.0", "what a later one says"])
    }

    /// Else the record is freed, and nobody takes it.
    #[test]
    fn whoever_could_not_take_over_is_no_successor_and_the_reason_is_said() {
        let standbys = Arc::<Standbys>::default();
        let _witness = standbys.enter(peer("10.0.0.6:1", "no"), 2);
        assert!(standbys.successors().unwrap_err().contains("no other candidate is connected"));
        let one = standbys.enter(peer("10.0.0.7:1", "yes"), 2);
        for (said, why) in [
            (None, "10.0.0.7:1 has not said yet"),
            (Some(b'-'), "10.0.0.7:1 does not reach where the proxies agree"),
            (Some(b'l'), "10.0.0.7:1 does not reach where the proxies agree"),
            (Some(b'0'), "10.0.0.7:1 reaches no server"),
        ] {
            said.into_iter().for_each(|byte| one.asked(byte));
            let refused = standbys.successors().unwrap_err();
            assert!(refused.contains(why), "{said:?}: {refused}");
            let shown = &standbys.all()[1].1;
            assert!(shown.starts_with("standby, candidate, 1.0.0, cannot take over: "), "{shown}");
        }
        let other = standbys.enter(peer("10.0.0.5:1", "yes"), 2);
        other.asked(b'?');
        assert_eq!(standbys.successors(), Ok(vec!["10.0.0.5:1".to_owned()]), "the other one could");
        assert_eq!(standbys.all()[2].1, "standby, candidate, 1.0.0");
        one.asked(b'+');
        assert_eq!(standbys.successors(), Ok(vec!["10.0.0.5:1".to_owned(), "10.0.0.7:1".to_owned()]));
        drop((one, other));
        assert!(standbys.successors().is_err(), "they have gone");
    }

    /// A release that says nothing of it is believed to be able to, as before.
    #[test]
    fn a_candidate_of_an_earlier_release_is_a_successor() {
        let standbys = Arc::<Standbys>::default();
        let earlier = standbys.enter(peer("10.0.0.7:1", "yes"), 1);
        assert_eq!(standbys.successors(), Ok(vec!["10.0.0.7:1".to_owned()]));
        earlier.asked(b'?');
        assert!(standbys.successors().is_ok() && !standbys.one_reaches_all());
        earlier.asked(b'+');
        assert!(standbys.one_reaches_all());
    }

    #[test]
    fn who_cannot_take_over_reaches_all_servers_in_vain() {
        let standbys = Arc::<Standbys>::default();
        let one = standbys.enter(peer("10.0.0.7:1", "yes"), 2);
        for (byte, reaches_all) in [(b'+', true), (b'-', false), (b'+', true), (b'?', false)] {
            one.asked(byte);
            assert_eq!(standbys.one_reaches_all(), reaches_all, "{byte}");
        }
    }
}
