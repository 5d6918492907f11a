//! Decimal numbers: strictly, as nodes write them, and leniently, as memcached reads them from
//! clients.

/// Digits and nothing else, with an overflow check.
pub fn parse_u64(text: &[u8]) -> Option<u64> {
    let (number, len) = leading_u64(text)?;
    (len == text.len()).then_some(number)
}

/// The number of which the digits are that a text begins with, and how many digits; at least one.
#[inline(always)]
pub(super) fn leading_u64(text: &[u8]) -> Option<(u64, usize)> {
    let (mut number, mut len) = (0u64, 0);
    while let Some(byte) = text.get(len) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        number = number.checked_mul(10)?.checked_add(u64::from(digit))?;
        len += 1;
    }
    (len > 0).then_some((number, len))
}

/// The number of at most nine digits that a text begins with, and how many they are: fits any type,
/// as nearly all numbers do, so nothing is checked on the way.
#[inline(always)]
pub(super) fn short_number(text: &[u8]) -> Option<(u32, usize)> {
    let (mut number, mut len) = (0u32, 0);
    while let Some(byte) = text.get(len) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            break;
        }
        number = number.wrapping_mul(10).wrapping_add(u32::from(digit));
        len += 1;
    }
    (1..=9).contains(&len).then_some((number, len))
}

/// Digits with at most one minus before them, with an overflow check.
pub fn parse_i64(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => 0i64.checked_sub_unsigned(parse_u64(digits)?),
        None => parse_u64(text)?.try_into().ok(),
    }
}

/// memcached's `safe_strtoull`: what `cas` takes for its id and `incr` for its delta.
///
/// C's rules shine through: blanks (a tab, say) before the number, a sign, and anything behind a
/// blank are allowed; a minus wraps around, and is refused only where the result looks negative.
pub fn client_u64(word: &[u8]) -> Option<u64> {
    let number = c_number(word)?;
    let value = if number.negative { number.magnitude.wrapping_neg() } else { number.magnitude };
    // memcached looks for the minus anywhere in the word, not only before the number.
    ((value as i64) >= 0 || !word.contains(&b'-')).then_some(value)
}

/// memcached's `safe_strtoul`: what storage commands take for client flags, and `verbosity` for its
/// level.
///
/// It reads 64 bits and keeps the lower 32: flags of 4294967296 are stored as 0.
pub fn client_u32(word: &[u8]) -> Option<u32> {
    client_u64(word).map(|value| value as u32)
}

/// memcached's `safe_strtol`: expiry times and lengths. It too reads 64 bits and keeps the lower
/// 32.
pub fn client_i32(word: &[u8]) -> Option<i32> {
    let number = c_number(word)?;
    let value = if number.negative { -i128::from(number.magnitude) } else { i128::from(number.magnitude) };
    i64::try_from(value).ok().map(|value| value as i32)
}

struct CNumber {
    negative: bool,
    magnitude: u64,
}

/// What `strtoull` and `strtoll` accept, followed by the end of the word or a blank.
fn c_number(word: &[u8]) -> Option<CNumber> {
    match short_number(word) {
        Some((number, len)) if len == word.len() => Some(CNumber { negative: false, magnitude: number.into() }),
        _ => c_number_spelled(word),
    }
}

fn c_number_spelled(word: &[u8]) -> Option<CNumber> {
    let blanks = word.iter().take_while(|&&byte| is_c_space(byte)).count();
    let (negative, digits) = match &word[blanks..] {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let end = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    if digits.get(end).is_some_and(|&byte| !is_c_space(byte)) {
        return None;
    }
    parse_u64(&digits[..end]).map(|magnitude| CNumber { negative, magnitude })
}

/// C's `isspace`. Unlike [`u8::is_ascii_whitespace`] it counts the vertical tab.
fn is_c_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_numbers() {
        for (text, unsigned, signed) in [
            ("0", Some(0), Some(0)),
            ("007", Some(7), Some(7)),
            ("9223372036854775807", Some(i64::MAX as u64), Some(i64::MAX)),
            ("9223372036854775808", Some(1 << 63), None),
            ("18446744073709551615", Some(u64::MAX), None),
            ("18446744073709551616", None, None),
            ("99999999999999999999999", None, None),
            ("-1", None, Some(-1)),
            ("-9223372036854775808", None, Some(i64::MIN)),
            ("-9223372036854775809", None, None),
            ("--1", None, None),
            ("+1", None, None),
            ("", None, None),
            ("-", None, None),
            ("1 ", None, None),
            ("1x", None, None),
        ] {
            assert_eq!(parse_u64(text.as_bytes()), unsigned, "{text}");
            assert_eq!(parse_i64(text.as_bytes()), signed, "{text}");
        }
    }

    #[test]
    fn short_numbers_are_the_same() {
        for (text, short) in [
            ("0", Some((0, 1))),
            ("007 8", Some((7, 3))),
            ("999999999\r", Some((999_999_999, 9))),
            ("1000000000", None),
            ("", None),
            ("-1", None),
            (" 1", None),
        ] {
            assert_eq!(short_number(text.as_bytes()), short, "{text}");
            let long = leading_u64(text.as_bytes()).filter(|&(_, len)| len < 10);
            assert_eq!(short.map(|(number, len)| (u64::from(number), len)), long, "{text}");
        }
    }

    #[test]
    fn numbers_as_memcached_reads_them() {
        for (word, wide, flags, signed) in [
            ("5", Some(5), Some(5), Some(5)),
            ("+5", Some(5), Some(5), Some(5)),
            ("\t\x0b 5", Some(5), Some(5), Some(5)),
            ("5\tjunk", Some(5), Some(5), Some(5)),
            ("5\r", Some(5), Some(5), Some(5)),
            ("5junk", None, None, None),
            ("0x10", None, None, None),
            ("5.0", None, None, None),
            ("", None, None, None),
            ("-", None, None, None),
            ("\t", None, None, None),
            ("-1", None, None, Some(-1)),
            ("-0", Some(0), Some(0), Some(0)),
            ("4294967296", Some(1 << 32), Some(0), Some(0)),
            ("2147483648", Some(1 << 31), Some(1 << 31), Some(i32::MIN)),
            ("9223372036854775808", Some(1 << 63), Some(0), None),
            ("9223372036854775808\t-", None, None, None),
            ("18446744073709551615", Some(u64::MAX), Some(u32::MAX), None),
            ("18446744073709551616", None, None, None),
            ("-18446744073709551615", Some(1), Some(1), None),
            ("-9223372036854775808", None, None, Some(0)),
            ("-9223372036854775809", Some(i64::MAX as u64), Some(u32::MAX), None),
        ] {
            assert_eq!(client_u64(word.as_bytes()), wide, "u64 of {word:?}");
            assert_eq!(client_u32(word.as_bytes()), flags, "u32 of {word:?}");
            assert_eq!(client_i32(word.as_bytes()), signed, "i32 of {word:?}");
        }
    }
}
