//! Requests written, and answers read no closer than they must be: on a machine with few cores the
//! generator's work takes from what it measures.

use std::io;

/// Appends the key with this number; all have one length.
pub(crate) fn put_key(out: &mut Vec<u8>, key: u32) {
    out.extend_from_slice(b"bench:key:");
    let mut digits = [b'0'; 10];
    let mut rest = key;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    out.extend_from_slice(&digits);
}

/// Appends `get` for these keys.
pub(crate) fn put_get(out: &mut Vec<u8>, keys: impl Iterator<Item = u32>) {
    out.extend_from_slice(b"get");
    for key in keys {
        out.push(b' ');
        put_key(out, key);
    }
    out.extend_from_slice(b"\r\n");
}

/// What every `set` has after its key: flags, exptime, length, value.
pub(crate) fn set_tail(value_len: usize) -> Vec<u8> {
    let mut tail = format!(" 0 0 {value_len}\r\n").into_bytes();
    tail.resize(tail.len() + value_len, b'v');
    tail.extend_from_slice(b"\r\n");
    tail
}

/// Appends a `set`.
pub(crate) fn put_set(out: &mut Vec<u8>, key: u32, tail: &[u8]) {
    out.extend_from_slice(b"set ");
    put_key(out, key);
    out.extend_from_slice(tail);
}

/// Appends `mg` for this key's value and client flags.
pub(crate) fn put_mg(out: &mut Vec<u8>, key: u32) {
    out.extend_from_slice(b"mg ");
    put_key(out, key);
    out.extend_from_slice(b" v f\r\n");
}

/// What every `ms` has after its key.
pub(crate) fn ms_tail(value_len: usize) -> Vec<u8> {
    let mut tail = format!(" {value_len} T0 F0\r\n").into_bytes();
    tail.resize(tail.len() + value_len, b'v');
    tail.extend_from_slice(b"\r\n");
    tail
}

/// Appends an `ms`.
pub(crate) fn put_ms(out: &mut Vec<u8>, key: u32, tail: &[u8]) {
    out.extend_from_slice(b"ms ");
    put_key(out, key);
    out.extend_from_slice(tail);
}

/// What a connection still waits for.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Answers owed.
    pub(crate) owed: usize,
    /// Values that came.
    pub(crate) values: u64,
    /// Answers that were errors of the server.
    pub(crate) errors: u64,
    /// Bytes of a value that are still to come, its line end included.
    skip: usize,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
}

impl Answers {
    /// The connection broke with so many owed: errors all of them.
    pub(crate) fn lost(owed: usize) -> Answers {
        Answers { errors: owed as u64, ..Answers::default() }
    }

    /// Takes what was read.
    ///
    /// # Errors
    ///
    /// If it is no answer to `get`, `set`, `mg` or `ms`.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let Some(end) = memchr::memchr(b'\n', bytes) else {
                self.partial.extend_from_slice(bytes);
                return Ok(());
            };
            let (line, rest) = bytes.split_at(end + 1);
            bytes = rest;
            if self.partial.is_empty() {
                self.line(line)?;
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole)?;
                whole.clear();
                self.partial = whole;
            }
        }
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let strange = || io::Error::other(format!("unexpected answer: {}", String::from_utf8_lossy(line)));
        if line.starts_with(b"VALUE ") {
            let length = line.trim_ascii_end().rsplit(|&b| b == b' ').next().unwrap_or_default();
            let length: usize = std::str::from_utf8(length).ok().and_then(|t| t.parse().ok()).ok_or_else(strange)?;
            self.values += 1;
            self.skip = length + 2;
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix(b"VA ") {
            let length = rest.split(|&b| b == b' ' || b == b'\r').next().unwrap_or_default();
            let length: usize = std::str::from_utf8(length).ok().and_then(|t| t.parse().ok()).ok_or_else(strange)?;
            self.values += 1;
            self.skip = length + 2;
            self.owed = self.owed.checked_sub(1).ok_or_else(strange)?;
            return Ok(());
        }
        match line {
            b"HD\r\n" | b"EN\r\n" => {}
            b"END\r\n" | b"STORED\r\n" => {}
            _ if line.starts_with(b"SERVER_ERROR") => self.errors += 1,
            _ => return Err(strange()),
        }
        self.owed = self.owed.checked_sub(1).ok_or_else(strange)?;
        Ok(())
    }
}
