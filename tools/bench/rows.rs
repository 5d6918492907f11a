//! What requests cost: every system at every kind of work.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::load::{self, Load, Work};
use crate::results::{Cell, Row};
use crate::systems::{Layout, Ports, Spec, System};
use crate::{Args, WARM};

/// Different keys; all fit into each server.
const KEYS: u32 = 10_000;

/// The base of all kinds.
pub(crate) const BASE: Work = Work {
    connections: 32,
    pipeline: 1,
    sets_percent: 10,
    keys_per_get: 1,
    value_len: 100,
    meta: false,
    keys: KEYS,
    rate: None,
    faults_expected: false,
};

/// The name of `BASE`.
pub(crate) const BASE_NAME: &str = "32 clients, get:set 9:1, 100 B";

/// Kinds of work by name; what the name does not say is as in the first.
fn kinds() -> Vec<(&'static str, Work)> {
    let row = |name, change: fn(&mut Work)| {
        let mut work = BASE;
        change(&mut work);
        (name, work)
    };
    vec![
        row(BASE_NAME, |_| {}),
        row("the same at 20,000 requests/s", |w| w.rate = Some(20_000)),
        row("16 requests pipelined", |w| w.pipeline = 16),
        row("mg:ms 9:1", |w| w.meta = true),
        row("mg:ms 9:1, 16 pipelined", |w| (w.meta, w.pipeline) = (true, 16)),
        row("400 clients", |w| w.connections = 400),
        row("1,000 clients", |w| w.connections = 1000),
        row("writes only, 16 pipelined", |w| (w.pipeline, w.sets_percent) = (16, 100)),
        row("gets of 20 keys", |w| (w.keys_per_get, w.sets_percent) = (20, 0)),
        row("4 KB values", |w| w.value_len = 4096),
        row("10 KB values", |w| w.value_len = 10_240),
    ]
}

/// Measures; each round begins with another system, so that whatever one leaves behind for the next
/// hits all alike.
pub(crate) fn measure(args: &Args, specs: &[Spec], files: &Path) -> Result<Vec<Row>, Box<dyn Error>> {
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let kinds: Vec<_> = kinds().into_iter().filter(|(name, _)| wanted(name)).collect();
    if kinds.is_empty() {
        return Ok(Vec::new());
    }
    let mut ports = Ports::new();
    let layout = Layout { threads: args.threads, ..Layout::default() };
    let systems = specs.iter().map(|spec| spec.start(&layout, &mut ports, files)).collect::<Result<Vec<_>, _>>()?;
    let mut filled = HashMap::new();
    let mut cells: HashMap<(usize, usize), Vec<Cell>> = HashMap::new();
    let begun = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for round in 0..args.rounds {
        for (k, (name, work)) in kinds.iter().enumerate() {
            for turn in 0..systems.len() {
                let s = (turn + round) % systems.len();
                if work.meta && !systems[s].spec.speaks_meta() {
                    continue;
                }
                // What is stored already is stored again only in another size.
                if filled.insert(s, work.value_len) != Some(work.value_len) {
                    load::fill(systems[s].addr, work)?;
                }
                cells.entry((k, s)).or_default().push(cell(&systems[s], name, work, args)?);
            }
        }
        eprintln!("round {} of {} done", round + 1, args.rounds);
    }
    let mut rows = Vec::new();
    for (k, (name, work)) in kinds.iter().enumerate() {
        for (s, spec) in specs.iter().enumerate() {
            let cells = cells.get(&(k, s)).map_or(&[][..], Vec::as_slice);
            rows.extend(Row::new(name, work.sets_percent == 100, spec, begun, cells));
        }
    }
    Ok(rows)
}

/// One run.
pub(crate) fn cell(system: &System, name: &str, work: &Work, args: &Args) -> Result<Cell, Box<dyn Error>> {
    let run = || -> std::io::Result<_> { Load::connect(system.addr, work)?.run(WARM, args.time, &|| system.usage()) };
    let seen = run().map_err(|error| format!("{}, {name}: {error}", system.spec.name))?;
    if seen.misses > 0 {
        return Err(format!("{}, {name}: {} keys were not there", system.spec.name, seen.misses).into());
    }
    Ok(Cell::of(&seen))
}
