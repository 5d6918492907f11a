//! What processes use, from the kernel's accounting.

use std::fs;
use std::io;
use std::time::Duration;

/// What a process has used and uses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// On a processor, all threads, user and system.
    pub(crate) cpu: Duration,
    /// Resident, bytes.
    pub(crate) memory: u64,
}

/// Of one process.
pub(crate) fn of(pid: u32) -> io::Result<Usage> {
    let process = format!("/proc/{pid}");
    let mut cpu = Duration::ZERO;
    for thread in fs::read_dir(format!("{process}/task"))? {
        // A thread that has just ended took its count with it; none does here.
        cpu += on_processor(&fs::read_to_string(thread?.path().join("schedstat"))?);
    }
    let status = fs::read_to_string(format!("{process}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|rest| rest.split_whitespace().next()).and_then(|word| word.parse::<u64>().ok());
    Ok(Usage { cpu, memory: kib.unwrap_or(0) * 1024 })
}

/// Of the calling thread.
pub(crate) fn own_cpu() -> io::Result<Duration> {
    Ok(on_processor(&fs::read_to_string("/proc/thread-self/schedstat")?))
}

fn on_processor(schedstat: &str) -> Duration {
    Duration::from_nanos(schedstat.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0))
}
