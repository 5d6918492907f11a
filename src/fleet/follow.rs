//! Where the active proxy is, for the relays; and a control connection to it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ids::Generation;
use crate::server::Stream;

use super::keeper::{Known, Role};
use super::peers::{self, Purpose, Serving, Unreached};
use super::relay::{Shared, Target};
use super::standbys::Fitness;

/// How often in a lease the other end of a control connection is asked whether it is there.
const PINGS: u32 = 6;

/// Between two looks for a new active proxy.
const PAUSE: Duration = Duration::from_millis(10);

pub(super) struct Follower {
    known: watch::Receiver<Known>,
    /// Where this proxy is while it is active itself.
    served: watch::Receiver<Option<Serving>>,
    shows: watch::Sender<Target>,
    shared: Arc<Shared>,
    /// The one that is active by the record, and when it was last heard, or first known.
    active: Option<Generation>,
    heard: Instant,
    leaving: Option<Leaving>,
    control: Option<Control>,
    /// When the other end was last asked whether it is there, and what was said of this one then.
    asked: Instant,
    said: Option<Fitness>,
    /// Why the active one did not want this one when it was last dialled.
    refused: Option<String>,
}

/// The proxy that is about to end: no new requests go to it.
#[derive(Clone, Copy)]
struct Leaving {
    generation: Generation,
    /// It hands over, by its own word. Else its control connection has ended, which a process does
    /// at its end, and a network, or a proxy that waits in vain, too: it is dialled again.
    said: bool,
}

struct Control {
    generation: Generation,
    stream: Stream,
    /// A line that has begun.
    line: Vec<u8>,
}

impl Follower {
    pub(super) fn new(
        known: watch::Receiver<Known>,
        served: watch::Receiver<Option<Serving>>,
        shows: watch::Sender<Target>,
        shared: Arc<Shared>,
    ) -> Follower {
        let now = Instant::now();
        Follower {
            known,
            served,
            shows,
            shared,
            active: None,
            heard: now,
            leaving: None,
            control: None,
            asked: now,
            said: None,
            refused: None,
        }
    }

    pub(super) async fn run(mut self) {
        while self.turn().await.is_some() {}
    }

    /// Publishes what is known, and waits for a change. `None`: the process ends.
    async fn turn(&mut self) -> Option<()> {
        let known = self.known.borrow_and_update().clone();
        let own = self.served.borrow_and_update().clone();
        let target = self.target(&known, own.as_ref());
        self.shows.send_if_modified(|shown| {
            let changed = *shown != target;
            *shown = target.clone();
            changed
        });
        if self.control.as_ref().is_some_and(|control| Some(control.generation) != self.active)
            || target.leaving && self.shared.links.is_empty()
        {
            self.control = None;
        }
        self.shared.shown.reached.store(self.control.is_some(), Ordering::Relaxed);
        let is_standby = known.role == Role::Standby;
        let hands_over = target.leaving && self.leaving.is_some_and(|leaving| leaving.said);
        match target.active {
            Some((generation, address)) if is_standby && !hands_over && self.control.is_none() => {
                self.dial(generation, &address).await
            }
            active => {
                let waits = target.leaving || is_standby && active.is_none();
                self.listen(waits, own.map(|serving| serving.leaving)).await
            }
        }
    }

    fn target(&mut self, known: &Known, own: Option<&Serving>) -> Target {
        if let Some(serving) = own.filter(|serving| serving.leaving.is_cancelled()) {
            self.leaving = Some(Leaving { generation: serving.generation, said: true });
        }
        let is_reached = match known.role {
            Role::Standby => !known.other_list,
            Role::Active | Role::Suspended => own.is_some(),
        };
        let active = known.active.clone().filter(|_| is_reached).map(|address| (known.generation, address));
        let generation = active.as_ref().map(|(generation, _)| *generation);
        if self.active != generation {
            (self.active, self.heard, self.refused) = (generation, Instant::now(), None);
        }
        // The record may go on where the network to its holder is cut. (It may be paused for its
        // own lease, and act all the same.)
        let lease = self.shared.me.lease.max(known.lease);
        let cut = known.role == Role::Standby && active.is_some() && self.heard.elapsed() > lease;
        if cut {
            self.control = None;
        }
        let why = match (&known.trouble, &self.refused) {
            (trouble, _) if known.role == Role::Suspended => {
                let behind = trouble.as_ref().map_or(String::new(), |trouble| format!(" ({trouble})"));
                format!("this one is suspended, for its lease is over{behind}")
            }
            _ if known.other_list => "the active one has another list of servers".to_owned(),
            (Some(why), _) | (None, Some(why)) => why.clone(),
            (None, None) => self.shared.shown.no_server(known).unwrap_or_default(),
        };
        let leaving = self.leaving.filter(|leaving| Some(leaving.generation) == generation);
        Target {
            leaving: leaving.is_some(),
            unsaid: leaving.is_some_and(|leaving| !leaving.said),
            silent: known.silent || known.role == Role::Suspended || cut,
            active,
            why,
        }
    }

    /// Dials until it answers, or something changes. `None`: the process ends.
    async fn dial(&mut self, generation: Generation, address: &str) -> Option<()> {
        let dialled = tokio::select! {
            biased;
            changed = self.known.changed() => return changed.ok(),
            changed = self.served.changed() => return changed.ok(),
            dialled = peers::dial(&self.shared.me, address, generation, Purpose::Control) => dialled,
        };
        match dialled {
            Ok(stream) => {
                self.heard = Instant::now();
                self.control = Some(Control { generation, stream, line: Vec::new() });
                (self.refused, self.said) = (None, None);
                // It lives.
                self.leaving = self.leaving.filter(|leaving| leaving.said);
            }
            Err(error) => {
                tracing::debug!(%error, "cannot reach the active proxy");
                let refused = matches!(error, Unreached::Refused(_)).then(|| format!("{address}: {error}"));
                if refused.is_some() && self.refused != refused {
                    tracing::info!(active = address, "the active proxy is not reached: {error}");
                }
                self.refused = refused;
                (self.shared.hurry)();
                tokio::time::sleep(PAUSE).await;
            }
        }
        Some(())
    }

    /// Waits until something changes, or is heard. `None`: the process ends.
    async fn listen(&mut self, waits: bool, own_leaves: Option<CancellationToken>) -> Option<()> {
        let own_leaves = async {
            match &own_leaves {
                Some(leaves) if !leaves.is_cancelled() => leaves.cancelled().await,
                _ => std::future::pending().await,
            }
        };
        let mut byte = [0];
        let fitness = self.shared.shown.fitness(&self.known.borrow());
        // What is new is said at once: the operator may want the other end to hand over.
        let ask = if self.said == Some(fitness) { self.asked + self.shared.me.lease / PINGS } else { Instant::now() };
        tokio::select! {
            biased;
            changed = self.known.changed() => changed.ok()?,
            changed = self.served.changed() => changed.ok()?,
            () = own_leaves => {}
            read = read(&mut self.control, &mut byte) => self.hear(read.map(|n| &byte[..n])),
            () = tokio::time::sleep(PAUSE), if waits => (self.shared.hurry)(),
            () = tokio::time::sleep_until(ask), if self.control.is_some() && !waits => {
                (self.asked, self.said) = (Instant::now(), Some(fitness));
                if let Some(Control { stream, .. }) = &self.control {
                    // Full: it will be found silent.
                    let _ = stream.try_write(&[fitness.byte()]);
                }
            }
        }
        Some(())
    }

    /// Something has come on the control connection.
    fn hear(&mut self, said: io::Result<&[u8]>) {
        match said {
            Ok([byte, ..]) => self.hear_byte(*byte),
            // Our own kernel has given it up: the other end may be there.
            Err(error) if !crate::backend::is_from_node(&error) => self.control = None,
            _ => {
                self.control = None;
                self.leaves(
                    self.leaving.is_some_and(|leaving| leaving.said && Some(leaving.generation) == self.active),
                );
                (self.shared.hurry)();
            }
        }
    }

    /// Takes a byte from the control connection: of a line, or a one-byte answer between lines.
    fn hear_byte(&mut self, byte: u8) {
        let Some(Control { line, .. }) = &mut self.control else { return };
        match byte {
            peers::PONG if line.is_empty() => self.heard = Instant::now(),
            b'\n' => {
                let said = std::mem::take(line);
                // Whatever else a later release says, it does not say that it leaves.
                if said.strip_suffix(b"\r").unwrap_or(&said) == peers::LEAVING {
                    self.leaves(true);
                }
            }
            byte if line.len() < peers::LINE_MAX => line.push(byte),
            _ => self.control = None,
        }
    }

    fn leaves(&mut self, said: bool) {
        self.leaving = self.active.map(|generation| Leaving { generation, said });
    }
}

async fn read(control: &mut Option<Control>, byte: &mut [u8]) -> io::Result<usize> {
    match control {
        Some(Control { stream, .. }) => stream.read(byte).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use tokio::io::AsyncWriteExt;
    use tokio::time::timeout;

    use super::*;
    use crate::fleet::testing::{Active, LONG, ends, shared};

    /// A follower of that active proxy, in the second place what it shows.
    fn follow(active: &Active, lease: Duration) -> (watch::Sender<Known>, watch::Receiver<Target>, Arc<AtomicU64>) {
        let (shows, target) = watch::channel(Target::default());
        let mut shared = shared(target.clone(), LONG, lease);
        let hurried = Arc::new(AtomicU64::new(0));
        let hurries = hurried.clone();
        shared.hurry = Box::new(move || {
            hurries.fetch_add(1, Ordering::Relaxed);
        });
        let (tells, known) = watch::channel(active.known());
        let (serves, served) = watch::channel(None);
        tokio::spawn(async move {
            Follower::new(known, served, shows, Arc::new(shared)).run().await;
            drop(serves);
        });
        (tells, target, hurried)
    }

    async fn shown(target: &mut watch::Receiver<Target>, what: impl FnMut(&Target) -> bool) -> Target {
        timeout(LONG, target.wait_for(what)).await.expect("it is shown").unwrap().clone()
    }

    /// The network between the two is cut: their connection stands, and nothing comes.
    #[tokio::test]
    async fn an_active_proxy_that_answers_no_question_in_a_lease_is_silent_and_dialled_anew() {
        let one = Active::new(1).await;
        let (_known, mut target, _) = follow(&one, Duration::from_millis(50));
        let mut silent = one.welcome("control").await;
        let said = shown(&mut target, |target| target.silent).await;
        assert_eq!(said.active, one.target().active, "it may be the active one all the same");
        let _anew = one.welcome("control").await;
        shown(&mut target, |target| !target.silent).await;
        // With the questions that nobody answered.
        let left = async { while silent.read_u8().await.is_ok() {} };
        timeout(LONG, left).await.expect("the first one is given up");
    }

    /// Its lease is longer: it acts on while it is paused for as long.
    #[tokio::test]
    async fn an_active_proxy_with_a_longer_lease_may_be_silent_for_longer() {
        let one = Active::new(1).await;
        let (known, mut target, _) = follow(&one, Duration::from_millis(20));
        known.send_replace(Known { lease: LONG, ..one.known() });
        let mut silent = one.welcome("control").await;
        // It is asked six times in the shorter one.
        for _ in 0..30 {
            timeout(LONG, silent.read_u8()).await.expect("it is asked").unwrap();
        }
        assert!(!target.borrow_and_update().silent);
    }

    #[tokio::test]
    async fn nothing_new_goes_to_one_that_hands_over_and_the_next_one_is_looked_for_when_it_is_gone() {
        let (one, two) = (Active::new(1).await, Active::new(2).await);
        let (known, mut target, hurried) = follow(&one, LONG);
        let mut control = one.welcome("control").await;
        control.write_all(b"leaving\r\n").await.unwrap();
        let Target { active, unsaid, .. } = shown(&mut target, |target| target.leaving).await;
        assert_eq!((active, unsaid), (one.target().active, false));
        // No client has a link to it.
        ends(&mut control).await;
        let looks = hurried.load(Ordering::Relaxed);
        let hurries = async {
            while hurried.load(Ordering::Relaxed) == looks {
                tokio::task::yield_now().await;
            }
        };
        timeout(LONG, hurries).await.expect("the register is looked at");
        known.send_replace(two.known());
        assert_eq!(shown(&mut target, |target| !target.leaving).await.active, two.target().active);
        let ended = two.welcome("control").await;
        drop(ended);
        assert!(shown(&mut target, |target| target.leaving).await.unsaid, "nobody hands over");
    }

    #[tokio::test]
    async fn clients_hear_why_the_active_proxy_does_not_want_this_one() {
        let one = Active::new(1).await;
        let (_known, mut target, _) = follow(&one, LONG);
        one.refuse("this proxy speaks versions 3 to 4 of this line, and not 1").await;
        let why = shown(&mut target, |target| !target.why.is_empty()).await.why;
        assert!(why.contains("versions 3 to 4") && why.contains(&one.target().active.unwrap().1), "{why}");
        let _control = one.welcome("control").await;
        shown(&mut target, |target| target.why.is_empty()).await;
    }

    /// Whoever is there by now has another address, or none is active.
    #[tokio::test]
    async fn what_a_former_active_proxy_said_is_no_reason_later() {
        let one = Active::new(1).await;
        let (known, mut target, _) = follow(&one, LONG);
        one.refuse("it is busy").await;
        shown(&mut target, |target| target.why.contains("it is busy")).await;
        known.send_replace(Known::default());
        let none = shown(&mut target, |target| target.active.is_none()).await;
        assert_eq!(none.why, "");
    }

    /// The one that was active takes connections, and says nothing, as long as it is paused.
    #[tokio::test]
    async fn the_next_active_proxy_is_heard_of_while_the_former_one_is_dialled() {
        let (one, two) = (Active::new(1).await, Active::new(2).await);
        let (known, mut target, _) = follow(&one, LONG);
        let _unanswered = one.called().await;
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        known.send_replace(two.known());
        shown(&mut target, |shown| shown.active == two.target().active).await;
        assert_eq!(begun.elapsed(), Duration::ZERO, "the dial was waited for");
        tokio::time::resume();
        let _control = two.welcome("control").await;
    }

    /// Its process may live: only its own word, or the record, says that it is no more.
    #[tokio::test]
    async fn an_active_proxy_whose_control_connection_breaks_is_dialled_anew() {
        let one = Active::new(1).await;
        let (_known, mut target, _) = follow(&one, LONG);
        drop(one.welcome("control").await);
        // Until it answers, nothing new is sent to it.
        shown(&mut target, |target| target.leaving).await;
        let _anew = one.welcome("control").await;
        let again = shown(&mut target, |target| !target.leaving).await;
        assert_eq!(again.active, one.target().active);
    }
}
