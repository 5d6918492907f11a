//! What a server counted before `stats reset`. A server is not told of it (by its counters its
//! memory is known again), so its numbers are told as what came to them since. PURE.

use std::collections::HashMap;

use super::value::{Value, read};

/// The lists with counters that memcached's `stats reset` clears, by what stands behind `stats`.
pub const LISTS: [&str; 4] = ["", "items", "slabs", "detail dump"];

/// Bytes kept of one server: memcached's own names are some kilobytes, prefixes of keys are the
/// clients' choice.
const BYTES_MAX: usize = 4 << 20;
/// Bytes kept of all servers together.
const ALL_BYTES_MAX: usize = 64 << 20;

/// Beside the name itself.
const ENTRY_BYTES: usize = 64;

/// What one server had counted.
#[derive(Debug)]
pub struct Before {
    numbers: HashMap<String, u64>,
    prefixes: HashMap<String, [u64; 4]>,
    /// Which of [`LISTS`] it has not told since the reset: what it says next counts as from before.
    awaited: [bool; LISTS.len()],
    /// When its process started, by its own clock. Another one has counted nothing before.
    started: Option<u64>,
    bytes: usize,
    bytes_max: usize,
}

impl Before {
    /// Of one of `servers` servers, which was started then, as far as is known.
    pub fn new(servers: usize, started: Option<u64>) -> Before {
        let bytes_max = BYTES_MAX.min(ALL_BYTES_MAX / servers.max(1));
        let (numbers, prefixes) = (HashMap::new(), HashMap::new());
        Before { numbers, prefixes, awaited: [true; LISTS.len()], started, bytes: 0, bytes_max }
    }

    /// Whether it is about a server that was started then.
    pub fn is_of(&self, started: u64) -> bool {
        self.started.is_none_or(|then| then.abs_diff(started) <= 1)
    }

    /// Takes one of [`LISTS`]. `Err`: it is no list, or longer than what can be kept.
    pub fn take(&mut self, list: &str, answer: &[u8]) -> Result<(), String> {
        let (mut time, mut uptime) = (None, 0);
        read(answer, |name, value| {
            match value {
                Value::Counts([0, 0, 0, 0]) | Value::Number(0) | Value::Text(_) => return Ok(()),
                Value::Number(number) if list.is_empty() && name == "time" => time = Some(number),
                Value::Number(number) if list.is_empty() && name == "uptime" => uptime = number,
                Value::Number(number) if is_cleared(name) => drop(self.numbers.insert(name.to_owned(), number)),
                Value::Number(_) => return Ok(()),
                Value::Counts(counts) => drop(self.prefixes.insert(name.to_owned(), counts)),
            }
            self.bytes += name.len() + ENTRY_BYTES;
            let max = self.bytes_max;
            if self.bytes > max { Err(format!("more than {max} bytes of names")) } else { Ok(()) }
        })?;
        if let Some(time) = time {
            self.started = Some(time.saturating_sub(uptime));
        }
        LISTS
            .iter()
            .zip(&mut self.awaited)
            .filter(|(known, _)| **known == list)
            .for_each(|(_, awaited)| *awaited = false);
        Ok(())
    }

    /// The same, of a list that this server could not be asked for when it was reset.
    pub fn take_late(&mut self, list: &str, answer: &[u8]) -> Result<(), String> {
        let awaited = LISTS.iter().zip(self.awaited).any(|(known, awaited)| *known == list && awaited);
        if awaited { self.take(list, answer) } else { Ok(()) }
    }

    /// What has come since; [`None`]: nothing, of what memcached forgets by name.
    pub(super) fn since(&self, name: &str, value: Value) -> Option<Value> {
        match value {
            Value::Number(number) => {
                let before = self.numbers.get(name).copied().unwrap_or(0);
                Some(Value::Number(number.saturating_sub(before)))
            }
            Value::Counts(counts) => {
                let before = self.prefixes.get(name).copied().unwrap_or_default();
                let since: [u64; 4] = std::array::from_fn(|at| counts[at].saturating_sub(before[at]));
                (since != [0; 4]).then_some(Value::Counts(since))
            }
            Value::Text(_) => Some(value),
        }
    }
}

/// The numbers of its lists that memcached's `stats reset` clears: what counts events, and not what
/// there is. (`response_obj_count` and `response_obj_bytes` it clears by mistake: they fall below
/// zero then.)
const CLEARED: [&str; 65] = [
    "total_items",
    "malloc_fails",
    "listen_disabled_num",
    "time_in_listen_disabled_us",
    "slabs_moved",
    "slab_reassign_rescues",
    "slab_reassign_chunk_rescues",
    "slab_reassign_evictions_nomem",
    "slab_reassign_inline_reclaim",
    "slab_reassign_busy_items",
    "slab_reassign_busy_deletes",
    "slab_reassign_busy_nomem",
    "lru_crawler_starts",
    "lru_maintainer_juggles",
    "log_worker_dropped",
    "log_worker_written",
    "log_watcher_skipped",
    "log_watcher_sent",
    "extstore_compact_lost",
    "extstore_compact_rescues",
    "extstore_compact_skipped",
    "get_extstore",
    "get_aborted_extstore",
    "get_oom_extstore",
    "recache_from_extstore",
    "miss_from_extstore",
    "badcrc_from_extstore",
    "ssl_handshake_errors",
    "ssl_new_sessions",
    "unexpected_napi_ids",
    "round_robin_fallback",
    "get_expired",
    "get_flushed",
    "conn_yields",
    "idle_kicks",
    "response_obj_oom",
    "read_buf_oom",
    "evictions",
    "evicted",
    "evicted_nonzero",
    "evicted_unfetched",
    "evicted_active",
    "outofmemory",
    "tailrepairs",
    "reclaimed",
    "expired_unfetched",
    "crawler_reclaimed",
    "crawler_items_checked",
    "lrutail_reflocked",
    "moves_to_cold",
    "moves_to_warm",
    "moves_within_lru",
    "direct_reclaims",
    "hits_to_hot",
    "hits_to_warm",
    "hits_to_cold",
    "hits_to_temp",
    "get_hits",
    "cmd_set",
    "delete_hits",
    "incr_hits",
    "decr_hits",
    "cas_hits",
    "cas_badval",
    "touch_hits",
];

fn is_cleared(name: &str) -> bool {
    CLEARED.contains(&name.rsplit(':').next().unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::gathered::{Form, Gathered};

    fn told(form: Form, answer: &str, before: &Before) -> Vec<String> {
        let mut all = Gathered::new(form);
        all.add(answer.as_bytes(), Some(before)).expect("a list");
        all.into_stats().into_iter().map(|(name, value)| format!("{name} {value}")).collect()
    }

    #[test]
    fn counters_are_told_as_what_came_since_and_what_there_is_as_it_is() {
        let mut before = Before::new(2, Some(5));
        let stats = "STAT time 110\r\nSTAT uptime 10\r\nSTAT total_items 7\r\nSTAT curr_items 3\r\nEND\r\n";
        before.take("", stats.as_bytes()).expect("a list");
        assert!(before.is_of(100) && before.is_of(101) && !before.is_of(5));
        let stats = stats.replace("total_items 7", "total_items 9").replace("uptime 10", "uptime 11");
        assert_eq!(told(Form::General, &stats, &before)[2..], ["total_items 2", "curr_items 3"]);

        let items = "STAT items:1:number 4\r\nSTAT items:1:evicted 6\r\nSTAT items:1:evicted_time 8\r\nEND\r\n";
        before.take("items", items.as_bytes()).expect("a list");
        let at_once = ["items:1:number 4", "items:1:evicted 0", "items:1:evicted_time 0"];
        assert_eq!(told(Form::Classes, items, &before), at_once);
        let later = items.replace("evicted 6", "evicted 7").replace("STAT items:1:number 4", "STAT items:2:evicted 3");
        let since = ["items:1:evicted 1", "items:1:evicted_time 8", "items:2:evicted 3"];
        assert_eq!(told(Form::Classes, &later, &before), since);

        let dump = "PREFIX a get 1 hit 1 set 1 del 0\r\nPREFIX b get 0 hit 0 set 2 del 0\r\nEND\r\n";
        before.take("detail dump", dump.as_bytes()).expect("a list");
        let later = dump.replace("set 2 del 0", "set 2 del 5");
        assert_eq!(told(Form::Prefixes, dump, &before), [""; 0]);
        assert_eq!(told(Form::Prefixes, &later, &before), ["b get 0 hit 0 set 0 del 5"]);
        // A server that has begun to count anew, which nobody has noticed yet.
        let anew = "PREFIX a get 2 hit 0 set 0 del 0\r\nEND\r\n";
        assert_eq!(told(Form::Prefixes, anew, &before), ["a get 1 hit 0 set 0 del 0"]);
    }

    #[test]
    fn a_server_that_was_not_reached_counts_from_its_next_word() {
        let mut before = Before::new(1, None);
        let dump = "PREFIX a get 1 hit 1 set 1 del 0\r\nEND\r\n";
        before.take_late("detail dump", dump.as_bytes()).expect("a list");
        assert_eq!(told(Form::Prefixes, dump, &before), [""; 0]);
        let later = dump.replace("get 1", "get 4");
        before.take_late("detail dump", later.as_bytes()).expect("a list");
        assert_eq!(told(Form::Prefixes, &later, &before), ["a get 3 hit 0 set 0 del 0"]);
    }

    #[test]
    fn prefixes_that_clients_think_up_are_not_kept_without_end() {
        let mut before = Before::new(256, None);
        let line = |n: usize| format!("PREFIX {n:0>200} get 1 hit 1 set 1 del 1\r\nEND\r\n");
        let full = (0..).find(|n| before.take("detail dump", line(*n).as_bytes()).is_err()).expect("an end");
        assert!((500..ALL_BYTES_MAX / 256 / 200).contains(&full), "{full}");
        assert!(before.take("detail dump", b"ERROR\r\n").is_err());
    }
}
