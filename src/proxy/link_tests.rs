use super::*;
use crate::progress::FLOOR;

/// All lines that are to be written.
fn lines(conn: &mut Conn) -> Vec<String> {
    let text = String::from_utf8(conn.out(0).one_piece().expect("nothing is shared").to_vec()).unwrap();
    conn.clear_out();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_connection_has_an_equal_part_of_its_nodes_room_within_bounds() {
    for (of, room) in [(1, 4 << 20), (4, 4 << 20), (8, 2 << 20), (64, 256 << 10), (10_000, 256 << 10)] {
        let mut conn = Conn::new(of);
        assert!(conn.has_room(u32::MAX), "alone, whatever it is");
        conn.push(Flight::Op(OpId(0)), 0, WAITS_FROM);
        assert!(conn.has_room(room - WAITS_FROM) && !conn.has_room(room - WAITS_FROM + 1), "{of}");
        conn.push(Flight::Op(OpId(0)), 0, room);
        assert!(conn.has_room(WAITS_FROM - 1) && !conn.has_room(WAITS_FROM), "{of}: what is small waits for none");
        conn.arrive();
        conn.arrive();
        assert!(conn.has_room(u32::MAX), "{of}: answered");
        conn.push(Flight::Op(OpId(0)), 0, room);
        conn.take_flights();
        assert!(conn.has_room(u32::MAX), "{of}: given up");
    }
}

#[test]
fn what_is_small_overtakes_those_that_wait_but_for_a_write_of_their_key() {
    let mut conn = Conn::new(1);
    assert!(!conn.must_wait(WAITS_FROM, true, 7));
    conn.waiting.push(OpId(0), 7, 0);
    assert!(conn.must_wait(WAITS_FROM, false, 8), "behind those that came before it");
    let small = WAITS_FROM - 1;
    let waits = [(false, 7), (true, 8), (true, 7)].map(|(write, hash)| conn.must_wait(small, write, hash));
    assert_eq!(waits, [false, false, true]);
}

#[test]
fn gets_share_lines_of_their_kind_up_to_a_number_and_a_length() {
    let mut conn = Conn::new(1);
    (0..=GET_KEYS_MAX).for_each(|_| conn.put_get(Kind::Get, b"k", OpId(0), 0, 0));
    conn.put_get(Kind::Gets, b"k", OpId(0), 0, 0);
    let keys = |line: &String| (line.split(' ').next().unwrap().to_owned(), line.split(' ').count() - 1);
    let told: Vec<_> = lines(&mut conn).iter().map(keys).collect();
    assert_eq!(told, [("get".to_owned(), GET_KEYS_MAX), ("get".to_owned(), 1), ("gets".to_owned(), 1)]);
    assert_eq!(conn.flights.iter().filter(|sent| sent.flight == Flight::GetEnd).count(), 3);
    (0..GET_KEYS_MAX).for_each(|_| conn.put_get(Kind::Get, &[b'k'; 250], OpId(0), 0, 0));
    let long = lines(&mut conn);
    assert!(long.len() > 2 && long.iter().all(|line| line.len() < GET_LINE_MAX + 10), "{}", long.len());
    // What was to be written is forgotten with its line.
    conn.put_get(Kind::Get, b"a", OpId(0), 0, 0);
    conn.clear_out();
    conn.put_get(Kind::Get, b"b", OpId(0), 0, 0);
    assert_eq!(lines(&mut conn), ["get b"]);
}

#[test]
fn an_answer_is_awaited_since_the_first_command_that_counts() {
    let mut conn = Conn::new(1);
    let void = [Flight::Void, Flight::VoidGet, Flight::GetEnd];
    for (at_us, flight) in (1..).zip(void) {
        conn.push(flight, at_us, 0);
    }
    assert_eq!(conn.awaited_since(), None);
    conn.push(Flight::Mark, 4, 0);
    conn.push(Flight::Op(OpId(0)), 5, 0);
    assert_eq!(conn.awaited_since(), Some(4));
    (0..4).for_each(|_| assert!(conn.arrive().is_some()));
    assert_eq!(conn.awaited_since(), Some(5));
    conn.arrive();
    assert_eq!(conn.awaited_since(), None);
    conn.push(Flight::Get(OpId(0)), 6, 0);
    assert_eq!(conn.awaited_since(), Some(6));
}

#[test]
fn a_command_of_a_repair_is_void_if_it_is_still_unanswered_and_that_repairs() {
    let mut conn = Conn::new(1);
    let read = conn.push(Flight::Repair(OpId(1), RepairStep::Read), 0, 0);
    let other = conn.push(Flight::Op(OpId(1)), 0, 0);
    conn.void_repair(read, OpId(2));
    conn.void_repair(other, OpId(1));
    assert_eq!(conn.voids, 0);
    conn.void_repair(read, OpId(1));
    assert_eq!((conn.voids, conn.flights[0].flight), (1, Flight::Void));
    conn.arrive();
    conn.void_repair(read, OpId(1));
    assert_eq!((conn.voids, conn.flights[0].flight), (1, Flight::Op(OpId(1))));
}

#[test]
fn what_may_take_effect_later_is_owed() {
    let repair = Flight::Repair(OpId(0), RepairStep::Drop);
    let reads = [Flight::Get(OpId(0)), Flight::VoidGet, Flight::GetEnd, Flight::Marker(0), Flight::Mark];
    let effects = [Flight::Op(OpId(0)), repair, Flight::Void];
    for (flight, owes) in reads.map(|f| (f, false)).into_iter().chain(effects.map(|f| (f, true))) {
        let mut conn = Conn::new(1);
        conn.push(flight, 0, 0);
        assert_eq!(conn.owes_effects(), owes, "{flight:?}");
    }
    let mut conn = Conn::new(1);
    conn.state = LinkState::Discarding;
    assert!(conn.owes_effects(), "nobody knows");
}

#[test]
fn who_waits_for_a_connection_waits_since_it_stands() {
    let mut conn = Conn::new(1);
    conn.waiting.push(OpId(0), 0, 5);
    conn.waiting.push(OpId(1), 0, 6);
    conn.stands(3);
    for (state, since) in [(LinkState::Idle, None), (LinkState::Dialing, None), (LinkState::Discarding, None)] {
        conn.state = state;
        assert_eq!(conn.waited_for_since(), since, "{state:?}");
    }
    for state in [LinkState::Checking, LinkState::Ready] {
        conn.state = state;
        assert_eq!(conn.waited_for_since(), Some(5), "{state:?}");
    }
    conn.stands(9);
    assert_eq!(conn.waited_for_since(), Some(9));
}

#[test]
fn nothing_is_left_of_a_connection_that_is_given_up() {
    let mut conn = Conn::new(1);
    let held = Unproven { op: OpId(0), effect: Effect::Nothing, at_us: 0, gone_us: None };
    conn.unproven.push_back(held);
    (conn.unproven_writes, conn.markers, conn.marker_due) = (1, 1, true);
    assert_eq!(conn.take_answers().len(), 1);
    assert_eq!((conn.unproven.len(), conn.unproven_writes, conn.markers, conn.marker_due), (0, 0, 0, false));
    conn.mark_missing_us = Some(3);
    assert_eq!(conn.mark_missed_since(), None, "nobody waits");
    conn.unmarked.push_back(Unmarked { op: OpId(0), behind: 0, at_us: 0 });
    (conn.marks, conn.mark_due) = (1, true);
    assert_eq!(conn.mark_missed_since(), Some(3));
    assert_eq!(conn.take_unmarked().len(), 1);
    assert_eq!((conn.unmarked.len(), conn.marks, conn.mark_due, conn.mark_missing_us), (0, 0, false, None));
    // What its socket did not take is no progress of the next one.
    conn.push(Flight::Op(OpId(0)), 0, 0);
    conn.is_stuck_with(100 * FLOOR, 10);
    conn.clear_out();
    conn.is_stuck_with(0, 20);
    assert_eq!(conn.progress.owed_since(0), 0);
}

#[test]
fn of_the_repairs_that_wait_now_the_one_that_waits_longest_counts() {
    let mut link = Link::new(1, 1);
    let mut waits = |since_us, now_us| {
        link.repair_waits(since_us, now_us);
        link.repair_waits.map(|waits| (waits.since_us, waits.seen_us))
    };
    assert_eq!(waits(5, 10), Some((5, 10)));
    assert_eq!(waits(7, 10), Some((5, 10)));
    assert_eq!(waits(3, 10), Some((3, 10)));
    assert_eq!(waits(20, 30), Some((20, 30)), "those before are over, or are seen again");
}
