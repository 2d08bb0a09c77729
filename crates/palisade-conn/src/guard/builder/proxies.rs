//! The options that find the client behind a proxy, and the gate that decides whether it may
//! connect.

use super::ConnGuardBuilder;
use palisade_client_ip::Trust;
use palisade_core::{ConfigError, ConfigFault, Gate, Networks};
use std::sync::Arc;

impl ConnGuardBuilder {
    /// Sets which proxies in front of the server are believed, and the one field in which they name
    /// the client of a request. See [`Trust`].
    ///
    /// [Request tracking](crate#request-tracking) finds the client of each request once, and
    /// inserts it as a [`Client`](palisade_client_ip::Client) into its extensions. Every guard that
    /// counts by [`ClientIp`](palisade_client_ip::ClientIp) then counts that client, and so does
    /// [`max_in_flight`](Self::max_in_flight): a client may have what it leaves of three quarters,
    /// and one request always, on whatever connections of the proxy they come. The same holds for
    /// [`max_upgraded`](Self::max_upgraded). An HTTP/2 connection counts there once, for the client
    /// of its first tunnel. Events and the log name the client beside the proxy.
    ///
    /// A connection of a trusted proxy has no share of its own: none of the limits per client apply
    /// to it, nor a share of responses that are not taken. Other peers
    /// are clients, and nothing is read of what they say. With [`Trust::hops`] alone every peer is
    /// a proxy. A peer that is no trusted proxy any more keeps its connections as they are. If all
    /// clients come through proxies, set [`behind_proxy`](Self::behind_proxy) as well, for its
    /// longer idle timeout.
    ///
    /// In [`Mode::Off`](palisade_core::Mode::Off) no client is found: put a
    /// [`ClientIpLayer`](palisade_client_ip::ClientIpLayer) outside of the guards then.
    ///
    /// `None` believes no one. Defaults to that.
    ///
    /// ```
    /// use palisade_client_ip::Trust;
    /// use palisade_conn::ConnGuard;
    ///
    /// let guard = ConnGuard::builder().behind_proxy().trust(Trust::private()).build()?;
    /// # drop(guard);
    /// let everyone = palisade_core::NetworkSet::parse("0.0.0.0/0")?;
    /// let error = ConnGuard::builder().trust(Trust::networks(everyone)).build().unwrap_err();
    /// assert_eq!(error.faults()[0].field, "Trust::networks");
    /// # Ok::<_, palisade_conn::ConfigError>(())
    /// ```
    pub fn trust(mut self, trust: impl Into<Option<Trust>>) -> Self {
        self.trust = trust.into();
        self
    }

    /// Sets the peers that are proxies and begin each connection with a header of the [PROXY
    /// protocol](https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt), version 1 or 2, in
    /// front of TLS and HTTP: `HAProxy` with `send-proxy` or `send-proxy-v2`, AWS's NLB, nginx with
    /// `proxy_protocol on` in a `stream` block.
    ///
    /// The connection is that of the client from then on: `peer()`, axum's `ConnectInfo` and
    /// tonic's `remote_addr()` are the address of the client, `local()` is the one that the client
    /// connected to if the header has it, and accept rate and all limits per client and network
    /// apply to it. A header of a proxy that connects by itself (`LOCAL`, a health check) or that
    /// names no TCP client leaves the address as it is, and the connection has no share of anything
    /// then.
    ///
    /// A peer in `networks` must send the header, and from no other peer one is read: others are
    /// clients. The connection counts under the cap from accept, and has until
    /// [`first_request_timeout`](Self::first_request_timeout) for the header and its first request.
    /// Meanwhile others are accepted. A header that is missing, malformed or longer than 4 KiB gets
    /// an RST, in [every mode](Self::mode), because the server could not read what follows. A guard
    /// that does not enforce its timeouts waits 120 s for it.
    ///
    /// Concerns listeners ([`bind`](crate::ConnGuard::bind), [`listen`](crate::ConnGuard::listen)),
    /// not [`ConnGuard::admit`](crate::ConnGuard::admit).
    /// Clients are peers again, so [`behind_proxy`](Self::behind_proxy) together with this is a
    /// fault. A proxy that sends requests of several clients on one connection, as with HTTP/2, has
    /// to name them in a field: see [`trust`](Self::trust). Both may be set, for one behind the
    /// other.
    ///
    /// `networks` is a set of networks, or a [`Networks`] that the application replaces while the
    /// guard runs. Range: not every address of a family. Defaults to none: no header is read.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    /// use palisade_core::Networks;
    ///
    /// let balancers = Networks::parse("127.0.0.0/8")?;
    /// let guard = ConnGuard::builder().proxy_protocol(balancers).build()?;
    /// let mut listener = guard.bind("127.0.0.1:0").await?;
    /// let mut balancer = TcpStream::connect(listener.local_addr()?).await?;
    /// balancer.write_all(b"PROXY TCP4 203.0.113.7 198.51.100.1 56324 443\r\nGET / ").await?;
    ///
    /// let (mut io, peer) = listener.accept().await?;
    /// assert_eq!(peer, "203.0.113.7:56324".parse()?);
    /// assert_eq!(io.conn().local(), Some("198.51.100.1:443".parse()?));
    /// assert_eq!(io.read_u8().await?, b'G');
    /// # Ok(())
    /// # }
    /// ```
    pub fn proxy_protocol(mut self, networks: impl Into<Networks>) -> Self {
        self.header_peers = Some(networks.into());
        self
    }

    /// Sets what decides which peers may connect, such as a `Ban` of palisade-ban. It is asked at
    /// accept, before the [accept rate](Self::accept_rate) and all limits, and a connection that it
    /// refuses is reset. Peers in [reserved](Self::reserve) networks, [trusted](Self::trust)
    /// proxies and peers without an address are not asked for. It is enforced if both the gate and
    /// the guard are in [`Mode::Enforce`](palisade_core::Mode::Enforce). Defaults to no gate.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::ConnGuard;
    /// use palisade_core::{ConnInfo, Gate, Guard, Mode, Network, Phase, Reason, Violation};
    ///
    /// #[derive(Debug)]
    /// struct Without(Network);
    ///
    /// impl Gate for Without {
    ///     fn refusal(&self, conn: &ConnInfo) -> Option<(Violation, Mode)> {
    ///         let denied = Violation::new(Guard::Ban, Reason::Denied, Phase::Accept, 0, 0);
    ///         self.0.contains(conn.peer().ip()).then_some((denied, Mode::Enforce))
    ///     }
    /// }
    ///
    /// let guard = ConnGuard::builder().gate(Without("192.0.2.0/24".parse()?)).build()?;
    /// assert!(connect(&guard, "192.0.2.1").await.is_err());
    /// assert_eq!(guard.recently_closed()[0].reason, Reason::Denied);
    /// let io = connect(&guard, "203.0.113.7").await?;
    /// # drop(io);
    /// # Ok(())
    /// # }
    /// ```
    pub fn gate(mut self, gate: impl Gate) -> Self {
        self.gate = Some(Arc::new(gate));
        self
    }

    /// Adds the faults of these options.
    pub(super) fn check_proxies(&self, error: &mut ConfigError) {
        if let Some(peers) = &self.header_peers {
            // As for a trust: otherwise every client could write its own address.
            let of_peers = Trust::networks(peers.clone()).check();
            for ConfigFault { value, allowed, .. } in faults(&of_peers) {
                error.push("proxy_protocol", value.clone(), allowed.clone());
            }
            error.check(
                !self.is_behind_proxy,
                "behind_proxy",
                &"set",
                "not together with `proxy_protocol`, by which peers are clients again",
            );
        }
        let of_trust = self.trust.as_ref().map(Trust::check);
        for fault in of_trust.iter().flat_map(faults) {
            let ConfigFault {
                field,
                value,
                allowed,
                ..
            } = fault.clone();
            error.push(field, value, allowed);
        }
    }
}

/// Returns the faults of a check.
fn faults(result: &Result<(), ConfigError>) -> &[ConfigFault] {
    result.as_ref().err().map_or(&[], ConfigError::faults)
}
