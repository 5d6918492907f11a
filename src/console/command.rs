//! How a command for a terminal begins, what it prints, and how it ends where it cannot go on.

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{Error, ErrorKind, Write as _};
use std::process::ExitCode;

use clap::Parser;

/// Wrong arguments. clap ends with the same number.
pub(crate) const EXIT_USAGE: u8 = 2;

/// What was to be printed cannot be.
pub(crate) const EXIT_UNWRITTEN: u8 = 1;

/// Goes on with the arguments. Where they are wrong it says so, and ends with `wrong`.
pub(crate) fn run<A: Parser>(
    arguments: impl IntoIterator<Item = OsString>,
    wrong: u8,
    go_on: impl FnOnce(A) -> ExitCode,
) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let typed = arguments.get(1).map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    // One definition may serve several commands: the typed word tells which.
    let named = A::command().get_bin_name().and_then(|name| name.strip_prefix("resilver ")).map(str::to_owned);
    let command = named.unwrap_or(typed);
    match A::try_parse_from(arguments) {
        Ok(args) => go_on(args),
        Err(error) if error.use_stderr() => {
            // As all other complaints.
            let text = error.render().to_string();
            complain(&command, text.trim_end().trim_start_matches("error: "));
            ExitCode::from(wrong)
        }
        // Help was asked for, and is on stdout.
        Err(error) => match error.print().or_else(|error| unwritten(&error)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => failed(&command, why, EXIT_UNWRITTEN),
        },
    }
}

/// What a command complains of, on stderr.
pub(crate) fn complain(command: &str, why: impl Display) {
    let _ = writeln!(std::io::stderr(), "resilver {command}: {why}");
}

/// The same for one that ends with it.
pub(crate) fn failed(command: &str, why: impl Display, code: u8) -> ExitCode {
    complain(command, why);
    ExitCode::from(code)
}

/// What it says is on stdout, or why it is not.
pub(crate) fn print(text: &str) -> Result<Reader, String> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) => unwritten(&error).map(|()| Reader::Gone),
    }
}

/// Whoever reads stdout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reader {
    There,
    Gone,
}

/// `resilver stats | head -1` closes the pipe, and that is no error.
pub(crate) fn unwritten(error: &Error) -> Result<(), String> {
    if error.kind() == ErrorKind::BrokenPipe { Ok(()) } else { Err(format!("cannot write the answer: {error}")) }
}
