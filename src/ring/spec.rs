//! Servers as they are written down: `host:port:weight`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use thiserror::Error;

/// memcached's port, meant where none is given. libmemcached also leaves it out of ketama's point
/// names.
pub const DEFAULT_PORT: u16 = 11211;

/// The longest name DNS can hold; bounds what error messages, logs and markers carry.
const HOST_LEN_MAX: usize = 253;

/// Where a node listens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NodeAddr {
    /// Host name or literal address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for NodeAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for NodeAddr {
    type Err = SpecError;

    /// `host`, `host:port`, `[v6]` or `[v6]:port`: a server without a weight.
    fn from_str(input: &str) -> Result<NodeAddr, SpecError> {
        let refuse = |problem| SpecError { input: input.to_owned(), problem };
        let (addr, weight) = split(input).map_err(refuse)?;
        match weight {
            None => Ok(addr),
            Some(weight) => Err(refuse(SpecProblem::Weight(weight.to_owned()))),
        }
    }
}

/// A server as given on the command line: `host:port[:weight]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerSpec {
    /// Where it listens.
    pub addr: NodeAddr,
    /// Its share of the ketama ring, 1 unless given. Modula knows no weights.
    pub weight: u32,
}

impl FromStr for ServerSpec {
    type Err = SpecError;

    /// `host`, `host:port`, `host:port:weight`, and the same with an IPv6 address in brackets for
    /// the host.
    fn from_str(input: &str) -> Result<ServerSpec, SpecError> {
        let refuse = |problem| SpecError { input: input.to_owned(), problem };
        let (addr, weight) = split(input).map_err(refuse)?;
        let weight = match weight {
            None => 1,
            Some(text) => match number(text) {
                Some(weight) if weight > 0 => weight,
                _ => return Err(refuse(SpecProblem::Weight(text.to_owned()))),
            },
        };
        Ok(ServerSpec { addr, weight })
    }
}

impl fmt::Display for ServerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.weight {
            1 => self.addr.fmt(f),
            weight => write!(f, "{}:{weight}", self.addr),
        }
    }
}

/// A server that could not be understood.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("server \"{}\": {problem}", .input.escape_debug())]
pub struct SpecError {
    /// What was given.
    pub input: String,
    /// What is wrong with it.
    pub problem: SpecProblem,
}

/// What is wrong with a server as given.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum SpecProblem {
    /// Nothing before the port.
    #[error("the host is missing")]
    NoHost,
    /// Longer than any host name.
    #[error("a host name has at most {HOST_LEN_MAX} bytes")]
    LongHost,
    /// A comma: lists are written so elsewhere.
    #[error("one server for each flag; repeat the flag for the next")]
    Several,
    /// Blanks, control characters, slashes and the like.
    #[error("{0:?} cannot stand in a host name")]
    HostCharacter(char),
    /// An opening bracket without the closing one, or text behind it.
    #[error("expected [address]:port")]
    Bracket,
    /// What stands in the brackets is no IPv6 address.
    #[error("\"{}\" is not an IPv6 address", .0.escape_debug())]
    NotV6(String),
    /// More colons than `host:port:weight` has. `::1:1121` may be an address or an address and a
    /// port: we do not guess.
    #[error("too many colons (an IPv6 address goes in brackets: [::1]:{DEFAULT_PORT})")]
    Colons,
    /// Not a number from 1 to 65535.
    #[error("port \"{}\" is not a number from 1 to 65535", .0.escape_debug())]
    Port(String),
    /// Not a number from 1 to 4294967295, or not expected here.
    #[error("weight \"{}\" is not a number from 1 to 4294967295, or no weight is expected here", .0.escape_debug())]
    Weight(String),
}

/// The address and the text of the weight.
fn split(input: &str) -> Result<(NodeAddr, Option<&str>), SpecProblem> {
    if input.contains(',') {
        return Err(SpecProblem::Several);
    }
    let (host, rest) = match input.strip_prefix('[') {
        Some(bracketed) => {
            let (host, rest) = bracketed.split_once(']').ok_or(SpecProblem::Bracket)?;
            if !rest.is_empty() && !rest.starts_with(':') {
                return Err(SpecProblem::Bracket);
            }
            check_v6(host)?;
            (host, rest)
        }
        None => {
            let end = input.find(':').unwrap_or(input.len());
            // Before the host is looked at: of a bare `::1` one should hear about brackets.
            if input[end..].matches(':').count() > 2 || input.parse::<Ipv6Addr>().is_ok() {
                return Err(SpecProblem::Colons);
            }
            check_name(&input[..end])?;
            input.split_at(end)
        }
    };
    let mut fields = rest.split(':').skip(1);
    let (port, weight) = (fields.next(), fields.next());
    if fields.next().is_some() {
        return Err(SpecProblem::Colons);
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(text) => match number(text).map(u16::try_from) {
            Some(Ok(port)) if port > 0 => port,
            _ => return Err(SpecProblem::Port(text.to_owned())),
        },
    };
    Ok((NodeAddr { host: host.to_owned(), port }, weight))
}

fn check_name(host: &str) -> Result<(), SpecProblem> {
    if host.is_empty() {
        return Err(SpecProblem::NoHost);
    }
    if host.len() > HOST_LEN_MAX {
        return Err(SpecProblem::LongHost);
    }
    let wrong = |c: &char| c.is_whitespace() || c.is_control() || ",;/\\[]@\"'".contains(*c);
    host.chars().find(wrong).map_or(Ok(()), |c| Err(SpecProblem::HostCharacter(c)))
}

/// An IPv6 address, with a zone for link-local ones (`fe80::1%eth0`).
fn check_v6(host: &str) -> Result<(), SpecProblem> {
    let (address, zone) = host.split_once('%').unwrap_or((host, "0"));
    if host.len() > HOST_LEN_MAX || address.parse::<Ipv6Addr>().is_err() {
        return Err(SpecProblem::NotV6(host.to_owned()));
    }
    check_name(zone)
}

/// Digits only: `parse` alone would take `+1`.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_every_spelling() {
        for (input, host, port, weight) in [
            ("cache1", "cache1", 11211, 1),
            ("cache1:11300", "cache1", 11300, 1),
            ("cache1:11300:5", "cache1", 11300, 5),
            ("10.0.0.1:1", "10.0.0.1", 1, 1),
            ("cache_1.example.:65535:4294967295", "cache_1.example.", 65535, u32::MAX),
            ("[::1]", "::1", 11211, 1),
            ("[::1]:7", "::1", 7, 1),
            ("[2001:db8::7]:11211:3", "2001:db8::7", 11211, 3),
            ("[fe80::1%eth0]:7", "fe80::1%eth0", 7, 1),
        ] {
            let spec: ServerSpec = input.parse().unwrap();
            assert_eq!((spec.addr.host.as_str(), spec.addr.port, spec.weight), (host, port, weight), "{input}");
            assert_eq!(spec.to_string().parse::<ServerSpec>().unwrap(), spec, "{input}");
        }
    }

    #[test]
    fn names_the_input_and_what_is_wrong() {
        for (input, message) in [
            ("", "server \"\": the host is missing"),
            (":11211", "server \":11211\": the host is missing"),
            ("a:", "server \"a:\": port \"\" is not a number from 1 to 65535"),
            ("a:0", "server \"a:0\": port \"0\" is not a number from 1 to 65535"),
            ("a:65536", "server \"a:65536\": port \"65536\" is not a number from 1 to 65535"),
            ("a:+1", "server \"a:+1\": port \"+1\" is not a number from 1 to 65535"),
            (
                "a:1:0",
                "server \"a:1:0\": weight \"0\" is not a number from 1 to 4294967295, or no weight is expected here",
            ),
            (
                "a:1:",
                "server \"a:1:\": weight \"\" is not a number from 1 to 4294967295, or no weight is expected here",
            ),
            ("a:1:2:3", "server \"a:1:2:3\": too many colons (an IPv6 address goes in brackets: [::1]:11211)"),
            ("::1", "server \"::1\": too many colons (an IPv6 address goes in brackets: [::1]:11211)"),
            ("[::1]:1:2:3", "server \"[::1]:1:2:3\": too many colons (an IPv6 address goes in brackets: [::1]:11211)"),
            ("[::1", "server \"[::1\": expected [address]:port"),
            ("[::1]7", "server \"[::1]7\": expected [address]:port"),
            ("[a]:7", "server \"[a]:7\": \"a\" is not an IPv6 address"),
            ("a b:7", "server \"a b:7\": ' ' cannot stand in a host name"),
            ("a,b", "server \"a,b\": one server for each flag; repeat the flag for the next"),
            ("a:1,b:2", "server \"a:1,b:2\": one server for each flag; repeat the flag for the next"),
            ("/tmp/s.sock", "server \"/tmp/s.sock\": '/' cannot stand in a host name"),
            ("a\nb", "server \"a\\nb\": '\\n' cannot stand in a host name"),
        ] {
            assert_eq!(input.parse::<ServerSpec>().unwrap_err().to_string(), message);
        }
        assert!("a:1:2".parse::<NodeAddr>().is_err());
        assert!(format!("{}:1", "a".repeat(254)).parse::<ServerSpec>().is_err());
    }
}
