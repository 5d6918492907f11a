//! The HTTP listener: `GET` and `HEAD`, one request a connection, and nothing that changes
//! anything.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::ambient;
use crate::cluster::SILENT;
use crate::daemon::cannot_accept;
use crate::lease;
use crate::report::metrics::of_one_that_waits;
use crate::stats::closings::{Closing, closed};

use super::Admin;
use super::busy::{BUSY, Refusals, refuse};
use super::shown::{Shown, View, status_of_all};

/// Connections at a time. A browser and a few monitors take one each, for milliseconds.
const CONNECTIONS_MAX: usize = 32;
/// A request's head has to be there within this time, and within these bytes.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const HEAD_MAX: usize = 16 << 10;
/// A connection lasts no longer than this in all, however slowly its answer is read.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(10);
/// By then an answer is usually made and read: where there are too many connections, an older one
/// than this gives way to a new one.
const ANSWER_TIME: Duration = Duration::from_secs(1);
const LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nContent-Length: 41\r\n\
    Connection: close\r\n\r\na request has to come within five seconds";
const PAGE: &str = include_str!("page.html");
/// Stands in the page where the nonce of an answer belongs.
const NONCE: &str = "NONCE-OF-THIS-ANSWER";

const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// A connection that is open.
struct Visitor {
    since: Instant,
    /// Its request has come.
    asked: Arc<AtomicBool>,
    /// Cancelled to make room for another one.
    leave: CancellationToken,
    /// Cancelled, by being dropped, when the connection has ended.
    ended: CancellationToken,
}

/// All of them, the oldest first.
#[derive(Default)]
struct Visitors(VecDeque<Visitor>);

impl Visitors {
    /// Whether there is room for one more, maybe because another one is closed: the oldest that
    /// says nothing, or else the oldest that has taken too long over its answer. So visitors that
    /// come in lots do not keep monitors from asking whether the process lives.
    fn make_room(&mut self, now: Instant) -> Room {
        self.0.retain(|visitor| !visitor.ended.is_cancelled());
        if self.0.len() < CONNECTIONS_MAX {
            return Room::Free;
        }
        let silent = self.0.iter().position(|visitor| !visitor.asked.load(Relaxed));
        let slow = || self.0.iter().position(|visitor| now - visitor.since >= ANSWER_TIME);
        match silent.or_else(slow).and_then(|at| self.0.remove(at)) {
            Some(visitor) => {
                visitor.leave.cancel();
                Room::Made
            }
            None => Room::None,
        }
    }
}

#[derive(PartialEq, Eq, Debug)]
enum Room {
    Free,
    Made,
    None,
}

pub(super) async fn accept_forever(listener: TcpListener, admin: Arc<Admin>) {
    let mut visitors = Visitors::default();
    let mut refusals = Refusals::of("the admin listener");
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                cannot_accept("a connection to the admin listener", &error).await;
                continue;
            }
        };
        let now = Instant::now();
        let room = visitors.make_room(now);
        if room != Room::Free {
            refusals.tell(CONNECTIONS_MAX);
        }
        if room == Room::None {
            Closing::AdminTooMany.count();
            refuse(stream, BUSY);
            continue;
        }
        let (asked, leave, ended) = (Arc::default(), CancellationToken::new(), CancellationToken::new());
        visitors.0.push_back(Visitor {
            since: now,
            asked: Arc::clone(&asked),
            leave: leave.clone(),
            ended: ended.clone(),
        });
        let (admin, ending) = (admin.clone(), ended.drop_guard());
        tokio::spawn(async move {
            serve(stream, admin, asked, leave).await;
            drop(ending);
        });
        // What it has sent already is read before the next one comes, for which it might have to
        // make room; and who had to leaves.
        tokio::task::yield_now().await;
    }
}

async fn serve(stream: TcpStream, admin: Arc<Admin>, asked: Arc<AtomicBool>, leave: CancellationToken) {
    let (visited, peer) = (admin.clone(), stream.peer_addr().ok());
    let asks = asked.clone();
    let service = service_fn(move |request| {
        asks.store(true, Relaxed);
        let admin = admin.clone();
        async move { Ok::<_, Infallible>(admin.answer(request).await) }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        ended = timeout(WHOLE_TIMEOUT, &mut connection) => ended,
        () = leave.cancelled() => {
            if !asked.load(Relaxed) {
                refuse(connection.into_parts().io.into_inner(), BUSY);
            }
            Closing::AdminTooMany.count();
            return;
        }
    };
    let (closing, why) = match ended {
        Ok(Ok(())) if asked.load(Relaxed) => return Closing::AdminAnswered.count(),
        Ok(Ok(())) => return Closing::AdminLeft.count(),
        Ok(Err(error)) if !error.is_timeout() => (Closing::AdminBroken, "it broke, or spoke no HTTP"),
        _ if asked.load(Relaxed) => (Closing::AdminLate, "its answer was not taken in time"),
        _ => {
            refuse(connection.into_parts().io.into_inner(), LATE);
            (Closing::AdminLate, "no request came in time")
        }
    };
    closing.count();
    visited.closings.tell(peer, why);
}

impl Admin {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response<Whole> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let said = "nothing can be changed here: GET and HEAD alone; operator commands go to --admin-socket\n";
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, said);
            answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        let path = request.uri().path();
        let (pools, by_name) = match self.asked(request.uri().query()) {
            Ok(asked) => asked,
            Err(said) => return whole(StatusCode::NOT_FOUND, TEXT, Bytes::from(said)),
        };
        match path {
            "/" => page(),
            "/livez" => plain(StatusCode::OK, "alive\n"),
            "/readyz" => self.ready(pools).await,
            "/metrics" => {
                let make = |admin: &Admin, pools: &[Shown], views: &[Option<Arc<View>>]| {
                    admin.metrics.of(pools, views, || admin.around())
                };
                let answer = self.render(METRICS, pools, make).await;
                match answer.status().is_success() || !lease::is_over() {
                    true => answer,
                    false => {
                        whole(StatusCode::OK, METRICS, Bytes::from(of_one_that_waits("suspended", false, &closed())))
                    }
                }
            }
            "/status.json" => {
                let by_itself = by_name || self.pools.iter().all(|shown| shown.pool.is_none());
                let whole = self.whole(request.uri().query());
                let make = move |_: &Admin, pools: &[Shown], views: &[Option<Arc<View>>]| {
                    status(by_itself, pools, views, whole)
                };
                self.render("application/json", pools, make).await
            }
            _ => plain(StatusCode::NOT_FOUND, "there are /, /metrics, /status.json, /livez and /readyz\n"),
        }
    }

    /// Which pools are asked for: one by its name (`?pool=NAME`, then true), or all.
    fn asked(&self, query: Option<&str>) -> Result<(Range<usize>, bool), String> {
        let Some(name) = value(query, "pool=") else {
            return Ok((0..self.pools.len(), false));
        };
        let names: Vec<&str> = self.pools.iter().filter_map(|shown| shown.pool.as_deref()).collect();
        match names.iter().position(|known| *known == name) {
            Some(at) => Ok((at..at + 1, true)),
            None if names.is_empty() => Err("there are no pools by name here\n".to_owned()),
            None => Err(format!("there is no such pool; there are {}\n", names.join(", "))),
        }
    }

    /// Which of several pools is to be told of in full (`?whole=NAME`), by its index: the page
    /// shows one, and knows no names before the first answer.
    fn whole(&self, query: Option<&str>) -> Option<usize> {
        let name = value(query, "whole=")?;
        Some(self.pools.iter().position(|shown| shown.pool.as_deref() == Some(name)).unwrap_or(0))
    }

    async fn views(&self, pools: &Range<usize>) -> Vec<Option<Arc<View>>> {
        join_all(self.pools[pools.clone()].iter().map(Shown::view)).await
    }

    /// Makes the answer on a thread of its own: for 16,384 pairs that takes a good part of a
    /// second, in which the control plane has other things to do.
    async fn render(
        self: &Arc<Self>,
        kind: &'static str,
        pools: Range<usize>,
        make: impl FnOnce(&Admin, &[Shown], &[Option<Arc<View>>]) -> Bytes + Send + 'static,
    ) -> Response<Whole> {
        if lease::is_over() {
            return suspended();
        }
        let views = self.views(&pools).await;
        if views.iter().all(Option::is_none) {
            return silent();
        }
        let admin = self.clone();
        match tokio::task::spawn_blocking(move || make(&admin, &admin.pools[pools], &views)).await {
            Ok(body) => whole(StatusCode::OK, kind, body),
            Err(_) => silent(),
        }
    }

    /// Whether it can serve: some pair of each pool has a server that leads. One dead server
    /// changes nothing about that.
    async fn ready(&self, pools: Range<usize>) -> Response<Whole> {
        if self.shutdown.is_cancelled() {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
        }
        if lease::is_over() {
            return suspended();
        }
        let views = self.views(&pools).await;
        for (shown, view) in self.pools[pools].iter().zip(views) {
            let why = match view {
                Some(view) if view.report.serves() => continue,
                Some(_) => "every key is refused: no pair has a server that leads",
                None => SILENT,
            };
            let pool = shown.pool.as_ref().map_or(String::new(), |pool| format!("pool {pool}: "));
            return whole(StatusCode::SERVICE_UNAVAILABLE, TEXT, Bytes::from(format!("{pool}{why}\n")));
        }
        plain(StatusCode::OK, "ready\n")
    }
}

/// One pool by itself, or a list of all.
fn status(by_itself: bool, pools: &[Shown], views: &[Option<Arc<View>>], whole: Option<usize>) -> Bytes {
    match (pools, views) {
        ([one], [Some(view)]) if by_itself => one.status(view),
        _ => status_of_all(pools, views, whole),
    }
}

/// What a query says behind `name`, which ends with `=`.
fn value<'q>(query: Option<&'q str>, name: &str) -> Option<&'q str> {
    query?.split('&').find_map(|part| part.strip_prefix(name))
}

fn suspended() -> Response<Whole> {
    whole(StatusCode::SERVICE_UNAVAILABLE, TEXT, Bytes::from(format!("suspended: {}\n", lease::OVER)))
}

fn silent() -> Response<Whole> {
    if lease::is_over() {
        return suspended();
    }
    whole(StatusCode::SERVICE_UNAVAILABLE, TEXT, Bytes::from(format!("{SILENT}\n")))
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

/// A body that is known as a whole.
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

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpSocket;

    use super::*;
    use crate::stats::closings::count_of;
    use crate::testing::log::Log;

    /// A visitor that is served.
    async fn visiting() -> TcpStream {
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        // So that the page does not fit.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1024).unwrap();
        let visitor = socket.connect(door.local_addr().unwrap()).await.unwrap();
        let (stream, _) = door.accept().await.unwrap();
        SockRef::from(&stream).set_send_buffer_size(1024).unwrap();
        let (closings, shutdown) = (Default::default(), CancellationToken::new());
        let admin = Arc::new(Admin { pools: Vec::new(), metrics: Default::default(), closings, shutdown });
        tokio::spawn(async move { serve(stream, admin, Arc::default(), CancellationToken::new()).await });
        visitor
    }

    async fn all(visitor: &mut TcpStream) -> String {
        let mut said = Vec::new();
        // A reset is an end too.
        let _ = visitor.read_to_end(&mut said).await;
        String::from_utf8_lossy(&said).into_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn a_visitor_that_is_closed_is_told_why_or_told_of() {
        let log = Log::listen();
        // Other tests of the process count as well.
        let before = [Closing::AdminLate, Closing::AdminBroken].map(count_of);
        let counted = |late, broken| {
            let now = [Closing::AdminLate, Closing::AdminBroken].map(count_of);
            now[0] >= before[0] + late && now[1] >= before[1] + broken
        };
        let mut silent = visiting().await;
        assert_eq!(all(&mut silent).await.as_bytes(), LATE);
        assert!(counted(1, 0));
        assert_eq!(log.count(&["admin listener is closed", "peer=\"127.0.0.1:", "no request came in time"]), 1);

        let mut slow = visiting().await;
        slow.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        tokio::time::sleep(WHOLE_TIMEOUT + Duration::from_secs(1)).await;
        assert!(counted(2, 0));
        assert!(!all(&mut slow).await.contains("408"), "its answer has begun");
        assert_eq!(log.count(&["its answer was not taken in time"]), 1);

        let mut wrong = visiting().await;
        wrong.write_all(b"get k\r\n\r\n").await.unwrap();
        assert!(all(&mut wrong).await.starts_with("HTTP/1.1 400 "));
        assert_eq!((counted(2, 1), log.count(&["spoke no HTTP"])), (true, 1));
    }
}
