//! The command line as clap sees it: names, help and defaults. Every value stays text here;
//! [`super::check`] judges them all together, because clap would stop at the first bad one.

use clap::{ArgAction, Parser};

/// What stands at the end of `--help`. Also the reference for exit codes and signals.
const AFTER_HELP: &str = "\
Units: times take ms, s, m, h (250ms, 1m30s); sizes are bytes or take k, m, g or KiB, MiB, GiB, all powers of 1024.

A command line of magent works unchanged:
  resilver -u root -n 51200 -l 127.0.0.1 -p 12000 -s 127.0.0.1:11211 -s 127.0.0.1:11212 -b 127.0.0.1:11213

Different from magent: it listens on 127.0.0.1, not on all addresses, unless -l says otherwise; it stays in the \
foreground unless -d is given; -k is libmemcached's ketama; -i defaults to one connection for each thread, not 20, \
because many clients share one.

Commands for a running proxy (see their --help): resilver status, top, key KEY, wait --mirrored or --ready; resync, \
verify, cancel, lead, gone, handover, stats, node, keys, reload; ask COMMAND sends any of these as the text protocol \
has it. Without a proxy: check-config FILE checks settings, completions SHELL prints a script for bash, zsh or fish, \
manual FOLDER writes the manual's pages.

Signals: SIGTERM, SIGINT and SIGQUIT stop accepting clients, finish requests in flight within --shutdown-grace, and \
exit with 0; a second one exits at once, with 143, 130 or 131. SIGHUP reads the settings again and reopens the log \
file; SIGUSR1 and SIGUSR2 are ignored.

Environment: each option is also a variable, RESILVER_ and its long name in capitals with _ for -; lists take commas \
(RESILVER_SERVER=cache1:11211,cache2:11211). RUST_LOG, if set and -v is not given, selects what is logged, for example \
resilver=debug. NO_COLOR turns colours off.

Exit codes: 0 stopped cleanly; 64 wrong or contradictory settings; 71 the system refused something (address in use, \
privileges, file limit, pid file, --coordinate); 75 replaced by another proxy of the fleet: start it again.";

/// The command line. Repeatable or not, every value is collected in a `Vec`, so that one given
/// twice can be reported together with everything else that is wrong.
#[derive(Parser, Debug)]
#[command(
    name = "resilver",
    version,
    about = "A memcached proxy that heals itself: every item is on two servers, and a server that comes back is \
             refilled before it is trusted.",
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

    /// Backup memcached server, which holds the second copy; repeat for each. Without any, Resilver
    /// is a plain sharding proxy and heals nothing
    #[arg(short = 'b', long, value_name = "HOST:PORT", action = ArgAction::Append, help_heading = "Servers")]
    pub(super) backup: Vec<String>,

    /// Spread keys by ketama, as libmemcached does, instead of magent's hash modulo the number of
    /// servers
    #[arg(short = 'k', long, help_heading = "Servers")]
    pub(super) ketama: bool,

    /// Connections to each server, over all threads, each of which has equally many: rounded down,
    /// but at least one for each, which is also what 0 and auto mean
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

    /// Unix socket to listen on as well
    #[arg(short = 'f', long, value_name = "PATH", action = ArgAction::Append, help_heading = "Clients")]
    pub(super) unix_socket: Vec<String>,

    /// Mode of the unix socket, octal; the umask does not apply. Write permission allows connecting
    /// [default: 700]
    #[arg(short = 'a', long, value_name = "MODE", action = ArgAction::Append, help_heading = "Clients")]
    pub(super) unix_socket_mode: Vec<String>,

    /// Most clients at a time; more are refused, except for 16 further connections that take
    /// operators' questions. Raises the limit of open files as needed; if the system forbids that,
    /// fewer clients are accepted
    #[arg(short = 'n', long, value_name = "N", default_value = "4096", action = ArgAction::Append,
          allow_negative_numbers = true, help_heading = "Clients")]
    pub(super) max_clients: Vec<String>,

    /// Largest item that clients may send in one command, counted as memcached counts it for -I,
    /// from 1k to 1g; append and prepend make larger ones, up to the servers' own -I
    #[arg(long, value_name = "SIZE", default_value = "1m", action = ArgAction::Append, help_heading = "Clients")]
    pub(super) item_size_max: Vec<String>,

    /// Memory for all clients together, for requests being received and answers not read yet; when
    /// half of it is used, each client gets one large value at a time
    #[arg(long, value_name = "SIZE", default_value = "512m", action = ArgAction::Append, help_heading = "Clients")]
    pub(super) client_memory: Vec<String>,

    /// Close clients that have sent nothing for this long; 0 = never
    #[arg(long, value_name = "TIME", default_value = "0", action = ArgAction::Append, help_heading = "Clients")]
    pub(super) idle_timeout: Vec<String>,

    /// Worker threads, 1 to 64; auto = half as many as there are cores, at least 1, at most 4
    #[arg(long, value_name = "N", default_value = "auto", action = ArgAction::Append,
          allow_negative_numbers = true, help_heading = "Process")]
    pub(super) threads: Vec<String>,

    /// Whether sockets use io_uring: auto = where the system supports it (Linux 6.1), otherwise
    /// epoll; on = refuse to start without it; off = epoll
    #[arg(long, value_name = "auto|on|off", default_value = "auto", action = ArgAction::Append, help_heading = "Process")]
    pub(super) io_uring: Vec<String>,

    /// Address for metrics (/metrics), the state (/status.json, /livez, /readyz) and a page for
    /// people (/) over HTTP, all read-only. HOST is an address or a name of this machine
    #[arg(long, value_name = "HOST:PORT", action = ArgAction::Append, help_heading = "Operators")]
    pub(super) admin: Vec<String>,

    /// Unix socket for operator commands (mode 660): resilver ask --proxy PATH
    #[arg(long, value_name = "PATH", action = ArgAction::Append, help_heading = "Operators")]
    pub(super) admin_socket: Vec<String>,

    /// Whether clients may use the commands resync and node too; off = only on --admin-socket
    #[arg(long, value_name = "on|off", default_value = "on", action = ArgAction::Append, help_heading = "Operators")]
    pub(super) operator_commands: Vec<String>,

    /// How a server that comes back is refilled: auto = at once; manual = on the operator's resync,
    /// until then the other copy leads; off = not at all, it is trusted as it is, like magent
    #[arg(long, value_name = "auto|manual|off", num_args = 0..=1, require_equals = true, default_missing_value = "auto",
          default_value = "auto", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) resync: Vec<String>,

    /// For several proxies over the same servers: the store in which they agree on the active one,
    /// the same for all. etcd://HOST:PORT[,HOST:PORT...]/NAME (etcd 3.4 or later, plain HTTP), or
    /// file:PATH for proxies of one host
    #[arg(long, value_name = "WHERE", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) coordinate: Vec<String>,

    /// File that contains USER:PASSWORD for etcd; read again at each log-in
    #[arg(long, value_name = "PATH", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) coordinate_login: Vec<String>,

    /// Address at which the other proxies reach this one [default: the first -l address with a free
    /// port]
    #[arg(long, value_name = "HOST:PORT", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) advertise: Vec<String>,

    /// How long the active proxy may act after it last renewed its claim in the store. If it stops
    /// renewing, another proxy takes its place within 1.3 leases, of its own or this one, whichever
    /// is longer
    #[arg(long, value_name = "TIME", default_value = "3s", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) lease: Vec<String>,

    /// Whether this proxy may become active; no = it only forwards requests
    #[arg(long, value_name = "yes|no", default_value = "yes", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) candidate: Vec<String>,

    /// How long requests wait while no proxy is active, at least 0.1 s [default: two leases]
    #[arg(long, value_name = "TIME", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) takeover_wait: Vec<String>,

    /// How long to wait for proof that a replaced active proxy has ended; after that it counts as
    /// gone
    #[arg(long, value_name = "TIME", default_value = "10m", action = ArgAction::Append, help_heading = "Fleet")]
    pub(super) former_grace: Vec<String>,

    /// Read the fleet's mark on a server behind each turn's writes, before clients are told: a
    /// proxy whose machine's clock stopped acknowledges nothing once it was replaced
    #[arg(long, help_heading = "Fleet")]
    pub(super) prove_writes: bool,

    /// Start without --coordinate over servers that were used with it, and delete that fleet's
    /// marks on them. Refused unless all servers answer and no proxy of the fleet can still be
    /// running
    #[arg(long, help_heading = "Fleet")]
    pub(super) leave_fleet: bool,

    /// Items that all resyncs together may copy in a second; 0 = unlimited
    #[arg(long, value_name = "N", default_value = "0", action = ArgAction::Append, allow_negative_numbers = true,
          help_heading = "Healing")]
    pub(super) resync_rate: Vec<String>,

    /// How much resyncs may raise clients' 99th percentile of latency; they copy as fast as that
    /// allows. off = at full speed
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

    /// How long a server may make no progress with its requests before it counts as lost and the
    /// other copy answers; up to twice this where several servers are late at once
    #[arg(long, value_name = "TIME", default_value = "250ms", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) timeout: Vec<String>,

    /// The same for a server that holds the last full copy, which no other can replace; at least
    /// --timeout
    #[arg(long, value_name = "TIME", default_value = "2s", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) leader_timeout: Vec<String>,

    /// How long a server with the last full copy must refuse connections before its items count as
    /// lost
    #[arg(long, value_name = "TIME", default_value = "10s", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) leader_grace: Vec<String>,

    /// Pause between two probes of a server
    #[arg(long, value_name = "TIME", default_value = "500ms", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) probe_interval: Vec<String>,

    /// How long a server may make no progress with a probe; the longer of this and --timeout
    /// applies
    #[arg(long, value_name = "TIME", default_value = "250ms", action = ArgAction::Append, help_heading = "Healing")]
    pub(super) probe_timeout: Vec<String>,

    /// Successful probes in a row, 1 to 1000, before a lost server is taken back
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

    /// Read settings from this TOML file, which names each option by its long name; check-config
    /// FILE checks it, check-config --defaults prints one with every option. The command line wins
    /// over variables (RESILVER_TIMEOUT=300ms), which win over the file
    #[arg(long, value_name = "FILE", action = ArgAction::Append, help_heading = "Process")]
    pub(super) config: Vec<String>,

    /// More logging: -v debug (clients that connect and leave and why, refused requests, slow
    /// requests), -vv trace (each request's command)
    #[arg(short = 'v', long, action = ArgAction::Count, help_heading = "Log")]
    pub(super) verbose: u8,

    /// Form of the log: text or json
    #[arg(long, value_name = "text|json", default_value = "text", action = ArgAction::Append, help_heading = "Log")]
    pub(super) log_format: Vec<String>,

    /// Append the log to this file instead of stderr, which -d closes
    #[arg(long, value_name = "PATH", action = ArgAction::Append, help_heading = "Log")]
    pub(super) log_file: Vec<String>,

    /// Set by `resilver -d` for the copy of itself that it starts in the background.
    #[arg(long, hide = true)]
    pub(super) background_child: bool,
}
