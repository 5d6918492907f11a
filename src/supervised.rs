//! Regular reports to a service manager (systemd): the proxy's state in words and, if it has a
//! watchdog, that the proxy works. Each report asks the control plane: if that hangs, the report
//! does not say that the proxy works, and the service manager ends the process.
//!
//! At times a healthy control plane answers nobody: before it has looked at the servers, while it
//! waits for its lease, and at the end. Then it is enough that its thread works.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::runtime::Builder;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::daemon::Supervisor;
use crate::lease::{self, Boot};
use crate::reload::{Pool, Reload, Serving};

/// Between two words at most, and at least.
const PAUSE: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// This many times what a word takes is between two of them: of thousands of pairs it takes long,
/// and the control plane has better to do.
const SHARE: u32 = 20;
/// This many in the time that it may be silent for.
const WORDS: u32 = 4;

/// Tells it from a thread of its own. `reload` knows the proxy.
///
/// # Errors
///
/// The system refused a thread.
pub fn tell(supervisor: Arc<Supervisor>, reload: Arc<Reload>, shutdown: CancellationToken) -> std::io::Result<()> {
    let runtime = Builder::new_current_thread().enable_time().build()?;
    let pause = supervisor.watchdog.map_or(PAUSE, |most| PAUSE.min(most / WORDS));
    let words = async move {
        let mut watches: Vec<_> = reload.pools().map(|_| Watch { pause, has_begun: false }).collect();
        loop {
            let asked = Instant::now();
            supervisor.tell(&word_of_all(&reload, &mut watches).await.lines());
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(until_next(asked.elapsed(), pause)) => {}
            }
        }
        supervisor.tell("STOPPING=1\nSTATUS=finishing what is in flight");
    };
    std::thread::Builder::new().name("supervisor".to_owned()).spawn(move || runtime.block_on(words))?;
    Ok(())
}

/// Whoever looks at a proxy that has just started, or lost a server, is not told what was so
/// before. `most`: what the service manager allows.
fn until_next(taken: Duration, most: Duration) -> Duration {
    taken.saturating_mul(SHARE).max(PAUSE_MIN).min(most)
}

/// It works if each pool does.
async fn word_of_all(reload: &Reload, watches: &mut [Watch]) -> Word {
    let words = reload.pools().zip(watches).map(|(pool, watch)| async move { (pool, watch.word(reload, pool).await) });
    let words = join_all(words).await;
    let lives = words.iter().all(|(_, word)| word.lives);
    let status = words.iter().map(|(pool, word)| match pool.name() {
        Some(name) => format!("{name} {}", word.status),
        None => word.status.clone(),
    });
    Word { lives, status: status.collect::<Vec<_>>().join("; ") }
}

/// How the proxy is.
struct Word {
    lives: bool,
    status: String,
}

impl Word {
    fn lines(&self) -> String {
        // The status holds text from outside, and must be one line.
        let status = self.status.replace(char::is_control, " ");
        format!("{}STATUS={status}", if self.lives { "WATCHDOG=1\n" } else { "" })
    }
}

struct Watch {
    pause: Duration,
    /// The control plane has answered once.
    has_begun: bool,
}

impl Watch {
    async fn word(&mut self, reload: &Reload, pool: &Pool) -> Word {
        let Some(serving) = pool.serving() else {
            return Word { lives: true, status: reload.in_place_of_serving() };
        };
        if serving.desk.is_closed() {
            return self.if_it_turns("ENDING: the servers are told".to_owned());
        }
        if let Some(word) = self.suspended(&serving) {
            return word;
        }
        // A report that takes longer is left out until the next round.
        if let Ok(Some(report)) = timeout(self.pause, serving.desk.state()).await {
            self.has_begun = true;
            return Word { lives: true, status: report.in_one_line() };
        }
        if let Some(word) = self.suspended(&serving) {
            return word;
        }
        match self.has_begun {
            false => self.if_it_turns("STARTING: the servers are looked at".to_owned()),
            true => hangs(),
        }
    }

    /// The thread stands still then.
    fn suspended(&self, serving: &Serving) -> Option<Word> {
        if !lease::is_over() {
            return None;
        }
        let trouble = serving.losses.trouble().map_or(String::new(), |why| format!("; {why}"));
        Some(self.if_it_turns(format!("SUSPENDED: {}{trouble}", lease::OVER)))
    }

    fn if_it_turns(&self, status: String) -> Word {
        let still = Duration::from_micros(Boot::now().since(lease::turned()));
        if still <= self.pause + 2 * lease::BEAT { Word { lives: true, status } } else { hangs() }
    }
}

fn hangs() -> Word {
    Word { lives: false, status: "the control plane does not answer".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_often_where_that_is_cheap_and_as_often_as_the_watchdog_asks() {
        let of_ms = |taken: u64, most: u64| until_next(Duration::from_millis(taken), Duration::from_millis(most));
        let pauses = [(0, 5000), (100, 5000), (900, 5000), (0, 500), (900, 500)].map(|(t, m)| of_ms(t, m).as_millis());
        assert_eq!(pauses, [1000, 2000, 5000, 500, 500]);
    }
}
