//! Requests that arrive during the start, while servers are looked at, some of which may hang.
//! `stats proxy` is answered "starting" at once. Other statistics wait for the end of the start,
//! but at most 0.7 s, because those who ask for them wait for a second. Everything else waits.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep_until};

use crate::protocol::answer::server_error;
use crate::protocol::outcome::{Outcome, Refusal};
use crate::proxy::{Command, Event, Question, VERSION};
use crate::report::lines::Lines;
use crate::report::statistics::{PATIENCE, Statistics};

use super::desk::Request;
use super::{Heard, Losses};

/// What is said of them then.
const NOT_YET: &str = "this proxy is starting: its servers are looked at; stats proxy says what is known";

/// What was heard early. No more waits here than would in the channels: clients wait for an answer,
/// and so do those who ask at the desk.
pub(super) struct Early {
    /// With the moment at which it came.
    waits: VecDeque<(Instant, Heard)>,
    workers: Vec<UnboundedSender<Command>>,
    losses: Arc<dyn Losses>,
}

impl Early {
    pub(super) fn new(workers: Vec<UnboundedSender<Command>>, losses: Arc<dyn Losses>) -> Early {
        Early { waits: VecDeque::new(), workers, losses }
    }

    /// Breaks where every worker has ended: the start is of no use to anybody any more.
    pub(super) fn hear(&mut self, heard: Heard) -> ControlFlow<()> {
        match heard {
            Heard::Worker(None) => return ControlFlow::Break(()),
            Heard::Worker(Some(Event::Ask { worker, client, slot, question })) if is_about_the_proxy(&question) => {
                let answer = Command::Answer { client, slot, outcome: Outcome::Raw(self.said()) };
                // The worker may have ended.
                let _ = self.workers[worker.index()].send(answer);
            }
            Heard::Desk(Request::Command(question, reply)) if is_about_the_proxy(&question) => {
                // Whoever asked may have left.
                let _ = reply.send(self.said());
            }
            other => {
                self.waits.retain(|(_, heard)| !matches!(heard, Heard::Desk(request) if request.is_given_up()));
                self.waits.push_back((Instant::now(), other));
            }
        }
        ControlFlow::Continue(())
    }

    /// Completes when something has waited for too long.
    pub(super) fn waits_too_long(&self) -> impl Future<Output = ()> + use<> {
        let first = self.waits.iter().find(|(_, heard)| asks_for_statistics(heard)).map(|(since, _)| *since);
        async move {
            match first {
                Some(since) => sleep_until(since + PATIENCE).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Requests for statistics that have waited long enough are answered with what is known.
    pub(super) fn answer_late(&mut self) {
        let is_late = |(since, heard): &(Instant, Heard)| since.elapsed() >= PATIENCE && asks_for_statistics(heard);
        let (late, waits) = std::mem::take(&mut self.waits).into_iter().partition(is_late);
        self.waits = waits;
        let late: VecDeque<(Instant, Heard)> = late;
        for (_, heard) in late {
            match heard {
                Heard::Worker(Some(Event::Ask { worker, client, slot, question })) => {
                    let outcome = match is_plain(&question) {
                        true => Outcome::Raw(self.figures()),
                        false => Outcome::Refused(Refusal::Server(NOT_YET)),
                    };
                    // The worker may have ended.
                    let _ = self.workers[worker.index()].send(Command::Answer { client, slot, outcome });
                }
                Heard::Desk(Request::Command(question, reply)) => {
                    let said = match is_plain(&question) {
                        true => self.figures(),
                        false => server_error(NOT_YET),
                    };
                    // Whoever asked may have left.
                    let _ = reply.send(said);
                }
                // (There is no report: who waits for one hears so by the end of its channel.)
                _ => {}
            }
        }
    }

    /// In the place of all statistics.
    fn figures(&self) -> Bytes {
        let mut out = Lines::default();
        out.put("pid", std::process::id());
        out.put("version", VERSION);
        out.before(&self.said())
    }

    /// What waits, in the order in which it came; then what comes.
    pub(super) async fn next(
        &mut self,
        events: &mut UnboundedReceiver<Event>,
        requests: &mut Receiver<Request>,
    ) -> Heard {
        match self.waits.pop_front() {
            Some((_, heard)) => heard,
            None => super::either(events, requests).await,
        }
    }

    fn said(&self) -> Bytes {
        self.losses.shown().unwrap_or_else(|| Lines::of_proxy("starting", false).end())
    }
}

fn asks_for_statistics(heard: &Heard) -> bool {
    match heard {
        Heard::Worker(Some(Event::Ask { question, .. })) | Heard::Desk(Request::Command(question, _)) => {
            question.statistics().is_some()
        }
        Heard::Desk(Request::Report(..)) => true,
        _ => false,
    }
}

/// `stats` without more words.
fn is_plain(question: &Question) -> bool {
    question.statistics() == Some(Statistics::All)
}

fn is_about_the_proxy(question: &Question) -> bool {
    question.statistics() == Some(Statistics::OfProxy)
}
