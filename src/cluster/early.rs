//! What is heard while the start looks at the servers, some of which may hang: who asks what the
//! proxy is hears that it is starting; all else waits for the start's end.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender};

use crate::protocol::outcome::Outcome;
use crate::proxy::{Command, Event, Question};

use super::desk::Request;
use super::{Heard, Losses};

/// What `stats proxy` says without `--coordinate`.
const STARTING: &[u8] = b"STAT proxy:role starting\r\nSTAT proxy:ready 0\r\nEND\r\n";

/// What was heard early. No more waits here than would in the channels: clients wait for an answer,
/// and so do those who ask at the desk.
pub(super) struct Early {
    waits: VecDeque<Heard>,
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
                self.waits.retain(|heard| !matches!(heard, Heard::Desk(request) if request.is_given_up()));
                self.waits.push_back(other);
            }
        }
        ControlFlow::Continue(())
    }

    /// What waits, in the order in which it came; then what comes.
    pub(super) async fn next(
        &mut self,
        events: &mut UnboundedReceiver<Event>,
        requests: &mut Receiver<Request>,
    ) -> Heard {
        match self.waits.pop_front() {
            Some(heard) => heard,
            None => super::either(events, requests).await,
        }
    }

    fn said(&self) -> Bytes {
        self.losses.shown().unwrap_or(Bytes::from_static(STARTING))
    }
}

fn is_about_the_proxy(question: &Question) -> bool {
    matches!(question, Question::Stats(part) if part.split_ascii_whitespace().next() == Some("proxy"))
}
