//! The target: its address, which is resolved once, and the one function that makes sockets.

pub(crate) mod owner;

use crate::{
    attacks::Protocol,
    consent::{Clock, Consent, Secret},
    error::DrillError,
    tls::{self, Tls, TlsStream},
};
use std::{
    collections::HashSet,
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

/// The address under attack, which is on loopback or consents.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    door: Door,
    permission: Permission,
    /// The TLS that it speaks, if it does.
    tls: Option<Tls>,
}

/// Why a target may be attacked.
#[derive(Clone, Debug)]
enum Permission {
    /// It is on loopback. Its listener belongs to this user.
    Loopback,
    /// It says so.
    Consent(Consent),
}

/// What a socket is for.
#[derive(Clone, Copy, Debug)]
enum Purpose<'a> {
    /// The question for consent, and nothing else.
    Question,
    /// The drill.
    Drill(&'a Permission),
}

/// An address, and the sockets that lead to it.
#[derive(Clone, Debug)]
struct Door {
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
const CONSENT: &str = "only loopback addresses are attacked without consent. Any other target has \
                       to consent first: let it publish the line of `palisade-drill consent`, and \
                       give the secret to `Drill::with_consent` or `--secret-file`";
/// The most addresses of one name. Each is asked for its consent.
const MAX_ADDRESSES: usize = 8;

/// Resolves `target` once.
///
/// # Errors
///
/// If it has no address, or one that is not loopback.
pub(crate) fn resolve(
    target: impl ToSocketAddrs + std::fmt::Debug,
) -> Result<Vec<SocketAddr>, DrillError> {
    let addrs = addresses(target)?;
    match addrs.iter().find(|addr| !is_loopback(**addr)) {
        Some(addr) => Err(refused(addr, CONSENT.to_owned())),
        None => Ok(addrs),
    }
}

/// Resolves `target` once. Its addresses are to be asked for their consent.
///
/// # Errors
///
/// If it has no address, too many, or one that is not that of a single machine.
pub(crate) fn resolve_any(
    target: impl ToSocketAddrs + std::fmt::Debug,
) -> Result<Vec<SocketAddr>, DrillError> {
    let name = format!("{target:?}");
    let mut addrs = addresses(target)?;
    // Resolvers repeat addresses.
    let mut seen = HashSet::new();
    addrs.retain(|addr| seen.insert(*addr));
    let many = |addr: &&SocketAddr| {
        let ip = addr.ip().to_canonical();
        let is_broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        ip.is_unspecified() || ip.is_multicast() || is_broadcast
    };
    if let Some(addr) = addrs.iter().find(many) {
        let reason = "it is not the address of one machine: set that of the server";
        return Err(refused(addr, reason.to_owned()));
    }
    if addrs.len() > MAX_ADDRESSES {
        let reason = format!("it has {} addresses: set one of them", addrs.len());
        return Err(refused(&name, reason));
    }
    Ok(addrs)
}

fn addresses(target: impl ToSocketAddrs + std::fmt::Debug) -> Result<Vec<SocketAddr>, DrillError> {
    let name = format!("{target:?}");
    let addrs: Vec<_> = match target.to_socket_addrs() {
        Ok(addrs) => addrs.collect(),
        Err(error) => return Err(refused(&name, format!("it has no address: {error}"))),
    };
    if addrs.is_empty() {
        return Err(refused(&name, "it has no address".to_owned()));
    }
    Ok(addrs)
}

fn refused(target: &impl ToString, reason: String) -> DrillError {
    let target = target.to_string();
    DrillError::Refused { target, reason }
}

pub(crate) fn is_loopback(addr: SocketAddr) -> bool {
    addr.ip().to_canonical().is_loopback()
}

// === Target ===

impl Target {
    /// Opens the first of `addrs` that has a listener of this user.
    ///
    /// # Errors
    ///
    /// If none has one, if the listener belongs to another user, if it forwards, or if the address
    /// is not loopback.
    pub(crate) async fn open(addrs: &[SocketAddr]) -> Result<Self, DrillError> {
        let mut refusal = None;
        for addr in addrs {
            let checked = if is_loopback(*addr) {
                owner::check(*addr)
            } else {
                Err(CONSENT.to_owned())
            };
            match checked {
                Ok(()) => {
                    return Ok(Self {
                        door: Door::new(*addr),
                        permission: Permission::Loopback,
                        tls: None,
                    });
                }
                Err(reason) => {
                    refusal.get_or_insert(refused(addr, reason));
                }
            }
        }
        Err(refusal.unwrap_or(DrillError::ServerEnded))
    }

    /// Asks all of `addrs` for their consent to the holder of `secret`, and opens the first. One on
    /// loopback is asked too, and its listener has to belong to this user.
    ///
    /// # Errors
    ///
    /// If one of them does not consent.
    pub(crate) async fn consenting(
        addrs: &[SocketAddr],
        secret: &Secret,
        clock: &Clock,
    ) -> Result<Self, DrillError> {
        let mut first = None;
        for addr in addrs {
            let door = Door::new(*addr);
            door.check_owner().map_err(|reason| refused(addr, reason))?;
            let consent = Consent::ask(*addr, secret, clock.clone(), door.question()).await;
            let permission = Permission::Consent(consent.map_err(|reason| refused(addr, reason))?);
            first.get_or_insert(Self {
                door,
                permission,
                tls: None,
            });
        }
        first.ok_or(DrillError::ServerEnded)
    }

    /// Checks again that the target may be attacked: the listener may be another one by now, or may
    /// not consent any more.
    ///
    /// # Errors
    ///
    /// Why not.
    pub(crate) async fn check(&self) -> Result<(), String> {
        self.door.check_owner()?;
        match &self.permission {
            Permission::Loopback => Ok(()),
            Permission::Consent(consent) => consent.renew(self.door.question()).await,
        }
    }

    /// Checks that a target that has to consent still does, as far as is known.
    ///
    /// # Errors
    ///
    /// [`DrillError::ConsentEnded`] if not.
    pub(crate) fn has_consent(&self) -> Result<(), DrillError> {
        let target = self.addr();
        match &self.permission {
            Permission::Loopback => Ok(()),
            Permission::Consent(consent) => consent
                .covers(target)
                .map_err(|reason| DrillError::ConsentEnded { target, reason }),
        }
    }

    /// Asks a target that has to consent again and again, and returns the error when it does not
    /// consent any more. Never returns for another one.
    pub(crate) async fn consent_ended(&self) -> DrillError {
        match &self.permission {
            Permission::Loopback => std::future::pending().await,
            Permission::Consent(consent) => DrillError::ConsentEnded {
                target: self.addr(),
                reason: consent.ended(|| self.door.question()).await,
            },
        }
    }

    /// Returns the address.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.door.addr
    }

    /// Returns whether attackers and honest clients have different addresses.
    pub(crate) fn has_addresses(&self) -> bool {
        self.door.has_addresses
    }

    /// Returns a target that is spoken to in `tls`.
    pub(crate) fn with_tls(mut self, tls: Option<Tls>) -> Self {
        self.tls = tls;
        self
    }

    /// Returns the TLS that the target speaks; `None` in clear text.
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Returns the number of sockets that are open now, and of those that were ever made.
    #[cfg(test)]
    pub(crate) fn sockets(&self) -> (usize, u64) {
        (
            self.door.sockets.open.load(Relaxed),
            self.door.sockets.ever.load(Relaxed),
        )
    }

    /// Opens a connection for `protocol`: with its TLS handshake, if the target speaks TLS.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect), and if the handshake fails or the server does not
    /// choose `protocol` in it.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the socket is closed.
    pub(crate) async fn connect_as(
        &self,
        protocol: Protocol,
        from: Source,
        receive_buffer: Option<u32>,
    ) -> io::Result<Stream> {
        let Stream { inner, counted } = self.connect(from, receive_buffer).await?;
        let inner = match (inner, &self.tls) {
            (Io::Tcp(socket), Some(tls)) => Io::Tls(tls.connect(socket, protocol).await?),
            (inner, _) => inner,
        };
        Ok(Stream { inner, counted })
    }

    /// Opens a TCP connection of the drill.
    ///
    /// # Errors
    ///
    /// If the target may not be attacked now, or the connection fails.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the socket is closed.
    pub(crate) async fn connect(
        &self,
        from: Source,
        receive_buffer: Option<u32>,
    ) -> io::Result<Stream> {
        let purpose = Purpose::Drill(&self.permission);
        self.door.connect(purpose, from, receive_buffer).await
    }
}

// === Door ===

impl Door {
    fn new(addr: SocketAddr) -> Self {
        let (attack, address) = (0, 0);
        let from = local_address(Source::Attacker { attack, address }, addr, true);
        let can_bind = |from| std::net::TcpListener::bind((from, 0)).is_ok();
        Self {
            addr,
            has_addresses: is_loopback(addr) && from.is_some_and(can_bind),
            sockets: Arc::default(),
        }
    }

    /// Checks the owner of the listener, which a server on another machine does not show.
    fn check_owner(&self) -> Result<(), String> {
        if is_loopback(self.addr) {
            owner::check(self.addr)
        } else {
            Ok(())
        }
    }

    /// Opens the connection of one question for consent.
    async fn question(&self) -> io::Result<Stream> {
        self.connect(Purpose::Question, Source::Honest(0), None)
            .await
    }

    /// Opens a connection. Every socket of this crate that leads anywhere is made here.
    async fn connect(
        &self,
        purpose: Purpose<'_>,
        from: Source,
        receive_buffer: Option<u32>,
    ) -> io::Result<Stream> {
        // Checked at every socket, so that no way into these types leads elsewhere, and no consent
        // is used after its end.
        let refusal = match purpose {
            Purpose::Question => None,
            Purpose::Drill(Permission::Loopback) => {
                (!is_loopback(self.addr)).then(|| CONSENT.to_owned())
            }
            Purpose::Drill(Permission::Consent(consent)) => consent.covers(self.addr).err(),
        };
        if let Some(refusal) = refusal {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, refusal));
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
        let inner = Io::Tcp(stream);
        Ok(Stream { inner, counted })
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
    inner: Io,
    counted: Counted,
}

/// What carries the bytes.
#[derive(Debug)]
enum Io {
    Tcp(TcpStream),
    Tls(TlsStream),
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
        match &self.inner {
            Io::Tcp(stream) => stream,
            Io::Tls(stream) => tls::socket(stream),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Io::Tcp(stream) => Pin::new(stream).poll_read(cx, into),
            Io::Tls(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.inner {
            Io::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Io::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Io::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Io::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.inner {
            Io::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Io::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
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
    fn an_address_that_is_asked_for_its_consent_is_that_of_one_machine() {
        for target in [
            "0.0.0.0:80",
            "[::]:80",
            "[::ffff:0.0.0.0]:80",
            "224.0.0.1:80",
            "255.255.255.255:80",
            "[ff02::1]:80",
        ] {
            let error = resolve_any(target).unwrap_err().to_string();
            assert!(error.contains("not the address of one machine"), "{error}");
        }
        let addrs: Vec<SocketAddr> = (1..=9).map(|host| ([192, 0, 2, host], 80).into()).collect();
        let error = resolve_any(&addrs[..]).unwrap_err().to_string();
        assert!(
            error.ends_with("it has 9 addresses: set one of them"),
            "{error}"
        );
        let repeated = [addrs[0], addrs[1], addrs[0], addrs[1]];
        assert_eq!(resolve_any(&repeated[..]).unwrap(), &addrs[..2]);
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
        let addr = ([192, 0, 2, 1], 80).into();
        assert!(Target::open(&[addr]).await.is_err());
        let target = Target {
            door: Door::new(addr),
            permission: Permission::Loopback,
            tls: None,
        };
        assert!(!target.has_addresses());
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
