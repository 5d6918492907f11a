//! Nodes as the proxy reaches them: dialling, the control plane's pipelined connection, the markers on them.

mod batch;
mod control;
mod deadline;
mod dial;
mod drain;
mod frame;
pub mod marker;
mod pipe;
mod witness;

pub use batch::{Batch, Effect};
pub use control::{MarkError, NodeControl, NodeView, Probe};
pub use dial::{Dial, NodeStream, TcpDialer};
pub use drain::{Drain, DrainEnd};
pub use frame::Frame;
pub use pipe::{NodeError, Pipe};
