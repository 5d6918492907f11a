//! What reads feel, without a resync and with one.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::foreground::Foreground;
use super::stand::{ProxyBinary, Stand};
use super::{Args, Figures, LAYOUTS, bare};
use crate::histogram::Histogram;

/// How often the proxy is asked how far it is: that disturbs clients too, so it is done with and
/// without a resync.
const POLL: Duration = Duration::from_millis(100);
/// What latencies count for.
const PARTS: u8 = 5;
const NOTHING: u8 = 0;
const WITHOUT: u8 = 1;
const BARE_LISTING: u8 = 2;
const LISTING: u8 = 3;
const COPYING: u8 = 4;
/// What a quiet time is.
const QUIET: Duration = Duration::from_secs(20);

/// What clients did just before the resync.
#[derive(Clone, Copy, PartialEq)]
enum Before {
    /// The same as during it.
    Reads,
    /// One of them wrote half of the items, as fast as it could.
    BulkLoad,
    /// Nothing at all.
    Quiet,
}

/// One row of the table.
struct Way {
    name: &'static str,
    flags: Vec<String>,
    before: Before,
}

fn ways(throttle: u32) -> Vec<Way> {
    let off = ["--resync-latency".to_owned(), "off".to_owned()];
    let throttled = off.iter().cloned().chain(["--resync-rate".to_owned(), throttle.to_string()]).collect();
    let yielding = |name, before| Way { name, flags: Vec::new(), before };
    vec![
        yielding("yielding (default)", Before::Reads),
        yielding("yielding, after a bulk load", Before::BulkLoad),
        yielding("yielding, after 20 quiet seconds", Before::Quiet),
        Way { name: "at full speed, not yielding", flags: off.to_vec(), before: Before::Reads },
        Way { name: "throttled, not yielding", flags: throttled, before: Before::Reads },
    ]
}

/// As often as there are rounds.
pub(super) fn watch(args: &Args, figures: &mut Figures) -> io::Result<()> {
    let wanted = |way: &Way| args.way.as_ref().is_none_or(|part| way.name.contains(part.as_str()));
    for way in ways(args.throttle).into_iter().filter(wanted) {
        let flags: Vec<String> = args.flags.iter().chain(&way.flags).cloned().collect();
        let proxy = ProxyBinary { path: &args.resilver, log: args.log.as_deref(), flags: &flags };
        let mut stand = Stand::start(proxy, LAYOUTS[0].0, 0..args.items, 100)?;
        for round in 0..args.rounds {
            figures.add(&format!("reads: {}", way.name), &resync(args, &mut stand, way.before)?.cells());
            stand.lose_target()?;
            eprintln!("{}: round {} of {} done", way.name, round + 1, args.rounds);
        }
    }
    Ok(())
}

/// One resync under reads.
struct Watched {
    /// By part.
    seen: Vec<Histogram>,
    listing: Duration,
    /// NaN: it was not over in time.
    mirrored_after: f64,
    items_per_s: f64,
    percent: f64,
}

fn resync(args: &Args, stand: &mut Stand, before: Before) -> io::Result<Watched> {
    let mut clients = Foreground::begin(stand.proxy_port, args.reads, args.items, PARTS)?;
    thread::sleep(Duration::from_millis(300));
    clients.part(WITHOUT);
    let begun = Instant::now();
    while begun.elapsed() < args.time {
        stand.is_done()?;
        thread::sleep(POLL);
    }
    // What of it no proxy can help: the server lists its keys for somebody who only takes them.
    clients.part(BARE_LISTING);
    bare::list_all(stand.sources[0].port)?;
    clients.part(NOTHING);
    let mut earlier = None;
    match before {
        Before::Reads => {}
        Before::BulkLoad => bare::load(stand.proxy_port, args.items / 2, 100)?,
        Before::Quiet => {
            earlier = Some(clients.end()?);
            thread::sleep(QUIET);
            clients = Foreground::begin(stand.proxy_port, args.reads, args.items, PARTS)?;
        }
    }
    let begun = Instant::now();
    stand.return_target()?;
    clients.part(LISTING);
    // The list of keys is whole once all are counted.
    while begun.elapsed() < args.most && stand.number("items_total")? < f64::from(args.items) && !stand.is_done()? {
        thread::sleep(POLL);
    }
    let (copied, listing) = (stand.number("items_copied")?, begun.elapsed());
    clients.part(COPYING);
    let mut percent = Vec::new();
    let mut done = false;
    while begun.elapsed() < args.most && !done {
        thread::sleep(POLL);
        percent.push(stand.status("yield:percent")?.parse().unwrap_or(f64::NAN));
        done = stand.is_done()?;
    }
    clients.part(NOTHING);
    let seconds = begun.elapsed().as_secs_f64();
    let items_per_s = (stand.number("items_copied")? - copied) / (seconds - listing.as_secs_f64());
    let mut seen = clients.end()?;
    for (sum, one) in seen.iter_mut().zip(earlier.iter().flatten()) {
        sum.merge(one);
    }
    let percent = percent.iter().sum::<f64>() / percent.len() as f64;
    Ok(Watched { seen, listing, mirrored_after: if done { seconds } else { f64::NAN }, items_per_s, percent })
}

impl Watched {
    fn cells(&self) -> [(&'static str, f64); 11] {
        let of = |part: u8, permille| self.seen[usize::from(part)].permille(permille);
        let without = of(WITHOUT, 990);
        [
            ("p50 µs without", of(WITHOUT, 500)),
            ("p99 µs without", without),
            ("p99 µs while a bare client lists", of(BARE_LISTING, 990)),
            ("listing s", self.listing.as_secs_f64()),
            ("p99 µs while listing", of(LISTING, 990)),
            ("p50 µs while copying", of(COPYING, 500)),
            ("p99 µs while copying", of(COPYING, 990)),
            ("added ms", (of(COPYING, 990) - without) / 1e3),
            ("items/s", self.items_per_s),
            ("of the time %", self.percent),
            ("mirrored after s", self.mirrored_after),
        ]
    }
}
