//! The HTTP listener of a standby: whether it lives, whether it is ready, and where the active
//! proxy is, which has all the rest.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::admin::{BUSY, Closings, Refusals, refuse};

use super::doors;
use crate::report::metrics::of_one_that_waits;
use crate::stats::closings::{Closing, closed};

/// How long a request may take, and how long it may be.
const PATIENCE: Duration = Duration::from_secs(2);
const REQUEST_MAX: usize = 8 << 10;

/// How many connections may be open at once.
const CONNECTIONS: usize = 64;

const LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nContent-Length: 40\r\n\
    Connection: close\r\n\r\na request has to come within two seconds";

/// What the pages of a standby show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Standby {
    pub(super) ready: bool,
    pub(super) active: Option<String>,
}

/// Answers until `over`.
pub(super) async fn serve(
    listener: TcpListener,
    standby: impl Fn() -> Standby + Clone + Send + 'static,
    over: CancellationToken,
) {
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    let what = "a connection to the admin listener";
    let mut refusals = Refusals::of("the admin listener");
    let closings = Arc::new(Closings::default());
    while let Some((stream, peer)) = doors::accept(what, &over, |cx| listener.poll_accept(cx)).await {
        let Ok(place) = places.clone().try_acquire_owned() else {
            refusals.tell(CONNECTIONS);
            refuse(stream, BUSY);
            Closing::AdminTooMany.count();
            continue;
        };
        let (standby, closings) = (standby.clone(), closings.clone());
        tokio::spawn(async move {
            let mut stream = stream;
            let closing = match tokio::time::timeout(PATIENCE, answer(&mut stream, standby)).await {
                Ok(Ok(true)) => Closing::AdminAnswered,
                Ok(Ok(false)) => Closing::AdminLeft,
                Ok(Err(_)) => Closing::AdminBroken,
                Err(_) => {
                    closings.tell(Some(peer), "no request came in time, or its answer was not taken");
                    refuse(stream, LATE);
                    Closing::AdminLate
                }
            };
            closing.count();
            drop(place);
        });
    }
}

/// Returns whether there was a request.
async fn answer(stream: &mut TcpStream, standby: impl Fn() -> Standby) -> std::io::Result<bool> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_MAX {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(false);
        }
    }
    let text = String::from_utf8_lossy(&request);
    let path = text.split(' ').nth(1).unwrap_or_default();
    stream.write_all(response(path, &standby()).as_bytes()).await?;
    stream.shutdown().await?;
    Ok(true)
}

fn response(path: &str, Standby { ready, active }: &Standby) -> String {
    let active = active.as_deref().unwrap_or("not known");
    let (status, body) = match path {
        "/livez" => ("200 OK", "ok\n".to_owned()),
        "/metrics" => ("200 OK", of_one_that_waits("standby", *ready, &closed())),
        "/readyz" if *ready => ("200 OK", "ok\n".to_owned()),
        "/readyz" => ("503 Service Unavailable", "this proxy is a standby, and reaches no active one\n".to_owned()),
        _ => (
            "503 Service Unavailable",
            format!("this proxy is a standby: the active one, which other proxies reach on {active}, has this\n"),
        ),
    };
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::closings::count_of;
    use crate::testing::log::Log;

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_nothing_in_time_is_told_so() {
        let (log, before) = (Log::listen(), count_of(Closing::AdminLate));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let standby = || Standby { ready: true, active: None };
        tokio::spawn(serve(listener, standby, CancellationToken::new()));
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut said = Vec::new();
        silent.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, LATE);
        assert_eq!(log.count(&["admin listener is closed", "peer=\"127.0.0.1:", "no request came"]), 1);
        tokio::task::yield_now().await;
        assert!(count_of(Closing::AdminLate) > before);
        let metrics = response("/metrics", &standby());
        assert!(
            metrics.contains(r#"resilver_listener_closed_total{listener="admin_http",reason="late"} "#),
            "{metrics}"
        );
    }

    #[test]
    fn a_standby_lives_is_ready_or_not_and_says_who_has_the_rest() {
        let ready = Standby { ready: true, active: Some("10.0.0.5:7".to_owned()) };
        let lost = Standby { ready: false, active: None };
        assert!(response("/livez", &lost).starts_with("HTTP/1.1 200"));
        assert!(response("/readyz", &ready).starts_with("HTTP/1.1 200"));
        assert!(response("/readyz", &lost).starts_with("HTTP/1.1 503"));
        let status = response("/status.json", &ready);
        assert!(status.starts_with("HTTP/1.1 503") && status.contains("10.0.0.5:7"), "{status}");
        for (standby, says) in [(&ready, "\nresilver_ready 1\n"), (&lost, "\nresilver_ready 0\n")] {
            let metrics = response("/metrics", standby);
            assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains(says), "{metrics}");
            assert!(metrics.contains("\nresilver_role{role=\"standby\"} 1\n"), "{metrics}");
        }
    }
}
