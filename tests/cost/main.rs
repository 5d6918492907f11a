//! What a request costs, in figures that come out the same on every machine: allocations,
//! instructions, system calls. Times do not; those are `make bench`'s.
//! `cargo test --test cost -- --nocapture` shows the tables.

#[allow(dead_code, unused_imports)] // of the harness only what starts processes
#[path = "../it/support/mod.rs"]
mod support;

mod callgrind;
mod drive;
mod growth;
#[path = "../../src/testing/memcached/mod.rs"]
mod memcached;
mod strace;
mod whole;

use std::alloc::System;
use std::io::Write as _;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

use drive::{Drive, Request, Workload};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Requests that are counted.
const REQUESTS: usize = 10_000;

/// Requests that are counted by callgrind, fifty times slower.
const CALLGRIND_REQUESTS: usize = 1_000;

/// Requests before those: every buffer has its size then.
const WARM_UP: usize = 2_000;

/// Instructions vary a little with the compiler and the processor's vector units, and may grow by
/// this many hundredths unnoticed.
const INSTRUCTIONS_MARGIN: u64 = 10;

/// What one worker's `Core` may cost, without any I/O: allocations are **exact bounds for 10,000
/// requests**, to be tightened whenever one is saved and never loosened without a word in the
/// change; instructions are those of one request as measured last (dev profile, x86-64). A bound
/// that is broken on purpose is replaced by the figure that the failure names.
const CEILINGS: [(Workload, Ceiling); 19] = [
    (GET, Ceiling { allocations: 0, instructions: 5_139 }),
    (Workload { name: "get, mirrored", mirrored: true, ..GET }, Ceiling { allocations: 0, instructions: 5_145 }),
    (Workload { name: "get, pipelined by 16", pipeline: 16, ..GET }, Ceiling { allocations: 0, instructions: 4_363 }),
    (Workload { name: "get, 16 clients", clients: 16, ..GET }, Ceiling { allocations: 0, instructions: 4_746 }),
    (Workload { name: "get of 4 KB", value: 4096, ..GET }, Ceiling { allocations: 0, instructions: 5_229 }),
    (
        Workload { name: "get of 20 keys", request: Request::Get { keys: 20 }, ..GET },
        Ceiling { allocations: 0, instructions: 73_633 },
    ),
    (SET, Ceiling { allocations: 0, instructions: 5_537 }),
    (Workload { name: "set, mirrored", mirrored: true, ..SET }, Ceiling { allocations: 0, instructions: 7_303 }),
    (Workload { name: "set, pipelined by 16", pipeline: 16, ..SET }, Ceiling { allocations: 0, instructions: 4_855 }),
    (
        Workload { name: "set, mirrored, pipelined by 16", mirrored: true, pipeline: 16, ..SET },
        Ceiling { allocations: 0, instructions: 6_278 },
    ),
    (
        Workload { name: "set, mirrored, proved", mirrored: true, proved: true, ..SET },
        Ceiling { allocations: 20_000, instructions: 9_618 },
    ),
    (
        Workload { name: "set, mirrored, proved, pipelined by 16", mirrored: true, proved: true, pipeline: 16, ..SET },
        Ceiling { allocations: 5_000, instructions: 7_287 },
    ),
    (
        Workload { name: "set of 3 KB, mirrored", mirrored: true, value: 3072, ..SET },
        Ceiling { allocations: 0, instructions: 7_925 },
    ),
    (Workload { name: "mg", request: Request::MetaGet, ..GET }, Ceiling { allocations: 0, instructions: 6_266 }),
    (
        Workload { name: "mg, pipelined by 16", request: Request::MetaGet, pipeline: 16, ..GET },
        Ceiling { allocations: 0, instructions: 5_595 },
    ),
    (
        Workload { name: "ms, mirrored", request: Request::MetaSet, mirrored: true, ..GET },
        Ceiling { allocations: 0, instructions: 9_358 },
    ),
    (
        Workload {
            name: "ms, mirrored, pipelined by 16",
            request: Request::MetaSet,
            mirrored: true,
            pipeline: 16,
            ..GET
        },
        Ceiling { allocations: 0, instructions: 8_391 },
    ),
    (Workload { name: "set of 4 KB", value: 4096, ..SET }, Ceiling { allocations: 40_000, instructions: 7_090 }),
    (
        Workload { name: "set of 4 KB, mirrored", mirrored: true, value: 4096, ..SET },
        Ceiling { allocations: 80_000, instructions: 10_389 },
    ),
];

/// See [`CEILINGS`].
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    /// For 10,000 requests.
    allocations: usize,
    /// For one request; [`INSTRUCTIONS_MARGIN`] is added.
    instructions: u64,
}

const GET: Workload = Workload {
    name: "get",
    mirrored: false,
    proved: false,
    clients: 1,
    pipeline: 1,
    request: Request::Get { keys: 1 },
    value: 100,
};

const SET: Workload = Workload { name: "set", request: Request::Set, ..GET };

static OTHERS: RwLock<()> = RwLock::new(());

/// Nothing else in this process: what another test allocates meanwhile would be counted.
fn alone() -> RwLockWriteGuard<'static, ()> {
    OTHERS.write().unwrap_or_else(PoisonError::into_inner)
}

/// What a process of its own counts is the same whatever runs beside it.
fn beside() -> RwLockReadGuard<'static, ()> {
    OTHERS.read().unwrap_or_else(PoisonError::into_inner)
}

/// What the process allocates while `work` runs: the least of three times, since the test harness's
/// own thread may add something.
fn allocations(mut work: impl FnMut()) -> usize {
    let once = |_| {
        let region = Region::new(GLOBAL);
        work();
        let change = region.change();
        change.allocations + change.reallocations
    };
    (0..3).map(once).min().expect("three times")
}

/// What the process holds of the allocator now.
fn live_bytes() -> usize {
    let stats = GLOBAL.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

/// Past the test harness, which keeps what a test that passes prints to itself.
fn skipped(what: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}: {why}");
}

#[test]
fn allocations_of_the_data_plane() {
    let _alone = alone();
    let mut broken = Vec::new();
    println!("allocations in 10,000 requests, bound:");
    for (workload, ceiling) in CEILINGS {
        let mut drive = Drive::new(&workload);
        drive.run(WARM_UP);
        let counted = allocations(|| drive.run(REQUESTS));
        println!("  {:<32} {counted:>7} {:>7}", workload.name, ceiling.allocations);
        if counted > ceiling.allocations {
            broken.push(format!("{}: {counted} instead of {}", workload.name, ceiling.allocations));
        }
    }
    assert!(
        broken.is_empty(),
        "more allocations in {REQUESTS} requests than `CEILINGS` in tests/cost/main.rs: {broken:#?}"
    );
}

#[test]
fn instructions_of_the_data_plane() {
    if callgrind::is_child() {
        // The program under callgrind: this test again, in a process of its own.
        for (workload, _) in CEILINGS {
            let mut drive = Drive::new(&workload);
            drive.run(WARM_UP / 10);
            callgrind::boundary();
            drive.run(CALLGRIND_REQUESTS);
            callgrind::boundary();
        }
        return;
    }
    let _beside = beside();
    let counts = match callgrind::run("instructions_of_the_data_plane", CEILINGS.len()) {
        Ok(counts) => counts,
        Err(why) => return skipped("instructions per request", &why),
    };
    if !cfg!(target_arch = "x86_64") {
        skipped("the bounds of instructions per request", "they were measured on x86-64");
    }
    let mut broken = Vec::new();
    println!("instructions of a request, as measured last:");
    for ((workload, ceiling), count) in CEILINGS.iter().zip(counts) {
        let each = count / CALLGRIND_REQUESTS as u64;
        println!("  {:<32} {each:>7} {:>7}", workload.name, ceiling.instructions);
        if cfg!(target_arch = "x86_64") && each * 100 > ceiling.instructions * (100 + INSTRUCTIONS_MARGIN) {
            broken.push(format!("{}: {each} instead of {}", workload.name, ceiling.instructions));
        }
    }
    assert!(
        broken.is_empty(),
        "a request takes over {INSTRUCTIONS_MARGIN} % more instructions than `CEILINGS` in tests/cost/main.rs say (if that is meant, or \
         comes of another compiler, write the new figures there): {broken:#?}"
    );
}
