//! A node of a fleet, what it has told, and what becomes of the requests of one client.

use crate::{SECRET, status};
use palisade_core::{Event, Gauge, GaugeSource, Guard, Metrics};
use palisade_fleet::{Fleet, FleetBuilder, OnFailure, QuotaStore};
use palisade_rate_limit::{Quota, RateLimitLayer};
use palisade_testkit::{Journal, clients::wait_until};
use parking_lot::Mutex;
use std::{
    error::Error,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// One node, with one policy.
pub(crate) struct Node {
    pub(crate) fleet: Fleet,
    pub(crate) layer: RateLimitLayer,
    pub(crate) journal: Journal,
    causes: Arc<Mutex<String>>,
}

/// Keeps the events, and the text of every cause.
struct Sink {
    journal: Journal,
    causes: Arc<Mutex<String>>,
}

impl Metrics for Sink {
    fn record(&self, event: &Event<'_>) {
        if let Event::FleetChanged { cause, .. } = event {
            let mut cause: Option<&dyn Error> = cause.map(|cause| cause as _);
            while let Some(error) = cause {
                *self.causes.lock() += &format!("{error} / {error:?}\n");
                cause = error.source();
            }
        }
        self.journal.record(event);
    }

    fn register(&self, source: Weak<dyn GaugeSource>) {
        self.journal.register(source);
    }
}

impl Node {
    /// Starts one of `nodes` nodes, with a policy of `quota`.
    pub(crate) fn start<S: QuotaStore>(
        builder: FleetBuilder<S>,
        nodes: u32,
        quota: Quota,
        on_failure: OnFailure,
    ) -> Self {
        let (journal, causes) = (Journal::default(), Arc::default());
        let sink = Sink {
            journal: journal.clone(),
            causes: Arc::clone(&causes),
        };
        let builder = builder.nodes(nodes).secret(SECRET).metrics(sink);
        let fleet = builder.start().unwrap().on_failure(on_failure);
        Self {
            layer: RateLimitLayer::new(quota.fleet(&fleet)).unwrap(),
            fleet,
            journal,
            causes,
        }
    }

    /// Starts all of `nodes` nodes, each with twice its share while it is alone.
    pub(crate) fn start_all(url: &str, nodes: u32, quota: Quota) -> Vec<Self> {
        let start = |_| {
            let builder = Fleet::redis(url).unwrap();
            Self::start(builder, nodes, quota, OnFailure::LocalShare(2.0))
        };
        (0..nodes).map(start).collect()
    }

    pub(crate) fn gauge(&self, gauge: Gauge) -> u64 {
        self.journal.gauge(Guard::RateLimit, gauge).unwrap()
    }

    /// Returns whether the node counts alone, as its events tell.
    pub(crate) fn is_alone(&self) -> bool {
        self.journal.fleet().last() == Some(&true)
    }

    /// Returns all that the node has said about itself, and why it was alone.
    pub(crate) fn texts(&self) -> String {
        let Self { fleet, layer, .. } = self;
        format!("{fleet:?} {layer:?} {}", self.causes.lock())
    }

    /// Waits until nothing is left to be reported.
    pub(crate) async fn wait_reported(&self) {
        let is_reported = || self.gauge(Gauge::FleetUnreported) == 0;
        wait_until("all is reported", is_reported).await;
    }
}

/// What has become of the requests of one client.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flood {
    pub(crate) served: u32,
    pub(crate) refused: u32,
    pub(crate) unavailable: u32,
    /// The longest time until an answer, and how many took longer than [`LONGEST`].
    pub(crate) longest: Duration,
    pub(crate) slow: u32,
    pub(crate) took: Duration,
}

/// The longest wait on sockets: 5 ms for the store, and the rest for a machine that is busy.
pub(crate) const LONGEST: Duration = Duration::from_millis(100);

impl Flood {
    /// Sends a request to each node, as often as this, with a pause of 2 ms between.
    pub(crate) async fn of(nodes: &[Node], client: u8, rounds: u32) -> Self {
        let (mut flood, mut rounds) = (Self::default(), 0..rounds);
        flood.send(nodes, client, || rounds.next().is_some()).await;
        flood
    }

    /// Sends a request to each node until `is_over`.
    pub(crate) async fn until(nodes: &[Node], client: u8, is_over: impl Fn() -> bool) -> Self {
        let mut flood = Self::default();
        flood.send(nodes, client, || !is_over()).await;
        flood
    }

    async fn send(&mut self, nodes: &[Node], client: u8, mut goes_on: impl FnMut() -> bool) {
        let started = Instant::now();
        while goes_on() {
            for node in nodes {
                let sent = Instant::now();
                match status(&node.layer, client).await {
                    200 => self.served += 1,
                    429 => self.refused += 1,
                    503 => self.unavailable += 1,
                    other => panic!("{other}"),
                }
                self.longest = self.longest.max(sent.elapsed());
                self.slow += u32::from(sent.elapsed() > LONGEST);
            }
            assert!(started.elapsed() < Duration::from_secs(10), "{self:?}");
            sleep(Duration::from_millis(2)).await;
        }
        self.took = started.elapsed();
        // A machine that is busy may hold back a few. Those that wait for a Redis that is dead are
        // all of them.
        let sent = self.served + self.refused + self.unavailable;
        assert!(self.slow <= 1 + sent / 20, "{self:?}");
    }
}
