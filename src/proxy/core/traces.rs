//! `-vv`: a line for each request, as memcached's own `-vv` has one: which command, of which
//! client. Keys and values are never in it. A busy proxy answers more than any log takes, so there
//! are this many lines a second and one for those that are left out.

use crate::protocol::request::{Request, Style};

use crate::proxy::handles::Occupant;

use super::Core;

/// Lines a second, of each worker.
const LINES: u32 = 1000;

/// The lines of this second.
#[derive(Default, Debug)]
pub(super) struct Traces {
    since_us: u64,
    lines: u32,
    left_out: u64,
}

impl Traces {
    /// Lines of this second, and requests without one.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (u32, u64) {
        (self.lines, self.left_out)
    }
}

impl Core {
    /// A request of this many bytes begins.
    #[cold]
    pub(super) fn trace_request(&mut self, client: Occupant, request: &Request, style: Style, bytes: usize) {
        let (worker, now_us) = (self.settings.worker.0, self.now.us);
        let traces = &mut self.traces;
        if now_us.saturating_sub(traces.since_us) >= 1_000_000 {
            if traces.left_out > 0 {
                tracing::trace!(
                    worker,
                    left_out = traces.left_out,
                    "requests that are not in the log: too many in a second"
                );
            }
            *traces = Traces { since_us: now_us, ..Traces::default() };
        }
        if traces.lines >= LINES {
            traces.left_out += 1;
            return;
        }
        traces.lines += 1;
        tracing::trace!(
            client = client.0,
            worker,
            command = request.name(),
            noreply = style.is_silent(),
            bytes,
            "a request"
        );
    }
}
