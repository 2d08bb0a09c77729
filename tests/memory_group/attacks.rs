//! The attackers. Each of them repeats its attack for as long as it runs.

use bytes::Bytes;
use palisade_testkit::{bodies::zero_bomb, clients::RawClient, h2};
use std::{
    future::pending,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::Runtime,
    time::sleep,
};

pub(crate) const UPLOAD_BYTES: usize = 1_900_000;
/// The pause before a connection that the server has closed is replaced.
const PAUSE: Duration = Duration::from_millis(50);
/// The same where the memory is to grow, and where a connection costs much processor time: the test
/// is of memory.
const LONG_PAUSE: Duration = Duration::from_millis(500);
/// The same for the many. T01 has the floods of connections.
const SILENT_PAUSE: Duration = Duration::from_secs(2);
/// The pause after each piece of an unread upload: 900 of them together fill a line of 1 Gbit/s.
const PIECE_PAUSE: Duration = Duration::from_millis(200);
/// The streams of an HTTP/2 connection.
const STREAMS: u32 = 100;
/// The window of an HTTP/2 connection without settings.
const WINDOW: u32 = 65_535;
const WIDE: u32 = 1 << 30;

/// What each attacker does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attack {
    /// Sends an upload but for its end.
    HeldUpload,
    /// Sends heads of many short fields on all streams.
    Heads,
    /// Sends a chunked body without end.
    EndlessBody,
    /// Sends gzip that becomes 1 GiB, or almost the limit and then nothing.
    Bomb,
    /// Requests answers on all streams, and opens no window for them.
    ShutWindow,
    /// Requests answers on all streams with an open window, and reads nothing.
    UnreadAnswers,
    /// Requests a download without end, and reads nothing.
    SlowReader,
    /// Sends a body that the handler does not read.
    UnreadUpload,
    /// Requests what the handler keeps in memory that no guard knows of.
    Growth,
    /// Sends nothing.
    Silent,
}

impl Attack {
    pub(crate) const ALL: [Self; 10] = [
        Self::HeldUpload,
        Self::Heads,
        Self::EndlessBody,
        Self::Bomb,
        Self::ShutWindow,
        Self::UnreadAnswers,
        Self::SlowReader,
        Self::UnreadUpload,
        Self::Growth,
        Self::Silent,
    ];

    /// Starts so many attackers, each of a network of its own. They end with the runtime.
    pub(crate) fn start(self, count: u16, to: SocketAddr, attackers: &Runtime) {
        let material = Arc::new(Material::of(self));
        for number in 0..count {
            let [high, low] = number.to_be_bytes();
            let from = Ipv4Addr::new(127, 16 + 4 * self as u8 + high, low, 1);
            let material = material.clone();
            attackers.spawn(async move {
                sleep(self.delay(number)).await;
                loop {
                    // An error means that the server has closed or refused the connection.
                    let _ = self.run(from, to, &material, number).await;
                    sleep(self.pause()).await;
                }
            });
        }
    }

    /// When an attacker begins: at once, but for the growth, which is to be seen as it is.
    fn delay(self, number: u16) -> Duration {
        match self {
            Self::Growth => Duration::from_millis(5) * number.into(),
            _ => Duration::ZERO,
        }
    }

    fn pause(self) -> Duration {
        match self {
            Self::Growth | Self::Heads => LONG_PAUSE,
            Self::Silent => SILENT_PAUSE,
            _ => PAUSE,
        }
    }

    /// Runs one connection until the server closes it.
    async fn run(
        self,
        from: Ipv4Addr,
        to: SocketAddr,
        material: &Material,
        number: u16,
    ) -> io::Result<()> {
        let mut client = RawClient::connect_from(from, to).await?;
        let Material { first, endless } = material;
        let first = &first[usize::from(number) % first.len()];
        let reads = !matches!(self, Self::UnreadAnswers | Self::SlowReader);
        let (mut read, mut write) = client.stream.split();
        let send = async {
            write.write_all(first).await?;
            loop {
                if endless.is_empty() {
                    pending::<()>().await;
                }
                write.write_all(endless).await?;
                if self == Self::UnreadUpload {
                    sleep(PIECE_PAUSE).await;
                }
            }
        };
        let closed = async {
            if reads {
                let mut bytes = [0; 1024];
                while read.read(&mut bytes).await? > 0 {}
                return Ok(());
            }
            // This reports a reset without reading anything of the answer.
            loop {
                if let Some(error) = read.as_ref().take_error()? {
                    return Err(error);
                }
                sleep(PAUSE).await;
            }
        };
        tokio::select! {
            sent = send => sent,
            closed = closed => closed,
        }
    }
}

/// What the attackers send.
struct Material {
    /// In the beginning. Attackers have different ones in turn.
    first: Vec<Bytes>,
    /// After that, again and again.
    endless: Bytes,
}

impl Material {
    fn of(attack: Attack) -> Self {
        let post = |path: &str, fields: &str| {
            format!("POST {path} HTTP/1.1\r\nhost: x\r\n{fields}\r\n\r\n").into_bytes()
        };
        let get = |path: &str| vec![format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").into()];
        let declared = |bytes: usize| format!("content-length: {bytes}");
        let first = match attack {
            Attack::HeldUpload => {
                let mut upload = post("/", &declared(UPLOAD_BYTES));
                upload.resize(upload.len() + UPLOAD_BYTES - 1, b'x');
                vec![upload.into()]
            }
            // A head of 486 fields is refused by itself. Heads of 100 fields are refused when there
            // are too many of them.
            Attack::Heads => vec![heads(100), heads(100), heads(100), heads(486)],
            Attack::EndlessBody => vec![post("/", "transfer-encoding: chunked").into()],
            Attack::Bomb => {
                let head = post("/", "content-encoding: gzip\r\ncontent-length: 10000000");
                let held = zero_bomb(2);
                let held = held.slice(..held.len() - 20);
                let bodies = [zero_bomb(1024), held];
                let bombs = bodies.map(|body| [&head[..], &body].concat().into());
                bombs.into()
            }
            Attack::ShutWindow => vec![streams(0, "/answer")],
            Attack::UnreadAnswers => vec![streams(WIDE, "/answer")],
            Attack::SlowReader => get("/endless"),
            Attack::UnreadUpload => vec![post("/hang", &declared(UPLOAD_BYTES)).into()],
            Attack::Growth => {
                vec!["GET /keep HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into()]
            }
            Attack::Silent => vec![Bytes::new()],
        };
        let endless = match attack {
            Attack::EndlessBody => {
                let piece = vec![b'x'; 16 << 10];
                [b"4000\r\n", &piece[..], b"\r\n"].concat().into()
            }
            Attack::UnreadUpload => vec![b'x'; 28 << 10].into(),
            _ => Bytes::new(),
        };
        Self { first, endless }
    }
}

/// Returns heads of so many short fields on all streams of one HTTP/2 connection.
fn heads(fields: usize) -> Bytes {
    let names: Vec<_> = (0..fields).map(|number| format!("x-{number}")).collect();
    let mut head = vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/hang"),
        (":authority", "x"),
    ];
    head.extend(names.iter().map(|name| (name.as_str(), "v")));
    let heads = (0..STREAMS).flat_map(|stream| h2::headers(2 * stream + 1, 0x1, &head));
    [h2::hello(WINDOW), heads.collect()].concat().into()
}

/// Returns requests for `path` on all streams of one HTTP/2 connection with windows of so many
/// bytes.
fn streams(window: u32, path: &str) -> Bytes {
    let requests = (0..STREAMS).flat_map(|stream| h2::get(2 * stream + 1, path));
    [h2::hello(window), requests.collect()].concat().into()
}
