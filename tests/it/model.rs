//! The model memcached of the other tests against the real one: random commands on two keys, and
//! every answer is the same to the byte.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::memcached::Memcached as Model;
use crate::support::{DEADLINE, Memcached, Rng, seed};

/// Whose answers the model gives.
const REFERENCE: &str = "1.6.18";
const COMMANDS: usize = 20_000;
/// Its time to live shows how many seconds have passed at the node.
const CLOCK: &str = "set clock 0 2000000 0\r\n\r\n";
const CLOCK_SHOWN: &str = "mg clock t\r\n";

/// All that is answered before `MN`.
fn ask(stream: &mut TcpStream, commands: &str) -> String {
    stream.write_all(format!("{commands}mn\r\n").as_bytes()).unwrap();
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(b"MN\r\n") {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "closed behind {commands:?}, after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..read]);
    }
    String::from_utf8(answer).unwrap().strip_suffix("MN\r\n").unwrap().to_owned()
}

fn one<'a>(rng: &mut Rng, of: &[&'a str]) -> &'a str {
    of[rng.below(of.len())]
}

/// Some of these, beginning anywhere among them.
fn some(rng: &mut Rng, of: &[&str]) -> String {
    let start = rng.below(of.len());
    let turned = of[start..].iter().chain(&of[..start]);
    turned.filter(|_| rng.percent(40)).map(|flag| format!(" {flag}")).collect()
}

fn command(rng: &mut Rng, last_cas: u64) -> String {
    const EXPTIMES: [&str; 7] = ["0", "0", "0", "100", "1000", "1", "-1"];
    let (key, exptime) = (one(rng, &["a", "b"]), one(rng, &EXPTIMES));
    let value = one(rng, &["5", "10", "99", "100", "x", "", "18446744073709551615"]);
    let (len, delta, flags) = (value.len(), one(rng, &["1", "9", "1000"]), one(rng, &["0", "7"]));
    let cas = last_cas.saturating_sub(rng.below(3) as u64).max(1);
    let guard = format!("C{cas}");
    match rng.below(13) {
        0 => format!("{} {key} a\r\n", one(rng, &["get", "gets"])),
        1 => format!("{} {exptime} b {key}\r\n", one(rng, &["gat", "gats"])),
        2 | 3 => {
            let verb = one(rng, &["set", "set", "add", "replace", "append", "prepend"]);
            format!("{verb} {key} {flags} {exptime} {len}\r\n{value}\r\n")
        }
        4 => format!("cas {key} {flags} {exptime} {len} {cas}\r\n{value}\r\n"),
        5 => format!("{} {key} {delta}\r\n", one(rng, &["incr", "decr"])),
        6 => match rng.percent(50) {
            true => format!("delete {key}\r\n"),
            false => format!("touch {key} {exptime}\r\n"),
        },
        7 | 8 => format!("mg {key}{}\r\n", some(rng, &["v", "f", "s", "t", "c", "k", "O7", "T50", "N30", "R60"])),
        9 => {
            let mode = one(rng, &["ME", "MA", "MP", "MR", "MS"]);
            format!("ms {key} {len} {mode}{}\r\n{value}\r\n", some(rng, &["k", "c", "O7", "F5", "T100", &guard]))
        }
        10 => format!("ms {key} {len}{}\r\n{value}\r\n", some(rng, &["k", "c", "F5", "T100", "I", &guard])),
        11 => format!("md {key}{}\r\n", some(rng, &["k", "O7", "I", "T80", "I", &guard]).replacen(" I", "", 1)),
        _ => {
            let delta = format!("D{delta}");
            format!("ma {key}{}\r\n", some(rng, &["v", "t", "c", "k", "T70", "N30", "J12", "MD", &delta, &guard]))
        }
    }
}

/// The same, with its key in base64. Not where the key is named in this answer, or would be by that
/// in later ones: what was stored so is named so.
fn in_base64(rng: &mut Rng, command: String) -> String {
    let (line, data) = command.split_once("\r\n").unwrap();
    let mut words: Vec<&str> = line.split(' ').collect();
    if !["mg", "md", "ma"].contains(&words[0]) || words.contains(&"k") || !rng.percent(15) {
        return command;
    }
    words[1] = if words[1] == "a" { "YQ==" } else { "Yg==" };
    words.push("b");
    format!("{}\r\n{data}", words.join(" "))
}

#[test]
fn the_model_answers_as_memcached_does() {
    let memcached = Memcached::start(&[]);
    let mut stream = TcpStream::connect(memcached.addr()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let version = ask(&mut stream, "version\r\n");
    if !version.contains(REFERENCE) {
        eprintln!("skipped: memcached {version} is not {REFERENCE}, whose answers the model gives");
        return;
    }
    let mut rng = Rng::new(seed("model"), 1);
    // More than one while nobody has seen whether a number was written over the one before it.
    let mut models = vec![Model::default()];
    assert_eq!(answer_of(&mut models[0], CLOCK), ask(&mut stream, CLOCK));
    let mut log = Vec::new();
    for _ in 0..COMMANDS {
        let command = command(&mut rng, models[0].cas);
        let command = in_base64(&mut rng, command);
        let answer = ask(&mut stream, &format!("{CLOCK_SHOWN}{command}{CLOCK_SHOWN}"));
        let (before, rest) = answer.split_once("\r\n").unwrap();
        let (answer, after) = rest.rsplit_once("HD t").unwrap();
        log.push(format!("{command:?} -> {answer:?}"));
        let passed = |left: &str| 2_000_000 - left.trim().parse::<i64>().unwrap();
        // Where a second ended meanwhile it did it in the one or the other.
        let seconds = passed(before.strip_prefix("HD t").unwrap())..=passed(after);
        let counts = ["incr", "decr", "ma"].iter().any(|verb| command.starts_with(verb));
        let mut next: Vec<Model> = Vec::new();
        for (model, now) in models.iter().flat_map(|model| seconds.clone().map(move |now| (model, now))) {
            for holds_items in [false, true].into_iter().take(if counts { 2 } else { 1 }) {
                let mut model = Model { now, holds_items, ..model.clone() };
                if answer_of(&mut model, &command) == answer && next.iter().all(|other| other.items != model.items) {
                    next.push(model);
                }
            }
        }
        if next.is_empty() {
            let behind = &log[log.len().saturating_sub(12)..];
            panic!("the model says {:?} at the end of {behind:#?}", answer_of(&mut models[0], &command));
        }
        models = next;
    }
    assert!(models.len() < 5, "the answers show what it holds");
}

fn answer_of(model: &mut Model, command: &str) -> String {
    let mut answer = Vec::new();
    model.execute(command.as_bytes(), &mut answer);
    String::from_utf8(answer).unwrap()
}
