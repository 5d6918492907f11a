//! `resilver completions SHELL` and `resilver manual FOLDER`: what shells complete, and the pages
//! of the manual, made from the definitions that the commands themselves are parsed by.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Command, CommandFactory as _, Parser, ValueEnum};
use clap_complete::aot;
use clap_mangen::Man;

use crate::console::command::{EXIT_USAGE, failed, print, run};
use crate::{ask, check_config, config, key, status, top, wait};

/// It could not be written.
const EXIT_FAILED: u8 = 1;

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The arguments of `resilver completions`.
#[derive(Parser, Debug)]
#[command(
    name = "resilver completions",
    bin_name = "resilver completions",
    about = "Prints the completion script of a shell for resilver's commands and options.",
    after_help = "For example:\n  resilver completions bash > /usr/share/bash-completion/completions/resilver\n  \
                  resilver completions zsh > /usr/share/zsh/vendor-completions/_resilver\n  \
                  resilver completions fish > /usr/share/fish/vendor_completions.d/resilver.fish\n\n\
                  Exit codes: 0 printed; 1 the output cannot be written; 2 wrong arguments.",
    max_term_width = 120
)]
pub struct CompletionsArgs {
    #[arg(value_enum)]
    shell: Shell,
}

/// The arguments of `resilver manual`.
#[derive(Parser, Debug)]
#[command(
    name = "resilver manual",
    bin_name = "resilver manual",
    about = "Writes the manual pages to a folder: resilver.1, and one for each command.",
    after_help = "For example:\n  resilver manual /usr/local/share/man/man1\n\n\
                  Exit codes: 0 written; 1 the pages cannot be written; 2 wrong arguments.",
    max_term_width = 120
)]
pub struct ManualArgs {
    /// An existing folder
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Runs `resilver completions`; `arguments` begins with the program's name as shown in messages.
fn completions(arguments: Arguments) -> ExitCode {
    run(arguments, EXIT_USAGE, |CompletionsArgs { shell }| {
        let mut text = Vec::new();
        match shell {
            Shell::Bash => aot::generate(aot::Bash, &mut whole(), "resilver", &mut text),
            Shell::Zsh => aot::generate(aot::Zsh, &mut whole(), "resilver", &mut text),
            Shell::Fish => aot::generate(aot::Fish, &mut whole(), "resilver", &mut text),
        }
        ended("completions", print(&String::from_utf8_lossy(&text)).map(drop))
    })
}

/// Runs `resilver manual`, likewise.
fn manual(arguments: Arguments) -> ExitCode {
    run(arguments, EXIT_USAGE, |ManualArgs { folder }| ended("manual", write(&folder)))
}

fn ended(command: &str, outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(command, why, EXIT_FAILED),
    }
}

/// A command with a word of its own: how clap knows it, and how it is run, by arguments of which
/// the first is its name.
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
    Alone { word: "completions", command: CompletionsArgs::command, run: completions },
    Alone { word: "manual", command: ManualArgs::command, run: manual },
];

/// Runs the command whose word stands behind the program's name, if one does: none of magent's
/// flags is a bare word, so they are read as ever.
pub fn run_command(mut arguments: Vec<OsString>) -> Option<ExitCode> {
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
fn commands() -> Vec<Command> {
    let named = |alone: &Alone| (alone.command)().name(alone.word).bin_name(format!("resilver {}", alone.word));
    ALONE.iter().map(named).chain(ask::commands()).collect()
}

/// The daemon, with the commands as its own.
fn whole() -> Command {
    config::command().disable_help_subcommand(true).subcommands(commands())
}

fn write(folder: &Path) -> Result<(), String> {
    page(folder, "resilver", whole())?;
    for command in commands() {
        let name = format!("resilver-{}", command.get_name());
        // (A page is called by one word, and shows how the command is typed.)
        let shown = command.get_bin_name().unwrap_or_default().to_owned();
        page(folder, &name, command.name(name.clone()).bin_name(shown))?;
    }
    Ok(())
}

fn page(folder: &Path, name: &str, command: Command) -> Result<(), String> {
    let mut text = Vec::new();
    // (Writing to memory does not fail.)
    Man::new(command).render(&mut text).map_err(|error| error.to_string())?;
    let path = folder.join(format!("{name}.1"));
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_there_once() {
        let mut names: Vec<String> = commands().iter().map(|command| command.get_name().to_owned()).collect();
        names.sort_unstable();
        let mut words: Vec<&str> = ask::WORDS.to_vec();
        words.extend(ALONE.iter().map(|alone| alone.word));
        words.sort_unstable();
        assert_eq!(names, words);
    }

    #[test]
    fn what_is_no_word_of_a_command_is_left_to_the_daemon() {
        for line in ["resilver", "resilver -s a:1", "resilver --config status", "resilver statuses"] {
            assert!(run_command(line.split(' ').map(OsString::from).collect()).is_none(), "{line}");
        }
    }

    #[test]
    fn what_clap_finds_wrong_with_the_whole_is_found_here() {
        whole().debug_assert();
    }
}
