//! The data plane: one request over its pair's route. [`Core`] is one worker thread's part of it,
//! without I/O.

mod adds;
mod backlog;
mod client;
mod clients;
mod core;
mod gone;
mod handles;
mod in_flight;
mod link;
mod links;
mod memory;
mod op;
mod pending;
mod room;
mod route;
mod sizes;
mod table;
mod waiting;

pub use adds::Adds;
pub use backlog::Backlog;
pub use client::Ended;
pub use core::{
    Adopted, Command, Connected, Core, CoreSettings, Event, LiveSettings, Now, PeerMessage, Question, Reading, Room,
    Settlement, ToWrite, owner_of,
};
pub use gone::Gone;
pub use handles::{ClientId, ClientKey, ConnId, DialNumber, Lane, Occupant, SlotNumber, Ticket};
pub use memory::{Memory, Share};
pub use route::{Flow, Follower, Route};

/// What clients are told on `version`: the memcached whose protocol is spoken. Some want digits and
/// dots and nothing else, and choose by them what they say.
pub const VERSION: &str = "1.6.18";
