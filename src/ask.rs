//! What operators say to a running proxy, without a telnet or nc at hand, over TCP or a unix
//! socket: `resilver ask …` in the words of the text protocol, and a command of its own for each of
//! its operator commands.

use std::ffi::OsString;
use std::io::{BufWriter, Write as _};
use std::process::ExitCode;

use clap::Parser;

use crate::console::command::{EXIT_USAGE, failed, run, unwritten};
use crate::console::proxy::{Proxy, ProxyArg, WHOLE_TIMEOUT, refused};
use crate::protocol::statistics;
use crate::protocol::whole::Whole;

/// The proxy cannot be reached, or has answered an error.
const EXIT_FAILED: u8 = 1;

/// What may be asked. Other commands take data, or answer in other forms; they are for clients.
const COMMANDS: [&str; 5] = ["resync", "stats", "node", "version", "reload"];
/// More lines than any answer has, but for a list of keys.
const LINES_MAX: usize = 1 << 20;

/// The commands that have a word of their own.
pub const WORDS: [&str; 11] =
    ["ask", "resync", "verify", "cancel", "lead", "gone", "handover", "stats", "node", "keys", "reload"];

const EXIT_CODES: &str = "Exit codes: 0 answered; 1 no answer, or an error, which is on stderr; 2 wrong arguments.";

/// What an operator says.
#[derive(Parser, Debug)]
#[command(name = "resilver", bin_name = "resilver", max_term_width = 120)]
enum Said {
    /// Sends an operator command to a running proxy, and prints the answer
    #[command(after_help = format!(
        "For example:\n  resilver ask resync status\n  resilver ask --proxy /run/resilver.sock stats servers\n\n{EXIT_CODES}"
    ))]
    Ask {
        #[command(flatten)]
        at: ProxyArg,
        /// The operator command: resync ..., stats ..., node ... or version
        #[arg(value_name = "COMMAND", required = true)]
        command: Vec<String>,
    },
    /// Refills a server in full, even if it seems to be in order; without a name every server that
    /// needs it
    #[command(after_help = EXIT_CODES)]
    Resync {
        #[command(flatten)]
        at: ProxyArg,
        /// The server, as it was given to the proxy
        #[arg(value_name = "HOST:PORT")]
        server: Option<String>,
    },
    /// Compares the two copies of every mirrored pair, or of one server's pairs, and repairs
    /// differences; resilver status shows its progress
    #[command(after_help = EXIT_CODES)]
    Verify {
        #[command(flatten)]
        at: ProxyArg,
        /// The server, as it was given to the proxy
        #[arg(value_name = "HOST:PORT")]
        server: Option<String>,
    },
    /// Ends a server's resync; without a name all resyncs, and a verify
    #[command(after_help = EXIT_CODES)]
    Cancel {
        #[command(flatten)]
        at: ProxyArg,
        /// The server, as it was given to the proxy
        #[arg(value_name = "HOST:PORT")]
        server: Option<String>,
    },
    /// Lets a server lead its dark pairs with what it holds: the writes that only the other server
    /// has are lost
    #[command(after_help = EXIT_CODES)]
    Lead {
        #[command(flatten)]
        at: ProxyArg,
        /// The server, as it was given to the proxy
        #[arg(value_name = "HOST:PORT")]
        server: String,
        /// Confirms that those writes may be lost
        #[arg(long)]
        yes: bool,
    },
    /// Tells the proxy that the former active proxy of its fleet has certainly ended, so that it
    /// stops waiting for it
    #[command(after_help = EXIT_CODES)]
    Gone {
        #[command(flatten)]
        at: ProxyArg,
    },
    /// Lets another proxy of the fleet take the place of the active one, which answers the requests
    /// that it has and exits with 75, to be started again as a standby
    #[command(after_help = EXIT_CODES)]
    Handover {
        #[command(flatten)]
        at: ProxyArg,
    },
    /// Prints statistics: stats, stats servers, stats settings and others
    #[command(after_help = EXIT_CODES)]
    Stats {
        #[command(flatten)]
        at: ProxyArg,
        /// Which statistics; without it stats
        #[arg(value_name = "PART")]
        part: Vec<String>,
    },
    /// Sends a command to one server, and prints its answer
    #[command(after_help = EXIT_CODES)]
    Node {
        #[command(flatten)]
        at: ProxyArg,
        /// The server, as it was given to the proxy
        #[arg(value_name = "HOST:PORT")]
        server: String,
        /// The command, for example: stats items
        #[arg(value_name = "COMMAND", required = true)]
        command: Vec<String>,
    },
    /// Makes the proxy read its settings again, as SIGHUP does, and prints what has changed and
    /// what could not; only through --admin-socket
    #[command(after_help = EXIT_CODES)]
    Reload {
        #[command(flatten)]
        at: ProxyArg,
    },
    /// Lists all keys, a line each, with their expiry and size
    #[command(after_help = EXIT_CODES)]
    Keys {
        #[command(flatten)]
        at: ProxyArg,
    },
}

impl Said {
    /// Where it is said, and in the words of the text protocol.
    fn command(self) -> Result<(ProxyArg, String), String> {
        let of = |word: &str, server: Option<String>| match server {
            Some(server) => format!("{word} {server}"),
            None => word.to_owned(),
        };
        let (at, command) = match self {
            Said::Ask { at, command } => (at, command.join(" ")),
            Said::Resync { at, server } => (at, of("resync", server)),
            Said::Verify { at, server } => (at, of("resync verify", server)),
            Said::Cancel { at, server } => (at, of("resync cancel", server)),
            Said::Lead { at, server, yes: false } => {
                return Err(format!(
                    "{server} leads its dark pairs with what it holds, and the writes that only the other server has \
                     are lost; resilver status{} tells of them; if that may be, say --yes",
                    at.again()
                ));
            }
            Said::Lead { at, server, .. } => (at, format!("resync lead {server}")),
            Said::Gone { at } => (at, "resync gone".to_owned()),
            Said::Handover { at } => (at, "resync handover".to_owned()),
            Said::Stats { at, part } => {
                (at, ["stats".to_owned()].into_iter().chain(part).collect::<Vec<_>>().join(" "))
            }
            Said::Node { at, server, command } => (at, format!("node {server} {}", command.join(" "))),
            Said::Reload { at } => (at, "reload".to_owned()),
            Said::Keys { at } => return Ok((at, KEYS.to_owned())),
        };
        let first = command.split(' ').next().unwrap_or_default();
        if command.contains(['\r', '\n']) {
            return Err(format!("{command:?}: a command is one line"));
        }
        if !COMMANDS.contains(&first) {
            return Err(format!("{first:?} is no operator's command; ask {}", COMMANDS.join(", ")));
        }
        Ok((at, command))
    }
}

const KEYS: &str = "lru_crawler metadump all";

/// The parts of `stats`; behind some of them more words stand.
const PARTS: [&str; 16] = [
    "servers",
    "resync",
    "traffic",
    "key KEY",
    "proxy",
    "conns",
    "settings",
    "slabs",
    "items",
    "sizes",
    "sizes_enable",
    "sizes_disable",
    "extstore",
    "detail on|off|dump",
    "cachedump CLASS LIMIT",
    "reset",
];

/// Each of them, as clap knows it.
pub(crate) fn commands() -> Vec<clap::Command> {
    let whole = <Said as clap::CommandFactory>::command();
    let named = |command: &clap::Command| command.clone().bin_name(format!("resilver {}", command.get_name()));
    whole.get_subcommands().map(named).collect()
}

/// Runs one of [`WORDS`]; `arguments` begins with the program's name, and its second is the word.
pub(crate) fn main(arguments: Vec<OsString>) -> ExitCode {
    let word = arguments.get(1).map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    run(arguments, EXIT_USAGE, |said: Said| {
        let outcome = said.command().map_err(|why| (why, EXIT_USAGE));
        match outcome.and_then(|(at, command)| ask(&at, &command).map_err(|why| (why, EXIT_FAILED))) {
            Ok(()) => ExitCode::SUCCESS,
            Err((why, code)) => failed(&word, why, code),
        }
    })
}

/// The server that a command is about, if it names one.
fn server_of(command: &str) -> Option<&str> {
    let mut words = command.split_ascii_whitespace();
    let named = match words.next() {
        Some("node") => words.next(),
        Some("resync") => words.next_back(),
        _ => None,
    };
    named.filter(|word| word.contains(':'))
}

/// What a server is asked, where that is what the command has it asked.
fn of_server(command: &str) -> &str {
    command.strip_prefix("node ").and_then(|rest| rest.split_once(' ')).map_or(command, |(_, asked)| asked)
}

/// Prints the answer; an error is a sentence with what to do.
fn ask(at: &ProxyArg, command: &str) -> Result<(), String> {
    let mut proxy = Proxy::open(at)?;
    let pools = proxy.pools()?;
    let found;
    let mut at = at;
    if let Some(server) = server_of(command)
        && at.pool.is_none()
        && !pools.is_empty()
    {
        found = at.of_server(server, &pools)?;
        at = &found;
        proxy = Proxy::open(at)?;
        proxy.must_be_ours()?;
    }
    // What a server is asked for may take as long as the proxy waits for servers. And who says that
    // something is to be done hears whether it is, also from a proxy that has a lot to do.
    if !command.starts_with("stats") || command == "stats reset" {
        proxy.be_patient(WHOLE_TIMEOUT);
    }
    let mut said = proxy.ask(command)?;
    proxy.be_patient(WHOLE_TIMEOUT);
    let asked = of_server(command);
    let mut out = BufWriter::new(std::io::stdout().lock());
    for number in 0.. {
        if number > LINES_MAX && command != KEYS {
            return Err(format!("{}: an answer without end", at.proxy));
        }
        // (`handover` names behind its `OK` who may take over.)
        let is_done = said.line().starts_with("OK ");
        if said.is_error() || said.is_strange() && !is_done {
            let _ = out.flush();
            return Err(match said.line() {
                line if line == "ERROR" && command.starts_with("stats ") => {
                    format!("{}: it answered {line:?}; the parts of stats are {}", at.proxy, PARTS.join(", "))
                }
                line if line == "ERROR" && command == "reload" => format!(
                    "{}: clients may not say that: give --proxy the path of --admin-socket, or send the process SIGHUP",
                    at.proxy
                ),
                line => refused(&at.proxy, &line),
            });
        }
        if !said.is_end() {
            let bytes = said.bytes().trim_ascii_end();
            let line = statistics::for_people(bytes);
            if let Err(error) = out.write_all(line).and_then(|()| out.write_all(b"\n")) {
                return unwritten(&error);
            }
        }
        if !said.goes_on() || Whole::ends_with_stat(asked, said.bytes()) {
            break;
        }
        if command == KEYS {
            proxy.be_patient(WHOLE_TIMEOUT);
        }
        said = proxy.reply()?;
    }
    out.flush().or_else(|error| unwritten(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_that_a_command_is_about_is_found() {
        for command in
            ["node a:1 stats items", "resync a:1", "resync verify a:1", "resync cancel a:1", "resync lead a:1"]
        {
            assert_eq!(server_of(command), Some("a:1"), "{command}");
        }
        for command in ["resync", "resync verify", "resync status all", "stats key a:1", "node", "version"] {
            assert_eq!(server_of(command), None, "{command}");
        }
    }
}
