//! Several pools in one file: each is judged as if it were alone, with what stands outside of the
//! pools as its defaults; then they are held against each other.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::listeners::{itself, same_node, spelled};
use super::{Judged, Part, judge};
use crate::config::sources::{Found, PoolTable, Sources, misplaced};
use crate::config::{Host, Plan, PoolName, Settings};
use crate::ring::{NodeAddr, ServerSpec};

/// Each has threads of its own.
const POOLS_MAX: usize = 64;
/// Servers' names that are looked up at once, and how long another one is begun with.
const LOOK_UPS: usize = 16;
const LOOK_UPS_END: Duration = Duration::from_secs(2);
/// Of a pool's name: it stands in the log, in metrics and in commands.
const NAME_MAX: usize = 64;

/// What is outside of the pools.
pub(super) struct Outside<'a> {
    pub(super) command: &'a Command,
    pub(super) sources: &'a Sources,
    /// The command line, and the options that stand there.
    pub(super) matches: &'a ArgMatches,
    pub(super) given: &'a BTreeSet<String>,
    pub(super) program: OsString,
}

/// A pool that was judged.
struct Member<'a> {
    table: &'a PoolTable,
    settings: Settings,
}

impl Member<'_> {
    /// Where its addresses stand.
    fn listens_at(&self) -> String {
        let own = ["port", "listen", "unix_socket"].map(|id| self.table.found.iter().find(|found| found.id == id));
        own.into_iter().flatten().next().map_or_else(|| self.table.origin.to_string(), |found| found.origin.to_string())
    }

    /// Each server, with where it stands.
    fn servers(&self) -> impl Iterator<Item = (ServerSpec, String)> {
        let of_pool = self.table.found.iter().filter(|found| ["server", "backup"].contains(&found.id.as_str()));
        of_pool.filter_map(|found| Some((found.text.parse().ok()?, found.origin.to_string())))
    }
}

impl Outside<'_> {
    /// All pools. `None`: some fault was found.
    pub(super) fn judge(&self, host: &Host, faults: &mut Vec<String>) -> Option<Plan> {
        self.refuse(faults);
        let tables = &self.sources.pools;
        if let Some(table) = tables.get(POOLS_MAX) {
            let count = tables.len();
            faults.push(format!("{}: pool: {count} pools are too many; {POOLS_MAX} is the most", table.origin));
            return None;
        }
        let (mut process, mut members) = (None, Vec::new());
        for table in tables {
            if !is_name(&table.name) {
                let (origin, name) = (&table.origin, &table.name);
                faults.push(format!(
                    "{origin}: pool {name:?}: a pool's name must be 1 to {NAME_MAX} letters, digits, -, _ or ."
                ));
            }
            let (all, found, inherited) = self.of_pool(table);
            let name = PoolName::from(table.name.as_str());
            let part = Part { pool: Some(name), at: Some(table.origin.to_string()), inherited, pools: tables.len() };
            let Judged { settings, faults: more } = judge(all, &found, (host, self.sources.path.clone()), part);
            // What is wrong outside of the pools is found in each.
            for fault in more {
                if !faults.contains(&fault) {
                    faults.push(fault);
                }
            }
            if let Some((of_process, settings)) = settings {
                process = Some(of_process);
                members.push(Member { table, settings });
            }
        }
        clashes(&members, &addresses_of(&members, host.resolve), faults);
        let pools = members.into_iter().map(|member| member.settings).collect();
        faults.is_empty().then_some(process.map(|process| Plan { process, pools })?)
    }

    /// What can stand in pools alone, or nowhere beside pools. (Of the file that is told already.)
    fn refuse(&self, faults: &mut Vec<String>) {
        for arg in self.command.get_arguments() {
            let (id, Some(long)) = (arg.get_id().as_str(), arg.get_long()) else { continue };
            let Some(why) = misplaced(long, false) else { continue };
            if self.given.contains(id) {
                faults.push(format!("--{long}: {why}"));
            }
            let found = self.sources.found.iter().find(|found| found.id == id);
            faults.extend(found.map(|found| format!("{}: {why}", found.origin)));
        }
    }

    /// A pool as a command line of its own: what stands in its table, and what stands outside and
    /// is not answered there; and the options of the latter.
    fn of_pool(&self, table: &PoolTable) -> (Vec<OsString>, Vec<Found>, BTreeSet<String>) {
        let counts = |id: &str| !table.said.contains(id) && !self.is_misplaced(id);
        let outside: Vec<Found> = self.sources.found.iter().filter(|found| counts(&found.id)).cloned().collect();
        let given = self.given.iter().filter(|id| counts(id));
        let inherited = outside.iter().map(|found| &found.id).chain(given.clone()).cloned().collect();
        let arguments = |found: &[Found]| found.iter().map(|found| found.argument.clone()).collect::<Vec<_>>();
        let mut all = vec![self.program.clone()];
        all.extend(arguments(&outside));
        all.extend(arguments(&table.found));
        all.extend(given.flat_map(|id| self.arguments(id)));
        (all, [outside, table.found.clone()].concat(), inherited)
    }

    fn arg(&self, id: &str) -> Option<&Arg> {
        self.command.get_arguments().find(|arg| arg.get_id() == id)
    }

    fn is_misplaced(&self, id: &str) -> bool {
        self.arg(id).and_then(Arg::get_long).is_some_and(|long| misplaced(long, false).is_some())
    }

    /// As it was given on the command line.
    fn arguments(&self, id: &str) -> Vec<OsString> {
        let Some((arg, long)) = self.arg(id).and_then(|arg| Some((arg, arg.get_long()?))) else { return Vec::new() };
        let flag = || OsString::from(format!("--{long}"));
        match arg.get_action() {
            ArgAction::SetTrue => vec![flag()],
            ArgAction::Count => (0..self.matches.get_count(id)).map(|_| flag()).collect(),
            _ => {
                let with =
                    |value: &std::ffi::OsStr| [flag(), OsString::from("="), value.to_owned()].into_iter().collect();
                self.matches.get_raw(id).into_iter().flatten().map(with).collect()
            }
        }
    }
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || ['-', '_', '.'].contains(&c);
    !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(fits)
}

/// Where the servers' names lead. One that leads nowhere yet, or takes too long, is left out: it
/// is no fault, and the proxy waits for it.
fn addresses_of(
    members: &[Member<'_>],
    resolve: fn(&str) -> std::io::Result<Vec<IpAddr>>,
) -> HashMap<String, Vec<IpAddr>> {
    let hosts = members.iter().flat_map(Member::servers).map(|(server, _)| spelled(&server.addr));
    let names: BTreeSet<String> = hosts.filter(|host| host.parse::<IpAddr>().is_err()).collect();
    let (workers, until) = (names.len().min(LOOK_UPS), Instant::now() + LOOK_UPS_END);
    let (names, found) = (Mutex::new(names.into_iter()), Mutex::new(HashMap::new()));
    let next = || names.lock().ok().and_then(|mut names| names.next()).filter(|_| Instant::now() < until);
    let look = || {
        while let Some(name) = next() {
            let addresses = resolve(&name);
            if let (Ok(addresses), Ok(mut found)) = (addresses, found.lock()) {
                found.insert(name, addresses);
            }
        }
    };
    // The threads end before the process changes its user, limits and memory.
    std::thread::scope(|scope| {
        for _ in 1..workers {
            // Without this thread the others look up all names.
            let _ = std::thread::Builder::new().name("look-up".to_owned()).spawn_scoped(scope, look);
        }
        look();
    });
    found.into_inner().unwrap_or_default()
}

/// What two pools cannot both have. `addresses`: of servers' names.
fn clashes(members: &[Member<'_>], addresses: &HashMap<String, Vec<IpAddr>>, faults: &mut Vec<String>) {
    let mut servers: HashMap<(String, u16), (usize, NodeAddr, String)> = HashMap::new();
    for (at, member) in members.iter().enumerate() {
        let name = &member.table.name;
        for (ServerSpec { addr, .. }, origin) in member.servers() {
            let found = addresses.get(&spelled(&addr)).into_iter().flatten();
            let mut keys = vec![same_node(&addr)];
            keys.extend(found.map(|ip| (ip.to_canonical().to_string(), addr.port)));
            if let Some((first, known, there)) = keys.iter().filter_map(|key| servers.get(key)).find(|it| it.0 != at) {
                let other = &members[*first].table.name;
                let alike = spelled(known) == spelled(&addr);
                let known_as = if alike { String::new() } else { format!(" as {known}") };
                faults.push(format!(
                    "{origin}: pool {name}: server {addr} is the pool {other}'s too{known_as} ({there}); each would \
                     take the other's items and marks for its own; a server belongs to one pool"
                ));
            }
            for key in keys {
                servers.entry(key).or_insert_with(|| (at, addr.clone(), origin.clone()));
            }
        }
        for other in &members[..at] {
            clash_of_listeners(member, other, faults);
        }
        for other in members.iter().filter(|other| other.table.name != *name) {
            let own = other.settings.listen.as_slice();
            let servers = member.settings.primaries.iter().chain(&member.settings.backups);
            for (server, own) in itself(own, servers) {
                let (origin, other) = (member.origin_of(server), &other.table.name);
                faults.push(format!(
                    "{origin}: pool {name}: server {}: the pool {other} listens there itself ({own}); give the servers",
                    server.addr
                ));
            }
        }
    }
}

impl Member<'_> {
    fn origin_of(&self, server: &ServerSpec) -> String {
        let known = self.servers().find(|(own, _)| own == server).map(|(_, origin)| origin);
        known.unwrap_or_else(|| self.table.origin.to_string())
    }
}

fn clash_of_listeners(member: &Member<'_>, other: &Member<'_>, faults: &mut Vec<String>) {
    let (at, there) = (member.listens_at(), other.listens_at());
    let (name, first) = (&member.table.name, &other.table.name);
    for own in &member.settings.listen {
        let taken = |there: &&SocketAddr| takes(&other.settings, there, own) || takes(&member.settings, own, there);
        if let Some(taken) = other.settings.listen.iter().find(taken) {
            faults.push(format!(
                "{at}: pool {name}: listens on {own}, and the pool {first} on {taken} ({there}); give another port or \
                 address"
            ));
        }
    }
    if let (Some(own), Some(path)) = (&member.settings.unix_socket, &other.settings.unix_socket)
        && own == path
    {
        let path = path.display();
        faults.push(format!(
            "{at}: pool {name}: the unix socket {path} is the pool {first}'s too ({there}); give another path"
        ));
    }
}

/// Whether who listens on `own` gets what is meant for `address`.
fn takes(settings: &Settings, own: &SocketAddr, address: &SocketAddr) -> bool {
    let all = own.ip().is_unspecified()
        && (own.is_ipv4() == address.is_ipv4() || (own.is_ipv6() && !settings.listen.iter().any(SocketAddr::is_ipv4)));
    own.port() == address.port() && (own.ip() == address.ip() || all)
}
