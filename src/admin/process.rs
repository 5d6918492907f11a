//! What Linux tells of this process; zeroes elsewhere.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};

use crate::report::metrics::Process;

/// What `/proc` counts processor time in, on every architecture (`USER_HZ`).
const TICKS_A_SECOND: f64 = 100.0;
/// Linux's on x86-64; elsewhere `statm` may count larger ones.
const PAGE: u64 = 4096;

pub(super) fn look() -> Process {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    // The program's name may hold blanks and brackets; the fields behind it do not.
    let stat = read("stat");
    let fields: Vec<u64> = (stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace())
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // The first one here is the third of proc(5).
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
    let resident = read("statm").split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    Process {
        cpu_seconds: (field(14) + field(15)) as f64 / TICKS_A_SECOND,
        resident_bytes: resident * PAGE,
        open_files: open_files(),
        open_files_max: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
        threads: field(20),
    }
}

/// Since Linux 6.2 the folder says how many there are; to list 50,000 takes 20 ms.
fn open_files() -> u64 {
    const FOLDER: &str = "/proc/self/fd";
    match fs::metadata(FOLDER).map_or(0, |folder| folder.len()) {
        0 => fs::read_dir(FOLDER).map_or(0, |files| files.count() as u64),
        count => count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_tells_of_this_process() {
        let process = look();
        assert!(process.resident_bytes > 1 << 20 && process.threads > 0, "{process:?}");
        assert!((4..process.open_files_max).contains(&process.open_files), "{process:?}");
    }
}
