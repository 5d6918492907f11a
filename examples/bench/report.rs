//! Medians, ratios, the table, and the same as JSON.

use std::fmt::Write;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) requests_per_second: f64,
    pub(crate) cpu_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) memory_mib: f64,
}

type Column = (&'static str, fn(&Cell) -> f64);

const COLUMNS: [Column; 6] = [
    ("requests_per_second", |c| c.requests_per_second),
    ("cpu_us_per_request", |c| c.cpu_us),
    ("p50_us", |c| c.p50_us),
    ("p99_us", |c| c.p99_us),
    ("p999_us", |c| c.p999_us),
    ("memory_mib", |c| c.memory_mib),
];

/// All of them.
pub(crate) struct Report {
    systems: Vec<(String, bool)>,
    /// By row, system, round.
    rows: Vec<(String, Vec<Vec<Cell>>)>,
}

impl Report {
    pub(crate) fn new(systems: Vec<(String, bool)>) -> Report {
        Report { systems, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, row: &str, system: usize, cell: Cell) {
        if !self.rows.iter().any(|(name, _)| name == row) {
            self.rows.push((row.to_owned(), vec![Vec::new(); self.systems.len()]));
        }
        if let Some((_, cells)) = self.rows.iter_mut().find(|(name, _)| name == row) {
            cells[system].push(cell);
        }
    }

    /// As Markdown. The ratio is to twemproxy's CPU in the same row.
    pub(crate) fn table(&self) -> String {
        let mut out = String::from(
            "| row | system | requests/s | CPU µs/request | of twemproxy | p50 µs | p99 µs | p99.9 µs | memory MiB |\n|---|---|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        for (row, systems) in &self.rows {
            let twemproxy = self.systems.iter().position(|(name, _)| name == "twemproxy");
            let base = twemproxy.map(|index| median(&systems[index], |c| c.cpu_us));
            for ((name, _), cells) in self.systems.iter().zip(systems) {
                let [rps, cpu, p50, p99, p999, memory] = COLUMNS.map(|(_, of)| median(cells, of));
                let ratio = base.map_or("–".to_owned(), |base| format!("{:.2}", cpu / base));
                // Writing to a string cannot fail.
                let _ = writeln!(
                    out,
                    "| {row} | {name} | {rps:.0} | {cpu:.2} | {ratio} | {p50:.0} | {p99:.0} | {p999:.0} | {memory:.1} |"
                );
            }
        }
        out
    }

    /// Row → system → column → median, and the spread of the CPU over the rounds.
    pub(crate) fn json(&self) -> String {
        let mut out = String::from("{\n");
        for (r, (row, systems)) in self.rows.iter().enumerate() {
            let _ = writeln!(out, "  {row:?}: {{");
            for (s, ((name, two_copies), cells)) in self.systems.iter().zip(systems).enumerate() {
                let _ = write!(out, "    {name:?}: {{\"two_copies\": {two_copies}, \"rounds\": {}", cells.len());
                for (column, of) in COLUMNS {
                    let _ = write!(out, ", {column:?}: {:.3}", median(cells, of));
                }
                let (least, most) =
                    cells.iter().fold((f64::MAX, 0.0_f64), |(l, m), c| (l.min(c.cpu_us), m.max(c.cpu_us)));
                let comma = if s + 1 < systems.len() { "," } else { "" };
                let _ = writeln!(out, ", \"cpu_us_least\": {least:.3}, \"cpu_us_most\": {most:.3}}}{comma}");
            }
            let _ = writeln!(out, "  }}{}", if r + 1 < self.rows.len() { "," } else { "" });
        }
        out.push_str("}\n");
        out
    }
}

fn median(cells: &[Cell], of: fn(&Cell) -> f64) -> f64 {
    let mut values: Vec<f64> = cells.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
