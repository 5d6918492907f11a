//! From text to [`Settings`]: every value is read, then all are held against each other, and every
//! fault is kept.

mod files;
mod fleet;
mod healing;
mod listeners;
mod operators;
mod pools;
mod split;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

use super::accounts::Account;
use super::args::Args;
use super::sources::{Found, Origin, Origins, Sources, misplaced};
use super::units::{parse_size, parse_time, show_size, show_time};
use super::{CommandLine, IoUringMode, LogFormat, LogSettings, Plan, PoolName, ProcessSettings, Settings, UsageErrors};
use crate::ring::Distribution;

use operators::Operators;
use pools::Outside;
use split::{Split, one_line, shortened, split};

/// What `--threads auto` takes at most: past four the servers are the bottleneck, not the proxy.
const MAX_AUTO_THREADS: usize = 4;
/// A proxy of more threads is a typing mistake.
const MAX_THREADS: u64 = 64;
/// Connections to one node; memcached itself takes 1,024 by default.
const MAX_NODE_CONNECTIONS: u64 = 1_000;
/// memcached's own default: the socket is for the user that runs the proxy.
const SOCKET_MODE: u32 = 0o700;
/// Ports and descriptors end before this.
const MAX_CLIENTS: u64 = 10_000_000;

/// What a command line is judged against besides itself. Injected, so that tests need no root and
/// no DNS.
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
    /// Where paths begin that are not absolute: a daemon leaves that directory.
    pub directory: PathBuf,
    /// Those that begin with `RESILVER_`.
    pub variables: Vec<(String, OsString)>,
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
            directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            variables: super::sources::variables(),
            find_user: Account::find,
            find_group: super::accounts::find_group,
            resolve: |name| Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect()),
        }
    }
}

/// See [`CommandLine::parse`].
pub(super) fn command_line(arguments: Vec<OsString>, host: &Host) -> Result<CommandLine, UsageErrors> {
    let (matches, mut faults, arguments) = match split(arguments) {
        Split::Print(text) => return Ok(CommandLine::Print(text)),
        Split::Matches(matches, faults, arguments) => (matches, faults, arguments),
    };
    let Some(matches) = matches else { return Err(UsageErrors(faults)) };
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let ids: BTreeSet<String> = matches.ids().map(ToString::to_string).filter(|id| given(id)).collect();
    let config = match config_file(&matches, host) {
        Ok(config) => config,
        Err(fault) => {
            faults.push(fault);
            return Err(UsageErrors(faults));
        }
    };
    let command = Args::command();
    let sources = Sources::read(&command, config.as_deref(), &host.variables, &ids);
    faults.extend(sources.faults.iter().cloned());
    if sources.unread {
        return Err(UsageErrors(faults));
    }
    let mut arguments = arguments.into_iter();
    let program = arguments.next().unwrap_or_default();
    if !sources.pools.is_empty() {
        let outside = Outside { command: &command, sources: &sources, matches: &matches, given: &ids, program };
        let plan = outside.judge(host, &mut faults);
        return plan.map_or(Err(UsageErrors(faults)), |plan| Ok(CommandLine::Run(Box::new(plan))));
    }
    // What is given in all three ways is one command line; what is wrong with it is said of where
    // it stands.
    let all = [program].into_iter().chain(sources.arguments()).chain(arguments).collect();
    let judged = judge(all, &sources.found, (host, config), Part { pools: 1, ..Part::default() });
    faults.extend(judged.faults);
    match judged.settings {
        Some((process, settings)) if faults.is_empty() => {
            Ok(CommandLine::Run(Box::new(Plan { process, pools: vec![settings] })))
        }
        _ => Err(UsageErrors(faults)),
    }
}

/// Which of several pools is judged; of the only one without a name nothing but that.
#[derive(Default)]
struct Part {
    pool: Option<PoolName>,
    /// Where it begins.
    at: Option<String>,
    /// Options that stand outside of it, and count as its defaults.
    inherited: BTreeSet<String>,
    /// How many there are.
    pools: usize,
}

/// What came of a command line.
struct Judged {
    /// `None`: it could not be read.
    settings: Option<(ProcessSettings, Settings)>,
    faults: Vec<String>,
}

fn judge(all: Vec<OsString>, found: &[Found], (host, config): (&Host, Option<PathBuf>), part: Part) -> Judged {
    let command = Args::command();
    let matches = command.clone().try_get_matches_from(all);
    match matches.and_then(|matches| Ok((Args::from_arg_matches(&matches)?, matches))) {
        Ok((args, matches)) => {
            let origins = Origins::of(found);
            let mut check = Check { command, matches, host, config, part, origins, faults: Vec::new() };
            let settings = check.settings(&args);
            Judged { settings: Some(settings), faults: check.faults }
        }
        Err(error) => Judged { settings: None, faults: vec![one_line(&error)] },
    }
}

/// `--config`, or its variable; made absolute, because a daemon leaves the directory it was started
/// in.
fn config_file(matches: &ArgMatches, host: &Host) -> Result<Option<PathBuf>, String> {
    let given = matches.get_many::<String>("config").and_then(|mut all| all.next_back());
    let variable = || host.variables.iter().find(|(name, _)| *name == super::sources::variable("config"));
    let (from, path) = match (given, variable()) {
        (Some(path), _) => ("--config", OsString::from(path)),
        (None, Some((name, path))) => (name.as_str(), path.clone()),
        (None, None) => return Ok(None),
    };
    if path.is_empty() {
        return Err(format!("{from} \"\": is no path; give the path of a file"));
    }
    let path = host.directory.join(path);
    Ok(Some(std::path::absolute(&path).unwrap_or(path)))
}

/// Collects faults while it turns text into values. A value that cannot be read is reported and
/// replaced by something harmless, so that the rest can be judged too.
struct Check<'a> {
    command: Command,
    matches: ArgMatches,
    host: &'a Host,
    /// The file that was read.
    config: Option<PathBuf>,
    part: Part,
    /// Of what stands in the file and the environment.
    origins: Origins,
    faults: Vec<String>,
}

impl Check<'_> {
    fn settings(&mut self, args: &Args) -> (ProcessSettings, Settings) {
        let distribution = if args.ketama { Distribution::Ketama } else { Distribution::Modula };
        let primaries = self.servers("server", &args.server, distribution);
        let backups = self.servers("backup", &args.backup, distribution);
        if args.server.is_empty() {
            self.fault("-s/--server: no server was given; name at least one, for example -s 127.0.0.1:11211");
        }
        self.servers_together(&primaries, &backups);

        let (listen, unix_socket) = self.clients_come_by(args);
        let unix_socket_mode = self.unix_socket_mode(args);
        let operators = self.operators(args, &listen);
        let own: Vec<_> = listen.iter().copied().chain(operators.admin).collect();
        self.not_itself(&own, "server", &primaries);
        self.not_itself(&own, "backup", &backups);

        let threads = self.threads(args);
        let io_uring = self.io_uring(args);
        let node_connections = self.node_connections(args, threads);
        let max_clients =
            self.number("max_clients", &args.max_clients, 1..=MAX_CLIENTS, "clients at once").unwrap_or(1);
        let item_size_max = self.size("item_size_max", &args.item_size_max, 1 << 10..=1 << 30).unwrap_or(1 << 10);
        let client_memory = self.client_memory(args, item_size_max);

        let times = self.times(args);
        let resync = self.resync(args, &backups);
        let resync_latency = self.resync_latency(args);
        let resync_rate =
            self.number("resync_rate", &args.resync_rate, 0..=1_000_000_000, "0 = unlimited").unwrap_or(0);
        let verify_rate =
            self.number("verify_rate", &args.verify_rate, 0..=1_000_000_000, "0 = unlimited").unwrap_or(0);
        let resync_memory = self.resync_memory(args, item_size_max);
        let probe_successes = self.number("probe_successes", &args.probe_successes, 1..=1_000, "probes in a row");

        let process = self.process(args, unix_socket.as_deref(), &operators);
        let fleet = self.fleet(args, &listen, resync);

        let settings = Settings {
            pool: self.part.pool.clone(),
            primaries,
            backups,
            distribution,
            listen,
            unix_socket,
            unix_socket_mode,
            operator_commands: operators.commands,
            max_clients: max_clients as usize,
            node_connections,
            threads,
            io_uring,
            resync,
            timeout: times.timeout,
            leader_timeout: times.leader_timeout,
            leader_grace: times.leader_grace,
            probe_interval: times.probe_interval,
            probe_timeout: times.probe_timeout,
            probe_successes: probe_successes.unwrap_or(1) as u32,
            resync_rate: (resync_rate > 0).then_some(resync_rate),
            resync_latency,
            verify_rate: (verify_rate > 0).then_some(verify_rate),
            resync_memory: resync_memory as usize,
            item_size_max: item_size_max as usize,
            client_memory: client_memory as usize,
            shutdown_grace: times.shutdown_grace,
            idle_timeout: (!times.idle_timeout.is_zero()).then_some(times.idle_timeout),
            fleet,
            leave_fleet: args.leave_fleet,
        };
        (process, settings)
    }

    fn process(&mut self, args: &Args, unix_socket: Option<&Path>, operators: &Operators) -> ProcessSettings {
        self.accounts(args);
        if args.daemon && args.foreground {
            self.fault_of("daemon", " contradicts -D/--foreground; give one of them");
        }
        let pid_file = self.path("pid_file", &args.pid_file).or_else(|| args.daemon.then(|| self.default_pid_file()));
        let log = self.log(args);
        self.files_apart(&[
            ("unix_socket", unix_socket),
            ("admin_socket", operators.admin_socket.as_deref()),
            ("pid_file", pid_file.as_deref()),
            ("log_file", log.file.as_deref()),
        ]);
        ProcessSettings {
            admin: operators.admin,
            admin_socket: operators.admin_socket.clone(),
            user: args.user.last().cloned(),
            group: args.group.last().cloned(),
            daemonize: args.daemon,
            background_child: args.background_child,
            pid_file,
            log,
            config: self.config.take(),
            unknown_variables: super::sources::strangers(&self.command, &self.host.variables),
        }
    }

    /// TCP addresses, and the unix socket.
    fn clients_come_by(&mut self, args: &Args) -> (Vec<SocketAddr>, Option<PathBuf>) {
        let port = self.number("port", &args.port, 0..=65_535, "0 = no TCP").unwrap_or(1) as u16;
        let listen = self.listen(&args.listen, port);
        let unix_socket = self.socket_path("unix_socket", &args.unix_socket);
        if port == 0 && unix_socket.is_none() {
            self.fault_about("port", " 0 without -f/--unix-socket leaves nowhere to listen; give -f PATH or a port");
        }
        if port == 0 && self.asked("listen") {
            self.fault_about("listen", " contradicts -p/--port 0, which means no TCP; give a port or drop -l");
        }
        (listen, unix_socket)
    }

    fn threads(&mut self, args: &Args) -> usize {
        if args.threads.last().is_some_and(|threads| threads == "auto") {
            return (self.host.cores / 2 / self.part.pools).clamp(1, MAX_AUTO_THREADS);
        }
        let hint = "auto = half as many as there are cores, at least 1, at most 4";
        self.number("threads", &args.threads, 1..=MAX_THREADS, hint).unwrap_or(1) as usize
    }

    fn io_uring(&mut self, args: &Args) -> IoUringMode {
        match self.single("io_uring", &args.io_uring) {
            None | Some("auto") => IoUringMode::Auto,
            Some("on") => IoUringMode::On,
            Some("off") => IoUringMode::Off,
            Some(other) => {
                self.bad("io_uring", other, "is none of auto, on and off");
                IoUringMode::Auto
            }
        }
    }

    /// As many for each thread. Rounded down: servers are sized by what was asked for (memcached's
    /// `-c`).
    fn node_connections(&mut self, args: &Args, threads: usize) -> usize {
        let asked = match args.node_connections.last().map(String::as_str) {
            Some("auto") => 0,
            _ => {
                let range = 0..=MAX_NODE_CONNECTIONS;
                self.number("node_connections", &args.node_connections, range, "0 = one for each thread").unwrap_or(0)
            }
        };
        (asked as usize / threads).max(1) * threads
    }

    /// One item that is being sent, and as much for answers.
    fn client_memory(&mut self, args: &Args, item_size_max: u64) -> u64 {
        let memory = self.size("client_memory", &args.client_memory, 16 << 20..=1 << 40).unwrap_or(16 << 20);
        let least = 2 * item_size_max;
        if memory < least && self.given("client_memory") {
            let size = show_size(memory);
            self.bad("client_memory", &size, format!("must be twice --item-size-max at least: {}", show_size(least)));
        }
        memory.max(least)
    }

    // ---- values ---------------------------------------------------------------------------------

    /// Reports a sentence that names no place in a file: with the pool, if there are several.
    fn fault(&mut self, sentence: impl Into<String>) {
        let sentence = sentence.into();
        self.faults.push(match (&self.part.at, &self.part.pool) {
            (Some(at), Some(pool)) => format!("{at}: pool {pool}: {sentence}"),
            _ => sentence,
        });
    }

    /// Reports a sentence that begins with an option, as [`Check::flag`] names it: an option in the
    /// file is named with its line, and so needs no pool in front.
    fn fault_about(&mut self, id: &str, rest: impl Display) {
        let sentence = format!("{}{rest}", self.flag(id));
        match self.origins.find(id, None) {
            Some(Origin::File { .. }) => self.faults.push(sentence),
            _ => self.fault(sentence),
        }
    }

    /// The same for an option that may belong to the whole process: each pool finds it, so it is
    /// reported without one.
    fn fault_of(&mut self, id: &str, rest: impl Display) {
        match self.arg(id).get_long().and_then(|long| misplaced(long, true)) {
            Some(_) => self.faults.push(format!("{}{rest}", self.flag(id))),
            None => self.fault_about(id, rest),
        }
    }

    /// Reports a value that cannot be right: `-p/--port 99999: why`.
    fn bad(&mut self, id: &str, value: &str, why: impl Display) {
        let flag = self.flag_with(id, Some(value));
        let value = if value.is_empty() || value.contains(|c: char| c.is_whitespace() || c.is_control()) {
            format!("{value:?}")
        } else {
            value.to_owned()
        };
        let value = shortened(&value);
        let by_equals = self.origins.find(id, None).is_none() && self.arg(id).is_require_equals_set();
        self.faults.push(format!("{flag}{}{value}: {why}", if by_equals { '=' } else { ' ' }));
    }

    /// An option as people know it: `-p/--port`; `FILE:LINE: port` in a file, and the variable's
    /// name in the environment.
    fn flag(&self, id: &str) -> String {
        self.flag_with(id, None)
    }

    fn arg(&self, id: &str) -> &Arg {
        self.command.get_arguments().find(|arg| arg.get_id() == id).expect("only ids of Args are asked for")
    }

    fn flag_with(&self, id: &str, value: Option<&str>) -> String {
        let arg = self.arg(id);
        let long = arg.get_long().expect("every option has a long name");
        match self.origins.find(id, value) {
            Some(Origin::Variable(name)) => return name.clone(),
            Some(file) => return format!("{file}: {long}"),
            None => {}
        }
        match arg.get_short() {
            Some(letter) => format!("-{letter}/--{long}"),
            None => format!("--{long}"),
        }
    }

    /// Whether the option stands on the command line, in the file or in the environment.
    fn given(&self, id: &str) -> bool {
        self.matches.value_source(id) == Some(ValueSource::CommandLine)
    }

    /// Whether it does in the pool itself: what is there for all may say nothing to one of them.
    fn asked(&self, id: &str) -> bool {
        self.given(id) && !self.part.inherited.contains(id)
    }

    /// The one value of an option that makes no sense twice; two different ones are a
    /// contradiction.
    fn single<'v>(&mut self, id: &str, values: &'v [String]) -> Option<&'v str> {
        let last = values.last()?;
        if let Some(other) = values.iter().find(|value| *value != last) {
            self.fault_of(id, format_args!(" was given twice, as {other} and as {last}; give one"));
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

    fn unix_socket_mode(&mut self, args: &Args) -> u32 {
        let Some(text) = self.single("unix_socket_mode", &args.unix_socket_mode) else { return SOCKET_MODE };
        if args.unix_socket.is_empty() && self.asked("unix_socket_mode") {
            self.fault_about("unix_socket_mode", " without -f/--unix-socket changes nothing; give -f PATH or drop -a");
        }
        let octal = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        match u32::from_str_radix(text, 8) {
            Ok(mode) if octal && mode <= 0o777 => mode,
            _ => {
                self.bad("unix_socket_mode", text, "must be an octal mode from 0 to 777, for example 770");
                SOCKET_MODE
            }
        }
    }

    // ---- process --------------------------------------------------------------------------------

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
