//! What a node's clock shows, read off an item: one whose date of expiry is known, and stands
//! in its value. A `stats` would tell it too, in 3 KB; this is one short line, and may stand
//! between other commands of a batch.

use super::node::{self, Condition, Effect};
use super::number::{parse_i64, parse_u64};
use super::out::OutQueue;
use super::reply::{Frame, ReplyKind, meta_flag};

pub const CLOCK_KEY: &str = "__resilver__:clock";
/// Reads the item. [`shown`] understands the answer.
pub const CLOCK_READ: &[u8] = b"mg __resilver__:clock v t\r\n";
/// How far off the item's date is when it is made, in seconds: above 30 days, as an exptime up to
/// that is relative.
const AHEAD_SECS: i64 = 100 * 24 * 60 * 60;
/// It is made anew when less is left.
const LEAST_SECS: i64 = AHEAD_SECS / 2;

/// What the node's clock showed when it gave this answer, unix seconds; `None` = the item is not
/// there.
pub fn shown(answer: &Frame<'_>) -> Option<i64> {
    let left = left(answer).filter(|&left| left > 0)?;
    let ReplyKind::MetaVa { data } = answer.kind() else { return None };
    let date = i64::try_from(parse_u64(answer.text(data))?).ok()?;
    date.checked_sub(left)
}

/// Whether the item is to be made, or made anew.
pub fn is_due(answer: &Frame<'_>) -> bool {
    left(answer).is_none_or(|left| left < LEAST_SECS)
}

fn left(answer: &Frame<'_>) -> Option<i64> {
    meta_flag(answer.line(), b't').and_then(parse_i64)
}

/// Makes the item, on a node that shows about `unix_secs`.
pub fn make(out: &mut OutQueue, unix_secs: i64) -> Effect {
    let date = unix_secs + AHEAD_SECS;
    node::ms_own(out, CLOCK_KEY, date.to_string().as_bytes(), date, Condition::None)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::super::reply::parse_reply;
    use super::*;

    fn of<T>(reply: &[u8], read: impl FnOnce(&Frame<'_>) -> T) -> T {
        let bytes = Bytes::copy_from_slice(reply);
        let parsed = parse_reply(reply).unwrap().unwrap();
        read(&Frame::first(&bytes, &parsed, Duration::ZERO))
    }

    #[test]
    fn the_date_less_what_is_left_is_now() {
        assert_eq!(of(b"VA 10 t500\r\n1800000000\r\n", shown), Some(1_799_999_500));
        assert_eq!(of(b"EN\r\n", shown), None);
        assert_eq!(of(b"VA 10 t-1\r\n1800000000\r\n", shown), None);
        assert_eq!(of(b"VA 2 t5\r\nxx\r\n", shown), None);
    }

    #[test]
    fn it_is_made_anew_long_before_its_date() {
        let left = |left: &str| of(format!("VA 10 t{left}\r\n1800000000\r\n").as_bytes(), is_due);
        assert!(of(b"EN\r\n", is_due) && left("100") && left("-1"));
        assert!(!left(&AHEAD_SECS.to_string()));
        let mut out = OutQueue::default();
        make(&mut out, 1_800_000_000);
        assert_eq!(out.one_piece().unwrap(), b"ms __resilver__:clock 10 T1808640000\r\n1808640000\r\n");
        assert!(
            CLOCK_READ.starts_with(format!("mg {CLOCK_KEY} ").as_bytes())
                && crate::ids::is_reserved(CLOCK_KEY.as_bytes())
        );
    }
}
