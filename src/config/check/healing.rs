//! The settings of fault detection and of resyncs.

use std::time::Duration;

use super::super::ResyncMode;
use super::super::args::Args;
use super::super::units::{show_size, show_time};
use super::Check;
use crate::ring::ServerSpec;

/// No time of the data path or of the probes is longer.
const MAX_TIME: Duration = Duration::from_secs(3_600);
/// The longest `--idle-timeout`.
const MAX_IDLE: Duration = Duration::from_secs(365 * 86_400);
/// Below this a probe is traffic.
const MIN_PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// Finer than what is measured.
const MIN_RESYNC_LATENCY: Duration = Duration::from_micros(100);
/// Below this the key list of a resync is all temporary file.
const MIN_RESYNC_MEMORY: u64 = 1 << 20;
/// The most memory a resync may be given.
const MAX_RESYNC_MEMORY: u64 = 1 << 40;

/// All the times, read and in order.
pub(super) struct Times {
    pub(super) timeout: Duration,
    pub(super) leader_timeout: Duration,
    pub(super) leader_grace: Duration,
    pub(super) probe_interval: Duration,
    pub(super) probe_timeout: Duration,
    pub(super) shutdown_grace: Duration,
    pub(super) idle_timeout: Duration,
}

impl Check<'_> {
    pub(super) fn times(&mut self, args: &Args) -> Times {
        let least = Duration::from_millis(1);
        let short = least..=MAX_TIME;
        let zero = Duration::ZERO;
        let fallback = Duration::from_secs(1);
        let timeout = self.time("timeout", &args.timeout, short.clone());
        let mut leader_timeout = self.time("leader_timeout", &args.leader_timeout, short.clone());
        let probe_interval = self.time("probe_interval", &args.probe_interval, MIN_PROBE_INTERVAL..=MAX_TIME);
        let probe_timeout = self.time("probe_timeout", &args.probe_timeout, short.clone());
        // A default gives way to a neighbour that was given; two that were given must agree.
        if let (Some(short), Some(long)) = (timeout, leader_timeout)
            && long < short
        {
            if self.given("leader_timeout") {
                let why =
                    format!("is shorter than --timeout {}; the last copy must be waited for longer", show_time(short));
                self.bad("leader_timeout", &show_time(long), why);
            }
            leader_timeout = Some(short);
        }
        Times {
            timeout: timeout.unwrap_or(fallback),
            leader_timeout: leader_timeout.unwrap_or(fallback),
            leader_grace: self.time("leader_grace", &args.leader_grace, short).unwrap_or(fallback),
            probe_interval: probe_interval.unwrap_or(fallback),
            probe_timeout: probe_timeout.unwrap_or(fallback),
            shutdown_grace: self.time("shutdown_grace", &args.shutdown_grace, zero..=MAX_TIME).unwrap_or(fallback),
            idle_timeout: self.idle_timeout(args, least),
        }
    }

    /// Below this least nobody could ask anything between being accepted and being closed.
    fn idle_timeout(&mut self, args: &Args, least: Duration) -> Duration {
        let zero = Duration::ZERO;
        let time = self.time("idle_timeout", &args.idle_timeout, zero..=MAX_IDLE).unwrap_or(zero);
        if !time.is_zero() && time < least {
            let (least, most) = (show_time(least), show_time(MAX_IDLE));
            self.bad("idle_timeout", &show_time(time), format_args!("must be from {least} to {most}, or 0 for never"));
        }
        time
    }

    pub(super) fn resync(&mut self, args: &Args, backups: &[ServerSpec]) -> ResyncMode {
        let mode = match self.single("resync", &args.resync) {
            None | Some("auto") => ResyncMode::Auto,
            Some("manual") => ResyncMode::Manual,
            Some("off") => ResyncMode::Off,
            Some(other) => {
                self.bad("resync", other, "there is no such mode; give auto, manual or off");
                ResyncMode::Auto
            }
        };
        let limits: Vec<&str> =
            ["resync_rate", "resync_latency", "resync_memory"].into_iter().filter(|id| self.asked(id)).collect();
        if args.backup.is_empty() && backups.is_empty() {
            if self.asked("resync") && mode == ResyncMode::Manual {
                let why = "without -b/--backup: there is nothing to refill from; give backups or drop it";
                self.fault_about("resync", format_args!("={mode} {why}"));
            }
            for id in limits {
                self.fault_about(id, " without -b/--backup: there is nothing to refill from; give backups or drop it");
            }
        } else if mode == ResyncMode::Off {
            for id in limits {
                self.fault_about(id, " contradicts --resync=off, under which nothing is refilled; drop one of them");
            }
        }
        mode
    }

    pub(super) fn resync_latency(&mut self, args: &Args) -> Option<Duration> {
        if args.resync_latency.iter().all(|word| word == "off") {
            return None;
        }
        self.time("resync_latency", &args.resync_latency, MIN_RESYNC_LATENCY..=MAX_TIME)
    }

    pub(super) fn resync_memory(&mut self, args: &Args, item_size_max: u64) -> u64 {
        let range = MIN_RESYNC_MEMORY..=MAX_RESYNC_MEMORY.min(usize::MAX as u64);
        let memory = self.size("resync_memory", &args.resync_memory, range).unwrap_or(MIN_RESYNC_MEMORY);
        if memory < item_size_max && self.given("resync_memory") {
            let why =
                format!("cannot hold one item of --item-size-max {}; give at least that", show_size(item_size_max));
            self.bad("resync_memory", &show_size(memory), why);
        }
        memory.max(item_size_max)
    }
}
