//! Several pools: the worst, and a line for each. Pure.

use serde_json::{Value, json};

use super::screen::Look;
use crate::console::proxy::Looked;
use crate::console::signs;
use crate::console::table::{Table, Tone};
use crate::report::json::{JSON_VERSION, silent_json};
use crate::report::verdict::{Word, small, worst};

/// Where there are more pools than this, those that are mirrored have only their line in the list.
const TOLD: usize = 4;

/// `None`: it does not answer.
fn word_of(looked: &Looked) -> Option<Word> {
    looked.said.as_ref().ok().map(|(seen, _)| seen.word())
}

/// See [`worst`].
pub(super) fn word(all: &[Looked]) -> Option<Word> {
    worst(all.iter().map(word_of))
}

/// Whether it is shown by itself, below the lines of all.
pub(super) fn is_told(looked: &Looked, all: &[Looked], look: Look) -> bool {
    word_of(looked).is_some_and(|word| look.all || all.len() <= TOLD || word != Word::Mirrored)
}

/// The head of the screen.
pub(super) fn lines(all: &[Looked], proxy: &str, look: Look) -> String {
    let whole = word(all);
    let shown = signs::of_all(whole).paint(whole.map_or("UNKNOWN", Word::text), look.colours);
    let mut table = Table::new(&["POOL", "STATE", "WHY"], look.colours);
    for looked in all {
        let (state, why, tone) = match &looked.said {
            Ok((seen, _)) => (seen.word().text(), seen.why(), signs::of_whole(seen.word())),
            Err(why) => ("UNKNOWN", why.clone(), Tone::Bad),
        };
        table.row(vec![looked.at.pool.clone().unwrap_or_default(), state.to_owned(), why], tone);
    }
    format!("resilver {proxy}  {} pools: {shown}\n{table}", all.len())
}

/// All pools as JSON, in the form of `/status.json` of the admin listener.
pub(super) fn json(all: &[Looked]) -> Value {
    let of_pool = |looked: &Looked| match &looked.said {
        Ok((seen, _)) => {
            let mut json = seen.json();
            json["pool"] = json!(looked.at.pool);
            json
        }
        Err(why) => silent_json(looked.at.pool.as_deref(), why),
    };
    json!({
        "version": JSON_VERSION,
        "word": small(word(all)),
        "mirrored": all.iter().all(|looked| looked.said.as_ref().is_ok_and(|(seen, _)| seen.mirrored)),
        "pools": all.iter().map(of_pool).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::proxy::ProxyArg;
    use crate::report::seen::{Seen, stats};
    use crate::report::traffic::Traffic;

    fn pool(name: &str, state: Option<&str>) -> Looked {
        let at = ProxyArg { proxy: "/run/r.sock".parse().expect("a path"), pool: Some(name.to_owned()) };
        let said = state.ok_or("no answer".to_owned()).map(|state| {
            let mirrored = u8::from(state == "mirrored");
            let status = format!("mode auto\nmirrored {mirrored}\npair:a:1|b:1:state {state}");
            let seen = Seen::of([stats(&status), stats(""), stats("a:1:place primary")]).expect("an answer");
            (seen, Traffic::of(&stats("uptime_ms 1")).expect("an answer"))
        });
        Looked { at, said }
    }

    const PLAIN: Look = Look { colours: false, all: false, columns: None };

    #[test]
    fn each_has_its_word_and_the_worst_stands_above_them() {
        let all = [pool("near", Some("mirrored")), pool("of-carts", Some("degraded")), pool("x", None)];
        assert_eq!(
            lines(&all, "/run/r.sock", PLAIN),
            "\
resilver /run/r.sock  3 pools: UNKNOWN
POOL      STATE     WHY
near      MIRRORED  every item has two copies
of-carts  DEGRADED  1 of 1 pair has one copy
x         UNKNOWN   no answer
"
        );
        let json = json(&all);
        assert_eq!((json["word"].as_str(), json["mirrored"].as_bool()), (Some("unknown"), Some(false)));
        let words: Vec<&str> =
            json["pools"].as_array().expect("pools").iter().filter_map(|p| p["word"].as_str()).collect();
        assert_eq!(words, ["mirrored", "degraded", "unknown"]);
        assert_eq!(
            (json["pools"][1]["pool"].as_str(), json["pools"][2]["why"].as_str()),
            (Some("of-carts"), Some("no answer"))
        );
    }

    /// A pool that refuses keys is not hidden by one that says nothing.
    #[test]
    fn the_worst_is_dark_then_unknown_then_the_rest() {
        for (states, expected) in [
            (&[Some("mirrored"), Some("mirrored")][..], Some(Word::Mirrored)),
            (&[Some("mirrored"), Some("recovering"), Some("degraded")], Some(Word::Degraded)),
            (&[Some("degraded"), None], None),
            (&[None, Some("dark"), Some("mirrored")], Some(Word::Dark)),
            (&[None], None),
        ] {
            let all: Vec<Looked> = states.iter().map(|state| pool("p", *state)).collect();
            assert_eq!(word(&all), expected, "{states:?}");
        }
    }

    #[test]
    fn of_many_pools_those_with_something_to_tell_are_shown_in_full() {
        let mut all = vec![pool("bad", Some("dark")), pool("silent", None)];
        all.extend((0..6).map(|_| pool("good", Some("mirrored"))));
        let told = |all: &[Looked], look| all.iter().filter(|looked| is_told(looked, all, look)).count();
        assert_eq!(told(&all, PLAIN), 1, "of the silent one its line says all");
        assert_eq!(told(&all, Look { all: true, ..PLAIN }), 7);
        assert_eq!(told(&all[..4], PLAIN), 3);
    }
}
