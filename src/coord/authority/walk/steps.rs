//! What may happen next.

use super::*;

impl World {
    /// All that can happen next.
    pub(super) fn steps(&self, course: &Course) -> Vec<(String, Result<World, String>)> {
        let mut steps = Vec::new();
        let mut step = |name: String, change: &Change<'_>| {
            let mut next = self.clone();
            let done = change(&mut next);
            steps.push((name, done.map(|()| next)));
        };
        for (i, party) in self.parties.iter().enumerate() {
            if party.authority.role == Role::Over && party.late.is_none() {
                continue;
            }
            if !party.ticked {
                step(format!("{i} turns"), &|w| {
                    w.parties[i].ticked = true;
                    w.tell(i, Event::Tick { turned: Boot(NOW) })
                });
            }
            self.steps_to_register(i, &mut step);
            self.steps_of_party(i, course, &mut step);
        }
        self.steps_of_others(course, &mut step);
        steps
    }

    /// The register is there.
    fn is_here(&self) -> bool {
        self.away != Some(true) && self.down == 0
    }

    /// What becomes of what a party has sent to the register.
    fn steps_to_register(&self, i: usize, step: Step<'_>) {
        // All is prompt where nothing but the register's absence is in question.
        let (here, prompt) = (self.is_here(), self.away.is_some());
        let lose = self.unheard > 0 && !prompt;
        match &self.parties[i].way {
            Some(Way::Read) => {
                if here {
                    step(format!("{i} reads"), &|w| {
                        w.parties[i].way = None;
                        let seen = w.register.clone();
                        w.tell(i, Event::Read(Some(seen)))
                    });
                }
                if !here || lose {
                    step(format!("{i} reads in vain"), &|w| {
                        w.unheard -= u8::from(here);
                        w.parties[i].way = None;
                        w.tell(i, Event::Read(None))
                    });
                }
            }
            Some(Way::Swap(seen, new)) => {
                if here {
                    step(format!("{i}'s swap is made, or refused"), &|w| {
                        w.parties[i].way = Some(Way::Back(w.swap(seen, new)));
                        Ok(())
                    });
                }
                if !here || lose {
                    step(format!("{i} hears nothing of its swap, which may come late"), &|w| {
                        w.unheard -= u8::from(here);
                        let late = (!prompt).then(|| (seen.clone(), new.clone()));
                        (w.parties[i].way, w.parties[i].late) = (None, late);
                        w.tell(i, Event::Swapped(Swapped::Unknown))
                    });
                }
            }
            Some(Way::Back(back)) => {
                step(format!("{i} hears of its swap: {back:?}"), &|w| {
                    w.parties[i].way = None;
                    w.tell(i, Event::Swapped(back.clone()))
                });
                if lose {
                    step(format!("{i} hears nothing of its swap: {back:?}"), &|w| {
                        w.unheard -= 1;
                        w.parties[i].way = None;
                        w.tell(i, Event::Swapped(Swapped::Unknown))
                    });
                }
            }
            None => {}
        }
    }

    /// What a party does beside that.
    fn steps_of_party(&self, i: usize, course: &Course, step: Step<'_>) {
        let party = &self.parties[i];
        if let Some((seen, new)) = party.late.as_ref().filter(|_| self.is_here()) {
            step(format!("{i}'s late swap is made, or refused"), &|w| {
                w.parties[i].late = None;
                w.swap(seen, new);
                Ok(())
            });
        }
        if let Some(generation) = party.marks.filter(|_| party.authority.acts(Boot(NOW))) {
            step(format!("{i} marks the servers"), &|w| {
                w.parties[i].marks = None;
                if w.mark.0 > generation {
                    let highest = w.mark.0;
                    return w.tell(i, Event::Marked(highest, String::new()));
                }
                w.mark = (generation, Some(Holder(i as u64)), true);
                Ok(())
            });
        }
        if course.leaves && i == 0 && party.authority.acts(Boot(NOW)) && !party.leaving && party.marks.is_none() {
            step("0 has stopped".into(), &|w| {
                w.parties[0].leaving = true;
                if w.mark.1 == Some(Holder(0)) {
                    w.mark.2 = false;
                }
                w.tell(0, Event::Stopped)
            });
        }
    }

    /// What happens to time and to the register.
    fn steps_of_others(&self, course: &Course, step: Step<'_>) {
        let stable = self.away.is_some();
        // All is prompt where only the register is away: no time passes while anything is due.
        let due = |party: &Party| {
            party.authority.role != Role::Over && (!party.ticked || party.way.is_some() || party.marks.is_some())
        };
        if !(stable && self.parties.iter().any(due)) {
            step("time".into(), &|w| {
                w.pass(None);
                Ok(())
            });
            for (i, party) in self.parties.iter().enumerate() {
                if course.drift && party.steady >= LEASE {
                    step(format!("time, of which {i}'s clock sees nothing"), &|w| {
                        w.pass(Some(i));
                        Ok(())
                    });
                }
            }
        }
        // For everybody alike: between two turns of each.
        if let Some(away) = self.away.filter(|_| self.parties.iter().all(|party| !party.ticked)) {
            step(format!("the register is away: {}", !away), &|w| {
                w.away = Some(!away);
                Ok(())
            });
        }
        if !self.emptied && self.register != EMPTY {
            step("the register has lost its memory".into(), &|w| {
                (w.register, w.emptied) = (EMPTY, true);
                Ok(())
            });
        }
        match &self.backup {
            _ if self.restored => {}
            None => step("a backup is made".into(), &|w| {
                w.backup = Some(w.register.clone());
                Ok(())
            }),
            Some(backup) if self.down == 0 && *backup != self.register => {
                let ticks = course.restored.unwrap_or_default();
                step("the register is stopped, to be restored from the backup".into(), &|w| {
                    w.down = ticks;
                    // What was under way to it is not made by what is restored.
                    for i in 0..w.parties.len() {
                        w.parties[i].late = None;
                        if let Some(Way::Swap(..)) = &w.parties[i].way {
                            w.parties[i].way = None;
                            w.tell(i, Event::Swapped(Swapped::Unknown))?;
                        }
                    }
                    Ok(())
                });
            }
            Some(_) => {}
        }
    }
}
