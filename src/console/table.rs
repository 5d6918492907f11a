//! Tables, numbers and colours for people. Pure, but for what the terminal is.

use std::fmt;
use std::io::IsTerminal as _;

/// What stdout is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminal {
    /// It may be written over.
    pub(crate) clears: bool,
    pub(crate) colours: bool,
}

impl Terminal {
    pub(crate) fn stdout() -> Terminal {
        let dumb = std::env::var_os("TERM").is_none_or(|name| name == "dumb" || name.is_empty());
        let clears = std::io::stdout().is_terminal() && !dumb;
        Terminal { clears, colours: clears && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()) }
    }

    /// Begins a screen that stands in the place of the last one.
    pub(crate) fn begin(self) -> &'static str {
        if self.clears { "\x1b[H\x1b[2J" } else { "" }
    }
}

/// How something is, as a colour. A sign and a word always stand beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tone {
    Plain,
    Good,
    Warning,
    Bad,
}

impl Tone {
    pub(crate) fn paint(self, text: &str, colours: bool) -> String {
        let colour = match self {
            Tone::Plain => return text.to_owned(),
            _ if !colours => return text.to_owned(),
            Tone::Good => 32,
            Tone::Warning => 33,
            Tone::Bad => 31,
        };
        format!("\x1b[1;{colour}m{text}\x1b[0m")
    }
}

/// Columns as wide as what stands in them.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<(Vec<String>, Tone)>,
    colours: bool,
}

impl Table {
    pub(crate) fn new(head: &[&str], colours: bool) -> Table {
        Table { rows: vec![(head.iter().map(|&name| name.to_owned()).collect(), Tone::Plain)], colours }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>, tone: Tone) {
        self.rows.push((cells, tone));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, |(head, _)| head.len());
        let width = |at: usize| {
            let cells = self.rows.iter().filter_map(|(cells, _)| cells.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (cells, tone) in &self.rows {
            let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            let line = padded.collect::<Vec<_>>().join("  ");
            writeln!(f, "{}", tone.paint(line.trim_end(), self.colours))?;
        }
        Ok(())
    }
}

/// Names, as many on a line as it takes.
pub(crate) fn wrapped(head: &str, names: &[String], columns: usize) -> String {
    let mut out = String::new();
    let mut line = head.to_owned();
    for name in names {
        if line.chars().count() + name.chars().count() + 1 > columns {
            out.push_str(line.trim_end());
            out.push('\n');
            line = " ".repeat(head.chars().count());
        }
        line.push(' ');
        line.push_str(name);
    }
    out.push_str(line.trim_end());
    out.push('\n');
    out
}

/// Three digits and a letter.
pub(crate) fn short(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..1_000_000 => format!("{}k", number / 1000),
        _ => format!("{:.1}M", number as f64 / 1e6),
    }
}

/// A second.
pub(crate) fn rate(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        ..10.0 => format!("{number:.1}"),
        _ => short(number.round() as u64),
    }
}

/// The two largest units.
pub(crate) fn time(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h {}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

/// Milliseconds; `-`: nothing is known.
pub(crate) fn wait(us: Option<u64>) -> String {
    match us {
        None => "-".to_owned(),
        Some(us @ ..10_000) => format!("{:.1}ms", us as f64 / 1000.0),
        Some(us @ ..10_000_000) => format!("{}ms", us / 1000),
        Some(us) => format!("{}s", us / 1_000_000),
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
    fn a_painted_row_is_as_wide_as_the_others() {
        let mut table = Table::new(&["A", "LONG"], true);
        table.row(vec!["aaa".to_owned(), "x".to_owned()], Tone::Bad);
        assert_eq!(table.to_string(), "A    LONG\n\x1b[1;31maaa  x\x1b[0m\n");
        table.colours = false;
        assert_eq!(table.to_string(), "A    LONG\naaa  x\n");
    }

    #[test]
    fn many_names_take_several_lines() {
        let names: Vec<String> = (1..5).map(|number| format!("c{number}")).collect();
        assert_eq!(wrapped("HEAD", &names, 12), "HEAD c1 c2\n     c3 c4\n");
    }
}
