//! What grows with servers, threads and clients. Each point has fresh processes, for memory once
//! taken is seldom given back.

use std::error::Error;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::load::{self, Load, Work};
use crate::results::{Cell, ClientCost, Scale, micros};
use crate::rows::{self, BASE, BASE_NAME};
use crate::systems::{Kind, Layout, Ports, Program, Spec, System};
use crate::{Args, WARM};

/// Servers in all; half of them backups.
const NODES: [usize; 4] = [2, 8, 32, 64];
const THREADS: [usize; 2] = [1, 2];
const CLIENTS: [usize; 4] = [10, 100, 1_000, 10_000];
/// How long idle clients are watched.
const IDLE: Duration = Duration::from_secs(1);
/// Rounds of a point; the differences looked for are large.
const ROUNDS_MAX: usize = 5;
/// What connecting sets off is over by then.
const SETTLE: Duration = Duration::from_millis(300);
/// Files that a process has open besides its clients.
const OTHER_FILES: u64 = 200;

/// Measures all of it.
pub(crate) fn measure(args: &Args, specs: &[Spec], files: &Path) -> Result<Vec<Scale>, Box<dyn Error>> {
    let mut all = Vec::new();
    let mut ports = Ports::new();
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    if wanted("nodes") {
        all.extend(nodes(args, specs, &mut ports, files)?);
    }
    if wanted("threads") {
        all.extend(threads(args, specs, &mut ports, files)?);
    }
    for count in CLIENTS {
        if wanted(&format!("{count} clients")) {
            all.extend(clients(args, count, specs, &mut ports, files)?);
        }
    }
    Ok(all)
}

fn median(args: &Args, system: &System, name: &str, work: &Work) -> Result<Cell, Box<dyn Error>> {
    load::fill(system.addr, work)?;
    let rounds = args.rounds.min(ROUNDS_MAX);
    let cells = (0..rounds).map(|_| rows::cell(system, name, work, args)).collect::<Result<Vec<_>, _>>()?;
    Cell::median(&cells).ok_or_else(|| "no rounds".into())
}

/// Microseconds of a processor in a second.
fn idle_cpu(system: &System) -> std::io::Result<f64> {
    let (begun, before) = (Instant::now(), system.usage()?);
    thread::sleep(IDLE);
    Ok(micros(system.usage()?.cpu.saturating_sub(before.cpu)) / begun.elapsed().as_secs_f64())
}

fn nodes(args: &Args, specs: &[Spec], ports: &mut Ports, files: &Path) -> Result<Vec<Scale>, Box<dyn Error>> {
    let mut all = Vec::new();
    for count in NODES {
        for spec in specs.iter().filter(|spec| spec.kind != Kind::Server) {
            let primaries = count / spec.copies;
            let layout = Layout { primaries, small_servers: true, ..Layout::default() };
            let system = spec.start(&layout, ports, files)?;
            thread::sleep(SETTLE);
            let alone = idle_cpu(&system)?;
            let cell = median(args, &system, BASE_NAME, &BASE)?;
            all.push(Scale::new("nodes", count, &system, BASE_NAME, cell, alone));
        }
    }
    eprintln!("scale: nodes done");
    Ok(all)
}

fn threads(args: &Args, specs: &[Spec], ports: &mut Ports, files: &Path) -> Result<Vec<Scale>, Box<dyn Error>> {
    let mut all = Vec::new();
    let pipelined = Work { pipeline: 16, ..BASE };
    for count in THREADS {
        // twemproxy has one.
        for spec in specs.iter().filter(|spec| spec.kind != Kind::Server && spec.name != "twemproxy") {
            let layout = Layout { threads: count, ..Layout::default() };
            let system = spec.start(&layout, ports, files)?;
            thread::sleep(SETTLE);
            let alone = idle_cpu(&system)?;
            for (name, work) in [(BASE_NAME, &BASE), ("16 requests pipelined", &pipelined)] {
                let cell = median(args, &system, name, work)?;
                all.push(Scale::new("threads", count, &system, name, cell, alone));
            }
        }
    }
    eprintln!("scale: threads done");
    Ok(all)
}

fn clients(
    args: &Args,
    count: usize,
    specs: &[Spec],
    ports: &mut Ports,
    files: &Path,
) -> Result<Vec<Scale>, Box<dyn Error>> {
    let needed = count as u64 + OTHER_FILES;
    if args.open_files < needed {
        eprintln!("scale: {count} clients need {needed} open files; {} are allowed here", args.open_files);
        return Ok(Vec::new());
    }
    let work = Work { connections: count, ..BASE };
    let mut all = Vec::new();
    // (What the floor would show here is the kernel's.)
    for spec in specs.iter().filter(|spec| !matches!(spec.program, Program::Floor)) {
        let layout = Layout { clients: count, ..Layout::default() };
        let system = spec.start(&layout, ports, files)?;
        load::fill(system.addr, &work)?;
        thread::sleep(SETTLE);
        let alone = idle_cpu(&system)?;
        let base = system.usage()?.memory;
        let each = |memory: u64| memory.saturating_sub(base) as f64 / count as f64;
        let mut load = Load::connect(system.addr, &work)?;
        thread::sleep(SETTLE);
        let idle = idle_cpu(&system)?;
        let connected = system.usage()?.memory;
        load.touch_all()?;
        let used = system.usage()?.memory;
        let seen = load.run(WARM, args.time, &|| system.usage())?;
        let mut point = Scale::new("clients", count, &system, BASE_NAME, Cell::of(&seen), alone);
        point.clients = Some(ClientCost {
            idle_bytes: each(connected),
            used_bytes: each(used),
            busy_bytes: each(seen.memory),
            idle_cpu_us_per_second: idle,
        });
        all.push(point);
    }
    eprintln!("scale: {count} clients done");
    Ok(all)
}
