//! What happened, in lines that one can read: virtual time, then the event. Kept only for a seed
//! that is looked at. And for every seed what the judge has to know of the proxy ([`Seen`]).

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write};
use std::sync::Once;

use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::subscriber::Interest;

use super::judge::Call;

/// What the proxy was seen to do, by the history's moments.
#[derive(Clone, Default, Debug)]
pub(super) struct Seen {
    /// It lost a node.
    pub(super) losses: Vec<u64>,
    /// A pair changed.
    pub(super) edges: Vec<(u64, Instant)>,
    /// What a look of its own did to the right to recompute an item.
    pub(super) looks: Vec<(u64, String, Call)>,
}

thread_local! {
    static TRACE: RefCell<Option<(Instant, Vec<String>)>> = const { RefCell::new(None) };
    static SEEN: RefCell<Option<Seen>> = const { RefCell::new(None) };
    static MOMENT: Cell<u64> = const { Cell::new(0) };
}

/// From now on the thread's events are kept, the proxy's log among them; or only what the judge
/// has to know.
pub(super) fn begin(traced: bool) {
    static FIRST: Once = Once::new();
    // For the whole process: of a subscriber for one thread alone, other threads' first events
    // would leave it out.
    FIRST.call_once(|| {
        let _ = tracing::subscriber::set_global_default(Log);
    });
    SEEN.set(Some(Seen::default()));
    TRACE.set(traced.then(|| (Instant::now(), Vec::new())));
}

/// The moment of the history that has come.
pub(super) fn at(moment: u64) {
    MOMENT.set(moment);
}

/// How many nodes the proxy has lost so far.
pub(super) fn losses() -> usize {
    SEEN.with_borrow(|seen| seen.as_ref().map_or(0, |seen| seen.losses.len()))
}

/// A look of the proxy's own did this to the right to recompute an item.
pub(super) fn looked(key: &[u8], call: Call) {
    note(|| format!("proxy  {call:?} of {}", show(key)));
    let key = String::from_utf8_lossy(key).into_owned();
    SEEN.with_borrow_mut(|seen| seen.iter_mut().for_each(|s| s.looks.push((MOMENT.get(), key.clone(), call.clone()))));
}

/// What was seen; no more is kept.
pub(super) fn take_seen() -> Seen {
    SEEN.take().unwrap_or_default()
}

/// What was kept.
pub(super) fn take() -> Vec<String> {
    TRACE.take().map_or_else(Vec::new, |(_, lines)| lines)
}

/// Keeps an event; its text is made only if a trace is wanted.
pub(super) fn note(words: impl FnOnce() -> String) {
    TRACE.with_borrow_mut(|trace| {
        if let Some((begun, lines)) = trace {
            lines.push(format!("{:>9.3}s {}", begun.elapsed().as_secs_f64(), words()));
        }
    });
}

/// Bytes as one line of words.
pub(super) fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().replace("\r\n", " | ")
}

/// The proxy's own log.
struct Log;

impl tracing::Subscriber for Log {
    fn register_callsite(&self, _: &'static tracing::Metadata<'static>) -> Interest {
        // It depends on the thread.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        let wanted =
            TRACE.with_borrow(Option::is_some) || tells_something(metadata) && SEEN.with_borrow(Option::is_some);
        wanted && metadata.target().starts_with("resilver")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let words = |before: String| {
            let mut words = Words(before);
            event.record(&mut words);
            words.0
        };
        SEEN.with_borrow_mut(|seen| {
            let Some(seen) = seen else { return };
            match event.metadata().target() {
                NODES if tells_something(event.metadata()) && words(String::new()).starts_with(" node lost") => {
                    seen.losses.push(MOMENT.get());
                }
                EDGES => seen.edges.push((MOMENT.get(), Instant::now())),
                _ => {}
            }
        });
        note(|| words(format!("proxy  {}:", event.metadata().level())));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Who says that a node is lost, and that a pair has changed.
const NODES: &str = "resilver::cluster::nodes";
const EDGES: &str = "resilver::cluster::edges";

/// Whether it may be a line that says so.
fn tells_something(metadata: &tracing::Metadata<'_>) -> bool {
    match metadata.target() {
        NODES => *metadata.level() == tracing::Level::WARN,
        EDGES => *metadata.level() <= tracing::Level::INFO,
        _ => false,
    }
}

struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
