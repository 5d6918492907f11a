//! Many seeds; and for each rule of the design, that the simulation notices when it is switched off.

use super::world::{Profile, Report, run};

/// Lines of the trace that are shown of a failed seed, from its end.
const SHOWN: usize = 400;

/// The whole story of a seed that failed.
fn tell(seed: u64, profile: Profile, report: &Report) -> String {
    let traced = run(seed, profile, true);
    let from = traced.trace.len().saturating_sub(SHOWN);
    format!(
        "seed {seed} ({profile:?}); replay: RESILVER_SIM_SEED={seed} cargo test --lib simulation::tests::one_seed -- --nocapture\n{}\n  {}\n",
        traced.trace[from..].join("\n"),
        report.violations.join("\n  ")
    )
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn one_seed() {
    let Some(seed) = from_environment("RESILVER_SIM_SEED") else { return };
    for profile in [Profile::Single, Profile::Anything] {
        let report = run(seed, profile, true);
        eprintln!("{}", report.trace.join("\n"));
        assert!(report.violations.is_empty(), "{profile:?}: {}", report.violations.join("\n"));
    }
}

#[test]
fn seeds() {
    let count = from_environment("RESILVER_SIM_SEEDS").unwrap_or(200);
    let first = from_environment("RESILVER_SIM_FIRST").unwrap_or(1);
    for profile in [Profile::Single, Profile::Anything] {
        let begun = std::time::Instant::now();
        let (mut operations, mut errors, mut lasted) = (0, 0, std::time::Duration::ZERO);
        let mut failed = Vec::new();
        for seed in first..first + count {
            let report = run(seed, profile, false);
            operations += report.operations;
            errors += report.errors;
            lasted += report.lasted;
            if !report.violations.is_empty() {
                failed.push((seed, report));
            }
        }
        eprintln!("{profile:?}: {count} seeds, {operations} operations, {errors} errors, {lasted:?} virtual in {:?}", begun.elapsed());
        for (seed, report) in &failed {
            eprintln!("  seed {seed}: {}", report.violations[0]);
        }
        if let Some((seed, report)) = failed.first() {
            panic!("{} of {count} seeds failed\n{}", failed.len(), tell(*seed, profile, report));
        }
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 1..20 {
        for profile in [Profile::Single, Profile::Anything] {
            let (once, again) = (run(seed, profile, true), run(seed, profile, true));
            for (a, b) in once.trace.iter().zip(&again.trace) {
                assert_eq!(a, b, "seed {seed}");
            }
            assert_eq!(once, again, "seed {seed}");
        }
    }
}
