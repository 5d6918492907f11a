//! What Linux tells of this process (zeroes elsewhere), and what its log has lost.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

use crate::daemon::lost_log_lines;
use crate::report::metrics::Process;

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
    // 4,096 bytes on x86-64; up to 65,536 on other machines.
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().map_or(0, |bytes| bytes as u64);
    Process {
        resident_bytes: resident * page,
        open_files: open_files(),
        open_files_max: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
        threads: field(20),
        log_lines_lost: lost_log_lines(),
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
        let held: Vec<_> = (0..20).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let with_them = look();
        let count = held.len() as u64;
        assert!((count..process.open_files_max).contains(&with_them.open_files), "{process:?}, then {with_them:?}");
    }
}
