//! Times and sizes as people write them.

use std::time::Duration;

/// Reads a time such as `250ms` or `1m30s`.
///
/// # Errors
///
/// What is wrong with it and what to write instead.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let number = text.len() < 20 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if number && text.parse::<f64>().is_ok_and(|n| n != 0.0) {
        return Err(format!("a time needs its unit: write {text}ms or {text}s"));
    }
    humantime::parse_duration(text).map_err(|_| "not a time: write for example 250ms, 2s or 1m30s".to_owned())
}

/// Writes a time the way [`parse_time`] reads it.
pub(crate) fn show_time(time: Duration) -> String {
    humantime::format_duration(time).to_string().replace(' ', "")
}

/// Reads a size in bytes: `1048576`, `64m`, `64M`, `64MB` or `64MiB`, all powers of 1024 as with
/// memcached's `-I`.
///
/// # Errors
///
/// What is wrong with it and what to write instead.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err("not a size: write bytes, or a number with k, m or g, for example 64m".to_owned()),
    };
    let number: u64 = match number.parse() {
        Ok(number) => number,
        Err(_) if number.is_empty() => {
            return Err("not a size: write bytes, or a number with k, m or g, for example 64m".to_owned());
        }
        Err(_) => return Err("a size beyond all memory: write a smaller one".to_owned()),
    };
    number.checked_mul(1 << shift).ok_or_else(|| "a size beyond all memory: write a smaller one".to_owned())
}

/// Writes a size the way [`parse_size`] reads it.
pub(super) fn show_size(bytes: u64) -> String {
    for (shift, unit) in [(30, "g"), (20, "m"), (10, "k")] {
        if bytes >= 1 << shift && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, ms) in [("250ms", 250), ("2s", 2_000), ("1m30s", 90_000), ("1h", 3_600_000), ("0", 0), ("0s", 0)] {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for (text, hint) in
            [("250", "needs its unit"), ("1.5", "needs its unit"), ("soon", "not a time"), ("", "not"), ("-1s", "not")]
                .into_iter()
                .chain(["-1", "1e3", "inf", "nan", "infinity", &"9".repeat(1000)].map(|text| (text, "not a time")))
        {
            let error = parse_time(text).unwrap_err();
            assert!(error.contains(hint), "{text:?}: {error}");
        }
        assert_eq!(show_time(Duration::from_millis(90_250)), "1m30s250ms");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("1k", 1024),
            ("1K", 1024),
            ("1kb", 1024),
            ("64m", 64 << 20),
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("2g", 2 << 30),
            ("2GiB", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "-1", "1.5m", "64x", "1kk", "0x10", "99999999999999999999", "18446744073709551615g"] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
        for bytes in [1, 1023, 1024, 1536, 64 << 20, 3 << 30] {
            assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }
    }
}
