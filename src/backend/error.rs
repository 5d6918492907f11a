//! Why a node could not be talked to.

use std::io;

use thiserror::Error;

/// Why a node could not be talked to.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NodeError {
    /// No process listens there.
    #[error("refused the connection")]
    Refused,
    /// The connection was closed or reset.
    #[error("closed the connection")]
    Reset,
    /// No answer within the deadline.
    #[error("did not answer in time")]
    Timeout,
    /// It answered what no memcached answers to the command; nothing more is read from this
    /// connection.
    #[error("broke the protocol: {0}")]
    Protocol(String),
    /// It has as many connections as it may have; this one gets nothing else.
    #[error("takes no more connections (its -c): {0}")]
    Full(String),
    /// Its name never resolved, so nobody knows where it is.
    #[error("has no address: {0}")]
    Unresolved(String),
    /// It carries another incarnation's marker: this is not the memory that is meant.
    #[error("holds another memory")]
    OtherMemory,
    /// It carries no incarnation marker: the memory is gone, or the marker alone.
    #[error("has lost its marker")]
    MarkerLost,
    /// It cannot be reached: there is no route, and the like.
    #[error("is unreachable: {0}")]
    Unreachable(String),
}

impl NodeError {
    /// The word for it in log, metrics and `stats`.
    pub fn reason(&self) -> &'static str {
        match self {
            NodeError::Refused => "refused",
            NodeError::Reset => "reset",
            NodeError::Timeout => "timeout",
            NodeError::Protocol(_) => "protocol",
            NodeError::Full(_) => "connection_limit",
            NodeError::Unresolved(_) => "unresolved",
            NodeError::OtherMemory => "marker_stale",
            NodeError::MarkerLost => "marker_lost",
            NodeError::Unreachable(_) => "unreachable",
        }
    }
}

impl From<io::Error> for NodeError {
    fn from(error: io::Error) -> NodeError {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => NodeError::Refused,
            io::ErrorKind::TimedOut => NodeError::Timeout,
            io::ErrorKind::NotFound => NodeError::Unresolved(error.to_string()),
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof => NodeError::Reset,
            _ => NodeError::Unreachable(error.to_string()),
        }
    }
}
