//! Connections of proxies, which begin with a header of the PROXY protocol.

use super::admission::{self, Named};
use crate::{
    guard::close::report,
    io::{guarded::GuardedIo, transport::Transport},
    log,
};
use palisade_client_ip::{ProxyClient, ProxyHeader, ProxyHeaderError, ProxyParse};
use palisade_core::{Guard, Mode, Phase, Reason, Violation};
use std::{future::poll_fn, net::SocketAddr, pin::Pin, time::Duration};
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::timeout,
};

/// The number of bytes for which there is room before they arrive.
const CHUNK_BYTES: usize = 512;

/// How long a header is awaited by a guard that does not enforce its timeouts. Without a header
/// there is no server that could give up.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// Why there is no header.
enum HeaderEnd {
    /// The proxy has closed the connection before the first byte, it is gone, or the guard has
    /// closed it.
    Closed,
    /// The bytes are no header, or end within one.
    Bad(ProxyHeaderError, usize),
}

/// Reads the header of a connection, and lets the connection continue as one of the client that it
/// names. No byte after the header is read. Returns `None` if the connection has ended: it was
/// refused then, or has closed by itself.
pub(crate) async fn identify<T: Transport>(io: GuardedIo<T>) -> Option<GuardedIo<T>> {
    let mut io = io.before_header();
    let header = match io.shared().limits.mode {
        Mode::Enforce => read_header(&mut io).await,
        Mode::Shadow | Mode::Off => match timeout(MAX_WAIT, read_header(&mut io)).await {
            Ok(header) => header,
            Err(_) => {
                let length = io.conn().state().stats().read as usize;
                Err(HeaderEnd::Bad(ProxyHeaderError::NotAHeader, length))
            }
        },
    };
    match header {
        Ok(header) => io.after_header(|permit| admission::readmit(permit, header.into())),
        Err(HeaderEnd::Closed) => None,
        Err(HeaderEnd::Bad(error, length)) => {
            let (reason, limit) = (Reason::ProxyHeader, ProxyHeader::MAX_BYTES as u64);
            let phase = Phase::FirstHead;
            let violation = Violation::new(Guard::Connection, reason, phase, limit, length as u64);
            // In every mode: what follows is not what the server expects.
            report(io.shared(), &violation, Mode::Enforce, io.conn());
            log::proxy_header(error, io.conn());
            io.refuse(reason);
            None
        }
    }
}

async fn read_header<T: Transport>(io: &mut GuardedIo<T>) -> Result<ProxyHeader, HeaderEnd> {
    let mut bytes = Vec::new();
    loop {
        let missing = match ProxyHeader::parse(&bytes) {
            Ok(ProxyParse::Complete(header)) => return Ok(header),
            Ok(ProxyParse::Incomplete { missing }) => missing,
            Err(error) => return Err(HeaderEnd::Bad(error, bytes.len())),
        };
        let length = bytes.len();
        bytes.resize(length + missing.min(CHUNK_BYTES), 0);
        let mut space = ReadBuf::new(bytes.get_mut(length..).unwrap_or_default());
        let read = poll_fn(|cx| Pin::new(&mut *io).poll_read(cx, &mut space)).await;
        match read.map(|()| space.filled().len()) {
            Ok(0) if length > 0 && io.conn().state().decision().is_none() => {
                return Err(HeaderEnd::Bad(ProxyHeaderError::NotAHeader, length));
            }
            Ok(0) | Err(_) => return Err(HeaderEnd::Closed),
            Ok(read) => bytes.truncate(length + read),
        }
    }
}

impl From<ProxyHeader> for Named {
    fn from(header: ProxyHeader) -> Self {
        // An IPv4 address may be in its IPv4-mapped form.
        let canonical = |address: SocketAddr| match address {
            SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => {
                (address.ip().to_canonical(), address.port()).into()
            }
            address => address,
        };
        match header.client() {
            ProxyClient::Named {
                source,
                destination,
            } => Self::Client {
                source: canonical(source),
                destination: canonical(destination),
            },
            ProxyClient::Local | ProxyClient::Unknown => Self::Proxy,
        }
    }
}
