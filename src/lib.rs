//! Resilver: a memcached proxy that heals itself. `ARCHITECTURE.md` is the map; start with `pair`.
// The documentation is for developers, and made with private items.
#![allow(rustdoc::private_intra_doc_links)]

mod admin;
mod ambient;
mod ask;
mod backend;
mod check_config;
mod cluster;
pub mod commands;
pub mod config;
mod console;
mod coord;
pub mod daemon;
mod file_id;
pub mod fleet;
mod health;
mod ids;
mod key;
mod keys;
mod later;
mod lease;
mod manual;
mod pair;
mod places;
pub mod pools;
mod progress;
mod protocol;
mod proxy;
pub mod reload;
mod report;
mod resync;
mod ring;
mod rules;
pub mod server;
#[cfg(test)]
mod simulation;
mod stats;
mod status;
mod stretch;
pub mod supervised;
mod suspicion;
#[cfg(test)]
mod testing {
    pub(crate) mod digest;
    pub(crate) mod log;
    pub(crate) mod memcached;
}
mod timed;
mod top;
mod wait;

/// Parts of the proxy that tests outside of `src/` drive without the rest. It promises nothing to
/// anybody else; what stands in no test and is used by nobody is found by the compiler.
#[doc(hidden)]
pub mod internals {
    pub mod backend {
        pub use crate::backend::{
            Addresses, Batch, Dial, DrainEnd, Effect, Flushed, MarkError, Memories, NewName, NodeControl, NodeError,
            NodeStream, NodeView, Pipe, TcpDialer,
        };
        pub mod marker {
            pub use crate::backend::marker::{
                Fact, INCARNATION_KEY, Leftovers, Period, RING_KEY, Record, RingMark, Session, UNSURE,
            };
        }
    }
    pub mod ids {
        pub use crate::ids::{Epoch, Generation, Incarnation, Life, NodeId, PairId, Place, SessionId, Term, WorkerId};
    }
    pub mod keys {
        pub use crate::keys::{Lone, Missed, MissedBudget, Recopy};
    }
    pub mod pair {
        pub use crate::pair::Reason;
    }
    pub mod protocol {
        pub use crate::protocol::{answer, binary, classic, mark, out, outcome, reply, request};
    }
    pub mod proxy {
        pub use crate::proxy::{
            ClientId, Command, ConnId, Core, CoreSettings, Event, Flow, Follower, Now, Reading, Room, Route,
        };
    }
    pub mod resync {
        pub use crate::resync::{
            Context, Fill, JobError, JobEvent, JobSpec, Outcome, PairProgress, Progress, RateLimiter, Settlement,
            Shared, Tuning, Verdict, Verify, VerifyPair, clean, run, verify,
        };
    }
    pub mod ring {
        pub use crate::ring::{Distribution, NodeAddr, ServerSpec, Topology};
    }
    pub mod stats {
        pub use crate::stats::WorkerStats;
    }
}
