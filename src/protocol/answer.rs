//! The answers that memcached gives by itself, byte for byte as 1.6.18 does.

use std::fmt::Display;

use bytes::Bytes;

use super::spelled;

/// To a request that is at fault.
pub fn client_error(what: impl Display) -> Bytes {
    Bytes::from(spelled::bytes(&format!("CLIENT_ERROR {what}\r\n")))
}

/// To a request that the proxy or its servers cannot do.
pub fn server_error(what: impl Display) -> Bytes {
    Bytes::from(format!("SERVER_ERROR {what}\r\n"))
}

/// To a command it does not know, or one with too few or too many words.
pub const ERROR: &[u8] = b"ERROR\r\n";
/// After the last value.
pub const END: &[u8] = b"END\r\n";
/// To a storage command that stored.
pub const STORED: &[u8] = b"STORED\r\n";
/// To one whose condition did not hold.
pub const NOT_STORED: &[u8] = b"NOT_STORED\r\n";
/// To a `cas` with an id that is out of date.
pub const EXISTS: &[u8] = b"EXISTS\r\n";
/// To a command on an item that is not there, except for reads.
pub const NOT_FOUND: &[u8] = b"NOT_FOUND\r\n";
/// To `delete`.
pub const DELETED: &[u8] = b"DELETED\r\n";
/// To `touch`.
pub const TOUCHED: &[u8] = b"TOUCHED\r\n";
/// To `flush_all`, `verbosity` and the like.
pub const OK: &[u8] = b"OK\r\n";
/// To `stats reset`.
pub const RESET: &[u8] = b"RESET\r\n";
/// To a key that is too long or a number that is none.
pub const BAD_FORMAT: &[u8] = b"CLIENT_ERROR bad command line format\r\n";
/// To a `delete` with something other than `0` or `noreply` behind the key. The two blanks are
/// memcached's.
pub const BAD_DELETE: &[u8] = b"CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n";
/// To `touch`, `gat`, `gats` and `flush_all`.
pub const BAD_EXPTIME: &[u8] = b"CLIENT_ERROR invalid exptime argument\r\n";
/// To `incr` and `decr`.
pub const BAD_DELTA: &[u8] = b"CLIENT_ERROR invalid numeric delta argument\r\n";
/// To a value that is not followed by CR LF where its length says.
pub const BAD_DATA_CHUNK: &[u8] = b"CLIENT_ERROR bad data chunk\r\n";
/// To `lru_crawler` where it is switched off.
pub const CRAWLER_OFF: &[u8] = b"CLIENT_ERROR lru crawler disabled\r\n";
/// No answer: the command asked for none, or the connection is closed without a word.
pub const SILENCE: &[u8] = b"";

/// To a client too many.
pub const TOO_MANY: &[u8] = b"ERROR Too many open connections\r\n";
