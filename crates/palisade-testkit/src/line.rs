//! A loopback proxy that adds latency.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// The largest number of delayed chunks in each direction.
const MAX_DELAYED_CHUNKS: usize = 1024;
/// The largest size of a chunk.
const MAX_CHUNK_BYTES: usize = 16 * 1024;

/// A delaying proxy to one server. Dropping it stops the proxy's listener.
#[derive(Debug)]
pub struct Line {
    /// The address the proxy listens on.
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Line {
    /// Starts a proxy to the server at `to` that adds `round_trip` to each round trip. The server
    /// sees connections from the address `from`.
    ///
    /// # Errors
    ///
    /// If loopback has no free port.
    pub async fn to(to: SocketAddr, from: Ipv4Addr, round_trip: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let server = crate::clients::connect(from, to).await?;
                    server.set_nodelay(true)?;
                    client.set_nodelay(true)?;
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let upload =
                        tokio::spawn(forward_delayed(from_client, to_server, round_trip / 2));
                    forward_delayed(from_server, to_client, round_trip / 2).await;
                    let _ = upload.await;
                    io::Result::Ok(())
                });
            }
        });
        Ok(Self { addr, task })
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Forwards each chunk from `from` to `to` after `delay`.
async fn forward_delayed(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut delayed) = mpsc::channel::<(Instant, Vec<u8>)>(MAX_DELAYED_CHUNKS);
    let reading = tokio::spawn(async move {
        loop {
            let mut bytes = vec![0; MAX_CHUNK_BYTES];
            let length = from.read(&mut bytes).await.unwrap_or(0);
            bytes.truncate(length);
            // An empty chunk is the end of the stream, which is delayed as well.
            if sender.send((Instant::now() + delay, bytes)).await.is_err() || length == 0 {
                return from;
            }
        }
    });
    while let Some((due, bytes)) = delayed.recv().await {
        sleep_until(due).await;
        if bytes.is_empty() || to.write_all(&bytes).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
    drop(delayed);
    let _ = reading.await;
}
