//! Clients of a connection that stays open: an event stream, and a quiet WebSocket.

use super::{
    answer::Answer,
    frames::{Frames, Wish},
    pace::LOOK,
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

/// The bytes that are read between two looks at most, so that a fast server does not keep the
/// drill busy.
const MAX_READ_BYTES: usize = 64 << 10;

/// Returns the request of an event stream.
pub(super) fn events(plan: &Plan, path: &str) -> Vec<u8> {
    let head = plan.head("GET", path);
    format!("{head}accept: text/event-stream\r\n\r\n").into_bytes()
}

/// Returns the handshake of a WebSocket. The key is 16 bytes in base64, and the answer to it is not
/// examined: the drill is no test of conformance.
pub(super) fn websocket(plan: &Plan, path: &str) -> Vec<u8> {
    let head = plan.head("GET", path);
    let rest = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                sec-websocket-key: cGFsaXNhZGUtZHJpbGwhIQ==\r\n\r\n";
    [&head, rest].concat().into_bytes()
}

/// What follows the head.
pub(super) enum Body {
    Events(Answer),
    WebSocket(Frames),
}

/// What became of received bytes.
#[derive(PartialEq, Eq)]
enum Fate {
    Open,
    /// The answer ended as an answer does, and is asked for again.
    Complete,
    Cut,
}

/// Opens a connection and looks at it until it ends: while it is open, the client is served.
/// Returns the least time until the next, if it did not fail.
pub(super) async fn hold(
    target: &Target,
    source: Source,
    steady: &Steady,
    record: &mut Record,
) -> Option<Duration> {
    record.begin(Duration::ZERO, Duration::ZERO);
    let (mut stream, mut body, rest) = match patiently(open(target, source, steady)).await {
        Ok(opened) => opened,
        Err(outcome) => {
            record.end(outcome);
            return None;
        }
    };
    record.end(Outcome::Served);
    let mut fate = body.read(&rest, &mut stream).await;
    let mut look = Instant::now() + LOOK;
    let mut piece = [0; 4 << 10];
    let mut read_bytes = 0;
    while fate == Fate::Open {
        tokio::select! {
            () = sleep_until(look) => {
                record.begin(look.elapsed(), Duration::ZERO);
                record.end(Outcome::Served);
                look += LOOK;
                read_bytes = 0;
            }
            read = stream.read(&mut piece), if read_bytes < MAX_READ_BYTES => {
                let bytes = read.ok().and_then(|count| piece.get(..count));
                fate = match bytes {
                    Some(bytes) if !bytes.is_empty() => {
                        read_bytes += bytes.len();
                        body.read(bytes, &mut stream).await
                    }
                    _ => Fate::Cut,
                };
            }
        }
    }
    if fate == Fate::Cut {
        record.begin(Duration::ZERO, Duration::ZERO);
        record.end(Outcome::Cut);
    }
    None
}

/// Opens the connection until the head of the answer has come.
pub(super) async fn open(
    target: &Target,
    source: Source,
    steady: &Steady,
) -> Result<(Stream, Body, Vec<u8>), Outcome> {
    let mut stream = connect(target, source, None, steady).await?;
    let mut answer = Answer::default();
    let rest = head(&mut stream, &mut answer).await?;
    let status = answer.status().unwrap_or_default();
    let body = match (steady.kind, status) {
        (Kind::WebSocket, 101) => Body::WebSocket(Frames::default()),
        (Kind::WebSocket, _) | (_, 101) => return Err(Outcome::Status(status)),
        // The answer has seen the rest already.
        _ => return Ok((stream, Body::Events(answer), Vec::new())),
    };
    Ok((stream, body, rest))
}

impl Body {
    async fn read(&mut self, bytes: &[u8], stream: &mut Stream) -> Fate {
        match self {
            Self::Events(answer) => match answer.read(bytes) {
                Ok(_) if answer.is_complete() => Fate::Complete,
                Ok(_) => Fate::Open,
                Err(_) => Fate::Cut,
            },
            Self::WebSocket(frames) => {
                for wish in frames.read(bytes) {
                    let is_sent = match wish {
                        Wish::Pong(pong) => {
                            let pong =
                                async { stream.write_all(&pong).await.map_err(|_| Outcome::Cut) };
                            patiently(pong).await.is_ok()
                        }
                        Wish::Close => false,
                    };
                    if !is_sent {
                        return Fate::Cut;
                    }
                }
                Fate::Open
            }
        }
    }
}
