//! Worlds that differ in their numbers alone are one.

use super::*;

impl World {
    /// The same, with heartbeats and revisions renamed in their order.
    pub(super) fn normal(mut self) -> World {
        let mut beats: BTreeMap<Holder, BTreeSet<u64>> = BTreeMap::new();
        let mut revisions = BTreeSet::from([0]);
        self.each_seen(&mut |seen| {
            revisions.insert(seen.revision);
        });
        self.each_record(&mut |record| {
            beats.entry(record.holder).or_default().insert(record.heartbeat);
        });
        for (i, party) in self.parties.iter_mut().enumerate() {
            let beats = beats.entry(Holder(i as u64)).or_default();
            party.authority.each_ask(&mut |ask| {
                beats.insert(ask.heartbeat);
            });
        }
        let rank = |set: &BTreeSet<u64>, value: u64| set.range(..value).count() as u64;
        self.each_seen(&mut |seen| seen.revision = rank(&revisions, seen.revision));
        self.each_record(&mut |record| record.heartbeat = 1 + rank(&beats[&record.holder], record.heartbeat));
        for (i, party) in self.parties.iter_mut().enumerate() {
            let beats = &beats[&Holder(i as u64)];
            party.authority.each_ask(&mut |ask| ask.heartbeat = 1 + rank(beats, ask.heartbeat));
            party.authority.asked = beats.len() as u64;
        }
        self
    }

    fn each_seen(&mut self, f: &mut dyn FnMut(&mut Seen)) {
        f(&mut self.register);
        self.backup.iter_mut().for_each(&mut *f);
        for party in &mut self.parties {
            party.late.iter_mut().for_each(|(seen, _)| f(seen));
            match &mut party.way {
                Some(Way::Swap(seen, _)) => f(seen),
                Some(Way::Back(Swapped::Done(revision))) => {
                    let mut seen = Seen { revision: *revision, value: Value::Absent };
                    f(&mut seen);
                    *revision = seen.revision;
                }
                _ => {}
            }
            match &mut party.authority.role {
                Role::Standby { sight: Some(sight), .. } => f(&mut sight.seen),
                Role::Active(active) => f(&mut active.seen),
                _ => {}
            }
        }
    }

    fn each_record(&mut self, f: &mut dyn FnMut(&mut Record)) {
        self.each_seen(&mut |seen| {
            if let Value::Record(record) = &mut seen.value {
                f(record);
            }
        });
        for party in &mut self.parties {
            party.late.iter_mut().for_each(|(_, new)| f(new));
            if let Some(Way::Swap(_, new)) = &mut party.way {
                f(new);
            }
            if let Some(Request::Swap { new, .. }) = &mut party.authority.request {
                f(new);
            }
            if let Role::Active(active) = &mut party.authority.role {
                f(&mut active.record);
            }
        }
    }
}

impl Authority {
    /// So many ticks pass: all moments are so much longer ago.
    pub(super) fn age(&mut self, ticks: u64) {
        let old = |moment: &mut Boot| moment.0 = moment.0.saturating_sub(ticks).max(NOW - LONG);
        match &mut self.request {
            // Longer than a lease ago is as good as a lease ago.
            Some(Request::Read { asked } | Request::Swap { ask: Ask { asked, .. }, .. }) => {
                old(asked);
                asked.0 = asked.0.max(NOW - LEASE);
            }
            Some(Request::Survey { asked }) => {
                old(asked);
                asked.0 = asked.0.max(NOW - 2);
            }
            Some(Request::Marks) | None => {}
        }
        match &mut self.role {
            Role::Standby { sight, claims } => {
                sight.iter_mut().for_each(|sight| {
                    old(&mut sight.since);
                    old(&mut sight.answered);
                    sight.since.0 = sight.since.0.max(NOW - LEASE - 1);
                    sight.answered.0 = sight.answered.0.max(NOW - 2);
                    sight.survey.iter_mut().for_each(|(asked, _)| {
                        old(asked);
                        asked.0 = asked.0.max(NOW - 2);
                    });
                });
                claims.iter_mut().for_each(|ask| old(&mut ask.asked));
                claims.retain(|ask| NOW - ask.asked.0 < LEASE);
            }
            Role::Active(active) => {
                old(&mut active.until);
                active.until.0 = active.until.0.max(NOW);
                active.last = Boot(NOW - 1);
                active.unknown.iter_mut().for_each(|ask| old(&mut ask.asked));
                active.unknown.retain(|ask| NOW - ask.asked.0 < LEASE);
            }
            Role::Over => {}
        }
    }

    fn each_ask(&mut self, f: &mut dyn FnMut(&mut Ask)) {
        if let Some(Request::Swap { ask, .. }) = &mut self.request {
            f(ask);
        }
        match &mut self.role {
            Role::Standby { claims, .. } => claims.iter_mut().for_each(f),
            Role::Active(active) => active.unknown.iter_mut().for_each(f),
            Role::Over => {}
        }
    }
}
