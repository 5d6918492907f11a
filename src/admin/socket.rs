//! The operators' unix socket: `stats`, `resync`, `node`, `lru_crawler metadump`, `reload` and
//! `version` as lines, answered as by the text protocol. Who may connect is a matter of its mode
//! and folder.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::cluster::{Desk, Listed, Listing, Losses};
use crate::config::PoolName;
use crate::daemon::{cannot_accept, span_of};
use crate::lease;
use crate::protocol::answer::{client_error, server_error};
use crate::protocol::spelled;
use crate::proxy::Question;
use crate::reload::Reload;
use crate::report::lines::Lines;
use crate::report::names;
use crate::stats::closings::Closing;

use super::Panel;
use super::busy::Refusals;

/// Operators at a time.
const CONNECTIONS_MAX: usize = 16;
/// The longest command, with the end of its line.
const LINE_MAX: u64 = 2048;
/// Somebody types, and thinks in between.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// An answer is taken within this time.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// A pool that serves says within this time how it is, and one that is starting does not: less than
/// the commands wait for an answer.
const WORD_MAX: Duration = Duration::from_secs(1);

const TOO_LONG: &str = "a command has at most 2048 bytes, with the end of its line";
const BUSY: &[u8] = b"SERVER_ERROR too many connections to the admin socket\r\n";
/// A list of keys begins within this time; and each piece of it is taken within it, as by clients.
const LIST_MAX: Duration = Duration::from_secs(60);

const TAKEN: &str = "the admin socket takes stats, resync, node, reload, version, lru_crawler metadump, pool and quit";
const NOTHING_SAID: &[u8] = b"SERVER_ERROR nothing was said here for 300 seconds: closed\r\n";
const SILENT: Bytes = Bytes::from_static(
    b"SERVER_ERROR no answer: the proxy is starting or ending, or its servers take too long; see its log\r\n",
);

/// What operators on a connection can ask.
#[derive(Clone)]
pub(super) struct Operators {
    /// The pools: at least one, which has no name where the settings have no pools.
    pools: Arc<[Pool]>,
    /// Has the settings read again.
    reload: Option<Arc<Reload>>,
    /// Which of several pools is meant; chosen anew on each connection.
    chosen: Option<usize>,
}

struct Pool {
    name: Option<PoolName>,
    desk: Desk,
    /// Where several proxies agree: what this one is of them.
    losses: Arc<dyn Losses>,
}

pub(super) async fn accept_forever(listener: UnixListener, operators: Operators) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut refusals = Refusals::of("the admin socket");
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                cannot_accept("a connection to the admin socket", &error).await;
                continue;
            }
        };
        let place = places.clone().try_acquire_owned();
        if place.is_err() {
            refusals.tell(CONNECTIONS_MAX);
            Closing::SocketTooMany.count();
        }
        let operators = operators.clone();
        tokio::spawn(async move {
            match place {
                Ok(_place) => serve(stream, operators).await.count(),
                Err(_) => drop(timeout(WRITE_TIMEOUT, write(stream, BUSY)).await),
            }
        });
    }
}

async fn write(mut stream: UnixStream, said: &[u8]) -> std::io::Result<()> {
    stream.write_all(said).await
}

/// Returns why it ends.
async fn serve(stream: UnixStream, mut operators: Operators) -> Closing {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut stream).take(LINE_MAX);
        match timeout(SILENCE_MAX, bounded.read_until(b'\n', &mut line)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => return Closing::SocketLeft,
            Err(_) => {
                tracing::info!("a connection to the admin socket is closed: nothing was said there for 300 s");
                drop(timeout(WRITE_TIMEOUT, stream.write_all(NOTHING_SAID)).await);
                return Closing::SocketIdle;
            }
        }
        // Without its end it is the last line of somebody who says no more: `printf … | nc -U`.
        let too_long = line.len() as u64 == LINE_MAX && !line.ends_with(b"\n");
        let said = if too_long { Said::Answer(client_error(TOO_LONG)) } else { operators.obey(&line).await };
        if too_long {
            tracing::warn!("a connection to the admin socket is closed: {TOO_LONG}");
        }
        let written = match said {
            Said::Quit => return Closing::SocketQuit,
            Said::Answer(said) => put(&mut stream, &said, WRITE_TIMEOUT).await,
            Said::Keys(listing) => list(&mut stream, listing).await,
        };
        match written {
            Err(Some(late)) => return late,
            _ if too_long => return Closing::SocketLongLine,
            Err(None) => return Closing::SocketLeft,
            Ok(()) => {}
        }
    }
}

/// What comes of a line.
enum Said {
    Answer(Bytes),
    Keys(Listing),
    /// Ends the connection.
    Quit,
}

/// Why nothing more can be written; `None`: the operator has left.
type Unwritten = Option<Closing>;

async fn put(stream: &mut BufReader<UnixStream>, said: &[u8], most: Duration) -> Result<(), Unwritten> {
    let Ok(written) = timeout(most, stream.write_all(said)).await else {
        let seconds = most.as_secs();
        tracing::warn!("a connection to the admin socket is closed: it takes no answer for {seconds} s");
        return Err(Some(Closing::SocketLate));
    };
    written.map_err(|_| None)
}

/// A list goes on as long as its pieces are taken.
async fn list(stream: &mut BufReader<UnixStream>, mut listing: Listing) -> Result<(), Unwritten> {
    let mut next = timeout(LIST_MAX, listing.next()).await.unwrap_or(Listed::Nothing);
    loop {
        match next {
            Listed::Piece(piece) => put(stream, &piece, LIST_MAX).await?,
            Listed::End(said) => return put(stream, &said, WRITE_TIMEOUT).await,
            Listed::Nothing => return put(stream, &SILENT, WRITE_TIMEOUT).await,
        }
        next = listing.next().await;
    }
}

impl Operators {
    pub(super) fn new(panels: &[Panel], reload: Option<Arc<Reload>>) -> Operators {
        let pool =
            |panel: &Panel| Pool { name: panel.pool.clone(), desk: panel.desk.clone(), losses: panel.losses.clone() };
        let pools: Arc<[Pool]> = panels.iter().map(pool).collect();
        let chosen = (pools.len() == 1).then_some(0);
        Operators { pools, reload, chosen }
    }

    async fn obey(&mut self, line: &[u8]) -> Said {
        let line = spelled::text(line);
        let mut words = line.split_ascii_whitespace();
        let command = words.next().unwrap_or_default();
        let rest = words.collect::<Vec<_>>().join(" ");
        let question = match command {
            "" => return Said::Answer(client_error(format_args!("an empty line; {TAKEN}"))),
            "stats" => Question::Stats(rest.clone()),
            "resync" => Question::Resync(rest.clone()),
            "node" => Question::Node(rest.clone()),
            "lru_crawler" if rest == "metadump" || rest.starts_with("metadump ") => {
                Question::List(rest["metadump".len()..].trim_start().to_owned())
            }
            "pool" => return Said::Answer(self.choose(&rest)),
            "reload" => return Said::Answer(self.reload().await),
            "version" => return Said::Answer(Bytes::from(format!("VERSION {}\r\n", crate::proxy::VERSION))),
            "quit" => return Said::Quit,
            other => {
                let refusal = format_args!("{other}: {TAKEN}; other commands are for clients' listeners");
                return Said::Answer(client_error(refusal));
            }
        };
        let Some(pool) = self.chosen.and_then(|at| self.pools.get(at)) else {
            let names = self.names();
            // What the commands ask whom they do not know, and what is true of all pools.
            if matches!(&question, Question::Stats(part) if part == "proxy") {
                let ready = self.all_answer().await;
                let mut out = Lines::of_proxy("active", ready);
                out.put(names::POOLS, names);
                return Said::Answer(out.end());
            }
            return Said::Answer(client_error(format_args!(
                "{command}: of which pool? There are {names}: say pool NAME first (--pool NAME of the commands)"
            )));
        };
        let question = match question {
            Question::List(classes) => return pool.list(classes).await,
            other => other,
        };
        let looks = only_looks(&question);
        let said = pool.ask(question).await;
        if !looks {
            let answer = String::from_utf8_lossy(said.split(|byte| *byte == b'\r').next().unwrap_or_default());
            let _of_pool = span_of(pool.name.as_ref()).entered();
            tracing::info!(command, words = ?rest, %answer, "an operator's command on the admin socket");
        }
        Said::Answer(said)
    }

    /// Whether the control plane of each pool answers, and none is starting.
    async fn all_answer(&self) -> bool {
        let said = join_all(self.pools.iter().map(|pool| timeout(WORD_MAX, pool.desk.state()))).await;
        said.iter().all(|said| matches!(said, Ok(Some(_))))
    }

    async fn reload(&self) -> Bytes {
        match &self.reload {
            Some(reload) => reload.answer().await,
            None => client_error("reload: there is nothing to read again"),
        }
    }

    /// What follows on this connection is for that pool.
    fn choose(&mut self, name: &str) -> Bytes {
        match self.pools.iter().position(|pool| pool.name.as_deref() == Some(name)) {
            Some(at) => {
                self.chosen = Some(at);
                Bytes::from_static(b"OK\r\n")
            }
            None if self.pools.iter().all(|pool| pool.name.is_none()) => {
                client_error("pool: this proxy has one, which has no name; leave it out")
            }
            None => client_error(format_args!("pool {name}: there is none of this name; there are {}", self.names())),
        }
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.pools.iter().filter_map(|pool| pool.name.as_deref()).collect();
        names.join(", ")
    }
}

impl Pool {
    /// Asks the control plane, which stands still without a lease.
    async fn ask(&self, question: Question) -> Bytes {
        let of_proxy = matches!(&question, Question::Stats(part) if part == "proxy");
        match self.losses.shown() {
            Some(shown) if of_proxy => shown,
            Some(_) if lease::is_over() => suspended(),
            _ => match self.desk.command(question).await {
                Some(said) => said,
                None if lease::is_over() => suspended(),
                None => SILENT,
            },
        }
    }

    async fn list(&self, classes: String) -> Said {
        if self.losses.shown().is_some() && lease::is_over() {
            return Said::Answer(suspended());
        }
        self.desk.list(classes).await.map_or(Said::Answer(SILENT), Said::Keys)
    }
}

fn suspended() -> Bytes {
    server_error(format_args!("this proxy is suspended: {}; stats proxy says why", lease::OVER))
}

/// Whether the command changes nothing, and need not be logged.
fn only_looks(question: &Question) -> bool {
    match question {
        Question::Resync(rest) => rest == "status" || rest == "status all",
        Question::Stats(rest) => {
            !["reset", "sizes_enable", "sizes_disable", "detail on", "detail off"].contains(&rest.as_str())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::closings::count_of;
    use crate::testing::log::Log;

    /// An operator's connection, whose proxy has no pool.
    fn connected() -> UnixStream {
        let (here, there) = UnixStream::pair().unwrap();
        let operators = Operators { pools: Arc::new([]), reload: None, chosen: None };
        tokio::spawn(async { serve(here, operators).await.count() });
        there
    }

    async fn all(operator: &mut UnixStream) -> String {
        let mut said = String::new();
        operator.read_to_string(&mut said).await.unwrap();
        said
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_too_much_or_reads_nothing_is_closed_and_told_of() {
        let log = Log::listen();
        let counts =
            || [Closing::SocketIdle, Closing::SocketLongLine, Closing::SocketLate, Closing::SocketQuit].map(count_of);
        let before = counts();
        let mut silent = connected();
        assert_eq!(all(&mut silent).await.as_bytes(), NOTHING_SAID);
        assert_eq!(log.count(&["admin socket is closed", "nothing was said"]), 1);

        let mut long = connected();
        long.write_all(&[b'x'; LINE_MAX as usize]).await.unwrap();
        assert_eq!(all(&mut long).await, format!("CLIENT_ERROR {TOO_LONG}\r\n"));
        assert_eq!(log.count(&["admin socket is closed", TOO_LONG]), 1);

        // More than all sockets hold.
        let mut reads_nothing = connected();
        let ask = async { while reads_nothing.write_all(&b"version\r\n".repeat(1000)).await.is_ok() {} };
        ask.await;
        assert_eq!(log.count(&["admin socket is closed", "takes no answer"]), 1);

        let mut quits = connected();
        quits.write_all(b"version\r\nquit\r\nversion\r\n").await.unwrap();
        let mut said = Vec::new();
        // The last line is not read: the end may be a reset.
        let _ = quits.read_to_end(&mut said).await;
        assert!(said.starts_with(b"VERSION ") && said.iter().filter(|&&byte| byte == b'\n').count() == 1);
        assert!(counts().iter().zip(before).all(|(count, before)| *count > before));
    }

    #[tokio::test]
    async fn one_operator_too_many_is_told_so() {
        let log = Log::listen();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let operators = Operators { pools: Arc::new([]), reload: None, chosen: None };
        tokio::spawn(accept_forever(UnixListener::bind(&path).unwrap(), operators));
        let (mut all_places, before) = (Vec::new(), count_of(Closing::SocketTooMany));
        for _ in 0..CONNECTIONS_MAX {
            let mut one = UnixStream::connect(&path).await.unwrap();
            one.write_all(b"version\r\n").await.unwrap();
            one.read_u8().await.unwrap();
            all_places.push(one);
        }
        for _ in 0..2 {
            let mut one_more = UnixStream::connect(&path).await.unwrap();
            assert_eq!(all(&mut one_more).await.as_bytes(), BUSY);
        }
        assert_eq!(log.count(&["the admin socket refuses connections", "open=16"]), 1, "once in a while");
        assert!(count_of(Closing::SocketTooMany) >= before + 2);
        let left = count_of(Closing::SocketLeft);
        drop(all_places);
        while count_of(Closing::SocketLeft) < left + CONNECTIONS_MAX as u64 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn what_changes_nothing_is_not_logged() {
        let resync = |rest: &str| only_looks(&Question::Resync(rest.to_owned()));
        let stats = |rest: &str| only_looks(&Question::Stats(rest.to_owned()));
        assert!(["status", "status all"].into_iter().all(resync));
        assert!(["", "servers", "conns", "detail dump"].into_iter().all(stats));
        assert!(!["", "status1:11211", "lead status"].into_iter().any(resync));
        assert!(!["reset", "sizes_enable", "detail on"].into_iter().any(stats));
        assert!(!only_looks(&Question::Node("status1:11211 shutdown".to_owned())));
    }
}
