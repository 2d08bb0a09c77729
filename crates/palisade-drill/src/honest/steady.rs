//! What honest clients with answers that take long have in common: a request, a record of their
//! waits, and the beginning of an answer.

use super::{answer::Answer, client::PATIENCE, log::Log, streams::Expected};
use crate::{
    attacks::Protocol,
    sample::{Kind, Outcome, Sample, Span},
    target::{Source, Stream, Target},
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// What a client sends, by its kind.
#[derive(Clone, Debug)]
pub(crate) struct Steady {
    pub(crate) kind: Kind,
    /// The bytes of the request's head, or all of it.
    pub(super) request: Bytes,
    /// The answer of HTTP/2 streams, if it was learned.
    pub(super) expected: Option<Expected>,
}

/// Writes the samples of one client.
pub(super) struct Record {
    log: Arc<Log>,
    kind: Kind,
    under_way: Option<Duration>,
    /// A wait that has ended, of which what comes after tells the outcome.
    suspended: Option<Span>,
}

impl Record {
    pub(super) fn new(log: Arc<Log>, kind: Kind) -> Self {
        Self {
            log,
            kind,
            under_way: None,
            suspended: None,
        }
    }

    /// Returns the time since the epoch of the drill.
    pub(super) fn now(&self) -> Duration {
        self.log.now()
    }

    /// A wait for the server begins, `late` after its time. What it `waited` before counts as well.
    pub(super) fn begin(&mut self, late: Duration, waited: Duration) {
        let now = self.log.begin(self.kind, late);
        self.under_way = Some(now.saturating_sub(waited));
    }

    /// The client waits for its own pace, and not for the server. Returns how long it had waited
    /// for that.
    pub(super) fn pause(&mut self) -> Duration {
        self.log.pause(self.kind);
        let began = self.under_way.take();
        began.map_or(Duration::ZERO, |began| self.log.now().saturating_sub(began))
    }

    /// The wait ends.
    pub(super) fn end(&mut self, outcome: Outcome) {
        let start = self.under_way.take().unwrap_or_else(|| self.log.now());
        self.log.end(self.kind, start, outcome);
    }

    /// The wait ends, and what comes after tells whether the client was served.
    #[cfg(feature = "rustls")]
    pub(super) fn suspend(&mut self) {
        self.log.pause(self.kind);
        let to = self.log.now();
        let from = self.under_way.take().unwrap_or(to);
        self.suspended = Some(Span { from, to });
    }

    /// Records a wait that was suspended, if one was.
    pub(super) fn settle(&mut self, outcome: Outcome) {
        if let Some(wait) = self.suspended.take() {
            self.log.add(Sample {
                kind: self.kind,
                start: wait.from,
                end: wait.to,
                outcome,
            });
        }
    }

    /// The wait ends with the loss of all that was served since `from`.
    pub(super) fn lose(&mut self, from: Duration, outcome: Outcome) {
        self.end(outcome);
        self.log.spoil(self.kind, from, outcome);
    }

    /// The drill wants a new request.
    pub(super) fn give_up(&mut self) {
        self.settle(Outcome::Unfinished);
        if self.under_way.is_some() {
            self.end(Outcome::Unfinished);
        }
    }
}

/// Opens a connection and writes the request of `steady`.
pub(super) async fn connect(
    target: &Target,
    source: Source,
    receive_buffer: Option<u32>,
    steady: &Steady,
) -> Result<Stream, Outcome> {
    let protocol = match steady.kind {
        Kind::Http2 => Protocol::Http2,
        _ => Protocol::Http1,
    };
    let connect = async {
        let mut stream = target
            .connect_as(protocol, source, receive_buffer)
            .await
            .map_err(|_| Outcome::NotConnected)?;
        let written = stream.write_all(&steady.request).await;
        written.map(|()| stream).map_err(|_| Outcome::Cut)
    };
    timeout(PATIENCE, connect)
        .await
        .unwrap_or(Err(Outcome::TimedOut))
}

/// Reads until the head of an answer is complete. Returns what follows it.
pub(super) async fn head(stream: &mut Stream, answer: &mut Answer) -> Result<Vec<u8>, Outcome> {
    let mut piece = [0; 4 << 10];
    loop {
        let count = stream.read(&mut piece).await.map_err(|_| Outcome::Cut)?;
        let bytes = piece.get(..count).filter(|bytes| !bytes.is_empty());
        let bytes = bytes.ok_or(Outcome::Cut)?;
        let of_head = answer.read(bytes).map_err(|_| Outcome::WrongBody)?;
        if let Some(status) = answer.status() {
            let is_expected = (200..300).contains(&status) || status == 101;
            let rest = bytes.get(of_head..).unwrap_or_default().to_vec();
            return if is_expected {
                Ok(rest)
            } else {
                Err(Outcome::Status(status))
            };
        }
    }
}

/// Bounds a wait for the server.
pub(super) async fn patiently<T>(
    wait: impl Future<Output = Result<T, Outcome>>,
) -> Result<T, Outcome> {
    timeout(PATIENCE, wait)
        .await
        .unwrap_or(Err(Outcome::TimedOut))
}
