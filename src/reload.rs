//! The settings read again, while the proxy runs: on SIGHUP, or by `reload` on the admin socket.
//!
//! All settings are read and checked first, as at the start, and new sockets and files are opened;
//! if anything is wrong, everything stays as it was. Settings that can change without closing a
//! client change; the others are named, and stay. The log file is opened again in any case: it may
//! have been moved away, whatever is wrong with the settings.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::Mutex as FairMutex;

use crate::cluster::{Desk, Losses};
use crate::config::{LogSettings, Plan, Settings, UsageErrors, changes, process_changes};
use crate::daemon::{self, OpenedLog};
use crate::lease::{self, Boot};

/// Reads the settings from where they stood at the start.
pub type Read = Arc<dyn Fn() -> Result<Plan, UsageErrors> + Send + Sync>;

/// Takes an address's listening sockets, one for each worker. Nothing can go wrong there: the rest
/// has changed by then.
pub(crate) type Doors = Box<dyn Fn(Vec<TcpListener>) + Send>;

/// The proxy that serves.
#[derive(Clone)]
pub(crate) struct Serving {
    pub(crate) desk: Desk,
    pub(crate) losses: Arc<dyn Losses>,
}

/// What is said of a proxy that does not serve by itself.
type InPlace = Box<dyn Fn() -> String + Send + Sync>;

/// See the module's words.
pub struct Reload {
    read: Read,
    /// In force. Held while they are changed, so that one change follows the other.
    current: FairMutex<Plan>,
    /// The proxy, while it is the one that serves.
    serving: Mutex<Option<(Serving, Doors)>>,
    in_place: OnceLock<InPlace>,
}

impl Reload {
    /// `current`: those that the proxy is started with.
    pub fn new(read: Read, current: Plan) -> Reload {
        Reload { read, current: FairMutex::new(current), serving: Mutex::new(None), in_place: OnceLock::new() }
    }

    /// It serves by itself, and can be told of other settings.
    pub(crate) fn serves(&self, serving: Serving, doors: Doors) {
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = Some((serving, doors));
    }

    /// What is said until it does.
    pub(crate) fn stands_by(&self, says: impl Fn() -> String + Send + Sync + 'static) {
        // (Once in a process.)
        let _ = self.in_place.set(Box::new(says));
    }

    /// How a proxy is that does not serve by itself, in words.
    pub(crate) fn in_place_of_serving(&self) -> String {
        self.in_place.get().map_or("STARTING".to_owned(), |says| says())
    }

    /// What has changed and what could not; or why all stays as it was.
    ///
    /// # Errors
    ///
    /// All that is wrong, in one sentence.
    pub async fn reload(&self) -> Result<String, String> {
        let mut current = self.current.lock().await;
        let outcome = self.replace(&mut current).await;
        let Err(why) = &outcome else {
            tracing::info!("reloaded: {}", outcome.as_deref().unwrap_or_default());
            return outcome;
        };
        let log = match open_log(&current.process.log).await {
            Ok(log) => {
                log.put_in_place();
                "the log is opened anew, and all else".to_owned()
            }
            Err(error) => format!("({error}) all"),
        };
        tracing::error!("not reloaded: {log} stays as it was: {why}");
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
        let log = open_log(&plan.process.log).await?;
        let of_process = process_changes(&current.process, &plan.process);
        let (Some(current_pool), Some(mut new)) = (current.pools.first_mut(), plan.pools.into_iter().next()) else {
            return Err("there is no pool".to_owned());
        };
        new.max_clients = limit.share(new.max_clients);
        let Some(Serving { desk, .. }) = self.serving() else {
            log.put_in_place();
            current.process.log.clone_from(&plan.process.log);
            return Ok("the log alone: this proxy is not the active one, and what else has changed counts from its \
                       next start on"
                .to_owned());
        };
        // (The number of workers does not change.)
        let bound = daemon::bind_also(&new, &added(current_pool, &new), current_pool.threads);
        let opened = bound.map_err(|error| error.to_string())?;
        let mut changes = changes(current_pool, &new);
        changes.live.extend(of_process.live);
        changes.fixed.extend(of_process.fixed);
        if !desk.settings(new.clone()).await {
            return Err(match lease::own().holds(Boot::now()) {
                true => "the control plane does not answer: it is starting, or ending".to_owned(),
                false => format!("this proxy is suspended: {}", lease::OVER),
            });
        }
        log.put_in_place();
        let mut said = Vec::new();
        for (address, sockets) in opened {
            self.open(sockets);
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
    pub(crate) fn serving(&self) -> Option<Serving> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(serving, _)| serving.clone())
    }

    fn open(&self, sockets: Vec<TcpListener>) {
        if let Some((_, doors)) = &*self.serving.lock().unwrap_or_else(PoisonError::into_inner) {
            doors(sockets);
        }
    }
}

/// On a thread of its own: a file may keep whoever opens it waiting (a pipe without a reader, a
/// disk of the network), and those who ask run where the control plane does.
async fn open_log(log: &LogSettings) -> Result<OpenedLog, String> {
    let log = log.clone();
    let opened = tokio::task::spawn_blocking(move || daemon::open_log(&log)).await;
    opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

fn added(current: &Settings, new: &Settings) -> Vec<SocketAddr> {
    new.listen.iter().filter(|address| !current.listen.contains(address)).copied().collect()
}
