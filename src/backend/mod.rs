//! Nodes as the proxy reaches them: dialling, and the control plane's pipelined connection.

mod batch;
mod dial;
mod drain;
mod frame;
mod pipe;

pub use batch::{Batch, Effect};
pub use dial::{Dial, NodeStream, TcpDialer};
pub use drain::{Drain, DrainEnd};
pub use frame::Frame;
pub use pipe::{NodeError, Pipe};
