//! What stands for TLS without the feature `rustls`. None of it has a value.

use crate::attacks::Protocol;
use std::{
    error::Error,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// The TLS of a target.
#[derive(Clone, Debug)]
pub(crate) enum Tls {}

/// A connection in TLS.
#[derive(Debug)]
pub(crate) enum TlsStream {}

/// Returns whether TLS can ask for the host `name`.
pub(crate) fn is_name(_: &str) -> bool {
    false
}

/// Returns what to do about a server that ends a connection, if TLS tells why.
pub(crate) fn hint(_: &(dyn Error + 'static)) -> Option<&'static str> {
    None
}

/// Returns the socket of `stream`.
pub(crate) fn socket(stream: &TlsStream) -> &TcpStream {
    match *stream {}
}

impl Tls {
    pub(crate) fn new(_: &str) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn host(&self, _: SocketAddr) -> String {
        match *self {}
    }

    pub(crate) async fn connect(&self, _: TcpStream, _: Protocol) -> io::Result<TlsStream> {
        match *self {}
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match *self {}
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        match *self {}
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self {}
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match *self {}
    }
}
