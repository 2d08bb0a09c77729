//! Observes HTTP/2 frames above TLS, where the guarded socket sees only encrypted bytes.

use palisade_conn::{ConnHandle, FrameReader};
use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// An IO that reports the HTTP/2 frames that are read to the connection, if the socket below it is
/// encrypted.
pub(crate) struct FrameObserver<T> {
    inner: T,
    conn: ConnHandle,
    /// `None` if the socket is not encrypted: the guarded socket reads the frames itself.
    frames: Option<FrameReader>,
}

impl<T> FrameObserver<T> {
    pub(crate) fn new(inner: T, conn: &ConnHandle, is_encrypted: bool) -> Self {
        let frames = is_encrypted.then(|| FrameReader::decrypted(conn));
        Self {
            inner,
            conn: conn.clone(),
            frames,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for FrameObserver<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let filled_before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        if let Some(frames) = &mut this.frames {
            let new = buf.filled().get(filled_before..).unwrap_or_default();
            frames.read_decrypted(&this.conn, new);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for FrameObserver<T> {
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
