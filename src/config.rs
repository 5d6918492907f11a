//! Settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::ring::{Distribution, ServerSpec};

/// Whether and how a node that comes back is refilled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ResyncMode {
    /// Heals by itself.
    #[default]
    Auto,
    /// Notices, keeps the surviving copy leading, and waits for the operator's `resync`.
    Manual,
    /// Behaves like magent: a node that comes back is trusted at once and never refilled.
    Off,
}

/// Everything the daemon can be told. Built by the command line; plain data.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `-s`: servers of the primary ring, in the order given.
    pub primaries: Vec<ServerSpec>,
    /// `-b`: servers of the backup ring; empty = a plain sharding proxy.
    pub backups: Vec<ServerSpec>,
    /// `-k`.
    pub distribution: Distribution,
    /// `-l` and `-p`; empty with `-p 0`.
    pub listen: Vec<SocketAddr>,
    /// `-f`.
    pub unix_socket: Option<PathBuf>,
    /// `-n`: how many clients at once; more get a refusal.
    pub max_clients: usize,
    /// `-i`: connections kept to each node, over all threads (at least one a thread).
    pub node_connections: usize,
    /// `--threads`: worker threads.
    pub threads: usize,
    /// `--resync`.
    pub resync: ResyncMode,
    /// `--timeout`: how long a node of a mirrored pair may take for an answer before it counts as lost.
    pub timeout: Duration,
    /// `--leader-timeout`: the same for the last full copy, which is waited for longer and never deposed on suspicion.
    pub leader_timeout: Duration,
    /// `--leader-grace`: how long the process of a last full copy must refuse connections to count as proof that its memory is gone.
    pub leader_grace: Duration,
    /// `--probe-interval`.
    pub probe_interval: Duration,
    /// `--probe-timeout`.
    pub probe_timeout: Duration,
    /// `--probe-successes`: good probes in a row before a lost node is taken back.
    pub probe_successes: u32,
    /// `--resync-rate`: items per second over all resyncs; `None` = unlimited.
    pub resync_rate: Option<u64>,
    /// `--resync-memory`: bytes that a resync's key list and buffers may hold in memory; the rest goes to a temporary file.
    pub resync_memory: usize,
    /// `--item-size-max`: largest item taken from clients, in bytes; the smaller limit of the nodes' applies too.
    pub item_size_max: usize,
    /// `--shutdown-grace`: how long requests in flight may take after SIGTERM.
    pub shutdown_grace: Duration,
    /// `--idle-timeout`: clients silent for so long are closed; `None` = never.
    pub idle_timeout: Option<Duration>,
}
