//! Room for what is read from a socket.

use bytes::BytesMut;

/// Room for one read.
pub const READ_BLOCK: usize = 64 * 1024;

/// A buffer with more room is given back once what it was for is passed on.
const KEPT: usize = 4 * READ_BLOCK;

/// Room behind a large value, for what shows that it has ended.
const BEHIND: usize = 64;

/// What a buffer has to take in the next read, where `need` bytes in all are known to come.
pub(super) fn missing(buffer: &BytesMut, need: usize) -> usize {
    need.saturating_sub(buffer.len()).max(READ_BLOCK / 4)
}

/// Makes room in a buffer of which what was read is taken again and again, and passed on.
#[inline(always)]
pub(super) fn make(buffer: &mut BytesMut, need: usize) {
    // Where nothing is left of what was read before, and nothing refers to any of it, the same
    // bytes serve again: they are in the processor's caches, and a whole block takes at once what
    // would be several reads at the end of one.
    if buffer.is_empty() && buffer.try_reclaim(READ_BLOCK) {
        if need == 0 && buffer.capacity() > KEPT {
            // What a large value has taken is not kept for small ones.
            *buffer = BytesMut::with_capacity(READ_BLOCK);
        }
        return;
    }
    make_more(buffer, need);
}

/// Makes room behind what was read and is not passed on yet.
fn make_more(buffer: &mut BytesMut, need: usize) {
    let room = buffer.capacity() - buffer.len();
    if buffer.len() > KEPT && (buffer.len() + 1..=buffer.capacity()).contains(&need) {
        // The end of a large value. With more room its block would hold the beginning of the next
        // one, and both would stay together.
        return;
    }
    let missing = missing(buffer, need);
    if room < missing {
        buffer.reserve((missing + BEHIND).max(READ_BLOCK));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `len` bytes; returns where they stand.
    fn read(buffer: &mut BytesMut, len: usize) -> *const u8 {
        assert!(buffer.capacity() - buffer.len() >= len);
        let at = buffer.len();
        buffer.extend_from_slice(&vec![b'x'; len]);
        buffer[at..].as_ptr()
    }

    #[test]
    fn the_same_bytes_serve_again_once_nobody_holds_any() {
        let mut buffer = BytesMut::new();
        make(&mut buffer, 0);
        let first = read(&mut buffer, 20_000);
        drop(buffer.split_to(20_000).freeze());
        make(&mut buffer, 0);
        assert_eq!((buffer.as_ptr(), buffer.capacity()), (first, READ_BLOCK));
        read(&mut buffer, 20_000);
        let held = buffer.split_to(20_000).freeze();
        make(&mut buffer, 0);
        let second = read(&mut buffer, 20_000);
        assert_eq!(
            second as usize - first as usize,
            20_000,
            "what is left of the block, while somebody holds the rest"
        );
        drop((held, buffer.split_to(20_000)));
        make(&mut buffer, 0);
        assert_eq!((buffer.as_ptr(), buffer.capacity()), (first, READ_BLOCK));
    }

    /// Seen: 1 MB that a client had not read held 2 MB.
    #[test]
    fn a_large_value_has_a_block_of_its_own() {
        const VALUE: usize = 1_000_000;
        let mut buffer = BytesMut::new();
        make(&mut buffer, 0);
        read(&mut buffer, READ_BLOCK);
        make(&mut buffer, VALUE);
        read(&mut buffer, VALUE - READ_BLOCK);
        make(&mut buffer, VALUE + 5);
        read(&mut buffer, 5);
        assert!(buffer.capacity() < VALUE + READ_BLOCK, "{}", buffer.capacity());
    }

    #[test]
    fn the_room_of_a_large_value_is_given_back() {
        let mut buffer = BytesMut::new();
        make(&mut buffer, 1_000_000);
        read(&mut buffer, 1_000_000);
        drop(buffer.split_to(1_000_000));
        make(&mut buffer, 0);
        assert!(buffer.capacity() <= KEPT, "{}", buffer.capacity());
    }

    #[test]
    fn there_is_room_for_all_that_is_missing_and_never_little() {
        let mut buffer = BytesMut::new();
        make(&mut buffer, 0);
        read(&mut buffer, READ_BLOCK - 1000);
        make(&mut buffer, 1_000_000);
        assert!(buffer.capacity() >= 1_000_000);
        let mut buffer = BytesMut::new();
        let mut held = Vec::new();
        for len in (0..100).map(|i| i * 321 % 7_000) {
            make(&mut buffer, 0);
            assert!(buffer.capacity() - buffer.len() >= READ_BLOCK / 4);
            read(&mut buffer, len);
            held.push(buffer.split_to(len).freeze());
        }
    }
}
