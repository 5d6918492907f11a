//! The operators' unix socket: lines of the text protocol, `stats`, `resync` and `node`. Who may
//! connect is a matter of its mode and folder.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::cluster::Desk;
use crate::protocol::answer::client_error;
use crate::proxy::Question;

/// Operators at a time.
const CONNECTIONS_MAX: usize = 16;
/// The longest command.
const LINE_MAX: u64 = 2048;
/// Somebody types, and thinks in between.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// An answer is taken within this time.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

const BUSY: &[u8] = b"SERVER_ERROR too many connections to the admin socket\r\n";
const SILENT: Bytes =
    Bytes::from_static(b"SERVER_ERROR the control plane does not answer: it is starting, or ending\r\n");

pub(super) async fn accept_forever(listener: UnixListener, desk: Desk) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of files, most likely: without a pause this would spin until one is closed.
                tracing::warn!(%error, "the admin socket cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let place = places.clone().try_acquire_owned();
        let desk = desk.clone();
        tokio::spawn(async move {
            match place {
                Ok(_place) => serve(stream, &desk).await,
                Err(_) => drop(timeout(WRITE_TIMEOUT, write(stream, BUSY)).await),
            }
        });
    }
}

async fn write(mut stream: UnixStream, said: &[u8]) -> std::io::Result<()> {
    stream.write_all(said).await
}

async fn serve(stream: UnixStream, desk: &Desk) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut stream).take(LINE_MAX);
        if !matches!(timeout(SILENCE_MAX, bounded.read_until(b'\n', &mut line)).await, Ok(Ok(1..))) {
            return;
        }
        let whole = line.ends_with(b"\n");
        let said = if whole { obey(&line, desk).await } else { Some(client_error("a command has at most 2048 bytes")) };
        let Some(said) = said else { return };
        let written = timeout(WRITE_TIMEOUT, stream.write_all(&said)).await;
        if !whole || !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

/// What is answered; `None` ends the connection.
async fn obey(line: &[u8], desk: &Desk) -> Option<Bytes> {
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_ascii_whitespace();
    let command = words.next().unwrap_or_default();
    let rest = words.collect::<Vec<_>>().join(" ");
    let question = match command {
        "stats" => Question::Stats(rest.clone()),
        "resync" => Question::Resync(rest.clone()),
        "node" => Question::Node(rest.clone()),
        "version" => return Some(Bytes::from(format!("VERSION {}\r\n", crate::proxy::VERSION))),
        "quit" => return None,
        other => {
            return Some(client_error(format_args!(
                "{other}: the admin socket takes stats, resync, node, version and quit; other commands are for clients' listeners"
            )));
        }
    };
    if !matches!(question, Question::Stats(_)) && !rest.starts_with("status") {
        tracing::info!(command, words = ?rest, "an operator's command on the admin socket");
    }
    Some(desk.command(question).await.unwrap_or(SILENT))
}
