//! The settings read again, while the proxy runs: on SIGHUP, or by `reload` on the admin socket.
//!
//! All settings are read and checked first, as at the start, and new sockets and files are opened;
//! if anything is wrong, everything stays as it was. Settings that can change without closing a
//! client change; the others are named, and stay. The log file is opened again in any case: it may
//! have been moved away, whatever is wrong with the settings. A file that hangs is given up after
//! some seconds, so that the next reload begins.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::{Mutex as FairMutex, Semaphore};
use tokio::time::timeout;

use crate::cluster::{Desk, Losses, SILENT};
use crate::config::{
    Changes, LogSettings, Plan, PoolName, ProcessSettings, Settings, UsageErrors, changes, process_changes,
};
use crate::daemon::{self, OpenedLog};
use crate::lease;
use crate::protocol::answer::server_error;
use crate::report::lines::Lines;

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

/// How long the settings may take to be read, and a log file to be opened; together less than
/// `resilver reload` waits for its answer, though the log's may pass twice.
const READ_MAX: Duration = Duration::from_secs(14);
const LOG_MAX: Duration = Duration::from_secs(5);
/// Attempts that never ended: each keeps a thread.
const STUCK_MAX: usize = 8;

/// See the module's words.
pub struct Reload {
    read: Read,
    /// In force. Held while they are changed, so that one change follows the other.
    current: FairMutex<Plan>,
    /// In the order of the plan.
    pools: Vec<Pool>,
    in_place: OnceLock<InPlace>,
    /// For what may hang.
    places: Arc<Semaphore>,
}

/// See [`Plan`].
pub(crate) struct Pool {
    name: Option<PoolName>,
    /// The proxy, while it is the one that serves.
    serving: Mutex<Option<(Serving, Doors)>>,
}

/// Why the settings were not changed as they should.
enum Failed {
    /// All stays as it was.
    Whole(String),
    /// Some pools have changed, and these are the words of all.
    InPart(String),
}

impl From<String> for Failed {
    fn from(why: String) -> Failed {
        Failed::Whole(why)
    }
}

/// What came of a change, in words.
#[derive(Default)]
struct Told {
    live: Vec<&'static str>,
    opened: Vec<SocketAddr>,
    /// Open files are allowed for this many clients.
    fewer: Option<usize>,
    /// What counts from the next start on.
    fixed: Vec<String>,
    ring: bool,
}

impl Reload {
    /// `current`: those that the proxy is started with.
    pub fn new(read: Read, current: Plan) -> Reload {
        let pool = |settings: &Settings| Pool { name: settings.pool.clone(), serving: Mutex::new(None) };
        let pools = current.pools.iter().map(pool).collect();
        Reload {
            read,
            current: FairMutex::new(current),
            pools,
            in_place: OnceLock::new(),
            places: Arc::new(Semaphore::new(STUCK_MAX)),
        }
    }

    /// A pool serves by itself, and can be told of other settings.
    pub(crate) fn serves(&self, pool: Option<&PoolName>, serving: Serving, doors: Doors) {
        if let Some(pool) = self.pools.iter().find(|known| known.name.as_ref() == pool) {
            *pool.serving.lock().unwrap_or_else(PoisonError::into_inner) = Some((serving, doors));
        }
    }

    /// What is said until it does.
    pub(crate) fn stands_by(&self, says: impl Fn() -> String + Send + Sync + 'static) {
        // Set once in a process.
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
    /// All that is wrong, in one sentence; or which pools alone have changed.
    pub async fn reload(&self) -> Result<String, String> {
        let mut current = self.current.lock().await;
        let why = match self.replace(&mut current).await {
            Ok(said) => {
                tracing::info!("reloaded: {said}");
                return Ok(said);
            }
            Err(Failed::InPart(said)) => {
                tracing::error!("reloaded in part: {said}");
                return Err(format!("not all of it: {said}"));
            }
            Err(Failed::Whole(why)) => why,
        };
        let log = match self.open_log(&current.process.log).await {
            Ok(log) => {
                log.put_in_place();
                "the log is opened anew, and all else".to_owned()
            }
            Err(error) if error == why => "all".to_owned(),
            Err(error) => format!("({error}) all"),
        };
        tracing::error!("not reloaded: {log} stays as it was: {why}");
        Err(why)
    }

    /// The same, as an operator is told of it.
    pub(crate) async fn answer(&self) -> Bytes {
        match self.reload().await {
            Ok(said) => {
                let mut out = Lines::default();
                out.put("reloaded:", said);
                out.end()
            }
            Err(why) => server_error(format_args!("not reloaded: {why}")),
        }
    }

    async fn replace(&self, current: &mut Plan) -> Result<String, Failed> {
        // Files are read, and names looked up.
        let read = self.read.clone();
        let new = self.apart("reading the settings", READ_MAX, move || read()).await?;
        let mut plan = new.map_err(|errors| errors.0.join("; "))?;
        let runs = Plan { process: plan.process.clone(), pools: running(&current.pools, &plan.pools) };
        let limit = daemon::raise_file_limit(&runs).map_err(|error| error.to_string())?;
        for new in &mut plan.pools {
            new.max_clients = limit.share(new.max_clients);
        }
        let log = self.open_log(&plan.process.log).await?;
        if self.pools.iter().all(|pool| pool.serving().is_none()) {
            log.put_in_place();
            current.process.log.clone_from(&plan.process.log);
            return Ok("the log alone: this proxy is not, or not yet, the active one, and what else has changed \
                       counts from its next start on"
                .to_owned());
        }
        self.all_answer(&plan.pools).await?;
        let opened = open_all(&current.pools, &plan.pools)?;
        let mut of_process = changed(&current.process, &plan);
        of_process.fewer = (limit.clients < limit.asked).then_some(limit.clients);
        let mut told = Vec::new();
        for ((pool, settings), opened) in self.pools.iter().zip(&mut current.pools).zip(opened) {
            match pool.among(&plan.pools) {
                Some(new) => told.push(pool.take(settings, new, opened)),
                None => of_process.fixed.push(gone(pool.name())),
            }
        }
        let mut told = join_all(told).await;
        of_process.fixed.extend(come(&current.pools, &plan.pools));
        let failed = told.iter().filter(|(_, outcome)| outcome.is_err()).count();
        if failed == told.len()
            && let Some((_, Err(why))) = told.pop()
        {
            return Err(Failed::Whole(why));
        }
        log.put_in_place();
        current.process.take_live(&plan.process);
        let words = in_words(of_process, told);
        if failed > 0 { Err(Failed::InPart(words)) } else { Ok(words) }
    }

    /// No pool changes where one of them could not.
    async fn all_answer(&self, new: &[Settings]) -> Result<(), String> {
        let asked = self.pools.iter().filter(|pool| pool.among(new).is_some());
        let asked = asked.map(|pool| async move {
            match pool.serving() {
                Some(Serving { desk, .. }) if desk.state().await.is_some() => None,
                _ => Some(pool.of_pool(&silent())),
            }
        });
        let silent: Vec<String> = join_all(asked).await.into_iter().flatten().collect();
        if silent.is_empty() { Ok(()) } else { Err(silent.join("; ")) }
    }

    async fn open_log(&self, log: &LogSettings) -> Result<OpenedLog, String> {
        let log = log.clone();
        let opened = self.apart("opening the log", LOG_MAX, move || daemon::open_log(&log)).await?;
        opened.map_err(|error| error.to_string())
    }

    /// On a thread of its own: a file may keep whoever opens or reads it waiting (a pipe without
    /// another end, a disk that hangs), and those who ask run where the control plane does. What
    /// takes longer than `most` is left to itself: whoever asks next waits for it no more.
    async fn apart<T: Send + 'static>(
        &self,
        what: &str,
        most: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| format!("{what}: {STUCK_MAX} earlier attempts have not ended: a file hangs"))?;
        let work = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        match timeout(most, work).await {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(_) => Err(format!("{what} did not end within {} s: a file hangs, or a name server", most.as_secs())),
        }
    }

    pub(crate) fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter()
    }
}

impl Pool {
    pub(crate) fn name(&self) -> Option<&PoolName> {
        self.name.as_ref()
    }

    /// Of the proxy that serves, if it does.
    pub(crate) fn serving(&self) -> Option<Serving> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(serving, _)| serving.clone())
    }

    /// What a file says of it.
    fn among<'s>(&self, settings: &'s [Settings]) -> Option<&'s Settings> {
        settings.iter().find(|settings| settings.pool == self.name)
    }

    /// Words about it, with its name where it has one.
    fn of_pool(&self, words: &str) -> String {
        self.name.as_ref().map_or_else(|| words.to_owned(), |name| format!("pool {name}: {words}"))
    }

    /// See [`Pool::replace`].
    async fn take(
        &self,
        settings: &mut Settings,
        new: &Settings,
        opened: Opened,
    ) -> (Option<PoolName>, Result<Told, String>) {
        (self.name.clone(), self.replace(settings, new, opened).await)
    }

    /// What can change of `settings` does. An error: nothing has.
    async fn replace(&self, settings: &mut Settings, new: &Settings, opened: Opened) -> Result<Told, String> {
        let answered = match self.serving() {
            Some(Serving { desk, .. }) => desk.settings(new.clone()).await,
            None => false,
        };
        if !answered {
            return Err(silent());
        }
        let changes = changes(settings, new);
        let fixed = changes.fixed.iter().map(|name| (*name).to_owned()).collect();
        let mut told = Told { live: changes.live, fixed, ring: changes.ring, ..Told::default() };
        for (address, sockets) in opened {
            self.open(sockets);
            settings.listen.push(address);
            told.opened.push(address);
        }
        settings.take_live(new);
        let closed = settings.listen.iter().filter(|address| !new.listen.contains(address));
        told.fixed.extend(closed.map(|address| format!("no more clients on {address}")));
        Ok(told)
    }

    fn open(&self, sockets: Vec<TcpListener>) {
        if let Some((_, doors)) = &*self.serving.lock().unwrap_or_else(PoisonError::into_inner) {
            doors(sockets);
        }
    }
}

/// Why a control plane does not answer.
fn silent() -> String {
    match lease::is_over() {
        false => SILENT.to_owned(),
        true => format!("this proxy is suspended: {}", lease::OVER),
    }
}

/// What will be in force of `new` in the pools that run: those that are gone from the file run on,
/// and those that it has now do not run yet.
fn running(current: &[Settings], new: &[Settings]) -> Vec<Settings> {
    let of = |settings: &Settings| {
        let mut settings = settings.clone();
        if let Some(new) = new.iter().find(|new| new.pool == settings.pool) {
            let added = added(&settings, new);
            settings.take_live(new);
            settings.listen.extend(added);
        }
        settings
    };
    current.iter().map(of).collect()
}

/// An address, and the sockets that listen there.
type Opened = Vec<(SocketAddr, Vec<TcpListener>)>;

/// What has to be opened is, for all pools, before anything is changed.
fn open_all(current: &[Settings], new: &[Settings]) -> Result<Vec<Opened>, String> {
    let of = |settings: &Settings| match new.iter().find(|new| new.pool == settings.pool) {
        // A reload keeps the number of workers.
        Some(new) => daemon::bind_also(new, &added(settings, new), settings.threads).map_err(|error| error.to_string()),
        None => Ok(Vec::new()),
    };
    current.iter().map(of).collect()
}

fn changed(current: &ProcessSettings, plan: &Plan) -> Told {
    let Changes { live, fixed, .. } = process_changes(current, &plan.process);
    Told { live, fixed: fixed.iter().map(|name| (*name).to_owned()).collect(), ..Told::default() }
}

fn gone(pool: Option<&PoolName>) -> String {
    pool.map_or_else(|| "pools in the place of its servers".to_owned(), |name| format!("the end of pool {name}"))
}

/// Pools that the file has now.
fn come(current: &[Settings], new: &[Settings]) -> Vec<String> {
    let is_new = |new: &&Settings| !current.iter().any(|settings| settings.pool == new.pool);
    let name = |new: &Settings| match &new.pool {
        Some(name) => format!("the new pool {name}"),
        None => "servers in the place of its pools".to_owned(),
    };
    new.iter().filter(is_new).map(name).collect()
}

/// Of a pool without a name nothing is told apart from the process.
fn in_words(mut of_process: Told, told: Vec<(Option<PoolName>, Result<Told, String>)>) -> String {
    let mut words = Vec::new();
    let mut of_pools = Vec::new();
    for (name, told) in told {
        match (name, told) {
            (None, Ok(mut alone)) => {
                alone.live.append(&mut of_process.live);
                alone.fixed.append(&mut of_process.fixed);
                return Told { fewer: of_process.fewer, ..alone }.words();
            }
            (None, Err(why)) => of_pools.push(why),
            (Some(name), Ok(told)) => of_pools.push(format!("pool {name}: {}", told.words())),
            (Some(name), Err(why)) => of_pools.push(format!("pool {name}: nothing: {why}")),
        }
    }
    if !of_process.is_nothing() {
        words.push(of_process.words());
    }
    words.extend(of_pools);
    words.join("; ")
}

impl Told {
    fn is_nothing(&self) -> bool {
        self.live.is_empty() && self.opened.is_empty() && self.fewer.is_none() && self.fixed.is_empty()
    }

    fn words(&self) -> String {
        let mut said: Vec<String> = self.opened.iter().map(|address| format!("listens on {address} too")).collect();
        if !self.live.is_empty() {
            said.insert(0, format!("changed: {}", self.live.join(", ")));
        }
        if said.is_empty() {
            said.push("nothing has changed".to_owned());
        }
        if let Some(clients) = self.fewer {
            said.push(format!("max-clients: the limit of open files allows {clients}"));
        }
        if !self.fixed.is_empty() {
            said.push(format!("only at the next start: {}", self.fixed.join(", ")));
        }
        let ring = " (another list of servers is another ring: docs/operating.md, Changing the ring)";
        said.join("; ") + if self.ring { ring } else { "" }
    }
}

fn added(current: &Settings, new: &Settings) -> Vec<SocketAddr> {
    new.listen.iter().filter(|address| !current.listen.contains(address)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CommandLine, Host};

    /// A pipe without a writer, or a disk that hangs, in the place of the settings: the log file is
    /// opened anew all the same, whoever asked is told, and the next one is served.
    #[tokio::test(start_paused = true)]
    async fn settings_that_cannot_be_read_to_their_end_are_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        let line = format!("resilver -s a:1 --log-file {}", file.display());
        let Ok(CommandLine::Run(plan)) = CommandLine::parse(line.split_whitespace(), &Host::this()) else { panic!() };
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let hangs = Mutex::new(Some(hangs));
        let read = move || {
            begun.send(()).unwrap();
            let first = hangs.lock().unwrap().take();
            // (It ends when the test does.)
            let _ = first.map(|hangs| hangs.recv());
            Err(UsageErrors(vec!["wrong".to_owned()]))
        };
        let reload = Arc::new(Reload::new(Arc::new(read), *plan));
        let (one, next) = (reload.clone(), reload);
        let one = tokio::spawn(async move { one.reload().await });
        begins.recv().await.unwrap();
        let next = tokio::spawn(async move { next.reload().await });
        tokio::task::yield_now().await;
        // (While something blocks, time stands still.)
        tokio::time::advance(Duration::from_secs(20)).await;
        let begun = std::time::Instant::now();
        while !one.is_finished() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it waits");
            tokio::task::yield_now().await;
        }
        let said = one.await.unwrap().unwrap_err();
        assert!(said.contains("within"), "{said}");
        assert!(file.exists(), "the log is opened all the same");
        assert_eq!(next.await.unwrap(), Err("wrong".to_owned()));
        drop(release);
    }

    #[test]
    fn files_are_needed_by_the_pools_that_run_with_their_new_values() {
        let host = Host { variables: Vec::new(), ..Host::this() };
        let pool = |name: &str, line: &str| {
            let parsed = CommandLine::parse(format!("resilver -s a:1 {line}").split_whitespace(), &host);
            let Ok(CommandLine::Run(mut plan)) = parsed else { panic!("{line}: {parsed:?}") };
            Settings { pool: Some(PoolName::from(name)), ..plan.pools.remove(0) }
        };
        let current = [pool("stays", "-n 5 -p 3 --threads 2"), pool("gone", "-n 7")];
        let new = [pool("come", "-n 1000"), pool("stays", "-n 50 -p 4 --threads 4")];
        let runs = running(&current, &new);
        let shown: Vec<_> = runs.iter().map(|s| (s.pool.as_deref().unwrap_or_default(), s.max_clients)).collect();
        assert_eq!(shown, [("stays", 50), ("gone", 7)]);
        assert_eq!((runs[0].threads, runs[0].listen.len()), (2, 2), "its threads stay, and so do its clients");
    }
}
