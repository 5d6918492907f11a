//! The same work from `memcaslap` of libmemcached-tools: is our own load generator right, and light
//! enough?

use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::results::{CrossCheck, micros, quantile};
use crate::rows::{self, BASE, BASE_NAME};
use crate::systems::{Layout, Ports, Spec, System};
use crate::{Args, load};

/// Its description of `BASE`: lengths of keys and values with their shares, then 0 for set and 1
/// for get with theirs.
const CONFIG: &str = "key\n20 20 1\nvalue\n100 100 1\ncmd\n0 0.1\n1 0.9\n";

/// Runs both against every system, in turn.
pub(crate) fn measure(args: &Args, specs: &[Spec], files: &Path) -> Result<Vec<CrossCheck>, Box<dyn Error>> {
    let config = files.join("memcaslap.cfg");
    fs::write(&config, CONFIG)?;
    let mut ports = Ports::new();
    let layout = Layout { threads: args.threads, ..Layout::default() };
    let systems = specs.iter().map(|spec| spec.start(&layout, &mut ports, files)).collect::<Result<Vec<_>, _>>()?;
    let mut ours = vec![Vec::new(); systems.len()];
    let mut theirs = vec![Vec::new(); systems.len()];
    for round in 0..args.rounds {
        for turn in 0..systems.len() {
            let s = (turn + round) % systems.len();
            load::fill(systems[s].addr, &BASE)?;
            let cell = rows::cell(&systems[s], BASE_NAME, &BASE, args)?;
            ours[s].push((cell.requests_per_second, cell.cpu_us_per_request));
            theirs[s].push(memcaslap(&systems[s], &config, args.time.as_secs().max(1))?);
        }
    }
    let median = |runs: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| quantile(runs.iter().map(of).collect(), 0.5);
    let checks = specs.iter().zip(ours).zip(theirs).map(|((spec, ours), theirs)| CrossCheck {
        system: spec.name.clone(),
        rounds: args.rounds,
        ours_requests_per_second: median(&ours, |run| run.0),
        theirs_requests_per_second: median(&theirs, |run| run.0),
        ours_cpu_us_per_request: median(&ours, |run| run.1),
        theirs_cpu_us_per_request: median(&theirs, |run| run.1),
    });
    Ok(checks.collect())
}

/// Requests a second, and the system's µs for each, over its whole run.
fn memcaslap(system: &System, config: &Path, seconds: u64) -> io::Result<(f64, f64)> {
    let mut command = Command::new("memcaslap");
    command.arg("-s").arg(system.addr.to_string()).arg("-F").arg(config);
    command.args(["-T", "1", "-c", &BASE.connections.to_string(), "-w", "1k", "-o", "1", "-t", &format!("{seconds}s")]);
    let before = system.usage()?;
    let output = command
        .output()
        .map_err(|error| io::Error::other(format!("memcaslap of libmemcached-tools cannot be run: {error}")))?;
    let after = system.usage()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // "Run time: 3.0s Ops: 662730 TPS: 220577 Net_rate: 34.6M/s"
    let number = |name: &str| {
        let rest = text.split_once(name)?.1;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    };
    let (operations, rate) = number("Ops:")
        .zip(number("TPS:"))
        .ok_or_else(|| io::Error::other(format!("memcaslap said nothing that is understood: {text}")))?;
    Ok((rate, micros(after.cpu - before.cpu) / operations))
}
