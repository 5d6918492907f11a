//! The tests of [`super`].

use crate::ambient;
use crate::protocol::expiry::Offset;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::Instant;

use super::*;
use crate::backend::{NodeStream, Pipe};
use crate::ids::NodeId;

/// Plays a dialogue of (side, command, answer) with an entry and returns how it ended.
async fn play(key: &'static [u8], binary: bool, dialogue: &[(Side, &str, &str)]) -> End {
    play_by(Entry::new(Bytes::from_static(key), binary, SlotId::ONLY, 0, false), dialogue).await
}

async fn play_by(mut entry: Entry, dialogue: &[(Side, &str, &str)]) -> End {
    // What the target is told is then what the source said is left. (Both are measured at the end
    // of a second, whenever the test runs.)
    let date = ambient::date(Instant::now());
    let sharp = Duration::new(date.as_secs(), 999_999_999);
    let offsets =
        Offsets { source: Offset::seen(date.as_secs() as i64, sharp), target: Offset::seen(10_000_000, sharp) };
    let (near, mut far) = duplex(4096);
    let mut pipe = Pipe::over(NodeId(0), NodeStream::from(near));
    for &(side, command, answer) in dialogue {
        assert_eq!(entry.side(), Some(side), "before {command}");
        let mut batch = Batch::new();
        let now = Instant::now();
        let asked = Asked { at: ambient::date(now), timed: true, shown: Some(date.as_secs() as i64) };
        assert!(entry.command(&mut batch, offsets, ambient::date(now)));
        far.write_all(answer.as_bytes()).await.unwrap();
        let deadline = now + Duration::from_secs(1);
        let sent = pipe.exchange(batch, deadline, |_, frame| entry.answer(&frame, asked).map_err(|t| format!("{t:?}")));
        sent.await.unwrap();
        let mut got = vec![0; command.len()];
        far.read_exact(&mut got).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&got), command);
    }
    match entry.stage {
        Stage::Done(end) => end,
        stage => panic!("it goes on: {stage:?}"),
    }
}

use Side::{Source, Target};

#[tokio::test(start_paused = true)]
async fn a_binary_key_is_copied_with_flags_and_ttl() {
    let end = play(
        b"a b",
        true,
        &[
            (Source, "mg YSBi b k v f t c\r\n", "VA 1 kYSBi b f7 t100 c9\r\nx\r\n"),
            (Target, "ms YSBi 1 b ME k c T10000100 F7\r\nx\r\n", "HD kYSBi b c1\r\n"),
            (Source, "mg YSBi b k t c\r\n", "HD kYSBi b t99 c9\r\n"),
        ],
    );
    assert_eq!(end.await, End::Copied(1));
}

#[tokio::test(start_paused = true)]
async fn a_stale_item_is_given_back_and_not_copied() {
    let end = play(
        b"k",
        false,
        &[
            (Source, "mg k k v f t c\r\n", "VA 1 kk f0 t-1 c4 X W\r\nx\r\n"),
            (Source, "md k k I C4\r\n", "HD kk\r\n"),
            (Target, "mg k k v f t c\r\n", "EN kk\r\n"),
        ],
    );
    assert_eq!(end.await, End::Skipped);
}

/// A client stores over what we won with an older `C` and `I`: that is stale as well, and
/// memcached takes it for being recomputed, by us.
#[tokio::test(start_paused = true)]
async fn what_a_client_stores_over_a_won_item_is_given_back() {
    let begin =
        [(Source, "mg k k v f t c\r\n", "VA 1 kk f0 t-1 c4 X W\r\nx\r\n"), (Source, "md k k I C4\r\n", "EX kk\r\n")];
    let end = (Target, "mg k k v f t c\r\n", "EN kk\r\n");
    let stale = [
        (Source, "mg k k t c\r\n", "HD kk t-1 c6 Z X\r\n"),
        (Source, "md k k I C6\r\n", "EX kk\r\n"),
        (Source, "mg k k t c\r\n", "HD kk t-1 c7 X W\r\n"),
        (Source, "md k k I C7\r\n", "HD kk\r\n"),
    ];
    // Recomputed; deleted; a fresh one, which a client recomputes before its time.
    let others = ["HD kk t-1 c6\r\n", "EN\r\n", "HD kk t9 c6 Z\r\n"].map(|is| [(Source, "mg k k t c\r\n", is)]);
    for middle in [stale.as_slice()].into_iter().chain(others.iter().map(|one| one.as_slice())) {
        assert_eq!(play(b"k", false, &[&begin, middle, &[end]].concat()).await, End::Skipped);
    }
}

#[tokio::test(start_paused = true)]
async fn a_touch_is_noticed_and_the_copy_made_again() {
    let end = play(
        b"k",
        false,
        &[
            (Source, "mg k k v f t c\r\n", "VA 1 kk f0 t50 c4\r\nx\r\n"),
            (Target, "ms k 1 ME k c T10000050 F0\r\nx\r\n", "HD kk c8\r\n"),
            (Source, "mg k k t c\r\n", "HD kk t70 c4\r\n"),
            (Target, "md k k C8\r\n", "HD kk\r\n"),
            (Source, "mg k k v f t c\r\n", "VA 1 kk f0 t70 c4\r\nx\r\n"),
            (Target, "ms k 1 ME k c T10000070 F0\r\nx\r\n", "NS kk c0\r\n"),
            (Target, "mg k k v f t c\r\n", "VA 1 kk f0 t70 c9\r\nx\r\n"),
            (Source, "mg k k v f t c\r\n", "VA 1 kk f0 t70 c4\r\nx\r\n"),
        ],
    );
    assert_eq!(end.await, End::Equal);
}

#[tokio::test(start_paused = true)]
async fn a_refused_item_leaves_nothing_and_ends() {
    for refusal in ["SERVER_ERROR out of memory storing object\r\n", "CLIENT_ERROR bad command line format\r\n"] {
        let course = [
            (Source, "mg k k v f t c\r\n", "VA 1 kk f0 t-1 c4\r\nx\r\n"),
            (Target, "ms k 1 ME k c T0 F0\r\nx\r\n", refusal),
            (Source, "mg k k t c\r\n", "HD kk t-1 c4\r\n"),
            (Target, "mg k k v f t c\r\n", "EN\r\n"),
        ];
        let end = play(b"k", false, &course);
        assert_eq!(end.await, End::Refused);
    }
}

#[tokio::test(start_paused = true)]
async fn without_cas_ids_the_content_is_verified() {
    let entry = Entry::new(Bytes::from_static(b"k"), false, SlotId::ONLY, 0, true).by_content();
    let end = play_by(
        entry,
        &[
            (Source, "mg k k v f t c\r\n", "VA 1 kk f0 t50 c0\r\nx\r\n"),
            (Target, "ms k 1 ME k c T10000050 F0\r\nx\r\n", "HD kk c8\r\n"),
            (Source, "mg k k v f t c\r\n", "VA 1 kk f0 t50 c0\r\ny\r\n"),
            (Target, "md k k C8\r\n", "HD kk\r\n"),
            (Source, "mg k k v f t c\r\n", "VA 1 kk f0 t50 c0\r\ny\r\n"),
            (Target, "ms k 1 ME k c T10000050 F0\r\ny\r\n", "HD kk c9\r\n"),
            (Source, "mg k k v f t c\r\n", "VA 1 kk f0 t50 c0\r\ny\r\n"),
        ],
    );
    assert_eq!(end.await, End::Copied(1));
}

#[tokio::test(start_paused = true)]
async fn remaining_ttl_zero_is_never_stored() {
    let end = play(
        b"k",
        false,
        &[(Source, "mg k k v f t c\r\n", "VA 1 kk f0 t0 c4\r\nx\r\n"), (Target, "mg k k v f t c\r\n", "EN kk\r\n")],
    );
    assert_eq!(end.await, End::Skipped);
}

/// What is marked is deleted where it stood alone, and what a client stored over it stays.
#[tokio::test(start_paused = true)]
async fn what_the_source_alone_holds_is_withdrawn() {
    let look = (Source, "mg k k t c\r\n", "HD kk t-1 c4 X W\r\n");
    let gone = [look, (Source, "md k k C4\r\n", "HD kk\r\n")];
    let overtaken = [
        look,
        (Source, "md k k C4\r\n", "EX kk\r\n"),
        // The right that the look won has passed to another client.
        (Source, "md k k I C4\r\n", "EX kk\r\n"),
        (Source, "mg k k t c\r\n", "HD kk t-1 c5\r\n"),
        (Source, "mg k k v f t c\r\n", "VA 1 kk f0 t-1 c5\r\nx\r\n"),
        (Target, "ms k 1 ME k c T0 F0\r\nx\r\n", "HD kk c8\r\n"),
        (Source, "mg k k t c\r\n", "HD kk t-1 c5\r\n"),
    ];
    let fresh = [(Source, "mg k k t c\r\n", "HD kk t-1 c5\r\n")];
    let withdrawn = || Entry::new(Bytes::from_static(b"k"), false, SlotId::ONLY, 0, true).withdrawn();
    assert_eq!(play_by(withdrawn(), &gone).await, End::Skipped);
    assert_eq!(play_by(withdrawn(), &overtaken).await, End::Copied(1));
    assert_eq!(play_by(withdrawn(), &fresh).await, End::Skipped);
}
