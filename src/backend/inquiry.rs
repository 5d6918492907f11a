//! What operators and monitors ask a server, in one line of text, over a connection of their own:
//! a long answer must not keep probes and records waiting.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::ids::NodeId;
use crate::protocol::spelled;
use crate::protocol::whole::Whole;

use super::allowance::Allowance;
use super::{Dial, NodeError, Pipe, give_back};

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InquiryError {
    #[error("{0}")]
    Node(#[from] NodeError),
    #[error("answered more than {0} bytes")]
    TooLong(usize),
}

/// The longest answer of a server that is passed on, in bytes: a value of a usual `-I`, and any
/// list of statistics (`stats cachedump` has 2 MiB).
pub const ANSWER_MAX: usize = 3 << 20;

/// The way to one node.
pub struct Inquirer {
    node: NodeId,
    dialer: Arc<dyn Dial>,
    timeout: Allowance,
    /// Kept from one question to the next: a monitor that asks without a pause would use up the
    /// machine's ports.
    kept: Mutex<Option<Pipe>>,
}

impl Inquirer {
    /// `timeout`: what a question may take as a whole, with the dial.
    pub fn new(node: NodeId, dialer: Arc<dyn Dial>, timeout: Duration) -> Inquirer {
        Inquirer { node, dialer, timeout: Allowance::new(timeout), kept: Mutex::default() }
    }

    /// From now on a question may take this long.
    pub fn allow(&self, timeout: Duration) {
        self.timeout.set(timeout);
    }

    /// The whole answer to a command, line ends and all, if it has at most `bytes_max` bytes.
    pub async fn ask(&self, command: &str, bytes_max: usize) -> Result<Bytes, InquiryError> {
        let deadline = Instant::now() + self.timeout.get();
        let mut kept = self.kept.lock().await;
        if let Some(pipe) = kept.take().filter(|pipe| pipe.address() == self.dialer.address(self.node)) {
            match self.ask_over(pipe, command, bytes_max, deadline).await {
                // The server has closed it while nobody asked.
                Err(InquiryError::Node(NodeError::Reset)) => {}
                result => return self.keep(&mut kept, result),
            }
        }
        let result = self.ask_anew(command, bytes_max, deadline).await;
        self.keep(&mut kept, result)
    }

    /// As [`Inquirer::ask`], and never sent twice: over a connection that nothing was asked on
    /// before.
    pub async fn tell(&self, command: &str, bytes_max: usize) -> Result<Bytes, InquiryError> {
        let result = self.ask_anew(command, bytes_max, Instant::now() + self.timeout.get()).await;
        result.map(|(answer, _)| answer)
    }

    /// An answer to `mg` has won the right to recompute this item, which is a client's.
    pub async fn give_back(&self, key: Bytes, binary: bool, cas: Option<u64>) -> Result<(), NodeError> {
        let patience = self.timeout.get();
        let mut pipe = Pipe::connect(&*self.dialer, self.node, Instant::now() + patience).await?;
        give_back(&mut pipe, &[(key, binary)], vec![(0, cas)], patience).await
    }

    fn keep(
        &self,
        kept: &mut Option<Pipe>,
        result: Result<(Bytes, Option<Pipe>), InquiryError>,
    ) -> Result<Bytes, InquiryError> {
        result.map(|(answer, pipe)| {
            *kept = pipe;
            answer
        })
    }

    async fn ask_anew(
        &self,
        command: &str,
        bytes_max: usize,
        deadline: Instant,
    ) -> Result<(Bytes, Option<Pipe>), InquiryError> {
        let pipe = Pipe::connect(&*self.dialer, self.node, deadline).await?;
        self.ask_over(pipe, command, bytes_max, deadline).await
    }

    /// The pipe comes back if nothing is left on it.
    async fn ask_over(
        &self,
        mut pipe: Pipe,
        command: &str,
        bytes_max: usize,
        deadline: Instant,
    ) -> Result<(Bytes, Option<Pipe>), InquiryError> {
        pipe.send(&spelled::bytes(&format!("{command}\r\n")))?;
        let mut whole = Whole::answer_to(command);
        let mut answer = BytesMut::new();
        loop {
            answer.extend_from_slice(&pipe.read_chunk(deadline).await?);
            if let Some(len) = whole.len(&answer) {
                let more = answer.len() > len;
                answer.truncate(len);
                return Ok((answer.freeze(), (!more).then_some(pipe)));
            }
            if answer.len() > bytes_max {
                return Err(InquiryError::TooLong(bytes_max));
            }
        }
    }
}
