//! `resilver ask`: what an operator asks a running proxy, without a telnet or nc at hand, over TCP
//! or a unix socket.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::wait::connection::{Connection, Endpoint};

/// The proxy cannot be reached, or has answered an error.
const EXIT_FAILED: u8 = 1;
/// Wrong arguments. clap ends with the same number.
const EXIT_USAGE: u8 = 2;

/// How long an answer's beginning may take, and the rest of it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const WHOLE_TIMEOUT: Duration = Duration::from_secs(20);

/// What may be asked. Other commands take data, or answer in other forms; they are for clients.
const COMMANDS: [&str; 3] = ["resync", "stats", "version"];
/// More lines than any answer has.
const LINES_MAX: usize = 1 << 20;

/// The arguments of `resilver ask`.
#[derive(Parser, Debug)]
#[command(
    name = "resilver ask",
    bin_name = "resilver ask",
    about = "Asks a running proxy what an operator may ask, and prints the answer.",
    after_help = "For example:\n  resilver ask resync status\n  resilver ask --proxy /run/resilver.sock stats servers\n\n\
                  Exit codes: 0 answered; 1 no answer, or an error, which is on stderr; 2 wrong arguments.",
    max_term_width = 120
)]
pub struct AskArgs {
    /// The proxy: where it listens, or the path of its unix socket
    #[arg(long, value_name = "HOST:PORT|PATH", default_value = "127.0.0.1:11211")]
    proxy: Endpoint,

    /// An operator's command: resync …, stats … or version
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

/// Runs `resilver ask`; `arguments` begins with the program's name as shown in messages.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> ExitCode {
    let args = match AskArgs::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let fail = |code: u8, line: &str| {
        let _ = writeln!(std::io::stderr(), "resilver ask: {line}");
        ExitCode::from(code)
    };
    let command = args.command.join(" ");
    let first = command.split(' ').next().unwrap_or_default();
    if !COMMANDS.contains(&first) || command.contains(['\r', '\n']) {
        return fail(EXIT_USAGE, &format!("{first:?} is no operator's command; ask {}", COMMANDS.join(", ")));
    }
    match ask(&args.proxy, &command) {
        // Not println: `resilver ask stats | head -1` closes the pipe, and that is no error.
        Ok(Ok(lines)) => {
            let _ = std::io::stdout().write_all(lines.as_bytes());
            ExitCode::SUCCESS
        }
        Ok(Err(refusal)) => fail(EXIT_FAILED, &format!("{} answered: {refusal}", args.proxy)),
        Err(error) => fail(EXIT_FAILED, &format!("{}: {error}", args.proxy)),
    }
}

/// The lines of the answer, or the one that refuses.
fn ask(proxy: &Endpoint, command: &str) -> std::io::Result<Result<String, String>> {
    let mut connection = Connection::open(proxy, ANSWER_TIMEOUT)?;
    let mut said = connection.ask(command)?;
    if said.is_error() {
        return Ok(Err(said.line()));
    }
    connection.be_patient(WHOLE_TIMEOUT);
    let mut lines = String::new();
    for _ in 0..LINES_MAX {
        let (line, more) = (said.line(), said.stat().is_some());
        if !said.is_end() {
            lines.push_str(line.strip_prefix("STAT ").unwrap_or(&line));
            lines.push('\n');
        }
        if !more {
            return Ok(Ok(lines));
        }
        said = connection.reply()?;
    }
    Err(std::io::Error::other("an answer without end"))
}
