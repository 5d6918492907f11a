//! The rules of the design that a test can switch off: the failures that follow show that the
//! simulation would notice if one were missing.
//!
//! In the daemon every rule holds, and asking costs nothing.

/// A rule, named where it protects something by [`holds`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rule {
    /// A copy is verified on the leader after it was added.
    Verify,
    /// What a node may hold of a pair is deleted before the pair is filled.
    PurgeBeforeFill,
    /// What a node is known to have missed is deleted before it leads with the rest.
    MissedPurgedBeforeLead,
    /// Nodes that are late together are waited for.
    LateTogether,
    /// A route changes only when no worker has anything under the old one.
    BarrierAtEdges,
    /// What a filling node cannot repeat is dropped there and copied again.
    NoReexecutionOnFilling,
    /// A node is not used again before every connection given up on has answered.
    DrainByAnswer,
    /// No write is acknowledged alone before that is recorded. Without it the simulation's network
    /// answers such a record at once, and writes it later.
    #[cfg(test)]
    RecordBeforeAck,
    /// Who leads alone is recorded on the other nodes too.
    WitnessRecords,
    /// Epochs begin at the date, and above all that were seen.
    UniqueEpochs,
    /// The last full copy is waited for until its memory is proved gone.
    DarkRemembersInSync,
    /// A filling node leads only after its unverified copies are undone.
    UndoneBeforeFallback,
    /// A new connection serves only the memory that the route was made for.
    MarkerCheckOnNewConnections,
    /// A connection that misses asks for the marker again.
    MarkerCheckAfterMiss,
    /// A flush puts the markers back in the same write.
    FlushWithMarkers,
    /// After a crash nothing is acknowledged before the dead proxy's writes have landed.
    QuietPeriodAfterCrash,
    /// After a crash two copies are not taken for equal.
    CrashIsNotClean,
    /// Tokens carry the term of the leadership that they were taken under.
    CasTermInTokens,
    /// Writes of a key wait for its repair.
    FencedRepair,
    /// The gate is closed for the last copies before leadership returns.
    GateClosedAtHandBack,
    /// What a node said at the start counts even if it cannot be marked then.
    RecordsOfUnmarkedNodes,
    /// A connection belongs to one address of its node.
    OneAddressAConnection,
    /// A worker gives up its connections to an address that the node has left.
    LeaveAtMove,
    /// What was unanswered when a node moved may still take effect: the quiet period, and a purge
    /// of everything.
    AbandonedAtMove,
    /// What clients were told to be gone under one leader is looked for, and deleted, before the
    /// next one is asked for more.
    SeenGoneStaysGone,
    /// What a look of the proxy's own has won, the right to recompute a stale item, goes back.
    WonIsGivenBack,
    /// The follower holds nothing that is stale on the leader, or that somebody was told to
    /// recompute.
    MarkedIsWithheld,
    /// A stale item is not copied, where it would be a fresh one.
    StaleIsNotCopied,
    /// What is stale on one node, and so a miss under the next leader, stays one when the first one
    /// leads again.
    MarkedStaysGone,
    /// An `mg` that may change its item goes the way of a write.
    ChangingGetIsAWrite,
    /// Where an answer does not say what the item is, it is read.
    UnclearIsRead,
    /// Copies that have counted to the same number are compared where one may have blanks behind
    /// it.
    BlanksAreCompared,
    /// Clients choose no cas ids.
    NoChosenCasIds,
    /// A flush gives the memory another name.
    FlushIsANewMemory,
    /// Nobody acknowledges alone before whoever may come next is sure to learn that the other copy
    /// is lost.
    LossCommittedBeforeAck,
    /// Whoever comes next lets no copy lead that is known to be lost.
    ListedCopiesDoNotLead,
    /// When another proxy becomes active, what was passed on and is unanswered is not sent again
    /// but for reads.
    PassedOnOnce,
    /// Nothing is filled before the former active proxy is known to be gone.
    FormerIsWaitedFor,
    /// A lease counts from asking for the swap, not from its answer.
    LeaseFromAsking,
    /// What is read extends nothing: it leaves no trace for the others.
    ReadExtendsNothing,
    /// A swap of unknown outcome was not made, before a read shows it.
    UnknownIsNotMade,
    /// A heartbeat is seen unchanged for longer than a lease before its record is claimed.
    ClaimWaits,
    /// Of two leases, the holder's and the candidate's, the longer one is waited for.
    LongerLeaseWaits,
    /// A swap compares what stands there with what was seen.
    #[cfg(test)]
    SwapCompares,
    /// Time counts only between polls that were answered.
    AnsweredPollsCount,
    /// A free record is claimed at once only where no server has an open session.
    FreeIsChecked,
    /// So is one that is absent, and there all servers have to answer.
    AbsentIsChecked,
    /// Whoever finds another one's record ends.
    FencedByRecord,
    /// Whoever finds a later generation's mark on a server ends.
    FencedByMark,
    /// A generation lies above all that are marked on servers.
    GenerationAboveMarks,
    /// A proxy that was suspended reads the servers' marks before it goes on.
    MarksBeforeResuming,
    /// Each asking for a swap has a heartbeat of its own.
    HeartbeatsAreUnique,
    /// At the end of its lease a proxy is suspended.
    SuspendedAtItsEnd,
}

/// Whether the rule holds. Always, except in tests.
#[cfg(not(test))]
pub(crate) const fn holds(_: Rule) -> bool {
    true
}

/// Whether the rule holds on this thread.
#[cfg(test)]
pub(crate) fn holds(rule: Rule) -> bool {
    off::OFF.get() != Some(rule)
}

/// Switching a rule off.
#[cfg(test)]
pub(crate) mod off {
    use std::cell::Cell;

    use super::Rule;

    thread_local! {
        pub(super) static OFF: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// Does something on this thread without one rule.
    pub(crate) fn without<T>(rule: Option<Rule>, work: impl FnOnce() -> T) -> T {
        OFF.set(rule);
        let done = work();
        OFF.set(None);
        done
    }
}
