//! Resilver: a memcached proxy that heals itself. `ARCHITECTURE.md` is the map; start with [`pair`].

mod ambient;
pub mod ask;
pub mod backend;
pub mod cluster;
pub mod config;
pub mod daemon;
pub mod expiry;
pub mod health;
pub mod ids;
pub mod pair;
mod progress;
pub mod protocol;
pub mod proxy;
pub mod resync;
pub mod ring;
mod rules;
pub mod server;
#[cfg(test)]
mod simulation;
pub mod stats;
pub mod wait;
