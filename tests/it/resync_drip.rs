//! A resync whose source goes on byte by byte: it is no progress, so the job ends, names the
//! source, and hangs nowhere.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use resilver::internals::backend::{Dial, NodeError, NodeStream};
use resilver::internals::ids::{NodeId, PairId};
use resilver::internals::keys::Recopy;
use resilver::internals::resync::{Context, Fill, JobError, JobEvent, JobSpec, Progress, Shared, Tuning, run};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const SOURCE: NodeId = NodeId(0);
const TARGET: NodeId = NodeId(1);
const TIMEOUT: Duration = Duration::from_secs(10);

/// In answer to what the source goes on byte by byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Drips {
    TheList,
    AValue,
    /// Eight small answers in a timeout are progress; these are seven.
    FewAnswers,
}

struct Nodes(Drips);

impl Dial for Nodes {
    fn dial(&self, node: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
        let (near, far) = duplex(1 << 16);
        tokio::spawn(serve(far, node, self.0));
        async move { Ok(NodeStream::from(near)) }.boxed()
    }
}

async fn serve(stream: DuplexStream, node: NodeId, drips: Drips) -> io::Result<()> {
    let (input, mut output) = tokio::io::split(stream);
    let mut lines = BufReader::new(input).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match line.split(' ').next().unwrap_or_default() {
            "stats" if line == "stats" => "STAT time 1700000000\r\nSTAT evictions 0\r\nEND\r\n".to_owned(),
            "stats" => "STAT cas_enabled yes\r\nEND\r\n".to_owned(),
            "lru_crawler" if drips == Drips::TheList => drip(&mut output, "key=").await?,
            "lru_crawler" => {
                let line = |i| format!("key=k{i} exp=-1 la=0 cas=1 fetch=no cls=1 size=60\n");
                (0..100).map(line).collect::<String>() + "END\r\n"
            }
            "mg" if node == SOURCE && drips == Drips::AValue => {
                drip(&mut output, "VA 1000000 kk0 f0 t-1 c1\r\n").await?
            }
            "mg" if node == SOURCE => {
                sleep(TIMEOUT / 7).await;
                "EN\r\n".to_owned()
            }
            "mg" => "EN\r\n".to_owned(),
            _ => "HD\r\n".to_owned(),
        };
        output.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

/// A byte each second, until nobody takes it.
async fn drip(output: &mut (impl AsyncWriteExt + Unpin), begin: &str) -> io::Result<String> {
    output.write_all(begin.as_bytes()).await?;
    loop {
        sleep(Duration::from_secs(1)).await;
        output.write_all(b"x").await?;
    }
}

#[tokio::test(start_paused = true)]
async fn g4_a_source_that_drips_ends_the_resync_and_is_named() {
    for drips in [Drips::TheList, Drips::AValue, Drips::FewAnswers] {
        let (coordinator, mut events) = mpsc::channel(4);
        let ctx = Context {
            dialer: Arc::new(Nodes(drips)),
            memories: BTreeMap::new(),
            names: Arc::default(),
            item_limits: BTreeMap::new(),
            owner: Arc::new(|_: &[u8]| PairId(0)),
            holds: Arc::new(|_, _| true),
            tuning: Tuning { source_timeout: TIMEOUT, ..Tuning::default() },
            shared: Shared::new(2, None),
            cancel: CancellationToken::new(),
            progress: Arc::new(Progress::new([PairId(0)])),
            recopy: BTreeMap::from([(PairId(0), Arc::new(Recopy::new()))]),
            missed: BTreeMap::new(),
            lone: BTreeMap::new(),
            written: BTreeMap::new(),
            coordinator,
        };
        let cancel = ctx.cancel.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                match event {
                    JobEvent::Purged { reply } => {
                        let _ = reply.send(true);
                    }
                    JobEvent::CannotEnumerate { source: SOURCE, why, .. } => {
                        assert_eq!(why, "its crawler stands still in a dump");
                        cancel.cancel();
                    }
                    _ => {}
                }
            }
        });
        let spec = JobSpec { target: TARGET, pairs: vec![(PairId(0), SOURCE)], fill: Fill::Empty, leads: false };
        let begun = Instant::now();
        let outcome = tokio::time::timeout(10 * TIMEOUT, run(spec, ctx)).await.expect("an end");
        let expected = match drips {
            // It was told of; the job goes on with what clients read, until it is cancelled above.
            Drips::TheList => JobError::Cancelled,
            Drips::AValue | Drips::FewAnswers => JobError::Source(SOURCE, NodeError::Timeout),
        };
        assert_eq!(outcome.result, Err(expected), "{drips:?}");
        assert!(outcome.undone && outcome.drains.is_empty(), "{drips:?}");
        assert!(begun.elapsed() <= TIMEOUT + Duration::from_secs(2), "{drips:?}: {:?}", begun.elapsed());
    }
}
