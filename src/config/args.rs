//! The command line as clap sees it: names, help and defaults. Every value stays text here;
//! [`super::check`] judges them all together, because clap would stop at the first bad one.

use clap::{ArgAction, Parser};

/// What stands at the end of `--help`. Also the reference for exit codes and signals.
const AFTER_HELP: &str = "\
Units: times take ms, s, m, h (250ms, 1m30s); sizes are bytes or take k, m, g or KiB, MiB, GiB, all powers of 1024.

A command line of magent's works unchanged:
  resilver -u root -n 51200 -l 127.0.0.1 -p 12000 -s 127.0.0.1:11211 -s 127.0.0.1:11212 -b 127.0.0.1:11213

Different from magent: it listens on 127.0.0.1, not on all addresses, unless -l says otherwise; it stays in the \
foreground unless -d is given; -k is libmemcached's ketama; -i defaults to one connection for each thread, not 20, \
because many clients share one.

Beside the daemon, for a running one (each with --help): resilver status, top, key KEY, wait --mirrored or --ready; resync, verify, \
cancel, lead, gone, handover, stats, node, keys, reload; ask, for any of these in the words of the text protocol.

Signals: SIGTERM, SIGINT and SIGQUIT stop accepting, finish what is in flight within --shutdown-grace, and exit 0; a second \
one exits at once with 143, 130 or 131. SIGHUP has the settings read again, and the log file opened anew; SIGUSR1 and SIGUSR2 are \
ignored.

Environment: RESILVER_ and an option's long name in capitals, with _ for -, is that option, lists with commas \
(RESILVER_SERVER=cache1:11211,cache2:11211); RUST_LOG, where set and -v is not, says what is logged, for example resilver=debug. NO_COLOR: no colours.

Exit codes: 0 stopped cleanly; 64 wrong or contradictory settings; 71 the system refused (address in use, privileges, \
file limit, pid file, --coordinate); 75 replaced by another proxy of the fleet: to be started again.";

/// The command line. Repeatable or not, every value is collected in a `Vec`, so that one given
/// twice can be reported together with everything else that is wrong.
#[derive(Parser, Debug)]
#[command(
    name = "resilver",
    version,
    about = "A memcached proxy that heals itself: every item on two nodes, and a node that comes back is refilled \
             before it is trusted.",
    override_usage = "resilver -s HOST:PORT [-s HOST:PORT]... [-b HOST:PORT]... [options]",
    after_help = AFTER_HELP,
    args_override_self = true,
    next_line_help = false,
    max_term_width = 120,
)]
pub(super) struct Args {
    /// Primary memcached server; repeat for each. HOST is a name or an address, IPv6 in brackets.
    /// With -k a :WEIGHT may follow
    #[arg(short = 's', long, value_name = "HOST:PORT", action = ArgAction::Append, help_heading = "Servers")]
    pub(super) server: Vec<String>,

    /// Backup memcached server, which holds the second copy; repeat for each. None = a plain
    /// sharding proxy
    #[arg(short = 'b', long, value_name = "HOST:PORT", action = ArgAction::Append, help_heading = "Servers")]
    pub(super) backup: Vec<String>,

    /// Spread keys by ketama, as libmemcached does, instead of magent's hash modulo the number of
    /// servers
    #[arg(short = 'k', long, help_heading = "Servers")]
    pub(super) ketama: bool,

    /// Connections kept to each server, over all threads; 0 or auto = one for each thread, which is
    /// also the least
    #[arg(short = 'i', long, value_name = "N", default_value = "auto", action = ArgAction::Append,
          allow_negative_numbers = true, help_heading = "Servers")]
    pub(super) node_connections: Vec<String>,

    /// Address to listen on; repeat for more. 0.0.0.0 or :: = all
    #[arg(short = 'l', long, value_name = "ADDRESS", default_value = "127.0.0.1", action = ArgAction::Append,
          help_heading = "Clients")]
    pub(super) listen: Vec<String>,

    /// TCP port to listen on; 0 = no TCP
    #[arg(short = 'p', long, value_name = "PORT", default_value = "11211", action = ArgAction::Append,
          allow_negative_numbers = true, help_heading = "Clients")]
    pub(super) port: Vec<String>,

    /// Unix socket to listen on too
    #[arg(short = 'f', long, value_name = "PATH", action = ArgAction::Append, help_heading = "Clients")]
    pub(super) unix_socket: Vec<String>,

    /// Mode of the unix socket, octal, whatever the umask: who may write to it may connect
    /// [default: 700]
    #[arg(short = 'a', long, value_name = "MODE", action = ArgAction::Append, help_heading = "Clients")]
    pub(super) unix_socket_mode: Vec<String>,

    /// Clients at once; one more is refused, except for what operators ask (16 connections more).
    /// Raises the limit of open files to what that needs; fewer where the system forbids
    #[arg(short = 'n', long, value_name = "N", default_value = "4096", action = ArgAction::Append,
          allow_negative_numbers = true, help_heading = "Clients")]
    pub(super) max_clients: Vec<String>,

    /// Largest item taken from clients, from 1k to 1g; the servers' own -I counts too
    #[arg(long, value_name = "SIZE", default_value = "1m", action = ArgAction::Append, help_heading = "Clients")]
    pub(super) item_size_max: Vec<String>,

    /// Memory for what clients send and have not read yet, over all clients: with half of it taken
    /// each gets one large value at a time
    #[arg(long, value_name = "SIZE", default_value = "512m", action = ArgAction::Append, help_heading = "Clients")]
    pub(super) client_memory: Vec<String>,

    /// Close clients that sent nothing for so long; 0 = never
    #[arg(long, value_name = "TIME", default_value = "0", action = ArgAction::Append, help_heading = "Clients")]
    pub(super) idle_timeout: Vec<String>,

    /// Worker threads, 1 to 64; auto = half as many as there are cores, at least 1, at most 4
    #[arg(long, value_name = "N", default_value = "auto", action = ArgAction::Append,
          allow_negative_numbers = true, help_heading = "Process")]
    pub(super) threads: Vec<String>,

    /// Sockets of clients and servers on io_uring: auto = where the system has it (Linux 6.1), else
    /// epoll; on = or do not start; off = epoll
    #[arg(long, value_name = "auto|on|off", default_value = "auto", action = ArgAction::Append, help_heading = "Process")]
    pub(super) io_uring: Vec<String>,

    /// Serve metrics (/metrics), the state (/status.json, /livez, /readyz) and a page that shows it
    /// (/) over HTTP; nothing can be changed there. HOST is an address or a name of this machine
    #[arg(long, value_name = "HOST:PORT", action = ArgAction::Append, help_heading = "Operators")]
    pub(super) admin: Vec<String>,

    /// Unix socket for operator commands (mode 660): resilver ask --proxy PATH
    #[arg(long, value_name = "PATH", action = ArgAction::Append, help_heading = "Operators")]
    pub(super) admin_socket: Vec<String>,

    /// Whether clients may say resync and node too: off = only whoever reaches --admin-socket
    #[arg(long, value_name = "on|off", default_value = "on", action = ArgAction::Append, help_heading = "Operators")]
    pub(super) operator_commands: Vec<String>,

    /// How a server that comes back is refilled: auto = at once; manual = the other copy leads
    /// until the operator says resync; off = trusted as it is, like magent
    #[arg(long, value_name = "MODE", num_args = 0..=1, require_equals = true, default_missing_value = "auto",
          default_value = "auto", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) resync: Vec<String>,

    /// Several proxies over the same servers: where they agree on which of them is active, the same
    /// for all. etcd://HOST:PORT[,HOST:PORT...]/NAME (etcd 3.4 or later, plain HTTP), or file:PATH
    /// for proxies of one host
    #[arg(long, value_name = "WHERE", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) coordinate: Vec<String>,

    /// File with USER:PASSWORD for etcd
    #[arg(long, value_name = "PATH", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) coordinate_login: Vec<String>,

    /// Where the other proxies reach this one [default: the first -l address with a free port]
    #[arg(long, value_name = "HOST:PORT", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) advertise: Vec<String>,

    /// How long the active proxy may act without word from where they agree; the next one takes its
    /// place at most 1.3 times that after it was last heard of. The same for all
    #[arg(long, value_name = "TIME", default_value = "3s", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) lease: Vec<String>,

    /// Whether this proxy may become active, or only passes requests on
    #[arg(long, value_name = "yes|no", default_value = "yes", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) candidate: Vec<String>,

    /// How long requests wait while no proxy is active [default: two leases]
    #[arg(long, value_name = "TIME", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) takeover_wait: Vec<String>,

    /// After so long a former active proxy that has said nothing counts as gone
    #[arg(long, value_name = "TIME", default_value = "10m", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) former_grace: Vec<String>,

    /// Start without --coordinate over servers that a fleet has marked, and take its marks away.
    /// Refused while a proxy of the fleet lives, or may, and before all servers answer
    #[arg(long, help_heading = "Fleet")]
    pub(super) leave_fleet: bool,

    /// Items a second that all resyncs together may copy; 0 = unlimited
    #[arg(long, value_name = "N", default_value = "0", action = ArgAction::Append, allow_negative_numbers = true,
          help_heading = "Healing")]
    pub(super) resync_rate: Vec<String>,

    /// What resyncs may add to the time within which 99 of 100 answers come; they work as hard as
    /// that allows. off = as hard as they can
    #[arg(long, value_name = "TIME|off", default_value = "1ms", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) resync_latency: Vec<String>,

    /// Keys a second that `resync verify` compares; 0 = unlimited
    #[arg(long, value_name = "N", default_value = "10000", action = ArgAction::Append, allow_negative_numbers = true,
          help_heading = "Healing")]
    pub(super) verify_rate: Vec<String>,

    /// Memory for a resync's key list and buffers, at least the largest item; what does not fit
    /// goes to a temporary file
    #[arg(long, value_name = "SIZE", default_value = "64m", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) resync_memory: Vec<String>,

    /// How long a server may make no progress with what it was asked before it counts as lost and
    /// the other copy answers
    #[arg(long, value_name = "TIME", default_value = "250ms", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) timeout: Vec<String>,

    /// The same for the last full copy, which nobody can stand in for; at least --timeout
    #[arg(long, value_name = "TIME", default_value = "2s", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) leader_timeout: Vec<String>,

    /// How long the last full copy must refuse connections until its memory counts as gone
    #[arg(long, value_name = "TIME", default_value = "10s", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) leader_grace: Vec<String>,

    /// Pause between two probes of a server
    #[arg(long, value_name = "TIME", default_value = "500ms", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) probe_interval: Vec<String>,

    /// How long a probe may take; the longer of this and --timeout counts
    #[arg(long, value_name = "TIME", default_value = "250ms", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) probe_timeout: Vec<String>,

    /// Good probes in a row, 1 to 1000, before a lost server is taken back
    #[arg(long, value_name = "N", default_value = "3", action = ArgAction::Append, allow_negative_numbers = true,
          help_heading = "Healing")]
    pub(super) probe_successes: Vec<String>,

    /// Run as this user, by name or number, once the sockets are bound; needs root
    #[arg(short = 'u', long, value_name = "USER", action = ArgAction::Append, help_heading = "Process")]
    pub(super) user: Vec<String>,

    /// Run as this group, by name or number; by default the user's own
    #[arg(short = 'g', long, value_name = "GROUP", action = ArgAction::Append, help_heading = "Process")]
    pub(super) group: Vec<String>,

    /// Stay in the foreground (the default)
    #[arg(short = 'D', long, help_heading = "Process")]
    pub(super) foreground: bool,

    /// Go to the background once everything is ready, and write a pid file
    #[arg(short = 'd', long, help_heading = "Process")]
    pub(super) daemon: bool,

    /// Pid file; written in the foreground only if this is given [default with -d:
    /// /run/resilver.pid for root, else resilver.pid in $XDG_RUNTIME_DIR, else
    /// /tmp/resilver-UID.pid]
    #[arg(long, value_name = "PATH", action = ArgAction::Append, help_heading = "Process")]
    pub(super) pid_file: Vec<String>,

    /// How long requests in flight may take after SIGTERM; 0 = not at all
    #[arg(long, value_name = "TIME", default_value = "5s", action = ArgAction::Append, help_heading = "Process")]
    pub(super) shutdown_grace: Vec<String>,

    /// Read settings from this file (TOML), each option by its long name: check-config FILE judges
    /// it, check-config --defaults prints one with all of them. The command line wins over
    /// variables (RESILVER_TIMEOUT=300ms), which win over the file
    #[arg(long, value_name = "FILE", action = ArgAction::Append, help_heading = "Process")]
    pub(super) config: Vec<String>,

    /// Log more: -v debug (clients that come and go and why, refused and slow requests), -vv trace
    #[arg(short = 'v', long, action = ArgAction::Count, help_heading = "Log")]
    pub(super) verbose: u8,

    /// Form of the log: text or json
    #[arg(long, value_name = "FORM", default_value = "text", action = ArgAction::Append, help_heading = "Log")]
    pub(super) log_format: Vec<String>,

    /// Append the log to this file instead of stderr, which -d closes
    #[arg(long, value_name = "PATH", action = ArgAction::Append, help_heading = "Log")]
    pub(super) log_file: Vec<String>,

    /// Set by `resilver -d` for the copy of itself that it starts in the background.
    #[arg(long, hide = true)]
    pub(super) background_child: bool,
}
