//! A connection without a client, for tests.

use palisade_conn::{ConnGuard, GuardedIo, Transport};
use std::{
    io,
    net::Ipv4Addr,
    pin::Pin,
    task::{Context, Poll, Waker},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A transport that returns one byte for each read, and accepts every write.
#[derive(Debug)]
pub(crate) struct Stub;

impl Transport for Stub {}

impl AsyncRead for Stub {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        buf.put_slice(b"x");
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stub {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Returns a connection from `ip` that `guard` has admitted.
pub(crate) fn connect(guard: &ConnGuard, ip: impl Into<Ipv4Addr>) -> GuardedIo<Stub> {
    let peer = (ip.into(), 1).into();
    guard.admit(Stub, Some(peer), None).unwrap()
}

/// Reads one byte from `io`.
pub(crate) fn read(io: &mut GuardedIo<Stub>) {
    let mut byte = [0];
    let mut buf = ReadBuf::new(&mut byte);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(io).poll_read(&mut cx, &mut buf).is_ready());
}

/// Writes `bytes` bytes to `io`.
pub(crate) fn write(io: &mut GuardedIo<Stub>, bytes: usize) {
    let mut cx = Context::from_waker(Waker::noop());
    let written = Pin::new(io).poll_write(&mut cx, &vec![0; bytes]);
    assert!(matches!(written, Poll::Ready(Ok(count)) if count == bytes));
}
