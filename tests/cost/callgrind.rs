//! Instructions, counted by valgrind's callgrind in a process of their own: this test binary, run
//! again. Counted is only what happens inside the functions named `counted_*`.

use std::fs;
use std::hint::black_box;
use std::process::Command;

/// Set in the process under callgrind.
const CHILD: &str = "RESILVER_COST_CALLGRIND";

/// Whether this is the process under callgrind.
pub fn is_child() -> bool {
    std::env::var(CHILD).is_ok()
}

/// Where callgrind writes down what it has counted, and begins anew.
#[inline(never)]
pub fn boundary() {
    black_box(0);
}

/// Runs the test of this name again. It calls [`boundary`] before and after each of this many
/// workloads; returns the instructions of each.
///
/// # Errors
///
/// Why nothing could be counted here.
pub fn run(test: &str, workloads: usize) -> Result<Vec<u64>, String> {
    if !Command::new("valgrind").arg("--version").output().is_ok_and(|o| o.status.success()) {
        return Err("valgrind is not installed (scripts/need-meters)".to_string());
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*counted_*", "--dump-before=*callgrind*boundary*"])
        .arg(format!("--callgrind-out-file={}/out", folder.path().display()))
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "yes")
        .output()
        .expect("run valgrind");
    let said = String::from_utf8_lossy(&output.stderr);
    // Too old for the processor, or for the system's libraries.
    if !output.status.success() && ["unhandled instruction", "Fatal error at startup"].iter().any(|w| said.contains(w))
    {
        return Err(format!("valgrind cannot run programs here: {said}"));
    }
    assert!(output.status.success(), "under callgrind: {}\n{said}", String::from_utf8_lossy(&output.stdout));
    // Part 1 is what was before the first workload, part 2 the first workload, part 3 what was
    // between it and the second.
    let count = |workload: usize| {
        let path = folder.path().join(format!("out.{}", 2 * (workload + 1)));
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}\n{said}", path.display()));
        let total = text.lines().find_map(|line| line.strip_prefix("totals: ").or(line.strip_prefix("summary: ")));
        let count: u64 = total.and_then(|t| t.trim().parse().ok()).expect("callgrind's total");
        assert!(count > 0, "callgrind saw no function named counted_*: {said}");
        count
    };
    Ok((0..workloads).map(count).collect())
}
