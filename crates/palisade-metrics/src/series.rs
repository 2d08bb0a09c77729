//! Which time series there are and what they are called: one place for all adapters.

use palisade_core::{Event, Gauge, Guard, Mode, Phase, Reason};

pub(crate) const GUARDS: usize = Guard::ALL.len();
pub(crate) const REASONS: usize = Reason::ALL.len();
pub(crate) const MODES: usize = Mode::ALL.len();
pub(crate) const LEVELS: usize = Gauge::ALL.len();

/// Metrics of one name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) is_total: bool,
}

/// One time series of refusals, cuts or ended connections. Its labels are enums, so no peer can
/// make a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Series {
    pub(crate) guard: Guard,
    pub(crate) reason: Reason,
    /// In which phase a body was cut, or, in a phase of a connection, that was ended. `None` for
    /// requests that were refused.
    pub(crate) cut_in: Option<Phase>,
    pub(crate) mode: Mode,
}

/// A `T` for each [`Series`].
#[derive(Debug)]
pub(crate) struct BySeries<T>(Box<[T]>);

pub(crate) const REFUSED: Family = Family {
    name: "palisade_requests_refused_total",
    help: "Requests that a guard answered itself or, in mode shadow, would have",
    is_total: true,
};

pub(crate) const CUT: Family = Family {
    name: "palisade_bodies_cut_total",
    help: "Bodies that a guard ended early or, in mode shadow, would have",
    is_total: true,
};

pub(crate) const ENDED: Family = Family {
    name: "palisade_connections_ended_total",
    help: "Connections that a guard ended or did not let in or, in mode shadow, would have",
    is_total: true,
};

pub(crate) const LIMIT_CHANGES: Family = Family {
    name: "palisade_limit_changes_total",
    help: "How often a limit was changed while the server ran",
    is_total: true,
};

pub(crate) const LEVELS_IGNORED: Family = Family {
    name: "palisade_levels_ignored_total",
    help: "Guards that are missing from the levels because too many are alive",
    is_total: true,
};

/// What guards refuse requests for. These series are there from the start, at zero, so that the
/// first refusal shows as an increase; others appear when they are first counted.
const REFUSALS: &[(Guard, Reason)] = &[
    (Guard::RateLimit, Reason::RateExceeded),
    (Guard::RateLimit, Reason::CostOverBurst),
    (Guard::RateLimit, Reason::PeerMissing),
    (Guard::Timeout, Reason::Deadline),
    (Guard::Timeout, Reason::TotalDeadline),
    (Guard::BodyLimit, Reason::TooLarge),
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
    (Guard::Connection, Reason::InFlightFull),
    (Guard::Connection, Reason::BadRequest),
    (Guard::Connection, Reason::HeadTooLarge),
    (Guard::Connection, Reason::ConnectRefused),
    (Guard::Connection, Reason::AppFailed),
];

/// What guards cut bodies for.
const CUTS: &[(Guard, Reason, Phase)] = &[
    (Guard::Timeout, Reason::TotalDeadline, Phase::ResponseBody),
    (Guard::BodyLimit, Reason::TooLarge, Phase::RequestBody),
    (Guard::BodyLimit, Reason::TooLarge, Phase::ResponseBody),
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

/// What connections are ended for.
const ENDINGS: &[(Guard, Reason, Phase)] = &[
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
    (Guard::Connection, Reason::HandshakesFull, Phase::FirstHead),
    (Guard::Connection, Reason::Shutdown, Phase::FirstHead),
    (Guard::Connection, Reason::Shutdown, Phase::NextHead),
    (Guard::Connection, Reason::Shutdown, Phase::Idle),
    (Guard::Connection, Reason::Shutdown, Phase::Working),
    (Guard::Connection, Reason::Shutdown, Phase::Writing),
    (Guard::Connection, Reason::Shutdown, Phase::Upgraded),
];

/// The family of `level`, or `None` if it is younger than this crate.
pub(crate) fn level_family(level: Gauge) -> Option<Family> {
    let (name, help) = match level {
        Gauge::Working => ("palisade_requests_working", "Requests that hold a slot"),
        Gauge::Waiting => (
            "palisade_requests_waiting",
            "Requests that wait for their own client and hold no slot",
        ),
        Gauge::Queued => ("palisade_queue_depth", "Requests that wait for a slot"),
        Gauge::Limit => (
            "palisade_concurrency_limit",
            "Requests that may hold a slot at once",
        ),
        Gauge::Admitted => (
            "palisade_requests_admitted_total",
            "Requests that a guard let in",
        ),
        Gauge::Keys => ("palisade_tracked_keys", "Clients or other keys with a debt"),
        Gauge::KeyCapacity => (
            "palisade_tracked_keys_limit",
            "Clients or other keys that can be told apart",
        ),
        Gauge::KeysEvicted => (
            "palisade_key_evictions_total",
            "Keys that lost a debt because the table was full of larger ones",
        ),
        Gauge::Connections => ("palisade_connections_open", "Connections that are open"),
        Gauge::ConnectionLimit => ("palisade_connections_limit", "Connections that may be open"),
        Gauge::ConnectionsOpened => (
            "palisade_connections_opened_total",
            "Connections that a guard let in",
        ),
        Gauge::InFlight => (
            "palisade_requests_in_flight",
            "Requests in flight on all connections",
        ),
        Gauge::InFlightLimit => (
            "palisade_requests_in_flight_limit",
            "Requests that may be in flight on them",
        ),
        Gauge::Upgraded => (
            "palisade_connections_upgraded",
            "Connections that became something else than HTTP",
        ),
        Gauge::UpgradedLimit => (
            "palisade_connections_upgraded_limit",
            "Connections that may become so",
        ),
        Gauge::ForwardedPercent => (
            "palisade_forwarded_percent",
            "Of a hundred requests, those that say that a proxy forwarded them",
        ),
        Gauge::PressurePercent => (
            "palisade_pressure_percent",
            "How hard it is going for connections; from 80 on their deadlines get shorter",
        ),
        Gauge::AcceptErrors => (
            "palisade_accept_errors_total",
            "Failures to accept a connection for want of files or memory",
        ),
        Gauge::AcceptQueue => (
            "palisade_accept_queue",
            "Connections that wait in the kernel to be accepted",
        ),
        Gauge::AcceptQueueLimit => (
            "palisade_accept_queue_limit",
            "Connections that may wait there",
        ),
        Gauge::ListenOverflows => (
            "palisade_listen_overflows_total",
            "Connections lost by the kernel at full accept queues, whoever listened",
        ),
        Gauge::ListenDrops => (
            "palisade_listen_drops_total",
            "Connections lost by the kernel before they were accepted, whoever listened",
        ),
        _ => return None,
    };
    Some(Family {
        name,
        help,
        is_total: level.is_total(),
    })
}

// === Series ===

impl Series {
    /// The series that `event` belongs to, if it belongs to one.
    pub(crate) fn of(event: &Event<'_>) -> Option<Self> {
        let (violation, cut, mode) = match *event {
            Event::Refused {
                rejection, mode, ..
            } => (rejection.violation(), false, mode),
            Event::Cut {
                violation, mode, ..
            }
            | Event::Disconnected {
                violation, mode, ..
            } => (violation, true, mode),
            _ => return None,
        };
        let cut_in = cut.then_some(violation.phase);
        Some(Self {
            guard: violation.guard,
            reason: violation.reason,
            cut_in,
            mode,
        })
    }

    /// Every series there can be, those of a family together.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let places = std::iter::once(None).chain(Phase::ALL.iter().copied().map(Some));
        places.flat_map(|cut_in| {
            Guard::ALL.iter().flat_map(move |&guard| {
                Reason::ALL.iter().flat_map(move |&reason| {
                    Mode::ALL.iter().map(move |&mode| Self {
                        guard,
                        reason,
                        cut_in,
                        mode,
                    })
                })
            })
        })
    }

    /// Whether the guards of this workspace can add to it.
    pub(crate) fn is_expected(self) -> bool {
        let Self {
            guard,
            reason,
            cut_in,
            mode,
        } = self;
        mode != Mode::Off
            && match cut_in {
                None => REFUSALS.contains(&(guard, reason)),
                Some(phase) if phase.is_of_connection() => {
                    ENDINGS.contains(&(guard, reason, phase))
                }
                Some(phase) => CUTS.contains(&(guard, reason, phase)),
            }
    }

    pub(crate) fn family(self) -> Family {
        match self.cut_in {
            None => REFUSED,
            Some(phase) if phase.is_of_connection() => ENDED,
            Some(_) => CUT,
        }
    }

    pub(crate) fn labels(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        [
            Some(("guard", self.guard.as_str())),
            Some(("reason", self.reason.as_str())),
            self.cut_in.map(|phase| ("phase", phase.as_str())),
            Some(("mode", self.mode.as_str())),
        ]
        .into_iter()
        .flatten()
    }

    /// Where it stands in [`Self::all`].
    fn place(self) -> usize {
        let family = self.cut_in.map_or(0, |phase| 1 + phase as usize);
        let guard = family * GUARDS + self.guard as usize;
        (guard * REASONS + self.reason as usize) * MODES + self.mode as usize
    }
}

// === BySeries ===

impl<T> BySeries<T> {
    pub(crate) fn new(make: impl Fn(Series) -> T) -> Self {
        Self(Series::all().map(make).collect())
    }

    /// Never `None` as long as each enum's `ALL` is complete.
    pub(crate) fn get(&self, series: Series) -> Option<&T> {
        self.0.get(series.place())
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
    fn every_series_has_a_place_of_its_own() {
        let places = BySeries::new(Series::place);
        for (place, (series, found)) in places.iter().enumerate() {
            assert_eq!(*found, place, "{series:?}");
            assert_eq!(places.get(series), Some(&place));
        }
        assert_eq!(
            places.iter().count(),
            GUARDS * REASONS * MODES * (1 + Phase::ALL.len())
        );
    }

    #[test]
    fn every_guard_and_every_reason_has_a_series_from_the_start() {
        for guard in Guard::ALL {
            let ends = ENDINGS.iter().any(|(of, ..)| of == guard);
            assert!(
                ends || REFUSALS.iter().any(|(of, _)| of == guard),
                "{guard}"
            );
        }
        for reason in Reason::ALL {
            let ends = ENDINGS.iter().chain(CUTS).any(|(_, of, _)| of == reason);
            assert!(
                ends || REFUSALS.iter().any(|(_, of)| of == reason),
                "{reason}"
            );
        }
        let expected = Series::all().filter(|series| series.is_expected()).count();
        assert_eq!(expected, 2 * (REFUSALS.len() + CUTS.len() + ENDINGS.len()));
    }

    #[test]
    fn the_phases_of_connections_are_a_family_of_their_own() {
        assert!(ENDINGS.iter().all(|(.., phase)| phase.is_of_connection()));
        assert!(!CUTS.iter().any(|(.., phase)| phase.is_of_connection()));
    }

    #[test]
    fn every_level_has_a_name_of_its_own_and_totals_end_in_total() {
        let levels = Gauge::ALL.iter().map(|level| level_family(*level).unwrap());
        let families = || {
            levels
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
