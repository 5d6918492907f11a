//! Two settings side by side: what differs, and whether it can change while the proxy runs.

use super::{ResyncMode, Settings};
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
    (live { $($live:ident = $live_name:literal,)* } fixed { $($fixed:ident = $fixed_name:literal,)* }) => {
        /// What `new` would change.
        pub fn changes(old: &Settings, new: &Settings) -> Changes {
            // (Whoever adds a setting says here what it is.)
            let Settings {
                $($live,)* $($fixed,)* log, listen: _, background_child: _, unknown_variables: _, leave_fleet: _,
            } = old;
            let mut changes = Changes::default();
            $(if *$live != new.$live { changes.live.push($live_name); })*
            $(if *$fixed != new.$fixed { changes.fixed.push($fixed_name); })*
            if log.filter != new.log.filter {
                changes.live.push("verbose");
            }
            if log.file != new.log.file {
                changes.live.push("log-file");
            }
            if log.format != new.log.format {
                changes.fixed.push("log-format");
            }
            // Whether markers are kept is decided at the start.
            if old.resync != new.resync && (old.resync == ResyncMode::Off || new.resync == ResyncMode::Off) {
                changes.live.retain(|name| *name != "resync");
                changes.fixed.push("resync");
            }
            changes.ring = ["server", "backup", "ketama"].iter().any(|name| changes.fixed.contains(name));
            changes
        }

        impl Settings {
            /// What can change while the proxy runs, from `new`.
            pub fn take_live(&mut self, new: &Settings) {
                let resync = self.resync;
                $(self.$live = new.$live.clone();)*
                if resync == ResyncMode::Off || new.resync == ResyncMode::Off {
                    self.resync = resync;
                }
                self.log.filter.clone_from(&new.log.filter);
                self.log.file.clone_from(&new.log.file);
            }
        }
    };
}

settings! {
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
        admin = "admin",
        admin_socket = "admin-socket",
        node_connections = "node-connections",
        threads = "threads",
        io_uring = "io-uring",
        resync_memory = "resync-memory",
        item_size_max = "item-size-max",
        client_memory = "client-memory",
        user = "user",
        group = "group",
        daemonize = "daemon",
        pid_file = "pid-file",
        config = "config",
        fleet = "coordinate and what belongs to it",
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
    use crate::config::{CommandLine, Host};

    fn settings(line: &str) -> Settings {
        let host = Host { variables: Vec::new(), ..Host::this() };
        match CommandLine::parse(format!("resilver -s a:1 -b b:1 {line}").split_whitespace(), &host) {
            Ok(CommandLine::Run(settings)) => *settings,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_cannot_change_is_named_and_stays() {
        let (old, new) = (settings(""), settings("-n 5 --timeout 1s -s c:1 -v --resync-rate 3 --threads 7"));
        // (Rates of resyncs go with resyncs alone.)
        let new = Settings { resync: ResyncMode::Off, ..new };
        let changes = super::changes(&old, &new);
        assert_eq!(changes.live, ["max-clients", "timeout", "resync-rate", "verbose"]);
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
}
