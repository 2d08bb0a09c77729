//! The clients: some send requests as fast as they are served, some at a fixed interval.

use palisade_benches::{ClientCodec, Protocol, runtime};
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

/// The address of the honest client.
pub(crate) const HONEST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// The address of the flood.
pub(crate) const FLOODER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// The number of connections of the throughput measurement.
const THROUGHPUT_CONNECTIONS: usize = 16;
/// The number of connections of a flood.
const FLOOD_CONNECTIONS: usize = 64;
/// The interval between the requests of the honest client.
const REQUEST_INTERVAL: Duration = Duration::from_millis(20);

/// A client on a kept connection.
struct Client {
    stream: TcpStream,
    codec: ClientCodec,
    path: &'static str,
    buffer: Vec<u8>,
    /// The server accepts no more requests on this connection.
    is_last: bool,
}

/// A running flood.
#[derive(Debug)]
pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// Returns the number of requests served within `time`.
pub(crate) fn throughput(
    addr: SocketAddr,
    protocol: Protocol,
    time: Duration,
) -> io::Result<usize> {
    runtime().block_on(async {
        let until = Instant::now() + time;
        let mut clients = JoinSet::new();
        for _ in 0..THROUGHPUT_CONNECTIONS {
            clients.spawn(async move {
                let mut client = Client::connect(HONEST, addr, protocol, "/").await?;
                let mut served = 0;
                while Instant::now() < until {
                    served += usize::from(client.request().await? == 200);
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

/// Returns the latencies of clients that send requests at a fixed interval, the least first. Each
/// client has an address of its own, the first one `HONEST`.
///
/// # Errors
///
/// If one of their requests is refused.
pub(crate) fn latencies(
    clients: u32,
    addr: SocketAddr,
    (protocol, path): (Protocol, &'static str),
    time: Duration,
) -> io::Result<Vec<Duration>> {
    let of_one = move |from: Ipv4Addr| async move {
        let until = Instant::now() + time;
        let mut client = Client::connect(from, addr, protocol, path).await?;
        let mut times = Vec::new();
        while Instant::now() < until {
            let sent = Instant::now();
            if client.request().await? != 200 {
                return Err(io::Error::other("an honest request was refused"));
            }
            times.push(sent.elapsed());
            if client.is_last {
                client = Client::connect(from, addr, protocol, path).await?;
            }
            sleep(REQUEST_INTERVAL).await;
        }
        Ok(times)
    };
    let froms = (0..clients).map(|client| Ipv4Addr::from_bits(HONEST.to_bits() + (client << 8)));
    let all = runtime().block_on(async {
        let clients: JoinSet<_> = froms.map(of_one).collect();
        clients.join_all().await
    });
    let mut times = all.into_iter().collect::<io::Result<Vec<_>>>()?.concat();
    times.sort_unstable();
    Ok(times)
}

/// Starts a flood: requests from one address on many connections, whatever the responses, until it
/// is stopped.
pub(crate) fn flood(
    from: Ipv4Addr,
    addr: SocketAddr,
    (protocol, path): (Protocol, &'static str),
) -> Flood {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let (responded, has_responded) = sync_channel(1);
    let thread = thread::spawn(move || {
        runtime().block_on(async {
            let flooders = (0..FLOOD_CONNECTIONS).map(|_| {
                let (stopped, responded) = (Arc::clone(&stopped), responded.clone());
                async move {
                    while !stopped.load(Relaxed) {
                        let Ok(mut client) = Client::connect(from, addr, protocol, path).await
                        else {
                            sleep(REQUEST_INTERVAL).await;
                            continue;
                        };
                        while !stopped.load(Relaxed)
                            && !client.is_last
                            && client.request().await.is_ok()
                        {
                            let _ = responded.try_send(());
                        }
                    }
                }
            });
            flooders.collect::<JoinSet<_>>().join_all().await;
        });
    });
    // Waits for the first response. An error means that the flood cannot run.
    let _ = has_responded.recv();
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
        let codec = ClientCodec::new(protocol);
        Ok(Self {
            stream,
            codec,
            path,
            buffer: Vec::with_capacity(4096),
            is_last: false,
        })
    }

    /// Sends a request and returns the status of the complete response.
    async fn request(&mut self) -> io::Result<u16> {
        self.stream
            .write_all(&self.codec.request(self.path))
            .await?;
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(response) = self.codec.response(&mut self.buffer) {
                self.is_last = response.is_last;
                return Ok(response.status);
            }
        }
    }
}

// === Flood ===

impl Flood {
    pub(crate) fn stop(self) {
        self.stop.store(true, Relaxed);
        // The thread panics only if the runtime cannot be built, and the panic is printed.
        let _ = self.thread.join();
    }
}
