//! The documents against the code: what they name exists, and what they must name is there.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::command::{Running, resilver, run};

const DOCUMENTS: [&str; 19] = [
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/guarantees.md",
    "docs/internals/code-map.md",
    "docs/internals/connections.md",
    "docs/internals/fleet-plan.md",
    "docs/internals/fleet.md",
    "docs/internals/lessons.md",
    "docs/internals/models/README.md",
    "docs/internals/testing.md",
    "docs/magent.md",
    "docs/monitoring.md",
    "docs/operating.md",
    "docs/performance.md",
    "docs/reference.md",
    "docs/resync.md",
];

const CODE_MAP: &str = "docs/internals/code-map.md";

/// An overview longer than this is read by nobody.
const ARCHITECTURE_LINES_MAX: usize = 300;
/// What it is, for whom, two commands, a recording, a picture, where to read on.
const README_LINES_MAX: usize = 120;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What stands between backticks on a line.
fn code_spans(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// The lines under a heading, up to the next one of the same or a higher level.
fn section<'a>(text: &'a str, heading: &str) -> Vec<&'a str> {
    let level = heading.bytes().take_while(|&b| b == b'#').count();
    let ends = |line: &&str| {
        let marks = line.bytes().take_while(|&b| b == b'#').count();
        !(1..=level).contains(&marks)
    };
    let mut lines = text.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "no heading {heading:?}");
    lines.take_while(ends).collect()
}

/// The first cells of a section's tables.
fn first_cells<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    lines.iter().filter_map(|line| line.strip_prefix("| ")).filter_map(|row| row.split(" | ").next()).collect()
}

fn files_under(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files_under(&path, found) } else { found.push(path) }
    }
}

fn rust_files(under: &Path, found: &mut BTreeSet<String>) {
    let mut all = Vec::new();
    files_under(under, &mut all);
    all.retain(|path| path.extension().is_some_and(|ext| ext == "rs"));
    found.extend(all.iter().map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()));
}

#[test]
fn the_code_map_names_every_file_and_nothing_else() {
    let text = read(CODE_MAP);
    let map: BTreeSet<&str> =
        first_cells(&section(&text, "# Code map")).into_iter().flat_map(|cell| code_spans(cell).into_iter()).collect();
    for path in &map {
        assert!(root().join(path).exists(), "{CODE_MAP} names {path}, which does not exist");
    }
    let mut files = BTreeSet::new();
    rust_files(&root().join("src"), &mut files);
    // The parts of one module's tests stand in the map as their folder.
    files.retain(|file| !file.contains("/tests/"));
    let missing: Vec<_> = files.iter().filter(|file| !map.contains(file.as_str())).collect();
    assert!(missing.is_empty(), "not in {CODE_MAP}: {missing:?}");
}

/// Each module may name those to its right in ARCHITECTURE.md's order. Tests may name what they
/// like.
#[test]
fn imports_run_one_way() {
    let text = read("ARCHITECTURE.md");
    let sentence =
        text.split("Imports run from left to right").nth(1).and_then(|rest| rest.split("From `pair`").next());
    let order: Vec<&str> = code_spans(sentence.unwrap()).into_iter().filter(|span| !span.contains('/')).collect();
    let mut files = BTreeSet::new();
    rust_files(&root().join("src"), &mut files);
    files.retain(|file| !file.contains("test") && !file.contains("/walk") && !file.starts_with("src/simulation"));
    let mut backward = BTreeSet::new();
    for file in &files {
        let module = file.trim_start_matches("src/").trim_end_matches(".rs").split('/').next().unwrap();
        if matches!(module, "lib" | "main") {
            continue;
        }
        let here = order.iter().position(|name| *name == module);
        let here = here.unwrap_or_else(|| panic!("ARCHITECTURE.md's order of imports leaves out {module}"));
        let text = read(file);
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().lines();
        for line in code.filter(|line| !line.trim_start().starts_with("//")) {
            for named in line.split("crate::").skip(1) {
                let end = named.find(|c: char| !(c.is_ascii_lowercase() || c == '_')).unwrap_or(named.len());
                let there = order.iter().position(|name| *name == &named[..end]);
                if there.is_none_or(|there| there < here) && !named[..end].is_empty() {
                    backward.insert(format!("{file}: crate::{}", &named[..end]));
                }
            }
        }
    }
    assert!(files.len() > 90, "{} files", files.len());
    assert!(backward.is_empty(), "these imports run back: {backward:?}");
}

/// The modules beside it that a file imports from: `use super::name::…`, and the same from the
/// crate's root. `folder`: the path of the modules, from there.
fn neighbours(code: &str, folder: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for import in code.split("use ").skip(1).filter_map(|rest| rest.split(';').next()) {
        let import: String = import.split_whitespace().collect();
        let Some(rest) = import.strip_prefix("super::").or(import.strip_prefix(folder)) else { continue };
        let (mut depth, mut item) = (0, String::new());
        for c in rest.strip_prefix('{').unwrap_or(rest).chars().chain([',']) {
            depth += i32::from(c == '{') - i32::from(c == '}');
            if c == ',' && depth <= 0 {
                let module = std::mem::take(&mut item);
                named.extend(module.split_once("::").map(|(module, _)| module.to_owned()));
            } else {
                item.push(c);
            }
        }
    }
    named
}

/// Of two files of one folder one may import from the other, and not both.
#[test]
fn no_two_neighbours_import_from_each_other() {
    // What is left of a long get is a part of its pieces; a client's bounds, and what it has in
    // flight.
    const KNOWN: [&str; 2] = ["src/protocol: classic, request", "src/proxy: client, in_flight"];
    let mut files = BTreeSet::new();
    rust_files(&root().join("src"), &mut files);
    files.retain(|file| !file.contains("test") && !file.contains("/walk") && !file.starts_with("src/simulation"));
    let mut imports = BTreeSet::new();
    for file in &files {
        let module = file.trim_end_matches(".rs").trim_end_matches("/mod");
        let Some((folder, name)) = module.rsplit_once('/').filter(|(folder, _)| *folder != "src") else { continue };
        let text = read(file);
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap().lines();
        let code: Vec<&str> = code.filter(|line| !line.trim_start().starts_with("//")).collect();
        let path = format!("crate::{}::", folder.trim_start_matches("src/").replace('/', "::"));
        let named = neighbours(&code.join("\n"), &path);
        imports.extend(named.into_iter().map(|other| (folder.to_owned(), name.to_owned(), other)));
    }
    let is_back = |(folder, one, other): &&(String, String, String)| {
        one < other && imports.contains(&(folder.clone(), other.clone(), one.clone()))
    };
    let circles = imports.iter().filter(is_back);
    let circles: Vec<String> = circles.map(|(folder, one, other)| format!("{folder}: {one}, {other}")).collect();
    assert!(imports.len() > 250, "{} imports", imports.len());
    assert_eq!(circles, KNOWN, "these import from each other");
}

#[test]
fn the_names_in_the_architecture_exist() {
    let mut files = BTreeSet::new();
    rust_files(&root().join("src"), &mut files);
    let mut source: String = files.iter().map(|file| read(file)).collect();
    source.push_str(&read("Cargo.toml"));
    let words: BTreeSet<&str> = source.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).collect();
    let idents: BTreeSet<&str> = source.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();

    let text = read("ARCHITECTURE.md");
    let mut fenced = false;
    let mut unknown = Vec::new();
    for line in text.lines() {
        fenced ^= line.starts_with("```");
        if fenced {
            continue;
        }
        for span in code_spans(line) {
            if span.contains('/') || span.ends_with(".rs") || span.ends_with(".py") || span.ends_with(".toml") {
                // Paths: of files where they begin at the root, else named beside one that does.
                if span.contains('/') {
                    assert!(root().join(span).exists(), "ARCHITECTURE.md names {span}, which does not exist");
                }
                continue;
            }
            // Several words are a command or a sentence; names are one word, maybe with a path in
            // front.
            if span.contains([' ', '→', ':']) && !span.contains("::") {
                continue;
            }
            for part in span.split("::").filter(|part| !part.is_empty()) {
                let name = part.split('{').next().unwrap_or(part).trim_start_matches("--");
                let known =
                    idents.contains(name) || words.contains(name) || idents.contains(name.replace('-', "_").as_str());
                if !known {
                    unknown.push(span);
                }
            }
        }
    }
    assert!(unknown.is_empty(), "ARCHITECTURE.md names what stands nowhere in the code: {unknown:?}");
}

/// Tests, functions and files of the documents that tell what protects what. `*` and `…` stand for
/// any part of a name; a name of one word may be an operator's, and is not looked for.
#[test]
fn the_names_in_what_protects_what_exist() {
    let mut files = BTreeSet::new();
    ["src", "tests"].iter().for_each(|folder| rust_files(&root().join(folder), &mut files));
    let source: String = files.iter().map(|file| read(file)).collect();
    let names: BTreeSet<&str> = source.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    let exists = |name: &str| match name.contains(['*', '…']) {
        true => names.iter().any(|known| name.split(['*', '…']).all(|piece| known.contains(piece))),
        false => names.contains(name),
    };
    let mut unknown = Vec::new();
    for document in [
        "docs/guarantees.md",
        "docs/internals/connections.md",
        "docs/internals/fleet-plan.md",
        "docs/internals/lessons.md",
        "docs/internals/testing.md",
    ] {
        let text = read(document);
        for span in text.lines().flat_map(code_spans) {
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '*' | '…');
            let parts = span.split("::").filter(|part| part.contains('_') && !part.contains(':'));
            let parts = parts.filter(|part| part.chars().any(|c| c.is_ascii_lowercase()));
            if span.chars().all(is_name) && !parts.clone().all(exists) {
                unknown.push(format!("{document}: {span}"));
            }
        }
    }
    assert!(unknown.is_empty(), "names that stand nowhere in the code: {unknown:#?}");
}

#[test]
fn the_architecture_and_the_readme_are_overviews() {
    let lines = read("ARCHITECTURE.md").lines().count();
    assert!(lines < ARCHITECTURE_LINES_MAX, "ARCHITECTURE.md has {lines} lines");
    let lines = read("README.md").lines().count();
    assert!(lines <= README_LINES_MAX, "README.md has {lines} lines");
}

/// README's first picture is a recording (`make picture`) of a run of the demo that ended well, and
/// shows every state on the way.
#[test]
fn the_recording_of_the_demo_moves_and_shows_it_heal() {
    const BYTES_MAX: usize = 150_000;
    let picture = read("docs/demo.svg");
    assert!(read("README.md").contains("](docs/demo.svg)"));
    assert!(picture.len() < BYTES_MAX, "{} bytes", picture.len());
    for part in ["@keyframes", "prefers-color-scheme:dark", "prefers-reduced-motion:reduce"] {
        assert!(picture.contains(part), "{part}");
    }
    let told = ["MIRRORED", "DEGRADED", "RECOVERING", "MIRRORED", "Nothing was lost, wrong or failed."];
    let mut rest = &picture[..];
    for word in told {
        rest = rest.split_once(word).unwrap_or_else(|| panic!("no {word} in its place")).1;
    }
    assert!(picture.contains("http://127.0.0.1:") && picture.contains("[#"), "the page's address, a bar");
}

/// Each test that searches seeds without a rule has its row, and each rule has such a test.
#[test]
fn each_rule_is_switched_off_by_a_test_and_each_such_test_has_a_row() {
    let seeds = read("src/simulation/tests.rs");
    let listed = seeds.split("\nmissed! {\n").nth(1).and_then(|rest| rest.split("\n}").next()).unwrap();
    let names: Vec<&str> = listed.lines().filter_map(|line| line.trim().split(':').next()).collect();
    let text = read("docs/guarantees.md");
    let rows: BTreeSet<&str> =
        section(&text, "## The rules, each switched off once").into_iter().flat_map(code_spans).collect();
    let without_row: Vec<_> = names.iter().filter(|name| !rows.contains(*name)).collect();
    assert!(names.len() > 40 && without_row.is_empty(), "of {} tests these have no row: {without_row:?}", names.len());

    let rules = read("src/rules.rs");
    let body = rules.split("enum Rule {\n").nth(1).and_then(|rest| rest.split("\n}").next()).unwrap();
    let rules: Vec<&str> = body.lines().filter_map(|line| line.trim().strip_suffix(',')).collect();
    let mut files = BTreeSet::new();
    rust_files(&root().join("src"), &mut files);
    files.retain(|file| file.contains("test") || file.ends_with("/walk.rs"));
    let tests: String = files.iter().map(|file| read(file)).collect();
    let first_word = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric()).collect::<String>();
    let searched = listed.split(": ").skip(1).map(first_word);
    let switched: BTreeSet<String> = tests.split("Rule::").skip(1).map(first_word).chain(searched).collect();
    let unused: Vec<_> = rules.iter().filter(|rule| !switched.contains(**rule)).collect();
    assert!(rules.len() > 40 && unused.is_empty(), "no test names these of {} rules: {unused:?}", rules.len());
}

/// The start-up table, in the code and for readers.
#[test]
fn the_start_up_table_is_that_of_the_code() {
    const HEAD: &str = "| newest record |";
    let table = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.trim_start_matches("//! "));
        lines
            .skip_while(|line| !line.starts_with(HEAD))
            .take_while(|line| line.starts_with('|'))
            .map(str::to_owned)
            .collect()
    };
    let (code, document) = (table(&read("src/cluster/startup/table.rs")), table(&read("docs/resync.md")));
    assert!(code.len() > 20, "{code:?}");
    assert_eq!(code, document, "left: src/cluster/startup/table.rs; right: docs/resync.md");
}

/// The flags that begin a word of `text`: `-s`, `--server`.
fn flags(text: &str) -> BTreeSet<String> {
    let name = |word: &str| {
        let end = word.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).unwrap_or(word.len());
        word[..end].to_owned()
    };
    text.split([' ', ',', '`', '\n']).filter(|word| word.starts_with('-')).map(name).filter(|n| n.len() > 1).collect()
}

#[test]
fn the_table_of_flags_is_the_help() {
    let help = run(&["--help"]).1;
    // An option's line begins with at most six blanks; its text is further to the right, and may
    // mention other flags.
    let defined: String = help
        .lines()
        .skip_while(|line| !line.starts_with("Options:"))
        .take_while(|line| !line.starts_with("Units:"))
        .filter(|line| line.trim_start().starts_with('-') && line.len() - line.trim_start().len() <= 6)
        .filter_map(|line| line.trim_start().split("  ").next())
        .flat_map(|names| [names, "\n"])
        .collect();
    let text = read("docs/reference.md");
    let table: String = first_cells(&section(&text, "## Flags")).into_iter().flat_map(|cell| [cell, "\n"]).collect();
    let (in_help, in_table) = (flags(&defined), flags(&table));
    assert!(in_help.len() > 40, "the help was not understood: {in_help:?}");
    assert_eq!(in_help, in_table, "left: resilver --help; right: docs/reference.md, Flags");
}

#[test]
fn the_tables_of_the_other_commands_flags_are_their_help() {
    let all = [("wait", 6), ("ask", 2), ("status", 6), ("top", 5), ("key", 2), ("lead", 3), ("check-config", 2)];
    for (command, least) in all {
        let help = run(&[command, "--help"]).1;
        let defined: String = help
            .lines()
            .skip_while(|line| !line.starts_with("Options:"))
            .filter(|line| line.trim_start().starts_with('-') && line.len() - line.trim_start().len() <= 6)
            .filter_map(|line| line.trim_start().split("  ").next())
            .flat_map(|names| [names, "\n"])
            .collect();
        let text = read("docs/reference.md");
        let head = format!("| Flag of `resilver {command}`");
        let table: String = text
            .lines()
            .skip_while(|line| !line.starts_with(&head))
            .take_while(|line| line.starts_with('|'))
            .filter_map(|row| row.strip_prefix("| `")?.split(" | ").next())
            .flat_map(|cell| [cell, "\n"])
            .collect();
        let (in_help, in_table) = (flags(&defined), flags(&table));
        assert!(in_help.len() >= least, "the help was not understood: {in_help:?}");
        assert_eq!(in_help, in_table, "left: resilver {command} --help; right: docs/reference.md");
    }
}

/// The defaults of the table, where `--help` states one in one word.
#[test]
fn the_defaults_are_those_of_the_help() {
    let help = run(&["--help"]).1.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = read("docs/reference.md");
    let mut compared = 0;
    for row in section(&text, "## Flags").into_iter().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let (Some(&cell), Some(&default)) = (cells.first(), cells.get(1)) else { continue };
        let Some(long) = flags(cell).into_iter().find(|flag| flag.starts_with("--")) else { continue };
        let Some(at) = help.find(&format!("{long} <")).or_else(|| help.find(&format!("{long}[="))) else { continue };
        let rest = &help[at + long.len()..];
        let own = &rest[..rest.find(" --").unwrap_or(rest.len())];
        if let Some(stated) = own.split("[default: ").nth(1).and_then(|found| found.split(']').next()) {
            assert_eq!(stated, default.trim(), "default of {long}: left in --help, right in docs/reference.md");
            compared += 1;
        }
    }
    assert!(compared > 10, "only {compared} defaults were found");
}

/// Names as they are sent, with a server or pair in front, in the form that the tables have.
fn general_names(answer: &str) -> BTreeSet<String> {
    let servers = ["localhost:1", "127.0.0.1:2"];
    let general = |name: &str| {
        let mut name = name.replace(&servers.join("|"), "PAIR");
        for server in servers {
            name = name.replace(server, "HOST:PORT");
        }
        if name.starts_with("obstacle:") { "obstacle:N".to_owned() } else { name }
    };
    answer.lines().filter_map(|line| line.split(' ').next()).map(general).collect()
}

/// A running proxy is asked, with servers that nobody has: all names are there all the same.
#[test]
fn the_tables_of_statistics_are_the_answers() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let proxy = format!("127.0.0.1:{port}");
    let servers = ["-s", "localhost:1", "-b", "127.0.0.1:2", "--log-file", "/dev/null"];
    let _daemon = Running::start(resilver().args(["-p", &port.to_string()]).args(servers));
    let begun = Instant::now();
    while TcpStream::connect(&proxy).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the proxy does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    let questions = ["resync status", "stats", "stats servers", "stats settings", "stats key some:key"];
    let answers = questions.map(|question| {
        let ask: Vec<&str> = ["ask", "--proxy", &proxy].into_iter().chain(question.split(' ')).collect();
        let (code, printed, _) = run(&ask);
        (question, code == Some(0), general_names(&printed))
    });
    let text = read("docs/reference.md");
    for (question, answered, mut names) in answers {
        assert!(
            answered && names.len() > if question.starts_with("stats key") { 5 } else { 10 },
            "{question}: {names:?}"
        );
        if question == "resync status" {
            // Told only of a pair that has such keys: tests/it/copies.rs and status.rs see them.
            names.extend(["copies_missing", "missing_unknown", "missed"].map(|name| format!("pair:PAIR:{name}")));
            // Of items that were lost: status.rs sees them.
            let lost = ["pairs_empty", "pairs_partial", "keys", "keys_unknown", "seconds_ago"];
            names.extend(lost.map(|name| format!("lost_items:{name}")));
        }
        if question == "stats servers" {
            // Told of a server that has answered: status.rs sees them.
            names.extend(["items", "bytes", "bytes_max", "evictions"].map(|name| format!("HOST:PORT:{name}")));
        }
        let question = question.trim_end_matches(" some:key");
        let cells = first_cells(&section(&text, &format!("### `{question}`")));
        let table: BTreeSet<String> = cells.into_iter().flat_map(code_spans).map(str::to_owned).collect();
        assert_eq!(names, table, "{question}: left in the answer, right in docs/reference.md");
    }
}

/// The metrics of a running proxy, with servers that nobody has. Rules and dashboard ask for no
/// others.
#[test]
fn the_table_of_metrics_is_what_a_proxy_shows() {
    let [port, admin] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let admin = format!("127.0.0.1:{admin}");
    let servers = ["-s", "localhost:1", "-b", "127.0.0.1:2", "--log-file", "/dev/null"];
    let _daemon = Running::start(resilver().args(["-p", &port.to_string(), "--admin", &admin]).args(servers));
    let begun = Instant::now();
    let text = loop {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(&admin) {
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
            let _ = stream.read_to_string(&mut answer);
        }
        if answer.starts_with("HTTP/1.0 200") {
            break answer;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "no metrics: {answer}");
        std::thread::sleep(Duration::from_millis(10));
    };
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let shown: BTreeSet<&str> = types.filter_map(|line| line.split(' ').next()).collect();
    let document = read("docs/monitoring.md");
    let told: BTreeSet<&str> =
        first_cells(&section(&document, "## Metrics")).into_iter().flat_map(code_spans).collect();
    assert!(shown.len() > 60, "{shown:?}");
    assert_eq!(shown, told, "left: /metrics; right: docs/monitoring.md");

    for file in ["docs/monitoring/alerts.yml", "docs/monitoring/grafana.json", "docs/monitoring.md"] {
        let text = read(file);
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let named = words.filter(|word| word.starts_with("resilver_") && *word != "resilver_");
        for name in named {
            let family = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| name.strip_suffix(end));
            let known = |name: &str| shown.contains(name);
            assert!(known(name) || family.is_some_and(known), "{file} names {name}, which is no metric");
        }
    }
    let board: serde_json::Value = serde_json::from_str(&read("docs/monitoring/grafana.json")).unwrap();
    assert!(board["panels"].as_array().is_some_and(|panels| panels.len() > 15));
    match Command::new("promtool").args(["check", "rules"]).arg(root().join("docs/monitoring/alerts.yml")).output() {
        Ok(said) => assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr)),
        Err(error) => eprintln!("SKIPPED: what promtool says of the alerts: {error} (scripts/need-prometheus)"),
    }
}

/// The words that a function of the source returns in its `match`: `Reason::None => "none",`.
fn arm_words(path: &str, left: &str) -> BTreeSet<String> {
    read(path)
        .lines()
        .filter_map(|line| line.trim().strip_prefix(left))
        .filter_map(|arm| arm.split("=> \"").nth(1))
        .filter_map(|word| word.split('"').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn operating_explains_every_state_and_reason() {
    let text = read("docs/operating.md");
    let explained = |heading: &str| -> BTreeSet<String> {
        first_cells(&section(&text, heading)).into_iter().flat_map(code_spans).map(str::to_owned).collect()
    };
    let reasons = arm_words("src/pair/state.rs", "Reason::");
    assert!(reasons.len() > 10, "{reasons:?}");
    assert_eq!(reasons, explained("## Reasons"), "reasons: left in the code, right in docs/operating.md");
    let summary = read("src/cluster/summary.rs");
    let quoted = |body: &str| -> BTreeSet<String> { body.split('"').skip(1).step_by(2).map(str::to_owned).collect() };
    let states = quoted(summary.split("PAIR_WORDS: [&str; 5] = [").nth(1).unwrap().split(']').next().unwrap());
    assert!(states.is_superset(&arm_words("src/pair/state.rs", "State::")), "{states:?}");
    assert_eq!(states, explained("## States of a pair"), "states of a pair");

    let nodes = summary.split("impl NodeFacts").nth(1).unwrap();
    let phases = quoted(nodes.split("let state = ").nth(1).unwrap().split("};").next().unwrap());
    assert!(phases.len() > 4, "{phases:?}");
    assert_eq!(phases, explained("## States of a server"), "states of a server");
}

#[test]
fn operating_names_every_end_of_a_resync() {
    let text = read("docs/operating.md");
    let (of_jobs, of_nodes) =
        (arm_words("src/resync/mod.rs", "JobError::"), arm_words("src/backend/error.rs", "NodeError::"));
    assert!(of_jobs.len() > 5 && of_nodes.len() > 3, "{of_jobs:?} {of_nodes:?}");
    for word in of_jobs.union(&of_nodes) {
        assert!(text.contains(&format!("`{word}`")), "docs/operating.md does not name `{word}`");
    }
}

/// The variables that tests read, in one list.
#[test]
fn contributing_lists_every_variable_of_the_tests() {
    let mut files = BTreeSet::new();
    ["src", "tests"].iter().for_each(|folder| rust_files(&root().join(folder), &mut files));
    files.remove("tests/it/documents.rs");
    let quoted = |text: String| -> Vec<String> {
        let names = text.split("\"RESILVER_").skip(1).filter_map(|rest| rest.split('"').next());
        names.map(|name| format!("RESILVER_{name}")).collect()
    };
    let read_ones: BTreeSet<String> = files.iter().flat_map(|file| quoted(read(file))).collect();
    let text = read("CONTRIBUTING.md");
    let rows = text.lines().filter(|line| line.starts_with("| `RESILVER_")).filter_map(|line| line.split(" | ").next());
    let listed: BTreeSet<String> = rows.flat_map(code_spans).map(str::to_owned).collect();
    assert!(read_ones.len() > 5, "{read_ones:?}");
    assert_eq!(read_ones, listed, "left: read by tests; right: listed in CONTRIBUTING.md");
}

/// Comments and prose of at most 100 columns. Tables, figures, code and links are as wide as they
/// are; files that users copy are no wider anywhere.
#[test]
fn comments_and_prose_are_as_wide_as_a_page() {
    const COLUMNS_MAX: usize = 100;
    let mut files = BTreeSet::new();
    ["src", "tests", "tools"].iter().for_each(|folder| rust_files(&root().join(folder), &mut files));
    let mut wide = Vec::new();
    for file in &files {
        let mut fenced = false;
        for (number, line) in read(file).lines().enumerate() {
            let Some(text) = line.trim_start().strip_prefix("//") else { continue };
            let text = text.trim_start_matches(['/', '!']).trim_start();
            fenced ^= text.starts_with("```");
            let figure = text.starts_with('|') || text.contains(['│', '─']) || text.contains("http");
            if line.chars().count() > COLUMNS_MAX && !fenced && !figure {
                wide.push(format!("{file}:{}", number + 1));
            }
        }
    }
    for document in DOCUMENTS {
        let mut fenced = false;
        for (number, line) in read(document).lines().enumerate() {
            fenced ^= line.trim_start().starts_with("```");
            let figure = line.trim_start_matches(['>', ' ']).starts_with('|') || line.contains("](");
            if line.chars().count() > COLUMNS_MAX && !fenced && !figure {
                wide.push(format!("{document}:{}", number + 1));
            }
        }
    }
    // Files that users copy, whole.
    let mut copied = Vec::new();
    ["examples", "packaging"].iter().for_each(|folder| files_under(&root().join(folder), &mut copied));
    assert!(copied.len() > 10, "{copied:?}");
    for path in copied {
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            if line.chars().count() > COLUMNS_MAX {
                wide.push(format!("{}:{}", path.strip_prefix(root()).unwrap().display(), number + 1));
            }
        }
    }
    assert!(wide.is_empty(), "wider than {COLUMNS_MAX} columns: {wide:#?}");
}

/// As GitHub makes an anchor of a heading.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn links_lead_somewhere() {
    let mut checked = 0;
    for document in DOCUMENTS {
        let text = read(document);
        let folder = root().join(document).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.starts_with("http://") || link.starts_with("https://") {
                continue;
            }
            let (path, fragment) = link.split_once('#').map_or((link, None), |(path, fragment)| (path, Some(fragment)));
            let target = if path.is_empty() { root().join(document) } else { folder.join(path) };
            assert!(target.exists(), "{document}: {link} leads nowhere");
            if let Some(fragment) = fragment {
                let text = fs::read_to_string(&target).unwrap();
                let found = text.lines().filter(|line| line.starts_with('#')).any(|line| anchor(line) == fragment);
                assert!(found, "{document}: {link}: no such heading");
            }
            checked += 1;
        }
    }
    assert!(checked > 10, "only {checked} links were found");
}

/// "Install and run" as it stands in README.md, typed into a shell: on ports of this test and
/// without the build, for this binary is built.
#[test]
fn the_first_lines_that_a_new_user_types_work() {
    let text = read("README.md");
    let lines = section(&text, "## Install and run");
    let blocks: Vec<String> = lines
        .split(|line| line.starts_with("```"))
        .skip(1)
        .step_by(2)
        .map(|block| block.iter().flat_map(|line| [line, "\n"]).collect())
        .collect();
    let [run, end] = &blocks[..] else { panic!("{} blocks: how to run it, how to end it", blocks.len()) };
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().to_str().unwrap();
    fs::write(dir.path().join("make"), "#!/bin/sh\necho made \"$@\"\n").unwrap();
    fs::set_permissions(dir.path().join("make"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    // All held at once, so that they differ.
    let held: Vec<TcpListener> = (0..4).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ports: Vec<String> = held.iter().map(|l| l.local_addr().unwrap().port().to_string()).collect();
    drop(held);
    let (binary, _) = env!("CARGO_BIN_EXE_resilver").rsplit_once('/').unwrap();
    let ours = |block: &str| {
        let mut block = block.replace("/tmp/", &format!("{here}/")).replace("$PWD/target/release", binary);
        for (named, port) in ["11221", "11222", "11223", "12000"].into_iter().zip(&ports) {
            assert!(text.contains(named));
            block = block.replace(named, port);
        }
        block
    };
    // As typed by hand: a line that fails is seen, and the servers are ended all the same.
    let script = format!("set -ex\nend() {{ set +e; {}}}\ntrap end EXIT\n{}", ours(end), ours(run));
    let path = format!("{here}:{}", std::env::var("PATH").unwrap());
    let typed = Command::new("bash").current_dir(root()).env("PATH", path).args(["-c", &script]).output().unwrap();
    let (said, why) = (String::from_utf8_lossy(&typed.stdout), String::from_utf8_lossy(&typed.stderr));
    assert!(typed.status.success(), "{said}{why}");
    assert!(
        said.contains("made build") && said.contains("mirrored\n") && said.contains("\nMIRRORED  every item has"),
        "{said}{why}"
    );
    let gone = || ports.iter().all(|port| TcpStream::connect(format!("127.0.0.1:{port}")).is_err());
    let begun = Instant::now();
    while !gone() {
        assert!(begun.elapsed() < Duration::from_secs(30), "something was left running: {why}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
