//! What operators reach the proxy by.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::Check;
use super::listeners::{LINK_LOCAL, is_link_local};
use crate::config::args::Args;
use crate::ring::NodeAddr;

/// See [`crate::config::ProcessSettings`] and [`crate::config::Settings`].
pub(super) struct Operators {
    pub(super) admin: Option<SocketAddr>,
    pub(super) admin_socket: Option<PathBuf>,
    pub(super) commands: bool,
}

impl Check<'_> {
    pub(super) fn operators(&mut self, args: &Args, listen: &[SocketAddr]) -> Operators {
        let admin = self.admin(&args.admin, listen);
        let admin_socket = self.socket_path("admin_socket", &args.admin_socket);
        let commands = match self.single("operator_commands", &args.operator_commands) {
            None | Some("on") => true,
            Some("off") => false,
            Some(other) => {
                self.bad("operator_commands", other, "must be on or off");
                true
            }
        };
        Operators { admin, admin_socket, commands }
    }

    fn admin(&mut self, values: &[String], listen: &[SocketAddr]) -> Option<SocketAddr> {
        let text = self.single("admin", values)?;
        let has_port = text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && !port.contains(']'));
        if !has_port {
            self.bad("admin", text, "the port is missing; give HOST:PORT, for example 127.0.0.1:9150");
            return None;
        }
        let address = match text.parse::<NodeAddr>() {
            Ok(NodeAddr { host, .. }) if is_link_local(&host) => {
                self.bad("admin", text, LINK_LOCAL);
                None
            }
            Ok(NodeAddr { host, port }) => match host.parse::<IpAddr>() {
                Ok(ip) => Some(SocketAddr::new(ip, port)),
                Err(_) => self.admin_name(text, &host).map(|ip| SocketAddr::new(ip, port)),
            },
            Err(why) => {
                self.bad("admin", text, format_args!("{}; give HOST:PORT, for example 127.0.0.1:9150", why.problem));
                None
            }
        }?;
        let taken = |own: &&SocketAddr| {
            let all = own.ip().is_unspecified() || address.ip().is_unspecified();
            own.port() == address.port() && (own.ip() == address.ip() || all)
        };
        if let Some(own) = listen.iter().find(taken) {
            self.bad("admin", text, format_args!("clients are listened for there ({own}); give another port"));
        }
        Some(address)
    }

    fn admin_name(&mut self, text: &str, host: &str) -> Option<IpAddr> {
        let found = (self.host.resolve)(host);
        // As with -l: `localhost` has an IPv6 address also on machines without IPv6.
        let best = |all: &[IpAddr]| all.iter().find(|ip| ip.is_ipv4()).or(all.first()).copied();
        match found.as_deref().map(best) {
            Ok(Some(ip)) => return Some(ip),
            Ok(None) => self.bad("admin", text, "has no address; give one such as 127.0.0.1:9150"),
            Err(why) => {
                let why = format!("cannot be resolved ({why}); give an address such as 127.0.0.1:9150");
                self.bad("admin", text, why);
            }
        }
        None
    }
}
