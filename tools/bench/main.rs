//! `make bench`: what a request costs each proxy, side by side on one machine, in one run; what
//! clients see when a server fails; and what grows with servers and clients. docs/performance.md
//! has the figures and how to read them.
//!
//! Every row drives every system in turn, several rounds interleaved, so that what else the machine
//! does hits all alike; a cell is the median over the rounds, a ratio the median of the rounds'
//! ratios. CPU is the proxy process's own, by the kernel's accounting.

#[allow(dead_code)] // The demo's; here it only waits for servers to answer.
#[path = "../demo/client.rs"]
mod client;
mod crosscheck;
mod failover;
mod floor;
mod histogram;
mod load;
mod machine;
mod markdown;
mod plot;
#[allow(dead_code)] // The demo's too.
#[path = "../demo/processes.rs"]
mod processes;
mod results;
mod resync;
mod rivals;
mod rows;
mod scale;
mod systems;
mod usage;
mod wire;

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use results::Results;
use systems::Build;

/// The first so long of a run does not count: connections are made, and memory is taken, then.
const WARM: Duration = Duration::from_millis(150);

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// What requests cost.
    Rows,
    /// What clients see when a primary fails.
    FailOver,
    /// What grows with servers, threads and clients.
    Scale,
    /// The first row again, beside memcaslap.
    CrossCheck,
}

#[derive(Parser)]
#[command(name = "bench", about = "Measures resilver, other proxies and memcached side by side")]
struct Args {
    /// What to measure; repeat for more.
    #[arg(long, value_enum, default_values = ["rows", "fail-over", "scale"])]
    part: Vec<Part>,
    /// A binary of resilver, as PATH or NAME=PATH; repeat to compare several builds in one run.
    #[arg(long, default_value = "target/release/resilver", value_parser = Build::parse)]
    resilver: Vec<Build>,
    /// A memcached built with --enable-proxy; without this the one on PATH, if it was.
    #[arg(long)]
    memcached_proxy: Option<PathBuf>,
    /// Rounds over all rows and systems.
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Rounds of fail-over, some three seconds for each system and fault.
    #[arg(long, default_value_t = 3)]
    fault_rounds: usize,
    /// How long each system is driven for each cell of each round.
    #[arg(long, default_value = "250ms", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Worker threads of every system but twemproxy, which has one.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Only rows whose name contains this; of scale: nodes, threads, "1000 clients".
    #[arg(long)]
    only: Option<String>,
    /// Only systems whose name contains this; repeat for more.
    #[arg(long)]
    system: Vec<String>,
    /// Where the machine-readable result goes.
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// What is in that file already and is not measured now stays in it.
    #[arg(long)]
    merge: bool,
    /// Measure nothing, show what is in the file.
    #[arg(long)]
    show: bool,
    /// Write the tables between the marks of this file, and the plots into a directory beside it
    /// that has its name.
    #[arg(long)]
    markdown: Option<PathBuf>,
    #[arg(skip)]
    open_files: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).take(2).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["resync", ..] => {
            let result = resync::run();
            processes::end_all();
            return result;
        }
        ["floor", port] => return floor::run(port),
        _ => {}
    }
    let mut args = Args::parse();
    args.open_files = machine::raise_open_files();
    end_all_on_signals()?;
    let result = run(&args);
    // Also where a start failed half-way.
    processes::end_all();
    result
}

/// Ctrl-C and `timeout` leave no servers behind.
fn end_all_on_signals() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            processes::end_all();
            std::process::exit(130);
        });
    })?;
    Ok(())
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let results = if args.show { Results::read(&args.json)? } else { measure(args)? };
    if args.show {
        println!("{}", markdown::everything(&results));
    }
    if let Some(page) = &args.markdown {
        markdown::update(page, &results)?;
        plot::write_all(&page.with_extension(""), &results)?;
        eprintln!("written: {}, and its plots", page.display());
    }
    Ok(())
}

fn measure(args: &Args) -> Result<Results, Box<dyn Error>> {
    let wanted = |name: &str| args.system.is_empty() || args.system.iter().any(|part| name.contains(part.as_str()));
    let mut specs = systems::available(&args.resilver, args.memcached_proxy.as_deref());
    specs.retain(|spec| wanted(&spec.name));
    if specs.is_empty() {
        return Err("no system has such a name".into());
    }
    // Before anything is measured: it may be another program's.
    let old = if args.merge && args.json.exists() { Some(Results::read(&args.json)?) } else { None };
    let files = tempfile::tempdir()?;
    let mut new = Results::new();
    new.machine.ask_versions(&specs);
    let alone: Vec<_> = specs.iter().filter(|spec| !spec.is_of_several()).cloned().collect();
    // Each part ends what it has started before the next begins.
    for part in &args.part {
        match part {
            Part::Rows => new.rows = rows::measure(args, &specs, files.path())?,
            Part::FailOver => new.fail_over = failover::measure(args, &alone, files.path())?,
            Part::Scale => new.scale = scale::measure(args, &alone, files.path())?,
            Part::CrossCheck => new.cross_check = crosscheck::measure(args, &alone, files.path())?,
        }
    }
    println!("{}", markdown::everything(&new));
    let results = match old {
        Some(mut old) => {
            old.merge(new);
            old
        }
        None => new,
    };
    results.write(&args.json)?;
    eprintln!("as JSON: {}", args.json.display());
    Ok(results)
}
