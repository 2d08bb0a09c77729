//! The closed enums. Nothing else may become a metric label.

/// Defines an enum that lists its variants and has a fixed name in lower case for each.
macro_rules! closed_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)+
        }

        impl $name {
            /// Every value, in the order of declaration, so that `ALL[value as usize] == value`.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Returns the name of the value in labels and logs. It never changes.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

closed_enum! {
    /// The guard that acted.
    #[non_exhaustive]
    Guard {
        /// `palisade-ban`, which keeps banned clients and denied networks out.
        Ban = "ban",
        /// `palisade-load-shed`, which refuses requests while memory grows or the runtime is
        /// overloaded.
        LoadShed = "load_shed",
        /// `palisade-rate-limit`, which limits the requests of a client per time.
        RateLimit = "rate_limit",
        /// `palisade-timeout`, which limits the time until a response.
        Timeout = "timeout",
        /// `palisade-body-limit`, which limits the bytes and the frames of a body.
        BodyLimit = "body_limit",
        /// `palisade-slow-body`, which limits how slow a body may be.
        SlowBody = "slow_body",
        /// `palisade-concurrency-limit`, which limits the requests that are handled at once.
        ConcurrencyLimit = "concurrency_limit",
        /// `palisade-conn`, which limits connections, and `palisade-serve`, which limits HTTP.
        Connection = "connection",
    }
}

closed_enum! {
    /// Why a guard acted.
    ///
    /// Each reason fixes the unit of the [limit](crate::Violation::limit) and of the
    /// [observed value](crate::Violation::observed), see [`Self::unit`]. The numbers of a reason
    /// without a unit have no meaning. [`Self::option`] names the option that sets the limit.
    #[non_exhaustive]
    Reason {
        /// All permits are taken, or as many requests are present as may be. Unit: requests.
        Full = "full",
        /// The client has as many requests present as one client may have. Unit: requests.
        ClientFull = "client_full",
        /// All permits are taken, and the queue for a permit is full. Unit: requests.
        QueueFull = "queue_full",
        /// The request has waited for a permit for as long as the queue allows. Unit: milliseconds.
        QueueTimeout = "queue_timeout",
        /// As many requests are present as may be, and this one has waited longest for its client.
        /// It was evicted to make room for a new one. Unit: requests.
        Evicted = "evicted",
        /// The client has used up its quota. The limit is 0, and the observed value is the time
        /// until the quota grants the request. Unit: milliseconds.
        RateExceeded = "rate_exceeded",
        /// The network of the client has used up its quota, by the requests of all its clients.
        /// The limit is 0, and the observed value is the time until the quota grants the request.
        /// Unit: milliseconds.
        NetworkRateExceeded = "network_rate_exceeded",
        /// The policy refuses while the other nodes that count the client cannot be asked.
        /// Unit: none.
        FleetUnavailable = "fleet_unavailable",
        /// The request costs more than the burst of the quota, so the quota can never grant it.
        /// Unit: cells, of which a request costs one by default.
        CostOverBurst = "cost_over_burst",
        /// The client cannot be identified, because the server does not pass the address of the
        /// peer on with the request. Unit: none.
        PeerMissing = "peer_missing",
        /// The body, or a single gRPC message of it, is longer than allowed. Unit: bytes.
        TooLarge = "too_large",
        /// The body is longer than allowed after its decompression. Unit: bytes.
        DecompressedTooLarge = "decompressed_too_large",
        /// The server holds as many bytes of bodies as it may, in all or of this client.
        /// Unit: bytes.
        BytesFull = "bytes_full",
        /// The body has more frames than its bytes justify. Unit: frames.
        TinyFrames = "tiny_frames",
        /// The response head was not ready in time. Waits for the client do not count.
        /// Unit: milliseconds.
        Deadline = "deadline",
        /// The response was not complete in time. Waits for the client count.
        /// Unit: milliseconds.
        TotalDeadline = "total_deadline",
        /// The body made no progress for too long: the client sent nothing of a request body, or
        /// took nothing of a response body. Unit: milliseconds.
        Gap = "gap",
        /// The client sent, or took, the body at less than the required rate.
        /// Unit: bytes per second.
        Rate = "rate",
        /// The whole body took too long for its length. Unit: milliseconds.
        BodyTotal = "body_total",
        /// As many connections are open as may be, and none of them can be evicted for this one.
        /// Unit: connections.
        ConnectionsFull = "connections_full",
        /// The client has as many connections open as one client may have, and none of them can be
        /// evicted. Unit: connections.
        ClientConnectionsFull = "client_connections_full",
        /// The network of the client has as many connections open as one network may have, and none
        /// of those examined can be evicted. Unit: connections.
        NetworkConnectionsFull = "network_connections_full",
        /// The client, or its network, opens connections too often. The limit is 0, and the
        /// observed value is the time until it may open the next one. Unit: milliseconds.
        AcceptRate = "accept_rate",
        /// The client is banned. The limit is 0, and the observed value is the time until it is
        /// admitted again. Unit: milliseconds.
        Banned = "banned",
        /// The address is in a network that is denied. Unit: none.
        Denied = "denied",
        /// The connection was evicted: it was the least useful one when another connection needed
        /// its place. Unit: connections.
        ConnectionEvicted = "connection_evicted",
        /// The first request head was not complete in time, counted from accept.
        /// Unit: milliseconds.
        FirstRequest = "first_request",
        /// A later request head was not complete in time, counted from its first byte.
        /// Unit: milliseconds.
        SlowHead = "slow_head",
        /// No request was in flight for too long, or an upgraded connection was silent for too
        /// long. Unit: milliseconds.
        Idle = "idle",
        /// The client took too few of the bytes that wait for it, for too long.
        /// Unit: milliseconds.
        WriteStall = "write_stall",
        /// The connection has reached its maximum age. Unit: milliseconds.
        MaxAge = "max_age",
        /// The connection has carried its maximum number of requests. Unit: requests.
        MaxRequests = "max_requests",
        /// The client keeps more connections idle than one client may. Unit: connections.
        KeepAlivePerClient = "keep_alive_per_client",
        /// The client closed the connection while its request was at work. Unit: none.
        HungUp = "hung_up",
        /// A peer that is a proxy did not begin its connection with a valid header of the PROXY
        /// protocol. The observed value is what arrived. Unit: bytes.
        ProxyHeader = "proxy_header",
        /// The client took too little of response bodies that wait for an HTTP/2 flow-control
        /// window, for too long. Unit: milliseconds.
        WindowStall = "window_stall",
        /// As many TLS handshakes are in progress as may be, and this one was evicted for a new
        /// one: its client or its network has many in progress, it has sent nothing, or it was
        /// picked at random. Unit: none.
        HandshakesFull = "handshakes_full",
        /// As many connections are upgraded as may be, in all or of this client.
        /// Unit: connections.
        UpgradedFull = "upgraded_full",
        /// As many requests are in flight on all connections as may be, in all or of this client.
        /// Unit: requests.
        InFlightFull = "in_flight_full",
        /// Memory is short and grows, and the request is outside of the share that is admitted.
        /// Unit: bytes.
        MemoryPressure = "memory_pressure",
        /// The runtime is overloaded, and the request is outside of the share that is admitted. The
        /// limit is the delay from which it is. Unit: milliseconds.
        RuntimeBusy = "runtime_busy",
        /// The client cancels most of its requests as soon as they begin. Unit: requests.
        CancelledRequests = "cancelled_requests",
        /// The client sends too many HTTP/2 bytes that carry no request on: PING, SETTINGS, window
        /// updates and the like. Unit: bytes.
        NoProgress = "no_progress",
        /// The server shuts down. Unit: none.
        Shutdown = "shutdown",
        /// The request is malformed, or two readers would read it differently. The response is 400.
        /// Unit: none.
        BadRequest = "bad_request",
        /// The request head is larger than the server accepts. The response is 431, or 414 for the
        /// URI. Unit: none.
        HeadTooLarge = "head_too_large",
        /// The method is CONNECT, and the server is not a proxy. The response is 501. Unit: none.
        ConnectRefused = "connect_refused",
        /// The app returned an error, or an interim status, in place of a response. The response is
        /// an empty 500. Unit: none.
        AppFailed = "app_failed",
    }
}

impl Phase {
    /// Returns whether only a connection can be in this phase. Both a request and a connection can
    /// be in [`Self::RequestBody`], for which this is `false`.
    ///
    /// ```
    /// use palisade_core::Phase;
    /// assert!(Phase::Idle.is_of_connection());
    /// assert!(!Phase::Handler.is_of_connection());
    /// assert!(!Phase::RequestBody.is_of_connection()); // Of both.
    /// ```
    pub const fn is_of_connection(self) -> bool {
        self as usize >= Self::Accept as usize
    }
}

impl Reason {
    /// Returns the unit of the [limit](crate::Violation::limit) and of the
    /// [observed value](crate::Violation::observed), or `"none"`.
    ///
    /// ```
    /// use palisade_core::Reason;
    /// assert_eq!(Reason::TooLarge.unit(), "bytes");
    /// assert_eq!(Reason::Gap.unit(), "milliseconds");
    /// assert_eq!(Reason::PeerMissing.unit(), "none");
    /// ```
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Full
            | Self::ClientFull
            | Self::QueueFull
            | Self::Evicted
            | Self::MaxRequests
            | Self::InFlightFull
            | Self::CancelledRequests => "requests",
            Self::ConnectionsFull
            | Self::ClientConnectionsFull
            | Self::NetworkConnectionsFull
            | Self::KeepAlivePerClient
            | Self::ConnectionEvicted
            | Self::UpgradedFull => "connections",
            Self::QueueTimeout
            | Self::RateExceeded
            | Self::NetworkRateExceeded
            | Self::Deadline
            | Self::TotalDeadline
            | Self::Gap
            | Self::BodyTotal
            | Self::AcceptRate
            | Self::Banned
            | Self::FirstRequest
            | Self::SlowHead
            | Self::Idle
            | Self::WriteStall
            | Self::MaxAge
            | Self::WindowStall
            | Self::RuntimeBusy => "milliseconds",
            Self::CostOverBurst => "cells",
            Self::TooLarge
            | Self::DecompressedTooLarge
            | Self::BytesFull
            | Self::NoProgress
            | Self::ProxyHeader
            | Self::MemoryPressure => "bytes",
            Self::TinyFrames => "frames",
            Self::Rate => "bytes_per_second",
            Self::FleetUnavailable
            | Self::PeerMissing
            | Self::Denied
            | Self::HungUp
            | Self::HandshakesFull
            | Self::Shutdown
            | Self::BadRequest
            | Self::HeadTooLarge
            | Self::ConnectRefused
            | Self::AppFailed => "none",
        }
    }

    /// Returns the option that sets the limit, for the log line of a refusal, or `"none"` if there
    /// is no such option.
    ///
    /// ```
    /// use palisade_core::Reason;
    /// assert_eq!(Reason::Full.option(), "ConcurrencyLimitLayer::new(limit)");
    /// assert_eq!(Reason::Gap.option(), "SlowBodyLayer, Pace::builder().gap(duration)");
    /// assert_eq!(Reason::BadRequest.option(), "none"); // No option admits it.
    /// ```
    pub const fn option(self) -> &'static str {
        match self {
            Self::Full => "ConcurrencyLimitLayer::new(limit)",
            Self::ClientFull => "ConcurrencyLimitLayer::per_client(requests)",
            Self::QueueFull | Self::QueueTimeout => "ConcurrencyLimitLayer::queue(waiters, wait)",
            Self::Evicted => "ConcurrencyLimitLayer::present(requests)",
            Self::RateExceeded => "Stack::rate_limit(quota) or RateLimitLayer::new(quota)",
            Self::NetworkRateExceeded => "Stack or RateLimitLayer, .wider(prefix, times)",
            Self::FleetUnavailable => "Fleet::on_failure(policy)",
            Self::CostOverBurst => "Quota::burst(cells) or RateLimitLayer::cost(..)",
            Self::PeerMissing => "ClientIp::missing(policy)",
            Self::TooLarge => "BodyLimitLayer::new(bytes) or .response(bytes)",
            Self::DecompressedTooLarge => "BodyLimitLayer::decompressed(bytes)",
            Self::BytesFull => "BodyBudgetLayer::new(budget)",
            Self::TinyFrames => "BodyLimitLayer::tiny_frames(..)",
            Self::Deadline => "TimeoutLayer::new(duration)",
            Self::TotalDeadline => {
                "TimeoutLayer::total(duration), or the client's own grpc-timeout"
            }
            Self::Gap => "SlowBodyLayer, Pace::builder().gap(duration)",
            Self::Rate => "SlowBodyLayer, Pace::builder().rate(bytes_per_second)",
            Self::BodyTotal => "SlowBodyLayer, Pace::builder().total(duration)",
            Self::ConnectionsFull | Self::ConnectionEvicted => {
                "ConnGuard::builder().max_connections(connections)"
            }
            Self::ClientConnectionsFull => "ConnGuard::builder().max_per_client(connections)",
            Self::NetworkConnectionsFull => "ConnGuard::builder().max_per_network(connections)",
            Self::AcceptRate => "ConnGuard::builder().accept_rate(per_second, burst)",
            Self::Banned => "Ban::builder().strikes(strikes, per), or Ban::unban(client)",
            Self::Denied => "Ban::builder().deny(networks) or .allow(networks)",
            Self::FirstRequest => "ConnGuard::builder().first_request_timeout(duration)",
            Self::SlowHead => "ConnGuard::builder().header_timeout(duration)",
            Self::Idle => {
                "ConnGuard::builder().idle_timeout(duration) or .upgraded_idle_timeout(duration)"
            }
            Self::WriteStall | Self::WindowStall => "ConnGuard::builder().write_timeout(duration)",
            Self::MaxAge => "ConnGuard::builder().max_age(duration)",
            Self::MaxRequests => "ConnGuard::builder().max_requests(requests)",
            Self::KeepAlivePerClient => "ConnGuard::builder().keep_alive_per_client(connections)",
            Self::HungUp => "ConnGuard::builder().probe_interval(duration)",
            Self::ProxyHeader => "ConnGuard::builder().proxy_protocol(networks)",
            Self::UpgradedFull => "ConnGuard::builder().max_upgraded(connections)",
            Self::InFlightFull => "ConnGuard::builder().max_in_flight(requests)",
            Self::MemoryPressure => {
                "ConnGuard::builder() or LoadShedLayer, .memory(memory) or .critical(requests)"
            }
            Self::RuntimeBusy => {
                "ConnGuard::builder() or LoadShedLayer, .runtime_load(load) or .critical(requests)"
            }
            Self::CancelledRequests => "ConnGuard::builder().max_cancelled(requests)",
            Self::NoProgress => "ConnGuard::builder().max_overhead(bytes)",
            Self::HandshakesFull => "Serve::max_handshakes(handshakes)",
            Self::Shutdown => "WithGracefulShutdown::drain(duration)",
            Self::HeadTooLarge => "Http::builder().max_header_size(bytes) or .max_headers(fields)",
            Self::ConnectRefused => "Http::builder().allow_connect()",
            Self::BadRequest | Self::AppFailed => "none",
        }
    }
}

closed_enum! {
    /// The phase of a request, or of a connection, in which a guard acted.
    ///
    /// The phases from [`Self::Accept`] on are those of a connection. [`Self::RequestBody`] is a
    /// phase of both.
    #[non_exhaustive]
    Phase {
        /// The request head has arrived, and the handler has not been called yet.
        RequestHead = "request_head",
        /// The request body is being received. For a request, the response head has not been sent,
        /// unless the event is a [cut](crate::Event::Cut). For a connection, the response to the
        /// request has already been sent.
        RequestBody = "request_body",
        /// The handler is at work, and the response head has not been sent.
        Handler = "handler",
        /// The response head has been sent, and the response body is being sent.
        ResponseBody = "response_body",
        /// The connection is being accepted.
        Accept = "accept",
        /// The connection has not completed a request head yet.
        FirstHead = "first_head",
        /// The connection has begun a further request head.
        NextHead = "next_head",
        /// The connection has no request in flight.
        Idle = "idle",
        /// The connection has a request in flight, or its requests are not
        /// [tracked](crate::Event::Untracked) and it has sent something.
        Working = "working",
        /// The connection has bytes for its client that the client does not take.
        Writing = "writing",
        /// The connection has been upgraded to something other than HTTP.
        Upgraded = "upgraded",
        /// The server has closed its side of the connection, and discards what still arrives.
        Lingering = "lingering",
    }
}

closed_enum! {
    /// Whether a guard acts on its decisions.
    #[derive(Default)]
    Mode {
        /// The guard refuses, cuts and closes what breaks a rule.
        #[default]
        Enforce = "enforce",
        /// The guard records what it would refuse, cut or close, and lets it pass.
        Shadow = "shadow",
        /// The guard checks nothing.
        Off = "off",
    }
}

closed_enum! {
    /// Where the address of a [`Client`](crate::Client) comes from.
    #[non_exhaustive]
    AddressSource {
        /// The other end of the socket. A firewall of this machine sees the same address.
        Peer = "peer",
        /// The header of the PROXY protocol, which a trusted proxy has sent before all else.
        Proxy = "proxy",
        /// A field of the request, which a trusted proxy has written, or an IPv4 address that was
        /// taken from an IPv6 address.
        Forwarded = "forwarded",
    }
}

impl Mode {
    /// Returns the weaker of two modes: what two guards that must agree do.
    ///
    /// ```
    /// use palisade_core::Mode;
    /// assert_eq!(Mode::Enforce.weaker(Mode::Shadow), Mode::Shadow);
    /// assert_eq!(Mode::Off.weaker(Mode::Shadow), Mode::Off);
    /// ```
    pub const fn weaker(self, other: Self) -> Self {
        if self as u8 >= other as u8 {
            self
        } else {
            other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_at_its_own_index_in_all() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        for (index, phase) in Phase::ALL.iter().enumerate() {
            assert_eq!(*phase as usize, index);
        }
        for (index, guard) in Guard::ALL.iter().enumerate() {
            assert_eq!(*guard as usize, index);
        }
    }
}
