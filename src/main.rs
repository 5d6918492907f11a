//! The `resilver` daemon: arguments to settings, settings to a running proxy, and what went wrong
//! to an exit code.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use resilver::config::{CommandLine, Host, Plan, Settings, UsageErrors};
use resilver::daemon::{
    self, BackgroundError, Bound, Identity, LimitError, Listeners, OwnFiles, PidFile, Signals, SocketFile, Supervisor,
};
use resilver::reload::Reload;
use tokio_util::sync::CancellationToken;

/// Wrong or contradictory settings (`EX_USAGE`).
const EXIT_USAGE: u8 = 64;
/// The system refused (`EX_OSERR`).
const EXIT_OS: u8 = 71;

fn main() -> ExitCode {
    if let Some(ended) = resilver::commands::run(std::env::args_os().collect(), EXIT_USAGE) {
        return ended;
    }
    let host = Host::this();
    let plan = match CommandLine::parse(std::env::args_os(), &host) {
        Ok(CommandLine::Run(plan)) => *plan,
        Ok(CommandLine::Print(text)) => {
            return match resilver::commands::print_text(&text) {
                Ok(()) => ExitCode::SUCCESS,
                Err(why) => {
                    let _ = writeln!(std::io::stderr(), "resilver: {why}");
                    ExitCode::from(EXIT_OS)
                }
            };
        }
        Err(errors) => {
            let _ = write!(std::io::stderr(), "{errors}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let in_background = plan.process.daemonize && !plan.process.background_child;
    let files = OwnFiles::default();
    let outcome = if in_background { start_child() } else { serve(plan, host, &files) };
    files.remove();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "resilver: {error}");
            ExitCode::from(EXIT_OS)
        }
    }
}

/// `-d`: everything is done by a child in the background; its failure is ours.
fn start_child() -> Result<u8, Box<dyn Error>> {
    match daemon::start_in_background(std::env::args_os().skip(1)) {
        Ok(_) => Ok(0),
        // It has said why itself.
        Err(BackgroundError::Ended(Some(code))) => Ok(u8::try_from(code).unwrap_or(EXIT_OS)),
        Err(error) => Err(error.into()),
    }
}

/// Runs the proxy in this process until it is told to stop. Returns the exit code.
fn serve(mut plan: Plan, host: Host, files: &OwnFiles) -> Result<u8, Box<dyn Error>> {
    daemon::give_memory_back();
    if plan.process.background_child {
        daemon::detach()?;
    }
    // Dropped last: what was logged until then is written.
    let _log = daemon::start_logging(&plan.process.log)?;
    give_way(&mut plan)?;
    for name in &plan.process.unknown_variables {
        tracing::warn!("the variable {name} is no option of resilver's, and is left out; resilver --help lists them");
    }
    let shutdown = CancellationToken::new();
    // Judged with the rights of the start, before root is given up.
    let reload = Arc::new(Reload::new(Arc::new(move || read_again(&host)), plan.clone()));
    // Before there is a file to be removed, and before anybody can see that this process runs: a
    // SIGTERM right after it was seen to listen, or a SIGHUP, must not kill it.
    watch_signals(&shutdown, &reload, files)?;
    let bound = prepare(&plan, files)?;

    let told = plan.clone();
    let supervisor = Supervisor::of_this_process()?.map(Arc::new);
    let (supervised, stopping) = (reload.clone(), shutdown.clone());
    let ready = || {
        announce(&told);
        if let Some(supervisor) = supervisor {
            supervisor.tell("READY=1");
            resilver::supervised::tell(supervisor, supervised, stopping)?;
        }
        if told.process.background_child { daemon::tell_ready().map_err(std::io::Error::other) } else { Ok(()) }
    };
    let ended = if plan.pools.iter().any(|settings| settings.pool.is_some()) {
        resilver::pools::run(plan, bound, (shutdown, reload), ready).map(|()| 0)
    } else {
        let (settings, listeners) = only(plan, bound)?;
        let own = files.clone();
        run_alone(settings, listeners, (shutdown, reload), ready, move || own.remove())
    };
    files.remove();
    match &ended {
        Ok(_) => tracing::info!("stopped"),
        Err(error) => tracing::error!(%error, "ended"),
    }
    Ok(ended?)
}

fn watch_signals(shutdown: &CancellationToken, reload: &Arc<Reload>, files: &OwnFiles) -> std::io::Result<()> {
    let (reload, files) = (reload.clone(), files.clone());
    let reload_once = move || {
        let reload = reload.clone();
        // Its result is logged.
        async move { drop(reload.reload().await) }
    };
    Signals::catch()?.watch(shutdown.clone(), reload_once, move || files.remove())
}

/// What is made before anybody is served: files, sockets, and who the process is.
fn prepare(plan: &Plan, files: &OwnFiles) -> Result<Bound, Box<dyn Error>> {
    let identity = Identity::wanted(&plan.process)?;
    // First the pid file: "already running" tells more than "address in use".
    if let Some(path) = &plan.process.pid_file {
        files.add_pid_file(PidFile::create(path)?);
    }
    let bound = daemon::bind(plan)?;
    let of_pools = plan.pools.iter().filter_map(|settings| settings.unix_socket.as_ref());
    // Sockets that systemd has bound stay when this process ends.
    for path in of_pools.chain(&plan.process.admin_socket).filter(|path| !bound.kept.contains(path)) {
        files.add_socket(SocketFile::own(path)?);
    }
    if let Some(identity) = &identity {
        // A device or a pipe in the log's place stays whose it is.
        let log = plan.process.log.file.clone().filter(|path| path.is_file());
        for path in files.paths().into_iter().chain(log) {
            identity.hand_over(&path)?;
        }
        identity.assume()?;
    }
    daemon::keep_heap_small()?;
    Ok(bound)
}

/// The pool that is alone in its process, maybe as one proxy of several.
fn run_alone(
    settings: Settings,
    listeners: Listeners,
    (shutdown, reload): (CancellationToken, Arc<Reload>),
    ready: impl FnOnce() -> std::io::Result<()>,
    at_end: impl Fn() + Send + 'static,
) -> std::io::Result<u8> {
    match settings.fleet.clone() {
        Some(own) => resilver::fleet::run(settings, own, listeners, (shutdown, reload), ready, at_end),
        None => {
            let left = if settings.leave_fleet { resilver::fleet::leave(&settings) } else { Ok(()) };
            left.and_then(|()| resilver::server::run(settings, listeners, shutdown, Some(reload), ready)).map(|()| 0)
        }
    }
}

/// As many clients as open files are allowed for.
fn give_way(plan: &mut Plan) -> Result<(), LimitError> {
    let limit = daemon::raise_file_limit(plan)?;
    if limit.clients < limit.asked {
        let (asked, clients, needed, allowed) = (limit.asked, limit.clients, limit.needed, limit.allowed);
        let (of, give) = match plan.pools.as_slice() {
            [_] => (format!("-n {asked}"), format!("give -n {clients}")),
            _ => (format!("-n, {asked} in all pools together,"), "give pools a lower max-clients".to_owned()),
        };
        tracing::warn!(
            "{of} needs {needed} open files, but the system allows {allowed}: taking at most {clients}; raise \
             the hard limit (ulimit -Hn, or LimitNOFILE= in a systemd unit) or {give}"
        );
        for settings in &mut plan.pools {
            settings.max_clients = limit.share(settings.max_clients);
        }
    }
    Ok(())
}

/// The pool that is alone in its process, with all that is listened on.
fn only(plan: Plan, bound: Bound) -> std::io::Result<(Settings, Listeners)> {
    let Bound { pools, operators, .. } = bound;
    let both = plan.pools.into_iter().zip(pools).next();
    let (settings, listeners) = both.ok_or_else(|| std::io::Error::other("there is no pool"))?;
    Ok((settings, Listeners { operators, ..listeners }))
}

/// The settings as they stand now, by the command line that this process was started with.
fn read_again(host: &Host) -> Result<Plan, UsageErrors> {
    match CommandLine::parse(std::env::args_os(), host)? {
        CommandLine::Run(plan) => Ok(*plan),
        CommandLine::Print(_) => Err(UsageErrors(vec!["the command line asks for help".to_owned()])),
    }
}

/// What runs, a line for each pool: the first thing wanted from a log.
fn announce(plan: &Plan) {
    if let Some(address) = plan.process.admin {
        tracing::info!("admin listener: http://{address}/ has the page, /metrics, /status.json, /livez and /readyz");
    }
    plan.pools.iter().for_each(announce_pool);
}

fn announce_pool(settings: &Settings) {
    let _of_pool = daemon::span_of(settings.pool.as_ref()).entered();
    let listen: Vec<String> = (settings.listen.iter().map(ToString::to_string))
        .chain(settings.unix_socket.iter().map(|path| format!("unix:{}", path.display())))
        .collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        listen = %listen.join(","),
        primaries = settings.primaries.len(),
        backups = settings.backups.len(),
        threads = settings.threads,
        node_connections = settings.node_connections,
        max_clients = settings.max_clients,
        resync = %settings.resync,
        "started"
    );
}
