//! Makes a guard.

use super::{
    ConnGuard,
    limits::{CapFrom, Growth, Limits, auto_connections},
};
use palisade_core::{ConfigError, Mode, Network, Prefix, Pressure, Recorder};
use palisade_guard::Gcra;
use std::{fmt, time::Duration};

/// Makes a [`ConnGuard`]. Nothing is checked before [`build`](Self::build), which then names
/// every fault at once.
#[derive(Clone, Debug)]
#[must_use = "nothing is guarded before `build`, and by nothing but the guard it returns"]
pub struct ConnGuardBuilder {
    mode: Mode,
    recorder: Recorder,
    connections: Option<usize>,
    reserve: usize,
    reserved: Vec<Network>,
    per_client: PerClient,
    per_network: PerNetwork,
    keep_alive: KeepAlive,
    accept_rate: Option<(u32, u32)>,
    accept_rate_per_network: AcceptRatePerNetwork,
    prefix: Prefix,
    first_request: Duration,
    head: Duration,
    idle: Duration,
    upgraded_idle: Duration,
    write_stall: Duration,
    max_age: Option<Duration>,
    age_grace: Option<Duration>,
    max_requests: Option<u32>,
    max_upgraded: Option<usize>,
    max_in_flight: Option<usize>,
    max_cancelled: Option<u16>,
    max_overhead: Option<u32>,
    probe: Option<Duration>,
    precision: Duration,
    pressure: Pressure,
}

#[derive(Clone, Copy, Debug)]
enum PerClient {
    Auto,
    Most(u32),
    Any,
}

#[derive(Clone, Copy, Debug)]
enum PerNetwork {
    /// So many times as one client.
    Times(u32),
    Most(u32),
    Any,
}

#[derive(Clone, Copy, Debug)]
enum KeepAlive {
    /// So many, where there is a limit per client.
    Auto(u32),
    Most(u32),
    Any,
}

#[derive(Clone, Copy, Debug)]
enum AcceptRatePerNetwork {
    /// So many times that of one client.
    Times(u32),
    Most(u32, u32),
    Any,
}

const DAY: Duration = Duration::from_secs(86_400);
const MILLISECOND: Duration = Duration::from_millis(1);
const MOST_CONNECTIONS: usize = 1 << 24;
const MOST_PER_SECOND: u32 = 1_000_000;
const MOST_OVERHEAD: u32 = 1 << 30;
const FROM_1_MS_TO_24_H: &str = "1 ms to 24 h";

// === ConnGuardBuilder ===

impl ConnGuardBuilder {
    pub(crate) fn new() -> Self {
        Self {
            mode: Mode::default(),
            recorder: Recorder::default(),
            connections: None,
            reserve: 0,
            reserved: Vec::new(),
            per_client: PerClient::Auto,
            per_network: PerNetwork::Times(4),
            keep_alive: KeepAlive::Auto(8),
            accept_rate: Some((100, 200)),
            accept_rate_per_network: AcceptRatePerNetwork::Times(4),
            prefix: Prefix::default(),
            first_request: Duration::from_secs(10),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(65),
            upgraded_idle: Duration::from_secs(300),
            write_stall: Duration::from_secs(300),
            max_age: Some(Duration::from_secs(3600)),
            age_grace: None,
            max_requests: Some(10_000),
            max_upgraded: None,
            max_in_flight: None,
            max_cancelled: Some(200),
            max_overhead: Some(256 * 1024),
            probe: Some(Duration::from_secs(5)),
            precision: Duration::from_millis(250),
            pressure: Pressure::default(),
        }
    }

    /// Whether it enforces, only tells what it would have done, or does not look.
    /// Defaults to [`Mode::Enforce`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Tells `metrics` of everything it does. Defaults to nobody.
    pub fn metrics(mut self, metrics: impl Into<Recorder>) -> Self {
        self.recorder = metrics.into();
        self
    }

    /// How many connections may be open at once, upgraded ones too, 1 to 16,777,216. From nine
    /// tenths of it on, the least useful one goes for each that comes; see
    /// [displacement](crate#displacement).
    ///
    /// Defaults to the least of four fifths of the files that this process may have open, less 64;
    /// a quarter of the memory that it may use, by its control group or that there is, at 64 KiB for
    /// each connection; and 10,000. Which one it was is in [`ConnSnapshot::limit_from`], and, with
    /// the feature `tracing`, in a log line when the guard is made.
    ///
    /// [`ConnSnapshot::limit_from`]: crate::ConnSnapshot::limit_from
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.connections = Some(connections);
        self
    }

    /// Keeps the last `places` of [`Self::max_connections`] for peers in `networks`: health checks,
    /// monitoring, an operator. `places` must be below [`Self::max_connections`]. Their accept rate, their number per client
    /// and per network, how many they keep idle and the number of all requests are not looked at, and
    /// they make room for each
    /// other only, and only where nobody else can. Every deadline is theirs as well. Defaults to
    /// none.
    ///
    /// ```
    /// # use palisade_conn::ConnGuard;
    /// let monitoring = "10.1.0.0/16".parse().unwrap();
    /// let guard = ConnGuard::builder().reserve(16, [monitoring]).build().unwrap();
    /// ```
    pub fn reserve(mut self, places: usize, networks: impl IntoIterator<Item = Network>) -> Self {
        self.reserve = places;
        self.reserved = networks.into_iter().collect();
        self
    }

    /// How many connections one client may have, at least 1. The next one takes the place of the
    /// least useful of its own.
    ///
    /// By default the share tightens with load: while places are plentiful a client may have half
    /// of what is left of nine tenths of [`Self::max_connections`] (alone three tenths of all), and
    /// where they are short a hundredth of all, at least 64. The connections above that share are
    /// then the first to be evicted, whatever they do.
    pub fn max_per_client(mut self, connections: u32) -> Self {
        self.per_client = PerClient::Most(connections);
        self
    }

    /// No limit on the connections of one client: for a server whose peers are proxies. The limits per
    /// network and on idle ones go with it, unless they are set. By default
    /// [`Self::max_per_client`] applies.
    pub fn no_max_per_client(mut self) -> Self {
        self.per_client = PerClient::Any;
        self
    }

    /// For a server whose peers are proxies or balancers of your own, each with many clients: no
    /// [`max_per_client`](Self::max_per_client), no [`accept_rate`](Self::accept_rate), no
    /// [`max_cancelled`](Self::max_cancelled), and [`idle`](Self::idle) connections for 620 s, which
    /// is longer than the longest that balancers keep theirs, whatever was set before. What clients behind them do cannot be
    /// told apart here; the layers can, by the address that the proxy passes on.
    ///
    /// Where nine in ten requests say that they were forwarded and this is not set, the guard says
    /// so: once to its metrics and, with the feature `tracing`, in the log, and as a level. It is the
    /// clients' own word: look whether the few clients with most connections are proxies of yours.
    /// A flood may say so, too.
    pub fn behind_proxy(self) -> Self {
        let proxied = self.no_max_per_client().no_accept_rate().no_max_cancelled();
        proxied.idle(Duration::from_secs(620))
    }

    /// How many connections the network of a client may have, its /24 or its /48, at least 1. The
    /// next one takes the place of one of that network's, the least useful of those looked at.
    ///
    /// Defaults to four times as many as one client may have, which tightens with load as that
    /// does, and to any number where one client may have them all.
    pub fn max_per_network(mut self, connections: u32) -> Self {
        self.per_network = PerNetwork::Most(connections);
        self
    }

    /// One network may have them all: where most clients come from one.
    /// Defaults to [`Self::max_per_network`].
    pub fn no_max_per_network(mut self) -> Self {
        self.per_network = PerNetwork::Any;
        self
    }

    /// How many connections one client may keep idle, any number from 0 on. Of those that were idle
    /// for 1 s the older ones beyond it take no more requests: HTTP/1 says `Connection: close` with
    /// the next answer, and once one was idle for 5 s it ends with a FIN. A browser keeps 6. What
    /// is at work does not count, so that a load test is not slowed down.
    ///
    /// By default it tightens with load: a client may keep a quarter of what is left of nine tenths
    /// of [`Self::max_connections`], where places are short 8, and any number where one client may
    /// have them all. So no idle connection is closed early while there are places.
    pub fn keep_alive_per_client(mut self, connections: u32) -> Self {
        self.keep_alive = KeepAlive::Most(connections);
        self
    }

    /// One client may keep all of his: for a server whose peers are proxies.
    /// Defaults to [`Self::keep_alive_per_client`].
    pub fn no_keep_alive_per_client(mut self) -> Self {
        self.keep_alive = KeepAlive::Any;
        self
    }

    /// How many connections one client may make in a second, and how many at once, each 1 to
    /// 1,000,000. Keeps a table of 65,536 clients, 512 KiB, allocated at once.
    /// Defaults to 100 and 200.
    pub fn accept_rate(mut self, per_second: u32, burst: u32) -> Self {
        self.accept_rate = Some((per_second, burst));
        self
    }

    /// A client may connect as often as it likes: for a server whose peers are proxies. So may a
    /// network, unless its rate is set. Defaults to [`Self::accept_rate`].
    pub fn no_accept_rate(mut self) -> Self {
        self.accept_rate = None;
        self
    }

    /// How many connections the network of a client, its /24 or its /48, may make in a second, and
    /// how many at once, each 1 to 1,000,000: a /48 has 65,536 clients with a rate of their own.
    /// Defaults to four times the rate and the burst of one client.
    pub fn accept_rate_per_network(mut self, per_second: u32, burst: u32) -> Self {
        self.accept_rate_per_network = AcceptRatePerNetwork::Most(per_second, burst);
        self
    }

    /// A network may connect as often as its clients may.
    /// Defaults to [`Self::accept_rate_per_network`].
    pub fn no_accept_rate_per_network(mut self) -> Self {
        self.accept_rate_per_network = AcceptRatePerNetwork::Any;
        self
    }

    /// How many bits of an address make a client. Defaults to an IPv4 address and an IPv6 /64.
    pub fn prefix(mut self, prefix: Prefix) -> Self {
        self.prefix = prefix;
        self
    }

    /// The time from accept to the first complete request head, 1 ms to 24 h. One deadline for
    /// silence, protocol sniffing, TLS, half a preface and unfinished headers. Ends with a reset, or
    /// with a 408 and a FIN where a head of HTTP/1 has begun in plain text. A client that connects ahead of need is cut as well, and connects again when it has one.
    /// Defaults to 10 s.
    pub fn first_request(mut self, within: Duration) -> Self {
        self.first_request = within;
        self
    }

    /// The time for a later request head, from its first byte, 1 ms to 24 h; HTTP/1 only, since
    /// bytes of HTTP/2 may be anything. Bytes that come before the sweeper has seen the connection
    /// idle may belong to the request before, and count as idle, and what is left of a body by its
    /// declared length is not one: it has the idle time, as long as 500 bytes a second come. Behind a
    /// body of unknown end, chunked or pipelined, bytes at that rate may be the rest of it. Ends as [`Self::first_request`] does. Defaults to 10 s.
    pub fn head(mut self, within: Duration) -> Self {
        self.head = within;
        self
    }

    /// How long nothing may be in flight, 1 ms to 24 h. What a client sends without completing a
    /// request, answers to PING among it, does not count; what he is still being sent does. Behind
    /// a balancer choose 5 s more than its own idle time. Ends with a FIN; HTTP/2 is told by GOAWAY a
    /// second before, where the server can tell it. Defaults to 65 s.
    pub fn idle(mut self, longest: Duration) -> Self {
        self.idle = longest;
        self
    }

    /// How long an upgraded connection may be silent in both directions, 1 ms to 24 h. Any byte
    /// counts. Ends with a FIN. Defaults to 5 min.
    pub fn upgraded_idle(mut self, longest: Duration) -> Self {
        self.upgraded_idle = longest;
        self
    }

    /// How long a client may take less than 500 bytes a second of the bytes that wait for it, 1 ms
    /// to 24 h; and on HTTP/2, how long all of its responses may wait for their windows at that
    /// rate. Ends with a reset. Where places are short, it is 10 s at last, and what has stalled
    /// for 4 s may be evicted.
    ///
    /// A receive window opens in large steps, of up to a sixteenth of its buffer: a client that reads
    /// 2,000 B/s may take nothing for three minutes, and then 384 KiB at once. Defaults to 5 min.
    pub fn write_stall(mut self, longest: Duration) -> Self {
        self.write_stall = longest;
        self
    }

    /// The age at which a connection takes no more requests, 1 ms to 30 days, give or take a
    /// tenth. HTTP/1 says `Connection: close` with its next response. HTTP/2 is told by GOAWAY and
    /// ends once it was idle for 5 s, where the server can tell it; elsewhere by a FIN once it was
    /// idle for 30 s, because its client may be about to use it. Upgraded connections have no age. Defaults to 1 h.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// Connections of any age. Defaults to [`Self::max_age`].
    pub fn no_max_age(mut self) -> Self {
        self.max_age = None;
        self
    }

    /// How long after its age a connection that has still something in flight is reset, 0 to
    /// 24 h. It ends long downloads, event streams and gRPC streams as well, so it wants to be
    /// longer than the longest of them. Defaults to never: what is in flight goes on to its end.
    pub fn age_grace(mut self, grace: Duration) -> Self {
        self.age_grace = Some(grace);
        self
    }

    /// How many requests one connection may bring, at least 1; needs the accounting layer. HTTP/1
    /// says `Connection: close` with the last one. HTTP/2 ends as at its [age](Self::max_age).
    /// Defaults to 10,000.
    pub fn max_requests(mut self, requests: u32) -> Self {
        self.max_requests = Some(requests);
        self
    }

    /// Any number of requests. Defaults to [`Self::max_requests`].
    pub fn no_max_requests(mut self) -> Self {
        self.max_requests = None;
        self
    }

    /// How many connections may be upgraded at once, at least 1; needs the accounting layer. The
    /// next one gets 503 in place of its 101 or its successful `CONNECT`, and its handler learns
    /// that nothing came of the upgrade. An HTTP/2 connection that carries a tunnel counts as one
    /// until its last tunnel ends under `palisade::serve`, and elsewhere for as long as it lives;
    /// every other rule holds beside the tunnel.
    ///
    /// A client may always have one, and more as long as he has no more than is left of three
    /// quarters of them; where a peer is no client ([`Self::behind_proxy`]), all it gets.
    /// Defaults to a quarter of [`Self::max_connections`].
    pub fn max_upgraded(mut self, connections: usize) -> Self {
        self.max_upgraded = Some(connections);
        self
    }

    /// How many requests may be in flight on all connections together, at least 1; needs the
    /// accounting layer. The next one is answered 503 and `Retry-After` at its head.
    ///
    /// A connection may always have one. More it may have as long as its client has no more than he
    /// leaves of three quarters of them: alone three eighths of all, beside three who ask for all
    /// they can get three twentieths. So nobody who asks for one thing at a time is refused because
    /// others ask for thousands, as long as this is at least four times the connections. Where a
    /// peer is no client ([`Self::behind_proxy`], a Unix socket) only the whole counts.
    /// Defaults to four times [`Self::max_connections`], and at least 1,024.
    pub fn max_in_flight(mut self, requests: usize) -> Self {
        self.max_in_flight = Some(requests);
        self
    }

    /// How many requests one connection may cancel within about a second of their beginning, and
    /// before anything is answered, 1 to 65,535; needs the accounting layer. Twenty are forgiven in
    /// each second, so that a search while typing never comes to its end. Beyond that, and once more
    /// than half of all its requests that have ended were cancelled, the connection is told by
    /// GOAWAY where the server can tell it, and is reset there at twice as many, elsewhere at once.
    /// A second is one look of the sweeper longer at the most. Defaults to 200.
    pub fn max_cancelled(mut self, requests: u16) -> Self {
        self.max_cancelled = Some(requests);
        self
    }

    /// Any number of them. Defaults to [`Self::max_cancelled`].
    pub fn no_max_cancelled(mut self) -> Self {
        self.max_cancelled = None;
        self
    }

    /// How many bytes an HTTP/2 connection may bring that bring no request on, 1 KiB to 1 GiB:
    /// PING, SETTINGS, window updates, priorities, frames that nobody knows. 16 KiB are free for
    /// every second, 32 KiB for every request, as much as its head may have under
    /// `palisade::serve` and `harden`, and one byte for eight that the server sends. DATA does not
    /// count: windows bound it. Where frames cannot be told apart, under TLS that is not
    /// `palisade::serve`'s own, nothing is counted while a request with a body is in flight, nor
    /// 64 MiB after it. Before the first request anything counts. Needs the accounting layer. Ends with a reset. Defaults to 256 KiB.
    pub fn max_overhead(mut self, bytes: u32) -> Self {
        self.max_overhead = Some(bytes);
        self
    }

    /// Any number of bytes. Defaults to [`Self::max_overhead`].
    pub fn no_max_overhead(mut self) -> Self {
        self.max_overhead = None;
        self
    }

    /// How often a request at work on HTTP/1 is looked at whether its client is still there, 1 ms
    /// to 24 h: one system call each time, on Linux only. hyper does not notice by itself if the
    /// client sent so much as a byte too many. A client who only closed his own direction counts as
    /// gone, as to hyper itself, unless the server lets it: `palisade_serve`'s
    /// `HttpBuilder::half_close`. Defaults to every 5 s.
    pub fn probe(mut self, every: Duration) -> Self {
        self.probe = Some(every);
        self
    }

    /// Nobody looks. Defaults to [`Self::probe`].
    pub fn no_probe(mut self) -> Self {
        self.probe = None;
        self
    }

    /// How often the sweeper looks at each connection, 1 ms to 10 s. Every time above is met
    /// never early and at most two of these late. Defaults to 250 ms.
    pub fn precision(mut self, tick: Duration) -> Self {
        self.precision = tick;
        self
    }

    /// What presses the process beside its connections: while it is above 0.8, deadlines shrink; see
    /// [under pressure](crate#under-pressure). Clones of it share the value, whoever sets it.
    /// Defaults to one that nobody raises.
    pub fn pressure(mut self, pressure: Pressure) -> Self {
        self.pressure = pressure;
        self
    }

    /// The guard.
    ///
    /// # Errors
    ///
    /// If any number is out of its range; names every one.
    pub fn build(self) -> Result<ConnGuard, ConfigError> {
        let cap = self
            .connections
            .map(|connections| (connections, CapFrom::Told));
        let (connections, connections_from) = cap.unwrap_or_else(auto_connections);
        self.check(connections)?;
        let per_client = match self.per_client {
            PerClient::Auto => Some(u32::try_from(connections / 100).unwrap_or(u32::MAX).max(64)),
            PerClient::Most(most) => Some(most),
            PerClient::Any => None,
        };
        let per_network = match self.per_network {
            PerNetwork::Times(times) => per_client.map(|most| most.saturating_mul(times)),
            PerNetwork::Most(most) => Some(most),
            PerNetwork::Any => None,
        };
        let accept_rate = self.accept_rate;
        let times = |times: u32| {
            let most = |number: u32| number.saturating_mul(times).min(MOST_PER_SECOND);
            accept_rate.map(|(rate, burst)| (most(rate), most(burst)))
        };
        let accept_rate_per_network = match self.accept_rate_per_network {
            AcceptRatePerNetwork::Times(more) => times(more),
            AcceptRatePerNetwork::Most(rate, burst) => Some((rate, burst)),
            AcceptRatePerNetwork::Any => None,
        };
        let client_grows = matches!(self.per_client, PerClient::Auto);
        let grows = Growth {
            per_client: client_grows,
            per_network: client_grows && matches!(self.per_network, PerNetwork::Times(_)),
            keep_alive: matches!(self.keep_alive, KeepAlive::Auto(_)),
        };
        let limits = Limits {
            mode: self.mode,
            connections,
            connections_from,
            reserve: self.reserve,
            reserved: self.reserved.into(),
            per_client,
            per_network,
            keep_alive: match self.keep_alive {
                KeepAlive::Auto(most) => per_client.map(|_| most),
                KeepAlive::Most(most) => Some(most),
                KeepAlive::Any => None,
            },
            // Checked: neither is 0, and their product is at most 2^40.
            accept_rate: accept_rate.and_then(|(rate, burst)| gcra(rate, burst)),
            accept_rate_per_network: accept_rate_per_network
                .and_then(|(rate, burst)| gcra(rate, burst)),
            grows,
            prefix: self.prefix,
            first_request: millis(self.first_request),
            head: millis(self.head),
            idle: millis(self.idle),
            upgraded_idle: millis(self.upgraded_idle),
            write_stall: millis(self.write_stall),
            max_age: self.max_age.map(millis),
            age_grace: self.age_grace.map(millis),
            max_requests: self.max_requests,
            max_upgraded: self.max_upgraded.unwrap_or((connections / 4).max(1)),
            max_in_flight: self
                .max_in_flight
                .unwrap_or(connections.saturating_mul(4).max(1024)),
            max_cancelled: self.max_cancelled,
            max_overhead: self.max_overhead,
            probe: self.probe.map(millis),
            tick: self.precision,
        };
        Ok(ConnGuard::new(limits, self.recorder, self.pressure))
    }

    fn check(&self, connections: usize) -> Result<(), ConfigError> {
        let mut error = ConfigError::new("the connection guard cannot be built");
        let mut check = |fine, field, value: &dyn fmt::Debug, allowed| {
            error.check(fine, field, value, allowed);
        };
        if let Some(most) = self.connections {
            let fine = (1..=MOST_CONNECTIONS).contains(&most);
            check(fine, "max_connections", &most, "1 to 16777216");
        }
        check(
            self.reserve < connections.max(1),
            "reserve",
            &self.reserve,
            "less than max_connections",
        );
        if let PerClient::Most(most) = self.per_client {
            check(most > 0, "max_per_client", &most, "at least 1");
        }
        if let PerNetwork::Most(most) = self.per_network {
            check(most > 0, "max_per_network", &most, "at least 1");
        }
        if let Some((rate, burst)) = self.accept_rate {
            let fine = gcra(rate, burst).is_some();
            let allowed = "each 1 to 1000000";
            check(fine, "accept_rate", &(rate, burst), allowed);
        }
        if let AcceptRatePerNetwork::Most(rate, burst) = self.accept_rate_per_network {
            let fine = gcra(rate, burst).is_some();
            check(
                fine,
                "accept_rate_per_network",
                &(rate, burst),
                "each 1 to 1000000",
            );
        }
        let day = MILLISECOND..=DAY;
        for (field, time) in [
            ("first_request", self.first_request),
            ("head", self.head),
            ("idle", self.idle),
            ("upgraded_idle", self.upgraded_idle),
            ("write_stall", self.write_stall),
        ] {
            check(day.contains(&time), field, &time, FROM_1_MS_TO_24_H);
        }
        if let Some(age) = self.max_age {
            check(
                (MILLISECOND..=30 * DAY).contains(&age),
                "max_age",
                &age,
                "1 ms to 30 days",
            );
        }
        if let Some(grace) = self.age_grace {
            check(grace <= DAY, "age_grace", &grace, "0 to 24 h");
        }
        if let Some(most) = self.max_requests {
            check(most > 0, "max_requests", &most, "at least 1");
        }
        let at_least_1 = [
            ("max_upgraded", self.max_upgraded),
            ("max_in_flight", self.max_in_flight),
        ];
        for (field, most) in at_least_1 {
            check(
                most != Some(0),
                field,
                &most.unwrap_or_default(),
                "at least 1",
            );
        }
        if let Some(most) = self.max_cancelled {
            check(most > 0, "max_cancelled", &most, "1 to 65535");
        }
        if let Some(most) = self.max_overhead {
            let fine = (1024..=MOST_OVERHEAD).contains(&most);
            check(fine, "max_overhead", &most, "1024 to 1073741824");
        }
        if let Some(every) = self.probe {
            check(day.contains(&every), "probe", &every, FROM_1_MS_TO_24_H);
        }
        let fine = (MILLISECOND..=Duration::from_secs(10)).contains(&self.precision);
        check(fine, "precision", &self.precision, "1 ms to 10 s");
        error.into_result()
    }
}

fn gcra(per_second: u32, burst: u32) -> Option<Gcra> {
    let range = 1..=MOST_PER_SECOND;
    if !range.contains(&per_second) || !range.contains(&burst) {
        return None;
    }
    Gcra::new(u64::from(MOST_PER_SECOND / per_second), burst)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_out_of_range_is_named() {
        let error = ConnGuard::builder()
            .max_connections(0)
            .reserve(1, [])
            .max_per_client(0)
            .max_per_network(0)
            .accept_rate(0, 1)
            .accept_rate_per_network(1, 0)
            .first_request(Duration::ZERO)
            .head(Duration::MAX)
            .idle(Duration::ZERO)
            .upgraded_idle(Duration::ZERO)
            .write_stall(Duration::ZERO)
            .max_age(Duration::ZERO)
            .age_grace(Duration::MAX)
            .max_requests(0)
            .max_upgraded(0)
            .max_in_flight(0)
            .max_cancelled(0)
            .max_overhead(1023)
            .probe(Duration::ZERO)
            .precision(Duration::ZERO)
            .build()
            .unwrap_err();
        let fields: Vec<_> = error
            .faults()
            .iter()
            .map(|fault| fault.field.clone())
            .collect();
        let all = [
            "max_connections",
            "reserve",
            "max_per_client",
            "max_per_network",
            "accept_rate",
            "accept_rate_per_network",
            "first_request",
            "head",
            "idle",
            "upgraded_idle",
            "write_stall",
            "max_age",
            "age_grace",
            "max_requests",
            "max_upgraded",
            "max_in_flight",
            "max_cancelled",
            "max_overhead",
            "probe",
            "precision",
        ];
        assert_eq!(fields, all);
        let text = error.to_string();
        assert!(
            text.contains("\n  idle is 0ns, allowed is 1 ms to 24 h"),
            "{text}"
        );
    }

    #[test]
    fn the_edges_of_the_ranges_are_in_them() {
        let least = ConnGuard::builder()
            .max_connections(1)
            .max_per_client(1)
            .max_requests(1);
        let least = least
            .accept_rate(1, 1)
            .age_grace(Duration::ZERO)
            .precision(MILLISECOND);
        least
            .idle(MILLISECOND)
            .max_age(MILLISECOND)
            .build()
            .unwrap();
        let most = ConnGuard::builder()
            .max_connections(MOST_CONNECTIONS)
            .max_age(30 * DAY);
        most.accept_rate(1_000_000, 1_000_000)
            .idle(DAY)
            .build()
            .unwrap();
    }

    #[test]
    fn a_client_s_share_follows_the_cap() {
        let share = |most| {
            let guard = ConnGuard::builder().max_connections(most).build().unwrap();
            guard.shared().limits.per_client
        };
        assert_eq!(
            [share(100), share(10_000), share(1 << 20)],
            [Some(64), Some(100), Some(10_485)]
        );
    }

    #[test]
    fn a_network_s_share_is_four_times_a_client_s() {
        let share =
            |builder: ConnGuardBuilder| builder.build().unwrap().shared().limits.per_network;
        let builder = || ConnGuard::builder().max_connections(1000);
        assert_eq!(share(builder()), Some(256));
        assert_eq!(share(builder().max_per_client(3)), Some(12));
        assert_eq!(share(builder().no_max_per_client()), None);
        assert_eq!(
            share(builder().no_max_per_client().max_per_network(7)),
            Some(7)
        );
        assert_eq!(share(builder().no_max_per_network()), None);
    }

    #[test]
    fn who_may_have_them_all_may_keep_them_all() {
        let kept = |builder: ConnGuardBuilder| builder.build().unwrap().shared().limits.keep_alive;
        assert_eq!(kept(ConnGuard::builder()), Some(8));
        assert_eq!(kept(ConnGuard::builder().no_max_per_client()), None);
        assert_eq!(
            kept(
                ConnGuard::builder()
                    .no_max_per_client()
                    .keep_alive_per_client(3)
            ),
            Some(3)
        );
        assert_eq!(kept(ConnGuard::builder().no_keep_alive_per_client()), None);
    }
}
