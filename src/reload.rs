//! The settings read again, while the proxy runs: on SIGHUP, or by `reload` on the admin socket.
//!
//! All settings are read and checked first, as at the start, and new sockets and files are opened;
//! if anything is wrong, everything stays as it was. Settings that can change without closing a
//! client change; the others are named, and stay.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Mutex as FairMutex;

use crate::cluster::Desk;
use crate::config::{Plan, Settings, UsageErrors, changes, process_changes};
use crate::daemon;

/// Reads the settings from where they stood at the start.
pub type Read = Arc<dyn Fn() -> Result<Plan, UsageErrors> + Send + Sync>;

/// Takes an address's listening sockets, one for each worker.
pub(crate) type Doors = Box<dyn Fn(Vec<TcpListener>) -> std::io::Result<()> + Send>;

/// See the module's words.
pub struct Reload {
    read: Read,
    /// In force. Held while they are changed, so that one change follows the other.
    current: FairMutex<Plan>,
    /// The proxy, while it is the one that serves.
    serving: Mutex<Option<(Desk, Doors)>>,
}

impl Reload {
    /// `current`: those that the proxy is started with.
    pub fn new(read: Read, current: Plan) -> Reload {
        Reload { read, current: FairMutex::new(current), serving: Mutex::new(None) }
    }

    /// It serves by itself, and can be told of other settings.
    pub(crate) fn serves(&self, desk: Desk, doors: Doors) {
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = Some((desk, doors));
    }

    /// What has changed and what could not; or why all stays as it was.
    ///
    /// # Errors
    ///
    /// All that is wrong, in one sentence.
    pub async fn reload(&self) -> Result<String, String> {
        let mut current = self.current.lock().await;
        let outcome = self.replace(&mut current).await;
        match &outcome {
            Ok(said) => tracing::info!("reloaded: {said}"),
            Err(why) => tracing::error!("not reloaded, and all stays as it was: {why}"),
        }
        outcome
    }

    /// The same, as an operator is told of it.
    pub(crate) async fn answer(&self) -> Bytes {
        Bytes::from(match self.reload().await {
            Ok(said) => format!("STAT reloaded {said}\r\nEND\r\n"),
            Err(why) => format!("SERVER_ERROR not reloaded: {why}\r\n"),
        })
    }

    async fn replace(&self, current: &mut Plan) -> Result<String, String> {
        // Files are read, and names looked up.
        let read = self.read.clone();
        let new = tokio::task::spawn_blocking(move || read()).await.map_err(|error| error.to_string())?;
        let plan = new.map_err(|errors| errors.0.join("; "))?;
        let limit = daemon::raise_file_limit(&plan).map_err(|error| error.to_string())?;
        let fewer = (limit.clients < limit.asked).then_some(limit.clients);
        let log = daemon::open_log(&plan.process.log).map_err(|error| error.to_string())?;
        let of_process = process_changes(&current.process, &plan.process);
        let (Some(current_pool), Some(mut new)) = (current.pools.first_mut(), plan.pools.into_iter().next()) else {
            return Err("there is no pool".to_owned());
        };
        new.max_clients = limit.share(new.max_clients);
        let Some(desk) = self.desk() else {
            log.put_in_place();
            return Ok("the log alone: this proxy is not the active one, and what else has changed counts from its \
                       next start on"
                .to_owned());
        };
        let opened = daemon::bind_also(&new, &added(current_pool, &new)).map_err(|error| error.to_string())?;
        let mut changes = changes(current_pool, &new);
        changes.live.extend(of_process.live);
        changes.fixed.extend(of_process.fixed);
        if !desk.settings(new.clone()).await {
            return Err("the control plane does not answer: it is starting, or ending".to_owned());
        }
        log.put_in_place();
        let mut said = Vec::new();
        for (address, sockets) in opened {
            self.open(sockets).map_err(|error| format!("{address}: {error}"))?;
            current_pool.listen.push(address);
            said.push(format!("listens on {address} too"));
        }
        current_pool.take_live(&new);
        current.process.take_live(&plan.process);
        if !changes.live.is_empty() {
            said.insert(0, format!("changed: {}", changes.live.join(", ")));
        }
        if said.is_empty() {
            said.push("nothing has changed".to_owned());
        }
        if let Some(clients) = fewer {
            said.push(format!("max-clients: the limit of open files allows {clients}"));
        }
        let mut fixed: Vec<String> = changes.fixed.iter().map(|name| (*name).to_owned()).collect();
        let closed = current_pool.listen.iter().filter(|address| !new.listen.contains(address));
        fixed.extend(closed.map(|address| format!("no more clients on {address}")));
        if !fixed.is_empty() {
            said.push(format!("only at the next start: {}", fixed.join(", ")));
        }
        let ring = " (another list of servers is another ring: docs/operating.md, Changing the ring)";
        Ok(said.join("; ") + if changes.ring { ring } else { "" })
    }

    /// Of the proxy that serves, if it does.
    pub(crate) fn desk(&self) -> Option<Desk> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(desk, _)| desk.clone())
    }

    fn open(&self, sockets: Vec<TcpListener>) -> std::io::Result<()> {
        match &*self.serving.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((_, doors)) => doors(sockets),
            None => Ok(()),
        }
    }
}

fn added(current: &Settings, new: &Settings) -> Vec<SocketAddr> {
    new.listen.iter().filter(|address| !current.listen.contains(address)).copied().collect()
}
