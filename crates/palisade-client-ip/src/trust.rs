//! Which proxies are believed, and what they say.

use crate::{
    address::{Address, Embedded, Syntax},
    elements::{Element, Elements, MAX_ELEMENTS, TooLong, trimmed},
    forwarded,
    peer::peer,
};
use http::{
    Extensions, HeaderMap,
    header::{self, HeaderName, HeaderValue},
};
use palisade_core::{
    Client, ConfigError, ConnInfo, Found, Network, NetworkSet, Networks, Prefix, PresentNetworks,
};
use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
static FORWARDED: HeaderName = header::FORWARDED;

/// Which proxies are in front of the server, and the one field in which they name the client.
///
/// From a peer that is no trusted proxy, nothing is read. The elements of the field are read from
/// the right, over all its lines, because each proxy adds its peer on the right:
///
/// ```text
/// client 203.0.113.7 --> CDN 198.51.100.9 --> proxy 10.0.0.7 --> server
///   sends 6.6.6.6            adds 203.0.113.7     adds 198.51.100.9
///
/// X-Forwarded-For: 6.6.6.6, 203.0.113.7, 198.51.100.9       peer: 10.0.0.7
///                                  <---- read from here
/// ```
///
/// - [`Trust::networks`]: the first address from the right that is in none of the networks is the
///   client. Here the networks are `10.0.0.0/8` and `198.51.100.0/24`. If all addresses are in the
///   networks, the leftmost one is the client.
/// - [`Trust::hops`]: the client is the address at that place from the right, here 2: one for each
///   proxy, the peer included. If there are fewer addresses, the peer is the client.
/// - Text that is not an address ends the search, and so do the limits of 32 elements and 4 KiB:
///   the client is the last trusted proxy that was found. Proxies write on the right, so this is
///   a mistake in the setup of a proxy. It is counted.
///
/// An address may have a port and a zone, which are dropped. An IPv4-mapped address is an IPv4
/// address. Empty elements are skipped. `0.0.0.0` and `::` are no addresses of clients.
///
/// ```
/// use palisade_client_ip::{Found, Trust};
/// let trust = Trust::networks(palisade_core::NetworkSet::parse("10.0.0.0/8\n198.51.100.0/24")?);
/// trust.check()?;
///
/// let mut headers = http::HeaderMap::new();
/// headers.insert("x-forwarded-for", "6.6.6.6, 203.0.113.7, 198.51.100.9".parse()?);
/// let client = trust.resolve(Some("10.0.0.7".parse()?), &headers);
/// assert_eq!(client.address(), Some("203.0.113.7".parse()?));
///
/// // Another peer can write what it wants.
/// let client = trust.resolve(Some("192.0.2.1".parse()?), &headers);
/// assert_eq!((client.address(), client.found()), (Some("192.0.2.1".parse()?), Found::Peer));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "trust does nothing until a layer or a guard has it"]
pub struct Trust {
    networks: Option<Networks>,
    hops: Option<usize>,
    source: Source,
    unix_peers: bool,
    embedded: Embedded,
    prefix: Prefix,
    counters: Arc<Counters>,
}

/// The one field that is read. Never another one in its place: a proxy passes on the fields that it
/// does not know, as the client wrote them.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// `X-Forwarded-For`, to which each proxy appends the address of its peer.
    #[default]
    XForwardedFor,
    /// The parameter `for` of `Forwarded` (RFC 7239). IPv6 addresses are in brackets.
    Forwarded,
    /// A field with one address, which the proxy overwrites: `CF-Connecting-IP`, `Fly-Client-IP`,
    /// `True-Client-IP`, `X-Real-IP`. If it is there twice, it is malformed.
    Field(HeaderName),
}

/// How many requests of trusted proxies did not name their client: the totals of a [`Trust`] and
/// its clones.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrustTotals {
    /// The requests without the field: [`Found::Missing`].
    pub missing: u64,
    /// The requests that passed fewer proxies than expected: [`Found::Short`].
    pub short: u64,
    /// The requests with text in place of an address: [`Found::Malformed`].
    pub malformed: u64,
    /// The requests with a field beyond the limits: [`Found::TooLong`].
    pub too_long: u64,
}

impl TrustTotals {
    /// Returns the sum of all.
    ///
    /// ```
    /// use palisade_client_ip::Trust;
    /// assert_eq!(Trust::private().totals().sum(), 0);
    /// ```
    pub fn sum(&self) -> u64 {
        let Self {
            missing,
            short,
            malformed,
            too_long,
        } = *self;
        missing
            .wrapping_add(short)
            .wrapping_add(malformed)
            .wrapping_add(too_long)
    }
}

#[derive(Debug, Default)]
struct Counters {
    missing: AtomicU64,
    short: AtomicU64,
    malformed: AtomicU64,
    too_long: AtomicU64,
}

/// The networks at the time of one request.
struct Proxies(Option<PresentNetworks>);

/// Where a search ended.
#[derive(Clone, Copy)]
struct Walked {
    /// `None` is the peer.
    address: Option<Address>,
    found: Found,
    /// Whether the address was written by a proxy of the networks.
    is_proven: bool,
}

// === Trust ===

impl Trust {
    fn new(networks: Option<Networks>, hops: Option<usize>) -> Self {
        Self {
            networks,
            hops,
            source: Source::default(),
            unix_peers: false,
            embedded: Embedded::default(),
            prefix: Prefix::default(),
            counters: Arc::default(),
        }
    }

    /// Trusts the proxies in `networks`: a [`NetworkSet`], a [`Network`], several of them, or a
    /// [`Networks`] that the application replaces at run time. With an empty set no proxy is
    /// trusted.
    ///
    /// Name your own proxies, as narrowly as you can: every address in the networks can write the
    /// client of its requests.
    pub fn networks(networks: impl Into<Networks>) -> Self {
        Self::new(Some(networks.into()), None)
    }

    /// Trusts `hops` proxies, the peer included, whatever their addresses are. 1 is a server with
    /// one proxy in front of it. Envoy counts the same proxies in `xff_num_trusted_hops`, without
    /// the one that is the peer.
    ///
    /// **This believes every peer.** A client that reaches the server, or a proxy behind the
    /// outermost one, in another way writes its own identity: a new one for each request, or that
    /// of a victim. Use it only where nothing else can connect, and prefer [`Self::and_hops`]. A
    /// client that is found this way is a [claim](Client::is_claim), and a ban of it never acts at
    /// accept.
    ///
    /// ```
    /// use palisade_client_ip::{Found, Trust};
    /// let mut headers = http::HeaderMap::new();
    /// headers.insert("x-forwarded-for", "6.6.6.6, 203.0.113.7, 198.51.100.9".parse()?);
    /// let client = Trust::hops(2).resolve(Some([192, 0, 2, 1].into()), &headers);
    /// assert_eq!(client.address(), Some([203, 0, 113, 7].into()));
    /// // A chain that is too short did not come through all proxies.
    /// let client = Trust::hops(4).resolve(Some([192, 0, 2, 1].into()), &headers);
    /// assert_eq!(client.address(), Some([192, 0, 2, 1].into()));
    /// assert_eq!(client.found(), Found::Short);
    /// # Ok::<(), http::header::InvalidHeaderValue>(())
    /// ```
    pub fn hops(hops: usize) -> Self {
        Self::new(None, Some(hops))
    }

    /// Trusts the proxies on the same machine and in private networks: loopback (`127.0.0.0/8`,
    /// `::1`), RFC 1918 (`10.0.0.0/8`, `172.16.0.0/12`, `192.168.0.0/16`), link-local
    /// (`169.254.0.0/16`, `fe80::/10`) and unique local addresses (`fc00::/7`).
    ///
    /// Only where every machine in those networks may name a client, and no client is in them.
    pub fn private() -> Self {
        let v4 = [
            ([127, 0, 0, 0], 8),
            ([10, 0, 0, 0], 8),
            ([172, 16, 0, 0], 12),
            ([192, 168, 0, 0], 16),
            ([169, 254, 0, 0], 16),
        ];
        let v4 = v4.map(|(address, prefix)| (IpAddr::from(address), prefix));
        let v6 = [
            (Ipv6Addr::LOCALHOST, 128),
            (Ipv6Addr::from_bits(0xfe80 << 112), 10),
            (Ipv6Addr::from_bits(0xfc00 << 112), 7),
        ];
        let v6 = v6.map(|(address, prefix)| (IpAddr::from(address), prefix));
        let networks = v4.into_iter().chain(v6);
        let networks = networks.filter_map(|(address, prefix)| Network::new(address, prefix));
        Self::networks(networks.collect::<NetworkSet>())
    }

    /// Looks for the client at a place, as [`Self::hops`] does, but only from peers in the
    /// networks. For a proxy of your own behind a CDN of unknown networks: the
    /// networks are those of your proxy, and `hops` is 2.
    ///
    /// If one of the proxies between the peer and the client is in none of the networks, the client
    /// is a [claim](Client::is_claim): a client may have gone around that proxy.
    ///
    /// ```
    /// use palisade_client_ip::Trust;
    /// let trust = Trust::private().and_hops(2);
    /// let mut headers = http::HeaderMap::new();
    /// headers.insert("x-forwarded-for", "203.0.113.7, 198.51.100.9".parse()?);
    /// let client = trust.resolve(Some([10, 0, 0, 7].into()), &headers);
    /// assert_eq!(client.address(), Some([203, 0, 113, 7].into()));
    /// let direct = trust.resolve(Some([192, 0, 2, 1].into()), &headers);
    /// assert_eq!(direct.address(), Some([192, 0, 2, 1].into()));
    /// # Ok::<(), http::header::InvalidHeaderValue>(())
    /// ```
    pub fn and_hops(mut self, hops: usize) -> Self {
        self.hops = Some(hops);
        self
    }

    /// Sets the field that is read, and no other one. Defaults to [`Source::XForwardedFor`].
    ///
    /// ```
    /// use palisade_client_ip::{Source, Trust};
    /// let field = http::HeaderName::from_static("cf-connecting-ip");
    /// let trust = Trust::private().source(Source::Field(field));
    /// let mut headers = http::HeaderMap::new();
    /// headers.insert("x-forwarded-for", "6.6.6.6".parse()?); // Not read.
    /// headers.insert("cf-connecting-ip", "2001:db8::7".parse()?);
    /// let client = trust.resolve(Some([10, 0, 0, 7].into()), &headers);
    /// assert_eq!(client.address(), "2001:db8::7".parse().ok());
    /// # Ok::<(), http::header::InvalidHeaderValue>(())
    /// ```
    pub fn source(mut self, source: Source) -> Self {
        self.source = source;
        self
    }

    /// Sets whether a peer without an address, such as that of a Unix socket, is a trusted proxy. A
    /// request of which no peer is known is then taken for one: set this only for a server that
    /// listens on Unix sockets alone. Defaults to `false`.
    ///
    /// ```
    /// use palisade_client_ip::Trust;
    /// let mut headers = http::HeaderMap::new();
    /// headers.insert("x-forwarded-for", "203.0.113.7".parse()?);
    /// let client = Trust::private().resolve(None, &headers);
    /// assert_eq!(client.address(), None);
    /// let client = Trust::private().unix_peers(true).resolve(None, &headers);
    /// assert_eq!(client.address(), Some([203, 0, 113, 7].into()));
    /// # Ok::<(), http::header::InvalidHeaderValue>(())
    /// ```
    pub fn unix_peers(mut self, is_trusted: bool) -> Self {
        self.unix_peers = is_trusted;
        self
    }

    /// Sets whether an address in `64:ff9b::/96` is the IPv4 address that it embeds (NAT64,
    /// RFC 6052), for servers that see IPv4 clients through such a translator. An address that
    /// embeds one of a private network stays as it is. Defaults to `false`.
    ///
    /// ```
    /// use palisade_client_ip::Trust;
    /// let peer = "64:ff9b::198.51.100.7".parse().ok();
    /// let client = Trust::private().nat64(true).resolve(peer, &http::HeaderMap::new());
    /// assert_eq!(client.address(), Some([198, 51, 100, 7].into()));
    /// ```
    pub fn nat64(mut self, is_translated: bool) -> Self {
        self.embedded.nat64 = is_translated;
        self
    }

    /// Sets whether an address in `2002::/16` is the IPv4 address that it embeds (6to4, RFC 3056).
    /// All of such a /48 belongs to the owner of that address. An address that embeds one of a
    /// private network stays as it is. Defaults to `false`.
    pub fn six_to_four(mut self, is_translated: bool) -> Self {
        self.embedded.six_to_four = is_translated;
        self
    }

    /// Sets how many bits of an address identify a client. Defaults to a whole IPv4 address and an
    /// IPv6 /64. A connection guard sets its own.
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.prefix = prefix;
        self
    }

    /// Returns whether the options are allowed together.
    ///
    /// ```
    /// use palisade_client_ip::Trust;
    /// let everyone = palisade_core::NetworkSet::parse("0.0.0.0/0\n::/0")?;
    /// let error = Trust::networks(everyone).check().unwrap_err();
    /// assert_eq!(error.faults().len(), 2);
    /// assert!(error.to_string().contains("every client could write its own address"));
    /// # Ok::<(), palisade_core::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - The networks have all IPv4 or all IPv6 addresses. If they get so later, by a replacement,
    ///   they contain no proxy of that family.
    /// - The number of hops is 0 or more than 32, or more than 1 for a field with one address.
    /// - [`Source::Field`] has the name of a list.
    pub fn check(&self) -> Result<(), ConfigError> {
        let mut error = ConfigError::new("the client cannot be found");
        let networks = self.networks.as_ref().map(Networks::present);
        let networks = networks.as_deref();
        let narrower = "the networks of your own proxies, because every client could write its \
                        own address otherwise";
        let has_all = |ask: fn(&NetworkSet) -> bool| networks.is_some_and(ask);
        if has_all(NetworkSet::contains_all_ipv4) {
            error.push("Trust::networks", "0.0.0.0/0", narrower);
        }
        if has_all(NetworkSet::contains_all_ipv6) {
            error.push("Trust::networks", "::/0", narrower);
        }
        let mut max_hops = MAX_ELEMENTS;
        if let Source::Field(name) = &self.source {
            max_hops = 1;
            let is_list = *name == X_FORWARDED_FOR || *name == FORWARDED;
            error.check(
                !is_list,
                "source",
                name,
                "a field with one address; a list is `Source::XForwardedFor` or \
                 `Source::Forwarded`",
            );
        }
        if let Some(hops) = self.hops {
            let is_allowed = (1..=max_hops).contains(&hops);
            error.check(
                is_allowed,
                "hops",
                &hops,
                "1 to 32, or 1 if the field has one address",
            );
        }
        error.into_result()
    }

    /// Returns the client of a request from `peer` with these `headers`. A pure function: nothing
    /// is counted or logged. `None` is a peer without an address, as is `::`.
    pub fn resolve(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Client {
        let peer = peer.map_or(Address::UNKNOWN, Address::from);
        self.resolve_of(peer, None::<&ConnInfo>, headers)
    }

    /// Returns whether this peer is a trusted proxy: whether its field is read.
    ///
    /// ```
    /// let trust = palisade_client_ip::Trust::private();
    /// assert!(trust.is_proxy([10, 0, 0, 7].into()) && !trust.is_proxy([192, 0, 2, 1].into()));
    /// ```
    pub fn is_proxy(&self, peer: IpAddr) -> bool {
        let canonical = self.embedded.canonical(peer.into());
        if canonical.is_unspecified() {
            return self.unix_peers;
        }
        Proxies(self.networks.as_ref().map(Networks::present)).is_believed(canonical)
    }

    /// Returns the client of a request of `conn`, and counts those that are not named by a trusted
    /// proxy. The peer's own key is that of the connection. For servers that know the connection;
    /// they insert the client into the request.
    pub fn identify_connection<S: ?Sized>(
        &self,
        conn: &ConnInfo<S>,
        headers: &HeaderMap,
    ) -> Client {
        let peer = conn.peer().ip();
        let client = self.resolve_of(peer.into(), Some(conn), headers);
        if conn.is_proxy() && client.found() == Found::Peer {
            // It is not asked for clients, but has sent a PROXY header that names none, or was
            // trusted at accept. Its requests are those of a proxy all the same.
            return Client::of_conn(conn, Found::Missing);
        }
        self.counted(client, Some(peer))
    }

    /// Returns the same for a connection of which its guard has asked at accept whether the peer is
    /// a proxy, and noted it. So a peer that is none is not looked for among the networks again.
    #[doc(hidden)]
    #[inline]
    pub fn identify_guarded<S: ?Sized>(&self, conn: &ConnInfo<S>, headers: &HeaderMap) -> Client {
        // A peer with an embedded address is another client than its connection.
        if conn.is_proxy() || self.embedded != Embedded::default() {
            return self.identify_connection(conn, headers);
        }
        Client::of_conn(conn, Found::Peer)
    }

    /// Returns the client of the request with these extensions and headers. The peer is read as by
    /// [`peer`](crate::peer).
    pub(crate) fn identify(&self, extensions: &Extensions, headers: &HeaderMap) -> Client {
        if let Some(conn) = ConnInfo::from_extensions(extensions) {
            return self.identify_connection(conn, headers);
        }
        let peer = peer(extensions).map(|peer| peer.ip());
        self.counted(self.resolve(peer, headers), peer)
    }

    /// Returns how many requests of trusted proxies did not name their client.
    ///
    /// ```
    /// # use palisade_testkit::example::*;
    /// use palisade_client_ip::{ClientIpLayer, Trust};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let trust = Trust::private();
    /// let service = ClientIpLayer::new(trust.clone())?.layer(service_fn(echo));
    /// let mut request = Request::new(Full::<Bytes>::default());
    /// request.extensions_mut().insert(std::net::SocketAddr::from(([10, 0, 0, 7], 4711)));
    /// service.oneshot(request).await?; // The proxy's own health check.
    /// assert_eq!(trust.totals().missing, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn totals(&self) -> TrustTotals {
        TrustTotals {
            missing: self.counters.missing.load(Relaxed),
            short: self.counters.short.load(Relaxed),
            malformed: self.counters.malformed.load(Relaxed),
            too_long: self.counters.too_long.load(Relaxed),
        }
    }

    /// Returns the networks of the trusted proxies, unless proxies are trusted by their number
    /// alone.
    pub fn proxies(&self) -> Option<&Networks> {
        self.networks.as_ref()
    }

    /// Returns the name of the field that is read.
    pub fn field(&self) -> &HeaderName {
        match &self.source {
            Source::XForwardedFor => &X_FORWARDED_FOR,
            Source::Forwarded => &FORWARDED,
            Source::Field(name) => name,
        }
    }

    /// `conn` is the connection of the peer, if it is known.
    #[inline]
    fn resolve_of<S: ?Sized>(
        &self,
        peer: Address,
        conn: Option<&ConnInfo<S>>,
        headers: &HeaderMap,
    ) -> Client {
        let canonical = self.embedded.canonical(peer);
        let proxies = Proxies(self.networks.as_ref().map(Networks::present));
        let is_trusted = if canonical.is_unspecified() {
            self.unix_peers
        } else {
            proxies.is_believed(canonical)
        };
        let found = if is_trusted {
            let walked = self.walk(headers, &proxies);
            if let Some(address) = walked.address {
                let client = Client::of_bits(address.to_bits(), walked.found, self.prefix);
                return client.claimed(!walked.is_proven);
            }
            walked.found
        } else {
            Found::Peer
        };
        match conn {
            // A translated peer is another client than its connection.
            Some(conn) if canonical == peer => Client::of_conn(conn, found),
            _ => {
                let client = Client::of_bits(canonical.to_bits(), found, self.prefix);
                client.translated(canonical != peer)
            }
        }
    }

    fn walk(&self, headers: &HeaderMap, proxies: &Proxies) -> Walked {
        let mut lines = headers.get_all(self.field()).iter();
        match &self.source {
            Source::XForwardedFor => {
                let elements = Elements::plain(lines.map(HeaderValue::as_bytes));
                self.walk_elements(elements, |text| Syntax::Plain.parse(text), proxies)
            }
            Source::Forwarded => {
                let elements = Elements::quoted(lines.map(HeaderValue::as_bytes));
                self.walk_elements(elements, forwarded::for_address, proxies)
            }
            Source::Field(_) => {
                let only = lines.next().map(|value| trimmed(value.as_bytes()));
                if lines.next().is_some() {
                    return Walked {
                        address: None,
                        found: Found::Malformed,
                        is_proven: true,
                    };
                }
                let only = only.map(|text| Ok(Element::Text(text)));
                self.walk_elements(only.into_iter(), |text| Syntax::Plain.parse(text), proxies)
            }
        }
    }

    /// Takes elements until the client is found. Allocates nothing.
    #[inline]
    fn walk_elements<'a>(
        &self,
        elements: impl Iterator<Item = Result<Element<'a>, TooLong>>,
        parse: impl Fn(&[u8]) -> Option<Address>,
        proxies: &Proxies,
    ) -> Walked {
        // The last trusted proxy so far. `None` is the peer.
        let mut last = None;
        let mut is_proven = proxies.are_known();
        let mut hops_left = self.hops;
        let mut ended = None;
        for element in elements {
            let address = match element {
                Ok(Element::Ipv4(v4)) => (!v4.is_unspecified()).then_some(v4),
                Ok(Element::Text([])) => continue,
                Ok(Element::Text(text)) => parse(text),
                Err(TooLong) => {
                    ended = Some(Found::TooLong);
                    break;
                }
            };
            let Some(address) = address else {
                ended = Some(Found::Malformed);
                break;
            };
            let address = self.embedded.canonical(address);
            let is_proxy = proxies.is_known(address);
            last = Some(address);
            match &mut hops_left {
                None if is_proxy => {}
                Some(hops) if *hops > 1 => {
                    *hops -= 1;
                    is_proven &= is_proxy;
                }
                _ => {
                    ended = Some(if is_proxy {
                        Found::AllTrusted
                    } else {
                        Found::Forwarded
                    });
                    break;
                }
            }
        }
        let found = match (ended, last) {
            (Some(found), _) => found,
            (None, None) => Found::Missing,
            (None, Some(_)) if hops_left.is_none() => Found::AllTrusted,
            (None, Some(_)) => {
                last = None;
                Found::Short
            }
        };
        Walked {
            address: last,
            found,
            is_proven,
        }
    }

    /// Counts `client` if it was not named by the trusted proxy, and says so in the log once for
    /// each kind.
    fn counted(&self, client: Client, peer: Option<IpAddr>) -> Client {
        let counter = match client.found() {
            Found::Missing => &self.counters.missing,
            Found::Short => &self.counters.short,
            Found::Malformed => &self.counters.malformed,
            Found::TooLong => &self.counters.too_long,
            _ => return client, // The peer, or named by a proxy.
        };
        if counter.fetch_add(1, Relaxed) == 0 {
            warn(client.found(), peer, self.field());
        }
        client
    }
}

/// Nothing of the field is logged, because a client may have written it.
#[cfg(feature = "tracing")]
fn warn(found: Found, peer: Option<IpAddr>, field: &HeaderName) {
    tracing::warn!(
        target: "palisade",
        peer = peer.map(tracing::field::display),
        %field,
        ?found,
        "a trusted proxy did not name the client of a request as expected, so the request counts \
         as that of a proxy; check which field the proxy sends; further requests are counted in \
         `Trust::totals` and not logged",
    );
}

#[cfg(not(feature = "tracing"))]
fn warn(_: Found, _: Option<IpAddr>, _: &HeaderName) {}

// === Proxies ===

impl Proxies {
    /// Returns whether the networks of the proxies are known, not only their number.
    fn are_known(&self) -> bool {
        self.0.is_some()
    }

    /// Returns whether what this peer says is believed.
    #[inline]
    fn is_believed(&self, peer: Address) -> bool {
        !self.are_known() || self.is_known(peer)
    }

    /// Returns whether `address` is in the networks. Networks that have every address of a family
    /// are a mistake, and contain none.
    #[inline]
    fn is_known(&self, address: Address) -> bool {
        self.0.as_deref().is_some_and(|networks| {
            let has_all = if address.is_ipv4() {
                networks.contains_all_ipv4()
            } else {
                networks.contains_all_ipv6()
            };
            networks.contains_bits(address.to_bits()) && !has_all
        })
    }
}
