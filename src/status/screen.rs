//! The screen of `resilver status`, drawn from what was seen. Pure.

use std::fmt::{self, Display, Formatter};

use crate::console::signs;
use crate::console::table::{Table, Tone, wrapped};
use crate::report::figures::{counted, rate, short, some_of, time, wait};
use crate::report::names::{PLACE, STATE};
use crate::report::seen::{Fields, Named, Seen};
use crate::report::traffic::Traffic;

/// Up to so many pairs have a line each, where not all are asked for.
const PAIRS_TOLD: usize = 16;
/// The same for servers: of more, only those with something to tell have a line.
const SERVERS_TOLD: usize = 8;
/// Up to so many servers that lead alone have a line each.
const ALONE_TOLD: usize = 4;
const BAR: usize = 20;
const COLUMNS: usize = 100;
/// The columns that a narrow window leaves out, the first ones first.
const SPARE_OF_SERVERS: [&str; 9] = ["IN FLIGHT", "P50", "LOST", "CMD/S", "ITEMS", "P99", "FULL", "PLACE", "FOR"];
const SPARE_OF_PAIRS: [&str; 3] = ["MISSED", "FOR", "REASON"];

/// How it is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) colours: bool,
    /// Also the pairs that are as they should be, and every server.
    pub(super) all: bool,
    /// How wide the terminal is, where that is known.
    pub(super) columns: Option<usize>,
}

pub(super) struct Screen<'a> {
    pub(super) seen: &'a Seen,
    /// What was counted since the proxy was started.
    pub(super) traffic: &'a Traffic,
    /// The same since the last look: it makes the rates.
    pub(super) since: Option<&'a Traffic>,
    pub(super) proxy: &'a str,
    /// See [`Seen::next`].
    pub(super) again: &'a str,
    pub(super) look: Look,
}

impl Display for Screen<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        self.verdict(f)?;
        self.resyncs(f)?;
        self.verify(f)?;
        self.servers(f)?;
        self.pairs(f)
    }
}

impl Screen<'_> {
    /// The traffic since the last look, where there was one.
    fn recent(&self) -> &Traffic {
        self.since.unwrap_or(self.traffic)
    }

    fn head(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let counters = &self.seen.counters;
        let (clients, most) = (counters.number("curr_connections"), counters.number("max_connections"));
        let version = counters.text("resilver_version");
        write!(f, "resilver {version} {}  clients {clients}/{most}", self.proxy)?;
        if let Some(since) = self.since {
            write!(f, "  {} req/s", rate(since.rate(since.requests())))?;
        }
        if let Some(hits) = self.recent().hits() {
            write!(f, "  hits {hits:.1} %")?;
        }
        writeln!(f, "  errors {}  up {}", counters.number("server_errors"), time(counters.number("uptime")))
    }

    fn verdict(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let seen = self.seen;
        let word = seen.word();
        let tone = signs::of_whole(word);
        write!(f, "{}  {}", tone.paint(word.text(), self.look.colours), seen.why())?;
        match seen.since() {
            Some(seconds) => writeln!(f, " ({})", time(seconds))?,
            None => writeln!(f)?,
        }
        let sign = Tone::Warning.paint("!", self.look.colours);
        for line in &seen.obstacles {
            match line.contains(" is dark, ") || line.contains(" are dark, ") {
                true => writeln!(f, "{} {line}", Tone::Bad.paint("X", self.look.colours))?,
                false => writeln!(f, "{sign} {line}")?,
            }
        }
        if let Some(lost) = seen.lost_items() {
            writeln!(f, "{sign} {lost}")?;
        }
        let alone = seen.alone();
        let pairs = |count: usize| if count == 1 { "one pair".to_owned() } else { format!("{count} pairs") };
        if alone.len() <= ALONE_TOLD {
            for (server, count) in alone {
                writeln!(f, "{sign} {server} leads {} alone: do not touch it", pairs(count))?;
            }
        } else {
            let names: Vec<&str> = alone.iter().map(|(server, _)| *server).collect();
            let all = pairs(alone.iter().map(|(_, count)| count).sum());
            writeln!(f, "{sign} {} lead {all} alone: do not touch them", some_of(&names, ALONE_TOLD))?;
        }
        let again = self.again;
        match seen.one_may_restart() {
            true => writeln!(f, "safe to restart one server: yes, after: resilver wait --mirrored{again}")?,
            false => writeln!(f, "safe to restart one server: NO")?,
        }
        writeln!(f, "next: {}", seen.next(again))
    }

    fn resyncs(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for server in self.seen.servers.iter().filter(|server| is_filled(server)) {
            let fields = &server.fields;
            let (total, done) = (fields.number("items_total"), fields.number("items_copied"));
            let done = done + fields.number("items_skipped");
            write!(f, "resync {}{} ({})", server.name, self.sources(&server.name), fields.text("kind"))?;
            // Before the end of the listing nobody knows how many there are.
            if fields.number("listing") > 0 && total > 0 {
                let rate = short(fields.number("rate"));
                write!(f, "  listing: {} found, {} done  {rate}/s", short(total), short(done))?;
            } else if total > 0 {
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
                    // What is not done is not called 100.
                    (part * 100.0).floor(),
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
        match (self.seen.yielding(), self.seen.servers.iter().any(is_filled)) {
            (percent @ ..100, true) => writeln!(f, "resyncs work at {percent} % of what they could, for clients' sake"),
            _ => Ok(()),
        }
    }

    fn verify(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.seen.verified().map_or(Ok(()), |said| writeln!(f, "verify {said}"))
    }

    /// Who leads the pairs for which a server is filled.
    fn sources(&self, server: &str) -> String {
        let mut leaders: Vec<&str> = Vec::new();
        for pair in self.seen.pairs.iter().filter(|pair| pair.fields.text(STATE) == "recovering") {
            let leader = pair.fields.text("leader");
            if leader != server && pair.name.split('|').any(|name| name == server) && !leaders.contains(&leader) {
                leaders.push(leader);
            }
        }
        if leaders.is_empty() { String::new() } else { format!(" <- {}", leaders.join(", ")) }
    }

    fn servers(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let servers = &self.seen.servers;
        let told: Vec<&Named> = match self.look.all || servers.len() <= SERVERS_TOLD {
            true => servers.iter().collect(),
            false => {
                self.places(f)?;
                servers.iter().filter(|server| !is_well(server)).take(PAIRS_TOLD).collect()
            }
        };
        if told.is_empty() {
            return Ok(());
        }
        let head =
            ["SERVER", "PLACE", "STATE", "REASON", "ITEMS", "FULL", "CMD/S", "P50", "P99", "IN FLIGHT", "LOST", "FOR"];
        let mut table = Table::new(&head, self.look.colours);
        for server in told {
            let Named { name, fields } = server;
            let reason = fields.text("reason");
            let (state, tone) = signs::of_server(fields);
            let line = self.recent().servers.get(name);
            let sent = self.since.map(|since| since.rate(line.map_or(0, |line| line.total())));
            let cells = [
                name.clone(),
                fields.text(PLACE).to_owned(),
                state,
                if reason == "none" { "-".to_owned() } else { reason.to_owned() },
                held(fields, "items").map_or("-".to_owned(), short),
                full(fields).map_or("-".to_owned(), |percent| format!("{percent} %")),
                sent.map_or("-".to_owned(), rate),
                wait(line.and_then(|line| line.percentile_us(50))),
                wait(line.and_then(|line| line.percentile_us(99))),
                fields.number("in_flight").to_string(),
                fields.number("lost").to_string(),
                time(fields.time().as_secs()),
            ];
            table.row(cells.into(), tone);
        }
        write!(f, "{}", table.within(self.look.columns, &SPARE_OF_SERVERS))
    }

    /// Many servers by their names alone; those that are not up have a sign.
    fn places(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (head, place) in [("PRIMARIES", "primary"), ("BACKUPS  ", "backup")] {
            let of_place: Vec<&Named> =
                self.seen.servers.iter().filter(|server| server.fields.text(PLACE) == place).collect();
            // Where all have the same port it tells nothing.
            let ports: Vec<&str> = of_place.iter().filter_map(|server| Some(server.name.rsplit_once(':')?.1)).collect();
            let one_port = ports.windows(2).all(|two| two[0] == two[1]);
            let shown = |server: &&Named| {
                let name = match server.name.rsplit_once(':') {
                    Some((host, _)) if one_port => host,
                    _ => server.name.as_str(),
                };
                let sign = if server.fields.text(STATE) == "up" { "" } else { "!" };
                format!("{sign}{name}")
            };
            let names: Vec<String> = of_place.iter().map(shown).collect();
            write!(f, "{}", wrapped(head, &names, self.look.columns.unwrap_or(COLUMNS).min(COLUMNS)))?;
        }
        self.fullest(f)?;
        let names = self.seen.servers.iter().map(|server| server.name.as_str());
        let latency = |name| Some((self.recent().servers.get(name)?.percentile_us(99)?, name));
        let mut latencies: Vec<(u64, &str)> = names.filter_map(latency).collect();
        latencies.sort_unstable();
        match (latencies.last(), latencies.get(latencies.len() / 2)) {
            (Some((most, name)), Some((half, _))) if most > half => {
                writeln!(f, "slowest: {name} p99 {} (half of them {} at most)", wait(Some(*most)), wait(Some(*half)))
            }
            _ => Ok(()),
        }
    }

    fn fullest(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let all = || self.seen.servers.iter().filter_map(|server| Some((full(&server.fields)?, server)));
        let Some((percent, server)) = all().max_by_key(|(percent, _)| *percent) else { return Ok(()) };
        let evicting = all().filter(|(_, server)| server.fields.number("evictions") > 0).count();
        write!(f, "fullest: {} {percent} %", server.name)?;
        match evicting {
            0 => writeln!(f),
            1 => writeln!(f, "; 1 has evicted items: those copies are gone"),
            servers => writeln!(f, "; {servers} have evicted items: those copies are gone"),
        }
    }

    fn pairs(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let good = |pair: &&Named| pair.fields.text(STATE) == "mirrored";
        let wanted: Vec<&Named> = self.seen.pairs.iter().filter(|pair| self.look.all || !good(pair)).collect();
        let told = if self.look.all { wanted.len() } else { wanted.len().min(PAIRS_TOLD) };
        let mut table = Table::new(&["PAIR", "STATE", "LEADER", "REASON", "MISSED", "FOR"], self.look.colours);
        for Named { name, fields } in wanted.iter().take(told) {
            let state = fields.text(STATE);
            let (sign, tone) = match state {
                "mirrored" => ("", Tone::Plain),
                "dark" => ("X ", Tone::Bad),
                _ => ("! ", Tone::Warning),
            };
            let shown = |name: &str| match fields.text(name) {
                "none" | "" => "-".to_owned(),
                text => text.to_owned(),
            };
            let leader = if state == "dark" { "nobody".to_owned() } else { fields.text("leader").to_owned() };
            let time = time(fields.time().as_secs());
            table.row(
                vec![name.clone(), format!("{sign}{state}"), leader, shown("reason"), shown("missed"), time],
                tone,
            );
        }
        if told > 0 {
            write!(f, "{}", table.within(self.look.columns, &SPARE_OF_PAIRS))?;
        }
        let mirrored = self.seen.pairs.iter().filter(good).count();
        write!(f, "pairs: {mirrored} of {} mirrored", self.seen.pairs.len())?;
        if wanted.len() > told {
            write!(f, ", {} more are not (--all)", wanted.len() - told)?;
        }
        if self.seen.unused > 0 {
            let unused = counted(self.seen.unused, "can hold no key and is", "can hold no key and are");
            write!(f, "; {unused} left out")?;
        }
        writeln!(f)
    }
}

/// What a server says of its memory, if it was asked of late.
fn held(server: &Fields, field: &str) -> Option<u64> {
    server.text(field).parse().ok()
}

/// Percent of a server's memory.
fn full(server: &Fields) -> Option<u64> {
    let most = held(server, "bytes_max").filter(|most| *most > 0)?;
    Some(100 * held(server, "bytes")? / most)
}

fn is_filled(server: &Named) -> bool {
    ["running", "trickle"].contains(&server.fields.text("resync"))
}

fn is_well(server: &Named) -> bool {
    server.fields.text(STATE) == "up" && server.fields.text("reason") == "none"
}

#[cfg(test)]
mod tests;
