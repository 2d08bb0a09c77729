//! TLS handshakes of a client that delays each of its flights.

use super::{
    answer::Answer,
    log::Log,
    pace::{FLIGHT_DELAYS, interval},
    steady::{Record, Steady, patiently},
};
use crate::{
    sample::{Kind, Outcome},
    target::{Source, Stream, Target},
};
use std::{
    io::{Read, Write},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};
use tokio_rustls::rustls::ClientConnection;

/// The bytes that are read on one connection at most.
const MAX_READ_BYTES: usize = 4 << 20;

/// Makes one handshake and sends a GET. What counts is the wait: for the connection, and for the
/// answer to each flight. A handshake that breaks off is lost as a whole. Returns the least time
/// until the next.
pub(super) async fn exchange(
    target: &Target,
    source: Source,
    steady: &Steady,
    record: &mut Record,
) -> Option<Duration> {
    let outcome = flights(target, source, steady, record).await;
    let outcome = outcome.err().unwrap_or(Outcome::Served);
    // A server that answers the first flight alone has served nothing.
    record.settle(outcome);
    record.end(outcome);
    // Also after a failure, so that what it accounts for is all of the time.
    Some(interval(Kind::SlowHandshake, &[]))
}

/// Makes one handshake and sends a GET, to learn whether the server serves that at all.
///
/// # Errors
///
/// If it does not.
pub(super) async fn once(target: &Target, source: Source, steady: &Steady) -> Result<(), Outcome> {
    let log = Arc::new(Log::new(Instant::now(), &[steady.kind]));
    let mut record = Record::new(log, steady.kind);
    flights(target, source, steady, &mut record).await
}

/// Runs one connection. At its end the wait for the answer to the first flight is suspended, if it
/// came, and the last wait is under way.
async fn flights(
    target: &Target,
    source: Source,
    steady: &Steady,
    record: &mut Record,
) -> Result<(), Outcome> {
    let mut client = first_flight(target, source, record).await?;
    record.suspend();
    delay(FLIGHT_DELAYS[1], Duration::ZERO, record).await;
    patiently(client.second_flight(&steady.request)).await
}

/// Opens the connection and makes the handshake until the server has answered the first flight.
async fn first_flight(
    target: &Target,
    source: Source,
    record: &mut Record,
) -> Result<Client, Outcome> {
    record.begin(Duration::ZERO, Duration::ZERO);
    let session = target.tls().and_then(|tls| tls.session().ok());
    let session = session.ok_or(Outcome::NotConnected)?;
    let connect = async {
        let connected = target.connect(source, None).await;
        connected.map_err(|_| Outcome::NotConnected)
    };
    let stream = patiently(connect).await?;
    let mut client = Client {
        session,
        stream,
        read_bytes: 0,
    };
    let waited = record.pause();
    delay(FLIGHT_DELAYS[0], waited, record).await;
    patiently(async {
        client.flush().await?;
        // The answer to the first flight is whole when the client has something to say to it.
        while !client.session.wants_write() && client.session.is_handshaking() {
            client.receive().await?;
        }
        Ok(client)
    })
    .await
}

/// Waits before a flight. The wait for the server begins with it, after it `waited` before.
async fn delay(time: Duration, waited: Duration, record: &mut Record) {
    let due = Instant::now() + time;
    sleep(time).await;
    record.begin(due.elapsed(), waited);
}

/// A connection and the client's side of its TLS.
struct Client {
    session: ClientConnection,
    stream: Stream,
    read_bytes: usize,
}

impl Client {
    /// Sends all that is due.
    async fn flush(&mut self) -> Result<(), Outcome> {
        let mut bytes = Vec::new();
        while self.session.wants_write() {
            let written = self.session.write_tls(&mut bytes);
            written.map_err(|_| Outcome::Cut)?;
        }
        let sent = self.stream.write_all(&bytes).await;
        sent.map_err(|_| Outcome::Cut)
    }

    /// Receives a piece. It is none at the end of the connection.
    async fn receive(&mut self) -> Result<(), Outcome> {
        // So small that rustls takes all of it at once, also behind a record of the largest size.
        let mut piece = [0; 1 << 10];
        let count = self.stream.read(&mut piece).await;
        let count = count.map_err(|_| Outcome::Cut)?;
        self.read_bytes += count;
        if count == 0 || self.read_bytes > MAX_READ_BYTES {
            return Err(Outcome::Cut);
        }
        let mut bytes = piece.get(..count).unwrap_or_default();
        while !bytes.is_empty() {
            let read = self.session.read_tls(&mut bytes);
            read.map_err(|_| Outcome::Cut)?;
            let processed = self.session.process_new_packets();
            processed.map_err(|_| Outcome::Cut)?;
        }
        Ok(())
    }

    /// Ends the handshake, and sends the request.
    async fn second_flight(&mut self, request: &[u8]) -> Result<(), Outcome> {
        self.flush().await?;
        while self.session.is_handshaking() {
            self.receive().await?;
            self.flush().await?;
        }
        let written = self.session.writer().write_all(request);
        written.map_err(|_| Outcome::Cut)?;
        self.flush().await?;
        self.answer().await
    }

    /// Receives the answer to the request.
    async fn answer(&mut self) -> Result<(), Outcome> {
        let mut answer = Answer::default();
        loop {
            let mut piece = [0; 4 << 10];
            let count = match self.session.reader().read(&mut piece) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.receive().await?;
                    continue;
                }
                Err(_) => 0,
            };
            let bytes = piece.get(..count).unwrap_or_default();
            answer.read(bytes).map_err(|_| Outcome::WrongBody)?;
            match answer.status() {
                Some(status) if !(200..300).contains(&status) => {
                    return Err(Outcome::Status(status));
                }
                Some(_) if answer.is_complete() => return Ok(()),
                _ if count > 0 => {}
                _ if answer.ends_with_connection() => return Ok(()),
                _ => return Err(Outcome::Cut),
            }
        }
    }
}
