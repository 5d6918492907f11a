//! Servers and listening addresses, and whether they go together.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::Check;
use crate::ring::{Distribution, NodeAddr, ServerSpec};

/// More nodes than this are a mistake: every primary makes a pair with every backup.
const MAX_NODES: usize = 256;

impl Check<'_> {
    pub(super) fn servers(&mut self, id: &str, values: &[String], distribution: Distribution) -> Vec<ServerSpec> {
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
    pub(super) fn servers_together(&mut self, primaries: &[ServerSpec], backups: &[ServerSpec]) {
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

    pub(super) fn listen(&mut self, values: &[String], port: u16) -> Vec<SocketAddr> {
        let mut listen: Vec<SocketAddr> = Vec::new();
        // memcached takes a list with commas in one -l, so that is taken too.
        for text in values.iter().flat_map(|value| value.split(',')) {
            let literal = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
            let addresses = match literal.parse::<IpAddr>() {
                _ if is_link_local(literal) => {
                    self.bad("listen", text, LINK_LOCAL);
                    Vec::new()
                }
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

    /// The addresses of a host name given with `-l`: the IPv4 ones, where it has any, because
    /// `localhost` has an IPv6 address also on machines without IPv6.
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
    pub(super) fn not_itself(&mut self, listen: &[SocketAddr], id: &str, servers: &[ServerSpec]) {
        for (server, own) in itself(listen, servers.iter()) {
            let why = format_args!("the proxy would listen there itself ({own}) and talk to itself; give another -p");
            self.bad(id, &server.to_string(), why);
        }
    }
}

pub(super) const LINK_LOCAL: &str =
    "a link-local address is one interface's, and is not listened on; give another address, or :: for all";

/// With its interface or without: `fe80::1%eth0`.
pub(super) fn is_link_local(host: &str) -> bool {
    let address = host.split('%').next().unwrap_or_default().parse::<Ipv6Addr>();
    address.is_ok_and(|address| address.is_unicast_link_local())
}

/// Those servers that are one of these listeners, as far as literal addresses tell.
pub(super) fn itself<'s>(
    listen: &[SocketAddr],
    servers: impl Iterator<Item = &'s ServerSpec>,
) -> Vec<(&'s ServerSpec, SocketAddr)> {
    let own = |server: &'s ServerSpec| {
        let ip = literal(&server.addr)?;
        let own = listen.iter().find(|own| {
            let ours = own.ip().to_canonical();
            own.port() == server.addr.port && (ours == ip || (ours.is_unspecified() && ip.is_loopback()))
        })?;
        Some((server, *own))
    };
    servers.filter_map(own).collect()
}

/// Without a look-up. (`localhost` is what it is everywhere.)
fn literal(addr: &NodeAddr) -> Option<IpAddr> {
    match spelled(addr).as_str() {
        "localhost" => Some(IpAddr::from([127, 0, 0, 1])),
        host => host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical()),
    }
}

/// As names are compared.
pub(super) fn spelled(addr: &NodeAddr) -> String {
    addr.host.trim_end_matches('.').to_ascii_lowercase()
}

/// What makes two addresses the same node: `LOCALHOST` and `127.0.0.1`, `::1` and `0:0::1`,
/// `::ffff:10.0.0.1` and `10.0.0.1`.
pub(super) fn same_node(addr: &NodeAddr) -> (String, u16) {
    (literal(addr).map_or_else(|| spelled(addr), |ip| ip.to_string()), addr.port)
}
