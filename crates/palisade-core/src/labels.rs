//! The closed enums. They are the only things that may become a metric label.

/// An enum whose variants have a fixed, lower-case name and can be listed.
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

            /// The fixed name used in labels and logs.
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
    /// Which guard acted.
    #[non_exhaustive]
    Guard {
        /// `palisade-rate-limit`.
        RateLimit = "rate_limit",
        /// `palisade-timeout`.
        Timeout = "timeout",
        /// `palisade-body-limit`.
        BodyLimit = "body_limit",
        /// `palisade-slow-body`.
        SlowBody = "slow_body",
        /// `palisade-concurrency-limit`.
        ConcurrencyLimit = "concurrency_limit",
        /// `palisade-conn`.
        Connection = "connection",
    }
}

closed_enum! {
    /// Why it acted. Each reason fixes the unit of [`Violation`](crate::Violation)'s numbers.
    #[non_exhaustive]
    Reason {
        /// Every permit is taken. Requests.
        Full = "full",
        /// The client has as many requests present as one client may have. Requests.
        ClientFull = "client_full",
        /// The queue for a permit is full. Requests.
        QueueFull = "queue_full",
        /// Waited for a permit for as long as the queue allows. Milliseconds.
        QueueTimeout = "queue_timeout",
        /// As many requests wait for their own clients as may, and this one waited longest. Requests.
        Evicted = "evicted",
        /// More requests than the quota grants. Milliseconds until one more is granted; limit 0.
        RateExceeded = "rate_exceeded",
        /// The request costs more than the quota can ever grant at once. Cells.
        CostOverBurst = "cost_over_burst",
        /// Nothing in the request says who its peer is. No numbers.
        PeerMissing = "peer_missing",
        /// The body is longer than allowed. Bytes.
        TooLarge = "too_large",
        /// The body comes in more frames than its bytes justify. Frames.
        TinyFrames = "tiny_frames",
        /// The response head was not ready in time. Milliseconds.
        Deadline = "deadline",
        /// The response was not finished in time. Milliseconds.
        TotalDeadline = "total_deadline",
        /// Nothing came, or nothing was taken, for too long. Milliseconds.
        Gap = "gap",
        /// Fewer bytes than required came, or were taken, within a window. Bytes per second.
        Rate = "rate",
        /// The body as a whole took too long for its length. Milliseconds.
        BodyTotal = "body_total",
        /// As many connections are open as may be, and none of them can be spared. Connections.
        ConnectionsFull = "connections_full",
        /// The client has as many connections open as one client may have, and none of them can
        /// be spared. Connections.
        ClientConnectionsFull = "client_connections_full",
        /// The network of the client has as many connections open as one network may have, and none
        /// of those looked at can be spared. Connections.
        NetworkConnectionsFull = "network_connections_full",
        /// The client connects too often. Milliseconds until it may again; limit 0.
        AcceptRate = "accept_rate",
        /// Places are short, and this connection was of the least use. Connections.
        ConnectionEvicted = "connection_evicted",
        /// The first request head was not complete in time. Milliseconds.
        FirstRequest = "first_request",
        /// A later request head was not complete in time. Milliseconds.
        SlowHead = "slow_head",
        /// Nothing was in flight for too long. Milliseconds.
        Idle = "idle",
        /// Of the bytes that wait for the client none was taken for too long. Milliseconds.
        WriteStall = "write_stall",
        /// The connection is too old. Milliseconds.
        MaxAge = "max_age",
        /// The connection had its number of requests. Requests.
        MaxRequests = "max_requests",
        /// The client keeps more connections idle than one client may. Connections.
        KeepAlivePerClient = "keep_alive_per_client",
        /// The client hung up while its request was at work. No numbers.
        HungUp = "hung_up",
        /// Of a body that waits for an HTTP/2 window too little was taken for too long.
        /// Milliseconds.
        WindowStall = "window_stall",
        /// As many TLS handshakes are under way as may be, and this one made room for the next:
        /// its client or network has many of them, or it has sent nothing. No numbers.
        HandshakesFull = "handshakes_full",
        /// As many connections are upgraded as may be. Connections.
        UpgradedFull = "upgraded_full",
        /// As many requests are in flight on all connections as may be. Requests.
        InFlightFull = "in_flight_full",
        /// The client cancels most of its requests as soon as they begin. Requests.
        CancelledRequests = "cancelled_requests",
        /// The client sends too much that brings no request on. Bytes.
        NoProgress = "no_progress",
        /// The server shuts down. No numbers.
        Shutdown = "shutdown",
        /// The request is malformed, or two readers would read it differently: 400. No numbers.
        BadRequest = "bad_request",
        /// The request head is larger than the server takes: 431, or 414 for a URI. No numbers.
        HeadTooLarge = "head_too_large",
        /// CONNECT, to a server that is no proxy: 501. No numbers.
        ConnectRefused = "connect_refused",
        /// The app failed where it should have answered: an empty 500. No numbers.
        AppFailed = "app_failed",
    }
}

impl Phase {
    /// Whether it is one in the life of a connection rather than of a request.
    pub const fn is_of_connection(self) -> bool {
        self as usize >= Self::Accept as usize
    }
}

impl Reason {
    /// The unit of [`Violation::limit`](crate::Violation::limit) and `observed`.
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
            | Self::Deadline
            | Self::TotalDeadline
            | Self::Gap
            | Self::BodyTotal
            | Self::AcceptRate
            | Self::FirstRequest
            | Self::SlowHead
            | Self::Idle
            | Self::WriteStall
            | Self::MaxAge
            | Self::WindowStall => "milliseconds",
            Self::CostOverBurst => "cells",
            Self::TooLarge | Self::NoProgress => "bytes",
            Self::TinyFrames => "frames",
            Self::Rate => "bytes_per_second",
            Self::PeerMissing
            | Self::HungUp
            | Self::HandshakesFull
            | Self::Shutdown
            | Self::BadRequest
            | Self::HeadTooLarge
            | Self::ConnectRefused
            | Self::AppFailed => "none",
        }
    }

    /// The option that changes the limit, for the log line of a refusal.
    pub const fn option(self) -> &'static str {
        match self {
            Self::Full => "ConcurrencyLimitLayer::new(limit)",
            Self::ClientFull => "ConcurrencyLimitLayer::per_client(requests)",
            Self::QueueFull | Self::QueueTimeout => "ConcurrencyLimitLayer::queue(waiters, wait)",
            Self::Evicted => "ConcurrencyLimitLayer::present(requests)",
            Self::RateExceeded => "RateLimitLayer::new(quota)",
            Self::CostOverBurst => "Quota::burst(cells) or RateLimitLayer::cost(..)",
            Self::PeerMissing => "ClientIp::missing(policy)",
            Self::TooLarge => "BodyLimitLayer::new(bytes) or .response(bytes)",
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
            Self::FirstRequest => "ConnGuard::builder().first_request(duration)",
            Self::SlowHead => "ConnGuard::builder().head(duration)",
            Self::Idle => "ConnGuard::builder().idle(duration) or .upgraded_idle(duration)",
            Self::WriteStall | Self::WindowStall => "ConnGuard::builder().write_stall(duration)",
            Self::MaxAge => "ConnGuard::builder().max_age(duration)",
            Self::MaxRequests => "ConnGuard::builder().max_requests(requests)",
            Self::KeepAlivePerClient => "ConnGuard::builder().keep_alive_per_client(connections)",
            Self::HungUp => "ConnGuard::builder().probe(duration)",
            Self::UpgradedFull => "ConnGuard::builder().max_upgraded(connections)",
            Self::InFlightFull => "ConnGuard::builder().max_in_flight(requests)",
            Self::CancelledRequests => "ConnGuard::builder().max_cancelled(requests)",
            Self::NoProgress => "ConnGuard::builder().max_overhead(bytes)",
            Self::HandshakesFull => "Serve::max_handshakes(handshakes)",
            Self::Shutdown => "WithGracefulShutdown::drain(duration)",
            Self::HeadTooLarge => "Http::builder().max_header_size(bytes) or .max_headers(fields)",
            Self::ConnectRefused => "Http::builder().connect()",
            Self::BadRequest | Self::AppFailed => "none",
        }
    }
}

closed_enum! {
    /// Where in the life of a request, or of a connection, it happened.
    #[non_exhaustive]
    Phase {
        /// The head is here, nothing was done for it yet.
        RequestHead = "request_head",
        /// The request body is being received. Of a request: unless its end is told as a cut, the
        /// response head is unsent. Of a connection: its request is answered already.
        RequestBody = "request_body",
        /// The handler is at work, the response head is unsent.
        Handler = "handler",
        /// The response head is sent, its body is on the way.
        ResponseBody = "response_body",
        /// The connection is being accepted.
        Accept = "accept",
        /// The connection has not brought a whole request head yet.
        FirstHead = "first_head",
        /// The connection has begun a further request head.
        NextHead = "next_head",
        /// The connection has nothing in flight.
        Idle = "idle",
        /// The connection has a request in flight, or what it carries is not HTTP as far as
        /// anybody tells.
        Working = "working",
        /// The connection has bytes for its client that the client does not take.
        Writing = "writing",
        /// The connection was upgraded to something else than HTTP.
        Upgraded = "upgraded",
        /// The connection is ended from our side, and what still comes is thrown away.
        Lingering = "lingering",
    }
}

closed_enum! {
    /// Whether a guard acts on its verdicts.
    #[derive(Default)]
    Mode {
        /// Refuses and cuts.
        #[default]
        Enforce = "enforce",
        /// Records what it would have refused or cut, and lets it pass.
        Shadow = "shadow",
        /// Does not look.
        Off = "off",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_stands_at_its_own_place_in_all() {
        for (place, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, place);
        }
        for (place, phase) in Phase::ALL.iter().enumerate() {
            assert_eq!(*phase as usize, place);
        }
        for (place, guard) in Guard::ALL.iter().enumerate() {
            assert_eq!(*guard as usize, place);
        }
    }
}
