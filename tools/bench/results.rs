//! What was measured, and its form as JSON. docs/performance.md tells what each field means;
//! `SCHEMA` grows if one changes its meaning.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::load::Seen;
use crate::machine::Machine;
use crate::systems::{Kind, Spec, System};

/// Version of the JSON.
pub(crate) const SCHEMA: u32 = 2;

/// Everything.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) schema: u32,
    pub(crate) machine: Machine,
    /// What requests cost; one for each kind of work and system.
    #[serde(default)]
    pub(crate) rows: Vec<Row>,
    /// What clients see of a server's failure; one for each system and fault.
    #[serde(default)]
    pub(crate) fail_over: Vec<FailOver>,
    /// Cost by the number of servers, threads and clients.
    #[serde(default)]
    pub(crate) scale: Vec<Scale>,
    /// The same work from another load generator.
    #[serde(default)]
    pub(crate) cross_check: Vec<CrossCheck>,
}

/// Figures of one run, or their median over runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) requests_per_second: f64,
    /// Of the process measured, user and system.
    pub(crate) cpu_us_per_request: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// Of what was sent as gets alone; 0 where nothing was.
    #[serde(default)]
    pub(crate) p99_reads_us: f64,
    /// The same of sets.
    #[serde(default)]
    pub(crate) p99_writes_us: f64,
    pub(crate) memory_mib: f64,
    /// Share of one processor that the load generator used.
    pub(crate) generator_busy: f64,
}

/// One system at one kind of work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) row: String,
    pub(crate) system: String,
    pub(crate) kind: Kind,
    pub(crate) copies: usize,
    /// Sets only: then a system with two copies is compared with such systems alone.
    pub(crate) writes_only: bool,
    /// When its run began, unix seconds.
    #[serde(default)]
    pub(crate) begun: u64,
    pub(crate) rounds: Vec<Cell>,
    pub(crate) median: Cell,
    pub(crate) least: Cell,
    pub(crate) most: Cell,
}

/// One system, one fault.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct FailOver {
    pub(crate) system: String,
    pub(crate) kind: Kind,
    pub(crate) copies: usize,
    /// `none`, `killed`, `paused`.
    pub(crate) fault: String,
    pub(crate) rounds: Vec<FaultRound>,
}

/// What the clients of one round saw.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct FaultRound {
    pub(crate) requests: u64,
    /// The longest time that any request took.
    pub(crate) longest_ms: f64,
    /// Requests answered `SERVER_ERROR`, or never.
    pub(crate) errors: u64,
    /// Keys that were stored and could not be read.
    pub(crate) misses: u64,
    /// Connections that the proxy closed.
    pub(crate) closed: u64,
}

/// One point of a scale.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Scale {
    /// What grows: `nodes`, `threads`, `clients`.
    pub(crate) scale: String,
    pub(crate) count: usize,
    pub(crate) system: String,
    pub(crate) kind: Kind,
    pub(crate) copies: usize,
    /// The kind of work.
    pub(crate) row: String,
    pub(crate) cell: Cell,
    /// Processor time of the process in a second without any client.
    pub(crate) alone_cpu_us_per_second: f64,
    /// Only of `clients`.
    pub(crate) clients: Option<ClientCost>,
}

/// What clients cost.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct ClientCost {
    /// Resident bytes of each client that has connected and sent nothing.
    pub(crate) idle_bytes: f64,
    /// The same once each has had an answer.
    pub(crate) used_bytes: f64,
    /// The same while all wait for answers.
    pub(crate) busy_bytes: f64,
    /// As `alone_cpu_us_per_second`, while so many clients do nothing.
    pub(crate) idle_cpu_us_per_second: f64,
}

/// A run of the other load generator, and ours beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CrossCheck {
    pub(crate) system: String,
    pub(crate) rounds: usize,
    pub(crate) ours_requests_per_second: f64,
    pub(crate) theirs_requests_per_second: f64,
    pub(crate) ours_cpu_us_per_request: f64,
    pub(crate) theirs_cpu_us_per_request: f64,
}

type Field = (fn(&Cell) -> f64, fn(&mut Cell) -> &mut f64);

const FIELDS: [Field; 9] = [
    (|c| c.requests_per_second, |c| &mut c.requests_per_second),
    (|c| c.cpu_us_per_request, |c| &mut c.cpu_us_per_request),
    (|c| c.p50_us, |c| &mut c.p50_us),
    (|c| c.p99_us, |c| &mut c.p99_us),
    (|c| c.p999_us, |c| &mut c.p999_us),
    (|c| c.p99_reads_us, |c| &mut c.p99_reads_us),
    (|c| c.p99_writes_us, |c| &mut c.p99_writes_us),
    (|c| c.memory_mib, |c| &mut c.memory_mib),
    (|c| c.generator_busy, |c| &mut c.generator_busy),
];

impl Cell {
    pub(crate) fn of(seen: &Seen) -> Cell {
        let requests = seen.requests.max(1) as f64;
        Cell {
            requests_per_second: seen.requests as f64 / seen.elapsed.as_secs_f64(),
            cpu_us_per_request: micros(seen.cpu) / requests,
            p50_us: seen.latency.permille(500),
            p99_us: seen.latency.permille(990),
            p999_us: seen.latency.permille(999),
            p99_reads_us: seen.reads.permille(990),
            p99_writes_us: seen.writes.permille(990),
            memory_mib: seen.memory as f64 / f64::from(1 << 20),
            generator_busy: seen.own_cpu.as_secs_f64() / seen.elapsed.as_secs_f64(),
        }
    }

    /// Each figure by itself: the one at this share of its sorted values.
    fn at(cells: &[Cell], share: f64) -> Option<Cell> {
        let mut out = *cells.first()?;
        for (get, set) in FIELDS {
            let values = cells.iter().map(get).collect();
            *set(&mut out) = quantile(values, share);
        }
        Some(out)
    }

    pub(crate) fn median(cells: &[Cell]) -> Option<Cell> {
        Cell::at(cells, 0.5)
    }
}

/// A duration, microseconds.
pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// The value at this share of the sorted values, between two of them in proportion; not a number if
/// there is none.
pub(crate) fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = share * values.len().saturating_sub(1) as f64;
    let at = |place: f64| values.get(place as usize).copied().unwrap_or(f64::NAN);
    let (below, above) = (at(place.floor()), at(place.ceil()));
    below + (above - below) * place.fract()
}

impl Row {
    /// Nothing if there were no rounds.
    pub(crate) fn new(row: &str, writes_only: bool, spec: &Spec, begun: u64, cells: &[Cell]) -> Option<Row> {
        Some(Row {
            row: row.to_owned(),
            system: spec.name.clone(),
            kind: spec.kind,
            copies: spec.copies,
            writes_only,
            begun,
            rounds: cells.to_vec(),
            median: Cell::at(cells, 0.5)?,
            least: Cell::at(cells, 0.0)?,
            most: Cell::at(cells, 1.0)?,
        })
    }

    /// A figure in proportion to another system's: the median over the rounds of each round's own
    /// ratio. What the machine did meanwhile hit both alike then, for they ran seconds apart. Of
    /// rows from different runs only the medians are left to compare.
    pub(crate) fn ratio(&self, other: &Row, of: fn(&Cell) -> f64) -> f64 {
        if (self.begun, self.rounds.len()) != (other.begun, other.rounds.len()) {
            return of(&self.median) / of(&other.median);
        }
        quantile(self.rounds.iter().zip(&other.rounds).map(|(one, other)| of(one) / of(other)).collect(), 0.5)
    }
}

impl Scale {
    pub(crate) fn new(scale: &str, count: usize, system: &System, row: &str, cell: Cell, alone: f64) -> Scale {
        let Spec { name, kind, copies, .. } = &system.spec;
        Scale {
            scale: scale.to_owned(),
            count,
            system: name.clone(),
            kind: *kind,
            copies: *copies,
            row: row.to_owned(),
            cell,
            alone_cpu_us_per_second: alone,
            clients: None,
        }
    }
}

impl Results {
    pub(crate) fn new() -> Results {
        Results {
            schema: SCHEMA,
            machine: Machine::look(),
            rows: Vec::new(),
            fail_over: Vec::new(),
            scale: Vec::new(),
            cross_check: Vec::new(),
        }
    }

    pub(crate) fn read(path: &Path) -> io::Result<Results> {
        let found: serde_json::Value = serde_json::from_str(&fs::read_to_string(path)?)?;
        let other = &found["schema"];
        if *other == SCHEMA {
            return Ok(serde_json::from_value(found)?);
        }
        Err(io::Error::other(format!("{} has schema {other}, this program {SCHEMA}", path.display())))
    }

    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, serde_json::to_string_pretty(self)? + "\n")
    }

    /// Takes over what `new` has measured; the rest stays. Rows keep their places.
    pub(crate) fn merge(&mut self, new: Results) {
        replace(&mut self.rows, new.rows, |r| (r.row.clone(), r.system.clone()));
        replace(&mut self.fail_over, new.fail_over, |f| (f.fault.clone(), f.system.clone()));
        replace(&mut self.scale, new.scale, |s| (s.scale.clone(), s.count, s.row.clone(), s.system.clone()));
        replace(&mut self.cross_check, new.cross_check, |c| c.system.clone());
        self.machine.take_over(new.machine);
    }
}

fn replace<T, K: PartialEq>(all: &mut Vec<T>, new: Vec<T>, key: impl Fn(&T) -> K) {
    for item in new {
        match all.iter_mut().find(|old| key(old) == key(&item)) {
            Some(old) => *old = item,
            None => all.push(item),
        }
    }
}
