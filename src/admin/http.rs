//! The HTTP server, of a proxy that acts and of a standby: `GET` and `HEAD`, one request a
//! connection, and nothing that changes anything. What a path is answered with says a [`Site`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::daemon::cannot_accept;
use crate::stats::closings::Closing;

use super::busy::{BUSY, Closings, Refusals, refuse};

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

pub(crate) const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";

/// What is shown.
pub(crate) trait Site: Send + Sync + 'static {
    /// The answer to a `GET` of this path, with its query.
    fn answer(self: &Arc<Self>, uri: &Uri) -> impl Future<Output = Response<Whole>> + Send;
}

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

/// Serves visitors until `over`; those who have come by then are served to the end.
pub(crate) async fn serve(listener: TcpListener, site: Arc<impl Site>, over: CancellationToken) {
    let mut visitors = Visitors::default();
    let mut refusals = Refusals::of("the admin listener");
    let closings = Arc::new(Closings::default());
    loop {
        let accepted = tokio::select! {
            biased;
            () = over.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
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
        let (site, closings, ending) = (site.clone(), closings.clone(), ended.drop_guard());
        tokio::spawn(async move {
            visit(stream, (site, closings), asked, leave).await;
            drop(ending);
        });
        // What it has sent already is read before the next one comes, for which it might have to
        // make room; and who had to leaves.
        tokio::task::yield_now().await;
    }
}

async fn visit(
    stream: TcpStream,
    (site, closings): (Arc<impl Site>, Arc<Closings>),
    asked: Arc<AtomicBool>,
    leave: CancellationToken,
) {
    let peer = stream.peer_addr().ok();
    let asks = asked.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        asks.store(true, Relaxed);
        let (site, (asked, _)) = (site.clone(), request.into_parts());
        async move { Ok::<_, Infallible>(answer(&site, &asked.method, &asked.uri).await) }
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
    closings.tell(peer, why);
}

async fn answer(site: &Arc<impl Site>, method: &Method, uri: &Uri) -> Response<Whole> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return site.answer(uri).await;
    }
    let said = "nothing can be changed here: GET and HEAD alone; operator commands go to --admin-socket\n";
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, said);
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    answer
}

pub(crate) fn plain(status: StatusCode, text: &'static str) -> Response<Whole> {
    whole(status, TEXT, Bytes::from_static(text.as_bytes()))
}

pub(crate) fn whole(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Whole> {
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
pub(crate) struct Whole(Option<Bytes>);

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
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1024).unwrap();
        let visitor = socket.connect(door.local_addr().unwrap()).await.unwrap();
        let (stream, _) = door.accept().await.unwrap();
        SockRef::from(&stream).set_send_buffer_size(1024).unwrap();
        let site = (Arc::new(Long), Arc::default());
        tokio::spawn(visit(stream, site, Arc::default(), CancellationToken::new()));
        visitor
    }

    /// Its page does not fit into what sockets hold.
    struct Long;

    impl Site for Long {
        async fn answer(self: &Arc<Self>, _: &Uri) -> Response<Whole> {
            whole(StatusCode::OK, TEXT, Bytes::from(vec![b'.'; 1 << 16]))
        }
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
