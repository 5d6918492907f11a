//! What a standby shows over HTTP: whether it lives, whether it is ready, and where the active
//! proxy is, which has all the rest.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{Response, StatusCode, Uri};

use crate::admin::http::{METRICS, Site, TEXT, Whole, plain, whole};
use crate::report::metrics::of_one_that_waits;
use crate::stats::closings::closed;

/// What it knows of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Standby {
    pub(super) ready: bool,
    pub(super) active: Option<String>,
}

/// Looks at it.
pub(super) struct Seen<F>(pub(super) F);

impl<F: Fn() -> Standby + Send + Sync + 'static> Site for Seen<F> {
    async fn answer(self: &Arc<Self>, uri: &Uri) -> Response<Whole> {
        let Standby { ready, active } = (self.0)();
        match uri.path() {
            "/livez" => plain(StatusCode::OK, "alive\n"),
            "/metrics" => {
                let metrics = of_one_that_waits("standby", ready, &closed());
                whole(StatusCode::OK, METRICS, Bytes::from(metrics))
            }
            "/readyz" if ready => plain(StatusCode::OK, "ready\n"),
            "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, "this proxy is a standby, and reaches no active one\n"),
            _ => {
                let active = active.as_deref().unwrap_or("not known");
                let said = format!(
                    "this proxy is a standby: the active one, which other proxies reach on {active}, has this\n"
                );
                whole(StatusCode::SERVICE_UNAVAILABLE, TEXT, Bytes::from(said))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::admin::http::serve;

    /// What it answers to this.
    async fn told(standby: &Standby, request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (standby, over) = (standby.clone(), CancellationToken::new());
        tokio::spawn(serve(listener, Arc::new(Seen(move || standby.clone())), over.clone()));
        let mut visitor = TcpStream::connect(address).await.unwrap();
        visitor.write_all(format!("{request} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let mut said = String::new();
        visitor.read_to_string(&mut said).await.unwrap();
        over.cancel();
        said
    }

    #[tokio::test]
    async fn a_standby_lives_is_ready_or_not_and_says_who_has_the_rest() {
        let ready = Standby { ready: true, active: Some("10.0.0.5:7".to_owned()) };
        let lost = Standby { ready: false, active: None };
        assert!(told(&lost, "GET /livez").await.starts_with("HTTP/1.1 200"));
        assert!(told(&ready, "GET /readyz").await.starts_with("HTTP/1.1 200"));
        assert!(told(&lost, "GET /readyz").await.starts_with("HTTP/1.1 503"));
        let status = told(&ready, "GET /status.json").await;
        assert!(status.starts_with("HTTP/1.1 503") && status.contains("10.0.0.5:7"), "{status}");
        for (standby, says) in [(&ready, "\nresilver_ready 1\n"), (&lost, "\nresilver_ready 0\n")] {
            let metrics = told(standby, "GET /metrics").await;
            assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains(says), "{metrics}");
            assert!(metrics.contains("\nresilver_role{role=\"standby\"} 1\n"), "{metrics}");
        }
    }

    /// It had a server of its own, which did none of this.
    #[tokio::test]
    async fn a_standby_speaks_http_as_an_active_proxy_does() {
        let ready = Standby { ready: true, active: None };
        let head = told(&ready, "HEAD /livez").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "no body: {head}");
        assert!(told(&ready, "GET /livez?x=1").await.ends_with("\r\n\r\nalive\n"));
        let posted = told(&ready, "POST /livez").await;
        assert!(posted.starts_with("HTTP/1.1 405") && posted.contains("allow: GET, HEAD\r\n"), "{posted}");
        for header in ["cache-control: no-store\r\n", "x-content-type-options: nosniff\r\n"] {
            assert!(head.contains(header), "{head}");
        }
    }
}
