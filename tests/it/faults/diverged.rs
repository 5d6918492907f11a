//! The two copies made different on purpose: the next command that can tell repairs the key before
//! it is answered.

use crate::support::{Cluster, Shape, Stored};

#[test]
fn a_key_whose_copies_differ_is_repaired_before_the_answer_and_counted() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    let mut past = cluster.backups[0].client();
    for i in 0..60 {
        let key = &format!("n:{i}");
        assert_eq!(client.set(key, b"5"), Ok(Stored::Stored));
        let counted = (cluster.proxy.stat("diverged"), cluster.proxy.stat("repaired"));
        let expected: &[u8] = match i % 6 {
            // Another number: the answers of incr and decr tell.
            0 => {
                assert_eq!(past.set(key, b"70"), Ok(Stored::Stored));
                assert_eq!(client.incr(key, 1), Ok(Some(6)), "{key}");
                b"6"
            }
            1 => {
                assert_eq!(past.set(key, b"no number"), Ok(Stored::Stored));
                assert_eq!(client.arithmetic("decr", key, 1), Ok(Some(4)), "{key}");
                b"4"
            }
            // No item: every one of them tells.
            2 => {
                assert_eq!(past.delete(key), Ok(true));
                assert_eq!(client.incr(key, 1), Ok(Some(6)), "{key}");
                b"6"
            }
            3 => {
                assert_eq!(past.delete(key), Ok(true));
                assert_eq!(client.store("append", key, 0, 0, b"5"), Ok(Stored::Stored), "{key}");
                b"55"
            }
            4 => {
                assert_eq!(past.delete(key), Ok(true));
                assert_eq!(client.store("prepend", key, 0, 0, b"6"), Ok(Stored::Stored), "{key}");
                b"65"
            }
            _ => {
                assert_eq!(past.delete(key), Ok(true));
                assert_eq!(client.touch(key, 3000), Ok(true), "{key}");
                b"5"
            }
        };
        // The answer is here, so the other copy is right already.
        let copy = past.get(key).unwrap_or_else(|e| panic!("get {key}: {e}"));
        assert_eq!(copy.map(|item| item.value).as_deref(), Some(expected), "{key} on the backup");
        let now = (cluster.proxy.stat("diverged"), cluster.proxy.stat("repaired"));
        assert_eq!(now, (counted.0 + 1, counted.1 + 1), "{key}: diverged, repaired");
    }
    assert_eq!(cluster.proxy.stat("repair_failed"), 0);
    assert!(cluster.proxy.status().mirrored(), "a repair costs no pair its mirror");
    cluster.assert_rings_equal();
}

/// What hides from `append` (both nodes say STORED) ends with the next whole write.
#[test]
fn a_difference_that_no_answer_shows_ends_with_the_next_set() {
    let cluster = Cluster::start(&Shape::new(1, 1));
    let mut client = cluster.client();
    let mut past = cluster.backups[0].client();
    assert_eq!(client.set("k", b"right"), Ok(Stored::Stored));
    assert_eq!(past.set("k", b"wrong"), Ok(Stored::Stored));
    assert_eq!(client.store("append", "k", 0, 0, b"!"), Ok(Stored::Stored));
    assert_eq!(client.get("k").expect("get").map(|i| i.value).as_deref(), Some(&b"right!"[..]), "the leader is right");
    assert_eq!(client.set("k", b"new"), Ok(Stored::Stored));
    assert_eq!(past.get("k").expect("get").map(|i| i.value).as_deref(), Some(&b"new"[..]));
    cluster.assert_rings_equal();
}
