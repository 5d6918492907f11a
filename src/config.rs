//! Settings, and the command line that they are made from.
//!
//! One definition (`config/args.rs`) feeds the parser, `--help`, the file and the environment
//! (`config/sources.rs`); `config/check.rs` judges all values together, so that whoever made three
//! mistakes hears of three.

mod accounts;
mod args;
mod check;
mod live;
mod sources;
#[cfg(test)]
mod tests;
mod units;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::ring::{Distribution, NodeAddr, ServerSpec};

pub use accounts::{Account, find_group};
pub use check::Host;
pub use live::{Changes, changes, process_changes};
pub(crate) use sources::defaults;
pub(crate) use units::{parse_time, show_time};

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

impl fmt::Display for ResyncMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ResyncMode::Auto => "auto",
            ResyncMode::Manual => "manual",
            ResyncMode::Off => "off",
        })
    }
}

/// Whether the workers' sockets are on io_uring.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IoUringMode {
    /// Where the system has it, and epoll elsewhere.
    #[default]
    Auto,
    /// Or not at all.
    On,
    /// On epoll.
    Off,
}

/// Form of the log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// What is logged, how and where to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSettings {
    /// What is logged, in `RUST_LOG`'s syntax: made from `-v`, or `RUST_LOG` itself where that is
    /// set and `-v` is not.
    pub filter: String,
    /// `--log-format`.
    pub format: LogFormat,
    /// `--log-file`, absolute; `None` = stderr.
    pub file: Option<PathBuf>,
}

/// All that the daemon is told. Built by the command line; plain data.
#[derive(Clone, Debug)]
pub struct Plan {
    pub process: ProcessSettings,
    /// At least one, which has no name where the file has no pools.
    pub pools: Vec<Settings>,
}

/// What stands behind `pool.` in the file.
pub type PoolName = Arc<str>;

/// What belongs to the process, whatever it serves.
#[derive(Clone, Debug)]
pub struct ProcessSettings {
    /// `--admin`.
    pub admin: Option<SocketAddr>,
    /// `--admin-socket`, absolute.
    pub admin_socket: Option<PathBuf>,
    /// `-u`: run as this user, a name or number, once the sockets are bound; `None` = whoever
    /// started the process.
    pub user: Option<String>,
    /// `-g`: run as this group, a name or number; `None` = the user's own.
    pub group: Option<String>,
    /// `-d`: go to the background.
    pub daemonize: bool,
    /// Set in the copy of the process that runs in the background; never by people.
    pub background_child: bool,
    /// `--pid-file`, absolute; without `-d` only if it was given.
    pub pid_file: Option<PathBuf>,
    /// `-v`, `--log-format`, `--log-file`.
    pub log: LogSettings,
    /// `--config`, absolute.
    pub config: Option<PathBuf>,
    /// Variables that look like options, and are none.
    pub unknown_variables: Vec<String>,
}

/// What a pool is told: a list of servers, those who may ask for what is on them, and how it heals.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its name, where the file has pools.
    pub pool: Option<PoolName>,
    /// `-s`: servers of the primary ring, in the order given.
    pub primaries: Vec<ServerSpec>,
    /// `-b`: servers of the backup ring; empty = a plain sharding proxy.
    pub backups: Vec<ServerSpec>,
    /// `-k`.
    pub distribution: Distribution,
    /// `-l` and `-p`; empty with `-p 0`.
    pub listen: Vec<SocketAddr>,
    /// `-f`, absolute.
    pub unix_socket: Option<PathBuf>,
    /// `-a`: its mode.
    pub unix_socket_mode: u32,
    /// `--operator-commands`: clients may say `resync` too.
    pub operator_commands: bool,
    /// `-n`: how many clients at once; more get a refusal.
    pub max_clients: usize,
    /// `-i`: connections kept to each node, over all threads (at least one a thread).
    pub node_connections: usize,
    /// `--threads`: worker threads.
    pub threads: usize,
    /// `--io-uring`.
    pub io_uring: IoUringMode,
    /// `--resync`.
    pub resync: ResyncMode,
    /// `--timeout`: how long a node of a mirrored pair may take for an answer before it counts as
    /// lost.
    pub timeout: Duration,
    /// `--leader-timeout`: the same for the last full copy, which is waited for longer and never
    /// deposed on suspicion.
    pub leader_timeout: Duration,
    /// `--leader-grace`: how long the process of a last full copy must refuse connections to count
    /// as proof that its memory is gone.
    pub leader_grace: Duration,
    /// `--probe-interval`.
    pub probe_interval: Duration,
    /// `--probe-timeout`.
    pub probe_timeout: Duration,
    /// `--probe-successes`: good probes in a row before a lost node is taken back.
    pub probe_successes: u32,
    /// `--resync-rate`: items per second over all resyncs; `None` = unlimited.
    pub resync_rate: Option<u64>,
    /// `--resync-latency`: what resyncs may add to the 99th percentile of clients' latency; `None`
    /// = whatever it is.
    pub resync_latency: Option<Duration>,
    /// `--verify-rate`: keys per second that a scrub compares; `None` = unlimited.
    pub verify_rate: Option<u64>,
    /// `--resync-memory`: bytes that a resync's key list and buffers may hold in memory; the rest
    /// goes to a temporary file.
    pub resync_memory: usize,
    /// `--item-size-max`: largest item taken from clients, in bytes; the smaller limit of the
    /// nodes' applies too.
    pub item_size_max: usize,
    /// `--client-memory`: bytes that answers may take which clients have not read, over all
    /// clients.
    pub client_memory: usize,
    /// `--shutdown-grace`: how long requests in flight may take after SIGTERM.
    pub shutdown_grace: Duration,
    /// `--idle-timeout`: clients silent for this long are closed; `None` = never.
    pub idle_timeout: Option<Duration>,
    /// `--coordinate` and what belongs to it.
    pub fleet: Option<FleetSettings>,
    /// `--leave-fleet`.
    pub leave_fleet: bool,
}

/// Several proxies over the same servers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FleetSettings {
    /// `--coordinate`.
    pub register: RegisterSettings,
    /// `--coordinate-login`.
    pub login: Option<PathBuf>,
    /// `--advertise`; `None` = the first of [`Settings::listen`], with a free port.
    pub advertise: Option<NodeAddr>,
    /// `--lease`.
    pub lease: Duration,
    /// `--candidate`.
    pub candidate: bool,
    /// `--takeover-wait`.
    pub takeover_wait: Duration,
    /// `--former-grace`.
    pub former_grace: Duration,
    /// `--prove-writes`.
    pub prove_writes: bool,
}

/// Where the proxies of a fleet agree on which of them is active.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RegisterSettings {
    Etcd {
        /// `HOST:PORT` of each member.
        members: Vec<String>,
        name: String,
    },
    /// Absolute.
    File(PathBuf),
}

/// The source of a resync may make no progress for so many times as long as a last full copy may
/// with a client's request: to begin again costs all that was copied.
const SOURCE_PATIENCE: u32 = 5;

impl Settings {
    /// Nothing in the proxy waits longer for a node that makes no progress: the source of a resync
    /// has this long.
    pub fn longest_wait(&self) -> Duration {
        self.leader_timeout.max(self.timeout) * SOURCE_PATIENCE
    }

    /// After this long our own kernel drops what a node's has not taken. What it holds must not
    /// arrive when another proxy is active.
    pub fn undelivered(&self) -> Duration {
        let longest = self.longest_wait();
        self.fleet.as_ref().map_or(longest, |fleet| fleet.lease.min(longest))
    }
}

/// What a command line asks for.
#[derive(Debug)]
pub enum CommandLine {
    /// Run the proxy.
    Run(Box<Plan>),
    /// Print this on stdout and exit 0: the help or the version.
    Print(String),
}

/// Everything that is wrong with a command line, one sentence each; never empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UsageErrors(pub Vec<String>);

impl fmt::Display for UsageErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in &self.0 {
            writeln!(f, "resilver: {error}")?;
        }
        let count = self.0.len();
        let (noun, verb) = if count == 1 { ("setting", "is") } else { ("settings", "are") };
        writeln!(f, "resilver: {count} {noun} {verb} wrong, nothing was started; resilver --help lists them all")
    }
}

impl std::error::Error for UsageErrors {}

/// The daemon's options, as clap knows them.
pub(crate) fn command() -> clap::Command {
    <args::Args as clap::CommandFactory>::command()
}

impl CommandLine {
    /// Reads a command line; `arguments` begins with the program's name. `host` is the machine that
    /// it is judged for.
    ///
    /// # Errors
    ///
    /// All that is wrong or contradictory, not just the first.
    ///
    /// ```
    /// use resilver::config::{CommandLine, Host};
    ///
    /// let line = "resilver -p 12000 -s 127.0.0.1:11211 -s 127.0.0.1:11212 -b 127.0.0.1:11213";
    /// let Ok(CommandLine::Run(plan)) = CommandLine::parse(line.split(' '), &Host::this()) else { panic!() };
    /// assert_eq!(plan.pools[0].listen[0].port(), 12000);
    ///
    /// let errors = CommandLine::parse(["resilver", "-p", "99999", "--timeout", "0"], &Host::this()).unwrap_err();
    /// assert_eq!(errors.0.len(), 3, "the port, the timeout, and no server: {errors}");
    /// ```
    pub fn parse(
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        host: &Host,
    ) -> Result<CommandLine, UsageErrors> {
        check::command_line(arguments.into_iter().map(Into::into).collect(), host)
    }
}
