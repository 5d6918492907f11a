//! A command line cut into options, with all that is none of them noted.

use std::ffi::OsString;
use std::fmt::Write as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, CommandFactory};

use super::Args;

/// Longer than any that somebody reads; a path may have as many.
const WORD_MAX: usize = 256;

/// A command line cut into options.
pub(super) enum Split {
    Print(String),
    /// No matches where what was left could not be read at all; then there is at least one fault.
    /// With what could be read.
    Matches(Option<ArgMatches>, Vec<String>, Vec<OsString>),
}

/// Lets clap cut the command line into options. clap stops at the first one it does not know; that
/// one is noted, taken out, and the rest is tried again.
pub(super) fn split(mut arguments: Vec<OsString>) -> Split {
    let mut faults = Vec::new();
    // Every round takes at least one argument away.
    for _ in 0..=arguments.len() {
        let error = match Args::command().try_get_matches_from(&arguments) {
            Ok(matches) => return Split::Matches(Some(matches), faults, arguments),
            Err(error) => error,
        };
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            return Split::Print(error.render().to_string());
        }
        if let Some(fault) = remove_what_is_no_text(&mut arguments, &error) {
            faults.push(fault);
            continue;
        }
        faults.push(lone_mode(&arguments, &error).unwrap_or_else(|| one_line(&error)));
        if !remove_culprit(&mut arguments, &error) {
            return Split::Matches(None, faults, arguments);
        }
    }
    Split::Matches(None, faults, arguments)
}

/// clap says only that some argument is none. With its option, which would lack its value then.
fn remove_what_is_no_text(arguments: &mut Vec<OsString>, error: &clap::Error) -> Option<String> {
    let at = arguments.iter().position(|argument| argument.to_str().is_none())?;
    if error.kind() != ErrorKind::InvalidUtf8 {
        return None;
    }
    let is_option = |argument: &OsString| argument.to_string_lossy().starts_with('-');
    let from = if at > 1 && !is_option(&arguments[at]) && is_option(&arguments[at - 1]) { at - 1 } else { at };
    let words: Vec<String> = arguments.drain(from..=at).map(|word| word.to_string_lossy().into_owned()).collect();
    Some(format!("{}: is no text (UTF-8)", shortened(&words.join(" "))))
}

/// Takes the argument that clap complains of off the command line; false if it cannot be found
/// there.
fn remove_culprit(arguments: &mut Vec<OsString>, error: &clap::Error) -> bool {
    let Some(ContextValue::String(culprit)) = error.get(ContextKind::InvalidArg) else { return false };
    // For a missing value clap names the option with its placeholder: `--port <PORT>`.
    let culprit = culprit.split(' ').next().unwrap_or(culprit).to_owned();
    let long = culprit.starts_with("--");
    let short = if long { Args::command().get_arguments().find_map(|arg| short_of(arg, &culprit)) } else { None };
    let position = arguments.iter().skip(1).position(|argument| {
        let argument = argument.to_string_lossy();
        argument == culprit
            || (long && argument.strip_prefix(&culprit).is_some_and(|rest| rest.starts_with('=')))
            || short.as_ref().is_some_and(|short| argument == *short)
            // One bad letter in a cluster such as `-Zv` spoils the cluster.
            || (!long && culprit.len() == 2 && argument.starts_with('-') && !argument.starts_with("--")
                && argument.contains(&culprit[1..]))
    });
    let Some(position) = position.map(|position| position + 1) else { return false };
    arguments.remove(position);
    // There are no positional arguments: what follows an unknown option belongs to it.
    if error.kind() == ErrorKind::UnknownArgument && culprit.starts_with('-') {
        while arguments.get(position).is_some_and(|next| !next.to_string_lossy().starts_with('-')) {
            arguments.remove(position);
        }
    }
    true
}

/// `--resync` alone means something, so its mode is not looked for in the next word, which clap
/// then calls unexpected.
fn lone_mode(arguments: &[OsString], error: &clap::Error) -> Option<String> {
    let Some(ContextValue::String(culprit)) = error.get(ContextKind::InvalidArg) else { return None };
    let follows = |pair: &[OsString]| pair[0] == "--resync" && pair[1].to_string_lossy() == culprit.as_str();
    (error.kind() == ErrorKind::UnknownArgument && arguments.windows(2).any(follows))
        .then(|| format!("--resync {culprit}: the mode needs an equals sign; write --resync={culprit}"))
}

/// The short form of the option whose long form is `long`.
fn short_of(arg: &Arg, long: &str) -> Option<String> {
    (arg.get_long().map(|name| format!("--{name}")).as_deref() == Some(long))
        .then(|| arg.get_short().map(|letter| format!("-{letter}")))
        .flatten()
}

/// A word of more than [`WORD_MAX`] characters has its middle left out: what is to be done stands
/// behind it.
pub(super) fn shortened(text: &str) -> String {
    let short = |word: &str| match word.chars().count() {
        0..=WORD_MAX => word.to_owned(),
        all => {
            let begin: String = word.chars().take(WORD_MAX / 2).collect();
            let end: String = word.chars().skip(all - WORD_MAX / 4).collect();
            format!("{begin}...{end} ({all} characters)")
        }
    };
    text.split(' ').map(short).collect::<Vec<_>>().join(" ")
}

/// clap's message without its frame: one line, like all the others.
pub(super) fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut line = String::new();
    for part in text.lines().map(str::trim) {
        if part.starts_with("Usage:") || part.starts_with("For more information") {
            break;
        }
        if !part.is_empty() {
            let separator = if line.is_empty() { "" } else { "; " };
            let _ = write!(line, "{separator}{}", shortened(part.strip_prefix("error: ").unwrap_or(part)));
        }
    }
    line
}
