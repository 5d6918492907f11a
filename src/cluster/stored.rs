//! How large the items are that servers hold: by that clients' first large values are asked for.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::sleep;

use super::{Cluster, Internal};
use crate::backend::Stored;
use crate::ids::NodeId;
use crate::lease;
use crate::proxy::Command;

/// Between two questions to a server. Large values that clients meet are known for longer.
const AGAIN: Duration = Duration::from_secs(30);

impl Cluster {
    /// Of a node that was just taken back, and whose clock is measured.
    pub(super) fn watch_stored(&mut self, node: NodeId) {
        self.tell_stored();
        let run = &self.nodes[node];
        let (stop, away) = (run.measuring.child_token(), run.away.clone());
        let (control, internal) = (self.controls[node].clone(), self.internal.clone());
        lease::spawn(stop.run_until_cancelled_owned(async move {
            loop {
                sleep(AGAIN).await;
                // Of a node that fails, the probes tell.
                if away.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(stored) = control.stored().await else { continue };
                if internal.send(Internal::Stored { node, stored }).is_err() {
                    return;
                }
            }
        }));
    }

    pub(super) fn stored(&mut self, node: NodeId, stored: Stored) {
        if let Some(view) = &mut self.nodes[node].view {
            view.stored = stored;
            self.tell_stored();
        }
    }

    /// What all of them hold that are in use.
    fn tell_stored(&self) {
        let views = self.nodes.iter().filter(|run| run.health.is_up()).filter_map(|run| run.view.as_ref());
        let stored = views.fold(Stored::default(), |all, view| all.with(view.stored));
        for worker in &self.workers {
            let (largest, rarely) = (stored.largest, stored.is_rarely_large());
            let _ = worker.send(Command::Stored { largest, rarely });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use bytes::BytesMut;
    use futures::future::{BoxFuture, FutureExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;
    use crate::backend::{Dial, NodeControl, NodeStream, NodeView};
    use crate::cluster::alone::alone;
    use crate::pair::{Loss, Reason, State};
    use crate::testing::memcached::{Memcached, command_len};

    /// A memcached with an item of 1 MB, in time.
    struct Large;

    impl Dial for Large {
        fn dial(&self, _: NodeId) -> BoxFuture<'static, io::Result<NodeStream>> {
            let (near, far) = duplex(1 << 16);
            tokio::spawn(serve(far));
            async { Ok(NodeStream::from(near)) }.boxed()
        }
    }

    async fn serve(mut stream: DuplexStream) {
        let (mut memory, mut input) = (Memcached::default(), BytesMut::new());
        let set = [&b"set large 0 0 1000000\r\n"[..], &[b'x'; 1_000_000], b"\r\n"].concat();
        memory.execute(&set, &mut Vec::new());
        while matches!(stream.read_buf(&mut input).await, Ok(1..)) {
            while let Some(len) = command_len(&input) {
                let mut answer = Vec::new();
                memory.execute(&input.split_to(len), &mut answer);
                stream.write_all(&answer).await.expect("read");
            }
        }
    }

    /// What workers were told last.
    fn told(commands: &mut UnboundedReceiver<Command>) -> Option<(u32, bool)> {
        let stored =
            |command| if let Command::Stored { largest, rarely } = command { Some((largest, rarely)) } else { None };
        std::iter::from_fn(|| commands.try_recv().ok()).filter_map(stored).last()
    }

    #[tokio::test(start_paused = true)]
    async fn workers_are_told_of_what_is_stored_in_time_by_servers_in_use() {
        let mut cluster = alone("-s 127.0.0.1:1 -b 127.0.0.1:2");
        let (worker, mut commands) = unbounded_channel();
        cluster.workers = vec![worker];
        cluster.begin_open(State::Mirrored);
        for node in cluster.nodes.iter_mut() {
            node.view = Some(NodeView::default());
        }
        let node = NodeId(0);
        let control = NodeControl::new(node, Arc::new(Large), Arc::default(), Duration::from_secs(1));
        cluster.controls[node] = Arc::new(control);
        cluster.watch_stored(node);
        assert_eq!(told(&mut commands), Some((0, true)), "what it said when it was looked at");
        let mut inbox = cluster.inbox.take().expect("not running");
        for _ in 0..2 {
            let stored = loop {
                let internal = inbox.recv().await.expect("again and again");
                if matches!(internal, Internal::Stored { .. }) {
                    break internal;
                }
            };
            cluster.own_task_said(stored);
            assert_eq!(told(&mut commands), Some((2_000_000, false)));
        }
        cluster.lost(node, Reason::Reset, Loss::Suspected, true);
        cluster.watch_stored(NodeId(1));
        assert_eq!(told(&mut commands), Some((0, true)), "it is not in use");
        tokio::time::advance(4 * AGAIN).await;
        assert!(std::iter::from_fn(|| inbox.try_recv().ok()).all(|i| !matches!(i, Internal::Stored { .. })));
    }
}
