//! The meta commands. Flags are done, and answered, one after the other.

use super::line::Flags;
use super::{Mark, Memcached, NOT_NUMERIC, OUT_OF_MEMORY, date, put};

impl Memcached {
    pub(super) fn meta_get(&mut self, key: &[u8], flags: Flags<'_>, out: &mut Vec<u8>) {
        let made = self.find_asked(key).is_none();
        if made {
            if flags.number::<i64>(b'N').is_none() {
                return ends(out, "EN", key, flags, None);
            }
            self.put(key, b"", 0, 0);
        }
        let now = self.now;
        let item = self.find_asked(key).expect("found or made");
        let with_value = flags.has(b"v");
        match with_value {
            true => put(out, format_args!("VA {}", item.value.len())),
            false => out.extend_from_slice(b"HD"),
        }
        let mut due = made;
        for word in flags.words() {
            match word[0] {
                b'f' => put(out, format_args!(" f{}", item.flags)),
                b's' => put(out, format_args!(" s{}", item.value.len())),
                b't' => remaining(out, now, item.exptime),
                b'c' => put(out, format_args!(" c{}", item.cas)),
                b'N' if made => item.exptime = date(now, number_of(word)),
                b'T' => item.exptime = date(now, number_of(word)),
                b'R' => due |= item.exptime != 0 && item.exptime < date(now, number_of(word)),
                _ => echo(out, key, word),
            }
        }
        out.extend_from_slice(item.mark.look(due).as_bytes());
        out.extend_from_slice(b"\r\n");
        if with_value {
            out.extend_from_slice(&item.value);
            out.extend_from_slice(b"\r\n");
        }
    }

    pub(super) fn meta_set(&mut self, key: &[u8], flags: Flags<'_>, data: &[u8], out: &mut Vec<u8>) {
        let (mode, guard) = (flags.mode(), flags.number::<u64>(b'C'));
        let joins = matches!(mode, b'A' | b'P');
        // What is older than what stands there may be stored as stale.
        let older = |cas| !joins && flags.has(b"I") && guard.is_some_and(|guard| guard < cas);
        let standing = self.find(key).map(|item| (item.cas, item.exptime, item.mark));
        let refusal = match (standing, mode, guard) {
            (Some(_), b'E', _) | (None, b'A' | b'P', _) | (None, b'R', None) => Some("NS"),
            // What adds compares nothing.
            (None, b'E', _) | (_, _, None) => None,
            (None, _, Some(_)) => Some("NF"),
            (Some((cas, ..)), _, Some(guard)) => (cas != guard && !older(cas)).then_some("EX"),
        };
        if let Some(code) = refusal {
            return ends(out, code, key, flags, Some(0));
        }
        if self.has_no_memory_for(key) {
            return out.extend_from_slice(OUT_OF_MEMORY);
        }
        match joins {
            true => self.join(key, data, mode == b'A'),
            false => {
                let (client_flags, exptime) = (flags.number(b'F').unwrap_or(0), flags.number(b'T').unwrap_or(0));
                self.put(key, data, client_flags, exptime);
            }
        }
        let item = self.items.get_mut(key).expect("stored");
        if let Some((_, exptime, mark)) = standing.filter(|(cas, ..)| older(*cas)) {
            (item.exptime, item.mark) = (exptime, Mark { stale: true, ..mark });
        }
        let cas = item.cas;
        ends(out, "HD", key, flags, Some(cas));
    }

    pub(super) fn meta_delete(&mut self, key: &[u8], flags: Flags<'_>, out: &mut Vec<u8>) {
        let code = match (self.find_asked(key).map(|item| item.cas), flags.number::<u64>(b'C')) {
            (None, _) => "NF",
            (Some(cas), Some(guard)) if cas != guard => "EX",
            _ if flags.has(b"I") => {
                let (cas, now) = (self.next_cas(), self.now);
                let item = self.items.get_mut(key).expect("found");
                (item.cas, item.mark) = (cas, Mark { stale: true, sent: false });
                item.exptime = flags.number(b'T').map_or(item.exptime, |exptime| date(now, exptime));
                "HD"
            }
            _ => {
                self.items.remove(key);
                "HD"
            }
        };
        ends(out, code, key, flags, None);
    }

    pub(super) fn meta_arithmetic(&mut self, key: &[u8], flags: Flags<'_>, out: &mut Vec<u8>) {
        let down = matches!(flags.mode(), b'D' | b'-');
        let delta = flags.number(b'D').unwrap_or(1);
        let found = self.find(key).map(|item| (item.value.is_empty(), item.cas, item.counted(down, delta)));
        let number = match found {
            None => {
                if flags.number::<i64>(b'N').is_none() {
                    return ends(out, "NF", key, flags, None);
                }
                self.put(key, b"", 0, 0);
                flags.number(b'J').unwrap_or(0)
            }
            Some((false, cas, _)) if flags.number(b'C').is_some_and(|guard: u64| guard != cas) => {
                return ends(out, "EX", key, flags, None);
            }
            Some((_, _, None)) => return out.extend_from_slice(NOT_NUMERIC),
            Some((_, _, Some(number))) => {
                let replaced = self.recount(key, number);
                return self.tell_number(key, number, (false, replaced), flags, out);
            }
        };
        put(&mut self.items.get_mut(key).expect("made").value, format_args!("{number}"));
        self.tell_number(key, number, (true, false), flags, out);
    }

    /// `replaced`: another item has replaced the one to which the flags are done.
    fn tell_number(
        &mut self,
        key: &[u8],
        number: u64,
        (made, replaced): (bool, bool),
        flags: Flags<'_>,
        out: &mut Vec<u8>,
    ) {
        let now = self.now;
        let item = self.items.get_mut(key).expect("counted");
        let mut exptime = item.exptime;
        let with_value = flags.has(b"v");
        match with_value {
            true => put(out, format_args!("VA {}", number.checked_ilog10().unwrap_or(0) + 1)),
            false => out.extend_from_slice(b"HD"),
        }
        for word in flags.words() {
            match word[0] {
                b't' => remaining(out, now, exptime),
                b'c' => put(out, format_args!(" c{}", item.cas)),
                b'N' if made => exptime = date(now, number_of(word)),
                b'T' => exptime = date(now, number_of(word)),
                _ => echo(out, key, word),
            }
        }
        if !replaced {
            item.exptime = exptime;
        }
        out.extend_from_slice(b"\r\n");
        if with_value {
            put(out, format_args!("{number}\r\n"));
        }
    }
}

/// Ends an answer without a value: what it is told, and what of the flags is answered in any case.
fn ends(out: &mut Vec<u8>, code: &str, key: &[u8], flags: Flags<'_>, cas: Option<u64>) {
    out.extend_from_slice(code.as_bytes());
    for word in flags.words() {
        match (word[0], cas) {
            (b'c', Some(cas)) => put(out, format_args!(" c{cas}")),
            _ => echo(out, key, word),
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// What a command has said and is told again.
fn echo(out: &mut Vec<u8>, key: &[u8], word: &[u8]) {
    let told = match word[0] {
        b'k' => key,
        b'O' => &word[1..],
        _ => return,
    };
    out.extend_from_slice(&[b' ', word[0]]);
    out.extend_from_slice(told);
}

fn remaining(out: &mut Vec<u8>, now: i64, exptime: i64) {
    put(out, format_args!(" t{}", if exptime == 0 { -1 } else { exptime - now }));
}

fn number_of(word: &[u8]) -> i64 {
    super::line::number(&word[1..]).unwrap_or(0)
}
