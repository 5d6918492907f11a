//! Tables and colours for people. Pure, but for what the terminal is.

use std::fmt;
use std::io::IsTerminal as _;

/// What stdout is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminal {
    /// It may be written over.
    pub(crate) clears: bool,
    pub(crate) colours: bool,
    /// Columns and rows, if it has them.
    size: Option<(usize, usize)>,
}

impl Terminal {
    pub(crate) fn stdout() -> Terminal {
        let dumb = std::env::var_os("TERM").is_none_or(|name| name == "dumb" || name.is_empty());
        let clears = std::io::stdout().is_terminal() && !dumb;
        let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok().filter(|_| clears);
        let size = size.map(|size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        let size = size.filter(|(columns, rows)| *columns > 0 && *rows > 0);
        Terminal { clears, size, colours: clears && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()) }
    }

    /// How wide it is; `None`: it is none, or does not say.
    pub(crate) fn columns(self) -> Option<usize> {
        self.size.map(|(columns, _)| columns)
    }

    /// As much of a screen as it shows at once: what stands first is not scrolled away.
    pub(crate) fn fitted(self, text: &str) -> String {
        self.size.map_or_else(|| text.to_owned(), |size| fitted(text, size))
    }

    /// Begins a screen that stands in the place of the last one.
    pub(crate) fn begin(self) -> &'static str {
        if self.clears { "\x1b[H\x1b[2J" } else { "" }
    }
}

fn fitted(text: &str, (columns, rows): (usize, usize)) -> String {
    let taken = |line: &str| seen_width(line).div_ceil(columns).max(1);
    // The cursor stands on a line of its own.
    let room = rows.saturating_sub(1);
    if text.lines().map(taken).sum::<usize>() <= room {
        return text.to_owned();
    }
    let mut left = room.saturating_sub(1);
    let mut out = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next_if(|line| taken(line) <= left) {
        left -= taken(line);
        out.push_str(line);
        out.push('\n');
    }
    out + &format!("... {} more lines: a higher window shows them\n", lines.count())
}

/// Characters without those that make colours.
fn seen_width(line: &str) -> usize {
    let mut pieces = line.split('\x1b');
    let first = pieces.next().map_or(0, |piece| piece.chars().count());
    first + pieces.map(|piece| piece.split_once('m').map_or(0, |(_, rest)| rest.chars().count())).sum::<usize>()
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
    /// Heads of columns that are not shown.
    left_out: Vec<&'static str>,
}

impl Table {
    pub(crate) fn new(head: &[&str], colours: bool) -> Table {
        let head = head.iter().map(|&name| name.to_owned()).collect();
        Table { rows: vec![(head, Tone::Plain)], colours, left_out: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>, tone: Tone) {
        self.rows.push((cells, tone));
    }

    /// Without as many of the `spare` columns, the first ones first, as do not fit: rows that are
    /// broken in two are hard to read.
    pub(crate) fn within(mut self, columns: Option<usize>, spare: &[&'static str]) -> Table {
        for &name in spare {
            let widths = self.widths();
            let width = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
            let head = self.rows.first().map(|(head, _)| head);
            if let Some(at) = head.and_then(|head| head.iter().position(|cell| cell == name))
                && columns.is_some_and(|columns| width > columns)
            {
                self.rows
                    .iter_mut()
                    .filter(|(cells, _)| at < cells.len())
                    .for_each(|(cells, _)| drop(cells.remove(at)));
                self.left_out.push(name);
            }
        }
        self
    }

    fn widths(&self) -> Vec<usize> {
        let columns = self.rows.first().map_or(0, |(head, _)| head.len());
        let width = |at: usize| {
            let cells = self.rows.iter().filter_map(|(cells, _)| cells.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        (0..columns).map(width).collect()
    }
}

/// Blanks between two columns.
const GAP: usize = 2;

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        for (cells, tone) in &self.rows {
            let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            let line = padded.collect::<Vec<_>>().join(&" ".repeat(GAP));
            writeln!(f, "{}", tone.paint(line.trim_end(), self.colours))?;
        }
        match self.left_out.as_slice() {
            [] => Ok(()),
            names => writeln!(f, "(left out: {}; a wider window shows it)", names.join(", ")),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_painted_row_is_as_wide_as_the_others() {
        let mut table = Table::new(&["A", "LONG"], true);
        table.row(vec!["aaa".to_owned(), "x".to_owned()], Tone::Bad);
        assert_eq!(table.to_string(), "A    LONG\n\x1b[1;31maaa  x\x1b[0m\n");
        table.colours = false;
        assert_eq!(table.to_string(), "A    LONG\naaa  x\n");
    }

    #[test]
    fn what_does_not_fit_a_narrow_window_is_left_out_and_named() {
        let table = || {
            let mut table = Table::new(&["NAME", "STATE", "P50", "P99"], false);
            table.row(["a:1", "up", "1ms", "22ms"].map(str::to_owned).into(), Tone::Plain);
            table
        };
        let whole = "NAME  STATE  P50  P99\na:1   up     1ms  22ms\n";
        for columns in [None, Some(22)] {
            assert_eq!(table().within(columns, &["P50", "P99"]).to_string(), whole, "{columns:?}");
        }
        let text = table().within(Some(21), &["P50", "P99"]).to_string();
        assert_eq!(text, "NAME  STATE  P99\na:1   up     22ms\n(left out: P50; a wider window shows it)\n");
        let text = table().within(Some(3), &["P50", "P99"]).to_string();
        assert_eq!(text, "NAME  STATE\na:1   up\n(left out: P50, P99; a wider window shows it)\n");
    }

    #[test]
    fn many_names_take_several_lines() {
        let names: Vec<String> = (1..5).map(|number| format!("c{number}")).collect();
        assert_eq!(wrapped("HEAD", &names, 12), "HEAD c1 c2\n     c3 c4\n");
    }

    #[test]
    fn a_screen_that_is_too_long_ends_with_how_much_more_there_is() {
        let text = "one\ntwo\n\x1b[1;31mthree\x1b[0m\nfour\nfive\n";
        assert_eq!(fitted(text, (80, 6)), text);
        let cut = fitted(text, (80, 5));
        assert_eq!(cut, "one\ntwo\n\x1b[1;31mthree\x1b[0m\n... 2 more lines: a higher window shows them\n");
        assert_eq!(
            fitted(text, (3, 5)),
            "one\ntwo\n... 3 more lines: a higher window shows them\n",
            "lines are broken"
        );
        assert_eq!(seen_width("\x1b[1;31mthree\x1b[0m and"), 9);
    }
}
