//! What may happen next.

use std::sync::Arc;

use super::*;

/// Takes what may happen, by its name.
pub(super) type Add<'a> = &'a mut dyn FnMut(String, &dyn Fn(&mut World));

impl World {
    /// Everything that can happen next in reality.
    pub(super) fn next(&self) -> Vec<World> {
        let mut all = Vec::new();
        let mut add = |name: String, step: &dyn Fn(&mut World)| {
            let mut world = self.clone();
            world.story = Story(Some(Arc::new((name, world.story))));
            step(&mut world);
            all.push(world);
        };
        for place in PLACES {
            self.add_losses(place, &mut add);
            self.add_returns(place, &mut add);
            self.add_purges(place, &mut add);
            self.add_promotion(place, &mut add);
            self.add_refills(place, &mut add);
            self.add_undoing(place, &mut add);
            self.add_distrust(place, &mut add);
        }
        self.add_other_proxies(&mut add);
        if self.pair.gate == Gate::Open {
            self.add_writes(&mut add);
            self.add_flushes(&mut add);
        }
        self.add_adoption(&mut add);
        self.add_job(&mut add);
        if self.pair.gate == Gate::Closing {
            add("closed".into(), &|w| {
                w.waits = [false; 2];
                w.apply(Event::Closed);
            });
        }
        if self.pair.gate == Gate::Recording {
            add("recorded".into(), &|w| w.apply(Event::Recorded));
        }
        all
    }

    /// A node fails, or seems to; or it is looked at for the first time.
    fn add_losses(&self, place: Place, add: Add<'_>) {
        // Suspicion and proof may also come for a node that is lost already.
        let suspected = if self.plan.awaits(place) { Loss::SuspectedUncompared } else { Loss::Suspected };
        add(format!("lose {place}"), &|w| w.lose(place, suspected));
        add(format!("{place}'s memory gone"), &|w| w.lose(place, Loss::MemoryGone));
        if at(&self.up, place) {
            return;
        }
        if !at(&self.seen, place) {
            self.add_first_looks(place, add);
        }
        add(format!("{place} counts as gone, and is not"), &|w| {
            if at(&w.holds, place) != Holds::Empty {
                w.holds[place as usize] = Holds::Stale;
            }
            if let Some(led) = &mut w.led {
                led.2 |= led.0 == place;
            }
            w.apply(Event::Lost(place, Loss::MemoryGone, Reason::Refused));
        });
    }

    /// A lost node comes back.
    fn add_returns(&self, place: Place, add: Add<'_>) {
        if at(&self.up, place) || !at(&self.seen, place) {
            return;
        }
        if !at(&self.gone, place) {
            add(format!("{place} back, same memory"), &|w| {
                w.up[place as usize] = true;
                w.apply(Event::BackSame(place));
            });
        }
        for empty in [true, false] {
            add(format!("{place} back, with another memory, empty: {empty}"), &|w| {
                let listed = w.may_lead_with_rest(place.other());
                w.plan(FillEvent::OtherMemory { place, first: false, listed });
                w.lose(place, Loss::MemoryGone);
                w.up[place as usize] = true;
                w.gone[place as usize] = false;
                if !empty {
                    w.holds[place as usize] = Holds::Stale;
                } else if !w.may_lead_with_rest(place.other()) {
                    w.apply(Event::Purged(place));
                }
            });
        }
    }

    /// A node of a pair without a full copy is emptied, and leads then.
    fn add_purges(&self, place: Place, add: Add<'_>) {
        let orphaned = self.pair.state == State::Dark { in_sync: None, fallback: None };
        if !at(&self.up, place) || !orphaned || self.pair.gate != Gate::Open {
            return;
        }
        if self.may_lead_with_rest(place) && self.loose.is_none() {
            assert!(at(&self.rest_is_true, place), "rule 11: more is old on {place} than is listed: {self:?}");
            add(format!("{place} purged of what it missed"), &|w| {
                w.plan(FillEvent::JobBegins(Fill::Missed));
                w.holds[place as usize] = Holds::Part;
                w.apply(Event::Purged(place));
            });
        }
        add(format!("{place} purged"), &|w| {
            w.plan(FillEvent::JobBegins(Fill::Purge));
            w.holds[place as usize] = Holds::Empty;
            w.counts[place as usize] = false;
            w.list_is_true = false;
            w.apply(Event::Purged(place));
        });
    }

    /// The operator makes a node lead.
    fn add_promotion(&self, place: Place, add: Add<'_>) {
        if !matches!(self.pair.state, State::Dark { .. }) || !at(&self.up, place) || self.job.is_some() {
            return;
        }
        add(format!("{place} leads, says the operator"), &|w| {
            // What it holds counts from now on, and the other one's acknowledged writes do
            // not: that is what was asked for.
            w.holds[place as usize] = Holds::Full;
            w.miss(place.other());
            (w.rest_is_true, w.loose) = ([false; 2], None);
            w.counts = [false; 2];
            w.plan(FillEvent::Operator);
            w.apply(Event::Promote(place));
        });
    }

    /// A resync of a node begins.
    fn add_refills(&self, place: Place, add: Add<'_>) {
        let (state, gate) = (self.pair.state, self.pair.gate);
        let lacks = state == (State::Degraded { leader: place.other() })
            || state == (State::Recovering { leader: place.other() }) && self.job.is_none();
        let lacks = lacks && self.loose.is_none();
        if lacks && at(&self.up, place) && at(&self.up, place.other()) && gate == Gate::Open && !self.pair.foreign {
            let empty = at(&self.holds, place) == Holds::Empty && matches!(state, State::Degraded { .. });
            for empty in if empty { vec![false, true] } else { vec![false] } {
                let fill = self.plan.fill(state, place, empty, self.listed);
                add(format!("resync of {place}: {fill:?}"), &|w| w.begin(place, fill));
            }
        }
    }

    /// Copies that a job left behind are taken back, or not.
    fn add_undoing(&self, place: Place, add: Add<'_>) {
        let state = self.pair.state;
        if self.job.is_none()
            && at(&self.up, place)
            && matches!(state, State::Dark { .. })
            && (at(&self.holds, place) == Holds::Unverified || self.stopped == Some(place) && at(&self.made_all, place))
        {
            add(format!("copies on {place} undone"), &|w| {
                w.holds[place as usize] = Holds::Part;
                (w.stopped, w.loose) = (None, None);
                w.apply(Event::Undone(place));
            });
        }
        if self.job.is_none() && self.loose == Some(place) {
            add(format!("copies on {place} undone, nobody asks"), &|w| w.loose = None);
            add(format!("copies left on {place}"), &|w| {
                w.loose = None;
                if at(&w.holds, place) == Holds::Unverified {
                    w.miss(place);
                }
                w.rest_is_true[place as usize] = false;
                w.plan(FillEvent::CopiesLeft(Fill::CompareRest));
            });
        }
    }

    /// The operator wants a node to be filled in full.
    fn add_distrust(&self, place: Place, add: Add<'_>) {
        add(format!("distrust {place}"), &|w| {
            if w.pair.state == (State::Degraded { leader: place.other() }) {
                w.plan(FillEvent::Operator);
            }
            if w.pair.state == State::Mirrored || w.pair.state == (State::Degraded { leader: place.other() }) {
                // It holds what it should not, says the operator.
                w.list_is_true = false;
                w.counts = [false; 2];
            }
            w.apply(Event::Distrust(place));
        });
    }

    /// Another proxy over the same nodes comes or goes; or the one before this is gone.
    fn add_other_proxies(&self, add: Add<'_>) {
        add("another proxy comes".into(), &|w| {
            w.stranger = true;
            w.apply(Event::Foreign(true));
        });
        add("the former proxy is gone".into(), &|w| {
            if std::mem::take(&mut w.former) && !w.stranger {
                let uncompared = w.plan.is_uncompared();
                w.plan(FillEvent::FormerGone(w.pair.state));
                match uncompared {
                    true => w.apply(Event::FormerGone),
                    false => w.end_foreign(),
                }
            }
        });
        add("the other proxy is gone".into(), &|w| {
            if !std::mem::take(&mut w.stranger) {
                return;
            }
            // What it has written, and deleted, nobody noted.
            (w.counts, w.list_is_true, w.rest_is_true) = ([false; 2], false, [false; 2]);
            w.plan(FillEvent::ForeignEnded(w.pair.state));
            if w.former {
                return;
            }
            w.job = None;
            w.apply(Event::ResyncEnded(Reason::ForeignSession));
            w.end_foreign();
        });
    }

    /// Clients write.
    fn add_writes(&self, add: Add<'_>) {
        let state = self.pair.state;
        match state {
            State::Degraded { leader } => add("write".into(), &|w| {
                let follower = leader.other();
                w.counts[follower as usize] &= w.noted;
                w.miss(follower);
            }),
            State::Mirrored | State::Recovering { .. } | State::Dark { .. } => {}
        }
        if state == State::Mirrored && self.plan.is_uncompared() && !self.pair.foreign {
            add("compared, and equal".into(), &|w| {
                w.plan(FillEvent::Compared);
                // Since the start: what its follower refused.
                w.list_is_true = true;
            });
        }
        if state == State::Mirrored && !self.refused {
            add("an item is refused".into(), &|w| w.refused = true);
        }
    }

    fn add_flushes(&self, add: Add<'_>) {
        let state = self.pair.state;
        add("flush_all, refused by all".into(), &|w| {
            w.flush_sent();
            w.plan(FillEvent::Opened(w.pair.state));
        });
        add("flush_all".into(), &|w| {
            w.flush_sent();
            for place in PLACES {
                w.rest_is_true[place as usize] &= at(&w.up, place);
                if !at(&w.up, place) {
                    w.miss(place);
                } else if w.pair.state.leader().is_none() {
                    w.holds[place as usize] = Holds::Empty;
                }
            }
            // Items that have survived it.
            w.counts = [false; 2];
            w.made_all = [false; 2];
            (w.refused, w.unsaid) = (false, false);
            // What the flush has ended is not listed.
            w.list_is_true &= state == State::Mirrored;
            w.plan(FillEvent::Flushed(w.pair.state));
            w.apply(Event::Flushed);
            w.plan(FillEvent::Opened(w.pair.state));
        });
    }

    /// What a job says that adopts.
    fn add_adoption(&self, add: Add<'_>) {
        let (state, gate) = (self.pair.state, self.pair.gate);
        if let (State::Recovering { leader }, Gate::Open, Some(Fill::Adopt)) = (state, gate, self.job) {
            let follower = leader.other();
            // Both ask for the writes that were noted; without them the job ends.
            if self.noted {
                add("what clients wrote is made there".into(), &|w| {
                    w.holds[follower as usize] = Holds::Part;
                    w.made_all[follower as usize] = true;
                    w.plan(FillEvent::Adopting);
                    w.unsaid = false;
                });
                if self.plan.is_adopting() {
                    add("the leader holds everything".into(), &|w| {
                        w.judge_adoption(follower);
                        w.plan(FillEvent::Adopted);
                        w.job = Some(Fill::Compare);
                        w.copies_come(follower);
                    });
                }
            }
            add("it cannot be compared".into(), &|w| {
                // What only the follower holds is given up.
                w.counts = [false; 2];
                w.plan(FillEvent::CannotCompare);
                w.end_job(leader);
                let next = w.plan.fill(w.pair.state, follower, false, w.listed);
                assert!(!next.compares(), "rule 14: it would be compared for ever: {w:?}");
            });
        }
    }

    /// What any job says, and its end.
    fn add_job(&self, add: Add<'_>) {
        let (state, gate) = (self.pair.state, self.pair.gate);
        if let (Some(fill), State::Recovering { leader }) = (self.job, state) {
            if fill != Fill::Adopt {
                add("hand-back".into(), &|w| w.apply(Event::HandBack));
            }
            add("its source cannot be enumerated".into(), &|w| w.apply(Event::CannotEnumerate));
            add("resync ends".into(), &|w| w.end_job(leader));
            if gate == Gate::Draining {
                add("more copies to come".into(), &|w| w.apply(Event::Drained(false)));
                add("all copied".into(), &|w| {
                    // Not handed back under a foreign session: then it goes on being copied to,
                    // unverified.
                    if let State::Recovering { leader } = w.pair.state
                        && !w.pair.foreign
                    {
                        w.holds[leader.other() as usize] = Holds::Full;
                    }
                    w.apply(Event::Drained(true));
                });
            }
        }
    }
}

impl World {
    fn end_foreign(&mut self) {
        self.apply(Event::Foreign(false));
        if let State::Dark { in_sync: Some(place), .. } = self.pair.state
            && at(&self.up, place)
        {
            self.apply(Event::BackSame(place));
        }
    }

    pub(super) fn end_job(&mut self, leader: Place) {
        self.job = None;
        if !self.plan.goes_on_adopting(self.pair.state, leader) {
            self.apply(Event::ResyncEnded(Reason::ResyncFailed));
        }
    }

    /// The record that says "adopting" is replaced on every node, behind the gate.
    pub(super) fn flush_sent(&mut self) {
        self.unsaid |= self.plan.is_adopting();
        self.plan(FillEvent::FlushSent);
    }

    /// All that a node may say that was away at the start, and what it holds then.
    pub(super) fn add_first_looks(&self, place: Place, add: Add<'_>) {
        // Of a pair of which nothing is known, whatever somebody holds counts.
        let counts = self.plan.may_adopt() && self.plan.cut_off().is_none();
        add(format!("{place} seen, with another memory"), &|w| {
            w.counts[place as usize] = counts;
            w.miss(place);
            if counts {
                w.holds[place as usize] = Holds::Part;
            }
            w.first_seen(place, Word::Nothing, false);
        });
        if at(&self.gone, place) {
            return;
        }
        let Some(CutOff { epoch, leader }) = self.plan.cut_off() else {
            if counts {
                self.add_first_words(place, add);
            }
            return;
        };
        let (before, after) = (Epoch(epoch.0 - 1), Epoch(epoch.0 + 1));
        add(format!("{place} seen, in the middle of the adoption"), &|w| {
            w.first_seen(place, Word::Adopting(epoch), place == leader);
        });
        if place == leader {
            // The proxy before may have died before it wrote its last record here.
            add(format!("{place} seen, with an older record"), &|w| {
                w.first_seen(place, Word::Other(before), true);
            });
            add(format!("{place} seen, without a record"), &|w| {
                let full = w.plan.leads_adoption(place);
                w.first_seen(place, Word::Nothing, full);
            });
            // Where it is not awaited any more it counted as gone, and was not: two failures.
            if matches!(self.pair.state, State::Dark { in_sync: Some(p), .. } if p == place) {
                add(format!("{place} seen, it led alone since"), &|w| {
                    w.counts[place.other() as usize] = false;
                    w.miss(place.other());
                    w.first_seen(place, Word::Other(after), true);
                });
            }
        } else {
            for word in [Word::Nothing, Word::Used, Word::Other(after), Word::Other(before), Word::Adopting(before)] {
                add(format!("{place} seen, it says {word:?}"), &|w| {
                    // Copies stand there, or it missed writes, or it is another memory.
                    w.counts[place as usize] = false;
                    w.miss(place);
                    let full = word == Word::Nothing && w.plan.leads_adoption(place);
                    w.first_seen(place, word, full);
                });
            }
        }
    }

    /// The same for one whose items count if no proxy has used it.
    fn add_first_words(&self, place: Place, add: Add<'_>) {
        let epoch = Epoch(5);
        for word in [Word::Used, Word::Other(epoch), Word::Adopting(epoch)] {
            add(format!("{place} seen, it says {word:?}"), &|w| {
                w.counts[place as usize] = false;
                w.miss(place);
                w.first_seen(place, word, false);
            });
        }
    }
}
