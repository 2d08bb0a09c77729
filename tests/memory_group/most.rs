//! What the server tells of itself: the most that it has at one time, beside what its bound allows,
//! and what its guards did to honest clients.

use super::ALLOCATOR;
use palisade::{
    Budget,
    conn::MemoryBound,
    types::{Event, Gauge, GaugeSource, Metrics},
};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, Mutex, Weak},
    thread,
    time::Duration,
};

/// What the runtime keeps does not count beside this.
const MUCH: u64 = 8 << 20;
/// How often the server looks at itself.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// The most of each part of the bound at one time, and what the part allows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Most {
    pub(crate) connections: u64,
    pub(crate) max_connections: u64,
    pub(crate) in_flight: u64,
    pub(crate) max_in_flight: u64,
    /// The bytes that the budget held.
    pub(crate) held: u64,
    pub(crate) byte_budget: u64,
    /// What was allocated since the start, in percent of what the bound allows for the connections,
    /// requests and bytes of that time. Where it is [`MUCH`].
    pub(crate) live_percent: u64,
    /// What the bound allows for the above, in bytes.
    pub(crate) allowed: u64,
}

/// The gauges of the guards, and what they did to honest clients.
#[derive(Clone, Default)]
pub(crate) struct Gauges(Arc<Records>);

#[derive(Default)]
struct Records {
    sources: Mutex<Vec<Weak<dyn GaugeSource>>>,
    to_honest: Mutex<BTreeMap<String, usize>>,
}

/// What the server looks at.
pub(crate) struct Watched {
    pub(crate) gauges: Gauges,
    pub(crate) budget: Budget,
    pub(crate) bound: MemoryBound,
    /// What a handler keeps.
    pub(crate) handler_bytes: u64,
}

/// The connections, the requests and the bytes of one time.
#[derive(Clone, Copy)]
struct Parts {
    connections: u64,
    in_flight: u64,
    held: u64,
}

impl Metrics for Gauges {
    fn record(&self, event: &Event<'_>) {
        let (what, violation, conn) = match event {
            Event::Refused {
                rejection, conn, ..
            } => ("refused", rejection.violation(), *conn),
            Event::Cut {
                violation, conn, ..
            } => ("cut", *violation, *conn),
            Event::Disconnected {
                violation, conn, ..
            } => ("closed", *violation, Some(*conn)),
            _ => return,
        };
        let is_honest = conn.is_some_and(|conn| match conn.peer().ip() {
            IpAddr::V4(peer) => peer.octets()[1] == super::HONEST_NETWORK,
            IpAddr::V6(_) => false,
        });
        if is_honest {
            let event = format!("{what}: {:?} {:?}", violation.reason, violation.phase);
            *self.0.to_honest.lock().unwrap().entry(event).or_default() += 1;
        }
    }

    fn register(&self, gauges: Weak<dyn GaugeSource>) {
        self.0.sources.lock().unwrap().push(gauges);
    }
}

impl Gauges {
    /// Returns what the guards did to honest clients, and how often.
    pub(crate) fn to_honest(&self) -> String {
        format!("{:?}", self.0.to_honest.lock().unwrap())
    }

    /// Returns the values of these gauges, each the sum of all guards.
    fn get<const COUNT: usize>(&self, wanted: [Gauge; COUNT]) -> [u64; COUNT] {
        let mut sums = [0; COUNT];
        let sources = self.0.sources.lock().unwrap();
        for source in sources.iter().filter_map(Weak::upgrade) {
            source.sample(&mut |gauge, value| {
                let found = wanted.iter().zip(&mut sums).find(|(one, _)| **one == gauge);
                if let Some((_, sum)) = found {
                    *sum += value;
                }
            });
        }
        sums
    }
}

impl Watched {
    /// Looks again and again, on a thread of its own.
    pub(crate) fn watch(self) -> Arc<Mutex<Most>> {
        let most = Arc::new(Mutex::new(Most {
            max_connections: self.bound.connections,
            max_in_flight: self.bound.requests,
            byte_budget: self.bound.budget.unwrap_or(0),
            ..Most::default()
        }));
        let noted = most.clone();
        let live_at_start = ALLOCATOR.live() as u64;
        thread::spawn(move || {
            loop {
                self.look(live_at_start, &noted);
                thread::park_timeout(LOOK_INTERVAL);
            }
        });
        most
    }

    fn look(&self, live_at_start: u64, most: &Mutex<Most>) {
        let before = self.parts();
        let live = (ALLOCATOR.live() as u64).saturating_sub(live_at_start);
        let after = self.parts();
        // What was allocated belongs to one of the two times.
        let allowed = [before, after].map(|parts| self.allowed(parts));
        let allowed = allowed.into_iter().max().unwrap_or(0);
        let mut most = most.lock().unwrap();
        most.connections = most.connections.max(after.connections);
        most.in_flight = most.in_flight.max(after.in_flight);
        most.held = most.held.max(after.held);
        if live >= MUCH {
            most.live_percent = most.live_percent.max(live * 100 / allowed.max(1));
        }
        let at_most = Parts {
            connections: most.connections,
            in_flight: most.in_flight,
            held: most.held,
        };
        most.allowed = self.bound.base + self.allowed(at_most);
    }

    fn parts(&self) -> Parts {
        let [connections, in_flight] = self.gauges.get([Gauge::Connections, Gauge::InFlight]);
        Parts {
            connections,
            in_flight,
            held: self.budget.held(),
        }
    }

    /// Returns what the bound allows for these parts, without the base.
    fn allowed(&self, parts: Parts) -> u64 {
        let request = self.bound.request_bytes + self.handler_bytes;
        self.bound.tables
            + parts.held
            + parts.connections * self.bound.connection_bytes
            + parts.in_flight * request
    }
}

impl Most {
    pub(crate) fn to_text(self) -> String {
        let Self {
            connections,
            max_connections,
            in_flight,
            max_in_flight,
            held,
            byte_budget,
            live_percent,
            allowed,
        } = self;
        format!(
            "{connections} {max_connections} {in_flight} {max_in_flight} {held} {byte_budget} \
             {live_percent} {allowed}"
        )
    }

    /// Asserts that each part was within what the bound has for it.
    pub(crate) fn assert_within_bound(self) {
        assert!(self.held <= self.byte_budget, "{self:?}");
        assert!(self.connections <= self.max_connections, "{self:?}");
        assert!(self.in_flight <= self.max_in_flight, "{self:?}");
        assert!(self.live_percent <= 100, "{self:?}");
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let numbers: Vec<u64> = text.split(' ').flat_map(str::parse).collect();
        let numbers: [u64; 8] = numbers.try_into().ok()?;
        let [
            connections,
            max_connections,
            in_flight,
            max_in_flight,
            held,
            ..,
        ] = numbers;
        let [.., byte_budget, live_percent, allowed] = numbers;
        Some(Self {
            connections,
            max_connections,
            in_flight,
            max_in_flight,
            held,
            byte_budget,
            live_percent,
            allowed,
        })
    }
}
