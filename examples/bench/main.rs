//! `make bench`: what a request costs each proxy, side by side on one machine, in one run.
//!
//! Every row drives every system in turn, several rounds interleaved, so that what else the machine does hits all alike; a cell
//! is the median over the rounds. CPU is the proxy process's own, by the kernel's accounting.

#[allow(dead_code)] // The demo's; here it only waits for servers to answer.
#[path = "../demo/client.rs"]
mod client;
mod histogram;
mod load;
#[allow(dead_code)] // The demo's too.
#[path = "../demo/processes.rs"]
mod processes;
mod report;
mod resync;
mod systems;

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use load::Work;
use report::{Cell, Report};
use systems::Build;

/// Different keys; all fit into each server.
const KEYS: u32 = 10_000;

#[derive(Parser)]
#[command(about = "Measures resilver, twemproxy and memcached side by side")]
struct Args {
    /// A binary of resilver, as PATH or NAME=PATH; repeat to compare several builds in one run.
    #[arg(long, default_value = "target/release/resilver", value_parser = Build::parse)]
    resilver: Vec<Build>,
    /// Rounds over all rows and systems.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each system is driven for each cell of each round.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Worker threads of resilver; twemproxy has one.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Only rows whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Only systems whose name contains this; repeat for more.
    #[arg(long)]
    system: Vec<String>,
    /// Where the machine-readable result goes.
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
}

fn rows() -> Vec<(&'static str, Work)> {
    let base = Work { connections: 32, pipeline: 1, sets_percent: 10, keys_per_get: 1, value_len: 100, keys: KEYS };
    let row = |name, change: fn(&mut Work)| {
        let mut work = base.clone();
        change(&mut work);
        (name, work)
    };
    vec![
        row("32 clients, get:set 9:1, 100 B", |_| {}),
        row("16 requests pipelined", |w| w.pipeline = 16),
        row("400 clients", |w| w.connections = 400),
        row("1000 clients", |w| w.connections = 1000),
        row("writes only, 16 pipelined", |w| (w.pipeline, w.sets_percent) = (16, 100)),
        row("4 KB values", |w| w.value_len = 4096),
        row("10 KB values", |w| w.value_len = 10_240),
        row("gets of 20 keys", |w| (w.keys_per_get, w.sets_percent) = (20, 0)),
    ]
}

fn main() -> Result<(), Box<dyn Error>> {
    let result = match std::env::args().nth(1).as_deref() {
        Some("resync") => resync::run(),
        _ => run(&Args::parse()),
    };
    // Also where a start failed half-way.
    processes::end_all();
    result
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let wanted = |name: &str| args.system.is_empty() || args.system.iter().any(|part| name.contains(part.as_str()));
    let bench = systems::start(&args.resilver, args.threads, &wanted)?;
    let count = bench.systems.len();
    let mut report = Report::new(bench.systems.iter().map(|s| (s.name.clone(), s.two_copies)).collect());
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let rows: Vec<_> = rows().into_iter().filter(|(name, _)| wanted(name)).collect();
    for round in 0..args.rounds {
        for (name, work) in &rows {
            for turn in 0..count {
                // Another first one each round: whatever a system leaves behind for the next hits all alike.
                let index = (turn + round) % count;
                let system = &bench.systems[index];
                load::fill(system.addr, work)?;
                let before = system.usage()?;
                let seen = load::drive(system.addr, work, args.time)
                    .map_err(|error| format!("{}, {name}: {error}", system.name))?;
                let after = system.usage()?;
                if seen.misses > 0 {
                    return Err(format!("{}, {name}: {} keys were not there", system.name, seen.misses).into());
                }
                let cell = Cell {
                    requests_per_second: seen.requests as f64 / seen.elapsed.as_secs_f64(),
                    cpu_us: (after.cpu - before.cpu).as_secs_f64() * 1e6 / seen.requests as f64,
                    p50_us: seen.latency.permille(500),
                    p99_us: seen.latency.permille(990),
                    p999_us: seen.latency.permille(999),
                    memory_mib: after.memory as f64 / (1 << 20) as f64,
                };
                report.add(name, index, cell);
            }
        }
        eprintln!("round {} of {} done", round + 1, args.rounds);
    }
    println!("{}", report.table());
    std::fs::write(&args.json, report.json())?;
    eprintln!("as JSON: {}", args.json.display());
    Ok(())
}
