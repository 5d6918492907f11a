//! Kinds of worlds: what fails in each, and what is promised all the same.

/// What is promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Profile {
    /// One node at a time fails, or the proxy: no error, nothing lost.
    Single,
    /// Any node fails at any time: errors and misses, but nothing old or wrong.
    Anything,
    /// Proxies come and go, and nodes are out of reach; no memory is lost, and each proxy finds all
    /// nodes well.
    Restarts,
    /// Somebody else flushes a node; nothing probes it for long.
    Stranger,
    /// The follower evicts items: what is written later is repaired.
    Evictions,
    /// The leader loses its memory while the other node is being filled.
    HalfFilled,
    /// The follower misses writes, then the leader dies for good: nothing else is lost.
    BothDown,
    /// All nodes are slow or stand still together, and in the midst of that one fails: only that
    /// one is lost.
    Overload,
    /// A node leads alone, loses its memory, and the proxy that knew dies. A third node knows.
    Witness,
    /// Each of two nodes led alone, under two proxies.
    TwoLeaders,
    /// Nodes refuse items for want of memory, as followers and while they are filled.
    Refusals,
    /// The first start finds full nodes; it is cut off by proxies that end, or by one node that
    /// fails.
    Adoption,
    /// Names lead elsewhere, one node at a time.
    Names,
    /// One node at a time fails, again and again, and the proxy, while items expire; nodes turn to
    /// their seconds at moments that wander.
    Expiry,
    /// A cut puts the proxy and one node on one side; then another proxy takes its place on the
    /// other side.
    Isolated,
    /// As [`Profile::Single`], with clients of the meta protocol: what is stale, or is to be
    /// recomputed, is what it was, or a miss.
    Meta,
    /// As [`Profile::Anything`], [`Profile::Restarts`] or [`Profile::BothDown`] with them.
    MetaAnything,
    /// Several proxies: one after the other dies or hands over, perhaps with a node.
    FleetKills,
    /// The active proxy's host is lost, with a node on it: another one serves in time.
    FleetHosts,
    /// Proxies stand still, for shorter and longer than a lease, also between a look at the lease
    /// and a send.
    FleetPauses,
    /// Cuts between proxies, nodes and where they agree.
    FleetCuts,
    /// Where they agree answers late or never, is away, is emptied, or is restored from a backup.
    FleetRegister,
    /// What they ask is answered at the worst moments.
    FleetLate,
    /// A machine stands still, and its clock with it.
    FleetFrozen,
    /// Clients use all proxies, which pass requests on; what fails is as before.
    Doors,
    /// ... and the lines between proxies are cut, late, or both.
    DoorsCut,
}

impl Profile {
    /// All of them.
    pub(super) const ALL: [Profile; 26] = [
        Profile::Single,
        Profile::Anything,
        Profile::Restarts,
        Profile::Stranger,
        Profile::Evictions,
        Profile::HalfFilled,
        Profile::BothDown,
        Profile::Overload,
        Profile::Witness,
        Profile::TwoLeaders,
        Profile::Refusals,
        Profile::Adoption,
        Profile::Names,
        Profile::Expiry,
        Profile::Isolated,
        Profile::Meta,
        Profile::MetaAnything,
        Profile::FleetKills,
        Profile::FleetHosts,
        Profile::FleetPauses,
        Profile::FleetCuts,
        Profile::FleetRegister,
        Profile::FleetLate,
        Profile::FleetFrozen,
        Profile::Doors,
        Profile::DoorsCut,
    ];

    /// Whether clients speak the meta protocol.
    pub(super) fn is_meta(self) -> bool {
        matches!(self, Profile::Meta | Profile::MetaAnything)
    }

    /// Whether there are several proxies at once.
    pub(super) fn has_fleet(self) -> bool {
        use Profile::{FleetCuts, FleetFrozen, FleetHosts, FleetKills, FleetLate, FleetPauses, FleetRegister};
        self.passes_on()
            || matches!(self, FleetHosts)
            || matches!(self, FleetKills | FleetPauses | FleetCuts | FleetRegister | FleetLate | FleetFrozen)
    }

    /// Whether clients use all of them.
    pub(super) fn passes_on(self) -> bool {
        matches!(self, Profile::Doors | Profile::DoorsCut)
    }

    /// Whether `SERVER_ERROR` is an answer that a client may get.
    pub(super) fn allows_errors(self) -> bool {
        !matches!(
            self,
            Profile::Single
                | Profile::Evictions
                | Profile::Refusals
                | Profile::Names
                | Profile::Overload
                | Profile::Expiry
                | Profile::Meta
        )
    }
}

/// What cuts an adoption off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CutOff {
    /// Proxies end, cleanly or not.
    Proxies,
    /// One node fails, and keeps its memory.
    Node,
    /// One node dies.
    Death,
    /// The proxy and a node at once, which keeps its memory.
    Both,
    /// The proxy and a node at once, which dies: what survives is not promised.
    BothDeath,
    /// Proxies and nodes, again and again: as before.
    Anything,
}

impl CutOff {
    pub(super) const ALL: [CutOff; 6] =
        [CutOff::Proxies, CutOff::Node, CutOff::Death, CutOff::Both, CutOff::BothDeath, CutOff::Anything];
}
