//! `make demo`: two primaries, a backup and the proxy on this machine, and what happens when they
//! die.
//!
//! Everything runs as processes of its own on 127.0.0.1 and ends with the demo. The exit code is 1
//! if anything was lost, wrong or failed.

mod client;
mod processes;
mod show;
mod traffic;

use std::error::Error;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use client::{Client, Item};
use processes::Process;
use show::Show;
use traffic::{Counts, Known, Model, Traffic, filled, judge};

/// Clients at work in the background.
const CLIENTS: u64 = 4;
/// How long the traffic is watched in each act.
const ACT: Duration = Duration::from_secs(3);
/// A cluster of this size that is not mirrored by then never will be.
const HEAL_TIMEOUT: Duration = Duration::from_secs(120);
/// How often `resync status` is asked for.
const POLL: Duration = Duration::from_millis(20);
/// Longer than the proxy waits before it asks servers again how much they hold.
const COUNT_TIMEOUT: Duration = Duration::from_secs(8);
/// The share of a refill that is done when `resilver status` is shown in the middle of it.
const MIDDLE: f64 = 0.3;

type Failure = Box<dyn Error>;

/// What the demo was asked for.
struct Options {
    program: PathBuf,
    port: u16,
    node_port: u16,
    items: u64,
}

const USAGE: &str = "usage: demo [--port 12000] [--node-port 12011] [--items 400000] PATH_OF_RESILVER
  --port       where the proxy listens
  --node-port  the servers and the page take the first four free ports from here on
  --items      how many items are filled in";

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, Failure> {
        let mut options = Options { program: PathBuf::new(), port: 12_000, node_port: 12_011, items: 400_000 };
        while let Some(argument) = arguments.next() {
            let mut number = || {
                let value = arguments.next().unwrap_or_default();
                value.parse::<u64>().map_err(|_| format!("{argument} {value:?}: must be a number\n{USAGE}"))
            };
            match argument.as_str() {
                "--port" => options.port = u16::try_from(number()?)?,
                "--node-port" => options.node_port = u16::try_from(number()?)?,
                "--items" => options.items = number()?.max(1),
                flag if flag.starts_with('-') => return Err(format!("there is no {flag}\n{USAGE}").into()),
                path => options.program = PathBuf::from(path),
            }
        }
        if !options.program.is_file() {
            let path = options.program.display();
            return Err(format!("no program {path:?}; build it with cargo build --release\n{USAGE}").into());
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    // Release builds abort on a panic, so no Drop ends the processes.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        processes::end_all();
        report(panic);
    }));
    let outcome = end_on_signals().and_then(|()| Options::parse(std::env::args().skip(1))).and_then(|o| tell(&o));
    processes::end_all();
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C ends the demo at any moment, and everything that it has started.
fn end_on_signals() -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        });
        processes::end_all();
        println!();
        // After the story is told, this is how it ends well.
        std::process::exit(if show::is_over() { 0 } else { 130 });
    });
    Ok(())
}

/// The cluster.
struct Cluster {
    program: PathBuf,
    port: u16,
    /// Where the page is.
    admin: u16,
    node_ports: Vec<u16>,
    nodes: Vec<Process>,
    proxy: Process,
    log: PathBuf,
}

/// Index of the primary that is killed, and of the backup.
const VICTIM: usize = 0;
const BACKUP: usize = 2;

impl Cluster {
    fn start(options: &Options) -> Result<Cluster, Failure> {
        let port = options.port;
        if !processes::is_free(port) {
            return Err(format!("127.0.0.1:{port} is taken; choose another: make demo PORT=12100").into());
        }
        let mut node_ports: Vec<u16> =
            processes::free_ports(options.node_port, 5).into_iter().filter(|free| *free != port).take(4).collect();
        let Some(admin) = node_ports.pop().filter(|_| node_ports.len() == 3) else {
            return Err(format!("no free ports from {} on; give another --node-port", options.node_port).into());
        };
        let nodes = node_ports.iter().map(|port| processes::memcached(*port)).collect::<Result<Vec<_>, _>>()?;
        let log = std::env::temp_dir().join(format!("resilver-demo-{}.log", std::process::id()));
        let proxy =
            processes::resilver(&options.program, (port, admin), &node_ports[..BACKUP], &node_ports[BACKUP..], &log)?;
        Ok(Cluster { program: options.program.clone(), port, admin, node_ports, nodes, proxy, log })
    }

    /// Shows what `resilver status` says.
    fn show_status(&self, show: &Show) -> Result<(), Failure> {
        self.shown(show, &processes::status(&self.program, self.port)?);
        show.pause();
        Ok(())
    }

    /// Waits until the proxy has asked a server again how much it holds: it does so every few
    /// seconds, and until then `resilver status` says what was so before.
    fn await_count(&self, node: usize, items: u64) -> Result<(), Failure> {
        let mut client = Client::connect(self.port)?;
        let name = format!("127.0.0.1:{}:items", self.node_ports[node]);
        let start = Instant::now();
        while start.elapsed() < COUNT_TIMEOUT {
            let told = client.stats("stats servers")?.get(&name).and_then(|told| told.parse().ok()).unwrap_or(0u64);
            // Clients delete and store meanwhile.
            if told >= items - items / 10 {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn shown(&self, show: &Show, status: &str) {
        show.typed(&format!("resilver status --proxy 127.0.0.1:{}", self.port), status);
    }

    /// How many items a server holds, asked directly.
    fn items_on(&self, node: usize) -> Result<u64, Failure> {
        let stats = Client::connect(self.node_ports[node])?.stats("stats")?;
        Ok(stats.get("curr_items").and_then(|items| items.parse().ok()).unwrap_or(0))
    }
}

/// What `resync status` says.
struct Status(std::collections::HashMap<String, String>);

impl Status {
    fn read(client: &mut Client) -> Result<Status, Failure> {
        client.stats("resync status").map(Status).map_err(|error| format!("resync status: {error}").into())
    }

    fn mirrored(&self) -> bool {
        self.0.get("mirrored").is_some_and(|value| value == "1")
    }

    /// A number about the resync of a node; 0 while there is none.
    fn number(&self, port: u16, name: &str) -> f64 {
        self.0.get(&format!("node:127.0.0.1:{port}:{name}")).and_then(|value| value.parse().ok()).unwrap_or(0.0)
    }

    fn state(&self, port: u16) -> &str {
        self.0.get(&format!("node:127.0.0.1:{port}:state")).map_or("?", String::as_str)
    }
}

/// How the refilling went.
struct Healed {
    copied: f64,
    seconds: f64,
    rate: f64,
}

/// Everything that the summary tells.
#[derive(Default)]
struct Totals {
    longest_us: u64,
}

impl Totals {
    /// The slowest answer since the last look, which is also kept for the summary.
    fn longest(&mut self, counts: &Counts) -> u64 {
        let longest = counts.longest_us.swap(0, Ordering::Relaxed);
        self.longest_us = self.longest_us.max(longest);
        longest
    }
}

/// The story. True if nothing was lost, wrong or failed.
fn tell(options: &Options) -> Result<bool, Failure> {
    let show = Show::new();
    let mut totals = Totals::default();
    let mut cluster = Cluster::start(options)?;
    show.act("Two primaries, one backup, one proxy");
    for (name, port) in ["primary", "primary", "backup"].iter().zip(&cluster.node_ports) {
        show.say(&format!("memcached, {name:<8} 127.0.0.1:{port}"));
    }
    show.say(&format!("resilver            127.0.0.1:{}   log: {}", cluster.port, cluster.log.display()));
    show.say(&format!("the page            http://127.0.0.1:{}/   shows it live, in a browser", cluster.admin));
    heal(&cluster, &show, None)?;

    show.act(&format!("Fill {} items through the proxy", show::number(options.items)));
    fill(cluster.port, options.items, &show)?;

    show.act(&format!("{CLIENTS} clients get, set, delete and increment, and check every answer"));
    let traffic = Traffic::start(cluster.port, CLIENTS, options.items);
    // Asked once, servers say how much they hold from the next time on.
    processes::status(&cluster.program, cluster.port)?;
    watch(&traffic, &show, &mut totals);
    cluster.show_status(&show)?;

    show.act(&format!("kill -9 a primary (127.0.0.1:{}) under that traffic", cluster.node_ports[VICTIM]));
    let before = cluster.items_on(VICTIM)?;
    cluster.nodes[VICTIM].kill()?;
    show.say(&format!("{} items were on it; the backup has them too, and leads now", show::number(before)));
    watch(&traffic, &show, &mut totals);
    cluster.show_status(&show)?;

    show.act("Start it again: it is empty");
    cluster.nodes[VICTIM] = processes::memcached(cluster.node_ports[VICTIM])?;
    let healed = heal(&cluster, &show, Some(VICTIM))?;
    let after = cluster.items_on(VICTIM)?;
    show.say(&format!(
        "{} items copied in {:.2} s, {}/s; it holds {} again and leads",
        show::number(healed.copied as u64),
        healed.seconds,
        show::number(healed.rate as u64),
        show::number(after)
    ));
    watch(&traffic, &show, &mut totals);
    cluster.await_count(VICTIM, after)?;
    cluster.show_status(&show)?;

    show.act(&format!(
        "kill -9 the backup (127.0.0.1:{}): everything must be on the primaries",
        cluster.node_ports[BACKUP]
    ));
    cluster.nodes[BACKUP].kill()?;
    watch(&traffic, &show, &mut totals);
    totals.longest(traffic.counts());
    let (counts, model) = traffic.stop().ok_or("a client of the demo panicked")?;
    let checked = read_everything(cluster.port, options.items, &model, &counts, &show)?;

    let good = summary(&show, &counts, &totals, checked, &healed);
    if good && show.is_terminal() && std::io::stdin().is_terminal() {
        stay(&mut cluster, &show)?;
    }
    Ok(good)
}

fn fill(port: u16, items: u64, show: &Show) -> Result<(), Failure> {
    let mut client = Client::connect(port)?;
    let start = Instant::now();
    let bar = show.bar(items, "items");
    let mut number = 0;
    while number < items {
        let batch: Vec<(String, Item)> = (number..items.min(number + 2_000)).map(filled).collect();
        client.set_many(&batch).map_err(|error| format!("filling item {number}: {error}"))?;
        number += batch.len() as u64;
        bar.set_position(number);
    }
    bar.finish_and_clear();
    let rate = items as f64 / start.elapsed().as_secs_f64();
    show.say(&format!(
        "filled in {:.2} s, {}/s, one connection",
        start.elapsed().as_secs_f64(),
        show::number(rate as u64)
    ));
    Ok(())
}

/// Shows the traffic for one act.
fn watch(traffic: &Traffic, show: &Show, totals: &mut Totals) {
    let counts = traffic.counts();
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let (start, first) = (Instant::now(), load(&counts.operations));
    let (reads, lost) = (load(&counts.reads), load(&counts.lost));
    let spinner = show.spinner();
    let mut longest = 0;
    let line = |longest: u64| {
        let operations = load(&counts.operations) - first;
        format!(
            "{} operations/s · errors {} · hit rate {:.2} % · wrong {} · longest {:.1} ms",
            show::number((operations as f64 / start.elapsed().as_secs_f64()) as u64),
            load(&counts.errors),
            traffic::hit_rate(load(&counts.reads) - reads, load(&counts.lost) - lost),
            load(&counts.wrong),
            longest as f64 / 1_000.0,
        )
    };
    while start.elapsed() < ACT {
        thread::sleep(Duration::from_millis(100));
        longest = longest.max(totals.longest(counts));
        spinner.set_message(line(longest));
    }
    spinner.finish_and_clear();
    show.say(&line(longest));
}

/// Waits until everything is mirrored, and shows the resync of `node` meanwhile: as a bar where
/// there is a terminal, and once, in the middle, by `resilver status`.
fn heal(cluster: &Cluster, show: &Show, node: Option<usize>) -> Result<Healed, Failure> {
    let mut client = Client::connect(cluster.port)?;
    let start = Instant::now();
    let bar = show.bar(0, "items");
    // The node must first be seen: until then the status is that of before.
    let mut begun = node.is_none();
    let mut told = node != Some(VICTIM);
    loop {
        let status = Status::read(&mut client)?;
        if let Some(node) = node {
            let port = cluster.node_ports[node];
            let total = status.number(port, "items_total");
            begun |= total > 0.0 || status.state(port) != "up";
            bar.set_length(total as u64);
            bar.set_position(status.number(port, "items_copied") as u64);
            bar.set_message(status.state(port).to_owned());
            if !told && status.number(port, "items_copied") > MIDDLE * total && total > 0.0 {
                let text = processes::status(&cluster.program, cluster.port)?;
                // Its bar is there from when the source has listed its keys.
                told = text.contains("[#");
                if told {
                    bar.suspend(|| cluster.shown(show, &text));
                }
            }
        }
        if begun && status.mirrored() {
            bar.finish_and_clear();
            let of = |name| node.map_or(0.0, |node| status.number(cluster.node_ports[node], name));
            let copied = of("items_copied");
            let seconds =
                if of("elapsed_seconds") > 0.0 { of("elapsed_seconds") } else { start.elapsed().as_secs_f64() };
            return Ok(Healed { copied, seconds, rate: copied / seconds });
        }
        if start.elapsed() > HEAL_TIMEOUT {
            let mut lines: Vec<String> = status.0.iter().map(|(name, value)| format!("  {name} {value}")).collect();
            lines.sort();
            return Err(format!("not mirrored after {HEAL_TIMEOUT:?}; resync status says\n{}", lines.join("\n")).into());
        }
        thread::sleep(POLL);
    }
}

/// Reads every item and every key of the clients once more. Returns how many.
fn read_everything(port: u16, items: u64, model: &Model, counts: &Counts, show: &Show) -> Result<u64, Failure> {
    let mut known: Vec<(String, Known)> = (0..items).map(filled).map(|(key, item)| (key, Known::Is(item))).collect();
    known.extend(model.iter().map(|(key, known)| (key.clone(), known.clone())));
    let bar = show.bar(known.len() as u64, "items");
    let mut client = Client::connect(port)?;
    for batch in known.chunks(1_000) {
        let keys: Vec<String> = batch.iter().map(|(key, _)| key.clone()).collect();
        let found = client.get_many(&keys).map_err(|error| format!("reading everything: {error}"))?;
        for (key, known) in batch {
            judge(counts, found.get(key), known);
        }
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    show.say(&format!("read {} keys", show::number(known.len() as u64)));
    Ok(known.len() as u64)
}

/// Prints the table; true if all is well.
fn summary(show: &Show, counts: &Counts, totals: &Totals, checked: u64, healed: &Healed) -> bool {
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let (errors, wrong, lost) = (load(&counts.errors), load(&counts.wrong), load(&counts.lost));
    show.act("Summary");
    for (name, value) in [
        ("keys read at the end", show::number(checked)),
        ("operations under traffic", show::number(load(&counts.operations))),
        ("errors", show::number(errors)),
        ("wrong answers", show::number(wrong)),
        ("lost", show::number(lost)),
        ("hit rate", format!("{:.2} %", traffic::hit_rate(load(&counts.reads), lost))),
        ("longest operation", format!("{:.1} ms", totals.longest_us as f64 / 1_000.0)),
        ("resync", format!("{:.2} s", healed.seconds)),
        ("resync rate", format!("{} items/s", show::number(healed.rate as u64))),
    ] {
        show.say(&format!("{name:<26}{value:>18}"));
    }
    let good = errors == 0 && wrong == 0 && lost == 0;
    show.say(if good { "Nothing was lost, wrong or failed." } else { "THAT IS NOT AS PROMISED." });
    good
}

/// Leaves the cluster to whoever sits at the terminal.
fn stay(cluster: &mut Cluster, show: &Show) -> Result<(), Failure> {
    cluster.nodes[BACKUP] = processes::memcached(cluster.node_ports[BACKUP])?;
    heal(cluster, show, Some(BACKUP))?;
    show.act("Now you: the backup is back and refilled, everything runs until Ctrl-C");
    let port = cluster.port;
    show.say(&format!("telnet 127.0.0.1 {port}                                 set, get, incr …; quit leaves"));
    show.say(&format!("{} status --watch --proxy 127.0.0.1:{port}", cluster.program.display()));
    show.say(&format!("http://127.0.0.1:{}/                                    the page, in a browser", cluster.admin));
    show.say(&format!("tail -f {}", cluster.log.display()));
    for (name, (node, port)) in
        ["primary", "primary", "backup"].iter().zip(cluster.nodes.iter().zip(&cluster.node_ports))
    {
        let root = if nix::unistd::geteuid().is_root() { " -u nobody" } else { "" };
        show.say(&format!(
            "kill -9 {}; memcached -l 127.0.0.1 -p {port}{root} -d    a {name} dies and comes back",
            node.pid()
        ));
    }
    show.say(&format!("kill {}    ends the proxy", cluster.proxy.pid()));
    show.say("Ctrl-C ends everything but servers that you started yourself.");
    show::set_over();
    loop {
        thread::park();
    }
}
