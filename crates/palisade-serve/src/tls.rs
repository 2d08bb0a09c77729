//! TLS, between the guard and HTTP.

use crate::{drain::Open, handshakes::Handshakes, http::Protocol, server::Server};
use palisade_conn::{CloseMode, ConnHandle, GuardedIo, Transport};
use palisade_core::Reason;
use parking_lot::Mutex;
use std::{future::poll_fn, io, pin::pin, sync::Arc, task::Poll};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig, server::TlsStream};

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Whether and how TLS is spoken.
pub(crate) struct Tls {
    pub(crate) config: Option<Arc<ServerConfig>>,
    pub(crate) most: usize,
    acceptor: Option<(TlsAcceptor, Mutex<Handshakes>)>,
}

/// One of the handshakes under way. Dropping it is its end.
struct UnderWay<'a> {
    handshakes: &'a Mutex<Handshakes>,
    id: u64,
}

// === Tls ===

impl Tls {
    /// The same, with what is offered by ALPN put to what is spoken.
    pub(crate) fn offering(mut self, protocol: Protocol) -> Self {
        if let Some(config) = self.config.take() {
            let mut config = ServerConfig::clone(&config);
            let offered: &[&[u8]] = match protocol {
                Protocol::Auto => &[HTTP2, HTTP1],
                Protocol::Http1 => &[HTTP1],
                Protocol::Http2 => &[HTTP2],
            };
            config.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
            let handshakes = Mutex::new(Handshakes::new(self.most));
            self.acceptor = Some((TlsAcceptor::from(Arc::new(config)), handshakes));
        }
        self
    }

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
            most: 1024,
            acceptor: None,
        }
    }
}

/// Shakes hands, unless the server ends first. What the client chose comes with it.
pub(crate) async fn handshake<T: Transport>(
    acceptor: &TlsAcceptor,
    handshakes: &Mutex<Handshakes>,
    io: GuardedIo<T>,
    server: &Server,
    open: &Open,
) -> Option<(TlsStream<GuardedIo<T>>, Protocol)> {
    let _under_way = UnderWay::begin(handshakes, io.conn(), server);
    let mut accepted = pin!(acceptor.accept(io));
    let accepted = poll_fn(|cx| {
        if open.drain().has_begun() {
            return Poll::Ready(Err(io::ErrorKind::Interrupted.into()));
        }
        accepted.as_mut().poll(cx)
    });
    // An error is a client that went away, or was ended, or speaks something else.
    let io = accepted.await.ok()?;
    let agreed = match io.get_ref().1.alpn_protocol() {
        Some(HTTP2) => Protocol::Http2,
        Some(_) => Protocol::Http1,
        None => Protocol::Auto,
    };
    Some((io, agreed))
}

// === UnderWay ===

impl<'a> UnderWay<'a> {
    fn begin(handshakes: &'a Mutex<Handshakes>, conn: &ConnHandle, server: &Server) -> Self {
        let evicted = handshakes.lock().enter(conn);
        if let Some(evicted) = evicted {
            server
                .guard
                .close(&evicted, Reason::HandshakesFull, CloseMode::Reset);
        }
        Self {
            handshakes,
            id: conn.id(),
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        // The lock is given back before the connection is.
        let _conn = self.handshakes.lock().leave(self.id);
    }
}
