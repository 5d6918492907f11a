//! Where a setting may stand beside the command line: in a file of TOML, and in the environment.
//! Both have the options of [`super::args`] by their long names, and become arguments like those of
//! the command line: what an option means, and whether its value can be right, is said once.
//!
//! A file may have several pools of servers, each with a table of its own (`[pool.NAME]`).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command, CommandFactory as _};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::args::Args;

/// Begins the names of variables. (In two pieces, for those of the tests are looked for by it.)
pub(super) const VARIABLES: &str = concat!("RESILVER", "_");
/// A longer file is not one of ours.
const FILE_MAX: u64 = 1 << 20;
/// Not for a file: what names it, what is done once, and what people never give.
const NOT_IN_FILES: [&str; 5] = ["config", "background-child", "leave-fleet", "help", "version"];
/// What the reader says of a key that stands in one table twice; all else can be read.
const TWICE: &str = "duplicate key";
/// Options that may be repeated.
const SEVERAL: [&str; 3] = ["server", "backup", "listen"];
/// Options of which one answers the other's question.
const OPPOSITES: [(&str, &str); 2] = [("daemon", "foreground"), ("foreground", "daemon")];

/// Where a setting was found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    File { path: PathBuf, line: usize },
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Variable(name) => f.write_str(name),
        }
    }
}

/// One value of an option.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The option's id in [`Args`].
    pub(super) id: String,
    pub(super) text: String,
    pub(super) origin: Origin,
    pub(super) argument: OsString,
}

/// A pool of the file.
#[derive(Debug)]
pub(super) struct PoolTable {
    pub(super) name: String,
    /// Its head.
    pub(super) origin: Origin,
    pub(super) found: Vec<Found>,
    /// The ids of all that stands there, also of switches that are off.
    pub(super) said: BTreeSet<String>,
}

/// Why an option cannot stand where it does, in a file with pools: in one of them, or outside.
pub(super) fn misplaced(long: &str, in_pool: bool) -> Option<&'static str> {
    const OF_PROCESS: [&str; 10] = [
        "admin",
        "admin-socket",
        "user",
        "group",
        "foreground",
        "daemon",
        "pid-file",
        "verbose",
        "log-format",
        "log-file",
    ];
    const OF_POOLS: [&str; 3] = ["server", "backup", "unix-socket"];
    const OF_FLEETS: [&str; 9] = [
        "coordinate",
        "coordinate-login",
        "advertise",
        "lease",
        "candidate",
        "takeover-wait",
        "former-grace",
        "prove-writes",
        "leave-fleet",
    ];
    match long {
        _ if OF_FLEETS.contains(&long) => Some(
            "a proxy of a fleet ends its process when another one takes its place, and that would end the other pools: \
             give its servers a file without pools, and a process of their own",
        ),
        _ if in_pool && OF_PROCESS.contains(&long) => {
            Some("belongs to the process, not to one pool: write it above the first [pool.NAME]")
        }
        _ if !in_pool && OF_POOLS.contains(&long) => {
            Some("the file has pools, and no two have this alike: write it below a [pool.NAME]")
        }
        _ => None,
    }
}

/// What stands in the file and in the environment.
#[derive(Debug, Default)]
pub(super) struct Sources {
    pub(super) path: Option<PathBuf>,
    /// Outside of the pools.
    pub(super) found: Vec<Found>,
    /// In the order of the file.
    pub(super) pools: Vec<PoolTable>,
    pub(super) faults: Vec<String>,
    /// The ids of all that stands there, also of switches that are off.
    said: BTreeSet<String>,
    /// The file cannot be read: what it would say is not known, nor what is missing.
    pub(super) unread: bool,
}

impl Sources {
    /// All of both that is not answered by what the command line has `given` (ids).
    pub(super) fn read(
        command: &Command,
        file: Option<&Path>,
        variables: &[(String, OsString)],
        given: &BTreeSet<String>,
    ) -> Sources {
        let mut sources = Sources::default();
        // A switch that is set to false leaves its opposite open.
        let answered = |id: &str, said: &BTreeSet<String>, on: &BTreeSet<String>| {
            said.contains(id) || OPPOSITES.iter().any(|(one, other)| *one == id && on.contains(*other))
        };
        sources.variables(command, variables);
        sources.found.retain(|found| !answered(&found.id, given, given));
        let above: BTreeSet<String> = given.union(&sources.said).cloned().collect();
        let on: BTreeSet<String> = given.iter().chain(sources.found.iter().map(|found| &found.id)).cloned().collect();
        if let Some(path) = file {
            let mut of_file = Sources { path: Some(path.to_owned()), ..Sources::default() };
            of_file.file(command, path);
            of_file.found.retain(|found| !answered(&found.id, &above, &on));
            of_file.found.splice(..0, sources.found);
            of_file.faults.splice(..0, sources.faults);
            return of_file;
        }
        sources
    }

    /// As they would stand on the command line.
    pub(super) fn arguments(&self) -> impl Iterator<Item = OsString> {
        self.found.iter().map(|found| found.argument.clone())
    }

    fn variables(&mut self, command: &Command, variables: &[(String, OsString)]) {
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long() else { continue };
            let name = variable(long);
            let Some((_, value)) = variables.iter().find(|(other, _)| *other == name) else { continue };
            let origin = Origin::Variable(name.clone());
            let Some(text) = value.to_str() else {
                self.faults.push(format!("{name}: is no text (UTF-8)"));
                continue;
            };
            if text.starts_with("tcp://") {
                self.faults.push(format!(
                    "{name} {text}: Kubernetes sets it for a service called resilver; say enableServiceLinks: false, \
                     or call the service otherwise"
                ));
                continue;
            }
            let values: Vec<&str> = match arg.get_action() {
                // As `-l` takes them; no server's name has a comma.
                ArgAction::Append if SEVERAL.contains(&long) => text.split(',').map(str::trim).collect(),
                _ => vec![text],
            };
            for text in values {
                self.value(arg, Value::Text(text), &origin);
            }
        }
    }

    fn file(&mut self, command: &Command, path: &Path) {
        let text = match read(path) {
            Ok(text) => text,
            Err(why) => {
                self.unread = true;
                return self.faults.push(format!("{}: cannot be read: {why}", path.display()));
            }
        };
        let at = |offset: usize| Origin::File { path: path.to_owned(), line: line_of(&text, offset) };
        let (table, errors) = DeTable::parse_recoverable(&text);
        for error in errors {
            let span = error.span().unwrap_or_default();
            let twice = error.message() == TWICE;
            self.unread |= !twice;
            self.faults.push(match text.get(span.clone()).filter(|_| twice) {
                Some(key) => format!("{}: {}: stands twice; write it once", at(span.start), key.trim_matches('"')),
                None => format!("{}: {}", at(span.start), error.message().replace('\n', "; ")),
            });
        }
        if let Some(last) = self.faults.last_mut().filter(|_| self.unread) {
            last.push_str("; values are checked once this is right");
        }
        let pools = table.get_ref().get("pool").and_then(|pools| pools.get_ref().as_table());
        self.table(command, table.get_ref(), &at, pools.map(|_| false));
        for (name, pool) in in_order(pools.into_iter().flatten()) {
            let origin = at(name.span().start);
            let Some(table) = pool.get_ref().as_table() else {
                let name = name.get_ref();
                self.faults.push(format!("{origin}: pool.{name}: stands in no pool; write [pool.NAME] above it"));
                continue;
            };
            let mut of_pool = Sources::default();
            of_pool.table(command, table, &at, Some(true));
            self.faults.extend(of_pool.faults);
            let (name, found, said) = (name.get_ref().to_string(), of_pool.found, of_pool.said);
            self.pools.push(PoolTable { name, origin, found, said });
        }
    }

    /// Options one below the other. `in_pool`: whether they stand in a pool, or outside of all;
    /// `None`: there are none.
    fn table(&mut self, command: &Command, table: &DeTable<'_>, at: &dyn Fn(usize) -> Origin, in_pool: Option<bool>) {
        for (key, value) in in_order(table.iter()) {
            let (origin, name) = (at(key.span().start), key.get_ref().as_ref());
            if name == "pool" && in_pool == Some(false) {
                continue;
            }
            let by_name = |arg: &&Arg| arg.get_long() == Some(name) && !NOT_IN_FILES.contains(&name);
            if let Some(why) = in_pool.and_then(|in_pool| misplaced(name, in_pool)) {
                self.faults.push(format!("{origin}: {name}: {why}"));
                continue;
            }
            match (command.get_arguments().find(by_name), value.get_ref()) {
                (Some(arg), DeValue::Array(values)) => {
                    for value in values.iter() {
                        self.toml(arg, value.get_ref(), &at(value.span().start));
                    }
                }
                (Some(arg), value) => self.toml(arg, value, &origin),
                (None, value) => self.faults.push(format!("{origin}: {}", unknown(command, name, value))),
            }
        }
    }

    fn toml(&mut self, arg: &Arg, value: &DeValue<'_>, origin: &Origin) {
        let name = arg.get_long().unwrap_or_default();
        match value {
            DeValue::String(text) => self.value(arg, Value::Text(text), origin),
            DeValue::Boolean(on) => self.value(arg, Value::Switch(*on), origin),
            DeValue::Integer(number) => {
                let digits = number.as_str().replace('_', "");
                match i128::from_str_radix(&digits, number.radix()) {
                    Ok(number) => self.value(arg, Value::Text(&number.to_string()), origin),
                    Err(_) => self.faults.push(format!("{origin}: {name}: a number beyond all limits")),
                }
            }
            other => {
                let kind = other.type_str();
                let a = if kind.starts_with('a') { "an" } else { "a" };
                self.faults
                    .push(format!("{origin}: {name}: is {a} {kind}; give a text in quotes, a number, true or false"));
            }
        }
    }

    fn value(&mut self, arg: &Arg, value: Value<'_>, origin: &Origin) {
        let (id, long) = (arg.get_id().to_string(), arg.get_long().unwrap_or_default());
        self.said.insert(id.clone());
        let on = match value {
            Value::Switch(on) => Some(on),
            Value::Text("1" | "true" | "yes" | "on") => Some(true),
            Value::Text("0" | "false" | "no" | "off" | "") => Some(false),
            Value::Text(_) => None,
        };
        let mut put = |text: &str, argument: String| {
            self.found.push(Found {
                id: id.clone(),
                text: text.to_owned(),
                origin: origin.clone(),
                argument: argument.into(),
            });
        };
        match (arg.get_action(), value, on) {
            (ArgAction::SetTrue, _, Some(true)) => put("true", format!("--{long}")),
            (ArgAction::SetTrue, _, Some(false)) => {}
            (ArgAction::Count, Value::Text(text), _) => match text.parse::<u8>() {
                Ok(times @ 0..3) => (0..times).for_each(|_| put(text, format!("--{long}"))),
                _ => self.faults.push(format!("{origin}: {long} {text}: must be 0, 1 or 2")),
            },
            (ArgAction::Count, Value::Switch(on), _) => (0..u8::from(on)).for_each(|_| put("1", format!("--{long}"))),
            (ArgAction::SetTrue, Value::Text(text), None) => {
                self.faults.push(format!("{origin}: {long} {text}: must be true or false"));
            }
            (_, Value::Switch(on), _) => {
                let names = arg.get_value_names().and_then(|names| names.first());
                let text = match names.is_some_and(|names| names.contains("yes")) {
                    true if on => "yes",
                    true => "no",
                    false if on => "on",
                    false => "off",
                };
                put(text, format!("--{long}={text}"));
            }
            (_, Value::Text(text), _) => put(text, format!("--{long}={text}")),
        }
    }
}

#[derive(Clone, Copy)]
enum Value<'a> {
    Text(&'a str),
    Switch(bool),
}

/// The variable of an option.
pub(super) fn variable(long: &str) -> String {
    format!("{VARIABLES}{}", long.to_ascii_uppercase().replace('-', "_"))
}

/// Variables that look like options and are none.
pub(super) fn strangers(command: &Command, variables: &[(String, OsString)]) -> Vec<String> {
    let known: BTreeSet<String> = command.get_arguments().filter_map(|arg| arg.get_long().map(variable)).collect();
    // Of the tests and tools of this project, and those that Kubernetes sets for services.
    let others = ["TEST_", "SIM_", "COST_", "PAGE_", "SERVICE_", "PORT_"];
    let ours = |name: &&String| !others.iter().any(|other| name[VARIABLES.len()..].starts_with(other));
    variables.iter().map(|(name, _)| name).filter(|name| !known.contains(*name)).filter(ours).cloned().collect()
}

/// Those of this process.
pub(super) fn variables() -> Vec<(String, OsString)> {
    let ours = |(name, value): (OsString, OsString)| Some((name.to_str()?.to_owned(), value));
    std::env::vars_os().filter_map(ours).filter(|(name, _)| name.starts_with(VARIABLES)).collect()
}

fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|why| why.to_string())?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut bytes).map_err(|why| why.to_string())?;
    if bytes.len() as u64 > FILE_MAX {
        return Err("it has more than a mebibyte".to_owned());
    }
    String::from_utf8(bytes).map_err(|_| "it is no text (UTF-8)".to_owned())
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|byte| **byte == b'\n').count()
}

type Entry<'t, 's> = (&'t Spanned<DeString<'s>>, &'t Spanned<DeValue<'s>>);

/// Of a table, in the order in which they are written.
fn in_order<'t, 's: 't>(entries: impl Iterator<Item = Entry<'t, 's>>) -> Vec<Entry<'t, 's>> {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

fn unknown(command: &Command, name: &str, value: &DeValue<'_>) -> String {
    let known = |name: &str| command.get_arguments().any(|arg| arg.get_long() == Some(name) && !arg.is_hide_set());
    let dashes = name.replace('_', "-");
    if name == "pool" {
        return "pool: write [pool.NAME], and its options below it".to_owned();
    }
    if value.is_table() {
        return format!(
            "[{name}]: there are no tables but [pool.NAME]; write the options one below the other, by their long names"
        );
    }
    if NOT_IN_FILES.contains(&name) {
        return format!("{name}: is for the command line alone");
    }
    match command.get_arguments().find(|arg| arg.get_short().is_some_and(|short| name == short.to_string())) {
        Some(arg) => format!("{name}: write it out: {}", arg.get_long().unwrap_or_default()),
        None if known(&dashes) => format!("{name}: there is no such option; did you mean {dashes}?"),
        None => format!("{name}: there is no such option; resilver --help lists them all"),
    }
}

/// A file with every option, what it does, and its default, all behind comment signs.
pub(crate) fn defaults() -> String {
    let mut out = "# Settings of Resilver: resilver --config FILE. This file lists every option with its default, or\n\
                   # with a word in capitals if it has none; to set one, remove the comment sign. The command line\n\
                   # wins over variables (RESILVER_TIMEOUT=300ms), which win over this file. To find all errors in\n\
                   # the file, with their lines: resilver check-config FILE\n"
        .to_owned();
    let command = Args::command();
    let mut headings: Vec<(&str, Vec<&Arg>)> = Vec::new();
    for arg in command.get_arguments() {
        let Some(long) = arg.get_long().filter(|long| !NOT_IN_FILES.contains(long)) else { continue };
        debug_assert!(!arg.is_hide_set(), "{long}");
        let heading = arg.get_help_heading().unwrap_or_default();
        match headings.iter_mut().find(|(known, _)| *known == heading) {
            Some((_, args)) => args.push(arg),
            None => headings.push((heading, vec![arg])),
        }
    }
    for (heading, args) in headings {
        out.push_str(&format!("\n# ---- {heading} ----\n"));
        for arg in args {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            out.push('\n');
            out.push_str(&wrapped(&help, 98));
            out.push_str(&format!("#{} = {}\n", arg.get_long().unwrap_or_default(), default(arg)));
        }
    }
    out.push_str(POOLS);
    out
}

/// A blank behind the comment signs: these are no options with their defaults.
const POOLS: &str = "
# ---- Pools ----

# Several pools of servers in one process, each with its own clients. The options above are the
# defaults of all pools; those below a name are that pool's own. server, backup and unix-socket may
# then stand in pools only.
#
# [pool.sessions]
# port = 12000
# server = [\"cache1:11211\", \"cache2:11211\"]
# backup = [\"cache3:11211\"]
#
# [pool.fragments]
# port = 12001
# server = [\"cache1:11212\", \"cache2:11212\"]
";

fn default(arg: &Arg) -> String {
    let several = arg.get_long().is_some_and(|long| SEVERAL.contains(&long));
    let quoted: Vec<String> = arg.get_default_values().iter().map(|value| toml_value(value)).collect();
    match (arg.get_action(), quoted.as_slice()) {
        (ArgAction::SetTrue, _) => "false".to_owned(),
        (ArgAction::Count, _) => "0".to_owned(),
        (_, values) if several => format!("[{}]", values.join(", ")),
        (_, [value]) => value.clone(),
        _ => format!("\"{}\"", arg.get_value_names().and_then(|names| names.first()).map_or("", |name| name.as_str())),
    }
}

fn toml_value(value: &OsStr) -> String {
    let text = value.to_string_lossy();
    if text.parse::<u64>().is_ok() { text.into_owned() } else { format!("\"{text}\"") }
}

fn wrapped(text: &str, columns: usize) -> String {
    let (mut out, mut line) = (String::new(), "#".to_owned());
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > columns {
            out.push_str(&line);
            out.push('\n');
            line = "#".to_owned();
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
    out
}

/// By option: where each value of it was found.
#[derive(Debug, Default)]
pub(super) struct Origins(BTreeMap<String, Vec<(String, Origin)>>);

impl Origins {
    pub(super) fn of(found: &[Found]) -> Origins {
        let mut origins = Origins::default();
        for found in found {
            origins.0.entry(found.id.clone()).or_default().push((found.text.clone(), found.origin.clone()));
        }
        origins
    }

    /// Of this value (the last such: what stands twice is one too many there), or else of the
    /// option.
    pub(super) fn find(&self, id: &str, value: Option<&str>) -> Option<&Origin> {
        let all = self.0.get(id)?;
        let this = all.iter().rfind(|(text, _)| Some(text.as_str()) == value);
        this.or(all.first()).map(|(_, origin)| origin)
    }
}
