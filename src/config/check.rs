//! From text to [`Settings`]: every value is read, then all are held against each other, and every fault is kept.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt::{Display, Write as _};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

use super::accounts::Account;
use super::args::Args;
use super::units::{parse_size, parse_time, show_size, show_time};
use super::{CommandLine, LogFormat, LogSettings, ResyncMode, Settings, UsageErrors};
use crate::ring::{Distribution, NodeAddr, ServerSpec};

/// More nodes than this are a mistake: every primary makes a pair with every backup.
const MAX_NODES: usize = 256;
/// What `--threads auto` takes at most: past four the servers are the bottleneck, not the proxy.
const MAX_AUTO_THREADS: usize = 4;
/// A proxy of more threads is a typing mistake.
const MAX_THREADS: u64 = 64;
/// Connections to one node; memcached itself takes 1,024 by default.
const MAX_NODE_CONNECTIONS: u64 = 1_000;
/// Ports and descriptors end before this.
const MAX_CLIENTS: u64 = 10_000_000;
/// No time of the data path or of the probes is longer.
const MAX_TIME: Duration = Duration::from_secs(3_600);
/// The longest `--idle-timeout`.
const MAX_IDLE: Duration = Duration::from_secs(365 * 86_400);
/// Below this a probe is traffic.
const MIN_PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// Below this the key list of a resync is all temporary file.
const MIN_RESYNC_MEMORY: u64 = 1 << 20;
/// The most memory a resync may be given.
const MAX_RESYNC_MEMORY: u64 = 1 << 40;

/// What a command line is judged against besides itself. Injected, so that tests need no root and no DNS.
#[derive(Clone, Debug)]
pub struct Host {
    /// Effective user id of this process; 0 = root, who may become anybody.
    pub uid: u32,
    /// Effective group id of this process.
    pub gid: u32,
    /// Cores that this process may use.
    pub cores: usize,
    /// `XDG_RUNTIME_DIR`, where it is set.
    pub runtime_dir: Option<PathBuf>,
    /// `RUST_LOG`, where it is set.
    pub rust_log: Option<String>,
    /// A user by name or number.
    pub find_user: fn(&str) -> Option<Account>,
    /// A group's gid, by name or number.
    pub find_group: fn(&str) -> Option<u32>,
    /// The addresses of a host name.
    pub resolve: fn(&str) -> std::io::Result<Vec<IpAddr>>,
}

impl Host {
    /// The machine and process this runs in.
    pub fn this() -> Host {
        Host {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            runtime_dir: std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from),
            rust_log: std::env::var("RUST_LOG").ok(),
            find_user: Account::find,
            find_group: super::accounts::find_group,
            resolve: |name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect()),
        }
    }
}

/// See [`CommandLine::parse`].
pub(super) fn command_line(arguments: Vec<OsString>, host: &Host) -> Result<CommandLine, UsageErrors> {
    let (matches, mut faults) = match split(arguments) {
        Split::Print(text) => return Ok(CommandLine::Print(text)),
        Split::Matches(matches, faults) => (matches, faults),
    };
    let Some(matches) = matches else { return Err(UsageErrors(faults)) };
    let args = Args::from_arg_matches(&matches).map_err(|error| UsageErrors(vec![one_line(&error)]))?;

    let mut check = Check { command: Args::command(), matches, host, faults: Vec::new() };
    let settings = check.settings(&args);
    faults.append(&mut check.faults);
    if faults.is_empty() { Ok(CommandLine::Run(Box::new(settings))) } else { Err(UsageErrors(faults)) }
}

/// A command line cut into options.
enum Split {
    Print(String),
    /// No matches where what was left could not be read at all; then there is at least one fault.
    Matches(Option<ArgMatches>, Vec<String>),
}

/// Lets clap cut the command line into options. clap stops at the first one it does not know; that one is noted, taken
/// out, and the rest is tried again.
fn split(mut arguments: Vec<OsString>) -> Split {
    let mut faults = Vec::new();
    // Every round takes at least one argument away.
    for _ in 0..=arguments.len() {
        let error = match Args::command().try_get_matches_from(&arguments) {
            Ok(matches) => return Split::Matches(Some(matches), faults),
            Err(error) => error,
        };
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            return Split::Print(error.render().to_string());
        }
        faults.push(one_line(&error));
        if !remove_culprit(&mut arguments, &error) {
            return Split::Matches(None, faults);
        }
    }
    Split::Matches(None, faults)
}

/// Takes the argument that clap complains of off the command line; false if it cannot be found there.
fn remove_culprit(arguments: &mut Vec<OsString>, error: &clap::Error) -> bool {
    let Some(ContextValue::String(culprit)) = error.get(ContextKind::InvalidArg) else { return false };
    // For a missing value clap names the option with its placeholder: `--port <PORT>`.
    let culprit = culprit.split(' ').next().unwrap_or(culprit).to_owned();
    let long = culprit.starts_with("--");
    let short = if long { Args::command().get_arguments().find_map(|arg| short_of(arg, &culprit)) } else { None };
    let position = arguments.iter().skip(1).position(|argument| {
        let argument = argument.to_string_lossy();
        argument == culprit
            || (long && argument.strip_prefix(&culprit).is_some_and(|rest| rest.starts_with('=')))
            || short.as_ref().is_some_and(|short| argument == *short)
            // One bad letter in a cluster such as `-Zv` spoils the cluster.
            || (!long && culprit.len() == 2 && argument.starts_with('-') && !argument.starts_with("--")
                && argument.contains(&culprit[1..]))
    });
    let Some(position) = position.map(|position| position + 1) else { return false };
    arguments.remove(position);
    // There are no positional arguments: what follows an unknown option belongs to it.
    if error.kind() == ErrorKind::UnknownArgument && culprit.starts_with('-') {
        while arguments.get(position).is_some_and(|next| !next.to_string_lossy().starts_with('-')) {
            arguments.remove(position);
        }
    }
    true
}

/// The short form of the option whose long form is `long`.
fn short_of(arg: &Arg, long: &str) -> Option<String> {
    (arg.get_long().map(|name| format!("--{name}")).as_deref() == Some(long))
        .then(|| arg.get_short().map(|letter| format!("-{letter}")))
        .flatten()
}

/// clap's message without its frame: one line, like all the others.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut line = String::new();
    for part in text.lines().map(str::trim) {
        if part.starts_with("Usage:") || part.starts_with("For more information") {
            break;
        }
        if !part.is_empty() {
            let separator = if line.is_empty() { "" } else { "; " };
            let _ = write!(line, "{separator}{}", part.strip_prefix("error: ").unwrap_or(part));
        }
    }
    line
}

/// Collects faults while it turns text into values. A value that cannot be read is reported and replaced by something
/// harmless, so that the rest can be judged too.
struct Check<'a> {
    command: Command,
    matches: ArgMatches,
    host: &'a Host,
    faults: Vec<String>,
}

impl Check<'_> {
    fn settings(&mut self, args: &Args) -> Settings {
        let distribution = if args.ketama { Distribution::Ketama } else { Distribution::Modula };
        let primaries = self.servers("server", &args.server, distribution);
        let backups = self.servers("backup", &args.backup, distribution);
        if args.server.is_empty() {
            self.fault("-s/--server: no server was given; name at least one, for example -s 127.0.0.1:11211");
        }
        self.servers_together(&primaries, &backups);

        let port = self.number("port", &args.port, 0..=65_535, "0 = no TCP").unwrap_or(1) as u16;
        let listen = self.listen(&args.listen, port);
        let unix_socket = self.path("unix_socket", &args.unix_socket);
        if port == 0 && unix_socket.is_none() {
            self.fault("-p/--port 0 without -f/--unix-socket leaves nowhere to listen; give -f PATH or a port");
        }
        if port == 0 && self.given("listen") {
            self.fault("-l/--listen contradicts -p/--port 0, which means no TCP; give a port or drop -l");
        }
        self.not_itself(&listen, primaries.iter().chain(&backups));

        let threads = match args.threads.last().map(String::as_str) {
            Some("auto") => (self.host.cores / 2).clamp(1, MAX_AUTO_THREADS),
            _ => {
                self.number("threads", &args.threads, 1..=MAX_THREADS, "auto = one for each core").unwrap_or(1) as usize
            }
        };
        let node_connections = match args.node_connections.last().map(String::as_str) {
            Some("auto") => 0,
            _ => {
                let range = 0..=MAX_NODE_CONNECTIONS;
                self.number("node_connections", &args.node_connections, range, "0 = one for each thread").unwrap_or(0)
            }
        };
        let max_clients =
            self.number("max_clients", &args.max_clients, 1..=MAX_CLIENTS, "clients at once").unwrap_or(1);
        let item_size_max = self.size("item_size_max", &args.item_size_max, 1 << 10..=1 << 30).unwrap_or(1 << 10);

        let times = self.times(args);
        let resync = self.resync(args, &backups);
        let resync_rate =
            self.number("resync_rate", &args.resync_rate, 0..=1_000_000_000, "0 = unlimited").unwrap_or(0);
        let verify_rate =
            self.number("verify_rate", &args.verify_rate, 0..=1_000_000_000, "0 = unlimited").unwrap_or(0);
        let resync_memory = self.resync_memory(args, item_size_max);
        let probe_successes = self.number("probe_successes", &args.probe_successes, 1..=1_000, "probes in a row");

        self.accounts(args);
        if args.daemon && args.foreground {
            self.fault("-d/--daemon contradicts -D/--foreground; give one of them");
        }
        let pid_file = self.path("pid_file", &args.pid_file).or_else(|| args.daemon.then(|| self.default_pid_file()));
        let log = self.log(args);

        Settings {
            primaries,
            backups,
            distribution,
            listen,
            unix_socket,
            max_clients: max_clients as usize,
            node_connections: (node_connections as usize).max(threads),
            threads,
            resync,
            timeout: times.timeout,
            leader_timeout: times.leader_timeout,
            leader_grace: times.leader_grace,
            probe_interval: times.probe_interval,
            probe_timeout: times.probe_timeout,
            probe_successes: probe_successes.unwrap_or(1) as u32,
            resync_rate: (resync_rate > 0).then_some(resync_rate),
            verify_rate: (verify_rate > 0).then_some(verify_rate),
            resync_memory: resync_memory as usize,
            item_size_max: item_size_max as usize,
            shutdown_grace: times.shutdown_grace,
            idle_timeout: (!times.idle_timeout.is_zero()).then_some(times.idle_timeout),
            user: args.user.last().cloned(),
            group: args.group.last().cloned(),
            daemonize: args.daemon,
            background_child: args.background_child,
            pid_file,
            log,
        }
    }

    // ---- values -----------------------------------------------------------------------------------------------------

    fn fault(&mut self, sentence: impl Into<String>) {
        self.faults.push(sentence.into());
    }

    /// Reports a value that cannot be right: `-p/--port 99999: why`.
    fn bad(&mut self, id: &str, value: &str, why: impl Display) {
        let value = if value.is_empty() || value.contains(char::is_whitespace) {
            format!("{value:?}")
        } else {
            value.to_owned()
        };
        self.faults.push(format!("{} {value}: {why}", self.flag(id)));
    }

    /// An option as people know it: `-p/--port`.
    fn flag(&self, id: &str) -> String {
        let arg = self.command.get_arguments().find(|arg| arg.get_id() == id).expect("only ids of Args are asked for");
        let long = arg.get_long().expect("every option has a long name");
        match arg.get_short() {
            Some(letter) => format!("-{letter}/--{long}"),
            None => format!("--{long}"),
        }
    }

    /// Whether the option stands on the command line.
    fn given(&self, id: &str) -> bool {
        self.matches.value_source(id) == Some(ValueSource::CommandLine)
    }

    /// The one value of an option that makes no sense twice; two different ones are a contradiction.
    fn single<'v>(&mut self, id: &str, values: &'v [String]) -> Option<&'v str> {
        let last = values.last()?;
        if let Some(other) = values.iter().find(|value| *value != last) {
            let sentence = format!("{} was given twice, as {other} and as {last}; give one", self.flag(id));
            self.fault(sentence);
        }
        Some(last)
    }

    fn number(&mut self, id: &str, values: &[String], range: RangeInclusive<u64>, hint: &str) -> Option<u64> {
        let text = self.single(id, values)?;
        match text.parse::<u64>() {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                let (least, most) = range.into_inner();
                self.bad(id, text, format_args!("must be a whole number from {least} to {most} ({hint})"));
                None
            }
        }
    }

    fn size(&mut self, id: &str, values: &[String], range: RangeInclusive<u64>) -> Option<u64> {
        let text = self.single(id, values)?;
        match parse_size(text) {
            Ok(bytes) if range.contains(&bytes) => Some(bytes),
            Ok(_) => {
                let (least, most) = range.into_inner();
                self.bad(id, text, format_args!("must be from {} to {}", show_size(least), show_size(most)));
                None
            }
            Err(why) => {
                self.bad(id, text, why);
                None
            }
        }
    }

    fn time(&mut self, id: &str, values: &[String], range: RangeInclusive<Duration>) -> Option<Duration> {
        let text = self.single(id, values)?;
        match parse_time(text) {
            Ok(time) if range.contains(&time) => return Some(time),
            Ok(time) => {
                let (least, most) = (show_time(*range.start()), show_time(*range.end()));
                let not_zero = if time.is_zero() { "cannot be zero; it " } else { "" };
                self.bad(id, text, format_args!("{not_zero}must be from {least} to {most}"));
            }
            Err(why) => self.bad(id, text, why),
        }
        None
    }

    fn path(&mut self, id: &str, values: &[String]) -> Option<PathBuf> {
        let text = self.single(id, values)?;
        // Absolute, because a daemon leaves the directory it was started in.
        match std::path::absolute(text) {
            Ok(path) if path.file_name().is_some() && !text.ends_with('/') => Some(path),
            Ok(_) => {
                self.bad(id, text, "must be the path of a file");
                None
            }
            Err(why) => {
                self.bad(id, text, format_args!("is no path ({why}); give the path of a file"));
                None
            }
        }
    }

    // ---- servers and listeners --------------------------------------------------------------------------------------

    fn servers(&mut self, id: &str, values: &[String], distribution: Distribution) -> Vec<ServerSpec> {
        let mut servers = Vec::new();
        for text in values {
            match text.parse::<ServerSpec>() {
                Ok(server) => {
                    if server.weight != 1 && distribution == Distribution::Modula {
                        self.bad(id, text, "only ketama knows weights; add -k, or drop the weight");
                    }
                    servers.push(server);
                }
                Err(why) => self.bad(id, text, format_args!("{}; give HOST:PORT", why.problem)),
            }
        }
        servers
    }

    /// A node in two places would be its own backup, or hold two shares of one ring.
    fn servers_together(&mut self, primaries: &[ServerSpec], backups: &[ServerSpec]) {
        let mut all = HashSet::new();
        for (servers, id) in [(primaries, "server"), (backups, "backup")] {
            let mut ring = HashSet::new();
            for server in servers {
                let key = same_node(&server.addr);
                if !ring.insert(key.clone()) {
                    self.bad(id, &server.addr.to_string(), "stands twice on this ring; name each server once");
                } else if !all.insert(key) {
                    let why = "is a primary too, and a server cannot be its own backup; take it off one ring";
                    self.bad(id, &server.addr.to_string(), why);
                }
            }
        }
        let count = primaries.len() + backups.len();
        if count > MAX_NODES {
            self.fault(format!("-s/--server and -b/--backup: {count} servers are too many; {MAX_NODES} is the most"));
        }
    }

    fn listen(&mut self, values: &[String], port: u16) -> Vec<SocketAddr> {
        let mut listen: Vec<SocketAddr> = Vec::new();
        // memcached takes a list with commas in one -l, so that is taken too.
        for text in values.iter().flat_map(|value| value.split(',')) {
            let literal = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
            let addresses = match literal.parse::<IpAddr>() {
                Ok(address) => vec![address],
                Err(_) => self.listen_name(text),
            };
            for address in addresses.into_iter().map(|address| SocketAddr::new(address, port)) {
                if !listen.contains(&address) {
                    listen.push(address);
                }
            }
        }
        if port == 0 { Vec::new() } else { listen }
    }

    /// The addresses of a host name given with `-l`: the IPv4 ones, where it has any, because `localhost` has an IPv6
    /// address also on machines without IPv6.
    fn listen_name(&mut self, text: &str) -> Vec<IpAddr> {
        if text.is_empty() || text.contains([':', '[', ']', '/', ' ']) {
            self.bad("listen", text, "is no address; give one such as 127.0.0.1, 0.0.0.0 or ::1, and the port with -p");
            return Vec::new();
        }
        match (self.host.resolve)(text) {
            Ok(addresses) if !addresses.is_empty() => {
                let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_ipv4);
                if v4.is_empty() { v6 } else { v4 }
            }
            Ok(_) => {
                self.bad("listen", text, "has no address; give an address such as 127.0.0.1");
                Vec::new()
            }
            Err(why) => {
                self.bad("listen", text, format_args!("cannot be resolved ({why}); give an address such as 127.0.0.1"));
                Vec::new()
            }
        }
    }

    /// `resilver -s 127.0.0.1:11211` with the default port would forward to itself for ever.
    fn not_itself<'s>(&mut self, listen: &[SocketAddr], servers: impl Iterator<Item = &'s ServerSpec>) {
        for server in servers {
            let ip = match server.addr.host.as_str() {
                host if host.eq_ignore_ascii_case("localhost") => Some(IpAddr::from([127, 0, 0, 1])),
                host => host.parse::<IpAddr>().ok(),
            };
            let Some(ip) = ip else { continue };
            let hit = listen.iter().find(|own| {
                own.port() == server.addr.port && (own.ip() == ip || (own.ip().is_unspecified() && ip.is_loopback()))
            });
            if let Some(own) = hit {
                let sentence = format!(
                    "server {}: the proxy would listen there itself ({own}) and talk to itself; give another -p",
                    server.addr
                );
                self.fault(sentence);
            }
        }
    }

    // ---- healing ----------------------------------------------------------------------------------------------------

    fn times(&mut self, args: &Args) -> Times {
        let least = Duration::from_millis(1);
        let short = least..=MAX_TIME;
        let zero = Duration::ZERO;
        let fallback = Duration::from_secs(1);
        let timeout = self.time("timeout", &args.timeout, short.clone());
        let mut leader_timeout = self.time("leader_timeout", &args.leader_timeout, short.clone());
        let probe_interval = self.time("probe_interval", &args.probe_interval, MIN_PROBE_INTERVAL..=MAX_TIME);
        let probe_timeout = self.time("probe_timeout", &args.probe_timeout, short.clone());
        // A default gives way to a neighbour that was given; two that were given must agree.
        if let (Some(short), Some(long)) = (timeout, leader_timeout)
            && long < short
        {
            if self.given("leader_timeout") {
                let why =
                    format!("is shorter than --timeout {}; the last copy must be waited for longer", show_time(short));
                self.bad("leader_timeout", &show_time(long), why);
            }
            leader_timeout = Some(short);
        }
        Times {
            timeout: timeout.unwrap_or(fallback),
            leader_timeout: leader_timeout.unwrap_or(fallback),
            leader_grace: self.time("leader_grace", &args.leader_grace, short).unwrap_or(fallback),
            probe_interval: probe_interval.unwrap_or(fallback),
            probe_timeout: probe_timeout.unwrap_or(fallback),
            shutdown_grace: self.time("shutdown_grace", &args.shutdown_grace, zero..=MAX_TIME).unwrap_or(fallback),
            idle_timeout: self.time("idle_timeout", &args.idle_timeout, zero..=MAX_IDLE).unwrap_or(zero),
        }
    }

    fn resync(&mut self, args: &Args, backups: &[ServerSpec]) -> ResyncMode {
        let mode = match self.single("resync", &args.resync) {
            None | Some("auto") => ResyncMode::Auto,
            Some("manual") => ResyncMode::Manual,
            Some("off") => ResyncMode::Off,
            Some(other) => {
                self.faults.push(format!("--resync={other}: there is no such mode; give auto, manual or off"));
                ResyncMode::Auto
            }
        };
        let limits: Vec<&str> = ["resync_rate", "resync_memory"].into_iter().filter(|id| self.given(id)).collect();
        if args.backup.is_empty() && backups.is_empty() {
            if self.given("resync") && mode == ResyncMode::Manual {
                let sentence = format!(
                    "--resync={mode} without -b/--backup: there is nothing to refill from; give backups or drop it"
                );
                self.fault(sentence);
            }
            for id in limits {
                let sentence = format!(
                    "{} without -b/--backup: there is nothing to refill from; give backups or drop it",
                    self.flag(id)
                );
                self.fault(sentence);
            }
        } else if mode == ResyncMode::Off {
            for id in limits {
                let sentence = format!(
                    "{} contradicts --resync=off, under which nothing is refilled; drop one of them",
                    self.flag(id)
                );
                self.fault(sentence);
            }
        }
        mode
    }

    fn resync_memory(&mut self, args: &Args, item_size_max: u64) -> u64 {
        let range = MIN_RESYNC_MEMORY..=MAX_RESYNC_MEMORY.min(usize::MAX as u64);
        let memory = self.size("resync_memory", &args.resync_memory, range).unwrap_or(MIN_RESYNC_MEMORY);
        if memory < item_size_max && self.given("resync_memory") {
            let why =
                format!("cannot hold one item of --item-size-max {}; give at least that", show_size(item_size_max));
            self.bad("resync_memory", &show_size(memory), why);
        }
        memory.max(item_size_max)
    }

    // ---- process ----------------------------------------------------------------------------------------------------

    fn accounts(&mut self, args: &Args) {
        let root = self.host.uid == 0;
        if let Some(name) = self.single("user", &args.user) {
            match (self.host.find_user)(name) {
                None => self.bad("user", name, "there is no such user here; give the name or number of one"),
                Some(account) if !root && account.uid != self.host.uid => {
                    let why = format!(
                        "only root can become another user, and this is user {}; start it as root or drop -u",
                        self.host.uid
                    );
                    self.bad("user", name, why);
                }
                Some(account) if account.gid.is_none() && args.group.is_empty() => {
                    self.bad("user", name, "no account has this number, so it has no group of its own; give -g too");
                }
                Some(_) => {}
            }
        }
        if let Some(name) = self.single("group", &args.group) {
            match (self.host.find_group)(name) {
                None => self.bad("group", name, "there is no such group here; give the name or number of one"),
                Some(gid) if !root && gid != self.host.gid => {
                    let why = format!(
                        "only root can change the group, and this is user {}; start it as root or drop -g",
                        self.host.uid
                    );
                    self.bad("group", name, why);
                }
                Some(_) => {}
            }
        }
    }

    fn default_pid_file(&self) -> PathBuf {
        match &self.host.runtime_dir {
            _ if self.host.uid == 0 => PathBuf::from("/run/resilver.pid"),
            Some(dir) => dir.join("resilver.pid"),
            None => Path::new("/tmp").join(format!("resilver-{}.pid", self.host.uid)),
        }
    }

    fn log(&mut self, args: &Args) -> LogSettings {
        let format = match self.single("log_format", &args.log_format) {
            None | Some("text") => LogFormat::Text,
            Some("json") => LogFormat::Json,
            Some(other) => {
                self.bad("log_format", other, "there is no such form; give text or json");
                LogFormat::Text
            }
        };
        let filter = match (&self.host.rust_log, args.verbose) {
            (Some(filter), 0) if !filter.trim().is_empty() => filter.clone(),
            (_, 0) => "warn,resilver=info".to_owned(),
            (_, 1) => "info,resilver=debug".to_owned(),
            _ => "info,resilver=trace".to_owned(),
        };
        if let Err(why) = tracing_subscriber::EnvFilter::try_new(&filter) {
            self.fault(format!("RUST_LOG={filter}: {why}; write for example resilver=debug, or unset it"));
        }
        LogSettings { filter, format, file: self.path("log_file", &args.log_file) }
    }
}

/// All the times, read and in order.
struct Times {
    timeout: Duration,
    leader_timeout: Duration,
    leader_grace: Duration,
    probe_interval: Duration,
    probe_timeout: Duration,
    shutdown_grace: Duration,
    idle_timeout: Duration,
}

/// What makes two addresses the same node: `LOCALHOST` and `localhost`, `::1` and `0:0::1`.
fn same_node(addr: &NodeAddr) -> (String, u16) {
    let host = match addr.host.parse::<IpAddr>() {
        Ok(ip) => ip.to_string(),
        Err(_) => addr.host.trim_end_matches('.').to_ascii_lowercase(),
    };
    (host, addr.port)
}
