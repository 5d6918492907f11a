//! One line for Nagios and whatever else runs plugins: the state, the sentence, and behind a bar
//! the figures.

use std::fmt::Write as _;
use std::process::ExitCode;

use super::EXIT_UNKNOWN;
use crate::console::command::{failed, print};
use crate::report::seen::Seen;
use crate::report::verdict::Word;

/// Monitors read stdout, also where nobody could be asked.
pub(super) fn main(asked: Result<Seen, String>, again: &str) -> ExitCode {
    let (line, code) = match asked {
        Ok(seen) => (line(&seen, again), seen.word().exit_code()),
        Err(why) => (format!("RESILVER UNKNOWN: {}", bare(&why)), EXIT_UNKNOWN),
    };
    match print(&format!("{line}\n")) {
        Ok(_) => ExitCode::from(code),
        Err(why) => failed("status", why, EXIT_UNKNOWN),
    }
}

/// `again`: see [`Seen::next`].
fn line(seen: &Seen, again: &str) -> String {
    let state = match seen.word() {
        Word::Mirrored => "OK",
        Word::Degraded | Word::Recovering | Word::Incomplete => "WARNING",
        Word::Dark => "CRITICAL",
    };
    let counters = &seen.counters;
    let mut line = format!("RESILVER {state}: {}, {}", seen.word().text(), bare(&seen.why()));
    if seen.word() != Word::Mirrored {
        let _ = write!(line, "; next: {}", bare(&seen.next(again)));
    }
    let (clients, most) = (counters.number("curr_connections"), counters.number("max_connections"));
    let _ = write!(line, " | clients={clients};;;0;{most} server_errors={}c", counters.number("server_errors"));
    for name in ["pairs_mirrored", "pairs_degraded", "pairs_recovering", "pairs_dark", "copies_missing", "nodes_lost"] {
        let _ = write!(line, " {name}={}", counters.number(name));
    }
    line
}

/// A bar would begin the figures.
fn bare(sentence: &str) -> String {
    sentence.replace('|', "+")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::seen::stats;

    #[test]
    fn a_monitor_reads_the_state_the_sentence_and_the_figures() {
        let of = |mirrored: u8, state: &str| {
            let status = format!("mode auto\nmirrored {mirrored}\npair:a:1|b:1:state {state}\npair:a:1|b:1:leader b:1");
            let counters = "curr_connections 3\nmax_connections 9\nserver_errors 7\npairs_dark 1";
            line(&Seen::of([stats(&status), stats(counters), stats("a:1:place primary")]).expect("an answer"), "")
        };
        let well = of(1, "mirrored");
        assert!(
            well.starts_with("RESILVER OK: MIRRORED, every item has two copies | clients=3;;;0;9 server_errors=7c")
        );
        assert!(of(0, "degraded").starts_with("RESILVER WARNING: DEGRADED, 1 of 1 pairs have one copy; next: "));
        let dark = of(0, "dark");
        assert!(
            dark.starts_with("RESILVER CRITICAL: DARK, ")
                && dark.ends_with(" pairs_dark=1 copies_missing=0 nodes_lost=0")
        );
        assert_eq!(dark.matches('|').count(), 1, "{dark}");
    }
}
