//! What is printed: plain lines, and on a terminal moving figures under them.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

/// Whether the story is told, and Ctrl-C is the normal end.
static OVER: AtomicBool = AtomicBool::new(false);

/// The story is told.
pub(crate) fn set_over() {
    OVER.store(true, Ordering::Relaxed);
}

/// See [`set_over`].
pub(crate) fn is_over() -> bool {
    OVER.load(Ordering::Relaxed)
}

/// A number with its thousands apart.
pub(crate) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So long people are given to read a screen.
const READ: Duration = Duration::from_secs(2);

/// The word that `resilver status` begins with, in the colour that it has there.
const WORDS: [(&str, u8); 5] =
    [("MIRRORED", 32), ("INCOMPLETE", 33), ("RECOVERING", 33), ("DEGRADED", 33), ("DARK", 31)];

/// A line of `resilver status` with its word or sign in colour, as on a terminal.
fn tinted(line: &str) -> String {
    let word = line.split(' ').next().unwrap_or_default();
    let signs = [("!", 33), ("X", 31)];
    match WORDS.iter().chain(&signs).find(|(known, _)| *known == word) {
        Some((_, colour)) => format!("\x1b[1;{colour}m{word}\x1b[0m{}", &line[word.len()..]),
        None => line.to_owned(),
    }
}

/// The screen, or the file that it goes to.
pub(crate) struct Show {
    terminal: bool,
    colours: bool,
}

impl Show {
    pub(crate) fn new() -> Show {
        let terminal = std::io::stdout().is_terminal();
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        Show { terminal, colours: terminal && !unwanted }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// A headline.
    pub(crate) fn act(&self, headline: &str) {
        if self.colours {
            println!("\n\x1b[1m{headline}\x1b[0m");
        } else {
            println!("\n{headline}");
        }
    }

    /// A line under it.
    pub(crate) fn say(&self, line: &str) {
        println!("  {line}");
    }

    /// A command, and what it printed.
    pub(crate) fn typed(&self, command: &str, printed: &str) {
        println!("  $ {command}");
        for line in printed.lines() {
            if self.colours { println!("  {}", tinted(line)) } else { println!("  {line}") }
        }
    }

    /// Time to read what was printed; none where there is no terminal.
    pub(crate) fn pause(&self) {
        if self.terminal {
            std::thread::sleep(READ);
        }
    }

    /// A progress bar; nothing where there is no terminal.
    pub(crate) fn bar(&self, length: u64, unit: &str) -> ProgressBar {
        if !self.terminal {
            return ProgressBar::hidden();
        }
        let template = format!("  {{bar:40}} {{human_pos}}/{{human_len}} {unit} {{rate}} {{msg}}");
        let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
        // (The one that is there has four decimals.)
        let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{}/s", number(state.per_sec() as u64));
        };
        ProgressBar::new(length).with_style(style.with_key("rate", rate))
    }

    /// A line that changes; nothing where there is no terminal.
    pub(crate) fn spinner(&self) -> ProgressBar {
        if !self.terminal {
            return ProgressBar::hidden();
        }
        let style =
            ProgressStyle::with_template("  {spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let spinner = ProgressBar::new_spinner().with_style(style);
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }
}
