//! Nodes as the proxy reaches them: dialling, and the control plane's pipelined connection.

mod dial;

pub use dial::{Dial, NodeStream, TcpDialer};
