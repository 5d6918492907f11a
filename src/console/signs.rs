//! The colours of the words that a proxy says, and the signs in front of them. Pure.

use super::table::Tone;
use crate::report::names::STATE;
use crate::report::seen::Fields;
use crate::report::verdict::Word;

/// Of the whole.
pub(crate) fn of_whole(word: Word) -> Tone {
    match word {
        Word::Mirrored => Tone::Good,
        Word::Dark => Tone::Bad,
        _ => Tone::Warning,
    }
}

/// Of several pools; `None`: one of them does not answer.
pub(crate) fn of_all(word: Option<Word>) -> Tone {
    word.map_or(Tone::Bad, of_whole)
}

/// A server's state behind its sign.
pub(crate) fn of_server(server: &Fields) -> (String, Tone) {
    let state = server.text(STATE);
    let (sign, tone) = match state {
        "up" => ("", Tone::Plain),
        "lost" => ("! ", Tone::Bad),
        _ => ("~ ", Tone::Warning),
    };
    (format!("{sign}{state}"), tone)
}
