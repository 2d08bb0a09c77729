//! The time series, their names and their labels, for all adapters.

use palisade_core::{Event, Gauge, Guard, Mode, Phase, Reason};

pub(crate) const GUARD_COUNT: usize = Guard::ALL.len();
pub(crate) const REASON_COUNT: usize = Reason::ALL.len();
pub(crate) const MODE_COUNT: usize = Mode::ALL.len();
pub(crate) const GAUGE_COUNT: usize = Gauge::ALL.len();

/// The metrics of one name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) is_total: bool,
}

/// One time series of refused requests, cut bodies or closed connections. Its labels are enums, so
/// a peer cannot add a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Series {
    pub(crate) guard: Guard,
    pub(crate) reason: Reason,
    /// The phase in which a body was cut, or a connection closed or refused. `None` for refused
    /// requests.
    pub(crate) phase: Option<Phase>,
    pub(crate) mode: Mode,
}

/// One `T` for each [`Series`].
#[derive(Debug)]
pub(crate) struct BySeries<T>(Box<[T]>);

pub(crate) const REFUSED: Family = Family {
    name: "palisade_requests_refused_total",
    help: "Requests that a guard refused or, in shadow mode, would have refused",
    is_total: true,
};

pub(crate) const CUT: Family = Family {
    name: "palisade_bodies_cut_total",
    help: "Bodies that a guard cut or, in shadow mode, would have cut",
    is_total: true,
};

pub(crate) const ENDED: Family = Family {
    name: "palisade_connections_ended_total",
    help: "Connections that a guard closed or refused or, in shadow mode, would have",
    is_total: true,
};

pub(crate) const LIMIT_CHANGES: Family = Family {
    name: "palisade_limit_changes_total",
    help: "Changes of a limit at run time",
    is_total: true,
};

pub(crate) const LEVELS_IGNORED: Family = Family {
    name: "palisade_levels_ignored_total",
    help: "Guards with unreported gauges, because too many guards are alive",
    is_total: true,
};

/// The reasons for which guards refuse requests. These series start at zero, so that the first
/// refusal is an increase. Other series appear when they are first counted.
const REFUSALS: &[(Guard, Reason)] = &[
    (Guard::Ban, Reason::Banned),
    (Guard::Ban, Reason::Denied),
    (Guard::LoadShed, Reason::MemoryPressure),
    (Guard::LoadShed, Reason::RuntimeBusy),
    (Guard::RateLimit, Reason::RateExceeded),
    (Guard::RateLimit, Reason::NetworkRateExceeded),
    (Guard::RateLimit, Reason::FleetUnavailable),
    (Guard::RateLimit, Reason::CostOverBurst),
    (Guard::RateLimit, Reason::PeerMissing),
    (Guard::Timeout, Reason::Deadline),
    (Guard::Timeout, Reason::TotalDeadline),
    (Guard::BodyLimit, Reason::TooLarge),
    (Guard::BodyLimit, Reason::DecompressedTooLarge),
    (Guard::BodyLimit, Reason::BytesFull),
    (Guard::BodyLimit, Reason::TinyFrames),
    (Guard::SlowBody, Reason::Gap),
    (Guard::SlowBody, Reason::Rate),
    (Guard::SlowBody, Reason::BodyTotal),
    (Guard::ConcurrencyLimit, Reason::Full),
    (Guard::ConcurrencyLimit, Reason::ClientFull),
    (Guard::ConcurrencyLimit, Reason::QueueFull),
    (Guard::ConcurrencyLimit, Reason::QueueTimeout),
    (Guard::ConcurrencyLimit, Reason::Evicted),
    (Guard::Connection, Reason::UpgradedFull),
    (Guard::Connection, Reason::MemoryPressure),
    (Guard::Connection, Reason::RuntimeBusy),
    (Guard::Connection, Reason::BytesFull),
    (Guard::Connection, Reason::InFlightFull),
    (Guard::Connection, Reason::BadRequest),
    (Guard::Connection, Reason::HeadTooLarge),
    (Guard::Connection, Reason::ConnectRefused),
    (Guard::Connection, Reason::AppFailed),
];

/// The reasons for which guards cut bodies.
const CUTS: &[(Guard, Reason, Phase)] = &[
    (Guard::Timeout, Reason::TotalDeadline, Phase::ResponseBody),
    (Guard::BodyLimit, Reason::TooLarge, Phase::RequestBody),
    (Guard::BodyLimit, Reason::TooLarge, Phase::ResponseBody),
    (
        Guard::BodyLimit,
        Reason::DecompressedTooLarge,
        Phase::RequestBody,
    ),
    (Guard::BodyLimit, Reason::BytesFull, Phase::ResponseBody),
    (Guard::BodyLimit, Reason::TinyFrames, Phase::RequestBody),
    (Guard::SlowBody, Reason::Gap, Phase::RequestBody),
    (Guard::SlowBody, Reason::Gap, Phase::ResponseBody),
    (Guard::SlowBody, Reason::Rate, Phase::RequestBody),
    (Guard::SlowBody, Reason::Rate, Phase::ResponseBody),
    (Guard::SlowBody, Reason::BodyTotal, Phase::RequestBody),
    (Guard::SlowBody, Reason::BodyTotal, Phase::ResponseBody),
    (Guard::ConcurrencyLimit, Reason::Evicted, Phase::RequestBody),
    (
        Guard::ConcurrencyLimit,
        Reason::Evicted,
        Phase::ResponseBody,
    ),
    (Guard::Connection, Reason::WindowStall, Phase::ResponseBody),
];

/// The reasons for which connections are closed or refused.
const DISCONNECTS: &[(Guard, Reason, Phase)] = &[
    (Guard::Ban, Reason::Banned, Phase::Accept),
    (Guard::Ban, Reason::Denied, Phase::Accept),
    (Guard::Connection, Reason::ConnectionsFull, Phase::Accept),
    (
        Guard::Connection,
        Reason::ClientConnectionsFull,
        Phase::Accept,
    ),
    (
        Guard::Connection,
        Reason::NetworkConnectionsFull,
        Phase::Accept,
    ),
    (Guard::Connection, Reason::AcceptRate, Phase::Accept),
    (Guard::Connection, Reason::MemoryPressure, Phase::Accept),
    (Guard::Connection, Reason::MemoryPressure, Phase::Idle),
    (Guard::Connection, Reason::MemoryPressure, Phase::FirstHead),
    (Guard::Connection, Reason::MemoryPressure, Phase::NextHead),
    (Guard::Connection, Reason::MemoryPressure, Phase::Working),
    (Guard::Connection, Reason::MemoryPressure, Phase::Writing),
    (Guard::Connection, Reason::MemoryPressure, Phase::Upgraded),
    (Guard::Connection, Reason::MemoryPressure, Phase::Lingering),
    (Guard::Connection, Reason::BytesFull, Phase::Working),
    (Guard::Connection, Reason::BytesFull, Phase::Writing),
    (
        Guard::Connection,
        Reason::ConnectionEvicted,
        Phase::FirstHead,
    ),
    (
        Guard::Connection,
        Reason::ConnectionEvicted,
        Phase::NextHead,
    ),
    (Guard::Connection, Reason::ConnectionEvicted, Phase::Idle),
    (Guard::Connection, Reason::ConnectionEvicted, Phase::Writing),
    (
        Guard::Connection,
        Reason::ConnectionEvicted,
        Phase::Lingering,
    ),
    (Guard::Connection, Reason::FirstRequest, Phase::FirstHead),
    (Guard::Connection, Reason::SlowHead, Phase::NextHead),
    (Guard::Connection, Reason::SlowHead, Phase::Writing),
    (Guard::Connection, Reason::Idle, Phase::Idle),
    (Guard::Connection, Reason::Idle, Phase::Upgraded),
    (Guard::Connection, Reason::Idle, Phase::Writing),
    (Guard::Connection, Reason::WriteStall, Phase::Writing),
    (Guard::Connection, Reason::WindowStall, Phase::Writing),
    (Guard::Connection, Reason::CancelledRequests, Phase::Idle),
    (Guard::Connection, Reason::CancelledRequests, Phase::Working),
    (Guard::Connection, Reason::CancelledRequests, Phase::Writing),
    (Guard::Connection, Reason::NoProgress, Phase::FirstHead),
    (Guard::Connection, Reason::NoProgress, Phase::Idle),
    (Guard::Connection, Reason::NoProgress, Phase::Working),
    (Guard::Connection, Reason::NoProgress, Phase::Writing),
    (Guard::Connection, Reason::MaxAge, Phase::NextHead),
    (Guard::Connection, Reason::MaxAge, Phase::Idle),
    (Guard::Connection, Reason::MaxAge, Phase::Working),
    (Guard::Connection, Reason::MaxAge, Phase::Writing),
    (Guard::Connection, Reason::MaxRequests, Phase::Idle),
    (Guard::Connection, Reason::KeepAlivePerClient, Phase::Idle),
    (Guard::Connection, Reason::HungUp, Phase::Working),
    (Guard::Connection, Reason::HungUp, Phase::Writing),
    (Guard::Connection, Reason::ProxyHeader, Phase::FirstHead),
    (Guard::Connection, Reason::HandshakesFull, Phase::FirstHead),
    (Guard::Connection, Reason::Shutdown, Phase::FirstHead),
    (Guard::Connection, Reason::Shutdown, Phase::NextHead),
    (Guard::Connection, Reason::Shutdown, Phase::Idle),
    (Guard::Connection, Reason::Shutdown, Phase::Working),
    (Guard::Connection, Reason::Shutdown, Phase::Writing),
    (Guard::Connection, Reason::Shutdown, Phase::Upgraded),
];

/// Returns the family of `gauge`, or `None` if this crate does not know the gauge.
pub(crate) fn gauge_family(gauge: Gauge) -> Option<Family> {
    let (name, help) = match gauge {
        Gauge::Working => ("palisade_requests_working", "Requests that hold a permit"),
        Gauge::Waiting => (
            "palisade_requests_waiting",
            "Requests that wait for their own client and hold no permit",
        ),
        Gauge::Queued => ("palisade_queue_depth", "Requests that wait for a permit"),
        Gauge::Limit => (
            "palisade_concurrency_limit",
            "Requests that may hold a permit at once",
        ),
        Gauge::Admitted => (
            "palisade_requests_admitted_total",
            "Requests that a guard admitted",
        ),
        Gauge::Keys => ("palisade_tracked_keys", "Clients or other keys in debt"),
        Gauge::KeyCapacity => (
            "palisade_tracked_keys_limit",
            "Clients or other keys that the table can hold",
        ),
        Gauge::KeysEvicted => (
            "palisade_key_evictions_total",
            "Keys evicted while in debt, because the table was full of larger debts",
        ),
        Gauge::Connections => ("palisade_connections_open", "Connections that are open"),
        Gauge::ConnectionLimit => ("palisade_connections_limit", "Connections that may be open"),
        Gauge::ConnectionsOpened => (
            "palisade_connections_opened_total",
            "Connections that a guard admitted",
        ),
        Gauge::InFlight => (
            "palisade_requests_in_flight",
            "Requests in flight on all connections",
        ),
        Gauge::InFlightLimit => (
            "palisade_requests_in_flight_limit",
            "Requests that may be in flight on all connections",
        ),
        Gauge::Upgraded => (
            "palisade_connections_upgraded",
            "Connections that are upgraded to something other than HTTP",
        ),
        Gauge::UpgradedLimit => (
            "palisade_connections_upgraded_limit",
            "Connections that may be upgraded at once",
        ),
        Gauge::ForwardedPercent => (
            "palisade_forwarded_percent",
            "Percentage of requests that claim to be forwarded by a proxy",
        ),
        Gauge::ClientsUnnamed => (
            "palisade_clients_unnamed_total",
            "Requests of trusted proxies that did not name their client as expected",
        ),
        Gauge::TrustedNetworks => (
            "palisade_trusted_networks",
            "Ranges of addresses of trusted proxies",
        ),
        Gauge::TrustedNetworksAge => (
            "palisade_trusted_networks_age_seconds",
            "Time since the networks of trusted proxies were put in place",
        ),
        Gauge::ProxyProtocolNetworks => (
            "palisade_proxy_protocol_networks",
            "Ranges of addresses from which connections begin with a PROXY header",
        ),
        Gauge::ProxyProtocolNetworksAge => (
            "palisade_proxy_protocol_networks_age_seconds",
            "Time since the networks of PROXY headers were put in place",
        ),
        Gauge::PressurePercent => (
            "palisade_pressure_percent",
            "Pressure on connections, 0 to 100; from 80 on their timeouts get shorter",
        ),
        Gauge::MemoryUsed => (
            "palisade_memory_used_bytes",
            "Memory in use that the kernel cannot drop",
        ),
        Gauge::MemoryLimit => ("palisade_memory_limit_bytes", "Memory that may be in use"),
        Gauge::MemorySharePercent => (
            "palisade_memory_share_percent",
            "Share of requests that is admitted while memory is short and grows, 25 to 100",
        ),
        Gauge::RuntimeDelay => (
            "palisade_runtime_delay_milliseconds",
            "Time that a task waits in the run queue of the runtime",
        ),
        Gauge::RuntimeSharePercent => (
            "palisade_runtime_share_percent",
            "Share of requests that is admitted while the runtime is overloaded, 1 to 100",
        ),
        Gauge::MemoryOomKills => (
            "palisade_memory_oom_kills_total",
            "Processes of the control group that the kernel killed for lack of memory",
        ),
        Gauge::MemoryLimitHits => (
            "palisade_memory_limit_hits_total",
            "Times that the control group was at the limit of its memory",
        ),
        Gauge::MemoryStallPercent => (
            "palisade_memory_stall_percent",
            "Percentage of the last 10 s in which a task waited for memory",
        ),
        Gauge::BytesHeld => ("palisade_bytes_held", "Bytes of bodies that are held"),
        Gauge::BytesLimit => (
            "palisade_bytes_held_limit",
            "Bytes of bodies that may be held",
        ),
        Gauge::AcceptErrors => (
            "palisade_accept_errors_total",
            "Failures to accept a connection for lack of files or memory",
        ),
        Gauge::AcceptQueue => (
            "palisade_accept_queue",
            "Connections that wait in the kernel to be accepted",
        ),
        Gauge::AcceptQueueLimit => (
            "palisade_accept_queue_limit",
            "Connections that may wait in the kernel to be accepted",
        ),
        Gauge::ListenOverflows => (
            "palisade_listen_overflows_total",
            "Connections that the kernel dropped at the full accept queue of any listener",
        ),
        Gauge::ListenDrops => (
            "palisade_listen_drops_total",
            "Connections that the kernel dropped before they were accepted, at any listener",
        ),
        Gauge::Bans => ("palisade_bans_total", "Clients that were banned"),
        Gauge::AllowedNetworks => (
            "palisade_allowed_networks",
            "Ranges of addresses that are never refused as banned or denied",
        ),
        Gauge::AllowedNetworksAge => (
            "palisade_allowed_networks_age_seconds",
            "Time since the allowed networks were put in place",
        ),
        Gauge::DeniedNetworks => (
            "palisade_denied_networks",
            "Ranges of addresses that are denied",
        ),
        Gauge::DeniedNetworksAge => (
            "palisade_denied_networks_age_seconds",
            "Time since the denied networks were put in place",
        ),
        Gauge::FleetAlone => (
            "palisade_fleet_alone",
            "Whether this node counts alone, because the store does not answer",
        ),
        Gauge::FleetNodes => ("palisade_fleet_nodes", "Nodes that count together"),
        Gauge::FleetRoundTrip => (
            "palisade_fleet_round_trip_microseconds",
            "Time from the last call of the store to its answer",
        ),
        Gauge::FleetUnreported => (
            "palisade_fleet_unreported_cells",
            "Cells that were admitted and not reported to the store yet",
        ),
        Gauge::FleetClockSkew => (
            "palisade_fleet_clock_skew_milliseconds",
            "Time by which the clock of the store has moved against that of the node",
        ),
        Gauge::FleetCalls => ("palisade_fleet_calls_total", "Calls of the store"),
        Gauge::FleetAccounts => (
            "palisade_fleet_accounts_total",
            "Accounts in all calls of the store",
        ),
        Gauge::FleetFailures => (
            "palisade_fleet_failures_total",
            "Calls of the store that were not answered in time, or not rightly",
        ),
        Gauge::FleetWaited => (
            "palisade_fleet_waited_total",
            "Requests that have waited for an answer of the store",
        ),
        Gauge::FleetWaitedInVain => (
            "palisade_fleet_waited_in_vain_total",
            "Requests that have waited for an answer of the store for too long",
        ),
        Gauge::FleetWaitersFull => (
            "palisade_fleet_waiters_full_total",
            "Requests that did not wait, because as many waited as may",
        ),
        Gauge::FleetLocalOnly => (
            "palisade_fleet_local_only_total",
            "Accounts of requests that were counted by this node alone",
        ),
        Gauge::FleetWouldRefuse => (
            "palisade_fleet_would_refuse_total",
            "Requests that the fleet would have refused, in shadow mode",
        ),
        Gauge::FleetWouldWait => (
            "palisade_fleet_would_wait_total",
            "Requests that would have waited for the store, in shadow mode",
        ),
        _ => return None,
    };
    Some(Family {
        name,
        help,
        is_total: gauge.is_total(),
    })
}

// === Series ===

impl Series {
    /// Returns the series that counts `event`, if there is one.
    pub(crate) fn from_event(event: &Event<'_>) -> Option<Self> {
        let (violation, phase, mode) = match *event {
            Event::Refused {
                rejection, mode, ..
            } => (rejection.violation(), None, mode),
            Event::Cut {
                violation, mode, ..
            }
            | Event::Disconnected {
                violation, mode, ..
            } => (violation, Some(violation.phase), mode),
            _ => return None,
        };
        Some(Self {
            guard: violation.guard,
            reason: violation.reason,
            phase,
            mode,
        })
    }

    /// Returns every possible series. The series of one family stand together.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let phases = std::iter::once(None).chain(Phase::ALL.iter().copied().map(Some));
        phases.flat_map(|phase| {
            Guard::ALL.iter().flat_map(move |&guard| {
                Reason::ALL.iter().flat_map(move |&reason| {
                    Mode::ALL.iter().map(move |&mode| Self {
                        guard,
                        reason,
                        phase,
                        mode,
                    })
                })
            })
        })
    }

    /// Returns whether the guards of this workspace can add to this series.
    pub(crate) fn is_expected(self) -> bool {
        let Self {
            guard,
            reason,
            phase,
            mode,
        } = self;
        mode != Mode::Off
            && match phase {
                None => REFUSALS.contains(&(guard, reason)),
                Some(phase) if phase.is_of_connection() => {
                    DISCONNECTS.contains(&(guard, reason, phase))
                }
                Some(phase) => CUTS.contains(&(guard, reason, phase)),
            }
    }

    pub(crate) fn family(self) -> Family {
        match self.phase {
            None => REFUSED,
            Some(phase) if phase.is_of_connection() => ENDED,
            Some(_) => CUT,
        }
    }

    pub(crate) fn labels(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        [
            Some(("guard", self.guard.as_str())),
            Some(("reason", self.reason.as_str())),
            self.phase.map(|phase| ("phase", phase.as_str())),
            Some(("mode", self.mode.as_str())),
        ]
        .into_iter()
        .flatten()
    }

    /// Returns the index of this series in [`Self::all`].
    fn index(self) -> usize {
        let phase = self.phase.map_or(0, |phase| 1 + phase as usize);
        let guard = phase * GUARD_COUNT + self.guard as usize;
        (guard * REASON_COUNT + self.reason as usize) * MODE_COUNT + self.mode as usize
    }
}

// === BySeries ===

impl<T> BySeries<T> {
    pub(crate) fn new(make: impl Fn(Series) -> T) -> Self {
        Self(Series::all().map(make).collect())
    }

    /// Returns the entry of `series`. It is `None` only if an enum's `ALL` is incomplete.
    pub(crate) fn get(&self, series: Series) -> Option<&T> {
        self.0.get(series.index())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Series, &T)> {
        Series::all().zip(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_series_has_its_own_index() {
        let indices = BySeries::new(Series::index);
        for (index, (series, found)) in indices.iter().enumerate() {
            assert_eq!(*found, index, "{series:?}");
            assert_eq!(indices.get(series), Some(&index));
        }
        assert_eq!(
            indices.iter().count(),
            GUARD_COUNT * REASON_COUNT * MODE_COUNT * (1 + Phase::ALL.len())
        );
    }

    #[test]
    fn every_guard_and_every_reason_has_a_series_at_the_start() {
        for guard in Guard::ALL {
            let disconnects = DISCONNECTS.iter().any(|(listed, ..)| listed == guard);
            assert!(
                disconnects || REFUSALS.iter().any(|(listed, _)| listed == guard),
                "{guard}"
            );
        }
        for reason in Reason::ALL {
            let mut with_phase = DISCONNECTS.iter().chain(CUTS);
            assert!(
                with_phase.any(|(_, listed, _)| listed == reason)
                    || REFUSALS.iter().any(|(_, listed)| listed == reason),
                "{reason}"
            );
        }
        let expected = Series::all().filter(|series| series.is_expected()).count();
        assert_eq!(
            expected,
            2 * (REFUSALS.len() + CUTS.len() + DISCONNECTS.len())
        );
    }

    #[test]
    fn closed_connections_and_cut_bodies_share_no_phase() {
        assert!(
            DISCONNECTS
                .iter()
                .all(|(.., phase)| phase.is_of_connection())
        );
        assert!(!CUTS.iter().any(|(.., phase)| phase.is_of_connection()));
    }

    #[test]
    fn every_gauge_has_its_own_name_and_totals_end_in_total() {
        let gauges = Gauge::ALL.iter().map(|gauge| gauge_family(*gauge).unwrap());
        let families = || {
            gauges
                .clone()
                .chain([REFUSED, CUT, ENDED, LIMIT_CHANGES, LEVELS_IGNORED])
        };
        let names: HashSet<_> = families().map(|family| family.name).collect();
        assert_eq!(names.len(), families().count());
        for family in families() {
            assert_eq!(
                family.name.ends_with("_total"),
                family.is_total,
                "{}",
                family.name
            );
            assert!(family.name.starts_with("palisade_"));
        }
    }
}
