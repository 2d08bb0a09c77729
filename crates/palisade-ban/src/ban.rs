//! The handle on lists and bans, for the whole application.

use crate::{accounts::Accounts, builder::BanBuilder};
use http::Extensions;
use palisade_core::{
    Client, ConnInfo, Event, Found, Gate, Guard, Mode, Networks, Phase, Prefix, Reason, Recorder,
    Violation,
};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// Lists of networks, and the clients that are banned. Clones are handles on the same state, so
/// that any part of the application can strike, ban and pardon clients.
///
/// See the [crate docs](crate).
#[derive(Clone, Debug)]
pub struct Ban {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) mode: Mode,
    pub(crate) recorder: Recorder,
    pub(crate) accounts: Accounts,
    pub(crate) allow: Option<Networks>,
    pub(crate) deny: Option<Networks>,
    /// The strikes of a refusal, by its reason.
    pub(crate) strikes_for: [u32; Reason::ALL.len()],
    /// Whether a peer is a proxy, and never a client.
    pub(crate) ignores_peers: AtomicBool,
    pub(crate) bans: AtomicU64,
}

// === Ban ===

impl Ban {
    /// Returns a builder with all options at their defaults.
    pub fn builder() -> BanBuilder {
        BanBuilder::new()
    }

    /// Returns a handle that refuses these networks, and otherwise has all options at their
    /// defaults.
    ///
    /// ```
    /// use palisade_ban::{Ban, BanLayer, Networks};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let networks = Networks::parse("203.0.113.0/24\n198.51.100.0/24")?;
    /// let layer = BanLayer::new(Ban::denying(networks));
    /// assert_eq!(status(&layer, request_from([203, 0, 113, 7])).await, 403);
    /// # Ok(())
    /// # }
    /// ```
    pub fn denying(networks: impl Into<Networks>) -> Self {
        Self::builder().deny(networks).build_checked()
    }

    /// Holds `strikes` against `client`, for a failed login, say. The strike that is one too many
    /// bans it: see [`BanBuilder::strikes`]. A client that is banned already gets no strikes.
    ///
    /// Does nothing to a client that is [allowed](BanBuilder::allow), that is a trusted proxy, or
    /// of which no address is known. Returns whether the client is banned now, `false` in
    /// [`Mode::Shadow`].
    ///
    /// ```
    /// use palisade_ban::{Ban, Client, Prefix};
    /// use std::time::Duration;
    ///
    /// let ban = Ban::builder().strikes(3, Duration::from_secs(60)).build()?;
    /// let client = Client::from_peer(Some([203, 0, 113, 7].into()), Prefix::default());
    /// assert!(!ban.strike(&client, 1) && !ban.strike(&client, 1));
    /// assert!(ban.strike(&client, 1));
    /// # Ok::<_, palisade_ban::ConfigError>(())
    /// ```
    pub fn strike(&self, client: &Client, strikes: u32) -> bool {
        self.strike_for(client, strikes, None)
    }

    /// Adds strikes for `reason`, or because the application says so.
    pub(crate) fn strike_for(&self, client: &Client, strikes: u32, reason: Option<Reason>) -> bool {
        if strikes == 0 || !self.may_ban(client) {
            return false;
        }
        let accounts = &self.shared.accounts;
        if accounts.banned_for(client).is_zero()
            && let Some(time) = accounts.strike(client, strikes)
        {
            self.record(client, time, reason);
        }
        self.is_banned(client)
    }

    /// Bans `client` for `time`, at most 12 days. A ban that lasts longer stays. For longer than
    /// that, put the network into the list of [denied](BanBuilder::deny) ones.
    ///
    /// Does nothing to a client that [`strike`](Self::strike) does nothing to. Returns whether the
    /// client is banned now, `false` in [`Mode::Shadow`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), palisade_ban::ConfigError> {
    /// use palisade_ban::{Ban, Client, Prefix};
    /// use std::time::Duration;
    ///
    /// let ban = Ban::builder().build()?;
    /// let client = Client::from_peer(Some([203, 0, 113, 7].into()), Prefix::default());
    /// ban.ban(&client, Duration::from_secs(60));
    /// tokio::time::advance(Duration::from_secs(45)).await;
    /// assert_eq!(ban.banned_for(&client), Some(Duration::from_secs(15)));
    /// tokio::time::advance(Duration::from_secs(15)).await;
    /// assert_eq!(ban.banned_for(&client), None);
    /// # Ok(())
    /// # }
    /// ```
    pub fn ban(&self, client: &Client, time: Duration) -> bool {
        if time.is_zero() || !self.may_ban(client) {
            return false;
        }
        if let Some(time) = self.shared.accounts.ban(client, time) {
            self.record(client, time, None);
        }
        self.is_banned(client)
    }

    /// Ends the ban of `client`, and forgets its strikes and how often it was banned.
    ///
    /// ```
    /// use palisade_ban::{Ban, Client, Prefix};
    /// use std::time::Duration;
    ///
    /// let ban = Ban::builder().build()?;
    /// let client = Client::from_peer(Some([203, 0, 113, 7].into()), Prefix::default());
    /// ban.ban(&client, Duration::from_secs(60));
    /// ban.unban(&client);
    /// assert_eq!(ban.banned_for(&client), None);
    /// # Ok::<_, palisade_ban::ConfigError>(())
    /// ```
    pub fn unban(&self, client: &Client) {
        if client.address().is_some() {
            self.shared.accounts.clear(client);
        }
    }

    /// Returns for how long `client` is banned; `None` if it is not. The lists are not asked.
    pub fn banned_for(&self, client: &Client) -> Option<Duration> {
        let is_known = client.address().is_some();
        let time = || self.shared.accounts.banned_for(client);
        is_known.then(time).filter(|time| !time.is_zero())
    }

    /// Returns the client of the request with these extensions: the [`Client`] that was found
    /// there, or else the peer of the connection. `None` if neither is known.
    ///
    /// ```
    /// use palisade_ban::{Ban, Client};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let ban = Ban::builder().build()?;
    /// let request = request_from([203, 0, 113, 7]); // With the address of its peer.
    /// let client = ban.client_of(request.extensions());
    /// assert_eq!(client.and_then(|client| client.address()), Some([203, 0, 113, 7].into()));
    /// # Ok(())
    /// # }
    /// ```
    pub fn client_of(&self, extensions: &Extensions) -> Option<Client> {
        if let Some(client) = Client::from_extensions(extensions) {
            return Some(*client);
        }
        let conn = ConnInfo::from_extensions(extensions);
        let is_named = conn.is_some_and(|conn| conn.is_proxied());
        if self.shared.ignores_peers.load(Relaxed) && !is_named {
            return None;
        }
        if let Some(conn) = conn {
            return client_of_conn(conn);
        }
        let peer = palisade_client_ip::peer(extensions)?.ip();
        let client = Client::from_peer(Some(peer), Prefix::default());
        client.address().is_some().then_some(client)
    }

    /// Notes that every peer is a proxy, so that only clients that a request names are banned.
    #[doc(hidden)]
    pub fn ignore_peers(&self) {
        self.shared.ignores_peers.store(true, Relaxed);
    }

    /// Returns whether the client of the request with these extensions may have to be refused.
    /// `false` for nearly all clients against which nothing is held. Reads no clock.
    #[inline(never)]
    pub(crate) fn may_keep_out(&self, extensions: &Extensions) -> bool {
        if let Some(client) = Client::from_extensions(extensions) {
            return self.may_keep_out_client(client);
        }
        match ConnInfo::from_extensions(extensions) {
            Some(conn) => self.may_keep_out_peer(conn),
            None => self.may_keep_out_reported(extensions),
        }
    }

    #[inline]
    fn may_keep_out_client(&self, client: &Client) -> bool {
        let hash = client.key().to_hash();
        self.shared.accounts.may_be_banned(hash, client.is_claim())
            || self.denies(client.address_bits())
    }

    #[inline]
    fn may_keep_out_peer(&self, conn: &ConnInfo) -> bool {
        let hash = conn.client().to_hash();
        self.shared.accounts.may_be_banned(hash, false) || self.denies(conn.address_bits())
    }

    /// As [`Self::may_keep_out_peer`], of a peer that another server than palisade's reports.
    #[cold]
    fn may_keep_out_reported(&self, extensions: &Extensions) -> bool {
        let client = self.client_of(extensions);
        client.is_some_and(|client| self.may_keep_out_client(&client))
    }

    /// Returns the rule by which `client` is not admitted.
    pub(crate) fn violation(&self, client: &Client, phase: Phase) -> Option<Violation> {
        // The address of a proxy stands for all clients behind it.
        if client.address().is_none() || client.is_proxy() || self.allows(client) {
            return None;
        }
        let broken = |reason, left| Violation::new(Guard::Ban, reason, phase, 0, left);
        if self.denies(client.address_bits()) {
            return Some(broken(Reason::Denied, 0));
        }
        let left = self.shared.accounts.banned_for(client).as_micros();
        let millis = u64::try_from(left.div_ceil(1000)).unwrap_or(u64::MAX);
        (left > 0).then(|| broken(Reason::Banned, millis))
    }

    #[inline]
    fn denies(&self, address: u128) -> bool {
        let deny = self.shared.deny.as_ref();
        deny.is_some_and(|networks| networks.present().contains_bits(address))
    }

    fn allows(&self, client: &Client) -> bool {
        let allow = self.shared.allow.as_ref();
        allow.is_some_and(|networks| networks.present().contains_bits(client.address_bits()))
    }

    /// Returns whether there is anything to ban.
    fn may_ban(&self, client: &Client) -> bool {
        self.shared.mode != Mode::Off
            && client.address().is_some()
            && !client.is_proxy()
            && !self.allows(client)
    }

    fn is_banned(&self, client: &Client) -> bool {
        self.shared.mode == Mode::Enforce && !self.shared.accounts.banned_for(client).is_zero()
    }

    fn record(&self, client: &Client, time: Duration, reason: Option<Reason>) {
        self.shared.bans.fetch_add(1, Relaxed);
        let until = Instant::now() + time;
        if let Some(event) = Event::banned(client, until, reason, self.shared.mode) {
            self.shared.recorder.record(|| event);
        }
    }
}

/// At accept. A peer is what its socket says, so a ban of an address that a client may have written
/// itself does not count here.
impl Gate for Ban {
    fn refusal(&self, conn: &ConnInfo) -> Option<(Violation, Mode)> {
        if !self.may_keep_out_peer(conn) || self.shared.mode == Mode::Off {
            return None;
        }
        let violation = self.violation(&client_of_conn(conn)?, Phase::Accept)?;
        Some((violation, self.shared.mode))
    }
}

/// Returns the peer of `conn` as a client, unless it is a trusted proxy or has no address.
pub(crate) fn client_of_conn(conn: &ConnInfo) -> Option<Client> {
    conn.known_client_hash()?;
    Some(Client::of_conn(conn, Found::Peer))
}
