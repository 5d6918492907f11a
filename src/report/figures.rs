//! Numbers and times for people. Pure.

/// Three digits and a letter.
pub fn short(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..1_000_000 => format!("{}k", number / 1000),
        _ => format!("{:.1}M", number as f64 / 1e6),
    }
}

/// A number, and what it counts: one of them, or many.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A second.
pub fn rate(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        ..10.0 => format!("{number:.1}"),
        _ => short(number.round() as u64),
    }
}

/// The two largest units.
pub fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// Milliseconds; `-`: nothing is known.
pub fn wait(us: Option<u64>) -> String {
    match us {
        None => "-".to_owned(),
        Some(us @ ..10_000) => format!("{:.1}ms", us as f64 / 1000.0),
        Some(us @ ..10_000_000) => format!("{}ms", us / 1000),
        Some(us) => format!("{}s", us / 1_000_000),
    }
}

/// Names, and of more than `most` how many more.
pub fn some_of(names: &[&str], most: usize) -> String {
    match names.len().checked_sub(most) {
        Some(more @ 1..) => format!("{} and {more} more", names[..most].join(", ")),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_short() {
        assert_eq!([9_999, 10_000, 1_250_000].map(short), ["9999", "10k", "1.2M"]);
        assert_eq!([59, 61, 3_660, 90_000].map(time), ["59s", "1m 1s", "1h 1m", "1d 1h"]);
        assert_eq!([0.0, 0.25, 12.3, 12_345.0].map(rate), ["0", "0.2", "12", "12k"]);
        assert_eq!([None, Some(80), Some(12_345), Some(16_000_000)].map(wait), ["-", "0.1ms", "12ms", "16s"]);
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2].map(|n| counted(n, "primary", "primaries")), ["0 primaries", "1 primary", "2 primaries"]);
    }

    #[test]
    fn of_many_names_some_are_told() {
        assert_eq!(some_of(&["a", "b"], 2), "a, b");
        assert_eq!(some_of(&["a", "b", "c"], 2), "a, b and 1 more");
        assert_eq!(some_of(&[], 2), "");
    }
}
