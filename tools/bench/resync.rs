//! `bench resync`: what the servers can do at best, the resync beside it, and what clients feel of it, in one run.
//!
//! *Limit*: a bare pipelined client enumerates and reads the source, and stores the same items into an empty server; each alone, and both
//! at once, for where servers and client share the processors only the latter can be had. Then the proxy refills a server that was killed.
//! All of a round's figures come from the same source server; a cell is the median over the rounds.

mod bare;
mod foreground;

use std::cell::RefCell;
use std::error::Error;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::client::Client;
use crate::processes::{self, Process};
use foreground::Foreground;

/// How often the proxy is asked how far it is.
const POLL: Duration = Duration::from_millis(20);
/// The same where clients are watched: asking disturbs them too, so it is done with and without a resync.
const CALM_POLL: Duration = Duration::from_millis(100);
/// What the foreground's latencies count for.
const PARTS: u8 = 5;
const NOTHING: u8 = 0;
const WITHOUT: u8 = 1;
const BARE_LISTING: u8 = 2;
const LISTING: u8 = 3;
const COPYING: u8 = 4;
/// Nothing here takes longer.
const TIMEOUT: Duration = Duration::from_secs(80);

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
    /// Items of 100 bytes.
    #[arg(long, default_value_t = 1_000_000)]
    items: u32,
    /// Items of 10 KiB.
    #[arg(long, default_value_t = 50_000)]
    large_items: u32,
    /// Only this part: small, large, foreground.
    #[arg(long)]
    only: Option<String>,
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
    /// How long the foreground is watched in each of its states.
    #[arg(long, default_value = "4s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// More flags for the proxy.
    #[arg(long, value_delimiter = ' ', allow_hyphen_values = true)]
    flags: Vec<String>,
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

/// A proxy over a source that holds everything and a target that is killed and comes back empty.
struct Stand {
    ports: [u16; 3],
    _source: Process,
    target: Option<Process>,
    proxy: Process,
    proxy_port: u16,
    operator: RefCell<Client>,
    _files: tempfile::TempDir,
}

/// What a resync was.
struct Copied {
    items_per_s: f64,
    cpu_us: f64,
    peak_mib: f64,
}

fn server(port: u16) -> io::Result<Process> {
    let mut command = std::process::Command::new("memcached");
    command.args(["-l", "127.0.0.1", "-p", &port.to_string(), "-U", "0", "-m", "8192", "-t", "2"]);
    if nix::unistd::geteuid().is_root() {
        command.args(["-u", "nobody"]);
    }
    processes::server(&mut command, "memcached", port)
}

impl Stand {
    /// The source holds `count` items of `value_len` bytes, which the proxy did not see being written: they came while it led alone.
    fn start(args: &Args, flags: &[String], count: u32, value_len: usize) -> io::Result<Stand> {
        let files = tempfile::tempdir()?;
        let free = processes::free_ports(13_500, 4);
        let [primary, backup, spare, proxy_port] = free[..] else { return Err(io::Error::other("no free ports")) };
        let (source, target) = (server(primary)?, server(backup)?);
        let mut command = processes::resilver_command(&args.resilver, proxy_port, &[primary], &[backup]);
        command.args(["--threads", "1", "--probe-interval", "100ms"]).args(&args.flags).args(flags);
        command.arg("--log-file").arg(files.path().join("resilver.log"));
        let proxy = processes::server(&mut command, "resilver", proxy_port)?;
        let operator = RefCell::new(Client::connect(proxy_port)?);
        let ports = [primary, backup, spare];
        let mut stand =
            Stand { ports, _source: source, target: Some(target), proxy, proxy_port, operator, _files: files };
        stand.wait("the proxy has begun", |stand| stand.status("mirrored").map(|word| word == "1"))?;
        stand.lose_target()?;
        bare::write_all(primary, count, value_len)?;
        Ok(stand)
    }

    fn status(&self, name: &str) -> io::Result<String> {
        let mut stats = self.operator.borrow_mut().stats("resync status")?;
        Ok(stats.remove(name).unwrap_or_default())
    }

    fn node(&self, name: &str) -> io::Result<String> {
        self.status(&format!("node:127.0.0.1:{}:{name}", self.ports[1]))
    }

    fn number(&self, name: &str) -> io::Result<f64> {
        let text = self.node(name)?;
        text.parse().map_err(|_| io::Error::other(format!("{name} is {text:?}")))
    }

    fn wait(&self, what: &str, mut done: impl FnMut(&Stand) -> io::Result<bool>) -> io::Result<()> {
        let give_up = Instant::now() + TIMEOUT;
        while !done(self)? {
            if Instant::now() > give_up {
                return Err(io::Error::other(format!("waited in vain until {what}")));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn lose_target(&mut self) -> io::Result<()> {
        self.target = None;
        self.wait("the proxy has seen that the target is gone", |stand| stand.node("state").map(|word| word == "lost"))
    }

    /// The target comes back, empty: the proxy begins to fill it.
    fn return_target(&mut self) -> io::Result<()> {
        self.target = Some(server(self.ports[1])?);
        self.wait("the resync has begun", |stand| Ok(stand.node("resync")? == "running" || stand.is_done()?))
    }

    fn is_done(&self) -> io::Result<bool> {
        Ok(self.status("mirrored")? == "1" && self.node("resync")? == "done")
    }

    /// CPU time of the proxy so far, and the most memory it has had.
    fn usage(&self) -> io::Result<(f64, f64)> {
        let process = format!("/proc/{}", self.proxy.pid());
        let stat = fs::read_to_string(format!("{process}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        // utime and stime, in ticks of 10 ms; threads that have ended are in them.
        let ticks: f64 = fields.iter().skip(11).take(2).filter_map(|word| word.parse::<f64>().ok()).sum();
        let status = fs::read_to_string(format!("{process}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = peak.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(f64::NAN);
        Ok((ticks / 100.0, kib / 1024.0))
    }

    fn resync(&mut self) -> io::Result<Copied> {
        let (before, _) = self.usage()?;
        self.return_target()?;
        self.wait("the resync has ended", Stand::is_done)?;
        let (after, peak_mib) = self.usage()?;
        let (copied, seconds) = (self.number("items_copied")?, self.number("elapsed_seconds")?);
        let copied_cpu_us = (after - before) * 1e6 / copied;
        Ok(Copied { items_per_s: copied / seconds, cpu_us: copied_cpu_us, peak_mib })
    }
}

pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    let args = Args::parse_from(std::env::args().skip(1));
    let wanted = |part: &str| args.only.as_ref().is_none_or(|only| only == part);
    let mut figures = Figures::default();
    for (part, name, count, value_len) in
        [("small", "100 B", args.items, 100), ("large", "10 KiB", args.large_items, 10_240)]
    {
        if wanted(part) {
            copy(&args, &mut figures, &format!("copy: {count} × {name}"), count, value_len)?;
        }
    }
    if wanted("foreground") {
        watch(&args, &mut figures)?;
    }
    println!("{}\n{}", figures.table("copy: "), figures.table("reads: "));
    fs::write(&args.json, figures.json())?;
    eprintln!("as JSON: {}", args.json.display());
    Ok(())
}

/// What the servers can do, items a second: read, write, and both at once.
fn limit(source: u16, spare: u16, count: u32, value_len: usize) -> io::Result<[f64; 3]> {
    let per_s = |time: Duration| f64::from(count) / time.as_secs_f64();
    let (found, read) = bare::read_all(source, value_len)?;
    if found < u64::from(count) {
        return Err(io::Error::other(format!("the source lists {found} items of {count}")));
    }
    let write = {
        let _empty = server(spare)?;
        bare::write_all(spare, count, value_len)?
    };
    let both = {
        let _empty = server(spare)?;
        let reader = thread::spawn(move || bare::read_all(source, value_len));
        let write = bare::write_all(spare, count, value_len)?;
        let (_, read) = reader.join().map_err(|_| io::Error::other("the reader panicked"))??;
        read.max(write)
    };
    Ok([per_s(read), per_s(write), per_s(both)])
}

/// The limit and the resync.
fn copy(args: &Args, figures: &mut Figures, row: &str, count: u32, value_len: usize) -> io::Result<()> {
    // Nobody is to yield to, but what the proxy does by default is what is measured.
    let mut stand = Stand::start(args, &[], count, value_len)?;
    let [source, _, spare] = stand.ports;
    // Memory that the machine gives out for the first time is slow.
    if !args.resync_only {
        let _empty = server(spare)?;
        bare::write_all(spare, count, value_len)?;
    }
    for round in 0..args.rounds {
        let [read, write, both] =
            if args.resync_only { [f64::NAN; 3] } else { limit(source, spare, count, value_len)? };
        let resync = stand.resync()?;
        stand.lose_target()?;
        figures.add(
            row,
            &[
                ("read the source /s", read),
                ("write the target /s", write),
                ("both at once /s", both),
                ("resync items/s", resync.items_per_s),
                ("of the slower alone", resync.items_per_s / read.min(write)),
                ("of both at once", resync.items_per_s / both),
                ("proxy CPU µs/item", resync.cpu_us),
                ("proxy peak MiB", resync.peak_mib),
            ],
        );
        eprintln!("{row}: round {} of {} done", round + 1, args.rounds);
    }
    Ok(())
}

/// What reads feel, without a resync and with one, as often as there are rounds.
fn watch(args: &Args, figures: &mut Figures) -> io::Result<()> {
    let throttle = args.throttle.to_string();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let ways = [
        ("yielding (default)", words(&[])),
        ("at full speed, not yielding", words(&["--resync-latency", "off"])),
        ("throttled, not yielding", words(&["--resync-latency", "off", "--resync-rate", &throttle])),
    ];
    for (name, flags) in
        ways.into_iter().filter(|(name, _)| args.way.as_ref().is_none_or(|way| name.contains(way.as_str())))
    {
        let mut stand = Stand::start(args, &flags, args.items, 100)?;
        for round in 0..args.rounds {
            let clients = Foreground::begin(stand.proxy_port, args.reads, args.items, PARTS)?;
            thread::sleep(Duration::from_millis(300));
            clients.part(WITHOUT);
            let begun = Instant::now();
            while begun.elapsed() < args.time {
                stand.is_done()?;
                thread::sleep(CALM_POLL);
            }
            // What of it no proxy can help: the server lists its keys for somebody who only takes them.
            clients.part(BARE_LISTING);
            bare::list_all(stand.ports[0])?;
            clients.part(NOTHING);
            stand.return_target()?;
            clients.part(LISTING);
            let begun = Instant::now();
            // The list of keys is whole once all are counted.
            let listing = |stand: &Stand| Ok::<_, io::Error>(stand.number("items_total")? < f64::from(args.items));
            while begun.elapsed() < args.time && listing(&stand)? && !stand.is_done()? {
                thread::sleep(CALM_POLL);
            }
            let (before, from) = (stand.number("items_copied")?, Instant::now());
            let listed = begun.elapsed();
            clients.part(COPYING);
            let mut percent = Vec::new();
            while begun.elapsed() < args.time && !stand.is_done()? {
                thread::sleep(CALM_POLL);
                percent.push(stand.status("yield:percent")?.parse().unwrap_or(f64::NAN));
            }
            clients.part(NOTHING);
            let copied = (stand.number("items_copied")? - before) / from.elapsed().as_secs_f64();
            let seen = clients.end()?;
            stand.lose_target()?;
            let of = |part: u8, permille| seen[usize::from(part)].permille(permille);
            let mut with = seen[usize::from(LISTING)].clone();
            with.merge(&seen[usize::from(COPYING)]);
            let (without, with) = ([500, 990].map(|p| of(WITHOUT, p)), [500, 990].map(|p| with.permille(p)));
            figures.add(
                &format!("reads: {name}"),
                &[
                    ("p50 µs without", without[0]),
                    ("p99 µs without", without[1]),
                    ("p50 µs with", with[0]),
                    ("p99 µs with", with[1]),
                    ("p99 ratio", with[1] / without[1]),
                    ("p99 µs while listing", of(LISTING, 990)),
                    ("listing s", listed.as_secs_f64()),
                    ("p99 µs while a bare client lists", of(BARE_LISTING, 990)),
                    ("p99 µs while copying", of(COPYING, 990)),
                    ("copying ratio", of(COPYING, 990) / without[1]),
                    ("items/s copied meanwhile", copied),
                    ("of the time %", percent.iter().sum::<f64>() / percent.len() as f64),
                ],
            );
            eprintln!("{name}: round {} of {} done", round + 1, args.rounds);
        }
    }
    Ok(())
}
