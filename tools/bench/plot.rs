//! Bars as SVG, made from the results.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;

use crate::results::{Cell, Results, quantile};

const WIDTH: f64 = 820.0;
/// Room for the names.
const LEFT: f64 = 220.0;
/// Room for the figure behind the longest bar.
const RIGHT: f64 = 70.0;
const BAR: f64 = 13.0;
const HEAD: f64 = 30.0;
/// By the system's place; grey are the floor and the server without a proxy, the first two after
/// them are ours.
const COLOURS: [&str; 9] =
    ["#d0d0d0", "#9e9e9e", "#0b6e4f", "#6bbf8a", "#c8553d", "#4d6cb3", "#9fb3dd", "#b08900", "#7d4f9e"];

/// Bars that belong together.
struct Group {
    name: String,
    /// Which system, and its figure.
    bars: Vec<(usize, f64)>,
}

/// Writes all plots into a directory.
pub(crate) fn write_all(directory: &Path, results: &Results) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut systems: Vec<String> = Vec::new();
    let of_rows = results.rows.iter().map(|row| &row.system);
    let of_scale = results.scale.iter().map(|one| &one.system);
    for name in of_rows.chain(of_scale).chain(results.fail_over.iter().map(|one| &one.system)) {
        if !systems.contains(name) {
            systems.push(name.clone());
        }
    }
    let place = |system: &str| systems.iter().position(|name| name == system).unwrap_or(0);
    let rows = |of: fn(&Cell) -> f64| {
        grouped(results.rows.iter().map(|row| (row.row.clone(), place(&row.system), of(&row.median))))
    };
    let cost = results.scale.iter().filter_map(|one| Some((one, one.clients?)));
    let memory = grouped(
        cost.filter(|(one, _)| one.count >= 1000)
            .map(|(one, cost)| (format!("{} clients", one.count), place(&one.system), cost.idle_bytes)),
    );
    let nodes = grouped(
        results
            .scale
            .iter()
            .filter(|one| one.scale == "nodes")
            .map(|one| (format!("{} nodes", one.count), place(&one.system), one.cell.cpu_us_per_request)),
    );
    let faults = grouped(results.fail_over.iter().map(|one| {
        let longest = one.rounds.iter().map(|round| round.longest_ms).collect();
        (format!("primary: {}", one.fault), place(&one.system), quantile(longest, 0.5))
    }));
    for (file, title, groups) in [
        ("cpu", "CPU of the proxy, µs per request (less is better)", rows(|c| c.cpu_us_per_request)),
        ("p99", "p99, µs (less is better)", rows(|c| c.p99_us)),
        ("speed", "thousand requests/s (more is better)", rows(|c| c.requests_per_second / 1e3)),
        ("fail-over", "longest request, ms (less is better)", faults),
        ("nodes", "CPU of the proxy by number of servers, µs per request", nodes),
        ("memory", "memory of an idle client, bytes", memory),
    ] {
        if !groups.is_empty() {
            fs::write(directory.join(format!("{file}.svg")), chart(title, &systems, &groups))?;
        }
    }
    Ok(())
}

fn grouped(bars: impl Iterator<Item = (String, usize, f64)>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (name, system, value) in bars {
        match groups.iter_mut().find(|group| group.name == name) {
            Some(group) => group.bars.push((system, value)),
            None => groups.push(Group { name, bars: vec![(system, value)] }),
        }
    }
    groups
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn chart(title: &str, systems: &[String], groups: &[Group]) -> String {
    let bars = || groups.iter().flat_map(|group| &group.bars);
    let most = bars().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let shown: Vec<usize> = (0..systems.len()).filter(|index| bars().any(|(system, _)| system == index)).collect();
    let legend = (shown.len().div_ceil(3) as f64) * 18.0;
    let height = HEAD + legend + groups.iter().map(|group| group.bars.len() as f64 * BAR + 12.0).sum::<f64>() + 8.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"8\" y=\"19\" font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    let colour = |system: usize| COLOURS[system % COLOURS.len()];
    for (place, system) in shown.iter().enumerate() {
        let (x, y) = (8.0 + (place % 3) as f64 * 265.0, HEAD + (place / 3) as f64 * 18.0);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"11\" height=\"11\" fill=\"{}\"/><text x=\"{}\" y=\"{}\">{}</text>",
            colour(*system),
            x + 16.0,
            y + 10.0,
            escaped(&systems[*system])
        );
    }
    let mut y = HEAD + legend + 8.0;
    for group in groups {
        let middle = y + group.bars.len() as f64 * BAR / 2.0 + 4.0;
        let (x, name) = (LEFT - 8.0, escaped(&group.name));
        let _ = writeln!(out, "<text x=\"{x}\" y=\"{middle}\" text-anchor=\"end\">{name}</text>");
        for (system, value) in &group.bars {
            let width = (WIDTH - LEFT - RIGHT) * value / most;
            let digits = if most < 100.0 { 2 } else { 0 };
            let _ = writeln!(
                out,
                "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{}\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\" font-size=\"10\">{value:.digits$}</text>",
                BAR - 2.0,
                colour(*system),
                LEFT + width + 4.0,
                y + 10.0,
            );
            y += BAR;
        }
        y += 12.0;
    }
    out.push_str("</svg>\n");
    out
}
