//! The node's end of one connection: commands are taken off it, executed one after the other, and
//! answered.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures::future::FutureExt;
use rand::RngExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep, timeout};

use crate::backend::marker;
use crate::ids::PairId;
use crate::rules::{Rule, holds};
use crate::simulation::node::take_command;
use crate::simulation::trace::{note, show};

use super::{Broken, Inner, Net, Way};

/// What a dead proxy has sent may be executed so much later, in milliseconds; less than the next
/// one waits for it.
const LATE_MS: u64 = 150;
/// How late a record is written for a proxy that does not wait for it.
const RECORD_LATE: Duration = Duration::from_millis(300);
/// Keys that a dump lists before others get their turn.
const DUMP_KEYS: usize = 3;

/// A record of who leads alone.
fn is_record_of_one_alone(command: &[u8]) -> bool {
    let alone = memchr::memmem::find(command, b" alone ").is_some();
    alone && command.starts_with(format!("ms {}", marker::pair_key(PairId(0)).trim_end_matches('0')).as_bytes())
}

/// With which generation this marks a host.
fn generation_in(command: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(command.strip_prefix(b"ms ")?).ok()?;
    let (head, mark) = text.strip_prefix(marker::FLEET_KEY)?.split_once("\r\n")?;
    head.starts_with(' ').then(|| mark.split(' ').next()?.parse().ok())?
}

impl Net {
    /// For a proxy without [`Rule::RecordBeforeAck`]: what it takes for recorded is written a while
    /// later, if it lives until then.
    fn execute_late(self: &Arc<Net>, id: usize, host: usize, command: &[u8]) {
        let (net, command) = (self.clone(), command.to_vec());
        tokio::spawn(async move {
            sleep(RECORD_LATE).await;
            let inner = &mut *net.lock();
            let alive =
                !inner.dead_proxies.contains(&inner.conns[id].proxy) && inner.conns[id].life == inner.hosts[host].life;
            if alive && inner.hosts[host].up {
                let answer = inner.hosts[host].node.execute(&command);
                note(|| format!("host {host} #{id:<3} {} late -> {}", show(&command), show(&answer)));
            }
        });
    }
}

/// What a dump has listed so far; nothing before it began.
type Cursor = Option<Vec<u8>>;

pub(super) struct Serving {
    pub(super) net: Arc<Net>,
    pub(super) id: usize,
    pub(super) host: usize,
    /// `None`: the other end is gone.
    pub(super) far: Option<DuplexStream>,
}

impl Serving {
    pub(super) async fn run(&mut self) {
        let (net, id) = (self.net.clone(), self.id);
        let mut input = BytesMut::new();
        loop {
            while let Some(command) = take_command(&mut input) {
                if !self.execute(&command).await {
                    return;
                }
            }
            let Some(stream) = &mut self.far else { return };
            let broken = net.until(|inner| {
                (inner.is_over(id) || inner.conns[id].broken != Broken::No).then(|| inner.conns[id].broken)
            });
            tokio::select! {
                biased;
                broken = broken => {
                    if broken != Broken::ByProxy {
                        return;
                    }
                    while let Some(Ok(1..)) = stream.read_buf(&mut input).now_or_never() {}
                    self.far = None;
                    // A busy node executes it at some later moment.
                    let ms = net.lock().rng.random_range(0..LATE_MS);
                    sleep(Duration::from_millis(ms)).await;
                }
                () = net.until(|inner| inner.has_backlog(id).then_some(())) => {
                    if matches!(self.reply(b"").await, Reply::Over) {
                        return;
                    }
                }
                read = stream.read_buf(&mut input) => match read {
                    Ok(1..) => net.pause(self.host).await,
                    _ => self.far = None,
                }
            }
        }
    }

    /// `false` = the connection is over.
    async fn execute(&mut self, command: &[u8]) -> bool {
        let (net, id, host) = (self.net.clone(), self.id, self.host);
        net.pause(host).await;
        net.take_time().await;
        if is_record_of_one_alone(command) && !holds(Rule::RecordBeforeAck) {
            net.execute_late(id, host, command);
            return !matches!(self.reply(b"HD\r\n").await, Reply::Over);
        }
        let dump = command.starts_with(b"lru_crawler metadump hash");
        let mut cursor = None;
        loop {
            let stopped = net.lock().is_stopped(id);
            if stopped && !self.stand_still().await {
                return false;
            }
            let done = net.until(|inner| {
                if inner.is_over(id) || inner.conns[id].lost {
                    return Some(None);
                }
                (!inner.is_stopped(id)).then(|| Some(inner.execute(id, command, dump, &mut cursor)))
            });
            let Some((answer, last)) = done.await else {
                if cursor.is_some() {
                    net.lock().end_dump(id);
                }
                return false;
            };
            net.pause(host).await;
            match self.reply(&answer).await {
                // memcached's crawler notices that its reader is gone.
                heard @ (Reply::Over | Reply::Unheard) => {
                    if dump && !last {
                        net.lock().end_dump(id);
                    }
                    return !matches!(heard, Reply::Over);
                }
                Reply::Heard if last => return true,
                Reply::Heard => {}
            }
        }
    }

    /// Waits as long as nothing of the connection is executed, and then for the node to come to it.
    /// `false` = the connection is over.
    async fn stand_still(&self) -> bool {
        let (net, id, host) = (&self.net, self.id, self.host);
        // What waited for an address that is reached again comes soon: the proxy waits for it, but
        // not for ever.
        let blocked = {
            let inner = &mut *net.lock();
            if inner.conns[id].of_worker {
                inner.hosts[host].owes_since.get_or_insert_with(Instant::now);
            }
            inner.conns[id].way < inner.hosts[host].open_from
        };
        let gone_on =
            net.until(|inner| (inner.is_over(id) || !inner.is_stopped(id) || inner.conns[id].lost).then_some(()));
        let patience = {
            let inner = net.lock();
            inner.undelivered.filter(|_| inner.is_closed(id, Way::There))
        };
        match patience {
            None => gone_on.await,
            Some(patience) => {
                if timeout(patience, gone_on).await.is_err() {
                    note(|| format!("net    connection {id} is given up by its proxy's kernel"));
                    net.lock().conns[id].lost = true;
                    return false;
                }
            }
        }
        // A node that wakes does not come to all its connections at once.
        let ms = {
            let inner = &mut *net.lock();
            let waking_ms = inner.hosts[host].waking_ms;
            if !blocked && inner.rng.random_ratio(1, 3) { inner.rng.random_range(0..waking_ms) } else { 0 }
        };
        // What a dead proxy sent comes sooner than that: the next one waits for it, but not for
        // ever.
        let orphaned = net.until(|inner| (inner.conns[id].broken == Broken::ByProxy).then_some(()));
        let _ = timeout(Duration::from_millis(ms), orphaned).await;
        true
    }

    async fn reply(&mut self, answer: &[u8]) -> Reply {
        let (net, id, host) = (self.net.clone(), self.id, self.host);
        let over = net.until(|inner| {
            if inner.is_over(id) {
                return Some(true);
            }
            (!inner.is_cut_off(host, inner.conns[id].way) && !inner.is_unheard(id)).then_some(false)
        });
        if over.await {
            return Reply::Over;
        }
        let Some(stream) = &mut self.far else { return Reply::Unheard };
        let answer = {
            let inner = &mut *net.lock();
            inner.conns[id].backlog.extend_from_slice(answer);
            if inner.is_closed(id, Way::Back) {
                return Reply::Heard;
            }
            std::mem::take(&mut inner.conns[id].backlog)
        };
        let broken = net.until(|inner| (inner.is_over(id) || inner.conns[id].broken != Broken::No).then_some(()));
        tokio::select! {
            biased;
            written = stream.write_all(&answer) => if written.is_ok() { Reply::Heard } else { Reply::Unheard },
            () = broken => Reply::Unheard,
        }
    }
}

enum Reply {
    Heard,
    /// The proxy has closed the connection; what it had sent before is executed to its end.
    Unheard,
    /// The connection is over: nothing of it is executed any more.
    Over,
}

impl Inner {
    /// Executes a command of the connection's, or the next part of a dump. Returns what is
    /// answered, and whether that is all.
    fn execute(&mut self, id: usize, command: &[u8], dump: bool, cursor: &mut Cursor) -> (Vec<u8>, bool) {
        if self.undelivered.is_some() && command.starts_with(b"stats conns") {
            return (self.list_conns(id), true);
        }
        if let Some(generation) = generation_in(command) {
            self.marked.entry(generation).or_insert_with(Instant::now);
        }
        let host = self.conns[id].host;
        let there = &mut self.hosts[host];
        if !dump || (cursor.is_none() && there.node.dumping) {
            let answer = there.node.execute(command);
            note(|| format!("host {host} #{id:<3} {} -> {}", show(command), show(&answer)));
            return (answer, true);
        }
        there.node.dumping = true;
        match there.node.dump(cursor, DUMP_KEYS) {
            Some(lines) => (lines, false),
            None => {
                there.node.dumping = false;
                (b"END\r\n".to_vec(), true)
            }
        }
    }
}
