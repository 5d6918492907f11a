//! Which keys a node holds, by `lru_crawler metadump`.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Context;
use super::dump::{Coverage, DumpEnd, DumpError, DumpLine, Free};
use super::spool::Disk;
use super::table::Table;
use crate::backend::Effect;
use crate::ids::NodeId;
use crate::protocol::node;

/// Shortest and longest pause before a crawl that was answered `BUSY` is asked for again.
const BUSY_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Walks all keys of a node. `on_key` may see a key twice, and keys that are gone by the time it is
/// called.
///
/// A node has one crawler; jobs wait for each other here rather than on the node, where a command
/// that meets a running dump blocks a worker thread. Other clients' crawls are waited for by asking
/// again. `disk` is where `on_key` puts what it sees.
pub(super) async fn enumerate(
    ctx: &Context,
    node: NodeId,
    disk: &Disk,
    mut on_key: impl FnMut(DumpLine<'_>) -> std::io::Result<()> + Send,
) -> Result<Coverage, DumpError> {
    let tuning = &ctx.tuning;
    let turn = ctx.shared.crawls.turn(node, tuning.source_timeout).await.map_err(|_| DumpError::StandsStill)?;
    let mut free = Free { pipe: ctx.connect(node).await?, turn };
    let give_up = Instant::now() + tuning.busy_timeout;
    let mut pause = BUSY_PAUSE.0;
    let (mut coverage, mut enabled) = (Coverage::Whole, false);
    let mut table = Table::default();
    loop {
        let stats = free.pipe.stats("", Instant::now() + tuning.source_timeout).await?;
        let end = if table.may_be_walked(&stats, Instant::now()) {
            let _crawl = ctx.shared.pace.crawl();
            let end;
            (end, free) = free.ask(coverage)?.read(tuning.source_timeout, disk, &mut on_key).await?;
            end
        } else {
            DumpEnd::Again
        };
        match end {
            DumpEnd::Complete => return Ok(coverage),
            DumpEnd::Again if Instant::now() < give_up => {
                tracing::debug!(node = node.0, ?pause, "the node's crawler is busy, or its table grows");
                sleep(pause).await;
                pause = (pause * 2).min(BUSY_PAUSE.1);
            }
            DumpEnd::Again => return Err(DumpError::Busy),
            DumpEnd::UnknownMode if coverage == Coverage::Whole => coverage = Coverage::Leaky,
            DumpEnd::UnknownMode => return Err(DumpError::Cannot("it knows no metadump".to_owned())),
            DumpEnd::Off(_) if !enabled => {
                enabled = true;
                let deadline = Instant::now() + tuning.source_timeout;
                let answer = free.pipe.ask(node::CRAWLER_ENABLE, Effect::Read, deadline).await?;
                tracing::info!(node = node.0, answer, "the node's lru crawler was off; asked to enable it");
            }
            DumpEnd::Off(_) if coverage == Coverage::Whole => coverage = Coverage::Leaky,
            DumpEnd::Off(why) => return Err(DumpError::Cannot(why)),
        }
    }
}

#[cfg(test)]
#[path = "enumerate_tests.rs"]
mod tests;
