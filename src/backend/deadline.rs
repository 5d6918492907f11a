//! Waiting for a node no longer than until a deadline, or than it makes progress.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until, timeout, timeout_at};

/// A deadline that is noticed so late says that the proxy itself stood still (a paused machine).
const LATE: Duration = Duration::from_millis(20);

/// How long is waited after that. What had been sent just before may not be answered yet, and no
/// node is to blame for that.
const GRACE: Duration = Duration::from_millis(100);

/// What `work` comes to by the deadline, or soon after where that passed unseen. `work` is to be a
/// whole answer: with a call for each piece of one, a node that goes on in small pieces would be
/// waited for with each anew.
pub(super) async fn by<F: Future>(deadline: Instant, work: F) -> Option<F::Output> {
    let mut work = pin!(work);
    match timeout_at(deadline, work.as_mut()).await {
        Ok(done) => Some(done),
        Err(_) if deadline.elapsed() > LATE => timeout(GRACE, work).await.ok(),
        Err(_) => None,
    }
}

/// How long a node is waited for.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// Until then, whatever it does.
    Until(Instant),
    /// For as long as it makes progress, and this long without.
    Progress(Duration),
}

impl From<Instant> for Limit {
    fn from(deadline: Instant) -> Limit {
        Limit::Until(deadline)
    }
}

/// How long a node may make no progress with answers whose size nobody knows.
pub(super) struct Patience {
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    graced: bool,
}

impl Patience {
    /// With a node that made progress last then.
    pub(super) fn new(timeout: Duration, since: Instant) -> Patience {
        Patience { timeout, timer: Box::pin(sleep_until(since + timeout)), graced: false }
    }

    /// Ready once there was none for this long (see also [`by`]). `since`: when the node made
    /// progress last.
    pub(super) fn poll_over(&mut self, since: Instant, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let due = since + self.timeout;
            if due > Instant::now() {
                self.graced = false;
                self.timer.as_mut().reset(due);
            } else if !self.graced && self.timer.deadline().elapsed() > LATE {
                self.graced = true;
                self.timer.as_mut().reset(Instant::now() + GRACE);
            } else {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::join;
    use tokio::sync::oneshot::channel;
    use tokio::time::{advance, sleep};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_node_that_does_not_answer_in_time_is_given_no_more() {
        let begun = Instant::now();
        assert_eq!(by(begun + TIMEOUT, sleep(TIMEOUT + LATE)).await, None);
        assert!(begun.elapsed() < TIMEOUT + LATE, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_stood_still_waits_a_little_longer_for_what_was_under_way() {
        let (answer, answered) = channel();
        let node = async {
            advance(2 * TIMEOUT).await;
            sleep(GRACE / 2).await;
            answer.send("END").expect("waited for");
        };
        assert_eq!(join!(by(Instant::now() + TIMEOUT, answered), node).0, Some(Ok("END")));
    }

    #[tokio::test(start_paused = true)]
    async fn but_not_for_ever() {
        let begun = Instant::now();
        let waits = by(begun + TIMEOUT, std::future::pending::<()>());
        assert_eq!(join!(waits, advance(2 * TIMEOUT)).0, None);
        assert!(begun.elapsed() <= 2 * TIMEOUT + GRACE + LATE, "{:?}", begun.elapsed());
    }
}
