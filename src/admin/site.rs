//! What a proxy that acts shows: the page, metrics, the state, whether it lives and is ready.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode, Uri};

use crate::ambient;
use crate::cluster::SILENT;
use crate::lease;
use crate::report::metrics::of_one_that_waits;
use crate::stats::closings::closed;

use super::Admin;
use super::http::{METRICS, Site, TEXT, Whole, plain, whole};
use super::shown::{Shown, View, status_of_all};

const PAGE: &str = include_str!("page.html");
/// Stands in the page where the nonce of an answer belongs.
const NONCE: &str = "NONCE-OF-THIS-ANSWER";

impl Site for Admin {
    async fn answer(self: &Arc<Self>, uri: &Uri) -> Response<Whole> {
        let (pools, by_name) = match self.asked(uri.query()) {
            Ok(asked) => asked,
            Err(said) => return whole(StatusCode::NOT_FOUND, TEXT, Bytes::from(said)),
        };
        match uri.path() {
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
                let whole = self.whole(uri.query());
                let make = move |_: &Admin, pools: &[Shown], views: &[Option<Arc<View>>]| {
                    status(by_itself, pools, views, whole)
                };
                self.render("application/json", pools, make).await
            }
            _ => plain(StatusCode::NOT_FOUND, "there are /, /metrics, /status.json, /livez and /readyz\n"),
        }
    }
}

impl Admin {
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
