//! The attacks. Each has so many attackers, who do what they do until they are told to begin
//! nothing more, and are ended by force soon after.

use crate::clients;
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

pub(crate) struct Attack {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) lasts: Duration,
    attackers: usize,
    /// They come from so many addresses, evenly.
    addresses: usize,
    /// All of them have begun by then.
    within: Duration,
    /// How long after the last of them began anything none may be left.
    pub(crate) settle: Duration,
    /// How many files the server may have open, if not as many as the system lets it.
    pub(crate) files: Option<u64>,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    /// One upload of a byte a second, once.
    Drip,
    /// `/work` again and again, with this pause after each answer.
    Work(Duration),
    /// Uploads of [`TOO_LONG`], which say so.
    Declared,
    /// The same without saying so.
    Chunked,
    /// One upload in chunks of one byte, within the length limit, whose end never comes.
    OneByteChunks,
    /// Connections that say nothing; a new one for each that is cut.
    Silence,
    /// The same with a head of which a line comes each second, without end.
    Head,
    /// The same with a large answer that is asked for and not read.
    Stall,
    /// HTTP/2 requests for work, by the batch, each taken back when it has begun.
    Reset,
}

const TOO_LONG: usize = 32 << 20;
const PIECE: usize = 64 << 10;
const BETWEEN_UPLOADS: Duration = Duration::from_millis(500);
const ONE_BYTE_CHUNKS: usize = 400 << 10;
const DRIP: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(500);
const BATCH: u32 = 20;
/// As long as a handler needs to begin, and shorter than it needs to end.
const BETWEEN: Duration = Duration::from_millis(40);
const CHUNKED: &str = "transfer-encoding: chunked";

pub(crate) fn all(quick: bool) -> Vec<Attack> {
    let seconds = |usual, quickly| Duration::from_millis(if quick { quickly } else { usual });
    let second = Duration::from_secs(1);
    let connections = Attack {
        name: "",
        about: "",
        lasts: seconds(5_000, 4_000),
        attackers: 1_500,
        addresses: 50,
        within: second / 2,
        settle: crate::servers::DEADLINE + second,
        files: Some(1_024),
        what: What::Silence,
    };
    vec![
        Attack {
            name: "slow uploads",
            about: "500 clients of 25 addresses upload a byte a second, to a server with 200 permits",
            lasts: seconds(8_500, 4_500),
            attackers: 500,
            addresses: 25,
            within: second / 2,
            settle: second,
            files: None,
            what: What::Drip,
        },
        Attack {
            name: "one-address flood",
            about: "600 connections of one address ask for slow work as often as they get an answer",
            lasts: seconds(3_000, 1_500),
            attackers: 600,
            addresses: 1,
            within: second / 2,
            settle: second,
            files: None,
            what: What::Work(second / 10),
        },
        Attack {
            name: "oversized bodies",
            about: "24 clients upload 32 MiB each, again and again, and say so in Content-Length",
            lasts: seconds(2_500, 1_500),
            attackers: 24,
            addresses: 12,
            within: second / 10,
            settle: second,
            files: None,
            what: What::Declared,
        },
        Attack {
            name: "oversized chunked bodies",
            about: "24 clients upload 32 MiB each, again and again, in chunks",
            lasts: seconds(2_500, 1_500),
            attackers: 24,
            addresses: 12,
            within: second / 10,
            settle: second,
            files: None,
            what: What::Chunked,
        },
        Attack {
            name: "one-byte chunks",
            about: "10 clients upload 400 KiB each in chunks of one byte, and never end",
            lasts: seconds(9_500, 6_000),
            attackers: 10,
            addresses: 5,
            within: second / 10,
            settle: second,
            files: None,
            what: What::OneByteChunks,
        },
        Attack {
            name: "overload",
            about: "2,500 clients of 50 addresses come within 2.5 s and want more slow work than can be done",
            lasts: seconds(6_500, 4_500),
            attackers: 2_500,
            addresses: 50,
            within: second * 5 / 2,
            settle: second,
            files: None,
            what: What::Work(second * 2 / 5),
        },
        Attack {
            name: "idle flood",
            about: "1,500 connections of 50 addresses say nothing, to a server with 1,024 files",
            what: What::Silence,
            ..connections
        },
        Attack {
            name: "Slowloris",
            about: "the same, with a request head of which a line comes each second",
            what: What::Head,
            ..connections
        },
        Attack {
            name: "slow readers",
            about: "the same, with an answer of 8 MiB of which nothing is read",
            what: What::Stall,
            ..connections
        },
        Attack {
            name: "paced rapid reset",
            about: "10 clients ask for work over HTTP/2 and take each request back 40 ms later",
            lasts: seconds(4_000, 2_500),
            attackers: 10,
            addresses: 10,
            within: second / 10,
            settle: second,
            files: None,
            what: What::Reset,
        },
    ]
}

/// The attackers at work.
pub(crate) struct Attackers {
    tasks: JoinSet<()>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// How many wait for the server now, having asked for something.
    held: AtomicUsize,
    over: AtomicBool,
    answers: Mutex<Answers>,
}

/// What they got: a status, or `cut`.
pub(crate) type Answers = BTreeMap<String, u64>;

/// One that the server holds, until this is dropped.
struct Held<'a>(&'a AtomicUsize);

// === Attackers ===

impl Attackers {
    pub(crate) fn start(attack: &Attack, addr: SocketAddr) -> Self {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for number in 0..attack.attackers {
            let (shared, what) = (shared.clone(), attack.what);
            let from = 1 + u8::try_from(number % attack.addresses).unwrap_or(u8::MAX - 1);
            let from = Ipv4Addr::new(127, 0, 2, from);
            let after = attack.within * number as u32 / attack.attackers as u32;
            tasks.spawn(async move {
                sleep(after).await;
                shared.attack(what, from, addr).await;
            });
        }
        Self { tasks, shared }
    }

    /// How many attackers wait for the server.
    pub(crate) fn held(&self) -> usize {
        self.shared.held.load(Relaxed)
    }

    /// What was begun goes on, nothing else.
    pub(crate) fn begin_nothing(&self) {
        self.shared.over.store(true, Relaxed);
    }

    /// Ends all of them by force.
    pub(crate) async fn end(&mut self) -> Answers {
        self.tasks.shutdown().await;
        std::mem::take(
            &mut self
                .shared
                .answers
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

impl Shared {
    async fn attack(&self, what: What, from: Ipv4Addr, addr: SocketAddr) {
        match what {
            What::Drip => self.upload(from, addr, &Upload::drip()).await,
            What::OneByteChunks => self.upload(from, addr, &Upload::one_byte_chunks()).await,
            What::Declared | What::Chunked => {
                let upload = match what {
                    What::Declared => Upload::declared(),
                    _ => Upload::chunked(),
                };
                while self.goes_on() {
                    self.upload(from, addr, &upload).await;
                    sleep(BETWEEN_UPLOADS).await;
                }
            }
            What::Silence | What::Head | What::Stall | What::Reset => {
                while self.goes_on() {
                    // An error is a connection that the server ended, or did not let in.
                    let _ = self.hold(what, from, addr).await;
                    sleep(AGAIN).await;
                }
            }
            What::Work(pause) => {
                while self.goes_on() {
                    // An error is a connection that the server ended.
                    let _ = self.work(from, addr, pause).await;
                    sleep(pause).await;
                }
            }
        }
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Relaxed)
    }

    fn note(&self, answer: Option<u16>) {
        let what = answer.map_or_else(|| "cut".to_owned(), |status| status.to_string());
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry(what).or_default() += 1;
    }

    /// One upload on a connection of its own, until it is answered or cut.
    async fn upload(&self, from: Ipv4Addr, addr: SocketAddr, upload: &Upload) {
        let Ok(mut stream) = clients::connect(from, addr).await else {
            return self.note(None);
        };
        let _held = Held::new(&self.held);
        let (mut read, mut write) = stream.split();
        let answer = tokio::select! {
            answer = answer(&mut read) => answer.ok(),
            // Whoever cannot send any more may still have an answer to read.
            _ = upload.send(&mut write) => {
                timeout(clients::PATIENCE, answer(&mut read)).await.ok().and_then(Result::ok)
            }
        };
        self.note(answer);
    }

    /// Keeps one connection until the server ends it.
    async fn hold(&self, what: What, from: Ipv4Addr, addr: SocketAddr) -> io::Result<()> {
        let mut stream = clients::connect(from, addr).await?;
        let _held = Held::new(&self.held);
        let (mut read, mut write) = stream.split();
        let ended = match what {
            What::Head => tokio::select! {
                sent = heads(&mut write) => sent,
                ended = throw_away(&mut read) => ended,
            },
            What::Stall => {
                write
                    .write_all(b"GET /big HTTP/1.1\r\nhost: demo\r\n\r\n")
                    .await?;
                is_cut(&stream).await
            }
            What::Reset => tokio::select! {
                sent = self.resets(&mut write) => sent,
                ended = throw_away(&mut read) => ended,
            },
            _ => throw_away(&mut read).await,
        };
        self.note(None);
        ended
    }

    /// Begins requests and takes them back.
    async fn resets(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        to.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        to.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
        // :method GET and :scheme http; then :path and :authority, spelled out.
        let head = b"\x82\x86\x04\x05/work\x01\x04demo";
        for batch in 0u32.. {
            let streams = (0..BATCH).map(|n| 2 * (batch * BATCH + n) + 1);
            let begun = streams
                .clone()
                .flat_map(|stream| frame(HEADERS, 5, stream, head));
            to.write_all(&begun.collect::<Vec<_>>()).await?;
            sleep(BETWEEN).await;
            let taken_back = streams.flat_map(|stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
            to.write_all(&taken_back.collect::<Vec<_>>()).await?;
            if !self.goes_on() {
                break;
            }
        }
        Ok(())
    }

    /// Asks for work on one connection until that ends.
    async fn work(&self, from: Ipv4Addr, addr: SocketAddr, pause: Duration) -> io::Result<()> {
        let mut stream = clients::connect(from, addr).await?;
        while self.goes_on() {
            let answer = {
                let _held = Held::new(&self.held);
                let sent = stream
                    .write_all(b"GET /work HTTP/1.1\r\nhost: demo\r\n\r\n")
                    .await;
                match sent {
                    Ok(()) => answer(&mut stream).await,
                    Err(error) => Err(error),
                }
            };
            self.note(answer.as_ref().ok().copied());
            answer?;
            sleep(pause).await;
        }
        Ok(())
    }
}

// === Upload ===

/// What an upload consists of: a head, and a piece of body so many times.
struct Upload {
    length: String,
    piece: Vec<u8>,
    pieces: usize,
    pause: Duration,
}

impl Upload {
    fn drip() -> Self {
        let length = "content-length: 100000".to_owned();
        Self {
            length,
            piece: b"x".to_vec(),
            pieces: usize::MAX,
            pause: DRIP,
        }
    }

    fn declared() -> Self {
        let length = format!("content-length: {TOO_LONG}");
        let (piece, pieces) = (vec![b'x'; PIECE], TOO_LONG / PIECE);
        Self {
            length,
            piece,
            pieces,
            pause: Duration::ZERO,
        }
    }

    fn chunked() -> Self {
        let mut piece = format!("{PIECE:x}\r\n").into_bytes();
        piece.resize(piece.len() + PIECE, b'x');
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

    /// Sends as fast as the server takes it. The end is left out where there would be one.
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

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;

/// A frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A head without end.
async fn heads(to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    to.write_all(b"GET / HTTP/1.1\r\nhost: demo\r\n").await?;
    loop {
        sleep(DRIP).await;
        to.write_all(b"x: y\r\n").await?;
    }
}

/// Reads until there is nothing more to come.
async fn throw_away(from: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    tokio::io::copy(from, &mut tokio::io::sink())
        .await
        .map(|_| ())
}

/// Waits for a reset without reading a byte of what is there.
async fn is_cut(stream: &TcpStream) -> io::Result<()> {
    loop {
        sleep(BETWEEN).await;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
}

// === Answers ===

/// Reads one answer to its end, if it says how long it is, and tells its status.
async fn answer(from: &mut (impl AsyncRead + Unpin)) -> io::Result<u16> {
    const LONGEST: usize = 16 << 10;
    let mut read = Vec::with_capacity(512);
    let end = loop {
        if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if read.len() > LONGEST || from.read_buf(&mut read).await? == 0 {
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
    while read.len() < end + length.min(LONGEST) {
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
