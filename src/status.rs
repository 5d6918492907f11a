//! `resilver status`: what a running proxy knows, on one screen, as `zpool status` shows it: one
//! word, why, what to do, and then only what is not as it should be.
//!
//! It asks for the statistics that anybody may ask for (`stats resync`, `stats`, `stats servers`)
//! and adds nothing that they do not say.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::report::seen::Seen;
use crate::wait::connection::{Connection, Endpoint};
use crate::wait::{Answer, stats};

mod screen;

use screen::{Look, Screen};

/// The proxy cannot be asked. clap ends with 2 where arguments are wrong, which a monitor takes for
/// critical: so they end with this too.
const EXIT_UNKNOWN: u8 = 3;
/// How long an answer's beginning may take, and the rest of it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// The arguments of `resilver status`.
#[derive(Parser, Debug)]
#[command(
    name = "resilver status",
    bin_name = "resilver status",
    about = "Shows what a running proxy knows: whether every item has two copies, and if not, why and what to do.",
    after_help = "For example:\n  resilver status\n  resilver status --watch --proxy /run/resilver.sock\n  \
                  resilver status --json | jq .word\n\n\
                  Exit codes, as Nagios reads them: 0 mirrored; 1 some items have one copy, or may; 2 some keys are \
                  refused; 3 the proxy cannot be asked, or wrong arguments.",
    max_term_width = 120
)]
pub struct StatusArgs {
    /// The proxy: where it listens, or the path of its unix socket
    #[arg(long, value_name = "HOST:PORT|PATH", default_value = "127.0.0.1:11211")]
    proxy: Endpoint,

    /// Show it again and again, every so often (1s), until interrupted; with rates
    #[arg(
        long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "1s",
        value_parser = crate::config::parse_time, conflicts_with = "json"
    )]
    watch: Option<Duration>,

    /// Print it as JSON (docs/reference.md says what stands in it)
    #[arg(long)]
    json: bool,

    /// Also the pairs that are mirrored
    #[arg(long)]
    all: bool,
}

/// Runs `resilver status`; `arguments` begins with the program's name as shown in messages.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let args = match StatusArgs::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_UNKNOWN } else { 0 });
        }
    };
    let terminal = std::io::stdout().is_terminal();
    let look =
        Look { colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()), all: args.all };
    let mut before = None;
    loop {
        let asked = ask(&args.proxy);
        let text = match &asked {
            Ok(seen) if args.json => format!("{:#}\n", seen.json()),
            Ok(seen) => Screen { seen, before: before.as_ref(), proxy: &args.proxy.to_string(), look }.to_string(),
            Err(why) => {
                let _ = writeln!(std::io::stderr(), "resilver status: {}: {why}", args.proxy);
                String::new()
            }
        };
        // Upper left, and what was there before goes.
        let clear = if terminal && args.watch.is_some() && asked.is_ok() { "\x1b[H\x1b[2J" } else { "" };
        // (A closed pipe is the end of whoever looks, and no error.)
        let written = std::io::stdout().write_all(format!("{clear}{text}").as_bytes());
        let code = asked.as_ref().map_or(EXIT_UNKNOWN, |seen| seen.word().exit_code());
        match args.watch {
            Some(pause) if written.is_ok() => std::thread::sleep(pause),
            _ => return ExitCode::from(code),
        }
        before = asked.ok().or(before);
    }
}

fn ask(proxy: &Endpoint) -> Result<Seen, String> {
    let mut connection = Connection::open(proxy, ANSWER_TIMEOUT).map_err(|error| error.to_string())?;
    let mut answers: [_; 3] = Default::default();
    // (Not `resync status`, which `--operator-commands off` refuses to clients.)
    for (command, answer) in ["stats resync", "stats", "stats servers"].into_iter().zip(&mut answers) {
        match stats(&mut connection, command) {
            Ok(Answer::Stats(stats)) => *answer = stats,
            Ok(Answer::Other(line)) => return Err(format!("is no resilver, or refuses: it answered {line:?}")),
            Err(error) => return Err(error.to_string()),
        }
    }
    Seen::of(answers).ok_or_else(|| "is no resilver: its status has no mode".to_owned())
}
