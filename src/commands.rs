//! The commands with a word of their own behind the program's name, `resilver status` and its like:
//! how clap knows each, and how it is run.

use std::ffi::OsString;
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
/// flags is a bare word, so they are read as ever.
pub fn run(mut arguments: Vec<OsString>) -> Option<ExitCode> {
    let word = arguments.get(1)?.to_str()?;
    if ask::WORDS.contains(&word) {
        return Some(ask::main(arguments));
    }
    let alone = ALONE.iter().find(|alone| alone.word == word)?;
    arguments.remove(0);
    Some((alone.run)(arguments))
}

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
    fn what_is_no_word_of_a_command_is_left_to_the_daemon() {
        for line in ["resilver", "resilver -s a:1", "resilver --config status", "resilver statuses"] {
            assert!(run(line.split(' ').map(OsString::from).collect()).is_none(), "{line}");
        }
    }
}
