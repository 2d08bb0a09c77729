//! A long line: a proxy on loopback that passes bytes on later than they came.

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

/// How many reads of at most 16 KiB are on the line at once in each direction.
const READS_ON_THE_LINE: usize = 1024;
const READ_BYTES: usize = 16 * 1024;

/// A proxy to one server. Dropping it ends the line, and what is on it is lost.
#[derive(Debug)]
pub struct Line {
    /// Where it listens.
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Line {
    /// A line to the server at `to` with this round trip. The server sees it come `from` there.
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
                    let up = tokio::spawn(pass(from_client, to_server, round_trip / 2));
                    pass(from_server, to_client, round_trip / 2).await;
                    let _ = up.await;
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

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (sender, mut line) = mpsc::channel::<(Instant, Vec<u8>)>(READS_ON_THE_LINE);
    let reading = tokio::spawn(async move {
        loop {
            let mut bytes = vec![0; READ_BYTES];
            let length = from.read(&mut bytes).await.unwrap_or(0);
            bytes.truncate(length);
            // No bytes are the end, which takes as long.
            if sender.send((Instant::now() + delay, bytes)).await.is_err() || length == 0 {
                return from;
            }
        }
    });
    while let Some((due, bytes)) = line.recv().await {
        sleep_until(due).await;
        if bytes.is_empty() || to.write_all(&bytes).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
    drop(line);
    let _ = reading.await;
}
