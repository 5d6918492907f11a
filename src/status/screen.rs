//! The screen. Pure.

use std::fmt::{self, Display, Formatter};

use crate::report::lines::{PLACE, STATE};
use crate::report::seen::{Named, Seen};
use crate::report::verdict::Word;

/// Pairs that are told one by one, where not all are asked for.
const PAIRS_TOLD: usize = 16;
const BAR: usize = 20;

/// How it is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) colour: bool,
    /// Also the pairs that are as they should be.
    pub(super) all: bool,
}

pub(super) struct Screen<'a> {
    pub(super) seen: &'a Seen,
    /// What was seen some time ago: what has been counted since makes the rates.
    pub(super) before: Option<&'a Seen>,
    pub(super) proxy: &'a str,
    pub(super) look: Look,
}

impl Display for Screen<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        self.verdict(f)?;
        self.resyncs(f)?;
        self.servers(f)?;
        self.pairs(f)
    }
}

impl Screen<'_> {
    fn head(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let counters = &self.seen.counters;
        let version = counters.text("version");
        let (clients, most) = (counters.number("curr_connections"), counters.number("max_connections"));
        write!(f, "resilver {}  {version}  clients {clients}/{most}", self.proxy)?;
        let since = |name: &str| {
            let before = self.before.map_or(0, |seen| seen.counters.number(name));
            counters.number(name).saturating_sub(before)
        };
        let span = self.before.map(|seen| counters.number("time").saturating_sub(seen.counters.number("time")));
        if let Some(seconds @ 1..) = span {
            let requests: u64 =
                ["cmd_get", "cmd_set", "cmd_touch", "cmd_delete", "cmd_arithmetic"].into_iter().map(since).sum();
            write!(f, "  {}/s", short(requests / seconds))?;
        }
        let (hits, misses) = (since("get_hits"), since("get_misses"));
        if hits + misses > 0 {
            write!(f, "  hits {:.1} %", hits as f64 * 100.0 / (hits + misses) as f64)?;
        }
        writeln!(f, "  errors {}  up {}", counters.number("server_errors"), time(counters.number("uptime")))
    }

    fn verdict(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let seen = self.seen;
        let word = seen.word();
        writeln!(f, "{}  {}", self.painted(word, word.text()), seen.why())?;
        for line in seen.obstacles.iter() {
            writeln!(f, "{} {line}", self.painted(word, if word == Word::Dark { "X" } else { "!" }))?;
        }
        writeln!(f, "next: {}", seen.next())
    }

    fn resyncs(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for server in &self.seen.servers {
            let fields = &server.fields;
            if !["running", "trickle"].contains(&fields.text("resync")) {
                continue;
            }
            let (total, done) = (fields.number("items_total"), fields.number("items_copied"));
            let done = done + fields.number("items_skipped");
            write!(f, "resync {} ({})", server.name, fields.text("kind"))?;
            // Before the listing nobody knows how many there are.
            if total > 0 {
                let part = done.min(total) as f64 / total as f64;
                let full = (part * BAR as f64) as usize;
                let left = match fields.number("eta_seconds") {
                    0 => "time left unknown".to_owned(),
                    seconds => format!("{} left", time(seconds)),
                };
                write!(
                    f,
                    "  [{}{}] {:.0} %  {}/{}  {}/s  {left}",
                    "#".repeat(full),
                    "-".repeat(BAR - full),
                    part * 100.0,
                    short(done),
                    short(total),
                    short(fields.number("rate"))
                )?;
            } else {
                write!(f, "  purging, then listing")?;
            }
            match fields.number("items_failed") {
                0 => writeln!(f)?,
                failed => writeln!(f, "  failed {failed}")?,
            }
        }
        Ok(())
    }

    fn servers(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut table =
            vec![["SERVER", "PLACE", "STATE", "REASON", "VERSION", "IN FLIGHT", "LOST", "FOR"].map(str::to_owned)];
        for Named { name, fields } in &self.seen.servers {
            let reason = fields.text("reason");
            table.push([
                name.clone(),
                fields.text(PLACE).to_owned(),
                fields.text(STATE).to_owned(),
                if reason == "none" { "-".to_owned() } else { reason.to_owned() },
                fields.text("version").to_owned(),
                fields.number("in_flight").to_string(),
                fields.number("lost").to_string(),
                time(fields.time().as_secs()),
            ]);
        }
        put_table(f, &table)
    }

    fn pairs(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let good = |pair: &&Named| pair.fields.text(STATE) == "mirrored";
        let wanted: Vec<&Named> = self.seen.pairs.iter().filter(|pair| self.look.all || !good(pair)).collect();
        let told = if self.look.all { wanted.len() } else { wanted.len().min(PAIRS_TOLD) };
        let mut table = vec![["PAIR", "STATE", "LEADER", "REASON", "FOR"].map(str::to_owned)];
        for Named { name, fields } in wanted.iter().take(told) {
            let reason = fields.text("reason");
            table.push([
                name.clone(),
                fields.text(STATE).to_owned(),
                fields.text("leader").to_owned(),
                if reason == "none" { "-".to_owned() } else { reason.to_owned() },
                time(fields.time().as_secs()),
            ]);
        }
        if told > 0 {
            put_table(f, &table)?;
        }
        let mirrored = self.seen.pairs.iter().filter(good).count();
        write!(f, "pairs: {mirrored} of {} mirrored", self.seen.pairs.len())?;
        if wanted.len() > told {
            write!(f, ", {} more are not (--all)", wanted.len() - told)?;
        }
        if self.seen.unused > 0 {
            write!(f, "; {} can hold no key and are left out", self.seen.unused)?;
        }
        writeln!(f)
    }

    fn painted(&self, word: Word, text: &str) -> String {
        let colour = match word {
            _ if !self.look.colour => return text.to_owned(),
            Word::Mirrored => 32,
            Word::Dark => 31,
            _ => 33,
        };
        format!("\x1b[1;{colour}m{text}\x1b[0m")
    }
}

fn put_table<const N: usize>(f: &mut Formatter<'_>, rows: &[[String; N]]) -> fmt::Result {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(f, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// Three digits and a letter.
fn short(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..1_000_000 => format!("{}k", number / 1000),
        _ => format!("{:.1}M", number as f64 / 1e6),
    }
}

/// The two largest units.
fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(lines: &str) -> Vec<(String, String)> {
        let of = |line: &str| line.split_once(' ').map(|(name, value)| (name.to_owned(), value.to_owned()));
        lines.lines().filter_map(|line| of(line.trim())).collect()
    }

    /// Two primaries over one backup; `cache1` and the pair of it are in this state.
    fn seen(mirrored: u8, obstacles: &str, pair: &str, server: &str) -> Seen {
        let status = format!(
            "mode auto
            mirrored {mirrored}
            copies_missing 0
            pairs_unused 3
            {obstacles}
            {pair}
            pair:cache2:1|cache3:1:state mirrored
            pair:cache2:1|cache3:1:leader cache2:1
            pair:cache2:1|cache3:1:reason none
            pair:cache2:1|cache3:1:for_seconds 90000
            {server}
            node:cache2:1:state up
            node:cache2:1:reason none
            node:cache3:1:state up
            node:cache3:1:reason none
            yield:state idle"
        );
        let counters = "version 1.6.18\ncurr_connections 312\nmax_connections 4096\nget_hits 941\nget_misses 59
            cmd_get 1000\nserver_errors 0\nuptime 3700\ntime 1000";
        let servers = "cache1:1:place primary\ncache1:1:lost 1\ncache1:1:state nothing\ncache1:1:for_seconds 8
            cache2:1:place primary\ncache3:1:place backup\ncache3:1:for_seconds 90000";
        Seen::of([stats(&status), stats(counters), stats(servers)]).expect("a proxy's answers")
    }

    fn pair(state: &str, reason: &str) -> String {
        format!(
            "pair:cache1:1|cache3:1:state {state}\npair:cache1:1|cache3:1:leader cache3:1
            pair:cache1:1|cache3:1:reason {reason}\npair:cache1:1|cache3:1:for_seconds 8"
        )
    }

    fn server(state: &str, reason: &str) -> String {
        format!("node:cache1:1:state {state}\nnode:cache1:1:reason {reason}\nnode:cache1:1:resync none")
    }

    fn shown(seen: &Seen, all: bool) -> String {
        Screen { seen, before: None, proxy: "127.0.0.1:11211", look: Look { colour: false, all } }.to_string()
    }

    #[test]
    fn what_is_as_it_should_be_takes_few_lines() {
        let seen = seen(1, "", &pair("mirrored", "none"), &server("up", "none"));
        assert_eq!(seen.word(), Word::Mirrored);
        assert_eq!(
            shown(&seen, false),
            "\
resilver 127.0.0.1:11211  1.6.18  clients 312/4096  hits 94.1 %  errors 0  up 1h 1m
MIRRORED  every item has two copies
next: nothing; before and after a server is restarted: resilver wait --mirrored
SERVER    PLACE    STATE  REASON  VERSION  IN FLIGHT  LOST  FOR
cache1:1  primary  up     -                0          1     8s
cache2:1  primary  up     -                0          0     0s
cache3:1  backup   up     -                0          0     1d 1h
pairs: 2 of 2 mirrored; 3 can hold no key and are left out
"
        );
        assert!(shown(&seen, true).contains("\ncache2:1|cache3:1  mirrored  cache2:1  -       1d 1h\n"));
    }

    #[test]
    fn a_lost_server_is_named_with_what_to_do() {
        let why = "obstacle:1 server cache1:1 is lost, reason refused";
        let seen = seen(0, why, &pair("degraded", "refused"), &server("lost", "refused"));
        assert_eq!(seen.word(), Word::Degraded);
        let shown = shown(&seen, false);
        assert!(shown.contains("DEGRADED  1 of 2 pairs have one copy\n! server cache1:1 is lost, reason refused\n"));
        assert!(shown.contains("next: start memcached on cache1:1; it is refilled by itself\n"), "{shown}");
        assert!(
            shown.contains("\ncache1:1|cache3:1  degraded  cache3:1  refused  8s\npairs: 1 of 2 mirrored"),
            "{shown}"
        );
    }

    #[test]
    fn a_resync_has_a_bar_and_a_time_left_that_is_unknown_where_it_is() {
        let server = |eta: u64, total: u64| {
            format!(
                "{}\nnode:cache1:1:resync running\nnode:cache1:1:kind full\nnode:cache1:1:items_total {total}
                node:cache1:1:items_copied 852000\nnode:cache1:1:rate 38000\nnode:cache1:1:eta_seconds {eta}",
                self::server("copying", "empty")
            )
        };
        let at = |server: String| shown(&seen(0, "", &pair("recovering", "reset"), &server), false);
        assert!(
            at(server(9, 1_200_000))
                .contains("resync cache1:1 (full)  [##############------] 71 %  852k/1.2M  38k/s  9s left\n")
        );
        assert!(at(server(0, 1_200_000)).contains("38k/s  time left unknown\n"));
        assert!(at(server(0, 0)).contains("resync cache1:1 (full)  purging, then listing\n"));
    }

    /// The proxy's word for the whole outranks what its pairs say.
    #[test]
    fn the_word_is_the_worst_and_never_better_than_the_proxys_own() {
        let word = |mirrored, state: &str| seen(mirrored, "", &pair(state, "none"), &server("up", "none")).word();
        assert_eq!(word(0, "mirrored"), Word::Incomplete);
        for (state, expected) in [
            ("mirrored", Word::Mirrored),
            ("incomplete", Word::Incomplete),
            ("recovering", Word::Recovering),
            ("degraded", Word::Degraded),
            ("dark", Word::Dark),
            ("unheard_of", Word::Dark),
        ] {
            assert_eq!(word(1, state), expected, "{state}");
        }
        assert_eq!([Word::Mirrored, Word::Degraded, Word::Dark].map(Word::exit_code), [0, 1, 2]);
    }

    #[test]
    fn colours_are_beside_a_word_and_only_where_they_are_wanted() {
        let seen = seen(0, "obstacle:1 why", &pair("dark", "reset"), &server("lost", "reset"));
        let look = Look { colour: true, all: false };
        let painted = Screen { seen: &seen, before: None, proxy: "p", look }.to_string();
        assert!(painted.contains("\x1b[1;31mDARK\x1b[0m") && painted.contains("\x1b[1;31mX\x1b[0m why"), "{painted}");
        assert!(!shown(&seen, true).contains('\x1b'));
    }

    #[test]
    fn rates_are_what_was_counted_between_two_looks() {
        let before = seen(1, "", &pair("mirrored", "none"), &server("up", "none"));
        let mut now = seen(1, "", &pair("mirrored", "none"), &server("up", "none"));
        now.counters = crate::report::seen::Fields::of(stats("time 1002\ncmd_get 5000\ncmd_set 2000\nget_hits 942"));
        let look = Look { colour: false, all: false };
        let text = Screen { seen: &now, before: Some(&before), proxy: "p", look }.to_string();
        assert!(text.contains("  3000/s  hits 100.0 %"), "{text}");
    }

    #[test]
    fn the_json_says_the_same_with_numbers_as_numbers() {
        let why = "obstacle:1 server cache1:1 is lost, reason refused";
        let json = seen(0, why, &pair("degraded", "refused"), &server("lost", "refused")).json();
        assert_eq!((json["version"].as_u64(), json["word"].as_str()), (Some(1), Some("degraded")));
        assert_eq!(json["obstacles"][0], "server cache1:1 is lost, reason refused");
        assert_eq!(json["servers"][0]["server"], "cache1:1");
        assert_eq!(json["servers"][0]["lost"], 1);
        assert_eq!(json["servers"][0]["state"], "lost");
        assert_eq!(json["pairs"][0]["leader"], "cache3:1");
        assert_eq!(json["counters"]["get_hits"], 941);
    }

    #[test]
    fn what_is_no_proxy_of_ours_shows_nothing() {
        assert!(Seen::of([stats("pid 1"), stats("pid 1"), stats("")]).is_none());
    }

    #[test]
    fn numbers_and_times_are_short() {
        assert_eq!([9_999, 10_000, 1_250_000].map(short), ["9999", "10k", "1.2M"]);
        assert_eq!([59, 61, 3_660, 90_000].map(time), ["59s", "1m 1s", "1h 1m", "1d 1h"]);
    }
}
