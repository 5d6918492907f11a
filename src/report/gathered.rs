//! Statistics of several servers as one list, as if one memcached had told them.

use std::collections::HashMap;

use super::since::Before;
use super::value::{Value, read};
use crate::protocol::statistics::Stats;

/// Bytes of names and values that are kept: the lists of memcached have some 100 KiB at most,
/// except for `stats detail dump`, which has a line for each prefix of keys.
const BYTES_MAX: usize = 4 << 20;

/// Which list it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// `stats`: counts are added up.
    General,
    /// `stats settings`: they are those of the first server, for the others' are rarely different;
    /// memory is added up.
    Settings,
    /// `stats slabs`, `stats items`: by class of items.
    Classes,
    /// `stats sizes`: by size of items.
    Sizes,
    /// `stats detail dump`: by prefix of keys.
    Prefixes,
}

/// A list under construction.
#[derive(Debug)]
pub struct Gathered {
    form: Form,
    stats: Vec<(String, Value)>,
    /// Where a name stands in `stats`.
    places: HashMap<String, usize>,
    bytes: usize,
}

/// How one server's number and the others' become one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rule {
    Sum,
    Most,
    Least,
    First,
}

impl Gathered {
    pub fn new(form: Form) -> Gathered {
        Gathered { form, stats: Vec::new(), places: HashMap::new(), bytes: 0 }
    }

    pub fn form(&self) -> Form {
        self.form
    }

    /// Takes the answer of the next server, without what it had counted before; `Err`: it is no
    /// list, but this line.
    pub fn add(&mut self, answer: &[u8], before: Option<&Before>) -> Result<(), String> {
        // How long ago the last evicted item was read says nothing where none was evicted since.
        let mut evicted = false;
        read(answer, |name, value| {
            let Some(before) = before else { return self.put(name, value) };
            let Some(mut value) = before.since(name, value) else { return Ok(()) };
            match name.rsplit(':').next() {
                Some("evicted") => evicted = value != Value::Number(0),
                Some("evicted_time") if !evicted => value = Value::Number(0),
                _ => {}
            }
            self.put(name, value)
        })
    }

    fn put(&mut self, name: &str, value: Value) -> Result<(), String> {
        let rule = self.rule(name);
        if let Some(at) = self.places.get(name) {
            merge(rule, &mut self.stats[*at].1, &value);
            return Ok(());
        }
        self.bytes +=
            2 * name.len() + size_of::<(String, Value)>() + if let Value::Text(text) = &value { text.len() } else { 0 };
        if self.bytes > BYTES_MAX {
            return Err(format!("the list has more than {BYTES_MAX} bytes"));
        }
        self.places.insert(name.to_owned(), self.stats.len());
        self.stats.push((name.to_owned(), value));
        Ok(())
    }

    fn rule(&self, name: &str) -> Rule {
        match (self.form, name.rsplit(':').next().unwrap_or(name)) {
            (Form::Settings, "maxbytes") => Rule::Sum,
            (Form::Settings, _) => Rule::First,
            // How one thing is, not how much there is of it.
            (
                Form::General | Form::Classes,
                "chunk_size"
                | "chunks_per_page"
                | "active_slabs"
                | "age"
                | "age_hot"
                | "age_warm"
                | "evicted_time"
                | "hash_power_level"
                | "hash_is_expanding"
                | "slab_reassign_running"
                | "lru_crawler_running"
                | "uptime"
                | "time"
                | "pointer_size",
            ) => Rule::Most,
            (Form::General, "accepting_conns") => Rule::Least,
            _ => Rule::Sum,
        }
    }

    /// Names and values, in memcached's order.
    pub fn into_stats(mut self) -> Stats {
        match self.form {
            // Servers have items of different classes, or sizes.
            Form::Classes => self.stats.sort_by_key(|(name, _)| class(name).unwrap_or(u32::MAX)),
            Form::Sizes => self.stats.sort_by_key(|(name, _)| name.parse().unwrap_or(u64::MAX)),
            Form::General | Form::Settings | Form::Prefixes => {}
        }
        self.stats.into_iter().map(|(name, value)| (name, value.text())).collect()
    }
}

fn merge(rule: Rule, sum: &mut Value, next: &Value) {
    match (rule, sum, next) {
        (Rule::Sum, Value::Number(sum), Value::Number(next)) => *sum = sum.wrapping_add(*next),
        (Rule::Most, Value::Number(sum), Value::Number(next)) => *sum = (*sum).max(*next),
        (Rule::Least, Value::Number(sum), Value::Number(next)) => *sum = (*sum).min(*next),
        (_, Value::Counts(sum), Value::Counts(next)) => {
            sum.iter_mut().zip(next).for_each(|(sum, next)| *sum = sum.wrapping_add(*next));
        }
        // The first one's stays.
        _ => {}
    }
}

/// The class of items that a name is about: `7:chunk_size`, `items:7:number`.
fn class(name: &str) -> Option<u32> {
    name.strip_prefix("items:").unwrap_or(name).split(':').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(form: Form, answers: &[&str]) -> Vec<String> {
        let mut all = Gathered::new(form);
        answers.iter().for_each(|answer| all.add(answer.as_bytes(), None).expect("a list"));
        all.into_stats().into_iter().map(|(name, value)| format!("{name} {value}")).collect()
    }

    #[test]
    fn counts_are_added_up_and_states_are_not() {
        let first =
            "STAT curr_items 3\r\nSTAT libevent 2.1\r\nSTAT hash_power_level 16\r\nSTAT accepting_conns 1\r\nEND\r\n";
        let second = "STAT curr_items 4\r\nSTAT libevent 2.2\r\nSTAT hash_power_level 18\r\nSTAT accepting_conns 0\r\nSTAT new 1\r\nEND\r\n";
        let all = gathered(Form::General, &[first, second]);
        assert_eq!(all, ["curr_items 7", "libevent 2.1", "hash_power_level 18", "accepting_conns 0", "new 1"]);
        let first = "STAT maxbytes 64\r\nSTAT num_threads 4\r\nSTAT evictions on\r\nEND\r\n";
        assert_eq!(gathered(Form::Settings, &[first, first]), ["maxbytes 128", "num_threads 4", "evictions on"]);
    }

    #[test]
    fn classes_stand_in_order_whichever_server_has_them() {
        let first = "STAT 2:chunk_size 96\r\nSTAT 2:used_chunks 5\r\nSTAT active_slabs 1\r\nEND\r\n";
        let second = "STAT 1:chunk_size 80\r\nSTAT 2:chunk_size 96\r\nSTAT 2:used_chunks 6\r\nSTAT 10:chunk_size 384\r\nSTAT active_slabs 3\r\nEND\r\n";
        let slabs = ["1:chunk_size 80", "2:chunk_size 96", "2:used_chunks 11", "10:chunk_size 384", "active_slabs 3"];
        assert_eq!(gathered(Form::Classes, &[first, second]), slabs);
        let first = "STAT items:7:number 1\r\nSTAT items:7:age 5\r\nEND\r\n";
        let second = "STAT items:1:number 2\r\nSTAT items:7:number 3\r\nSTAT items:7:age 4\r\nEND\r\n";
        let items = ["items:1:number 2", "items:7:number 4", "items:7:age 5"];
        assert_eq!(gathered(Form::Classes, &[first, second]), items);
        let sizes = gathered(Form::Sizes, &["STAT 96 1\r\nEND\r\n", "STAT 64 2\r\nSTAT 96 2\r\nEND\r\n"]);
        assert_eq!(sizes, ["64 2", "96 3"]);
    }

    #[test]
    fn prefixes_may_have_blanks() {
        let first = "PREFIX a get 1 hit 2 set 3 del 4\r\nPREFIX b get 1 get 1 hit 0 set 0 del 0\r\nEND\r\n";
        let all = gathered(Form::Prefixes, &[first, "PREFIX a get 1 hit 0 set 0 del 1\r\nEND\r\n"]);
        assert_eq!(all, ["a get 2 hit 2 set 3 del 5", "b get 1 get 1 hit 0 set 0 del 0"]);
    }

    #[test]
    fn what_is_no_list_is_told() {
        for answer in
            ["ERROR\r\n", "STAT a 1\r\nSERVER_ERROR out of memory\r\n", "STAT a 1\r\n", "PREFIX a get\r\nEND\r\n"]
        {
            assert!(Gathered::new(Form::General).add(answer.as_bytes(), None).is_err(), "{answer}");
        }
        let mut all = Gathered::new(Form::Prefixes);
        let line = |n: usize| format!("PREFIX {n:0>200} get 1 hit 1 set 1 del 1\r\nEND\r\n");
        let full = (0..).find(|n| all.add(line(*n).as_bytes(), None).is_err()).expect("an end");
        assert!((1_000..BYTES_MAX / 200).contains(&full), "{full}");
    }
}
