//! All integration tests but those that count what a request costs (`tests/cost`): one binary, so
//! that the harness is compiled once. `cargo test --test it failover::` runs those of one file.
// A test says what it expects by panicking; clippy.toml covers only #[test] functions.
#![allow(clippy::unwrap_used)]

mod admin;
mod adoption;
mod binary;
mod binary_differential;
mod chaos;
mod cli;
mod completions;
mod config;
mod connection_limit;
mod copies;
mod counters;
#[path = "../../src/testing/digest.rs"]
mod digest;
mod documents;
mod expiry;
mod failover;
mod faults;
mod fleet;
mod fleet_answers;
mod fleet_changes;
mod fleet_cuts;
mod fleet_faults;
mod fleet_file;
mod fleet_lists;
mod fleet_releases;
mod judge_selftest;
mod log;
#[path = "../../src/testing/memcached/mod.rs"]
mod memcached;
mod meta;
mod model;
mod moved;
mod operator;
mod page;
mod parser_differential;
mod pools;
mod prometheus;
mod protocol;
mod records;
mod resync;
mod resync_drip;
mod resync_job;
mod resync_races;
mod scripted;
mod sequences;
mod startup;
mod startup_late;
mod startup_ring;
mod startup_sequences;
mod stats;
mod status;
mod supervised;
mod support;
mod wait;
