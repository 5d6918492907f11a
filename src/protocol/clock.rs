//! What a node's clock shows, read off an item: one whose date of expiry is known, and stands
//! in its value. A `stats` would tell it too, in 3 KB; this is one short line, and may stand
//! between other commands of a batch.

use crate::protocol::number::{parse_i64, parse_u64};
use crate::protocol::reply::meta_flag;

/// The item's key.
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
pub fn shown(line: &[u8], data: Option<&[u8]>) -> Option<i64> {
    let left = meta_flag(line, b't').and_then(parse_i64).filter(|&left| left > 0)?;
    let date = i64::try_from(parse_u64(data?)?).ok()?;
    date.checked_sub(left)
}

/// Whether the item is to be made, or made anew.
pub fn is_due(line: &[u8]) -> bool {
    meta_flag(line, b't').and_then(parse_i64).is_none_or(|left| left < LEAST_SECS)
}

/// The command that makes the item, on a node that shows about `unix_secs`.
pub fn making(unix_secs: i64) -> String {
    let date = (unix_secs + AHEAD_SECS).to_string();
    format!("ms {CLOCK_KEY} {} T{date}\r\n{date}\r\n", date.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_less_what_is_left_is_now() {
        assert_eq!(shown(b"VA 10 t500", Some(b"1800000000")), Some(1_799_999_500));
        assert_eq!(shown(b"EN", None), None);
        assert_eq!(shown(b"VA 10 t-1", Some(b"1800000000")), None);
        assert_eq!(shown(b"VA 2 t5", Some(b"xx")), None);
    }

    #[test]
    fn it_is_made_anew_long_before_its_date() {
        assert!(is_due(b"EN") && is_due(b"VA 10 t100") && is_due(b"VA 10 t-1"));
        assert!(!is_due(format!("VA 10 t{AHEAD_SECS}").as_bytes()));
        assert_eq!(making(1_800_000_000), "ms __resilver__:clock 10 T1808640000\r\n1808640000\r\n");
        assert!(
            CLOCK_READ.starts_with(format!("mg {CLOCK_KEY} ").as_bytes())
                && crate::ids::is_reserved(CLOCK_KEY.as_bytes())
        );
    }
}
