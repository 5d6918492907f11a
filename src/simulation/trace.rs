//! What happened, in lines that one can read: virtual time, then the event. Kept only for a seed
//! that is looked at. And for every seed: when the proxy lost a node.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write};
use std::sync::Once;

use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::subscriber::Interest;

thread_local! {
    static TRACE: RefCell<Option<(Instant, Vec<String>)>> = const { RefCell::new(None) };
    static LOSSES: RefCell<Option<Vec<u64>>> = const { RefCell::new(None) };
    static MOMENT: Cell<u64> = const { Cell::new(0) };
}

/// From now on the thread's events are kept, the proxy's log among them; or only the losses of
/// nodes.
pub(super) fn begin(traced: bool) {
    static FIRST: Once = Once::new();
    // For the whole process: of a subscriber for one thread alone, other threads' first events
    // would leave it out.
    FIRST.call_once(|| {
        let _ = tracing::subscriber::set_global_default(Log);
    });
    LOSSES.set(Some(Vec::new()));
    TRACE.set(traced.then(|| (Instant::now(), Vec::new())));
}

/// The moment of the history that has come.
pub(super) fn at(moment: u64) {
    MOMENT.set(moment);
}

/// How many nodes the proxy has lost so far.
pub(super) fn losses() -> usize {
    LOSSES.with_borrow(|losses| losses.as_ref().map_or(0, Vec::len))
}

/// The moments at which the proxy lost a node; no more are kept.
pub(super) fn take_losses() -> Vec<u64> {
    LOSSES.take().unwrap_or_default()
}

/// What was kept.
pub(super) fn take() -> Vec<String> {
    TRACE.take().map_or_else(Vec::new, |(_, lines)| lines)
}

/// Keeps an event; the words are made only if somebody wants them.
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
            TRACE.with_borrow(Option::is_some) || tells_losses(metadata) && LOSSES.with_borrow(Option::is_some);
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
        if tells_losses(event.metadata()) && words(String::new()).starts_with(" node lost") {
            LOSSES.with_borrow_mut(|losses| losses.iter_mut().for_each(|losses| losses.push(MOMENT.get())));
        }
        note(|| words(format!("proxy  {}:", event.metadata().level())));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Whether it may be the line that says so.
fn tells_losses(metadata: &tracing::Metadata<'_>) -> bool {
    *metadata.level() == tracing::Level::WARN && metadata.target() == "resilver::cluster::nodes"
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
