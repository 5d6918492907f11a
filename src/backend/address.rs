//! Where each node is reached now. Names are resolved by the control plane alone, which writes the
//! result here; each dial reads it.
//!
//! A dial that resolved the name itself could reach another server than the connections beside it:
//! a resync once listed an empty server while clients were served by the full one that the name had
//! led to before.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use futures::future::{BoxFuture, FutureExt};

use crate::ids::{AddressNumber, NodeId};
use crate::ring::NodeAddr;

/// The present address of every node. Its locks are taken at dials, never for a request.
#[derive(Debug)]
pub struct Addresses(Vec<Mutex<Address>>);

#[derive(Debug)]
struct Address {
    /// An error says why there is none.
    at: Result<SocketAddr, String>,
    /// Counts the changes.
    number: AddressNumber,
}

impl Addresses {
    /// For nodes in the order of their [`NodeId`]s. Literal addresses are known at once and for
    /// good.
    pub fn new<'a>(nodes: impl Iterator<Item = &'a NodeAddr>) -> Addresses {
        let address = |node: &NodeAddr| {
            let literal = node.host.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, node.port));
            let at = literal.map_err(|_| format!("{} has not been resolved yet", node.host));
            Mutex::new(Address { at, number: AddressNumber::default() })
        };
        Addresses(nodes.map(address).collect())
    }

    /// The address, and which of the node's it is.
    ///
    /// # Errors
    ///
    /// `NotFound`: the name never resolved.
    pub fn get(&self, node: NodeId) -> io::Result<(SocketAddr, AddressNumber)> {
        let address = self.lock(node);
        match &address.at {
            Ok(at) => Ok((*at, address.number)),
            Err(why) => Err(io::Error::new(io::ErrorKind::NotFound, why.clone())),
        }
    }

    /// Counts the node's addresses.
    pub fn number(&self, node: NodeId) -> AddressNumber {
        self.lock(node).number
    }

    /// From now on connections are made there, and those made before belong to an earlier one.
    pub fn set(&self, node: NodeId, at: SocketAddr) {
        let mut address = self.lock(node);
        if address.at != Ok(at) {
            *address = Address { at: Ok(at), number: AddressNumber(address.number.0 + 1) };
        }
    }

    /// Why a node that never had an address still has none.
    pub fn unresolved(&self, node: NodeId, why: String) {
        let mut address = self.lock(node);
        if address.at.is_err() {
            address.at = Err(why);
        }
    }

    fn lock(&self, node: NodeId) -> std::sync::MutexGuard<'_, Address> {
        self.0[node.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks up host names. Behind a trait, so that the simulation can move its hosts.
pub trait Resolve: Send + Sync + 'static {
    /// All addresses of a host; the ports mean nothing.
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

/// The system's resolver (`getaddrinfo`), which blocks: on threads of its own, so that a slow name
/// server stalls nothing else.
#[derive(Clone, Copy, Debug)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let host = host.to_owned();
        async move { Ok(tokio::net::lookup_host((host.as_str(), 0)).await?.collect()) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(hosts: &[&str]) -> Addresses {
        let nodes: Vec<NodeAddr> = hosts.iter().map(|h| NodeAddr { host: (*h).to_owned(), port: 11211 }).collect();
        Addresses::new(nodes.iter())
    }

    #[test]
    fn literals_are_known_and_names_are_not() {
        let addresses = addresses(&["10.0.0.1", "::1", "cache1"]);
        assert_eq!(addresses.get(NodeId(0)).unwrap(), ("10.0.0.1:11211".parse().unwrap(), AddressNumber(0)));
        assert_eq!(addresses.get(NodeId(1)).unwrap(), ("[::1]:11211".parse().unwrap(), AddressNumber(0)));
        let error = addresses.get(NodeId(2)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("cache1"), "{error}");
    }

    #[test]
    fn every_change_is_another_number_and_a_failed_look_up_changes_nothing() {
        let addresses = addresses(&["cache1"]);
        let (one, other) = ("10.0.0.1:11211".parse().unwrap(), "10.0.0.2:11211".parse().unwrap());
        addresses.set(NodeId(0), one);
        addresses.set(NodeId(0), one);
        addresses.unresolved(NodeId(0), "no such host".to_owned());
        assert_eq!(addresses.get(NodeId(0)).unwrap(), (one, AddressNumber(1)));
        addresses.set(NodeId(0), other);
        addresses.set(NodeId(0), one);
        assert_eq!(addresses.get(NodeId(0)).unwrap(), (one, AddressNumber(3)), "it was elsewhere meanwhile");
    }
}
