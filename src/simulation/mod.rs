//! A seeded simulation in virtual time: clients, the whole proxy, and two to four model nodes, on
//! one thread, with failures between any two steps. The clients' answers are judged key by key.
//!
//! The proxy is the daemon's own: workers, control plane, resyncs, as [`crate::server::Assembly`]
//! puts them together. Only what is outside of it is modelled: memcached ([`node`]), hosts and
//! connections ([`net`]), clients ([`clients`]), chance and date ([`crate::ambient`]). Everything
//! follows from the seed, so a seed that fails replays exactly:
//! `RESILVER_SIM_SEED=n cargo test --lib simulation`.
//!
//! [`judge`] is a search for an order of each key's operations; [`nemesis`] chooses what fails;
//! [`world`] puts one run together.

mod clients;
mod fleet;
mod fleet_nemesis;
mod history;
mod item;
mod judge;
mod late;
mod losses;
mod nemesis;
mod net;
mod node;
mod profile;
mod proxies;
mod register;
mod tests;
mod trace;
mod wires;
mod world;
