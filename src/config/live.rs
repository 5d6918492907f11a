//! Two settings side by side: what differs, and whether it can change while the proxy runs.

use super::{ProcessSettings, ResyncMode, Settings};
use crate::proxy::LiveSettings;

/// Long names of the options that differ, but for the addresses that clients connect to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Those that change while clients stay connected.
    pub live: Vec<&'static str>,
    /// Those that count from the next start on.
    pub fixed: Vec<&'static str>,
    /// One of these is the list of servers, or how keys are spread over it.
    pub ring: bool,
}

macro_rules! settings {
    (
        $type:ident: $changes:ident, $take:ident;
        live { $($live:ident = $live_name:literal,)* } fixed { $($fixed:ident = $fixed_name:literal,)* }
        apart { $($apart:ident,)* }
    ) => {
        /// What `new` would change of these by itself.
        fn $changes(old: &$type, new: &$type) -> Changes {
            // A new setting fails to compile until it is listed here.
            let $type { $($live,)* $($fixed,)* $($apart: _,)* } = old;
            let mut changes = Changes::default();
            $(if *$live != new.$live { changes.live.push($live_name); })*
            $(if *$fixed != new.$fixed { changes.fixed.push($fixed_name); })*
            changes
        }

        impl $type {
            fn $take(&mut self, new: &$type) {
                let $type { $($live,)* .. } = new;
                $(self.$live.clone_from($live);)*
            }
        }
    };
}

settings! {
    Settings: changes_of_pool, take_of_pool;
    live {
        operator_commands = "operator-commands",
        max_clients = "max-clients",
        idle_timeout = "idle-timeout",
        shutdown_grace = "shutdown-grace",
        timeout = "timeout",
        leader_timeout = "leader-timeout",
        leader_grace = "leader-grace",
        probe_interval = "probe-interval",
        probe_timeout = "probe-timeout",
        probe_successes = "probe-successes",
        resync = "resync",
        resync_rate = "resync-rate",
        resync_latency = "resync-latency",
        verify_rate = "verify-rate",
    }
    fixed {
        primaries = "server",
        backups = "backup",
        distribution = "ketama",
        unix_socket = "unix-socket",
        unix_socket_mode = "unix-socket-mode",
        node_connections = "node-connections",
        threads = "threads",
        io_uring = "io-uring",
        resync_memory = "resync-memory",
        item_size_max = "item-size-max",
        client_memory = "client-memory",
        fleet = "coordinate and what belongs to it",
    }
    apart { pool, listen, leave_fleet, }
}

settings! {
    ProcessSettings: changes_of_process, take_of_process;
    live {}
    fixed {
        admin = "admin",
        admin_socket = "admin-socket",
        user = "user",
        group = "group",
        daemonize = "daemon",
        pid_file = "pid-file",
        config = "config",
    }
    apart { log, background_child, unknown_variables, }
}

/// What `new` would change of a pool.
pub fn changes(old: &Settings, new: &Settings) -> Changes {
    let mut changes = changes_of_pool(old, new);
    // Whether markers are kept is decided at the start.
    if old.resync != new.resync && (old.resync == ResyncMode::Off || new.resync == ResyncMode::Off) {
        changes.live.retain(|name| *name != "resync");
        changes.fixed.push("resync");
    }
    changes.ring = ["server", "backup", "ketama"].iter().any(|name| changes.fixed.contains(name));
    changes
}

/// What `new` would change of the process.
pub fn process_changes(old: &ProcessSettings, new: &ProcessSettings) -> Changes {
    let mut changes = changes_of_process(old, new);
    if old.log.filter != new.log.filter {
        changes.live.push("verbose");
    }
    if old.log.file != new.log.file {
        changes.live.push("log-file");
    }
    if old.log.format != new.log.format {
        changes.fixed.push("log-format");
    }
    changes
}

impl ProcessSettings {
    /// What can change while the proxy runs, from `new`.
    pub fn take_live(&mut self, new: &ProcessSettings) {
        self.take_of_process(new);
        self.log.filter.clone_from(&new.log.filter);
        self.log.file.clone_from(&new.log.file);
    }
}

impl Settings {
    /// What can change while the proxy runs, from `new`.
    pub fn take_live(&mut self, new: &Settings) {
        let resync = self.resync;
        self.take_of_pool(new);
        if resync == ResyncMode::Off || new.resync == ResyncMode::Off {
            self.resync = resync;
        }
    }
}

impl Settings {
    /// What workers are told of them.
    pub fn live(&self) -> LiveSettings {
        LiveSettings {
            timeout: self.timeout,
            leader_timeout: self.leader_timeout,
            operator_commands: self.operator_commands,
            max_clients: self.max_clients,
            idle_timeout: self.idle_timeout,
            shutdown_grace: self.shutdown_grace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CommandLine, Host, Plan};

    fn plan(line: &str) -> Plan {
        let host = Host { variables: Vec::new(), ..Host::this() };
        match CommandLine::parse(format!("resilver -s a:1 -b b:1 {line}").split_whitespace(), &host) {
            Ok(CommandLine::Run(plan)) => *plan,
            other => panic!("{other:?}"),
        }
    }

    fn settings(line: &str) -> Settings {
        plan(line).pools.remove(0)
    }

    #[test]
    fn what_cannot_change_is_named_and_stays() {
        let (old, new) = (settings(""), settings("-n 5 --timeout 1s -s c:1 -v --resync-rate 3 --threads 7"));
        // Without resyncs their rates mean nothing.
        let new = Settings { resync: ResyncMode::Off, ..new };
        let changes = super::changes(&old, &new);
        assert_eq!(changes.live, ["max-clients", "timeout", "resync-rate"]);
        assert!(changes.ring && changes.fixed.starts_with(&["server"]), "{changes:?}");
        assert!(changes.fixed.contains(&"threads") && changes.fixed.ends_with(&["resync"]), "{changes:?}");
        let mut taken = old.clone();
        taken.take_live(&new);
        assert_eq!((taken.max_clients, taken.resync_rate, taken.resync), (5, Some(3), ResyncMode::Auto));
        assert_eq!((taken.timeout, taken.primaries.len(), taken.threads), (new.timeout, 1, old.threads));
        let manual = Settings { resync: ResyncMode::Manual, ..old.clone() };
        assert_eq!(super::changes(&old, &manual).live, ["resync"]);
        assert_eq!(super::changes(&old, &old), Changes::default());
    }
    #[test]
    fn of_the_process_the_log_alone_changes() {
        let (old, new) = (plan("").process, plan("-v --log-file /l --log-format json --admin 127.0.0.1:1").process);
        let changes = process_changes(&old, &new);
        assert_eq!((changes.live, changes.fixed), (vec!["verbose", "log-file"], vec!["admin", "log-format"]));
        let mut taken = old.clone();
        taken.take_live(&new);
        assert_eq!((taken.log.file, taken.log.format, taken.admin), (new.log.file, old.log.format, None));
        assert_eq!(taken.log.filter, new.log.filter);
    }
}
