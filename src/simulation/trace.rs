//! What happened, in lines that one can read: virtual time, then the event. Kept only for a seed that is looked at.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::sync::Once;

use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::subscriber::Interest;

thread_local! {
    static TRACE: RefCell<Option<(Instant, Vec<String>)>> = const { RefCell::new(None) };
}

/// From now on the thread's events are kept, the proxy's log among them.
pub(super) fn begin() {
    static FIRST: Once = Once::new();
    // For the whole process: of a subscriber for one thread alone, other threads' first events would leave it out.
    FIRST.call_once(|| {
        let _ = tracing::subscriber::set_global_default(Log);
    });
    TRACE.set(Some((Instant::now(), Vec::new())));
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
        TRACE.with_borrow(Option::is_some) && metadata.target().starts_with("resilver")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        note(|| {
            let mut words = Words(format!("proxy  {}:", event.metadata().level()));
            event.record(&mut words);
            words.0
        });
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
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
