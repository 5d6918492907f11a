//! `resilver status`: what a running proxy knows, on one screen, as `zpool status` shows it: one
//! word, why, what to do, and then only what is not as it should be.
//!
//! It asks for the statistics that anybody may ask for (`stats resync`, `stats`, `stats servers`)
//! and adds nothing that they do not say.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::Value;

use crate::console::command::{Reader, complain, failed, print, run};
use crate::console::proxy::{Looked, ProxyArg};
use crate::console::table::{Terminal, Tone};
use crate::report::traffic::Traffic;
use crate::report::verdict::Word;

mod check;
mod pools;
mod screen;

use screen::{Look, Screen};

/// The proxy cannot be asked. clap ends with 2 where arguments are wrong, which a monitor takes for
/// critical: so they end with this too.
const EXIT_UNKNOWN: u8 = 3;

/// The arguments of `resilver status`.
#[derive(Parser, Debug)]
#[command(
    name = "resilver status",
    bin_name = "resilver status",
    about = "Shows whether every item has two copies, and if not, why and what to do.",
    after_help = "Of a proxy with several pools, asked on its admin socket, all are shown; the worst decides the exit code.\n\n\
                  For example:\n  resilver status\n  resilver status --watch --proxy /run/resilver.sock\n  \
                  resilver status --json | jq .word\n  resilver status --check\n\n\
                  Exit codes, as in Nagios: 0 mirrored; 1 some items have one copy, or may have; 2 some keys are \
                  refused; 3 the proxy does not answer, or wrong arguments.",
    max_term_width = 120
)]
pub struct StatusArgs {
    #[command(flatten)]
    at: ProxyArg,

    /// Refresh every TIME (1s) until interrupted, with rates
    #[arg(
        long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "1s",
        value_parser = crate::console::proxy::pause, conflicts_with = "json"
    )]
    watch: Option<Duration>,

    /// Print it as JSON (docs/reference.md lists its fields)
    #[arg(long)]
    json: bool,

    /// Print one line for Nagios and similar monitors, with figures
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    check: bool,

    /// Also show the pairs that are mirrored, and every server
    #[arg(long)]
    all: bool,
}

/// Runs `resilver status`; `arguments` begins with the program's name as shown in messages.
pub(crate) fn main(arguments: Vec<std::ffi::OsString>) -> ExitCode {
    run(arguments, EXIT_UNKNOWN, show)
}

fn show(args: StatusArgs) -> ExitCode {
    if args.check {
        return check::main(args.at.look(true));
    }
    let mut before: HashMap<String, Traffic> = HashMap::new();
    loop {
        let asked = args.at.look(true);
        // Its window may have been made larger or smaller.
        let terminal = Terminal::stdout();
        let look = Look { colours: terminal.colours, all: args.all, columns: terminal.columns() };
        let text = match asked.as_deref() {
            Ok(all) if args.json => format!("{:#}\n", json(all)),
            Ok(all) => screens(&args, all, &before, look),
            // What was shown before is not left standing as if it were still so.
            Err(why) if args.watch.is_some() => {
                format!("{}  what was shown last is out of date\n! {why}\n", Tone::Bad.paint("UNKNOWN", look.colours))
            }
            Err(why) => {
                complain("status", why);
                String::new()
            }
        };
        let (begin, text) = match args.watch {
            Some(_) => (terminal.begin(), terminal.fitted(&text)),
            None => ("", text),
        };
        let code = asked.as_deref().ok().and_then(pools::word).map_or(EXIT_UNKNOWN, Word::exit_code);
        match (print(&format!("{begin}{text}")), args.watch) {
            (Ok(Reader::There), Some(pause)) => std::thread::sleep(pause),
            (Ok(_), _) => return ExitCode::from(code),
            (Err(why), _) => return failed("status", why, EXIT_UNKNOWN),
        }
        for Looked { at, said } in asked.into_iter().flatten() {
            before.extend(said.ok().map(|(_, traffic)| (at.name(), traffic)));
        }
    }
}

fn json(all: &[Looked]) -> Value {
    match all {
        [Looked { said: Ok((seen, _)), .. }] => seen.json(),
        all => pools::json(all),
    }
}

/// The screens of all pools, below a line for each where there are several.
fn screens(args: &StatusArgs, all: &[Looked], before: &HashMap<String, Traffic>, look: Look) -> String {
    let mut text = if all.len() == 1 { String::new() } else { pools::lines(all, &args.at.name(), look) };
    for looked in all.iter().filter(|looked| pools::is_told(looked, all, look)) {
        let Looked { at, said: Ok((seen, traffic)) } = looked else { continue };
        let (proxy, again) = (at.name(), at.again());
        let since = before.get(&proxy).map(|before| traffic.since(before));
        let gap = if text.is_empty() { "" } else { "\n" };
        let screen = Screen { seen, traffic, since: since.as_ref(), proxy: &proxy, again: &again, look };
        let _ = write!(text, "{gap}{screen}");
    }
    text
}
