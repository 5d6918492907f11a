//! The HTTP listener: `GET` and `HEAD`, one request a connection, and nothing that changes
//! anything.

use std::convert::Infallible;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use crate::ambient;

use super::Admin;

/// Connections at a time. A browser and a few monitors take one each, for milliseconds.
const CONNECTIONS_MAX: usize = 32;
/// A request's head has to be there within this time, and within these bytes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const HEAD_MAX: usize = 16 << 10;
/// A connection takes no longer in all, whoever reads its answer how slowly.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is logged that connections are refused.
const TOLD_EVERY: Duration = Duration::from_secs(10);

const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 52\r\n\
    Connection: close\r\n\r\ntoo many connections to the admin listener; try anew";

const PAGE: &str = include_str!("page.html");
/// Stands in the page where the nonce of an answer belongs.
const NONCE: &str = "NONCE-OF-THIS-ANSWER";

const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

pub(super) async fn accept_forever(listener: TcpListener, admin: Arc<Admin>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut told: Option<Instant> = None;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of files, most likely: without a pause this would spin until one is closed.
                tracing::warn!(%error, "the admin listener cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            admin.visits.refused.fetch_add(1, Relaxed);
            if told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) {
                tracing::warn!(open = CONNECTIONS_MAX, "the admin listener refuses connections: too many are open");
                told = Some(Instant::now());
            }
            refuse(stream);
            continue;
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            serve(stream, admin).await;
            drop(place);
        });
    }
}

/// Says so once, without waiting.
fn refuse(stream: TcpStream) {
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(BUSY);
    }
}

async fn serve(stream: TcpStream, admin: Arc<Admin>) {
    let visits = admin.clone();
    let service = service_fn(move |request| {
        let admin = admin.clone();
        async move { Ok::<_, Infallible>(admin.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let ended = match timeout(WHOLE_TIMEOUT, connection).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) if error.is_timeout() => &visits.visits.late,
        Ok(Err(_)) => &visits.visits.broken,
        Err(_) => &visits.visits.late,
    };
    ended.fetch_add(1, Relaxed);
}

impl Admin {
    async fn answer(&self, request: Request<Incoming>) -> Response<Whole> {
        self.visits.served.fetch_add(1, Relaxed);
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let said = "nothing can be changed here: GET and HEAD alone; operator commands go to --admin-socket\n";
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, said);
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/" => page(),
            "/livez" => plain(StatusCode::OK, "alive\n"),
            "/readyz" => self.ready().await,
            "/metrics" => match self.shown.view(&self.desk).await {
                Some(view) => whole(StatusCode::OK, METRICS, view.metrics(|| self.around())),
                None => silent(),
            },
            "/status.json" => match self.shown.view(&self.desk).await {
                Some(view) => whole(StatusCode::OK, "application/json", self.shown.status(&view)),
                None => silent(),
            },
            _ => plain(StatusCode::NOT_FOUND, "there are /, /metrics, /status.json, /livez and /readyz\n"),
        }
    }

    /// It can serve: some pair has somebody who leads. One dead server changes nothing about that.
    async fn ready(&self) -> Response<Whole> {
        if self.shutdown.is_cancelled() {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
        }
        match self.shown.view(&self.desk).await {
            None => silent(),
            Some(view) if view.report.serves() => plain(StatusCode::OK, "ready\n"),
            Some(_) => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "every key is refused: no pair has a server that leads\n")
            }
        }
    }
}

fn silent() -> Response<Whole> {
    plain(StatusCode::SERVICE_UNAVAILABLE, "the control plane does not answer: it is starting, or ending\n")
}

fn page() -> Response<Whole> {
    let nonce = format!("{:016x}{:016x}", ambient::random_u64(), ambient::random_u64());
    let mut answer = whole(StatusCode::OK, "text/html; charset=utf-8", Bytes::from(PAGE.replace(NONCE, &nonce)));
    // Nothing from elsewhere, and no script or style but those of the page itself: what a server is
    // called is text, whatever it is called.
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    answer
}

fn plain(status: StatusCode, text: &'static str) -> Response<Whole> {
    whole(status, TEXT, Bytes::from_static(text.as_bytes()))
}

fn whole(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Whole> {
    let mut answer = Response::new(Whole(Some(body)));
    *answer.status_mut() = status;
    let fixed: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    for (name, value) in fixed {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// A body that is there.
struct Whole(Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
