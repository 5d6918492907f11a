//! Where the active proxy is, for the relays; and a control connection to it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ids::Generation;

use super::keeper::{Known, Role};
use super::peers::{self, Purpose, Serving};
use super::relay::{Shared, Target};

/// So often in a lease the other end of a control connection is asked whether it is there.
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
    /// Of this one it is known that it hands over, or has ended.
    leaving: Option<Generation>,
    control: Option<Control>,
    /// When the other end was last asked whether it is there.
    asked: Instant,
}

struct Control {
    generation: Generation,
    stream: TcpStream,
}

impl Follower {
    pub(super) fn new(
        known: watch::Receiver<Known>,
        served: watch::Receiver<Option<Serving>>,
        shows: watch::Sender<Target>,
        shared: Arc<Shared>,
    ) -> Follower {
        let now = Instant::now();
        Follower { known, served, shows, shared, active: None, heard: now, leaving: None, control: None, asked: now }
    }

    pub(super) async fn run(mut self) {
        while self.turn().await.is_some() {}
    }

    /// Tells what is known, and waits for something else. Nothing: the process ends.
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
        match target.active {
            Some((generation, address)) if is_standby && !target.leaving && self.control.is_none() => {
                self.dial(generation, &address).await;
                Some(())
            }
            active => {
                let waits = target.leaving || is_standby && active.is_none();
                self.listen(waits, own.map(|serving| serving.leaving)).await
            }
        }
    }

    fn target(&mut self, known: &Known, own: Option<&Serving>) -> Target {
        if let Some(serving) = own.filter(|serving| serving.leaving.is_cancelled()) {
            self.leaving = Some(serving.generation);
        }
        let is_reached = match known.role {
            Role::Standby => !known.other_list,
            Role::Active | Role::Suspended => own.is_some(),
        };
        let active = known.active.clone().filter(|_| is_reached).map(|address| (known.generation, address));
        let generation = active.as_ref().map(|(generation, _)| *generation);
        if self.active != generation {
            (self.active, self.heard) = (generation, Instant::now());
        }
        // The record may go on where the network to its holder is cut.
        let cut = known.role == Role::Standby && active.is_some() && self.heard.elapsed() > self.shared.lease;
        if cut {
            self.control = None;
        }
        let why = match (&known.trouble, known.other_list) {
            (_, true) => "the active one has another list of servers, or another --lease".to_owned(),
            (Some(trouble), _) => trouble.clone(),
            (None, _) => String::new(),
        };
        Target {
            leaving: active.is_some() && self.leaving == generation,
            silent: known.silent || known.role == Role::Suspended || cut,
            active,
            why,
        }
    }

    async fn dial(&mut self, generation: Generation, address: &str) {
        match peers::dial(address, generation, Purpose::Control, &self.shared.name, self.shared.lease).await {
            Ok(stream) => {
                self.heard = Instant::now();
                self.control = Some(Control { generation, stream });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot reach the active proxy");
                (self.shared.hurry)();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Until something is known, or heard. Nothing: the process ends.
    async fn listen(&mut self, waits: bool, own_leaves: Option<CancellationToken>) -> Option<()> {
        let own_leaves = async {
            match &own_leaves {
                Some(leaves) if !leaves.is_cancelled() => leaves.cancelled().await,
                _ => std::future::pending().await,
            }
        };
        let mut byte = [0];
        let ask = self.asked + self.shared.lease / PINGS;
        tokio::select! {
            changed = self.known.changed() => changed.ok()?,
            changed = self.served.changed() => changed.ok()?,
            () = own_leaves => {}
            read = read(&mut self.control, &mut byte) => self.hear(read.map(|n| &byte[..n])),
            () = tokio::time::sleep(PAUSE), if waits => (self.shared.hurry)(),
            () = tokio::time::sleep_until(ask.into()), if self.control.is_some() && !waits => {
                self.asked = Instant::now();
                if let Some(Control { stream, .. }) = &self.control {
                    // (Full: it will be found silent.)
                    let _ = stream.try_write(&[peers::PING]);
                }
            }
        }
        Some(())
    }

    /// Something has come on the control connection.
    fn hear(&mut self, said: io::Result<&[u8]>) {
        match said {
            Ok([peers::PONG]) => self.heard = Instant::now(),
            Ok([_, ..]) => self.leaving = self.active,
            // Our own kernel has given it up: the other end may be there.
            Err(error) if !crate::backend::is_from_node(&error) => self.control = None,
            _ => {
                self.control = None;
                self.leaving = self.active;
                (self.shared.hurry)();
            }
        }
    }
}

async fn read(control: &mut Option<Control>, byte: &mut [u8]) -> io::Result<usize> {
    match control {
        Some(Control { stream, .. }) => stream.read(byte).await,
        None => std::future::pending().await,
    }
}
