//! `resilver completions SHELL` and `resilver manual FOLDER`: what shells complete, and the pages
//! of the manual, made from the definitions that the commands themselves are parsed by.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, Command, Parser, ValueEnum, ValueHint};
use clap_complete::aot;
use clap_mangen::Man;

use crate::config;
use crate::console::command::{EXIT_USAGE, failed, print, run};

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

/// Runs `resilver completions`; `arguments` begins with the program's name as shown in messages,
/// `commands` are all that have a word of their own.
pub(crate) fn completions(arguments: Vec<OsString>, commands: Vec<Command>) -> ExitCode {
    run(arguments, EXIT_USAGE, |CompletionsArgs { shell }| {
        let (mut text, mut whole) = (Vec::new(), completable(whole(commands)));
        match shell {
            Shell::Bash => aot::generate(aot::Bash, &mut whole, "resilver", &mut text),
            Shell::Zsh => aot::generate(aot::Zsh, &mut whole, "resilver", &mut text),
            Shell::Fish => {
                aot::generate(aot::Fish, &mut whole, "resilver", &mut text);
                text = of_fish(&String::from_utf8_lossy(&text), &whole).into_bytes();
            }
        }
        ended("completions", print(&String::from_utf8_lossy(&text)).map(drop))
    })
}

/// The parser takes every value as text, to report all that is wrong together. Here its name says
/// what it may be: a file, a user, or one of the words of which the name consists. No file is
/// suggested for anything else.
fn completable(command: Command) -> Command {
    command.mut_args(with_values).mut_subcommands(completable)
}

fn with_values(argument: Arg) -> Arg {
    let name = argument.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let Some(name) = name.filter(|_| argument.get_action().takes_values()) else { return argument };
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    if !argument.get_possible_values().is_empty() {
        return argument;
    }
    if name.contains('|') && name.split('|').all(is_word) {
        return argument.value_parser(PossibleValuesParser::new(name.split('|').map(str::to_owned)));
    }
    argument.value_hint(match name.as_str() {
        "FOLDER" => ValueHint::DirPath,
        "USER" => ValueHint::Username,
        _ if name.split('|').any(|part| matches!(part, "PATH" | "FILE")) => ValueHint::AnyPath,
        _ => ValueHint::Other,
    })
}

/// What fish's generator leaves out. A line that ends with an option whose value is still to come
/// is no good one for it: it is read without that option. And the words that stand for themselves
/// have no line (bash and zsh of `resilver completions`).
fn of_fish(script: &str, whole: &Command) -> String {
    let parsed = "argparse -s (__fish_resilver_global_optspecs) -- $cmd";
    let judged = |words: &str| format!("    {words} 2>/dev/null\n");
    let more = judged(parsed) + &judged(&format!("or {parsed}[1..-2]"));
    let of = |command: &Command| {
        let values = command.get_positionals().flat_map(Arg::get_possible_values);
        let words: Vec<String> = values.map(|value| value.get_name().to_owned()).collect();
        let (name, words) = (command.get_name(), words.join(" "));
        let is = format!("__fish_resilver_using_subcommand {name}");
        (!words.is_empty()).then(|| format!("complete -c resilver -n \"{is}\" -f -a \"{words}\"\n"))
    };
    script.replacen(&judged(parsed), &more, 1) + &whole.get_subcommands().filter_map(of).collect::<String>()
}

/// Runs `resilver manual`, likewise.
pub(crate) fn manual(arguments: Vec<OsString>, commands: Vec<Command>) -> ExitCode {
    run(arguments, EXIT_USAGE, |ManualArgs { folder }| ended("manual", write(&folder, commands)))
}

fn ended(command: &str, outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => failed(command, why, EXIT_FAILED),
    }
}

/// The daemon, with the commands as its own.
fn whole(commands: Vec<Command>) -> Command {
    config::command().disable_help_subcommand(true).subcommands(commands)
}

fn write(folder: &Path, commands: Vec<Command>) -> Result<(), String> {
    page(folder, "resilver", whole(commands.clone()))?;
    for command in commands {
        let name = format!("resilver-{}", command.get_name());
        // A page has a name of one word (`resilver-wait`), and shows the command as it is typed.
        let shown = command.get_bin_name().unwrap_or_default().to_owned();
        page(folder, &name, command.name(name.clone()).bin_name(shown))?;
    }
    Ok(())
}

fn page(folder: &Path, name: &str, command: Command) -> Result<(), String> {
    let mut text = Vec::new();
    // Writing to memory does not fail.
    Man::new(command).render(&mut text).map_err(|error| error.to_string())?;
    let path = folder.join(format!("{name}.1"));
    std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clap_finds_wrong_with_the_whole_is_found_here() {
        whole(crate::commands::all()).debug_assert();
    }
}
