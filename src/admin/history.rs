//! The last minutes: what the workers have counted, looked at again and again.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::report::LatencyReport;
use crate::stats::requests::Family;
use crate::stats::{LATENCY_BUCKETS, Latencies, WorkerStats};

/// The time between two looks.
pub(super) const STEP: Duration = Duration::from_secs(2);
/// How many samples are kept: ten minutes of them.
const KEPT: usize = 300;
/// How many steps a server's figures are taken over: a single one may contain fewer than 100
/// answers, too few for a 99th percentile.
const SERVER_STEPS: usize = 5;

/// What was counted since the start.
#[derive(Clone, Debug)]
struct Counted {
    at: Instant,
    requests: u64,
    hits: u64,
    misses: u64,
    errors: u64,
    latencies: [u64; LATENCY_BUCKETS],
    /// For each node the commands sent to it, and how long it took.
    nodes: Vec<(u64, [u64; LATENCY_BUCKETS])>,
}

/// What was counted between two looks, as rates for each second.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Sample {
    requests: f64,
    errors: f64,
    /// The part of the keys asked for that were found; `None` if none was asked for.
    hit_ratio: Option<f64>,
    p50_us: u64,
    p99_us: u64,
}

/// What a server does.
#[derive(Clone, Copy, PartialEq, Debug)]
struct ServerSample {
    commands: f64,
    p50_us: u64,
    p99_us: u64,
}

#[derive(Default, Debug)]
struct Samples {
    /// The newest last.
    all: VecDeque<Sample>,
    /// What each node has done in the last few steps.
    servers: Vec<ServerSample>,
}

/// The last minutes.
#[derive(Clone, Default, Debug)]
pub(super) struct History(Arc<Mutex<Samples>>);

/// Looks at the counters, again and again.
pub(super) struct Recorder {
    stats: Vec<Arc<WorkerStats>>,
    history: History,
}

impl Recorder {
    pub(super) fn new(stats: Vec<Arc<WorkerStats>>) -> Recorder {
        Recorder { stats, history: History::default() }
    }

    pub(super) fn history(&self) -> History {
        self.history.clone()
    }

    pub(super) async fn record_forever(self) {
        let mut looks = VecDeque::from([self.look()]);
        loop {
            tokio::time::sleep(STEP).await;
            let now = self.look();
            if let (Some(first), Some(last)) = (looks.front(), looks.back()) {
                self.history.push(now.since(last), now.servers_since(first));
            }
            looks.push_back(now);
            if looks.len() > SERVER_STEPS {
                looks.pop_front();
            }
        }
    }

    fn look(&self) -> Counted {
        let sum = |counter: fn(&WorkerStats) -> u64| self.stats.iter().map(|stats| counter(stats)).sum();
        let mut latencies = [0; LATENCY_BUCKETS];
        let families = || Family::ALL.iter().copied();
        let waits = self.stats.iter().flat_map(|stats| families().flat_map(|family| stats.requests.waits(family)));
        waits.for_each(|latency| latency.add_to(&mut latencies));
        let node = |at: usize| {
            let mut latencies = [0; LATENCY_BUCKETS];
            self.stats.iter().for_each(|stats| stats.nodes[at].latencies.add_to(&mut latencies));
            (self.stats.iter().map(|stats| stats.nodes[at].sent.load(Relaxed)).sum(), latencies)
        };
        Counted {
            at: Instant::now(),
            requests: sum(|stats| stats.requests.total()),
            hits: sum(|stats| stats.hits_and_misses().0),
            misses: sum(|stats| stats.hits_and_misses().1),
            errors: sum(|stats| stats.server_errors.load(Relaxed)),
            latencies,
            nodes: (0..self.stats.first().map_or(0, |stats| stats.nodes.len())).map(node).collect(),
        }
    }
}

fn latency(now: &[u64; LATENCY_BUCKETS], before: &[u64; LATENCY_BUCKETS]) -> LatencyReport {
    let counts = now.iter().zip(before).map(|(now, before)| now - before);
    LatencyReport { buckets: counts.enumerate().map(|(at, count)| (Latencies::least(at), count)).collect(), sum_us: 0 }
}

impl Counted {
    fn servers_since(&self, before: &Counted) -> Vec<ServerSample> {
        let seconds = (self.at - before.at).as_secs_f64().max(0.001);
        let since = |((sent, waits), (sent_before, waits_before)): (&(u64, _), &(u64, _))| {
            let latency = latency(waits, waits_before);
            let commands = (sent - sent_before) as f64 / seconds;
            ServerSample { commands, p50_us: latency.percentile_us(50), p99_us: latency.percentile_us(99) }
        };
        self.nodes.iter().zip(&before.nodes).map(since).collect()
    }

    fn since(&self, before: &Counted) -> Sample {
        let seconds = (self.at - before.at).as_secs_f64().max(0.001);
        let (hits, misses) = (self.hits - before.hits, self.misses - before.misses);
        let latency = latency(&self.latencies, &before.latencies);
        Sample {
            requests: (self.requests - before.requests) as f64 / seconds,
            errors: (self.errors - before.errors) as f64 / seconds,
            hit_ratio: (hits + misses > 0).then(|| hits as f64 / (hits + misses) as f64),
            p50_us: latency.percentile_us(50),
            p99_us: latency.percentile_us(99),
        }
    }
}

impl History {
    fn push(&self, sample: Sample, servers: Vec<ServerSample>) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.all.len() == KEPT {
            samples.all.pop_front();
        }
        samples.all.push_back(sample);
        samples.servers = servers;
    }

    /// Adds to servers, in the order of their nodes, what they do.
    pub(super) fn put_servers(&self, servers: &mut [Value]) {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (server, sample) in servers.iter_mut().zip(&samples.servers) {
            server["commands_per_second"] = json!(rounded(sample.commands, 10.0));
            server["latency_p50_us"] = json!(sample.p50_us);
            server["latency_p99_us"] = json!(sample.p99_us);
        }
    }

    /// A list for each figure, the newest last.
    pub(super) fn json(&self) -> Value {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let list = |figure: &dyn Fn(&Sample) -> Value| samples.all.iter().map(figure).collect::<Vec<_>>();
        json!({
            "step_seconds": STEP.as_secs(),
            "requests_per_second": list(&|sample| json!(rounded(sample.requests, 10.0))),
            "errors_per_second": list(&|sample| json!(rounded(sample.errors, 10.0))),
            "hit_ratio": list(&|sample| json!(sample.hit_ratio.map(|ratio| rounded(ratio, 10_000.0)))),
            "latency_p50_us": list(&|sample| json!(sample.p50_us)),
            "latency_p99_us": list(&|sample| json!(sample.p99_us)),
        })
    }
}

fn rounded(number: f64, to: f64) -> f64 {
    (number * to).round() / to
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(at: Instant, requests: u64, hits: u64, misses: u64) -> Counted {
        let mut latencies = [0; LATENCY_BUCKETS];
        latencies[Latencies::bucket(100)] = requests;
        Counted { at, requests, hits, misses, errors: requests / 100, latencies, nodes: vec![(requests, latencies)] }
    }

    #[tokio::test]
    async fn a_sample_is_what_was_counted_between_two_looks_a_second() {
        let begun = Instant::now();
        let (before, now) = (counted(begun, 1000, 90, 10), counted(begun + 4 * STEP, 9000, 690, 210));
        let sample = now.since(&before);
        assert_eq!((sample.requests, sample.errors, sample.hit_ratio), (1000.0, 10.0, Some(0.75)));
        assert_eq!((sample.p50_us, sample.p99_us), (112, 112), "the bucket's upper end");
        let servers = now.servers_since(&before);
        assert_eq!(servers, [ServerSample { commands: 1000.0, p50_us: 112, p99_us: 112 }]);
        let rest = before.since(&counted(begun - STEP, 1000, 90, 10));
        assert_eq!((rest.requests, rest.hit_ratio, rest.p99_us), (0.0, None, 0), "nobody asked for anything");
    }

    #[test]
    fn ten_minutes_are_kept() {
        let history = History::default();
        for number in 0..KEPT + 5 {
            let requests = number as f64;
            history.push(Sample { requests, errors: 0.0, hit_ratio: None, p50_us: 0, p99_us: 0 }, Vec::new());
        }
        let told = history.json();
        let requests = told["requests_per_second"].as_array().unwrap();
        assert_eq!((requests.len(), &requests[0], &requests[KEPT - 1]), (KEPT, &json!(5.0), &json!(304.0)));
        assert!(told["hit_ratio"][0].is_null());
    }
}
