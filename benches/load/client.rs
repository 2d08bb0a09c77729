//! Those who ask: as much as they get, or now and then.

use palisade_benches::{Exchange, Protocol, runtime};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::sync_channel,
    },
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, sleep},
};

pub(crate) const HONEST: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub(crate) const FLOODER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Connections that ask as much as they get.
const KEPT: usize = 16;
/// Connections of a flood.
const FLOOD: usize = 64;
/// The honest one asks this often.
const PACE: Duration = Duration::from_millis(20);

/// A client on a connection that it keeps.
struct Client {
    stream: TcpStream,
    exchange: Exchange,
    path: &'static str,
    buffer: Vec<u8>,
    /// The server takes no more requests on it.
    is_last: bool,
}

/// A flood under way.
#[derive(Debug)]
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// How many requests were served within `time`.
pub(crate) fn throughput(
    addr: SocketAddr,
    protocol: Protocol,
    time: Duration,
) -> io::Result<usize> {
    runtime().block_on(async {
        let until = Instant::now() + time;
        let mut clients = JoinSet::new();
        for _ in 0..KEPT {
            clients.spawn(async move {
                let mut client = Client::connect(HONEST, addr, protocol, "/").await?;
                let mut served = 0;
                while Instant::now() < until {
                    served += usize::from(client.ask().await? == 200);
                    if client.is_last {
                        client = Client::connect(HONEST, addr, protocol, "/").await?;
                    }
                }
                io::Result::Ok(served)
            });
        }
        clients.join_all().await.into_iter().sum()
    })
}

/// The median time to an answer of one who asks now and then, all of whose requests are served.
pub(crate) fn p50(
    from: Ipv4Addr,
    addr: SocketAddr,
    (protocol, path): (Protocol, &'static str),
    time: Duration,
) -> io::Result<Duration> {
    runtime().block_on(async {
        let until = Instant::now() + time;
        let mut client = Client::connect(from, addr, protocol, path).await?;
        let mut times = Vec::new();
        while Instant::now() < until {
            let asked = Instant::now();
            if client.ask().await? != 200 {
                return Err(io::Error::other("an honest request was refused"));
            }
            times.push(asked.elapsed());
            if client.is_last {
                client = Client::connect(from, addr, protocol, path).await?;
            }
            sleep(PACE).await;
        }
        times.sort_unstable();
        times
            .get(times.len() / 2)
            .copied()
            .ok_or_else(|| io::Error::other("nothing was served"))
    })
}

/// Asks from one address on many connections, whatever the answers are, until it is stopped.
pub(crate) fn flood(
    from: Ipv4Addr,
    addr: SocketAddr,
    (protocol, path): (Protocol, &'static str),
) -> Flood {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let (answered, is_answered) = sync_channel(1);
    let thread = thread::spawn(move || {
        runtime().block_on(async {
            let flooders = (0..FLOOD).map(|_| {
                let (stopped, answered) = (Arc::clone(&stopped), answered.clone());
                async move {
                    while !stopped.load(Relaxed) {
                        let Ok(mut client) = Client::connect(from, addr, protocol, path).await
                        else {
                            sleep(PACE).await;
                            continue;
                        };
                        while !stopped.load(Relaxed)
                            && !client.is_last
                            && client.ask().await.is_ok()
                        {
                            let _ = answered.try_send(());
                        }
                    }
                }
            });
            flooders.collect::<JoinSet<_>>().join_all().await;
        });
    });
    // Once it is under way, or cannot be.
    let _ = is_answered.recv();
    Flood { stop, thread }
}

// === Client ===

impl Client {
    async fn connect(
        from: Ipv4Addr,
        addr: SocketAddr,
        protocol: Protocol,
        path: &'static str,
    ) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        let stream = socket.connect(addr).await?;
        stream.set_nodelay(true)?;
        let exchange = Exchange::new(protocol);
        Ok(Self {
            stream,
            exchange,
            path,
            buffer: Vec::with_capacity(4096),
            is_last: false,
        })
    }

    /// The status of the answer, once all of it is here.
    async fn ask(&mut self) -> io::Result<u16> {
        self.stream
            .write_all(&self.exchange.request(self.path))
            .await?;
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(answer) = self.exchange.answer(&mut self.buffer) {
                self.is_last = answer.is_last;
                return Ok(answer.status);
            }
        }
    }
}

// === Flood ===

impl Flood {
    pub(crate) fn stop(self) {
        self.stop.store(true, Relaxed);
        // It panics only if the runtime cannot be had, which is said then.
        let _ = self.thread.join();
    }
}
