//! The commands with a word of their own behind the program's name, `resilver status` and its like:
//! how clap knows each, and how it is run.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Command, CommandFactory as _};

use crate::console::command::print;
use crate::manual::{CompletionsArgs, ManualArgs, completions, manual};
use crate::{ask, check_config, key, status, top, wait};

/// One of them; it is run by arguments of which the first is its name.
struct Alone {
    word: &'static str,
    command: fn() -> Command,
    run: fn(Arguments) -> ExitCode,
}

type Arguments = Vec<OsString>;

/// All but those of [`ask`].
const ALONE: [Alone; 7] = [
    Alone { word: "status", command: status::StatusArgs::command, run: status::main },
    Alone { word: "top", command: top::TopArgs::command, run: top::main },
    Alone { word: "key", command: key::KeyArgs::command, run: key::main },
    Alone { word: "wait", command: wait::WaitArgs::command, run: wait::main },
    Alone { word: "check-config", command: check_config::CheckArgs::command, run: check_config::main },
    Alone { word: "completions", command: CompletionsArgs::command, run: |arguments| completions(arguments, all()) },
    Alone { word: "manual", command: ManualArgs::command, run: |arguments| manual(arguments, all()) },
];

/// Runs the command whose word stands behind the program's name, if one does: none of magent's
/// flags is a bare word, so they are read as ever. `wrong`: the exit code for a word that is none.
pub fn run(mut arguments: Vec<OsString>, wrong: u8) -> Option<ExitCode> {
    let word = arguments.get(1)?.to_str()?;
    if ask::WORDS.contains(&word) {
        return Some(ask::main(arguments));
    }
    let Some(alone) = ALONE.iter().find(|alone| alone.word == word) else {
        let why = unknown(word)?;
        let _ = writeln!(std::io::stderr(), "resilver: {why}");
        return Some(ExitCode::from(wrong));
    };
    arguments.remove(0);
    Some((alone.run)(arguments))
}

/// What is said of a word that is no command, in place of what the daemon lacks; `None`: it is an
/// option.
fn unknown(word: &str) -> Option<String> {
    if word.is_empty() || word.starts_with('-') {
        return None;
    }
    let words: Vec<&str> = ALONE.iter().map(|alone| alone.word).chain(ask::WORDS).collect();
    Some(format!(
        "{:?}: there is no such command; the commands are {}; resilver --help tells of them, and of all options",
        word.chars().take(WORD_MAX).collect::<String>(),
        words.join(", ")
    ))
}

/// As much of a word as is shown.
const WORD_MAX: usize = 64;

/// What the daemon is asked to print in place of running: its help, or its version.
///
/// # Errors
///
/// It cannot be written, in words; a reader that has gone is none.
pub fn print_text(text: &str) -> Result<(), String> {
    print(text).map(drop)
}

/// Each command with a word of its own, by that.
pub(crate) fn all() -> Vec<Command> {
    let named = |alone: &Alone| (alone.command)().name(alone.word).bin_name(format!("resilver {}", alone.word));
    ALONE.iter().map(named).chain(ask::commands()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_there_once() {
        let mut names: Vec<String> = all().iter().map(|command| command.get_name().to_owned()).collect();
        names.sort_unstable();
        let mut words: Vec<&str> = ask::WORDS.to_vec();
        words.extend(ALONE.iter().map(|alone| alone.word));
        words.sort_unstable();
        assert_eq!(names, words);
    }

    #[test]
    fn options_are_left_to_the_daemon_and_a_word_that_is_no_command_is_named() {
        for line in ["resilver", "resilver -s a:1", "resilver --config status", "resilver ", "resilver - x"] {
            assert!(run(line.split(' ').map(OsString::from).collect(), 64).is_none(), "{line}");
        }
        let said = unknown("statuses").expect("no command");
        assert!(
            said.starts_with("\"statuses\": there is no such command; ") && said.contains(" check-config, "),
            "{said}"
        );
        assert!(unknown(&"x".repeat(10_000)).is_some_and(|said| said.len() < 500));
        let code = run(["resilver", "help"].map(OsString::from).to_vec(), 64);
        assert_eq!(format!("{code:?}"), format!("{:?}", Some(ExitCode::from(64))));
    }
}
