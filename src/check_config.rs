//! `resilver check-config FILE`: all that is wrong with a file, with its lines.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

use crate::config::{self, CommandLine, Host, Plan, Settings};
use crate::console::command::{EXIT_UNWRITTEN, EXIT_USAGE, failed, print, run};
use crate::report::figures::counted;

/// The file is wrong; the same number as of a daemon that is started with it.
const EXIT_WRONG: u8 = 64;

/// The arguments of `resilver check-config`.
#[derive(Parser, Debug)]
#[command(
    name = "resilver check-config",
    bin_name = "resilver check-config",
    about = "Checks a file of settings as resilver --config FILE would, without starting anything.",
    after_help = "It is checked for this machine and this user: names are looked up, and -u must be permitted. Variables \
                  are ignored.\n\nExit codes: 0 no error; 1 the answer cannot be printed; 64 errors, each on stderr with its line; \
                  2 wrong arguments.",
    max_term_width = 120
)]
pub struct CheckArgs {
    /// The file to check
    #[arg(value_name = "FILE", required_unless_present = "defaults")]
    file: Option<OsString>,

    /// Print a file with every option, what it does, and its default
    #[arg(long, conflicts_with = "file")]
    defaults: bool,
}

/// Runs `resilver check-config`; `arguments` begins with the program's name as shown in messages.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    run(arguments, EXIT_USAGE, judge)
}

fn judge(args: CheckArgs) -> ExitCode {
    let Some(file) = args.file else {
        return told(&config::defaults());
    };
    let host = Host { variables: Vec::new(), ..Host::this() };
    match CommandLine::parse(["resilver".into(), "--config".into(), file.clone()], &host) {
        Ok(CommandLine::Run(plan)) => told(&format!("{}: {}\n", file.display(), summary(&plan))),
        // Only `--help` and `--version` print, and a file holds neither.
        Ok(CommandLine::Print(_)) => ExitCode::from(EXIT_USAGE),
        Err(errors) => {
            let mut errors = errors.0;
            // What is wrong with one line, and then what is wrong with the whole.
            errors.sort_by_key(|error| line(error).unwrap_or(usize::MAX));
            for error in &errors {
                let _ = writeln!(std::io::stderr(), "{error}");
            }
            let (count, noun) = (errors.len(), if errors.len() == 1 { "fault" } else { "faults" });
            let name = if file.is_empty() { "\"\"".to_owned() } else { file.display().to_string() };
            let _ = writeln!(std::io::stderr(), "{name}: {count} {noun}");
            ExitCode::from(EXIT_WRONG)
        }
    }
}

/// Also by whoever keeps what is printed.
fn told(text: &str) -> ExitCode {
    match print(text) {
        Ok(_) => ExitCode::SUCCESS,
        Err(why) => failed("check-config", why, EXIT_UNWRITTEN),
    }
}

/// Of `FILE:LINE: …`.
fn line(error: &str) -> Option<usize> {
    error.split(": ").next()?.rsplit_once(':')?.1.parse().ok()
}

fn summary(plan: &Plan) -> String {
    let pools: Vec<String> = plan.pools.iter().map(of_pool).collect();
    let several = if plan.pools.len() > 1 { format!("{} pools: ", pools.len()) } else { String::new() };
    format!("good: {several}{}", pools.join("; "))
}

fn of_pool(settings: &Settings) -> String {
    let listen: Vec<String> = settings.listen.iter().map(ToString::to_string).collect();
    let name = settings.pool.as_ref().map_or(String::new(), |pool| format!("{pool} "));
    format!(
        "{name}{}, {}, clients on {}",
        counted(settings.primaries.len() as u64, "primary", "primaries"),
        counted(settings.backups.len() as u64, "backup", "backups"),
        if listen.is_empty() { "a unix socket".to_owned() } else { listen.join(", ") }
    )
}
