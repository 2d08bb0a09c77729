//! Test clients: a client of raw HTTP/1 bytes, and hyper's clients on a single connection.

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tower::BoxError;

/// The timeout of every wait of these clients.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds.
///
/// # Panics
///
/// If it does not hold within [`PATIENCE`].
pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(
        timeout(PATIENCE, wait).await.is_ok(),
        "timed out waiting for: {what}"
    );
}

/// Connects from the loopback address `from` to `to`. Different addresses of 127.0.0.0/8 are
/// different clients to the server.
pub async fn connect(from: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((IpAddr::V4(from), 0).into())?;
    timeout(PATIENCE, socket.connect(to)).await?
}

/// An HTTP/1 client that sends arbitrary bytes, valid HTTP or not.
#[derive(Debug)]
pub struct RawClient {
    /// The socket.
    pub stream: TcpStream,
    unconsumed: Vec<u8>,
}

/// The head of an HTTP/1 response.
#[derive(Clone, Debug)]
pub struct RawHead {
    /// The status code.
    pub status: StatusCode,
    /// The head as text, with header names as the server sent them.
    pub text: String,
}

impl RawHead {
    /// Returns the value of the header `name`.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self
            .text
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "));
        lines
            .into_iter()
            .find(|(seen, _)| seen.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

impl RawClient {
    /// Connects from 127.0.0.1.
    pub async fn connect(to: SocketAddr) -> io::Result<Self> {
        Self::connect_from(Ipv4Addr::LOCALHOST, to).await
    }

    /// Connects from the loopback address `from`.
    pub async fn connect_from(from: Ipv4Addr, to: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            stream: connect(from, to).await?,
            unconsumed: Vec::new(),
        })
    }

    /// Writes all of `bytes`.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        timeout(PATIENCE, self.stream.write_all(bytes.as_ref())).await?
    }

    /// Reads the head of the next response and leaves the bytes after it for later reads.
    pub async fn head(&mut self) -> io::Result<RawHead> {
        let end = loop {
            if let Some(at) = self
                .unconsumed
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                break at + 4;
            }
            if self.read_more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let text = String::from_utf8_lossy(&self.unconsumed[..end]).into_owned();
        self.unconsumed.drain(..end);
        let status = text.get(9..12).and_then(|code| code.parse().ok());
        let status =
            status.ok_or_else(|| io::Error::other(format!("not a response head: {text}")))?;
        Ok(RawHead { status, text })
    }

    /// Reads the next `length` bytes.
    pub async fn body(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.unconsumed.len() < length {
            if self.read_more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.unconsumed.drain(..length).collect())
    }

    /// Reads until the server closes the connection, by FIN or by RST, and returns the bytes read.
    pub async fn rest(&mut self) -> Vec<u8> {
        while matches!(self.read_more().await, Ok(count) if count > 0) {}
        std::mem::take(&mut self.unconsumed)
    }

    async fn read_more(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 16 * 1024];
        let count = timeout(PATIENCE, self.stream.read(&mut chunk)).await??;
        self.unconsumed.extend_from_slice(&chunk[..count]);
        Ok(count)
    }
}

/// Opens a connection from `from` and returns hyper's HTTP/1 client on it.
pub async fn http1<B>(from: Ipv4Addr, to: SocketAddr) -> Result<http1::SendRequest<B>, BoxError>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let io = TokioIo::new(connect(from, to).await?);
    let (sender, connection) = http1::handshake(io).await?;
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

/// Opens a connection from `from` and returns hyper's HTTP/2 client on it.
pub async fn http2<B>(from: Ipv4Addr, to: SocketAddr) -> Result<http2::SendRequest<B>, BoxError>
where
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let io = TokioIo::new(connect(from, to).await?);
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends `GET path` over a new HTTP/1 connection and returns the complete response.
pub async fn get(from: Ipv4Addr, to: SocketAddr, path: &str) -> Result<Response<Bytes>, BoxError> {
    let request = Request::get(path)
        .header("host", "test")
        .body(Empty::new())?;
    let mut sender = http1::<Empty<Bytes>>(from, to).await?;
    whole(timeout(PATIENCE, sender.send_request(request)).await??).await
}

/// Reads the body of `response` to its end and returns the complete response.
pub async fn whole(response: Response<Incoming>) -> Result<Response<Bytes>, BoxError> {
    let (parts, body) = response.into_parts();
    let body = timeout(PATIENCE, body.collect()).await??.to_bytes();
    Ok(Response::from_parts(parts, body))
}
