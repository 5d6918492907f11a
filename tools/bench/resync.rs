//! `bench resync`: what the servers can do at best, the resync beside it, and what clients feel of
//! it, in one run.
//!
//! *Limit*: a bare pipelined client enumerates and reads the source, and stores the same items into
//! an empty server; each alone, and both at once, for where servers and client share the processors
//! only the latter can be had. Then the proxy refills a server that was killed: the time counts
//! from the start of its process to the word `mirrored`. With more servers the sources hold other
//! servers' items too, as many again, which the bare client lists and passes over. All of a round's
//! figures come from the same source servers; a cell is the median over the rounds.

mod bare;
mod foreground;
mod stand;
mod watch;

use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::Parser;

use stand::{Layout, ProxyBinary, Stand, server};

/// Of how many keys a target is to get each: the servers that fill it hold as many again of others,
/// where there are more.
const LAYOUTS: [(Layout, u32); 3] = [
    (Layout { primaries: 1, backups: 1 }, 1),
    (Layout { primaries: 2, backups: 1 }, 2),
    (Layout { primaries: 2, backups: 2 }, 2),
];

#[derive(Parser)]
#[command(
    name = "bench resync",
    about = "Measures the resync against what the servers can do, and what clients feel of it"
)]
struct Args {
    /// The proxy's binary.
    #[arg(default_value = "target/release/resilver")]
    resilver: PathBuf,
    /// Rounds.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Items of 100 bytes that the target lacks.
    #[arg(long, default_value_t = 1_000_000)]
    items: u32,
    /// Items of 10 KiB that the target lacks.
    #[arg(long, default_value_t = 50_000)]
    large_items: u32,
    /// Only this part: small, large, foreground.
    #[arg(long)]
    only: Option<String>,
    /// Only this layout: 1+1, 2+1, 2+2 primaries and backups.
    #[arg(long)]
    layout: Option<String>,
    /// Of the foreground only the rows whose name contains this.
    #[arg(long)]
    way: Option<String>,
    /// Leave out the servers' limit, where there are many items.
    #[arg(long)]
    resync_only: bool,
    /// Reads a second in the foreground.
    #[arg(long, default_value_t = 5_000)]
    reads: u32,
    /// Items a second of the throttled resync.
    #[arg(long, default_value_t = 20_000)]
    throttle: u32,
    /// How long the foreground is watched without a resync.
    #[arg(long, default_value = "4s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// How long the foreground is watched during one, at most.
    #[arg(long, default_value = "20s", value_parser = humantime::parse_duration)]
    most: Duration,
    /// More flags for the proxy.
    #[arg(long, value_delimiter = ' ', allow_hyphen_values = true)]
    flags: Vec<String>,
    /// Where the proxy's log goes; otherwise it is not kept.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Where the machine-readable result goes.
    #[arg(long, default_value = "target/bench-resync.json")]
    json: PathBuf,
}

/// Figures by name, of every round.
#[derive(Default)]
struct Figures(Vec<(String, Row)>);

/// A row's columns, each with its value of every round.
type Row = Vec<(&'static str, Vec<f64>)>;

impl Figures {
    fn add(&mut self, row: &str, figures: &[(&'static str, f64)]) {
        if !self.0.iter().any(|(name, _)| name == row) {
            self.0.push((row.to_owned(), figures.iter().map(|(name, _)| (*name, Vec::new())).collect()));
        }
        if let Some((_, all)) = self.0.iter_mut().find(|(name, _)| name == row) {
            for ((_, values), (_, value)) in all.iter_mut().zip(figures) {
                values.push(*value);
            }
        }
    }

    fn table(&self, rows: &str) -> String {
        let mut out = String::new();
        let mut head = true;
        for (row, figures) in self.0.iter().filter(|(row, _)| row.starts_with(rows)) {
            // Writing to a string cannot fail.
            if std::mem::take(&mut head) {
                let names: Vec<&str> = figures.iter().map(|(name, _)| *name).collect();
                let _ = writeln!(out, "| | {} |\n|---|{}", names.join(" | "), "--:|".repeat(names.len()));
            }
            let cells: Vec<String> = figures.iter().map(|(_, values)| show(median(values))).collect();
            let _ = writeln!(out, "| {} | {} |", row.trim_start_matches(rows), cells.join(" | "));
        }
        out
    }

    fn json(&self) -> String {
        let rows: Vec<String> = self
            .0
            .iter()
            .map(|(row, figures)| {
                let cells: Vec<String> = figures
                    .iter()
                    // What was left out; JSON knows no NaN.
                    .filter(|(_, values)| values.iter().all(|value| value.is_finite()))
                    .map(|(name, values)| {
                        let (least, most) =
                            values.iter().fold((f64::MAX, f64::MIN), |(l, m), v| (l.min(*v), m.max(*v)));
                        format!(
                            "{name:?}: {{\"median\": {:.3}, \"least\": {least:.3}, \"most\": {most:.3}}}",
                            median(values)
                        )
                    })
                    .collect();
                format!("  {row:?}: {{{}}}", cells.join(", "))
            })
            .collect();
        format!("{{\n{}\n}}\n", rows.join(",\n"))
    }
}

fn show(value: f64) -> String {
    if value.is_nan() {
        return "–".to_owned();
    }
    if value >= 1000.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    let args = Args::parse_from(std::env::args().skip(1));
    let wanted = |part: &str| args.only.as_ref().is_none_or(|only| only == part);
    let mut figures = Figures::default();
    for (part, name, count, value_len) in
        [("small", "100 B", args.items, 100), ("large", "10 KiB", args.large_items, 10_240)]
    {
        for (layout, share) in LAYOUTS {
            let servers = format!("{}+{}", layout.primaries, layout.backups);
            if wanted(part) && args.layout.as_ref().is_none_or(|only| *only == servers) {
                copy(
                    &args,
                    &mut figures,
                    &format!("copy: {servers}, {count} × {name}"),
                    layout,
                    0..share * count,
                    value_len,
                )?;
            }
        }
    }
    if wanted("foreground") {
        watch::watch(&args, &mut figures)?;
    }
    println!("{}\n{}", figures.table("copy: "), figures.table("reads: "));
    fs::write(&args.json, figures.json())?;
    eprintln!("as JSON: {}", args.json.display());
    Ok(())
}

/// What the servers can do, items a second: read, write, and both at once.
fn limit(stand: &Stand, keys: &[u32], value_len: usize) -> io::Result<[f64; 3]> {
    let per_s = |time: Duration| keys.len() as f64 / time.as_secs_f64();
    let placement = &stand.placement;
    let wanted = |key: &[u8]| placement.is_missing(key);
    // Each server alone: where several fill one, the slower of them counts.
    let (mut found, mut read) = (0, Duration::ZERO);
    for source in &stand.sources {
        let (items, time) = bare::read_all(source.port, value_len, &wanted)?;
        found += items;
        read = read.max(time);
    }
    if found < keys.len() as u64 {
        return Err(io::Error::other(format!("the sources list {found} items of {}", keys.len())));
    }
    let write = {
        let _empty = server(stand.spare)?;
        bare::write_all(stand.spare, keys, value_len)?
    };
    let both = {
        let _empty = server(stand.spare)?;
        let read = |port| bare::read_all(port, value_len, &wanted);
        thread::scope(|scope| {
            let readers: Vec<_> = stand.sources.iter().map(|source| scope.spawn(|| read(source.port))).collect();
            let mut longest = bare::write_all(stand.spare, keys, value_len)?;
            for reader in readers {
                longest = longest.max(reader.join().map_err(|_| io::Error::other("a reader panicked"))??.1);
            }
            Ok::<_, io::Error>(longest)
        })?
    };
    Ok([per_s(read), per_s(write), per_s(both)])
}

/// The limit and the resync.
fn copy(
    args: &Args,
    figures: &mut Figures,
    row: &str,
    layout: Layout,
    keys: Range<u32>,
    value_len: usize,
) -> io::Result<()> {
    // Nobody is to yield to, but what the proxy does by default is what is measured.
    let proxy = ProxyBinary { path: &args.resilver, log: args.log.as_deref(), flags: &args.flags };
    let mut stand = Stand::start(proxy, layout, keys.clone(), value_len)?;
    let missing = stand.placement.missing(keys);
    // Memory that the machine gives out for the first time is slow.
    if !args.resync_only {
        let _empty = server(stand.spare)?;
        bare::write_all(stand.spare, &missing, value_len)?;
    }
    for round in 0..args.rounds {
        let [read, write, both] = if args.resync_only { [f64::NAN; 3] } else { limit(&stand, &missing, value_len)? };
        let resync = stand.resync()?;
        if round + 1 < args.rounds {
            stand.lose_target()?;
        }
        let items_per_s = resync.items / resync.seconds;
        figures.add(
            row,
            &[
                ("read the source /s", read),
                ("write the target /s", write),
                ("both at once /s", both),
                ("found after ms", resync.found_after * 1e3),
                ("resync items/s", items_per_s),
                ("of the slower alone", items_per_s / read.min(write)),
                ("of both at once", items_per_s / both),
                ("proxy CPU µs/item", resync.cpu_us),
                ("proxy peak MiB", resync.peak_mib),
            ],
        );
        eprintln!("{row}: round {} of {} done", round + 1, args.rounds);
    }
    Ok(())
}
