//! `resilver top`: what a running proxy is asked just now, by command and by server, and how long
//! that takes.
//!
//! It asks for the statistics that anybody may ask for, again and again: what was counted between
//! two looks is a rate.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::console::command::{EXIT_USAGE, Reader, complain, failed, print, run};
use crate::console::proxy::{Looked, ProxyArg};
use crate::console::signs;
use crate::console::table::Terminal;
use crate::report::traffic::Traffic;

mod screen;

use screen::Screen;

/// The proxy cannot be asked.
const EXIT_FAILED: u8 = 1;

/// The arguments of `resilver top`.
#[derive(Parser, Debug)]
#[command(
    name = "resilver top",
    bin_name = "resilver top",
    about = "Shows requests a second and latency of a running proxy, by command and by server.",
    after_help = "For example:\n  resilver top\n  resilver top --every 5s --batch >> top.log\n  resilver top --once\n\n\
                  Exit codes: 0 shown; 1 the proxy does not answer; 2 wrong arguments.",
    max_term_width = 120
)]
pub struct TopArgs {
    #[command(flatten)]
    at: ProxyArg,

    /// Time between two refreshes
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = crate::console::proxy::pause)]
    every: Duration,

    /// Print one screen, over one such time, and exit
    #[arg(long)]
    once: bool,

    /// Print one screen below the other, as it does when the output is not a terminal
    #[arg(long)]
    batch: bool,
}

/// Runs `resilver top`; `arguments` begins with the program's name as shown in messages.
pub(crate) fn main(arguments: Vec<std::ffi::OsString>) -> ExitCode {
    run(arguments, EXIT_USAGE, look_again_and_again)
}

fn look_again_and_again(args: TopArgs) -> ExitCode {
    let mut before: HashMap<String, Traffic> = HashMap::new();
    loop {
        let asked = args.at.look(false);
        // Its window may have been made larger or smaller.
        let terminal = Terminal::stdout();
        let colours = terminal.colours && !args.batch;
        let columns = terminal.columns().filter(|_| !args.batch);
        let text = match &asked {
            // The first look has nothing to compare with.
            Ok(all) => (!before.is_empty()).then(|| screens(all, &before, (colours, columns))),
            Err(why) => {
                complain("top", why);
                // Whoever looks on waits for it to come back, but for its first answer.
                if args.once || before.is_empty() {
                    return ExitCode::from(EXIT_FAILED);
                }
                None
            }
        };
        if let Some(text) = text {
            let screen = match args.batch || args.once || !terminal.clears {
                true => text + if args.once { "" } else { "\n" },
                false => format!("{}{}", terminal.begin(), terminal.fitted(&text)),
            };
            match print(&screen) {
                Ok(Reader::There) if !args.once => {}
                Ok(_) => return ExitCode::SUCCESS,
                Err(why) => return failed("top", why, EXIT_FAILED),
            }
        }
        for Looked { at, said } in asked.into_iter().flatten() {
            before.extend(said.ok().map(|(_, now)| (at.name(), now)));
        }
        std::thread::sleep(args.every);
    }
}

/// One for each pool, below each other.
fn screens(all: &[Looked], before: &HashMap<String, Traffic>, (colours, columns): (bool, Option<usize>)) -> String {
    let of = |Looked { at, said }: &Looked| {
        let proxy = at.name();
        match said {
            Ok((seen, now)) => {
                let since = now.since(before.get(&proxy)?);
                Some(Screen { seen, since: &since, proxy: &proxy, colours, columns }.to_string())
            }
            Err(why) => Some(format!("resilver {proxy}  {}\n! {why}\n", signs::of_all(None).paint("UNKNOWN", colours))),
        }
    };
    all.iter().filter_map(of).collect::<Vec<_>>().join("\n")
}
