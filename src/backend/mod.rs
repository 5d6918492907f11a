//! Nodes as the proxy reaches them: dialling, the control plane's pipelined connection, the markers
//! on them.

mod address;
mod allowance;
mod batch;
mod blocks;
mod control;
mod deadline;
mod dial;
mod drain;
mod error;
mod inquiry;
pub mod marker;
mod memories;
mod pipe;
mod poll;
mod recompute;
pub mod sight;
mod witness;

pub use address::{Addresses, Resolve, SystemResolver};
pub use batch::{Batch, Effect};
pub use control::{Flushed, MarkError, NewName, NodeControl, NodeView, Probe, Stored};
#[cfg(test)]
pub(crate) use dial::at_present_address;
pub use dial::{Dial, NodeStream, TcpDialer};
pub(crate) use dial::{gives_up, is_from_node};
pub use drain::{Drain, DrainEnd};
pub use error::NodeError;
pub use inquiry::{ANSWER_MAX, Inquirer, InquiryError};
pub use memories::Memories;
pub use pipe::Pipe;
pub use recompute::give_back;
