//! What a job asks of either node before it begins.

use tokio::time::Instant;

use crate::ambient;
use crate::backend::{NodeError, Pipe};
use crate::protocol::expiry::Offset;
use crate::protocol::statistics;

use super::Context;

/// What a job has to know of a node before it begins.
pub(super) struct NodeStats {
    pub(super) offset: Offset,
    pub(super) evictions: u64,
    pub(super) has_cas: bool,
}

/// Of either node.
pub(super) async fn node_stats(pipe: &mut Pipe, ctx: &Context) -> Result<NodeStats, NodeError> {
    let deadline = Instant::now() + ctx.tuning.target_timeout;
    let asked = async {
        let stats = pipe.stats("", deadline).await?;
        let now = ambient::date(Instant::now());
        let time = statistics::number(&stats, "time").and_then(|t| i64::try_from(t).ok());
        let unix_secs = time.ok_or_else(|| NodeError::Protocol("stats without a time".to_owned()))?;
        let evictions = statistics::number(&stats, "evictions").unwrap_or(0);
        let settings = pipe.stats("settings", deadline).await?;
        let has_cas = !settings.iter().any(|(name, value)| name == "cas_enabled" && value == "no");
        Ok(NodeStats { offset: Offset::seen(unix_secs, now), evictions, has_cas })
    };
    asked.await
}
