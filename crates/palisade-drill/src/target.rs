//! The target: its address, which is resolved once, and the one function that makes sockets.

pub(crate) mod owner;

use crate::error::DrillError;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
};

/// The address under attack, and the sockets that lead to it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    addr: SocketAddr,
    /// Whether this system has a loopback address for each client.
    has_addresses: bool,
    sockets: Arc<Sockets>,
}

/// The sockets of a drill.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// The number that is open now.
    open: AtomicUsize,
    /// The number that was ever made.
    ever: AtomicU64,
}

/// The side that a socket belongs to. Each has addresses of its own, so that a server can tell
/// them apart as it does in earnest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The honest client of this number.
    Honest(u8),
    /// The address of this number in the attack of that number.
    Attacker { attack: u8, address: usize },
    /// The newcomer of this number after the attack of that number.
    Newcomer { attack: u8, address: usize },
}

/// Why an address that is not loopback is refused.
const CONSENT: &str = "only loopback addresses are attacked. Any other target has to consent \
                       first, which this version does not offer: run the drill on the machine of \
                       the server, against 127.0.0.1 or ::1";

/// Resolves `target` once.
///
/// # Errors
///
/// If it has no address, or one that is not loopback.
pub(crate) fn resolve(
    target: impl ToSocketAddrs + std::fmt::Debug,
) -> Result<Vec<SocketAddr>, DrillError> {
    let name = format!("{target:?}");
    let refused = |target: String, reason: String| DrillError::Refused { target, reason };
    let addrs: Vec<_> = match target.to_socket_addrs() {
        Ok(addrs) => addrs.collect(),
        Err(error) => return Err(refused(name, format!("it has no address: {error}"))),
    };
    if let Some(addr) = addrs.iter().find(|addr| !is_allowed(**addr)) {
        return Err(refused(addr.to_string(), CONSENT.to_owned()));
    }
    if addrs.is_empty() {
        return Err(refused(name, "it has no address".to_owned()));
    }
    Ok(addrs)
}

/// Returns whether `addr` may be attacked.
fn is_allowed(addr: SocketAddr) -> bool {
    addr.ip().to_canonical().is_loopback()
}

// === Target ===

impl Target {
    /// Opens the first of `addrs` that has a listener of this user.
    ///
    /// # Errors
    ///
    /// If none has one, if the listener belongs to another user, or if it forwards.
    pub(crate) async fn open(addrs: &[SocketAddr]) -> Result<Self, DrillError> {
        let mut refusal = None;
        for addr in addrs {
            match owner::check(*addr) {
                Ok(()) => {
                    let local = Source::Attacker {
                        attack: 0,
                        address: 0,
                    };
                    let has_addresses = local_address(local, *addr, true)
                        .is_some_and(|from| std::net::TcpListener::bind((from, 0)).is_ok());
                    return Ok(Self {
                        addr: *addr,
                        has_addresses,
                        sockets: Arc::default(),
                    });
                }
                Err(reason) => {
                    let target = addr.to_string();
                    refusal.get_or_insert(DrillError::Refused { target, reason });
                }
            }
        }
        Err(refusal.unwrap_or(DrillError::ServerEnded))
    }

    /// Checks again that the listener may be attacked: it may be another one by now.
    ///
    /// # Errors
    ///
    /// Why not.
    pub(crate) fn check(&self) -> Result<(), String> {
        owner::check(self.addr)
    }

    /// Returns the address.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns whether attackers and honest clients have different addresses.
    pub(crate) fn has_addresses(&self) -> bool {
        self.has_addresses
    }

    /// Returns the number of sockets that are open now, and of those that were ever made.
    #[cfg(test)]
    pub(crate) fn sockets(&self) -> (usize, u64) {
        (
            self.sockets.open.load(Relaxed),
            self.sockets.ever.load(Relaxed),
        )
    }

    /// Opens a connection. Every socket of this crate that leads anywhere is made here.
    ///
    /// # Errors
    ///
    /// If the address is not allowed, or the connection fails.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the socket is closed.
    pub(crate) async fn connect(
        &self,
        from: Source,
        receive_buffer: Option<u32>,
    ) -> io::Result<Stream> {
        // Checked at every socket, so that no way into this type leads elsewhere.
        if !is_allowed(self.addr) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, CONSENT));
        }
        let socket = match self.addr {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        let counted = Counted::new(&self.sockets);
        if let Some(from) = local_address(from, self.addr, self.has_addresses) {
            socket.bind((from, 0).into())?;
        }
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        let stream = socket.connect(self.addr).await?;
        stream.set_nodelay(true)?;
        Ok(Stream {
            inner: stream,
            _counted: counted,
        })
    }
}

/// Returns the local address of a socket of `from`: honest clients have 127.0.x.y, attackers
/// 127.1.x.y and newcomers 127.2.x.y or more. Each client is in a /24 network of its own, as the
/// clients of a server are, so that a limit for each network joins none of them. The last byte is
/// that of the attack: a server that bans an address does not see it again in the next attack.
fn local_address(from: Source, to: SocketAddr, has_addresses: bool) -> Option<IpAddr> {
    if !has_addresses || !to.is_ipv4() {
        return None;
    }
    let [network, subnet, host] = match from {
        Source::Honest(number) => [0, number.saturating_add(7), 1],
        Source::Attacker { attack, address } => {
            [1, (address % 250) as u8, attack.saturating_add(1)]
        }
        Source::Newcomer { attack, address } => {
            let network = 2 + (address / 250) % 200;
            [
                network as u8,
                (address % 250) as u8,
                attack.saturating_add(1),
            ]
        }
    };
    Some(Ipv4Addr::new(127, network, subnet, host).into())
}

// === Stream ===

/// A connection to the target, counted while it is open.
#[derive(Debug)]
pub(crate) struct Stream {
    inner: TcpStream,
    _counted: Counted,
}

/// Counts one open socket.
#[derive(Debug)]
struct Counted(Arc<Sockets>);

impl Counted {
    fn new(sockets: &Arc<Sockets>) -> Self {
        sockets.open.fetch_add(1, Relaxed);
        sockets.ever.fetch_add(1, Relaxed);
        Self(sockets.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

impl Stream {
    /// Returns the socket.
    pub(crate) fn get_ref(&self) -> &TcpStream {
        &self.inner
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_not_loopback_is_refused_and_says_what_is_needed() {
        for target in [
            "192.0.2.1:80",
            "[2001:db8::1]:80",
            "0.0.0.0:80",
            "[::ffff:192.0.2.1]:80",
        ] {
            let error = resolve(target).unwrap_err();
            assert!(error.to_string().contains("has to consent"), "{error}");
        }
        assert!(resolve("127.0.0.1:80").is_ok() && resolve("[::1]:80").is_ok());
    }

    #[test]
    fn a_name_with_one_address_that_is_not_loopback_is_refused() {
        let addrs: [SocketAddr; 2] = [([127, 0, 0, 1], 80).into(), ([192, 0, 2, 1], 80).into()];
        let error = resolve(&addrs[..]).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("192.0.2.1:80 is not attacked")
        );
    }

    #[tokio::test]
    async fn no_socket_is_made_to_an_address_that_is_not_allowed() {
        let target = Target {
            addr: ([192, 0, 2, 1], 80).into(),
            has_addresses: true,
            sockets: Arc::default(),
        };
        let error = target.connect(Source::Honest(0), None).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert_eq!(target.sockets(), (0, 0));
    }

    #[test]
    fn each_side_has_addresses_of_its_own() {
        let to = ([127, 0, 0, 1], 80).into();
        let address = |from| local_address(from, to, true).unwrap().to_string();
        assert_eq!(address(Source::Honest(0)), "127.0.7.1");
        let (attack, far) = (3, 251);
        assert_eq!(
            address(Source::Attacker {
                attack,
                address: far
            }),
            "127.1.1.4"
        );
        assert_eq!(
            address(Source::Newcomer {
                attack,
                address: far
            }),
            "127.3.1.4"
        );
        let six = "[::1]:80".parse().unwrap();
        assert_eq!(local_address(Source::Honest(0), six, true), None);
    }
}
