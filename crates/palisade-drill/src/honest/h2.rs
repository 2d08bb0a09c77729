//! HTTP/2 connections with three requests at once, of which one is refused.

use super::{
    pace::interval,
    steady::{Record, Steady, connect, patiently},
    streams::{Expected, Streams},
};
use crate::{
    sample::{Kind, Outcome},
    target::{Source, Target},
};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The bytes that are read on one connection at most.
const MAX_READ_BYTES: usize = 4 << 20;

/// Sends the three requests on a new connection. Returns the least time until the next.
pub(super) async fn exchange(
    target: &Target,
    source: Source,
    steady: &Steady,
    record: &mut Record,
) -> Option<Duration> {
    record.begin(Duration::ZERO, Duration::ZERO);
    let outcome = streams(target, source, steady).await;
    record.end(outcome.err().unwrap_or(Outcome::Served));
    Some(interval(Kind::Http2, &[]))
}

/// Sends the requests once and returns what they are answered.
///
/// # Errors
///
/// If a request that is not refused is not served.
pub(super) async fn streams(
    target: &Target,
    source: Source,
    steady: &Steady,
) -> Result<Option<Expected>, Outcome> {
    patiently(async {
        let mut stream = connect(target, source, None, steady).await?;
        let mut streams = Streams::default();
        let mut piece = [0; 4 << 10];
        let mut read_bytes = 0;
        loop {
            match streams.outcome(steady.expected) {
                Some(Outcome::Served) => return Ok(streams.learn()),
                Some(outcome) => return Err(outcome),
                None => {}
            }
            let count = stream.read(&mut piece).await.map_err(|_| Outcome::Cut)?;
            read_bytes += count;
            if count == 0 || read_bytes > MAX_READ_BYTES {
                return Err(Outcome::Cut);
            }
            let replies = streams.read(piece.get(..count).unwrap_or_default());
            stream.write_all(&replies).await.map_err(|_| Outcome::Cut)?;
        }
    })
    .await
}
