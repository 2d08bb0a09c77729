//! Phones: a slow upload and a slow download, at a pace of their own.

use super::{
    answer::Answer,
    pace::{
        DOWNLOAD_INTERVAL, DOWNLOAD_PIECE_BYTES, UPLOAD_BYTES, UPLOAD_PIECE, UPLOAD_PIECE_BYTES,
        interval,
    },
    steady::{Record, Steady, connect, head, patiently},
};
use crate::{
    plan::Plan,
    sample::{Kind, Outcome},
    target::{Source, Stream, Target},
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep_until},
};

/// The receive buffer of a phone: a second of its rate, so that a server soon feels the pace.
const RECEIVE_BUFFER_BYTES: u32 = 64 << 10;

/// Returns the head of the upload; `None` without a route.
pub(super) fn upload(plan: &Plan) -> Option<Vec<u8>> {
    let head = plan.head("POST", plan.post.as_ref()?);
    let rest = format!("content-length: {UPLOAD_BYTES}\r\nconnection: close\r\n\r\n");
    Some([head, rest].concat().into_bytes())
}

/// Returns the request of the download; `None` without a route.
pub(super) fn download(plan: &Plan) -> Option<Vec<u8>> {
    let head = plan.head("GET", plan.large.as_ref()?);
    Some(format!("{head}connection: close\r\n\r\n").into_bytes())
}

// === Upload ===

/// Sends one upload. What counts is the wait: for the connection, for a server that does not read,
/// and for the answer. Returns the least time until the next.
pub(super) async fn send(
    target: &Target,
    source: Source,
    steady: &Steady,
    record: &mut Record,
) -> Option<Duration> {
    record.begin(Duration::ZERO, Duration::ZERO);
    let mut stream = match connect(target, source, None, steady).await {
        Ok(stream) => stream,
        Err(outcome) => {
            record.end(outcome);
            return None;
        }
    };
    let waited = record.pause();
    let outcome = match write_body(&mut stream, waited, record).await {
        Ok(mut answer) => patiently(read_rest(&mut stream, &mut answer)).await,
        Err(outcome) => Err(outcome),
    };
    record.end(outcome.err().unwrap_or(Outcome::Served));
    outcome.is_ok().then_some(Duration::ZERO)
}

/// Sends one upload without a pace.
///
/// # Errors
///
/// If it is not served.
pub(super) async fn upload_at_once(
    target: &Target,
    source: Source,
    steady: &Steady,
) -> Result<(), Outcome> {
    let mut stream = connect(target, source, None, steady).await?;
    let written = stream.write_all(&[b'x'; UPLOAD_BYTES]).await;
    written.map_err(|_| Outcome::Cut)?;
    read_rest(&mut stream, &mut Answer::default()).await
}

/// Writes the body at the phone's pace. An answer that comes before its end is read.
async fn write_body(
    stream: &mut Stream,
    mut waited: Duration,
    record: &mut Record,
) -> Result<Answer, Outcome> {
    let mut answer = Answer::default();
    let began = Instant::now();
    let pieces = UPLOAD_BYTES / UPLOAD_PIECE_BYTES;
    let mut blocked = Duration::ZERO;
    for number in 1..=pieces {
        let due = began + UPLOAD_PIECE * number as u32 + blocked;
        let mut piece = [0; 1 << 10];
        loop {
            tokio::select! {
                () = sleep_until(due) => break,
                read = stream.read(&mut piece) => {
                    let count = read.map_err(|_| Outcome::Cut)?;
                    let bytes = piece.get(..count).filter(|bytes| !bytes.is_empty());
                    let bytes = bytes.ok_or(Outcome::Cut)?;
                    answer.read(bytes).map_err(|_| Outcome::WrongBody)?;
                    match answer.status() {
                        Some(status) if !(200..300).contains(&status) => {
                            return Err(Outcome::Status(status));
                        }
                        _ => {}
                    }
                }
            }
        }
        record.begin(due.elapsed(), waited);
        let write = async {
            let written = stream.write_all(&[b'x'; UPLOAD_PIECE_BYTES]).await;
            written.map_err(|_| Outcome::Cut)
        };
        patiently(write).await?;
        if number < pieces {
            let more = record.pause().saturating_sub(waited);
            (waited, blocked) = (waited + more, blocked + more);
        }
    }
    // Under way from here on: the answer is due.
    Ok(answer)
}

/// Reads until the answer is complete.
async fn read_rest(stream: &mut Stream, answer: &mut Answer) -> Result<(), Outcome> {
    let mut piece = [0; 4 << 10];
    loop {
        match answer.status() {
            Some(status) if !(200..300).contains(&status) => return Err(Outcome::Status(status)),
            Some(_) if answer.is_complete() => return Ok(()),
            _ => {}
        }
        let count = stream.read(&mut piece).await.map_err(|_| Outcome::Cut)?;
        let bytes = piece.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return answer
                .ends_with_connection()
                .then_some(())
                .ok_or(Outcome::Cut);
        }
        answer.read(bytes).map_err(|_| Outcome::WrongBody)?;
    }
}

// === Download ===

/// Receives one large answer at the phone's pace, piece by piece. What counts is the wait for each
/// piece beyond that pace; if the answer breaks off, all its pieces are lost. Returns the least
/// time until the next.
pub(super) async fn receive(
    target: &Target,
    source: Source,
    steady: &Steady,
    record: &mut Record,
) -> Option<Duration> {
    let from = record.now();
    record.begin(Duration::ZERO, Duration::ZERO);
    let opened = patiently(async {
        let buffer = Some(RECEIVE_BUFFER_BYTES);
        let mut stream = connect(target, source, buffer, steady).await?;
        let mut answer = Answer::default();
        head(&mut stream, &mut answer).await?;
        Ok((stream, answer))
    });
    let (mut stream, mut answer) = match opened.await {
        Ok(opened) => opened,
        Err(outcome) => {
            record.end(outcome);
            return None;
        }
    };
    record.end(Outcome::Served);
    let pace = interval(Kind::PhoneDownload, &[]);
    let mut due = Instant::now() + pace;
    while !answer.is_complete() {
        sleep_until(due).await;
        record.begin(due.elapsed(), Duration::ZERO);
        match patiently(read_piece(&mut stream, &mut answer)).await {
            Ok(true) => record.end(Outcome::Served),
            Ok(false) => {
                record.end(Outcome::Served);
                break;
            }
            Err(outcome) => {
                record.lose(from, outcome);
                return None;
            }
        }
        // A phone that waited is not faster afterwards.
        due = (due + pace).max(Instant::now());
    }
    Some(DOWNLOAD_INTERVAL)
}

/// Reads one piece of an answer. Returns whether there is more.
async fn read_piece(stream: &mut Stream, answer: &mut Answer) -> Result<bool, Outcome> {
    let mut piece = [0; DOWNLOAD_PIECE_BYTES];
    let mut left = DOWNLOAD_PIECE_BYTES;
    while left > 0 && !answer.is_complete() {
        let count = stream
            .read(&mut piece[..left])
            .await
            .map_err(|_| Outcome::Cut)?;
        if count == 0 {
            let is_whole = answer.ends_with_connection();
            return is_whole.then_some(false).ok_or(Outcome::Cut);
        }
        let bytes = piece.get(..count).unwrap_or_default();
        answer.read(bytes).map_err(|_| Outcome::WrongBody)?;
        left = left.saturating_sub(count);
    }
    Ok(!answer.is_complete())
}
