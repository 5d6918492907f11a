//! One line for Nagios and whatever else runs plugins: the state, the sentence, and behind a bar
//! the figures.

use std::fmt::Write as _;
use std::process::ExitCode;

use super::{EXIT_UNKNOWN, pools};
use crate::console::command::{failed, print};
use crate::console::proxy::Looked;
use crate::report::seen::Seen;
use crate::report::verdict::Word;

/// The figures that are summed over pools, beside the clients'.
const SUMMED: [&str; 6] =
    ["pairs_mirrored", "pairs_degraded", "pairs_recovering", "pairs_dark", "copies_missing", "nodes_lost"];

/// Monitors read stdout, also where nobody could be asked.
pub(super) fn main(asked: Result<Vec<Looked>, String>) -> ExitCode {
    let (line, code) = match asked {
        Ok(all) => (line(&all), pools::word(&all).map_or(EXIT_UNKNOWN, Word::exit_code)),
        Err(why) => (format!("RESILVER UNKNOWN: {}", bare(&why)), EXIT_UNKNOWN),
    };
    match print(&format!("{line}\n")) {
        Ok(_) => ExitCode::from(code),
        Err(why) => failed("status", why, EXIT_UNKNOWN),
    }
}

/// The line. Of several pools it names those that are not mirrored.
fn line(all: &[Looked]) -> String {
    let word = pools::word(all);
    let state = match word {
        Some(Word::Mirrored) => "OK",
        Some(Word::Degraded | Word::Recovering | Word::Incomplete) => "WARNING",
        Some(Word::Dark) => "CRITICAL",
        None => "UNKNOWN",
    };
    let mut line = match (all, word) {
        ([Looked { at, said: Ok((seen, _)) }], _) => format!("RESILVER {state}: {}", sentence(seen, &at.again())),
        (_, Some(Word::Mirrored)) => {
            format!("RESILVER {state}: {}, every item of {} pools has two copies", Word::Mirrored.text(), all.len())
        }
        _ => format!("RESILVER {state}: {}", all.iter().filter_map(of_pool).collect::<Vec<_>>().join("; ")),
    };
    let seen: Vec<&Seen> = all.iter().filter_map(|looked| Some(&looked.said.as_ref().ok()?.0)).collect();
    let sum = |name: &str| seen.iter().map(|seen| seen.counters.number(name)).sum::<u64>();
    let (clients, most) = (sum("curr_connections"), sum("max_connections"));
    let _ = write!(line, " | clients={clients};;;0;{most} server_errors={}c", sum("server_errors"));
    for name in SUMMED {
        let _ = write!(line, " {name}={}", sum(name));
    }
    line
}

/// `again`: see [`Seen::next`].
fn sentence(seen: &Seen, again: &str) -> String {
    let said = format!("{}, {}", seen.word().text(), bare(&seen.why()));
    match seen.word() {
        Word::Mirrored => said,
        _ => format!("{said}; next: {}", bare(&seen.next(again))),
    }
}

/// What is to be told of one of several.
fn of_pool(looked: &Looked) -> Option<String> {
    let pool = looked.at.pool.as_deref().unwrap_or_default();
    match &looked.said {
        Ok((seen, _)) if seen.word() == Word::Mirrored => None,
        Ok((seen, _)) => Some(format!("pool {pool} {}", sentence(seen, &looked.at.again()))),
        Err(why) => Some(format!("pool {pool} UNKNOWN, {}", bare(why))),
    }
}

/// A bar would begin the figures.
fn bare(sentence: &str) -> String {
    sentence.replace('|', "+")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::proxy::ProxyArg;
    use crate::report::seen::stats;
    use crate::report::traffic::Traffic;

    fn looked(pool: Option<&str>, mirrored: u8, state: &str) -> Looked {
        let status = format!("mode auto\nmirrored {mirrored}\npair:a:1|b:1:state {state}\npair:a:1|b:1:leader b:1");
        let counters = "curr_connections 3\nmax_connections 9\nserver_errors 7\npairs_dark 1";
        let seen = Seen::of([stats(&status), stats(counters), stats("a:1:place primary")]).expect("an answer");
        let at = ProxyArg { proxy: "127.0.0.1:11211".parse().expect("an address"), pool: pool.map(str::to_owned) };
        Looked { at, said: Ok((seen, Traffic::of(&stats("uptime_ms 1")).expect("an answer"))) }
    }

    #[test]
    fn of_several_pools_those_that_are_not_well_are_named_and_figures_are_summed() {
        let (a, b) =
            (|state| looked(Some("a"), u8::from(state == "mirrored"), state), looked(Some("b"), 1, "mirrored"));
        let well = line(&[a("mirrored"), b]);
        assert!(
            well.starts_with("RESILVER OK: MIRRORED, every item of 2 pools has two copies | clients=6;;;0;18 "),
            "{well}"
        );
        let mut silent = looked(Some("c"), 0, "dark");
        silent.said = Err("no | answer".to_owned());
        let bad = line(&[a("degraded"), looked(Some("b"), 1, "mirrored"), silent]);
        assert!(bad.starts_with("RESILVER UNKNOWN: pool a DEGRADED, 1 of 1 pair has one copy; next: "), "{bad}");
        assert!(bad.contains("; pool c UNKNOWN, no + answer | clients=6;;;0;18 ") && !bad.contains("pool b"), "{bad}");
    }

    #[test]
    fn a_monitor_reads_the_state_the_sentence_and_the_figures() {
        let of = |mirrored: u8, state: &str| line(&[looked(None, mirrored, state)]);
        let well = of(1, "mirrored");
        assert!(
            well.starts_with("RESILVER OK: MIRRORED, every item has two copies | clients=3;;;0;9 server_errors=7c")
        );
        assert!(of(0, "degraded").starts_with("RESILVER WARNING: DEGRADED, 1 of 1 pair has one copy; next: "));
        let dark = of(0, "dark");
        assert!(
            dark.starts_with("RESILVER CRITICAL: DARK, ")
                && dark.ends_with(" pairs_dark=1 copies_missing=0 nodes_lost=0")
        );
        assert_eq!(dark.matches('|').count(), 1, "{dark}");
    }
}
