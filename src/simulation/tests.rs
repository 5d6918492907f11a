//! Many seeds; and for each rule of the design, that the simulation notices when it is switched
//! off.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::rules::Rule;
use crate::rules::off::without;

use super::profile::Profile;
use super::world::{Report, run};

/// Seeds of `make test`, where the environment names no other number; and those of the profiles
/// whose histories take longest to judge, or are ten times as long as others'.
const SEEDS: u64 = 300;
const LONG_SEEDS: u64 = 100;
/// Seeds of the profiles with several proxies, which take longer; and of the one where a machine
/// stands still for seconds.
const FLEET_SEEDS: u64 = 75;
const FROZEN_SEEDS: u64 = 20;
/// Lines of the trace that are shown of a failed seed.
const SHOWN: usize = 400;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// The judge's search goes deep.
const STACK: usize = 256 << 20;

fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work).unwrap();
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn live(seed: u64, profile: Profile, rule: Option<Rule>, traced: bool) -> Report {
    on_large_stack(|| without(rule, || run(seed, profile, traced)))
}

/// The whole story of a seed that failed.
fn tell(seed: u64, profile: Profile, rule: Option<Rule>) -> String {
    let report = live(seed, profile, rule, true);
    // Around the operation that does not fit, or the end.
    let misfit = report.violations.iter().find_map(|what| {
        let op = what.split("fits next").nth(1)?.split_whitespace().find(|word| word.starts_with("op"))?;
        report.trace.iter().rposition(|line| line.split_whitespace().any(|word| word == op))
    });
    let until = misfit.map_or(report.trace.len(), |at| (at + SHOWN / 4).min(report.trace.len()));
    let from = until.saturating_sub(SHOWN);
    format!(
        "{}\n{profile:?}, seed {seed}. The whole trace: RESILVER_SIM_SEED={seed} RESILVER_SIM_PROFILE={profile:?} cargo test --lib simulation::tests::one_seed -- --nocapture\n  {}\n",
        report.trace[from..until].join("\n"),
        report.violations.join("\n  ")
    )
}

/// A seed of all profiles, or of the one that is named, with its trace; without a rule, if one is
/// named.
#[test]
fn one_seed() {
    let Some(seed) = from_environment("RESILVER_SIM_SEED") else { return };
    let named = |name: &str, word: String| std::env::var(name).is_ok_and(|wanted| wanted == word);
    let any = std::env::var("RESILVER_SIM_PROFILE").is_err();
    let rule = RULES.iter().map(|(rule, ..)| *rule).find(|rule| named("RESILVER_SIM_WITHOUT", format!("{rule:?}")));
    for profile in Profile::ALL.into_iter().filter(|p| any || named("RESILVER_SIM_PROFILE", format!("{p:?}"))) {
        let report = live(seed, profile, rule, true);
        eprintln!("{}\n{profile:?}: {:#?}", report.trace.join("\n"), report.violations);
        assert!(report.violations.is_empty(), "{profile:?}, seed {seed}");
    }
}

#[derive(Default)]
struct Sum {
    operations: u64,
    errors: u64,
    unjudged: u64,
    lasted: Duration,
}

#[test]
fn seeds() {
    let named_count = from_environment("RESILVER_SIM_SEEDS");
    let first = from_environment("RESILVER_SIM_FIRST").unwrap_or(1);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut failures = Vec::new();
    let named = std::env::var("RESILVER_SIM_PROFILE").ok();
    for profile in Profile::ALL.into_iter().filter(|p| named.as_ref().is_none_or(|n| *n == format!("{p:?}"))) {
        let begun = Instant::now();
        let usual = match profile {
            _ if profile.is_meta() || profile == Profile::Expiry => LONG_SEEDS,
            Profile::FleetFrozen => FROZEN_SEEDS,
            _ if profile.has_fleet() => FLEET_SEEDS,
            _ => SEEDS,
        };
        let count = named_count.unwrap_or(usual);
        let (next, sum, failed) = (AtomicU64::new(first), Mutex::new(Sum::default()), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Relaxed);
                        if seed >= first + count {
                            return;
                        }
                        let report = live(seed, profile, None, false);
                        let mut sum = sum.lock().unwrap();
                        sum.operations += report.operations as u64;
                        sum.errors += report.errors;
                        sum.unjudged += report.unjudged;
                        sum.lasted += report.lasted;
                        if let Some(first) = report.violations.first() {
                            failed.lock().unwrap().push((seed, first.clone()));
                        }
                    }
                });
            }
        });
        let sum = sum.into_inner().unwrap();
        eprintln!(
            "{profile:?}: {count} seeds, {} operations, {} errors, {} keys not judged, {:?} virtual in {:?}",
            sum.operations,
            sum.errors,
            sum.unjudged,
            sum.lasted,
            begun.elapsed()
        );
        assert!(sum.unjudged <= count / 20, "{profile:?}: {} keys were too hard to judge", sum.unjudged);
        let mut failed = failed.into_inner().unwrap();
        failed.sort();
        failed.iter().for_each(|(seed, what)| eprintln!("  {profile:?}, seed {seed}: {what}"));
        failures.extend(failed.into_iter().map(|(seed, _)| (profile, seed)));
    }
    if let Some(&(profile, seed)) = failures.first() {
        panic!("{} runs failed: {failures:?}\n{}", failures.len(), tell(seed, profile, None));
    }
}

#[test]
fn seeds_that_failed_once() {
    // A host with the active proxy and the only leader failed, after all was called mirrored and
    // before the record no longer listed the other copy.
    let (profile, seed) = (Profile::FleetKills, 147);
    let report = live(seed, profile, None, false);
    assert!(report.violations.is_empty(), "{}", tell(seed, profile, None));
    // A later mark was read by each probe, and did not count where the server had been flushed, or
    // was lost for that; and it was acted upon when the register had been waited for.
    for seed in [103, 156, 237, 369, 399] {
        let found = live(seed, Profile::FleetFrozen, None, false).violations;
        assert_eq!(found, Vec::<String>::new(), "FleetFrozen, seed {seed}");
    }
    // A refill was cut off, and what its target evicted stayed unknown for good.
    // And the judge's: what was told of a token while a node was lost was forgotten.
    for seed in [722, 792, 1465] {
        assert_eq!(live(seed, Profile::Meta, None, false).violations, Vec::<String>::new(), "Meta, seed {seed}");
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 1..6 {
        let is_long = |profile: &Profile| profile.is_meta() || profile.has_fleet();
        for profile in Profile::ALL.into_iter().filter(|profile| seed < 3 || !is_long(profile)) {
            let (once, again) = (live(seed, profile, None, true), live(seed, profile, None, true));
            assert!(once.trace.len() > 100, "seed {seed}, {profile:?}: a trace of {} lines", once.trace.len());
            for (a, b) in once.trace.iter().zip(&again.trace) {
                assert_eq!(a, b, "seed {seed}, {profile:?}");
            }
            assert_eq!(once, again, "seed {seed}, {profile:?}");
        }
    }
}

/// Runs seeds without a rule until something is wrong; so many at most. `first`: one that found it
/// when this was written, so that most runs need no search.
fn is_missed(rule: Rule, profile: Profile, most: u64, first: u64) {
    // A violation may show as a check of the code's own.
    let begun = Instant::now();
    for seed in (first..=most).chain(1..first) {
        let report = live(seed, profile, Some(rule), false);
        if let Some(what) = report.violations.first() {
            eprintln!("without {rule:?}, {profile:?}: seed {seed}, after {:?}: {what}", begun.elapsed());
            return;
        }
    }
    panic!("{most} seeds of {profile:?} found nothing wrong without {rule:?}");
}

macro_rules! missed {
    ($($name:ident: $rule:ident, $profile:ident, $most:expr, $first:expr;)*) => {
        const RULES: &[(Rule, Profile)] = &[$((Rule::$rule, Profile::$profile)),*];

        $(#[test]
        fn $name() {
            is_missed(Rule::$rule, Profile::$profile, $most, $first);
        })*
    };
}

missed! {
    without_verify: Verify, Single, 1_000, 132;
    without_purge: PurgeBeforeFill, Single, 300, 128;
    without_purge_of_what_was_missed: MissedPurgedBeforeLead, BothDown, 300, 1;
    without_patience_in_an_overload: LateTogether, Overload, 50, 1;
    without_barrier: BarrierAtEdges, Single, 1_000, 68;
    with_reexecution: NoReexecutionOnFilling, Single, 3_000, 1734;
    without_drain: DrainByAnswer, Single, 2_000, 846;
    without_record: RecordBeforeAck, Restarts, 500, 1;
    without_witness: WitnessRecords, Witness, 100, 1;
    without_unique_epochs: UniqueEpochs, TwoLeaders, 100, 1;
    with_suspicion: DarkRemembersInSync, Restarts, 300, 5;
    without_undo: UndoneBeforeFallback, HalfFilled, 30_000, 4001;
    without_marker_on_new_connections: MarkerCheckOnNewConnections, Single, 2_000, 41;
    without_marker_after_misses: MarkerCheckAfterMiss, Stranger, 100, 1;
    without_markers_in_the_flush: FlushWithMarkers, Single, 500, 61;
    without_quiet_period: QuietPeriodAfterCrash, Restarts, 500, 142;
    with_crash_taken_for_clean: CrashIsNotClean, Single, 3_000, 275;
    without_terms: CasTermInTokens, Single, 1_000, 91;
    without_fence: FencedRepair, Evictions, 2_000, 32;
    without_gate: GateClosedAtHandBack, Single, 500, 40;
    without_records_of_unmarked_nodes: RecordsOfUnmarkedNodes, Restarts, 1_000, 628;
    with_connections_across_moves: OneAddressAConnection, Names, 1_000, 7;
    without_leaving_at_moves: LeaveAtMove, Names, 1_000, 2;
    with_moves_that_abandon_nothing: AbandonedAtMove, Names, 1_000, 151;
    without_remembering_what_is_gone: SeenGoneStaysGone, Expiry, 300, 27;
    without_committed_losses: LossCommittedBeforeAck, Isolated, 500, 98;
    with_listed_copies_that_lead: ListedCopiesDoNotLead, Isolated, 200, 2;
    without_giving_back: WonIsGivenBack, Meta, 300, 9;
    with_marked_items_on_followers: MarkedIsWithheld, Meta, 300, 2;
    with_gets_that_change_unseen: ChangingGetIsAWrite, Meta, 300, 3;
    with_stale_items_that_are_copied: StaleIsNotCopied, Meta, 300, 13;
    with_marked_items_that_come_back: MarkedStaysGone, Meta, 300, 140;
    with_unclear_answers: UnclearIsRead, Meta, 300, 9;
    with_chosen_cas_ids: NoChosenCasIds, Meta, 300, 1;
    without_terms_of_meta_tokens: CasTermInTokens, Meta, 1_000, 100;
    without_waiting_for_the_former: FormerIsWaitedFor, FleetPauses, 3_000, 2265;
    with_reads_that_extend: ReadExtendsNothing, FleetRegister, 2_000, 581;
    with_the_candidates_lease_alone: LongerLeaseWaits, FleetCuts, 1_000, 22;
    without_comparing_swaps: SwapCompares, FleetRegister, 1_000, 1;
    with_time_between_unanswered_polls: AnsweredPollsCount, FleetRegister, 2_000, 21;
    with_free_records_at_once: FreeIsChecked, FleetRegister, 1_000, 50;
    with_absent_records_at_once: AbsentIsChecked, FleetRegister, 1_000, 7;
    without_the_fence_of_the_record: FencedByRecord, FleetRegister, 1_000, 272;
    with_generations_below_marks: GenerationAboveMarks, FleetRegister, 1_000, 1;
    with_resuming_unread: MarksBeforeResuming, FleetRegister, 2_000, 1;
    with_leases_that_end_unnoticed: SuspendedAtItsEnd, FleetRegister, 2_000, 1;
    without_losses_in_the_record: LossCommittedBeforeAck, FleetCuts, 2_000, 4;
    with_listed_copies_that_lead_in_a_fleet: ListedCopiesDoNotLead, FleetCuts, 2_000, 46;
    with_leases_from_the_answer: LeaseFromAsking, FleetLate, 3_000, 710;
    with_unknown_swaps_taken_for_made: UnknownIsNotMade, FleetLate, 2_000, 2;
    with_heartbeats_that_are_asked_for_twice: HeartbeatsAreUnique, FleetLate, 2_000, 17;
    without_the_fence_of_marks: FencedByMark, FleetFrozen, 1_000, 1;
    with_writes_that_are_passed_on_twice: PassedOnOnce, Doors, 1_000, 55;
}
