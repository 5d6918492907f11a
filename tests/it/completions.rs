//! Completions as zsh and fish make them: real shells. (`cli.rs` has bash, which is everywhere.)

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::command::run;

/// What is typed, and some of what is offered: commands, flags, and values where these are words.
const TYPED: [(&str, &[&str]); 6] = [
    ("resilver sta", &["stats", "status"]),
    ("resilver status --p", &["--pool", "--proxy"]),
    ("resilver --leader-", &["--leader-grace", "--leader-timeout"]),
    ("resilver --io-uring ", &["auto", "off", "on"]),
    ("resilver --operator-commands ", &["off", "on"]),
    ("resilver completions ", &["bash", "fish", "zsh"]),
];

/// The script of a shell, in a file of this name.
fn script(shell: &str, name: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    let (code, text, complaint) = run(&["completions", shell]);
    assert_eq!((code, complaint.as_str()), (Some(0), ""));
    std::fs::write(folder.path().join(name), text).unwrap();
    folder
}

/// The shell, started by `command`; a word on it where it is missing.
fn there(shell: &str, command: &mut Command) -> bool {
    match command.arg("--version").output() {
        Ok(_) => true,
        Err(error) => {
            eprintln!("SKIPPED: completions of {shell}: {error} (scripts/need-shells installs it)");
            false
        }
    }
}

#[test]
fn fish_completes_commands_flags_and_values() {
    if !there("fish", &mut Command::new("fish")) {
        return;
    }
    let folder = script("fish", "r.fish");
    let offered = |line: &str| -> Vec<String> {
        let said = Command::new("fish")
            .args(["--no-config", "-c", "source r.fish; complete -C $argv[1]", line])
            .current_dir(folder.path())
            .env("HOME", folder.path())
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stderr), "");
        let text = String::from_utf8(said.stdout).unwrap();
        text.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect()
    };
    for (line, expected) in TYPED {
        assert_eq!(offered(line), expected, "{line}");
    }
    std::fs::write(folder.path().join("zzz.toml"), "").unwrap();
    assert_eq!(offered("resilver --config z"), ["zzz.toml"]);
    assert_eq!(offered("resilver --timeout z"), [""; 0], "a time is no file");
}

/// It completes in a terminal alone: one of its own, whose lines are read until all words came.
#[test]
fn zsh_completes_commands_flags_and_values() {
    if !there("zsh", &mut Command::new("zsh")) {
        return;
    }
    let folder = script("zsh", "_resilver");
    for (line, expected) in TYPED {
        let missing = not_offered(folder.path(), line, expected);
        assert!(missing.is_empty(), "{line}: {missing:?}");
    }
}

/// Two tabs show a list, or complete the one word that there is; then the line is cleared. It is
/// typed once the prompt shows that the shell reads keys.
const TERMINAL: &str = r#"
    zmodload zsh/zpty
    zpty z zsh -f -i
    zpty -w z "fpath=($PWD \$fpath); autoload -Uz compinit; compinit -u -D; PROMPT=BEG''UN"
    zpty -r z said '*BEGUN*'
    zpty -n -w z "$1"$'\t\t\x15print E\'\'ND\n'
    zpty -r z said '*END*'
    print -r -- "$said"
    zpty -d z
"#;

fn not_offered<'w>(folder: &Path, line: &str, expected: &[&'w str]) -> Vec<&'w str> {
    let zsh = Command::new("zsh")
        .args(["-f", "-c", TERMINAL, "zsh", line])
        .current_dir(folder)
        .envs([("HOME", folder.as_os_str()), ("TERM", "xterm".as_ref())])
        .output()
        .unwrap();
    // Without what moves the cursor and makes colours. (What was typed is shown too: it is no
    // answer.)
    let shown = String::from_utf8_lossy(&zsh.stdout).replace(line, "");
    let text = |piece: &str| piece.trim_start_matches(|c: char| !c.is_alphabetic()).chars().skip(1).collect::<String>();
    let mut pieces = shown.split('\x1b');
    let mut said = pieces.next().unwrap_or_default().to_owned();
    pieces.for_each(|piece| said.extend([" ", &text(piece)]));
    assert!(zsh.status.success(), "{said}");
    let is_offered =
        |word: &str| said.split(|c: char| !c.is_ascii_alphanumeric() && !"-.".contains(c)).any(|w| w == word);
    expected.iter().copied().filter(|word| !is_offered(word)).collect()
}
