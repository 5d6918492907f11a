//! What clients and servers say about keys, as text of which nothing is lost: a byte that is no
//! UTF-8 stands there as a character that nobody uses.

/// The last of Unicode's private characters: each stands for the byte that it ends with.
const FIRST: u32 = 0x10_ff00;

/// The text for these bytes. [`bytes()`] gives them back.
pub fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for char in chunk.valid().chars() {
            match stands_for(char) {
                None => text.push(char),
                // It stands for itself, byte by byte.
                Some(_) => text.extend(char.encode_utf8(&mut [0; 4]).bytes().filter_map(stand_in)),
            }
        }
        text.extend(chunk.invalid().iter().copied().filter_map(stand_in));
    }
    text
}

/// What the text stands for.
pub fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for char in text.chars() {
        match stands_for(char) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

fn stand_in(byte: u8) -> Option<char> {
    char::from_u32(FIRST + u32::from(byte))
}

fn stands_for(char: char) -> Option<u8> {
    u32::from(char).checked_sub(FIRST).and_then(|byte| u8::try_from(byte).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_lost() {
        assert_eq!(text("k ä 鍵".as_bytes()), "k ä 鍵");
        let all: Vec<u8> = (0..=0xff).chain("ä\u{10ffe9}鍵".bytes()).chain(*b"caf\xe9:1").collect();
        assert_eq!(bytes(&text(&all)), all);
        assert_ne!(text(b"caf\xe9"), text(b"caf\xe8"));
        // What only looks like a stand-in is kept as well.
        let own = "\u{10ffe9}".as_bytes();
        assert_eq!((bytes(&text(own)).as_slice(), text(own) == text(b"\xe9")), (own, false));
    }
}
