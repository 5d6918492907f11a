//! The right to recompute a stale item: memcached gives it to the first that looks at the item (`W`
//! of an `mg`). It is for clients, so a right that the proxy's own look has won goes back.

use std::time::Duration;

use bytes::Bytes;

use super::{Batch, NodeError, Pipe};
use crate::protocol::item::{Answer, Code};
use crate::protocol::key::Key;
use crate::protocol::node::{self, Ask};

/// How often giving it back is tried, where clients store over it meanwhile.
const TRIES: u8 = 4;

/// Gives back what was won of these `keys` (with whether each is written in base64): which of them,
/// and the cas id that the look has shown, if it did.
///
/// Where items have no cas ids, this could hit the fresh one that a client has just stored.
pub async fn give_back(
    pipe: &mut Pipe,
    keys: &[(Bytes, bool)],
    mut won: Vec<(usize, Option<u64>)>,
    patience: Duration,
) -> Result<(), NodeError> {
    for _ in 0..TRIES {
        won.retain(|&(_, cas)| cas != Some(0));
        if won.is_empty() {
            break;
        }
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        let mut batch = Batch::new();
        for (i, cas) in won.drain(..) {
            let (Some(cas), (key, binary)) = (cas, &keys[i]) else {
                unknown.push(i);
                continue;
            };
            batch.add(|out| node::md_stale(out, Key::new(key, *binary), cas));
            known.push(i);
        }
        // A client may have stored there what is stale as well, and memcached keeps in mind that
        // somebody recomputes it: then the cas id is another one.
        let answers = pipe.transfer(batch, patience, |at, frame| {
            let &i = known.get(at).ok_or("an answer too many")?;
            unknown.extend((Answer::to(&keys[i].0, &frame)?.code == Code::Exists).then_some(i));
            Ok(())
        });
        answers.await?;
        let looked: Vec<_> = unknown.iter().map(|&i| keys[i].clone()).collect();
        let answers = pipe.transfer(Batch::of_looks(&looked, Ask::KeyAndState), patience, |at, frame| {
            let (&i, (key, _)) = unknown.get(at).zip(looked.get(at)).ok_or("an answer too many")?;
            let answer = Answer::to(key, &frame)?;
            won.extend(answer.invalid.then_some((i, Some(answer.cas))));
            Ok(())
        });
        answers.await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::backend::NodeStream;
    use crate::ids::NodeId;

    /// An operator's look need not show the cas id.
    #[tokio::test]
    async fn an_item_whose_cas_id_is_not_known_is_looked_at_first() {
        let (near, mut far) = duplex(4096);
        let mut pipe = Pipe::over(NodeId(0), NodeStream::from(near));
        let keys = [(Bytes::from_static(b"a"), false), (Bytes::from_static(b"b c"), true)];
        let node = tokio::spawn(async move {
            for (asked, answer) in [
                ("md a k I C4\r\n", "HD ka\r\n"),
                ("mg YiBj b k t c\r\n", "HD kYiBj b t-1 c7 Z X\r\n"),
                ("md YiBj b k I C7\r\n", "HD kYiBj b\r\n"),
            ] {
                let mut got = vec![0; asked.len()];
                far.read_exact(&mut got).await.unwrap();
                assert_eq!(String::from_utf8_lossy(&got), asked);
                far.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        give_back(&mut pipe, &keys, vec![(0, Some(4)), (1, None)], Duration::from_secs(10)).await.unwrap();
        node.await.unwrap();
    }
}
