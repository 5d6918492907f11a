//! What is shown, made anew at most ten times a second, whoever asks how often: the control plane
//! has better to do than to describe itself.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cluster::Desk;
use crate::report::Report;
use crate::report::metrics::Around;

use super::history::History;

/// So old may be what is shown.
const AGE_MAX: Duration = Duration::from_millis(100);

/// See the module's words.
#[derive(Debug)]
pub(super) struct Shown {
    history: History,
    last: Mutex<Option<(Instant, Arc<View>)>>,
}

/// One report, and what was made of it.
#[derive(Debug)]
pub(super) struct View {
    pub(super) report: Box<Report>,
    status: OnceLock<Bytes>,
    metrics: OnceLock<Bytes>,
}

impl Shown {
    pub(super) fn new(history: History) -> Shown {
        Shown { history, last: Mutex::new(None) }
    }

    /// `None`: the control plane does not answer.
    pub(super) async fn view(&self, desk: &Desk) -> Option<Arc<View>> {
        let fresh = |(made, view): &(Instant, Arc<View>)| (made.elapsed() < AGE_MAX).then(|| view.clone());
        if let Some(view) = self.last.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(fresh) {
            return Some(view);
        }
        let view = Arc::new(View { report: desk.report().await?, status: OnceLock::new(), metrics: OnceLock::new() });
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), view.clone()));
        Some(view)
    }

    /// `/status.json`.
    pub(super) fn status(&self, view: &View) -> Bytes {
        view.status.get_or_init(|| Bytes::from(format!("{}\n", status(&view.report, &self.history)))).clone()
    }
}

impl View {
    /// `/metrics`.
    pub(super) fn metrics(&self, around: impl FnOnce() -> Around) -> Bytes {
        self.metrics.get_or_init(|| Bytes::from(self.report.metrics(&around()))).clone()
    }
}

/// What `resilver status --json` says, and what it cannot know: what servers do just now, the last
/// changes, and the last minutes.
fn status(report: &Report, history: &History) -> Value {
    let mut status = report.seen().map_or(Value::Null, |seen| seen.json());
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
