//! TLS, between the guard and HTTP.

use crate::{drain::DrainToken, handshakes::Handshakes, http::Protocol, server::Server};
use palisade_conn::{CloseMode, ConnHandle, GuardedIo, Transport};
use palisade_core::Reason;
use parking_lot::Mutex;
use std::{future::poll_fn, io, pin::pin, sync::Arc, task::Poll};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};

/// The ALPN name of HTTP/2 (RFC 9113 section 3.1).
const ALPN_HTTP2: &[u8] = b"h2";
/// The ALPN name of HTTP/1.1 (RFC 7301 section 6).
const ALPN_HTTP1: &[u8] = b"http/1.1";

/// The TLS settings, and the handshakes in progress.
pub(crate) struct Tls {
    /// `None` for a server without TLS, and once the acceptor is built.
    pub(crate) config: Option<Arc<ServerConfig>>,
    pub(crate) max_handshakes: usize,
    acceptor: Option<(TlsAcceptor, Mutex<Handshakes>)>,
}

/// The entry of one handshake in [`Handshakes`]. Dropping it removes the entry.
struct HandshakeEntry<'a> {
    handshakes: &'a Mutex<Handshakes>,
    conn_id: u64,
}

// === Tls ===

impl Tls {
    /// Builds the acceptor, which offers the protocols that the server speaks by ALPN.
    pub(crate) fn with_acceptor(mut self, protocol: Protocol) -> Self {
        if let Some(config) = self.config.take() {
            let mut config = ServerConfig::clone(&config);
            let offered: &[&[u8]] = match protocol {
                Protocol::Auto => &[ALPN_HTTP2, ALPN_HTTP1],
                Protocol::Http1 => &[ALPN_HTTP1],
                Protocol::Http2 => &[ALPN_HTTP2],
            };
            config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
            let handshakes = Mutex::new(Handshakes::new(self.max_handshakes));
            self.acceptor = Some((TlsAcceptor::from(Arc::new(config)), handshakes));
        }
        self
    }

    /// Returns the acceptor and the handshakes in progress, if the server speaks TLS.
    pub(crate) fn acceptor(&self) -> Option<(&TlsAcceptor, &Mutex<Handshakes>)> {
        self.acceptor
            .as_ref()
            .map(|(acceptor, handshakes)| (acceptor, handshakes))
    }
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            config: None,
            max_handshakes: 1024,
            acceptor: None,
        }
    }
}

/// Does the handshake of a connection. Returns the stream and the protocol that the client chose,
/// or `None` if the handshake fails or the server shuts down first.
pub(crate) async fn handshake<T: Transport>(
    acceptor: &TlsAcceptor,
    handshakes: &Mutex<Handshakes>,
    io: GuardedIo<T>,
    server: &Server,
    drain_token: &DrainToken,
) -> Option<(TlsStream<GuardedIo<T>>, Protocol)> {
    let _entry = HandshakeEntry::new(handshakes, io.conn(), server);
    let mut accepted = pin!(acceptor.accept(io));
    let accepted = poll_fn(|cx| {
        if drain_token.drain().has_begun() {
            return Poll::Ready(Err(io::ErrorKind::Interrupted.into()));
        }
        accepted.as_mut().poll(cx)
    });
    // After an error the client is gone, was disconnected by the guard, or does not speak TLS.
    let io = accepted.await.ok()?;
    let chosen = match io.get_ref().1.alpn_protocol() {
        Some(ALPN_HTTP2) => Protocol::Http2,
        Some(_) => Protocol::Http1,
        None => Protocol::Auto,
    };
    Some((io, chosen))
}

// === HandshakeEntry ===

impl<'a> HandshakeEntry<'a> {
    /// Adds the handshake of `conn`, and closes the connection that is evicted for it, if any.
    fn new(handshakes: &'a Mutex<Handshakes>, conn: &ConnHandle, server: &Server) -> Self {
        let evicted = handshakes.lock().add(conn);
        if let Some(evicted) = evicted {
            server
                .guard
                .close(&evicted, Reason::HandshakesFull, CloseMode::Reset);
        }
        Self {
            handshakes,
            conn_id: conn.id(),
        }
    }
}

impl Drop for HandshakeEntry<'_> {
    fn drop(&mut self) {
        // Dropped after the lock is released.
        let _conn = self.handshakes.lock().remove(self.conn_id);
    }
}
