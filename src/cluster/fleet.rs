//! This proxy among those that may take its place, as the control plane knows it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::losses::{Losses, Lost};
use super::turn::Turn;
use crate::ids::{Epoch, PairId};

/// See the module's words.
pub(super) struct Fleet {
    /// Where losses are agreed on.
    pub(super) losses: Arc<dyn Losses>,
    /// What was agreed on when this proxy began.
    pub(super) listed: Vec<(PairId, Lost, Epoch)>,
    /// `None`: this proxy is the only one.
    pub(super) turn: Option<Turn>,
    /// Ends the tasks that ask servers whether the former active proxy is gone.
    pub(super) former_looks: CancellationToken,
}

impl Fleet {
    /// `looks`: ends when the control plane does, or before.
    pub(super) fn new(losses: Arc<dyn Losses>, looks: CancellationToken) -> Fleet {
        Fleet { listed: losses.listed(), turn: losses.turn(), losses, former_looks: looks }
    }
}
