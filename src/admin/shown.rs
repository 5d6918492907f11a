//! What is shown, made anew at most ten times a second, however often it is asked for: describing
//! itself must not keep the control plane from its work.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cluster::{Desk, Losses};
use crate::config::PoolName;
use crate::proxy::Memory;
use crate::report::Report;
use crate::report::json::{JSON_VERSION, silent_json};
use crate::report::metrics::{self, Around};
use crate::report::verdict::{Word, small, worst};

use super::history::History;

/// How old a report may be that is shown again.
const AGE_MAX: Duration = Duration::from_millis(100);

/// A pool, and what was last made of it to be shown.
pub(super) struct Shown {
    pub(super) pool: Option<PoolName>,
    desk: Desk,
    /// Where several proxies agree: what this one is of them.
    pub(super) losses: Arc<dyn Losses>,
    memory: Arc<Memory>,
    history: History,
    last: Mutex<Option<(Instant, Arc<View>)>>,
}

/// One report, and what was made of it.
#[derive(Debug)]
pub(super) struct View {
    pub(super) report: Box<Report>,
    status: OnceLock<Bytes>,
    gist: OnceLock<Option<Gist>>,
}

/// What is told of a pool beside others.
#[derive(Debug)]
struct Gist {
    word: Word,
    why: String,
    mirrored: bool,
}

impl View {
    fn new(report: Box<Report>) -> View {
        View { report, status: OnceLock::new(), gist: OnceLock::new() }
    }

    fn gist(&self) -> Option<&Gist> {
        let made = || {
            let seen = self.report.seen()?;
            Some(Gist { word: seen.word(), why: seen.why(), mirrored: seen.mirrored })
        };
        self.gist.get_or_init(made).as_ref()
    }
}

impl Shown {
    pub(super) fn new(
        pool: Option<PoolName>,
        (desk, losses, memory): (Desk, Arc<dyn Losses>, Arc<Memory>),
        history: History,
    ) -> Shown {
        Shown { pool, desk, losses, memory, history, last: Mutex::new(None) }
    }

    /// `None`: the control plane does not answer.
    pub(super) async fn view(&self) -> Option<Arc<View>> {
        let fresh = |(made, view): &(Instant, Arc<View>)| (made.elapsed() < AGE_MAX).then(|| view.clone());
        if let Some(view) = self.last.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(fresh) {
            return Some(view);
        }
        let view = Arc::new(View::new(self.desk.report().await?));
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), view.clone()));
        Some(view)
    }

    /// `/status.json` of it.
    pub(super) fn status(&self, view: &View) -> Bytes {
        let made = || Bytes::from(format!("{}\n", status(self.pool.as_deref(), &view.report, &self.history)));
        view.status.get_or_init(made).clone()
    }
}

/// A view of each pool; `None` for one that does not answer.
type Views = Vec<Option<Arc<View>>>;

/// `/metrics`, made once of the same views.
#[derive(Default, Debug)]
pub(super) struct Metrics {
    last: Mutex<(Views, Made)>,
}

type Made = Arc<OnceLock<Bytes>>;

impl Metrics {
    pub(super) fn of<'a>(
        &self,
        pools: &'a [Shown],
        views: &'a [Option<Arc<View>>],
        around: impl FnOnce() -> Around,
    ) -> Bytes {
        let shown = |(shown, view): (&'a Shown, &'a Option<Arc<View>>)| metrics::Shown {
            pool: shown.pool.as_deref(),
            report: view.as_ref().map(|view| &*view.report),
            client_memory: shown.memory.account(),
        };
        let made = || {
            let all: Vec<_> = pools.iter().zip(views).map(shown).collect();
            Bytes::from(metrics::metrics(&all, &around()))
        };
        self.slot(views).get_or_init(made).clone()
    }

    fn slot(&self, views: &[Option<Arc<View>>]) -> Made {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |(one, other): (&Option<Arc<View>>, &Option<Arc<View>>)| match (one, other) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            // It may answer by now.
            _ => false,
        };
        if last.0.len() != views.len() || !last.0.iter().zip(views).all(same) {
            *last = (views.to_vec(), Arc::default());
        }
        last.1.clone()
    }
}

/// `/status.json` of several pools: the state of the whole, then each pool. `whole`: the index of
/// the one that is told of in full; the others get their word and reason only.
pub(super) fn status_of_all(pools: &[Shown], views: &[Option<Arc<View>>], whole: Option<usize>) -> Bytes {
    let gists: Vec<Option<&Gist>> = views.iter().map(|view| view.as_ref().and_then(|view| view.gist())).collect();
    let word = small(worst(gists.iter().map(|gist| gist.map(|gist| gist.word))));
    let mirrored = gists.iter().all(|gist| gist.is_some_and(|gist| gist.mirrored));
    let of = |(at, (shown, view)): (usize, (&Shown, &Option<Arc<View>>))| match (view, gists[at]) {
        (Some(_), Some(gist)) if whole.is_some_and(|whole| whole != at) => json!({
            "version": JSON_VERSION,
            "pool": shown.pool.as_deref(),
            "word": small(Some(gist.word)),
            "why": gist.why,
            "mirrored": gist.mirrored,
        })
        .to_string(),
        (Some(view), _) => String::from_utf8_lossy(shown.status(view).trim_ascii_end()).into_owned(),
        (None, _) => silent_json(shown.pool.as_deref(), "its control plane does not answer: it is starting, or ending")
            .to_string(),
    };
    let each: Vec<String> = pools.iter().zip(views).enumerate().map(of).collect();
    // Each was made already, and may be long.
    let version = JSON_VERSION;
    Bytes::from(format!(
        "{{\"version\":{version},\"word\":\"{word}\",\"mirrored\":{mirrored},\"pools\":[{}]}}\n",
        each.join(",")
    ))
}

/// What `resilver status --json` says, and what it cannot know: what servers do just now, the last
/// changes, and the last minutes.
fn status(pool: Option<&str>, report: &Report, history: &History) -> Value {
    let mut status = report.seen().map_or(Value::Null, |seen| seen.json());
    if let Some(pool) = pool {
        status["pool"] = json!(pool);
    }
    let changes = report.changes.iter().map(|change| {
        json!({
            "unix_time": change.unix_time,
            "name": change.name,
            "what": change.what,
            "reason": change.reason.to_string(),
        })
    });
    status["changes"] = changes.collect();
    if let Some(servers) = status["servers"].as_array_mut() {
        history.put_servers(servers);
    }
    status["history"] = history.json();
    status
}
