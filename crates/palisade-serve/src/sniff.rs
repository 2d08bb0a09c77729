//! Which HTTP a client begins with.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What HTTP/2 begins with (RFC 9113 section 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An IO whose first bytes have been looked at and are read again. What was upgraded is a
/// `TokioIo<Rewind<GuardedIo<TcpStream>>>`, for whoever wants it by `Upgraded::downcast`; over TLS a
/// `TokioIo<Rewind<TlsStream<GuardedIo<TcpStream>>>>`.
#[derive(Debug)]
pub struct Rewind<T> {
    inner: T,
    /// Those of them that are here.
    begun: [u8; PREFACE.len()],
    read_again: u8,
    length: u8,
}

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begins {
    Http1,
    Http2,
    /// It ended before it said anything.
    Nothing,
}

impl<T> Rewind<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self {
            inner,
            begun: [0; PREFACE.len()],
            read_again: 0,
            length: 0,
        }
    }

    /// What the first bytes come from. Those that were looked at and not read again are not among
    /// what it still gives.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    /// The IO, and what was read of it and is still to be read again.
    pub fn into_parts(self) -> (T, Vec<u8>) {
        let rest = self.rest().to_vec();
        (self.inner, rest)
    }

    fn rest(&self) -> &[u8] {
        self.begun
            .get(self.read_again.into()..self.length.into())
            .unwrap_or_default()
    }
}

impl<T: AsyncRead + Unpin> Rewind<T> {
    /// Looks at no more bytes than it takes: the first that is not in the preface tells. Waits
    /// for as long as the client does; the guard's deadline stands over it.
    pub(crate) fn poll_begins(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Begins>> {
        loop {
            let here = usize::from(self.length);
            let (begun, free) = self.begun.split_at_mut(here);
            if *begun != PREFACE[..here] {
                return Poll::Ready(Ok(Begins::Http1));
            }
            if free.is_empty() {
                return Poll::Ready(Ok(Begins::Http2));
            }
            let mut buf = ReadBuf::new(free);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut buf))?;
            match buf.filled().len() {
                // What is half a preface and then ends is for HTTP/1 to find wrong.
                0 if here > 0 => return Poll::Ready(Ok(Begins::Http1)),
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
