//! What clients see when a primary fails: the longest that any request took, errors, and keys that
//! were lost to them.
//!
//! Every run has fresh processes. The requests come at a rate that the machine bears easily, so
//! that what is late is late because of the fault. The server stays dead, or stopped, to the end of
//! the run.

use std::error::Error;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::load::{self, Load, Work};
use crate::results::{FailOver, FaultRound};
use crate::rows::BASE;
use crate::systems::{Kind, Layout, Ports, Spec};
use crate::{Args, WARM};

/// Requests a second.
pub(crate) const RATE: u32 = 5_000;
/// From the first request to the fault.
const BEFORE: Duration = Duration::from_millis(500);
/// From the fault to the end.
pub(crate) const AFTER: Duration = Duration::from_millis(2500);

const FAULTS: [(&str, Option<Signal>); 3] =
    [("none", None), ("killed", Some(Signal::SIGKILL)), ("paused", Some(Signal::SIGSTOP))];

/// Which systems can be put through it: proxies, and each with as many copies as it can keep.
fn concerned(specs: &[Spec]) -> Vec<&Spec> {
    let twice = |a: &Spec| specs.iter().any(|b| b.name == format!("{}, 2 copies", a.name));
    specs.iter().filter(|a| a.kind != Kind::Server && !twice(a)).collect()
}

/// Measures all of them.
pub(crate) fn measure(args: &Args, specs: &[Spec], files: &Path) -> Result<Vec<FailOver>, Box<dyn Error>> {
    let work = Work { rate: Some(RATE), faults_expected: true, ..BASE };
    let mut ports = Ports::new();
    let mut results: Vec<FailOver> = Vec::new();
    for (fault, _) in FAULTS {
        for Spec { name, kind, copies, .. } in concerned(specs) {
            let (system, fault) = (name.clone(), fault.to_owned());
            results.push(FailOver { system, kind: *kind, copies: *copies, fault, rounds: Vec::new() });
        }
    }
    for round in 0..args.fault_rounds {
        let mut results = results.iter_mut();
        for (fault, signal) in FAULTS {
            for (spec, result) in concerned(specs).into_iter().zip(&mut results) {
                let seen = one(spec, signal, &work, &mut ports, files)
                    .map_err(|error| format!("{}, {fault}: {error}", spec.name))?;
                result.rounds.push(seen);
            }
        }
        eprintln!("fail-over: round {} of {} done", round + 1, args.fault_rounds);
    }
    Ok(results)
}

fn one(
    spec: &Spec,
    signal: Option<Signal>,
    work: &Work,
    ports: &mut Ports,
    files: &Path,
) -> std::io::Result<FaultRound> {
    let layout = Layout { fail_over: true, ..Layout::default() };
    let system = spec.start(&layout, ports, files)?;
    load::fill(system.addr, work)?;
    let mut load = Load::connect(system.addr, work)?;
    let victim = system.servers.first().map(|server| Pid::from_raw(server.pid() as i32));
    let seen = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(WARM + BEFORE);
            // It may be gone only if it failed by itself, and then the figures say so.
            let _ = victim.zip(signal).map(|(victim, signal)| kill(victim, signal));
        });
        load.run(WARM, BEFORE + AFTER, &|| system.usage())
    })?;
    Ok(FaultRound {
        requests: seen.requests,
        longest_ms: seen.longest.as_secs_f64() * 1e3,
        errors: seen.errors,
        misses: seen.misses,
        closed: seen.closed,
    })
}
