//! One client: answers in the order of its requests, and its bounds.

use std::sync::LazyLock;

use super::*;
use crate::protocol::classic;
use crate::protocol::request::{Keyed, Keys, Kind, Limits, Parsed};
use crate::stats::WorkerStats;
use crate::stats::requests::Asked;

const CLASSIC: Style = Style::Classic { noreply: false };
const NOREPLY: Style = Style::Classic { noreply: true };
const BEGUN: Begun = Begun { asked: Asked::Get, at_us: 0 };

fn meter() -> Meter<'static> {
    static STATS: LazyLock<WorkerStats> = LazyLock::new(WorkerStats::default);
    Meter { stats: &STATS, now_us: 0 }
}

fn sent(client: &mut Client) -> String {
    let out = client.unsent().expect("something in flight");
    let mut slices = [std::io::IoSlice::new(&[]); crate::protocol::out::MAX_SLICES];
    let count = out.slices(&mut slices);
    let text = slices[..count].iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect();
    let len = out.len();
    out.advance(len);
    text
}

#[test]
fn answers_leave_in_the_order_of_the_requests() {
    let (mut client, mut spare) = (Client::new(Occupant(0), 0), Spare::default());
    let a = client.open_slot(1, false, (CLASSIC, BEGUN), 10, &mut spare);
    let b = client.open_slot(1, false, (NOREPLY, BEGUN), 10, &mut spare);
    let c = client.open_slot(1, false, (CLASSIC, BEGUN), 10, &mut spare);
    client.note_key(a, 7, true);
    assert!(!client.answer((c, 0, false), Outcome::Own(b"C\r\n"), &mut spare, &Arc::default(), meter()));
    assert!(!client.answer((b, 0, false), Outcome::Own(b"noreply\r\n"), &mut spare, &Arc::default(), meter()));
    assert_eq!(sent(&mut client), "");
    assert!(client.conflicts(7, false, &mut spare));
    assert!(!client.conflicts(7, true, &mut spare) && !client.conflicts(8, false, &mut spare));
    assert!(client.answer((a, 0, false), Outcome::Own(b"A\r\n"), &mut spare, &Arc::default(), meter()));
    assert_eq!(sent(&mut client), "A\r\nC\r\n");
    assert!(client.is_idle() && !client.conflicts(7, false, &mut spare));
}

#[test]
fn values_of_several_keys_leave_in_request_order_and_one_error_stands_for_all() {
    let (mut client, mut spare) = (Client::new(Occupant(0), 0), Spare::default());
    let a = client.open_slot(3, true, (CLASSIC, BEGUN), 0, &mut spare);
    (0..3).for_each(|_| client.begin_read(a, &Memory::default()));
    client.answer(
        (a, 2, true),
        Outcome::Hit(Bytes::from_static(b"VALUE c 0 1\r\n3\r\n")),
        &mut spare,
        &Arc::default(),
        meter(),
    );
    client.answer((a, 1, true), Outcome::Miss, &mut spare, &Arc::default(), meter());
    client.answer(
        (a, 0, true),
        Outcome::Hit(Bytes::from_static(b"VALUE a 0 1\r\n1\r\n")),
        &mut spare,
        &Arc::default(),
        meter(),
    );
    assert_eq!(sent(&mut client), "VALUE a 0 1\r\n1\r\nVALUE c 0 1\r\n3\r\nEND\r\n");
    let b = client.open_slot(2, true, (CLASSIC, BEGUN), 0, &mut spare);
    (0..2).for_each(|_| client.begin_read(b, &Memory::default()));
    client.answer((b, 0, true), Outcome::Own(b"SERVER_ERROR gone\r\n"), &mut spare, &Arc::default(), meter());
    client.answer(
        (b, 1, true),
        Outcome::Hit(Bytes::from_static(b"VALUE a 0 1\r\n1\r\n")),
        &mut spare,
        &Arc::default(),
        meter(),
    );
    assert_eq!(sent(&mut client), "SERVER_ERROR gone\r\n");
}

#[test]
fn pieces_of_a_line_have_one_end_and_an_error_ends_it() {
    let (mut client, mut spare) = (Client::new(Occupant(0), 0), Spare::default());
    let value = |name: &str| Outcome::Hit(Bytes::from(format!("VALUE {name} 0 1\r\n1\r\n")));
    let text = [b"get".as_slice(), &b" k".repeat(1 << 16), b"\r\n"].concat();
    let Parsed::Piece(piece) = classic::parse(&text, &Limits::default()) else { panic!("it is no long line") };
    let rest = piece.rest;
    assert!(rest.is_some());
    for (second, told) in [
        (value("c"), "VALUE a 0 1\r\n1\r\nVALUE c 0 1\r\n1\r\nVALUE e 0 1\r\n1\r\nEND\r\nV\r\n"),
        (Outcome::Own(b"SERVER_ERROR gone\r\n"), "VALUE a 0 1\r\n1\r\nSERVER_ERROR gone\r\nV\r\n"),
    ] {
        let slots = [rest, rest, None].map(|rest| {
            let slot = client.open_slot(2, true, (CLASSIC, BEGUN), 10, &mut spare);
            client.begin_piece(rest);
            (0..2).for_each(|_| client.begin_read(slot, &Memory::default()));
            slot
        });
        let version = client.open_slot(0, false, (CLASSIC, BEGUN), 9, &mut spare);
        client.answer((version, 0, false), Outcome::Own(b"V\r\n"), &mut spare, &Arc::default(), meter());
        let mut answer =
            |slot, part, outcome| client.answer((slot, part, true), outcome, &mut spare, &Arc::default(), meter());
        answer(slots[2], 0, value("e"));
        answer(slots[2], 1, Outcome::Miss);
        answer(slots[1], 1, Outcome::Miss);
        answer(slots[1], 0, second);
        answer(slots[0], 0, value("a"));
        answer(slots[0], 1, Outcome::Miss);
        assert_eq!(sent(&mut client), told);
        client.settle(&mut spare);
        assert!(client.in_flight.is_none(), "nothing is left of it");
    }
}

#[test]
fn what_is_known_of_a_waiting_get_stays_with_its_client() {
    let (mut client, mut spare) = (Client::new(Occupant(0), 0), Spare::default());
    let a = client.open_slot(1, false, (CLASSIC, BEGUN), 10, &mut spare);
    client.note_key(a, 7, true);
    assert!(client.conflicts(7, false, &mut spare));
    let request = Keyed::new(Kind::Get, Keys { span: 4..9, count: 2 });
    client.hold(
        Hold::Key { hash: 7, write: false },
        Some(Box::new(Held { request, style: CLASSIC, len: 11, next: 6, piece: false, rest: None })),
    );
    assert!(!client.may_resume(&Arc::default()));
    client.answer((a, 0, false), Outcome::Own(b"A\r\n"), &mut spare, &Arc::default(), meter());
    assert!(client.may_resume(&Arc::default()));
    assert_eq!(sent(&mut client), "A\r\n");
    client.settle(&mut spare);
    assert!(spare.kept().0 == 0, "lent to another client it would begin that one's input with this get");
    assert!(client.take_held().is_some_and(|held| held.next == 6));
    client.settle(&mut spare);
    assert_eq!(spare.kept().0, 1);
}

#[test]
fn what_very_many_keys_took_is_not_kept() {
    for (keys, kept) in [(10, 1), (20 * MAX_READS, 0)] {
        let (mut client, mut spare) = (Client::new(Occupant(0), 0), Spare::default());
        let slot = client.open_slot(keys, true, (CLASSIC, BEGUN), 0, &mut spare);
        for _ in 0..keys {
            client.begin_read(slot, &Memory::default());
            client.note_key(slot, 7, false);
        }
        (0..keys).for_each(|part| {
            assert_eq!(
                client.answer((slot, part, true), Outcome::Miss, &mut spare, &Arc::default(), meter()),
                part + 1 == keys
            )
        });
        assert_eq!(sent(&mut client), "END\r\n");
        client.settle(&mut spare);
        assert!(client.in_flight.is_none());
        assert_eq!(spare.kept(), (kept, kept, 0), "{keys} keys");
    }
}

/// Where others have met values of 1 MB, and all that may be doubted is.
#[test]
fn who_knows_large_values_is_asked_for_as_many_as_fit_and_whoever_is_surprised_for_few() {
    let memory = Arc::new(Memory::new(100 << 20));
    memory.sizes.met(1 << 20);
    memory.doubt(0, 1000);
    let (mut client, mut spare) = (Client::new(Occupant(0), 0), Spare::default());
    client.reads_max = MAX_READS;
    assert_eq!(client.read_room(&memory), 4);
    let mut knows = Client::new(Occupant(1), 0);
    (knows.reads_max, knows.largest) = (MAX_READS, 300 << 10);
    assert_eq!(knows.read_room(&memory), 13, "4 MiB of them");
    let slots = [0; 4].map(|_| {
        let slot = client.open_slot(1, false, (CLASSIC, BEGUN), 0, &mut spare);
        client.begin_read(slot, &memory);
        slot
    });
    for (slot, bytes, proved) in [(slots[0], 10, 3), (slots[1], 10, 6), (slots[2], 20_000, 0)] {
        let value = Outcome::Hit(Bytes::from(vec![b'x'; bytes]));
        client.answer((slot, 0, true), value, &mut spare, &memory, meter());
        assert_eq!(client.proved, proved, "{bytes}");
    }
    // While memory is short whoever reads some that are not large leaves no more than its own part.
    let mut share = Share::default();
    share.set(60 << 20, &memory);
    let mut middling = Client::new(Occupant(2), 0);
    (middling.reads_max, middling.largest) = (MAX_READS, 10 << 10);
    memory.sizes.age(60_000_000);
    memory.sizes.age(120_000_000);
    assert_eq!(middling.read_room(&memory), 6);
}

/// Clients that ask all at once leave room for as many; a few go on with it, and the rest is given
/// back.
#[test]
fn what_many_clients_took_at_once_is_given_back() {
    const CLIENTS: u32 = 12;
    const KEYS: u32 = 40;
    let mut spare = Spare::default();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|i| Client::new(Occupant(i), 0)).collect();
    for client in &mut clients {
        let slot = client.open_slot(KEYS, true, (CLASSIC, BEGUN), 0, &mut spare);
        (0..KEYS).for_each(|hash| {
            client.begin_read(slot, &Memory::default());
            client.note_key(slot, hash, false);
        });
        assert!(client.conflicts(7, true, &mut spare), "looked up in a table");
    }
    for client in &mut clients {
        (0..KEYS).for_each(|part| {
            client.answer((SlotNumber(0), part, true), Outcome::Miss, &mut spare, &Arc::default(), meter());
        });
        assert_eq!(sent(client), "END\r\n");
        client.settle(&mut spare);
    }
    assert_eq!(spare.kept(), (CLIENTS as usize, CLIENTS as usize, CLIENTS as usize));
    assert!(spare.is_much());
    spare.give_back();
    assert_eq!((spare.kept(), spare.is_much()), ((8, 8, 8), false));
}

#[test]
fn a_get_of_very_many_keys_holds_a_window_of_them() {
    let (mut client, mut spare, memory) = (Client::new(Occupant(0), 0), Spare::default(), Arc::default());
    client.reads_max = MAX_READS;
    let total = MAX_READS + 10;
    let slot = client.open_slot(total, true, (CLASSIC, BEGUN), 0, &mut spare);
    (0..MAX_READS).for_each(|_| client.begin_read(slot, &Memory::default()));
    assert_eq!(client.read_room(&memory), 0);
    let value = |i: u32| Bytes::from(format!("VALUE k{i} 0 1\r\nx\r\n"));
    client.answer((slot, 1, true), Outcome::Hit(value(1)), &mut spare, &memory, meter());
    assert_eq!(sent(&mut client), "", "the first key is still unanswered");
    client.answer((slot, 0, true), Outcome::Hit(value(0)), &mut spare, &memory, meter());
    assert_eq!(sent(&mut client), "VALUE k0 0 1\r\nx\r\nVALUE k1 0 1\r\nx\r\n");
    assert_eq!(client.read_room(&memory), 2);
    for part in 2..MAX_READS {
        client.answer((slot, part, true), Outcome::Miss, &mut spare, &memory, meter());
    }
    (0..10).for_each(|_| client.begin_read(slot, &Memory::default()));
    for part in MAX_READS..total {
        client.answer((slot, part, true), Outcome::Miss, &mut spare, &memory, meter());
    }
    assert_eq!(sent(&mut client), "END\r\n");
    client.settle(&mut spare);
    assert!(client.in_flight.is_none() && spare.kept().0 == 1, "all is given back");
}

/// A client that asks for large values: what is expected counts like what is there.
#[test]
fn no_more_is_asked_for_than_a_client_may_leave_unread() {
    let (mut client, mut spare, memory) =
        (Client::new(Occupant(0), 0), Spare::default(), Arc::new(Memory::new(100 << 20)));
    assert_eq!(client.read_room(&memory), FIRST_READS, "nobody knows yet what its values are like");
    let ask = |client: &mut Client, spare: &mut Spare| {
        let slot = client.open_slot(1, false, (CLASSIC, BEGUN), 0, spare);
        client.begin_read(slot, &Memory::default());
        slot
    };
    let answer = |client: &mut Client, spare: &mut Spare, slot, bytes| {
        client.answer((slot, 0, true), Outcome::Hit(Bytes::from(vec![b'x'; bytes])), spare, &memory, meter())
    };
    let first = ask(&mut client, &mut spare);
    answer(&mut client, &mut spare, first, 1 << 20);
    assert_eq!(client.read_room(&memory), 2, "one waits to be sent, and less than three fit");
    let slots = [ask(&mut client, &mut spare), ask(&mut client, &mut spare)];
    assert_eq!((client.read_room(&memory), client.has_room(&memory)), (0, false));
    sent(&mut client);
    for slot in slots {
        answer(&mut client, &mut spare, slot, 1 << 20);
        sent(&mut client);
    }
    assert_eq!(client.read_room(&memory), 4);
    // With small ones it is trusted with more, little by little.
    for _ in 0..100 {
        let slot = ask(&mut client, &mut spare);
        answer(&mut client, &mut spare, slot, 100);
        sent(&mut client);
    }
    assert_eq!(client.read_room(&memory), 4 + 25, "there were large ones: a quarter of all is for what may be large");
    (1..=2).for_each(|minute| memory.sizes.age(minute * 60_000_000));
    assert!(client.read_room(&memory) > 100);
    // One that is larger than all room goes alone.
    client.largest = 100 << 20;
    assert_eq!(client.read_room(&memory), 1);
    ask(&mut client, &mut spare);
    assert_eq!(client.read_room(&memory), 0);
}

/// 1,000 clients with 15 KB values that they do not take could otherwise leave gigabytes in no
/// account, for no value of theirs is large.
#[test]
fn small_answers_that_are_not_taken_count() {
    let (mut client, mut spare, memory) =
        (Client::new(Occupant(0), 0), Spare::default(), Arc::new(Memory::new(100 << 20)));
    for _ in 0..100 {
        let slot = client.open_slot(1, false, (CLASSIC, BEGUN), 10, &mut spare);
        client.begin_read(slot, &Memory::default());
        client.answer((slot, 0, true), Outcome::Hit(Bytes::from(vec![b'x'; 15_000])), &mut spare, &memory, meter());
    }
    let uncounted = 1_500_000 - memory.used();
    assert!(uncounted < 2 * FREE, "of 1.5 MB unread {uncounted} bytes are in no account");
    let out = client.unsent().expect("answers");
    out.advance(out.len());
    client.count_written(&memory);
    assert_eq!(memory.used(), 0);
}

#[test]
fn short_of_memory_large_values_come_one_by_one_and_small_ones_as_ever() {
    let (mut large, mut small, mut spare) =
        (Client::new(Occupant(0), 0), Client::new(Occupant(1), 0), Spare::default());
    large.largest = 1 << 20;
    let memory = Arc::new(Memory::new(2 << 20));
    let others = |bytes| {
        let mut share = Share::default();
        share.set(bytes, &memory);
        share
    };
    let held = others(1 << 20);
    assert_eq!(large.read_room(&memory), 4);
    let more = others(1 << 19);
    assert!(memory.is_short() && !memory.is_full());
    assert_eq!((large.read_room(&memory), small.read_room(&memory)), (1, FIRST_READS));
    let slots = [0; 2].map(|_| {
        let slot = large.open_slot(1, false, (CLASSIC, BEGUN), 0, &mut spare);
        large.begin_read(slot, &Memory::default());
        slot
    });
    assert_eq!(large.read_room(&memory), 0);
    let value = || Outcome::Hit(Bytes::from(vec![b'x'; 1 << 20]));
    large.answer((slots[0], 0, true), value(), &mut spare, &memory, meter());
    assert_eq!(large.read_room(&memory), 0, "it has one to take");
    // Full, what comes for those who have not taken the last is thrown away, and said.
    let last = others(1 << 20);
    assert!(memory.is_full());
    large.answer((slots[1], 0, true), value(), &mut spare, &memory, meter());
    assert!(
        sent(&mut large)
            .ends_with("END\r\nSERVER_ERROR answers that clients have not read take all of --client-memory\r\n")
    );
    let slot = small.open_slot(1, false, (CLASSIC, BEGUN), 0, &mut spare);
    small.begin_read(slot, &Memory::default());
    small.answer((slot, 0, true), value(), &mut spare, &memory, meter());
    assert!(sent(&mut small).ends_with("xEND\r\n"), "one that waits for nothing else");
    drop((held, more, last));
    // What they have taken counts no more.
    large.settle(&mut spare);
    small.settle(&mut spare);
    assert_eq!(large.read_room(&memory), 4);
}

/// Values of one get are held until the last has come, that an error may stand in the place of
/// all; but not without bound.
#[test]
fn a_get_of_large_values_lets_them_go_as_they_come() {
    let (mut client, mut spare, memory) = (Client::new(Occupant(0), 0), Spare::default(), Arc::default());
    for failed in [false, true] {
        let slot = client.open_slot(4, true, (CLASSIC, BEGUN), 0, &mut spare);
        (0..4).for_each(|_| client.begin_read(slot, &Memory::default()));
        let mut answer =
            |client: &mut Client, part, answer| client.answer((slot, part, true), answer, &mut spare, &memory, meter());
        let value = || Outcome::Hit(Bytes::from(vec![b'x'; 1 << 20]));
        if failed {
            answer(&mut client, 3, Outcome::Own(b"SERVER_ERROR gone\r\n"));
        }
        for part in 0..3 {
            answer(&mut client, part, value());
            let unsent = client.in_flight.as_ref().map_or(0, |f| f.unsent());
            assert_eq!(unsent >> 20, if failed { 0 } else { part as usize + 1 });
        }
        assert_eq!(sent(&mut client).len(), if failed { "SERVER_ERROR gone\r\n".len() } else { 3 << 20 });
        if !failed {
            answer(&mut client, 3, Outcome::Own(b"SERVER_ERROR gone\r\n"));
            assert_eq!(sent(&mut client), "SERVER_ERROR gone\r\n");
        }
    }
}
