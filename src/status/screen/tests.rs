//! What is drawn, of answers that a proxy might give.

use super::*;
use crate::report::seen::stats;
use crate::report::verdict::Word;

/// Two primaries over one backup; `cache1` and the pair of it are in this state.
fn seen(mirrored: u8, obstacles: &str, pair: &str, server: &str) -> Seen {
    let status = format!(
        "mode auto
        mirrored {mirrored}
        copies_missing 0
        pairs_unused 3
        {obstacles}
        {pair}
        pair:cache2:1|cache3:1:state mirrored
        pair:cache2:1|cache3:1:leader cache2:1
        pair:cache2:1|cache3:1:reason none
        pair:cache2:1|cache3:1:for_seconds 90000
        {server}
        node:cache2:1:state up
        node:cache2:1:reason none
        node:cache3:1:state up
        node:cache3:1:reason none
        yield:state idle"
    );
    let counters = "resilver_version 0.1.0\ncurr_connections 312\nmax_connections 4096\nget_hits 941\nget_misses 59
        cmd_get 1000\nserver_errors 0\nuptime 3700\ntime 1000";
    let servers = "cache1:1:place primary\ncache1:1:lost 1\ncache1:1:state nothing\ncache1:1:for_seconds 8
        cache1:1:items 1200000\ncache1:1:bytes 500\ncache1:1:bytes_max 1000\ncache1:1:evictions 0
        cache2:1:place primary\ncache3:1:place backup\ncache3:1:for_seconds 90000";
    Seen::of([stats(&status), stats(counters), stats(servers)]).expect("a proxy's answers")
}

fn pair(state: &str, reason: &str) -> String {
    format!(
        "pair:cache1:1|cache3:1:state {state}\npair:cache1:1|cache3:1:leader cache3:1
        pair:cache1:1|cache3:1:reason {reason}\npair:cache1:1|cache3:1:for_seconds 8{}",
        if state == "degraded" { "\npair:cache1:1|cache3:1:missed 1204" } else { "" }
    )
}

fn server(state: &str, reason: &str) -> String {
    format!("node:cache1:1:state {state}\nnode:cache1:1:reason {reason}\nnode:cache1:1:resync none")
}

fn traffic(lines: &str) -> Traffic {
    Traffic::of(&stats(&format!("uptime_ms 1000\n{lines}"))).expect("an answer")
}

fn screen(seen: &Seen, since: Option<&Traffic>, look: Look) -> String {
    let traffic = traffic(
        "command:get:hit 941\ncommand:get:miss 59\nserver:cache1:1:sent 9\nserver:cache1:1:us:96 1
        server:cache2:1:us:512 1",
    );
    Screen { seen, traffic: &traffic, since, proxy: "127.0.0.1:11211", again: "", look }.to_string()
}

fn shown(seen: &Seen, all: bool) -> String {
    screen(seen, None, Look { colours: false, all, columns: None })
}

#[test]
fn what_is_as_it_should_be_takes_few_lines() {
    let seen = seen(1, "", &pair("mirrored", "none"), &server("up", "none"));
    assert_eq!(seen.word(), Word::Mirrored);
    assert_eq!(
        shown(&seen, false),
        "\
resilver 0.1.0 127.0.0.1:11211  clients 312/4096  hits 94.1 %  errors 0  up 1h 1m
MIRRORED  every item has two copies (8s)
safe to restart one server: yes, after: resilver wait --mirrored
next: nothing; before and after a server is restarted: resilver wait --mirrored
SERVER    PLACE    STATE  REASON  ITEMS  FULL  CMD/S  P50    P99    IN FLIGHT  LOST  FOR
cache1:1  primary  up     -       1.2M   50 %  -      0.1ms  0.1ms  0          1     8s
cache2:1  primary  up     -       -      -     -      0.6ms  0.6ms  0          0     0s
cache3:1  backup   up     -       -      -     -      -      -      0          0     1d 1h
pairs: 2 of 2 mirrored; 3 can hold no key and are left out
"
    );
    assert!(shown(&seen, true).contains("\ncache2:1|cache3:1  mirrored  cache2:1  -       -       1d 1h\n"));
}

#[test]
fn a_lost_server_is_named_with_what_to_do() {
    let why = "obstacle:1 server cache1:1 is lost, reason refused";
    let seen = seen(0, why, &pair("degraded", "refused"), &server("lost", "refused"));
    assert_eq!(seen.word(), Word::Degraded);
    let shown = shown(&seen, false);
    assert!(shown.contains("DEGRADED  1 of 2 pairs has one copy (8s)\n! server cache1:1 is lost, reason refused\n"));
    assert!(shown.contains("\n! cache3:1 leads one pair alone: do not touch it\nsafe to restart one server: NO\n"));
    assert!(shown.contains("next: start memcached on cache1:1; it is refilled by itself\n"), "{shown}");
    assert!(
        shown.contains("\ncache1:1|cache3:1  ! degraded  cache3:1  refused  1204    8s\npairs: 1 of 2 mirrored"),
        "{shown}"
    );
}

#[test]
fn a_resync_has_a_bar_and_a_time_left_that_is_unknown_where_it_is() {
    let server = |eta: u64, total: u64| {
        format!(
            "{}\nnode:cache1:1:resync running\nnode:cache1:1:kind full\nnode:cache1:1:items_total {total}
            node:cache1:1:items_copied 852000\nnode:cache1:1:rate 38000\nnode:cache1:1:eta_seconds {eta}",
            self::server("copying", "empty")
        )
    };
    let at = |server: String| shown(&seen(0, "", &pair("recovering", "reset"), &server), false);
    assert!(
        at(server(9, 1_200_000))
            .contains("resync cache1:1 <- cache3:1 (full)  [##############------] 71 %  852k/1.2M  38k/s  9s left\n")
    );
    assert!(at(server(0, 1_200_000)).contains("38k/s  time left unknown\n"));
    let listing = format!("{}\nnode:cache1:1:listing 1", server(0, 900_000));
    assert!(at(listing).contains("(full)  listing: 900k found, 852k done  38k/s\n"));
    assert!(at(server(0, 0)).contains("resync cache1:1 <- cache3:1 (full)  purging, then listing\n"));
}

#[test]
fn a_verify_is_shown_while_it_runs_and_with_what_it_found() {
    let at = |verify: &str| {
        let text = shown(&seen(1, verify, &pair("mirrored", "none"), &server("up", "none")), false);
        text.lines().filter(|line| line.starts_with("verify")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(at("verify:state none\nverify:checked 0"), Vec::<String>::new());
    let counts = "verify:checked 12000\nverify:ended_seconds_ago 61";
    assert_eq!(at(&format!("verify:state running\n{counts}")), ["verify running: 12k keys compared, 0 differed"]);
    let differed = "verify:different 5\nverify:repaired 4\nverify:failed 1\nverify:pairs_left 3";
    assert_eq!(
        at(&format!("verify:state incomplete\n{counts}\n{differed}")),
        ["verify incomplete, 1m 1s ago: 12k keys compared, 5 differed: 4 mended, 1 not \
          (a server that is full refuses or evicts them: more memory, -m); 3 pairs left out"]
    );
}

/// A pair that lost both copies is mirrored a moment later.
#[test]
fn what_was_lost_is_told_beside_a_green_word() {
    let at = |lost: &str| {
        let text = shown(&seen(1, lost, &pair("mirrored", "none"), &server("up", "none")), false);
        assert!(text.contains("MIRRORED  every item has two copies"), "{text}");
        text.lines().filter(|line| line.starts_with("! ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(at(""), Vec::<String>::new());
    assert_eq!(
        at("lost_items:pairs_empty 2\nlost_items:pairs_partial 0\nlost_items:seconds_ago 41"),
        ["! 2 pairs began empty: what they held is lost (last 41s ago)"]
    );
    let partial = "lost_items:pairs_empty 0\nlost_items:pairs_partial 1\nlost_items:seconds_ago 3\nlost_items:keys";
    let began = "! 1 pair went on without";
    for (keys, unknown, said) in
        [(250, 0, "250 keys"), (250, 1, "250 keys and more that nobody knows"), (0, 1, "keys that nobody knows")]
    {
        assert_eq!(
            at(&format!("{partial} {keys}\nlost_items:keys_unknown {unknown}")),
            [format!("{began} {said}, of which no copy was left (last 3s ago)")]
        );
    }
}

/// Sixteen backups are lost: the headline is not scrolled away by what is alike.
#[test]
fn many_servers_that_lead_alone_take_one_line() {
    let mut status = "mode auto\nmirrored 0\npairs_unused 0".to_owned();
    for number in 1..=16 {
        status += &format!(
            "\npair:c{number:02}:1|b{number:02}:1:state degraded\npair:c{number:02}:1|b{number:02}:1:leader c{number:02}:1
            node:b{number:02}:1:state lost\nnode:b{number:02}:1:reason refused"
        );
    }
    let servers: String =
        (1..=16).map(|number| format!("c{number:02}:1:place primary\nb{number:02}:1:place backup\n")).collect();
    let seen = Seen::of([stats(&status), stats("uptime 1"), stats(&servers)]).expect("an answer");
    let text = shown(&seen, false);
    assert!(
        text.contains("\n! c01:1, c02:1, c03:1, c04:1 and 12 more lead 16 pairs alone: do not touch them\n"),
        "{text}"
    );
    assert!(text.contains("\nnext: start memcached on b01:1, b02:1, b03:1, b04:1 and 12 more; they are"), "{text}");
}

/// The proxy's word for the whole outranks what its pairs say.
#[test]
fn the_word_is_the_worst_and_never_better_than_the_proxys_own() {
    let word = |mirrored, state: &str| seen(mirrored, "", &pair(state, "none"), &server("up", "none")).word();
    assert_eq!(word(0, "mirrored"), Word::Incomplete);
    for (state, expected) in [
        ("mirrored", Word::Mirrored),
        ("incomplete", Word::Incomplete),
        ("recovering", Word::Recovering),
        ("degraded", Word::Degraded),
        ("dark", Word::Dark),
        ("unheard_of", Word::Dark),
    ] {
        assert_eq!(word(1, state), expected, "{state}");
    }
    assert_eq!([Word::Mirrored, Word::Degraded, Word::Dark].map(Word::exit_code), [0, 1, 2]);
}

#[test]
fn servers_that_hang_and_servers_that_have_ended_are_told_apart() {
    let hangs = server("lost", "timeout");
    let next = |servers: &str| shown(&seen(0, "", &pair("degraded", "timeout"), servers), true);
    let one = "next: resume or restart memcached on cache1:1, or mend the way to it: it does not answer; it is \
               refilled by itself\n";
    assert!(next(&hangs).contains(one), "{}", next(&hangs));
    let both = |reason: &str| {
        let status = format!(
            "mode auto\nmirrored 0\npairs_unused 0\n{}\n{hangs}\nnode:cache4:1:state lost\nnode:cache4:1:reason {reason}",
            pair("degraded", "timeout")
        );
        let servers = "cache1:1:place primary\ncache4:1:place primary";
        shown(&Seen::of([stats(&status), stats("uptime 1"), stats(servers)]).expect("an answer"), true)
    };
    for (reason, words) in [
        ("reset", "on cache1:1, or mend the way to it: it does not answer; start memcached on cache4:1; they are "),
        ("timeout", "on cache1:1, cache4:1, or mend the way to them: they do not answer; they are refilled by "),
    ] {
        assert!(both(reason).contains(words), "{}", both(reason));
    }
}

/// To restart it would lose what it holds, and there is nothing wrong with the way to it.
#[test]
fn a_server_at_its_limit_of_connections_is_named_with_what_helps() {
    for state in ["dark", "degraded"] {
        let seen = seen(0, "", &pair(state, "connection_limit"), &server("lost", "connection_limit"));
        let next = "next: cache1:1 takes no more connections (memcached's -c): close others, or start the proxy \
                    with a lower -i; it is refilled by itself";
        assert!(shown(&seen, true).contains(next), "{state}: {}", shown(&seen, true));
    }
}

#[test]
fn colours_are_beside_a_word_and_only_where_they_are_wanted() {
    let why = "obstacle:1 pair cache1:1|cache3:1 is dark, reason reset";
    let seen = seen(0, why, &pair("dark", "reset"), &server("lost", "reset"));
    let painted = screen(&seen, None, Look { colours: true, all: false, columns: None });
    assert!(painted.contains("\x1b[1;31mDARK\x1b[0m") && painted.contains("\x1b[1;31mX\x1b[0m pair "), "{painted}");
    assert!(painted.contains("\x1b[1;31mcache1:1  primary  ! lost") && painted.contains("  X dark"), "{painted}");
    assert!(!shown(&seen, true).contains('\x1b'));
}

#[test]
fn rates_are_what_was_counted_between_two_looks() {
    let seen = seen(1, "", &pair("mirrored", "none"), &server("up", "none"));
    let since = Traffic { span_ms: 2000, ..traffic("command:get:hit 6000\nserver:cache2:1:sent 50") };
    let text = screen(&seen, Some(&since), Look { colours: false, all: false, columns: None });
    assert!(text.contains("  3000 req/s  hits 100.0 %"), "{text}");
    assert!(text.contains("\ncache2:1  primary  up     -       -      -     25 "), "{text}");
}

/// Sixteen primaries and as many backups, one of them lost: what is well takes two lines.
#[test]
fn many_servers_are_told_by_their_names_and_those_that_deviate_in_full() {
    let mut status = "mode auto\nmirrored 0\npairs_unused 240".to_owned();
    let mut servers = String::new();
    for number in 1..=16 {
        let (state, reason) = if number == 3 { ("degraded", "reset") } else { ("mirrored", "none") };
        let up = if number == 3 { "lost" } else { "up" };
        status += &format!(
            "\npair:c{number:02}:1|b{number:02}:1:state {state}\npair:c{number:02}:1|b{number:02}:1:leader b{number:02}:1
            pair:c{number:02}:1|b{number:02}:1:reason {reason}\npair:c{number:02}:1|b{number:02}:1:for_seconds 8
            node:c{number:02}:1:state {up}\nnode:c{number:02}:1:reason {reason}\nnode:b{number:02}:1:state up
            node:b{number:02}:1:reason none"
        );
        servers += &format!("c{number:02}:1:place primary\nb{number:02}:1:place backup\n");
    }
    let seen = Seen::of([stats(&status), stats("uptime 1"), stats(&servers)]).expect("an answer");
    let traffic = traffic("server:c11:1:us:4096 100\nserver:c12:1:us:512 100\nserver:b01:1:us:512 100");
    let look = Look { colours: false, all: false, columns: None };
    let text = Screen { seen: &seen, traffic: &traffic, since: None, proxy: "p", again: "", look }.to_string();
    for part in [
        "\nPRIMARIES c01 c02 !c03 c04 c05 c06 c07 c08 c09 c10 c11 c12 c13 c14 c15 c16\nBACKUPS   b01 b02 ",
        "\nslowest: c11:1 p99 5.1ms (half of them 0.6ms at most)\n",
        "\n! b03:1 leads one pair alone: do not touch it\n",
        "\npairs: 15 of 16 mirrored; 240 can hold no key and are left out\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(text.lines().count() < 16 && text.lines().all(|line| line.len() <= 100), "{text}");
    let all =
        Screen { seen: &seen, traffic: &traffic, since: None, proxy: "p", again: "", look: Look { all: true, ..look } };
    assert!(all.to_string().lines().filter(|line| line.contains("  primary  ")).count() == 16);
}

#[test]
fn the_json_says_the_same_with_numbers_as_numbers() {
    let why = "obstacle:1 server cache1:1 is lost, reason refused";
    let json = seen(0, why, &pair("degraded", "refused"), &server("lost", "refused")).json();
    assert_eq!((json["version"].as_u64(), json["word"].as_str()), (Some(1), Some("degraded")));
    assert_eq!(json["obstacles"][0], "server cache1:1 is lost, reason refused");
    assert_eq!(json["servers"][0]["server"], "cache1:1");
    assert_eq!(json["servers"][0]["lost"], 1);
    assert_eq!(json["servers"][0]["state"], "lost");
    assert_eq!(json["pairs"][0]["leader"], "cache3:1");
    assert_eq!(json["counters"]["get_hits"], 941);
}

#[test]
fn what_is_no_proxy_of_ours_shows_nothing() {
    assert!(Seen::of([stats("pid 1"), stats("pid 1"), stats("")]).is_none());
}
