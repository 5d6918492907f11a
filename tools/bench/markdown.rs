//! The results as tables, and a page whose tables are kept current: what stands between
//! `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`.

use std::cmp::Ordering;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

use crate::results::{Cell, CrossCheck, FailOver, Results, Row, Scale, quantile};
use crate::systems::Kind;

type Section = (&'static str, fn(&Results) -> String);

/// Name on the page, and how it is made. An empty one was not measured, and leaves the page as it
/// is.
const SECTIONS: [Section; 8] = [
    ("machine", machine),
    ("rows", |r| rows(&r.rows)),
    ("capacity", |r| capacity(&r.rows)),
    ("fail-over", |r| fail_over(&r.fail_over)),
    ("nodes", |r| grown(&r.scale, "nodes")),
    ("threads", |r| grown(&r.scale, "threads")),
    ("clients", |r| clients(&r.scale)),
    ("cross-check", |r| cross_check(&r.cross_check)),
];

/// For the terminal.
pub(crate) fn everything(results: &Results) -> String {
    let sections = SECTIONS.map(|(name, make)| (name, make(results)));
    let there = sections.iter().filter(|(_, text)| !text.is_empty());
    there.map(|(name, text)| format!("## {name}\n\n{text}\n")).collect()
}

/// Replaces the sections of a page.
pub(crate) fn update(path: &Path, results: &Results) -> io::Result<()> {
    let mut page = fs::read_to_string(path)?;
    for (name, make) in SECTIONS {
        let (begin, end) = (format!("<!-- bench:{name} -->\n"), format!("<!-- /bench:{name} -->"));
        let text = make(results);
        let Some((from, to)) = page.find(&begin).map(|at| at + begin.len()).zip(page.find(&end)) else {
            return Err(io::Error::other(format!("{} has no place for {name}", path.display())));
        };
        if from > to {
            return Err(io::Error::other(format!("{}: {name} ends before it begins", path.display())));
        }
        if !text.is_empty() {
            page.replace_range(from..to, &format!("\n{text}\n"));
        }
    }
    fs::write(path, page)
}

/// A table; the first column is left-aligned.
fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut out = format!("| {} |\n|---|{}\n", head.join(" | "), "--:|".repeat(head.len() - 1));
    let mut any = false;
    for row in rows {
        any = true;
        // Writing to a string cannot fail.
        let _ = writeln!(out, "| {} |", row.join(" | "));
    }
    if any { out } else { String::new() }
}

fn machine(results: &Results) -> String {
    let m = &results.machine;
    let mut out = format!(
        "- {} processors: {}; {:.0} GiB\n- {}, Linux {}\n",
        m.processors, m.processor, m.memory_gib, m.system, m.kernel
    );
    for (program, version) in &m.versions {
        let _ = writeln!(out, "- {program}: `{version}`");
    }
    for command in &m.commands {
        let _ = writeln!(out, "- `{command}`");
    }
    out
}

/// A row's figure in proportion to the best of the other proxies; a dash where there is none.
/// `written`: what is compared is what writes take, or they alone were asked for; then a system
/// that writes to two servers is compared with such systems only.
fn of_the_best(rows: &[Row], row: &Row, written: bool, of: fn(&Cell) -> f64, better: Ordering) -> String {
    let rivals = rows.iter().filter(|other| {
        let same = other.row == row.row && other.kind == Kind::Rival;
        same && (other.copies >= row.copies || !(written || row.writes_only))
    });
    let best = rivals.reduce(
        |best, other| {
            if of(&other.median).total_cmp(&of(&best.median)) == better { other } else { best }
        },
    );
    best.map_or("–".to_owned(), |best| format!("{:.2}", row.ratio(best, of)))
}

fn rows(rows: &[Row]) -> String {
    let mut last = "";
    let lines = rows.iter().map(|row| {
        let m = &row.median;
        let name = if row.row == last { String::new() } else { format!("**{}**", row.row) };
        last = &row.row;
        let p99 = |written, of: fn(&Cell) -> f64| match of(m) {
            // None were sent alone.
            0.0 => ["–".to_owned(), "–".to_owned()],
            value => [format!("{value:.0}"), of_the_best(rows, row, written, of, Ordering::Less)],
        };
        let [reads, reads_ratio] = p99(false, |c| c.p99_reads_us);
        let [writes, writes_ratio] = p99(true, |c| c.p99_writes_us);
        let [all, all_ratio] = p99(false, |c| c.p99_us);
        vec![
            name,
            row.system.clone(),
            format!("{:.2}", m.cpu_us_per_request),
            format!("{:.2}–{:.2}", row.least.cpu_us_per_request, row.most.cpu_us_per_request),
            of_the_best(rows, row, false, |c| c.cpu_us_per_request, Ordering::Less),
            format!("{:.0}", m.requests_per_second),
            of_the_best(rows, row, false, |c| c.requests_per_second, Ordering::Greater),
            format!("{:.0}", m.p50_us),
            all,
            all_ratio,
            format!("{:.0}", m.p999_us),
            reads,
            reads_ratio,
            writes,
            writes_ratio,
            format!("{:.1}", m.memory_mib),
            format!("{:.0} %", m.generator_busy * 100.0),
        ]
    });
    let head = [
        "work",
        "system",
        "CPU µs/request",
        "least–most",
        "of the cheapest rival",
        "requests/s",
        "of the fastest",
        "p50 µs",
        "p99 µs",
        "of the best",
        "p99.9 µs",
        "p99 of gets",
        "of the best",
        "p99 of sets",
        "of the best",
        "MiB",
        "generator",
    ];
    table(&head, lines)
}

fn capacity(rows: &[Row]) -> String {
    let ours = rows.iter().filter(|row| row.kind != Kind::Server);
    let mut systems: Vec<&str> = Vec::new();
    let mut kinds: Vec<&str> = Vec::new();
    for row in ours.clone() {
        if !systems.contains(&row.system.as_str()) {
            systems.push(&row.system);
        }
        if !kinds.contains(&row.row.as_str()) {
            kinds.push(&row.row);
        }
    }
    let lines = kinds.iter().map(|kind| {
        let cells = systems.iter().map(|system| {
            let row = ours.clone().find(|row| row.row == *kind && row.system == *system);
            row.map_or("–".to_owned(), |row| format!("{:.0}", 1e3 / row.median.cpu_us_per_request))
        });
        std::iter::once((*kind).to_owned()).chain(cells).collect()
    });
    let head: Vec<&str> = std::iter::once("thousand requests/s for each core").chain(systems.iter().copied()).collect();
    table(&head, lines)
}

fn fail_over(all: &[FailOver]) -> String {
    let lines = all.iter().map(|one| {
        let longest: Vec<f64> = one.rounds.iter().map(|round| round.longest_ms).collect();
        let median = |of: fn(&crate::results::FaultRound) -> u64| {
            format!("{:.0}", quantile(one.rounds.iter().map(|round| of(round) as f64).collect(), 0.5))
        };
        vec![
            one.fault.clone(),
            one.system.clone(),
            format!("{:.1}", quantile(longest.clone(), 0.5)),
            format!("{:.1}", quantile(longest, 1.0)),
            median(|round| round.requests),
            median(|round| round.errors),
            median(|round| round.misses),
            median(|round| round.closed),
        ]
    });
    let head = [
        "primary",
        "system",
        "longest request, ms",
        "worst round",
        "requests",
        "errors",
        "stored keys not found",
        "connections closed",
    ];
    table(&head, lines)
}

fn grown(all: &[Scale], scale: &str) -> String {
    let lines = all.iter().filter(|one| one.scale == scale).map(|one| {
        vec![
            one.row.clone(),
            one.system.clone(),
            one.count.to_string(),
            format!("{:.2}", one.cell.cpu_us_per_request),
            format!("{:.0}", one.cell.requests_per_second),
            format!("{:.0}", one.cell.p99_us),
            format!("{:.1}", one.cell.memory_mib),
            format!("{:.2}", one.alone_cpu_us_per_second / 1e3),
        ]
    });
    table(
        &["work", "system", scale, "CPU µs/request", "requests/s", "p99 µs", "MiB", "CPU ms/s without clients"],
        lines,
    )
}

fn clients(all: &[Scale]) -> String {
    let points = all.iter().filter_map(|one| Some((one, one.clients?)));
    let lines = points.map(|(one, cost)| {
        vec![
            one.system.clone(),
            one.count.to_string(),
            format!("{:.0}", cost.idle_bytes),
            format!("{:.0}", cost.used_bytes),
            format!("{:.0}", cost.busy_bytes),
            format!("{:.2}", one.alone_cpu_us_per_second / 1e3),
            format!("{:.2}", cost.idle_cpu_us_per_second / 1e3),
            format!("{:.2}", one.cell.cpu_us_per_request),
            format!("{:.0}", one.cell.requests_per_second),
            format!("{:.0}", one.cell.p99_us),
        ]
    });
    let head = [
        "system",
        "clients",
        "bytes each, connected",
        "after one request",
        "all waiting",
        "CPU ms/s without clients",
        "with all idle",
        "CPU µs/request",
        "requests/s",
        "p99 µs",
    ];
    table(&head, lines)
}

fn cross_check(all: &[CrossCheck]) -> String {
    let lines = all.iter().map(|one| {
        vec![
            one.system.clone(),
            format!("{:.0}", one.ours_requests_per_second),
            format!("{:.0}", one.theirs_requests_per_second),
            format!("{:.2}", one.ours_requests_per_second / one.theirs_requests_per_second),
            format!("{:.2}", one.ours_cpu_us_per_request),
            format!("{:.2}", one.theirs_cpu_us_per_request),
            format!("{:.2}", one.ours_cpu_us_per_request / one.theirs_cpu_us_per_request),
        ]
    });
    let head =
        ["system", "requests/s, ours", "memcaslap's", "ratio", "system's CPU µs/request, ours", "memcaslap's", "ratio"];
    table(&head, lines)
}
