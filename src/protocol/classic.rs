//! Answers in the classic text protocol.

use super::answer;
use super::outcome::Outcome;
use crate::protocol::out::OutQueue;

/// Writes the answer to a request of one key; a hit is followed by its `END`.
pub fn write(outcome: Outcome, out: &mut OutQueue) {
    match outcome {
        Outcome::Hit(bytes) => {
            out.put_shared(bytes);
            out.put(answer::END);
        }
        Outcome::Raw(bytes) => out.put_shared(bytes),
        Outcome::Miss => out.put(answer::END),
        Outcome::Stored => out.put(answer::STORED),
        Outcome::NotStored => out.put(answer::NOT_STORED),
        Outcome::Exists => out.put(answer::EXISTS),
        Outcome::NotFound => out.put(answer::NOT_FOUND),
        Outcome::Deleted => out.put(answer::DELETED),
        Outcome::Touched => out.put(answer::TOUCHED),
        Outcome::Done => out.put(answer::OK),
        Outcome::Own(line) => out.put(line),
        Outcome::Number(number) => {
            out.put_number(number);
            out.put(b"\r\n");
        }
        Outcome::Refused(refusal) => {
            out.put(refusal.kind().as_bytes());
            out.put(refusal.words().as_bytes());
            out.put(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::outcome::Refusal;
    use super::*;

    #[test]
    fn every_outcome_as_memcached_says_it() {
        let told = |outcome| {
            let mut out = OutQueue::default();
            write(outcome, &mut out);
            String::from_utf8(out.one_piece().unwrap().to_vec()).unwrap()
        };
        let item = Bytes::from_static(b"VALUE k 0 1\r\nv\r\n");
        for (outcome, line) in [
            (Outcome::Hit(item), "VALUE k 0 1\r\nv\r\nEND\r\n"),
            (Outcome::Miss, "END\r\n"),
            (Outcome::Stored, "STORED\r\n"),
            (Outcome::NotStored, "NOT_STORED\r\n"),
            (Outcome::Exists, "EXISTS\r\n"),
            (Outcome::NotFound, "NOT_FOUND\r\n"),
            (Outcome::Deleted, "DELETED\r\n"),
            (Outcome::Touched, "TOUCHED\r\n"),
            (Outcome::Done, "OK\r\n"),
            (Outcome::Number(u64::MAX), "18446744073709551615\r\n"),
            (Outcome::Refused(Refusal::Client("no")), "CLIENT_ERROR no\r\n"),
            (Outcome::Refused(Refusal::Server("no")), "SERVER_ERROR no\r\n"),
            (Outcome::Own(b"ERROR\r\n"), "ERROR\r\n"),
            (Outcome::Raw(Bytes::from_static(b"SERVER_ERROR out of memory\r\n")), "SERVER_ERROR out of memory\r\n"),
        ] {
            assert_eq!(told(outcome), line);
        }
    }
}
