//! A pipe over a stream in memory, in virtual time.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout_at;

use super::*;
use crate::backend::DrainEnd;

fn pair(size: usize) -> (Pipe, DuplexStream) {
    let (near, far) = duplex(size);
    (Pipe::over(NodeId(0), NodeStream::from(near)).with_values(1 << 30), far)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(1)
}

async fn expect(far: &mut DuplexStream, text: &str) {
    let mut got = vec![0; text.len()];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&got), text);
}

#[tokio::test(start_paused = true)]
async fn reads_while_it_writes() {
    // 16 bytes of room each way, an echo that reads no more while its own answer is stuck:
    // writing first would hang.
    let (mut pipe, mut far) = pair(16);
    tokio::spawn(async move {
        let mut byte = [0];
        while far.read_exact(&mut byte).await.is_ok() {
            far.write_all(&byte).await.unwrap();
        }
    });
    let mut batch = Batch::new();
    for i in 0..1000 {
        batch.command(format!("{i}\r\n").as_bytes(), Effect::Read);
    }
    let mut seen = Vec::new();
    pipe.exchange(batch, soon(), |i, f| {
        seen.push((i.to_string(), String::from_utf8_lossy(f.line()).into_owned()));
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(seen.len(), 1000);
    assert!(seen.iter().all(|(i, line)| i == line));
    assert!(!pipe.owes_mutations());
}

#[tokio::test(start_paused = true)]
async fn errors_have_their_word() {
    let (mut pipe, far) = pair(64);
    assert_eq!(pipe.ask(b"mn\r\n", Effect::Read, soon()).await, Err(NodeError::Timeout));
    drop(far);
    let (mut pipe, far) = pair(64);
    drop(far);
    assert_eq!(pipe.ask(b"mn\r\n", Effect::Read, soon()).await.unwrap_err().reason(), "reset");
    let (mut pipe, mut far) = pair(64);
    far.write_all(b"MN\r\nMN\r\n").await.unwrap();
    assert_eq!(pipe.ask(b"mn\r\n", Effect::Read, soon()).await.unwrap_err().reason(), "protocol");
}

/// memcached at its limit says so, closes, and has read nothing: writing fails then.
#[tokio::test(start_paused = true)]
async fn what_a_node_says_before_it_closes_is_kept() {
    for written in [false, true] {
        let (mut pipe, mut far) = pair(64);
        far.write_all(b"ERROR Too many open connections\r\n").await.unwrap();
        let asked = if written {
            let mut batch = Batch::new();
            batch.command(b"mg marker v\r\n", Effect::Read);
            let answer = pipe.exchange(batch, soon(), |_, _| Ok(()));
            let (answer, ()) = tokio::join!(answer, async { drop(far) });
            answer
        } else {
            drop(far);
            pipe.ask(b"mg marker v\r\n", Effect::Read, soon()).await.map(drop)
        };
        assert_eq!(asked, Err(NodeError::Full("ERROR Too many open connections".to_owned())), "{written}");
    }
    let (mut pipe, mut far) = pair(64);
    far.write_all(b"ERROR Too many open connections\r\n").await.unwrap();
    assert!(matches!(pipe.stats("", soon()).await, Err(NodeError::Full(_))));
    let (mut pipe, mut far) = pair(64);
    far.write_all(b"ERROR\r\n").await.unwrap();
    assert_eq!(pipe.ask(b"mg marker v\r\n", Effect::Read, soon()).await, Ok("ERROR".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_command_that_was_begun_and_waits_for_its_answer() {
    let (mut pipe, mut far) = pair(8);
    let mut batch = Batch::new();
    batch.command(b"md first\r\n", Effect::Mutation);
    batch.command(b"md never-sent\r\n", Effect::Mutation);
    assert_eq!(pipe.exchange(batch, soon(), |_, _| Ok(())).await, Err(NodeError::Timeout));
    assert!(pipe.owes_mutations());
    let mut drain = pipe.into_drain();
    assert!(timeout_at(soon(), &mut drain).await.is_err(), "the node hangs, so does the drain");
    let wakes = async {
        expect(&mut far, "md first\r\nmn\r\n").await;
        far.write_all(b"HD\r\nMN\r\n").await.unwrap();
    };
    assert_eq!(tokio::join!(&mut drain, wakes).0, DrainEnd::Answered);
}

/// What our own kernel gives up proves nothing of what the node still holds, also where the
/// error is told to a write, and reading finds the end.
#[tokio::test(start_paused = true)]
async fn a_drain_that_our_own_kernel_ends_is_abandoned() {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, HostUnreachable, TimedOut};
    for (kind, expected) in [
        (ConnectionReset, DrainEnd::Closed),
        (BrokenPipe, DrainEnd::Closed),
        (TimedOut, DrainEnd::Abandoned),
        (HostUnreachable, DrainEnd::Abandoned),
    ] {
        let mut pipe = Pipe::over(NodeId(0), NodeStream::failing(kind));
        let mut batch = Batch::new();
        batch.command(b"md k\r\n", Effect::Mutation);
        assert!(pipe.exchange(batch, soon(), |_, _| Ok(())).await.is_err());
        assert_eq!(pipe.into_drain().await, expected, "{kind}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_take_a_value_for_the_last_answer() {
    let (mut pipe, mut far) = pair(64);
    let mut batch = Batch::new();
    batch.command(b"mg k v\r\n", Effect::Mutation);
    let _ = pipe.exchange(batch, soon(), |_, _| Ok(())).await;
    let mut drain = pipe.into_drain();
    far.write_all(b"VA 4\r\nMN\r\n\r\n").await.unwrap();
    assert!(timeout_at(soon(), &mut drain).await.is_err());
    drop(far);
    assert_eq!(drain.await, DrainEnd::Closed);
}

#[tokio::test(start_paused = true)]
async fn stats_that_drip_in_behind_a_deadline_that_passed_unseen_are_not_waited_for_line_by_line() {
    let (mut pipe, mut far) = pair(1 << 16);
    tokio::time::advance(Duration::from_secs(2)).await;
    let begun = Instant::now();
    let drips = async {
        while begun.elapsed() < Duration::from_secs(1) {
            far.write_all(b"STAT time 12\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        result = pipe.stats("", begun - Duration::from_secs(1)) => assert_eq!(result, Err(NodeError::Timeout)),
        () = drips => panic!("still waited for"),
    }
}

#[tokio::test(start_paused = true)]
async fn stats_that_drip_are_no_progress() {
    let (mut pipe, mut far) = pair(1 << 16);
    pipe.begin_work();
    let begun = Instant::now();
    let drips = async {
        loop {
            far.write_all(b"STAT time 12\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        result = pipe.stats("", Limit::Progress(Duration::from_millis(250))) => {
            assert_eq!(result, Err(NodeError::Timeout));
            assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
        }
        () = drips => unreachable!("it goes on for ever"),
    }
}

/// What the node does after it was asked for 4 MB: so many bytes in each millisecond of its
/// first second, then that many.
async fn moves(first: usize, then: usize) -> (Result<(), NodeError>, Duration) {
    let (mut pipe, mut far) = pair(1 << 16);
    let node = async {
        far.write_all(b"VA 4000000\r\n").await.unwrap();
        for ms in 0.. {
            tokio::time::sleep(Duration::from_millis(1)).await;
            far.write_all(&vec![b'x'; if ms < 1000 { first } else { then }]).await.unwrap();
        }
    };
    let mut batch = Batch::new();
    batch.command(b"mg k v\r\n", Effect::Read);
    let begun = Instant::now();
    tokio::select! {
        result = pipe.transfer(batch, Duration::from_millis(250), |_, _| Ok(())) => (result, begun.elapsed()),
        () = node => unreachable!("it goes on for ever"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_any_size_is_waited_for_while_it_comes() {
    let (_, elapsed) = moves(2000, 2000).await;
    assert!(elapsed >= Duration::from_secs(2), "eight times the deadline: {elapsed:?}");
    // A drip, and one that stops in mid-value.
    for (first, then, late) in [(1, 1, 250), (2000, 1, 1250), (2000, 0, 1250)] {
        let (result, elapsed) = moves(first, then).await;
        assert_eq!(result, Err(NodeError::Timeout));
        let late = Duration::from_millis(late);
        assert!(elapsed <= late + Duration::from_millis(10), "{elapsed:?} instead of {late:?}");
        assert!(elapsed + Duration::from_millis(50) >= late, "{elapsed:?} instead of {late:?}");
    }
}

/// What the kernel takes at once shows nothing; that a full socket takes more does.
#[tokio::test(start_paused = true)]
async fn a_command_of_any_size_is_waited_for_while_it_is_taken() {
    for (reads, expected) in [(true, Ok(())), (false, Err(NodeError::Timeout))] {
        let (mut pipe, mut far) = pair(1 << 16);
        let node = async {
            let mut taken = vec![0; 2000];
            for _ in 0..1000 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                if reads {
                    far.read_exact(&mut taken).await.unwrap();
                }
            }
            far.write_all(b"HD\r\n").await.unwrap();
            std::future::pending().await
        };
        let mut batch = Batch::new();
        batch.command(&vec![b'x'; 2_000_000], Effect::Mutation);
        tokio::select! {
            result = pipe.transfer(batch, Duration::from_millis(250), |_, _| Ok(())) => assert_eq!(result, expected),
            () = node => unreachable!("it never ends"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn stats_are_read_to_their_end() {
    let (mut pipe, mut far) = pair(256);
    far.write_all(b"STAT time 12\r\nSTAT version 1.6 x\r\nEND\r\n").await.unwrap();
    let lines = pipe.stats("", soon()).await.unwrap();
    assert_eq!(lines[1], ("version".to_owned(), "1.6 x".to_owned()));
    far.write_all(b"ERROR\r\n").await.unwrap();
    assert!(pipe.stats("nonsense", soon()).await.is_err());
}
