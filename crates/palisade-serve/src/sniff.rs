//! Protocol detection: whether a client begins with HTTP/1 or HTTP/2.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The first bytes of an HTTP/2 connection (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An IO that has read its first bytes to detect the protocol, and returns them again.
///
/// For `Upgraded::downcast`, the IO of an upgraded connection is a
/// `TokioIo<Rewind<GuardedIo<TcpStream>>>`, or over TLS a
/// `TokioIo<Rewind<TlsStream<GuardedIo<TcpStream>>>>`.
#[derive(Debug)]
pub struct Rewind<T> {
    inner: T,
    /// The bytes that were read for the detection.
    buffer: [u8; PREFACE.len()],
    /// How many bytes of `buffer` have been read again.
    read_again: u8,
    /// How many bytes `buffer` has.
    length: u8,
}

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begins {
    Http1,
    Http2,
    /// The connection ended before its first byte.
    Nothing,
}

impl<T> Rewind<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self {
            inner,
            buffer: [0; PREFACE.len()],
            read_again: 0,
            length: 0,
        }
    }

    /// Returns the inner IO. Bytes that were read for the detection and not read again cannot be
    /// read from it.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use hyper_util::rt::TokioIo;
    /// # use palisade_conn::GuardedIo;
    /// # use palisade_serve::Rewind;
    /// # use tokio::sync::mpsc;
    /// # type Io = TokioIo<Rewind<GuardedIo<TcpStream>>>;
    /// # // An app that upgrades each connection, and sends it to a channel.
    /// # let (sender, mut upgraded) = mpsc::unbounded_channel();
    /// # let app = service_fn(move |request: Request<palisade_serve::RequestBody>| {
    /// #     let (sender, upgrade) = (sender.clone(), hyper::upgrade::on(request));
    /// #     tokio::spawn(async move { upgrade.await.map(|io| sender.send(io)) });
    /// #     async { Response::builder().status(101).body(String::new()) }
    /// # });
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let server = spawn(palisade_serve::serve(listener, app))?; // The address of the server.
    /// # let mut client = TcpStream::connect(server).await?;
    /// # let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    /// # client.write_all(request).await?;
    /// # let io = upgraded.recv().await.ok_or("closed")?;
    /// # let parts = io.downcast::<Io>().map_err(|_| "another type")?;
    /// // An upgraded connection, as in the example of `into_parts`.
    /// let io: Rewind<_> = parts.io.into_inner();
    /// assert!(io.get_ref().conn().is_upgraded());
    /// assert_eq!(io.get_ref().conn().peer(), client.local_addr()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    /// Returns the inner IO, and the bytes that were read from it and not read again.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use hyper_util::rt::TokioIo;
    /// use palisade_conn::GuardedIo;
    /// use palisade_serve::Rewind;
    /// use tokio::sync::mpsc;
    ///
    /// type Io = TokioIo<Rewind<GuardedIo<TcpStream>>>;
    /// // An app that upgrades each connection, and sends it to a channel.
    /// let (sender, mut upgraded) = mpsc::unbounded_channel();
    /// let app = service_fn(move |request: Request<palisade_serve::RequestBody>| {
    ///     let (sender, upgrade) = (sender.clone(), hyper::upgrade::on(request));
    ///     tokio::spawn(async move { upgrade.await.map(|io| sender.send(io)) });
    ///     async { Response::builder().status(101).body(String::new()) }
    /// });
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let server = spawn(palisade_serve::serve(listener, app))?; // The address of the server.
    /// let mut client = TcpStream::connect(server).await?;
    /// let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    /// client.write_all(request).await?;
    /// let io = upgraded.recv().await.ok_or("closed")?;
    /// let parts = io.downcast::<Io>().map_err(|_| "another type")?;
    /// let (mut io, unread) = parts.io.into_inner().into_parts();
    /// assert_eq!(unread, b"");
    /// client.read(&mut [0; 1024]).await?; // The head of the response.
    /// io.write_all(b"hello").await?;
    /// let mut answer = [0; 5];
    /// client.read_exact(&mut answer).await?;
    /// assert_eq!(&answer, b"hello");
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_parts(self) -> (T, Vec<u8>) {
        let rest = self.rest().to_vec();
        (self.inner, rest)
    }

    fn rest(&self) -> &[u8] {
        self.buffer
            .get(self.read_again.into()..self.length.into())
            .unwrap_or_default()
    }
}

impl<T: AsyncRead + Unpin> Rewind<T> {
    /// Reads bytes until the first one that differs from the preface, or the end of the preface.
    /// Waits for the client without a limit: the guard's first-request timeout applies.
    pub(crate) fn poll_begins(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Begins>> {
        loop {
            let length = usize::from(self.length);
            let (filled, free) = self.buffer.split_at_mut(length);
            if *filled != PREFACE[..length] {
                return Poll::Ready(Ok(Begins::Http1));
            }
            if free.is_empty() {
                return Poll::Ready(Ok(Begins::Http2));
            }
            let mut buf = ReadBuf::new(free);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf))?;
            match buf.filled().len() {
                // A part of the preface and then the end: HTTP/1 refuses it.
                0 if length > 0 => return Poll::Ready(Ok(Begins::Http1)),
                0 => return Poll::Ready(Ok(Begins::Nothing)),
                more => self.length += more as u8,
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewind<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.read_again < this.length {
            let rest = this.rest();
            let length = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..length]);
            this.read_again += length as u8;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Rewind<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
