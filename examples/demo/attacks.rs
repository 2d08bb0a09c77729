//! The attacks. Each attack runs a number of attackers until they are told to begin nothing more,
//! and aborts them soon after.

use crate::{clients, honest::HonestKind};
use palisade_drill::attacks::h2::frames::{
    CANCEL, END_HEADERS, END_STREAM, HEADERS, PREFACE, frame, reset, settings,
};
use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

/// The parameters of an attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// A description for the report.
    pub(crate) about: &'static str,
    /// The time in which attackers begin requests and connections.
    pub(crate) duration: Duration,
    /// The number of attackers.
    attackers: usize,
    /// The number of addresses, which the attackers share evenly.
    addresses: usize,
    /// The time in which all attackers start.
    ramp_up: Duration,
    /// The time after `duration` within which the server must release all attackers.
    pub(crate) settle: Duration,
    /// The limit on the server's open files, if lower than the system's.
    pub(crate) files: Option<u64>,
    /// The limit on the server's memory in bytes, by a control group of its own.
    pub(crate) memory: Option<u64>,
    pub(crate) honest: HonestKind,
    /// The part of the honest requests that palisade must serve.
    pub(crate) min_served_ratio: f64,
    kind: AttackKind,
}

/// What each attacker does.
#[derive(Clone, Copy)]
enum AttackKind {
    /// Sends one upload of one byte per second.
    SlowUpload,
    /// Sends one upload of [`HELD_BYTES`] but for its last piece.
    HeldUpload,
    /// Requests `/work` repeatedly, with this pause after each response.
    Work(Duration),
    /// Sends uploads of [`OVERSIZED_BYTES`] with a declared length, repeatedly.
    OversizedDeclared,
    /// Sends uploads of [`OVERSIZED_BYTES`] in chunks, repeatedly.
    OversizedChunked,
    /// Sends one upload in chunks of one byte, within the length limit, that never ends.
    OneByteChunks,
    /// Holds a silent connection, and opens a new one when it is closed.
    Silent,
    /// Holds a connection with an endless request head of one line per second, and opens a new one
    /// when it is closed.
    SlowHead,
    /// Holds a connection with a large response that it does not read, and opens a new one when it
    /// is closed.
    StalledReader,
    /// Sends HTTP/2 requests for work in batches, and cancels each once its handler has started.
    RapidReset,
}

/// The length of an oversized upload.
const OVERSIZED_BYTES: usize = 32 << 20;
/// The length of a held upload, which is within the limit.
const HELD_BYTES: usize = 1_900_000;
/// The length of a piece of an oversized or held upload.
const PIECE_BYTES: usize = 64 << 10;
/// The pause between oversized uploads.
const UPLOAD_PAUSE: Duration = Duration::from_millis(500);
/// The number of chunks of a one-byte-chunks upload.
const ONE_BYTE_CHUNKS: usize = 400 << 10;
/// The interval between the bytes of a slow upload and between the lines of a slow head.
const SLOW_INTERVAL: Duration = Duration::from_secs(1);
/// The pause before a closed connection is replaced.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);
/// The number of HTTP/2 requests in a batch.
const BATCH_REQUESTS: u32 = 20;
/// The time from a request to its cancellation: long enough for the handler to start, too short for
/// it to end.
const CANCEL_AFTER: Duration = Duration::from_millis(40);
/// The interval between checks whether a connection has been reset.
const RESET_CHECK_INTERVAL: Duration = Duration::from_millis(40);
/// The header of an upload without a declared length.
const CHUNKED: &str = "transfer-encoding: chunked";

/// Returns all attacks, shorter ones if `quick`.
pub(crate) fn all(quick: bool) -> Vec<Attack> {
    let milliseconds = |usual, quickly| Duration::from_millis(if quick { quickly } else { usual });
    let second = Duration::from_secs(1);
    let base = Attack {
        name: "",
        about: "",
        duration: second,
        attackers: 0,
        addresses: 1,
        ramp_up: second / 10,
        settle: second,
        files: None,
        memory: None,
        honest: HonestKind::Usual,
        min_served_ratio: 0.99,
        kind: AttackKind::Silent,
    };
    let connections = Attack {
        duration: milliseconds(5_000, 4_000),
        attackers: 1_500,
        addresses: 50,
        ramp_up: second / 2,
        settle: crate::servers::CONNECTION_TIMEOUT + second,
        files: Some(1_024),
        ..base
    };
    vec![
        Attack {
            name: "slow uploads",
            about: "500 clients from 25 addresses upload one byte per second, to a server with 200 permits",
            duration: milliseconds(8_500, 4_500),
            attackers: 500,
            addresses: 25,
            ramp_up: second / 2,
            kind: AttackKind::SlowUpload,
            ..base
        },
        Attack {
            name: "one-address flood",
            about: "600 connections from one address request slow work, again after each response",
            duration: milliseconds(3_000, 1_500),
            attackers: 600,
            addresses: 1,
            ramp_up: second / 2,
            kind: AttackKind::Work(second / 10),
            ..base
        },
        Attack {
            name: "oversized bodies",
            about: "24 clients repeatedly upload 32 MiB, declared in Content-Length",
            duration: milliseconds(2_500, 1_500),
            attackers: 24,
            addresses: 12,
            kind: AttackKind::OversizedDeclared,
            ..base
        },
        Attack {
            name: "oversized chunked bodies",
            about: "24 clients repeatedly upload 32 MiB in chunks",
            duration: milliseconds(2_500, 1_500),
            attackers: 24,
            addresses: 12,
            kind: AttackKind::OversizedChunked,
            ..base
        },
        Attack {
            name: "one-byte chunks",
            about: "10 clients upload 400 KiB in chunks of one byte, and never end the body",
            duration: milliseconds(9_500, 6_000),
            attackers: 10,
            addresses: 5,
            kind: AttackKind::OneByteChunks,
            ..base
        },
        Attack {
            name: "overload",
            about: "2,500 clients from 50 addresses start within 2.5 s and request more slow work than the server can do",
            duration: milliseconds(6_500, 4_500),
            attackers: 2_500,
            addresses: 50,
            ramp_up: second * 5 / 2,
            kind: AttackKind::Work(second * 2 / 5),
            ..base
        },
        Attack {
            name: "idle flood",
            about: "1,500 connections from 50 addresses send nothing, to a server with 1,024 files",
            kind: AttackKind::Silent,
            ..connections
        },
        Attack {
            name: "Slowloris",
            about: "the same, with a request head that grows by one line per second",
            kind: AttackKind::SlowHead,
            ..connections
        },
        Attack {
            name: "slow readers",
            about: "the same, with a response of 8 MiB that is not read",
            kind: AttackKind::StalledReader,
            ..connections
        },
        Attack {
            name: "paced rapid reset",
            about: "10 clients request work over HTTP/2 and cancel each request 40 ms later",
            duration: milliseconds(4_000, 2_500),
            attackers: 10,
            addresses: 10,
            kind: AttackKind::RapidReset,
            ..base
        },
        Attack {
            name: "200 uploads held open in 256 MiB",
            about: "200 clients upload 1.9 MB and hold the end back, to a server in a control group of 256 MiB",
            duration: milliseconds(8_500, 4_500),
            attackers: 200,
            addresses: 50,
            memory: Some(256 << 20),
            kind: AttackKind::HeldUpload,
            ..base
        },
        Attack {
            name: "CPU-bound overload",
            about: "no attacker, but honest requests that burn 10 ms of processor time each, twice as many as the server can do",
            duration: milliseconds(10_000, 6_000),
            honest: HonestKind::CpuBound,
            min_served_ratio: 0.3,
            ..base
        },
    ]
}

/// The running attackers.
pub(crate) struct Attackers {
    tasks: JoinSet<()>,
    shared: Arc<Shared>,
}

/// The state that the attackers share.
#[derive(Default)]
struct Shared {
    /// The number of attackers with a connection or request that the server holds now.
    held: AtomicUsize,
    /// Attackers begin nothing more.
    stopped: AtomicBool,
    responses: Mutex<Responses>,
}

/// The number of responses by status; `cut` counts connections closed without a response.
pub(crate) type Responses = BTreeMap<String, u64>;

/// Counts an attacker as held until it is dropped.
struct Held<'a>(&'a AtomicUsize);

// === Attackers ===

impl Attackers {
    /// Starts the attackers.
    pub(crate) fn start(attack: &Attack, addr: SocketAddr) -> Self {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for number in 0..attack.attackers {
            let (shared, kind) = (shared.clone(), attack.kind);
            let from = 1 + u8::try_from(number % attack.addresses).unwrap_or(u8::MAX - 1);
            let from = Ipv4Addr::new(127, 0, 2, from);
            let delay = attack.ramp_up * number as u32 / attack.attackers as u32;
            tasks.spawn(async move {
                sleep(delay).await;
                shared.attack(kind, from, addr).await;
            });
        }
        Self { tasks, shared }
    }

    /// Returns the number of attackers with a connection or request that the server holds.
    pub(crate) fn held(&self) -> usize {
        self.shared.held.load(Relaxed)
    }

    /// Lets the attackers continue what they have begun, but begin nothing more.
    pub(crate) fn begin_nothing_more(&self) {
        self.shared.stopped.store(true, Relaxed);
    }

    /// Aborts the attackers and returns the responses they have received.
    pub(crate) async fn abort(&mut self) -> Responses {
        self.tasks.shutdown().await;
        std::mem::take(
            &mut self
                .shared
                .responses
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

impl Shared {
    /// Runs one attacker.
    async fn attack(&self, kind: AttackKind, from: Ipv4Addr, addr: SocketAddr) {
        match kind {
            AttackKind::SlowUpload => self.upload(from, addr, &Upload::slow()).await,
            AttackKind::HeldUpload => self.upload(from, addr, &Upload::held()).await,
            AttackKind::OneByteChunks => self.upload(from, addr, &Upload::one_byte_chunks()).await,
            AttackKind::OversizedDeclared | AttackKind::OversizedChunked => {
                let upload = match kind {
                    AttackKind::OversizedDeclared => Upload::declared(),
                    _ => Upload::chunked(),
                };
                while self.may_begin() {
                    self.upload(from, addr, &upload).await;
                    sleep(UPLOAD_PAUSE).await;
                }
            }
            AttackKind::Silent
            | AttackKind::SlowHead
            | AttackKind::StalledReader
            | AttackKind::RapidReset => {
                while self.may_begin() {
                    // An error means that the server has closed or refused the connection.
                    let _ = self.hold(kind, from, addr).await;
                    sleep(RECONNECT_PAUSE).await;
                }
            }
            AttackKind::Work(pause) => {
                while self.may_begin() {
                    // An error means that the server has closed the connection.
                    let _ = self.request_work(from, addr, pause).await;
                    sleep(pause).await;
                }
            }
        }
    }

    /// Returns whether attackers may begin new requests and connections.
    fn may_begin(&self) -> bool {
        !self.stopped.load(Relaxed)
    }

    /// Counts a response by its status, or a connection closed without one.
    fn count_response(&self, status: Option<u16>) {
        let key = status.map_or_else(|| "cut".to_owned(), |status| status.to_string());
        let mut responses = self
            .responses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *responses.entry(key).or_default() += 1;
    }

    /// Sends one upload on a new connection, until there is a response or the connection is closed.
    async fn upload(&self, from: Ipv4Addr, addr: SocketAddr, upload: &Upload) {
        let Ok(mut stream) = clients::connect(from, addr).await else {
            return self.count_response(None);
        };
        let _held = Held::new(&self.held);
        let (mut read, mut write) = stream.split();
        let status = tokio::select! {
            status = read_response(&mut read) => status.ok(),
            // After a failed write there may still be a response to read.
            _ = upload.send(&mut write) => {
                timeout(clients::PATIENCE, read_response(&mut read)).await.ok().and_then(Result::ok)
            }
        };
        self.count_response(status);
    }

    /// Holds one connection until the server closes it.
    async fn hold(&self, kind: AttackKind, from: Ipv4Addr, addr: SocketAddr) -> io::Result<()> {
        let mut stream = clients::connect(from, addr).await?;
        let _held = Held::new(&self.held);
        let (mut read, mut write) = stream.split();
        let result = match kind {
            AttackKind::SlowHead => tokio::select! {
                sent = send_endless_head(&mut write) => sent,
                closed = discard(&mut read) => closed,
            },
            AttackKind::StalledReader => {
                write
                    .write_all(b"GET /big HTTP/1.1\r\nhost: demo\r\n\r\n")
                    .await?;
                wait_for_reset(&stream).await
            }
            AttackKind::RapidReset => tokio::select! {
                sent = self.send_and_cancel_requests(&mut write) => sent,
                closed = discard(&mut read) => closed,
            },
            _ => discard(&mut read).await,
        };
        self.count_response(None);
        result
    }

    /// Sends batches of HTTP/2 requests and cancels each batch.
    async fn send_and_cancel_requests(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        to.write_all(PREFACE).await?;
        to.write_all(&settings(&[])).await?;
        // :method GET and :scheme http indexed, then :path and :authority as literals.
        let head = b"\x82\x86\x04\x05/work\x01\x04demo";
        for batch in 0u32.. {
            let streams = (0..BATCH_REQUESTS).map(|n| 2 * (batch * BATCH_REQUESTS + n) + 1);
            let requests = streams
                .clone()
                .flat_map(|stream| frame(HEADERS, END_STREAM | END_HEADERS, stream, head));
            to.write_all(&requests.collect::<Vec<_>>()).await?;
            sleep(CANCEL_AFTER).await;
            let resets = streams.flat_map(|stream| reset(stream, CANCEL));
            to.write_all(&resets.collect::<Vec<_>>()).await?;
            if !self.may_begin() {
                break;
            }
        }
        Ok(())
    }

    /// Requests `/work` on one connection until it is closed.
    async fn request_work(
        &self,
        from: Ipv4Addr,
        addr: SocketAddr,
        pause: Duration,
    ) -> io::Result<()> {
        let mut stream = clients::connect(from, addr).await?;
        while self.may_begin() {
            let status = {
                let _held = Held::new(&self.held);
                let sent = stream
                    .write_all(b"GET /work HTTP/1.1\r\nhost: demo\r\n\r\n")
                    .await;
                match sent {
                    Ok(()) => read_response(&mut stream).await,
                    Err(error) => Err(error),
                }
            };
            self.count_response(status.as_ref().ok().copied());
            status?;
            sleep(pause).await;
        }
        Ok(())
    }
}

// === Upload ===

/// An upload: a head, and a number of equal pieces of body.
struct Upload {
    /// The header of the body's length.
    length: String,
    piece: Vec<u8>,
    pieces: usize,
    pause: Duration,
}

impl Upload {
    fn slow() -> Self {
        let length = "content-length: 100000".to_owned();
        Self {
            length,
            piece: b"x".to_vec(),
            pieces: usize::MAX,
            pause: SLOW_INTERVAL,
        }
    }

    fn declared() -> Self {
        let length = format!("content-length: {OVERSIZED_BYTES}");
        let (piece, pieces) = (vec![b'x'; PIECE_BYTES], OVERSIZED_BYTES / PIECE_BYTES);
        Self {
            length,
            piece,
            pieces,
            pause: Duration::ZERO,
        }
    }

    fn held() -> Self {
        Self {
            length: format!("content-length: {HELD_BYTES}"),
            pieces: HELD_BYTES / PIECE_BYTES,
            ..Self::declared()
        }
    }

    fn chunked() -> Self {
        let mut piece = format!("{PIECE_BYTES:x}\r\n").into_bytes();
        piece.resize(piece.len() + PIECE_BYTES, b'x');
        piece.extend(b"\r\n");
        Self {
            length: CHUNKED.to_owned(),
            piece,
            ..Self::declared()
        }
    }

    fn one_byte_chunks() -> Self {
        let piece = b"1\r\nx\r\n".repeat(1024);
        let pieces = ONE_BYTE_CHUNKS / 1024;
        Self {
            length: CHUNKED.to_owned(),
            piece,
            pieces,
            pause: Duration::ZERO,
        }
    }

    /// Sends the upload as fast as the server reads it. A chunked upload has no last chunk.
    async fn send(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let head = format!(
            "POST /upload HTTP/1.1\r\nhost: demo\r\n{}\r\n\r\n",
            self.length
        );
        to.write_all(head.as_bytes()).await?;
        for _ in 0..self.pieces {
            to.write_all(&self.piece).await?;
            if !self.pause.is_zero() {
                sleep(self.pause).await;
            }
        }
        Ok(())
    }
}

// === Connections ===

/// Sends an endless request head.
async fn send_endless_head(to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    to.write_all(b"GET / HTTP/1.1\r\nhost: demo\r\n").await?;
    loop {
        sleep(SLOW_INTERVAL).await;
        to.write_all(b"x: y\r\n").await?;
    }
}

/// Reads and discards bytes until the connection is closed.
async fn discard(from: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    tokio::io::copy(from, &mut tokio::io::sink())
        .await
        .map(|_| ())
}

/// Waits for a reset of the connection without reading from it.
async fn wait_for_reset(stream: &TcpStream) -> io::Result<()> {
    loop {
        sleep(RESET_CHECK_INTERVAL).await;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
}

// === Responses ===

/// Reads one response, with its body if the length is declared, and returns its status.
async fn read_response(from: &mut (impl AsyncRead + Unpin)) -> io::Result<u16> {
    const MAX_BYTES: usize = 16 << 10;
    let mut read = Vec::with_capacity(512);
    let end = loop {
        if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if read.len() > MAX_BYTES || from.read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
    let status = head.get(9..12).and_then(|code| code.parse().ok());
    let status = status.ok_or(io::ErrorKind::InvalidData)?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
    while read.len() < end + length.min(MAX_BYTES) {
        if from.read_buf(&mut read).await? == 0 {
            break;
        }
    }
    Ok(status)
}

// === Held ===

impl<'a> Held<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
