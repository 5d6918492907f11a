//! Several proxies over the same servers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Check;
use crate::config::args::Args;
use crate::config::{FleetSettings, RegisterSettings, ResyncMode};
use crate::ring::NodeAddr;

/// What says nothing without it.
const ONLY_WITH: [&str; 7] =
    ["coordinate_login", "advertise", "lease", "candidate", "takeover_wait", "former_grace", "prove_writes"];

/// Of a fleet's name: it stands in a key of etcd's, and in a marker on each server.
const NAME_MAX: usize = 64;

impl Check<'_> {
    pub(super) fn fleet(&mut self, args: &Args, listen: &[SocketAddr], resync: ResyncMode) -> Option<FleetSettings> {
        let Some(text) = self.single("coordinate", &args.coordinate).map(str::to_owned) else {
            for id in ONLY_WITH {
                if self.given(id) {
                    self.fault_about(id, " without --coordinate changes nothing; give both or drop it");
                }
            }
            return None;
        };
        if args.leave_fleet {
            self.fault("--leave-fleet contradicts --coordinate, which keeps a fleet; give one of them");
        }
        if args.backup.is_empty() {
            self.fault_about(
                "coordinate",
                " needs backups (-b): without them there is nothing that must be kept equal, and proxies may run side \
                 by side",
            );
        }
        if resync == ResyncMode::Off {
            self.fault_about(
                "coordinate",
                " contradicts --resync=off: copies are kept equal by what is recorded on the servers; give \
                 --resync=auto or manual",
            );
        }
        let register = self.register(&text);
        let login = self.path("coordinate_login", &args.coordinate_login);
        if let (Some(_), Some(RegisterSettings::File(_))) = (&login, &register) {
            let why = " is for etcd; with file: the file's owner and mode say who may use it";
            self.fault_about("coordinate_login", why);
        }
        let advertise = self.advertise(&args.advertise);
        if advertise.is_none() && listen.is_empty() {
            self.fault_about(
                "coordinate",
                " without TCP (-p 0): the other proxies cannot reach this one; give --advertise HOST:PORT",
            );
        }
        let second = Duration::from_secs(1);
        let lease = self.time("lease", &args.lease, Duration::from_millis(300)..=60 * second).unwrap_or(second);
        let wait = self.time("takeover_wait", &args.takeover_wait, Duration::ZERO..=3600 * second);
        let former = self.time("former_grace", &args.former_grace, second..=7 * 24 * 3600 * second);
        let candidate = match self.single("candidate", &args.candidate) {
            None | Some("yes") => true,
            Some("no") => false,
            Some(other) => {
                self.bad("candidate", other, "must be yes or no");
                true
            }
        };
        Some(FleetSettings {
            register: register?,
            login,
            advertise,
            lease,
            candidate,
            takeover_wait: wait.unwrap_or(2 * lease),
            former_grace: former.unwrap_or(second),
            prove_writes: args.prove_writes,
        })
    }

    fn register(&mut self, text: &str) -> Option<RegisterSettings> {
        const HINT: &str = "give etcd://HOST:PORT[,HOST:PORT...]/NAME, or file:PATH for proxies of one host";
        if let Some(path) = text.strip_prefix("file:") {
            let path = PathBuf::from(path);
            if path.is_absolute() && path.file_name().is_some() && !text.ends_with('/') && !text.contains('\0') {
                return Some(RegisterSettings::File(path));
            }
            self.bad("coordinate", text, "must be the absolute path of a file, for example file:/run/resilver/fleet");
            return None;
        }
        if text.starts_with("https://") || text.starts_with("etcds://") {
            self.bad("coordinate", text, format_args!("TLS is not spoken; {HINT}"));
            return None;
        }
        let Some((members, name)) = text.strip_prefix("etcd://").and_then(|rest| rest.split_once('/')) else {
            self.bad("coordinate", text, HINT);
            return None;
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(fits) {
            let why = format!("the name must be 1 to {NAME_MAX} letters, digits, -, _ or . ; {HINT}");
            self.bad("coordinate", text, why);
            return None;
        }
        let members: Vec<String> = members.split(',').map(str::to_owned).collect();
        for member in &members {
            if let Err(why) = member.parse::<NodeAddr>() {
                self.bad("coordinate", text, format_args!("{member}: {}; {HINT}", why.problem));
                return None;
            }
            if !has_port(member) {
                self.bad("coordinate", text, format_args!("{member}: the port is missing (etcd's is 2379); {HINT}"));
                return None;
            }
        }
        Some(RegisterSettings::Etcd { members, name: name.to_owned() })
    }

    fn advertise(&mut self, values: &[String]) -> Option<NodeAddr> {
        let text = self.single("advertise", values)?.to_owned();
        match text.parse::<NodeAddr>() {
            // Without a port the parser takes memcached's, where memcached or this proxy may
            // listen.
            Ok(_) if !has_port(&text) => {
                self.bad("advertise", &text, "the port is missing; give HOST:PORT, for example 10.0.0.5:11300");
                None
            }
            Ok(address) if address.host != "0.0.0.0" && address.host != "::" => Some(address),
            Ok(_) => {
                self.bad(
                    "advertise",
                    &text,
                    "must be an address that the other proxies reach this one at, not all addresses",
                );
                None
            }
            Err(why) => {
                self.bad(
                    "advertise",
                    &text,
                    format_args!("{}; give HOST:PORT, for example 10.0.0.5:11300", why.problem),
                );
                None
            }
        }
    }
}

/// Whether an address that can be read names its port.
fn has_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && !port.contains(']'))
}
