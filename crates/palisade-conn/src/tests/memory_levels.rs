//! Memory that stays at one level for an hour, and clients that come then.

use super::*;
use crate::{Budget, Memory, RuntimeLoad};
use bytes::Bytes;
use http::{Request, StatusCode, Version};
use http_body::{Body, Frame};
use http_body_util::{Empty, Full};
use palisade_core::shed::Shed;
use std::convert::Infallible;
use tokio::time::sleep;
use tower::{Layer, ServiceExt, service_fn};

const LIMIT: u64 = 256_000_000;

/// A guard over memory that the test reports.
struct Fixture {
    guard: ConnGuard,
    journal: Journal,
    memory: Memory,
}

fn fixture() -> Fixture {
    let memory = Memory::reported(LIMIT).unwrap();
    let builder = ConnGuard::builder()
        .max_connections(1000)
        .max_per_client(None)
        .accept_rate(None)
        .max_age(None)
        .critical(|head| head.uri.path() == "/health")
        .byte_budget(Budget::new(LIMIT / 4).unwrap());
    let (guard, journal) = tracking_guard(builder.memory(memory.clone()));
    Fixture {
        guard,
        journal,
        memory,
    }
}

impl Fixture {
    fn look(&self, thousandths: u64) {
        self.memory.report(LIMIT / 1000 * thousandths);
    }

    /// Looks for an hour, four times between two sweeps, at a level that trembles by less than a
    /// step of growth.
    async fn stand(&self, thousandths: u64) {
        self.look(thousandths);
        for sweep in 0..3600 * 4 {
            for look in 0..4 {
                let trembling = (sweep + look) % 3 * (LIMIT / 8192);
                self.memory.report(LIMIT / 1000 * thousandths + trembling);
            }
            sleep(TICK).await;
        }
    }

    /// Sends a request for this path on the connection of `pair`.
    async fn get(&self, pair: &Pair, path: &str) -> StatusCode {
        let handler = service_fn(async |_: Request<Empty<Bytes>>| {
            Ok::<_, Infallible>(http::Response::new(Full::<Bytes>::default()))
        });
        let mut request = Request::get(path).body(Empty::new()).unwrap();
        request.extensions_mut().insert(pair.server.conn().info());
        let service = self.guard.track_requests().layer(handler);
        service.oneshot(request).await.unwrap().status()
    }

    /// Returns how many of 32 requests are served, and of the probes beside them.
    async fn served(&self, pair: &Pair) -> (usize, usize) {
        let mut served = (0, 0);
        for _ in 0..32 {
            served.0 += usize::from(self.get(pair, "/").await == 200);
            served.1 += usize::from(self.get(pair, "/health").await == 200);
        }
        served
    }

    fn refuses_a_newcomer(&self) -> bool {
        let shared = self.guard.shared();
        let newcomer = shared.connection(peer(1), None);
        (0..16).any(|_| {
            matches!(
                shared.totals.shed_connection(&newcomer),
                Some(Shed::Refuse(_))
            )
        })
    }
}

#[tokio::test(start_paused = true)]
async fn three_quarters_in_use_for_an_hour_refuse_and_shorten_nothing() {
    let fixture = fixture();
    let guard = &fixture.guard;
    let worker = connect_working(guard, 1).unwrap();
    fixture.stand(750).await;
    assert_eq!(fixture.memory.share(), 1.0);
    assert_eq!(fixture.served(&worker.0).await, (32, 32));
    let mut silent = connect(guard);
    assert_eq!(silent.receive_buffer.load(Relaxed), 256 << 10);
    let mut idle = connect(guard);
    serve_once(&mut idle, false).await;
    let (silent, idle) = tokio::join!(
        read_until_closed(&mut silent.server),
        read_until_closed(&mut idle.server)
    );
    assert_eq!(silent.0, 10 * SECOND);
    assert_within_two_ticks(idle.0, 65 * SECOND);
    assert!(!guard.shared().evicts_for_memory());
    assert!(worker.0.decision().is_none() && worker.0.closing().is_none());
    assert_eq!(fixture.journal.refused(), []);
}

#[tokio::test(start_paused = true)]
async fn after_an_hour_near_the_limit_with_nothing_live_a_load_is_served() {
    for level in [970, 985] {
        let fixture = fixture();
        let guard = &fixture.guard;
        fixture.look(500);
        fixture.stand(level).await;
        assert_eq!(fixture.memory.share(), 1.0);
        // The heap is kept, and the load finds its room there.
        assert!(!fixture.refuses_a_newcomer());
        let pairs: Vec<_> = (0..60)
            .map(|client| connect_working(guard, client).unwrap())
            .collect();
        for (pair, _) in &pairs {
            assert_eq!(fixture.served(pair).await, (32, 32));
        }
        // Then it needs more. Some is refused, and no probe.
        let (pair, _) = &pairs[0];
        fixture.look(level + 5);
        let (served, probes) = fixture.served(pair).await;
        assert_eq!((served, probes), (if level < 980 { 16 } else { 8 }, 32));
        assert!(fixture.refuses_a_newcomer());
        // That is enough for it. In twelve looks, of 25 ms at this level, all is served.
        for _ in 0..12 {
            fixture.look(level + 5);
        }
        assert_eq!(fixture.served(pair).await, (32, 32));
        assert!(!fixture.refuses_a_newcomer());
        sleep(10 * SECOND).await;
        let is_open = |(pair, _): &(Pair, InFlight)| pair.decision().is_none();
        assert!(pairs.iter().all(is_open), "{level}");
        assert_eq!(fixture.journal.disconnected(), []);
        drop(pairs);
        assert_nothing_left(guard);
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn a_guard_with_defaults_watches_the_memory_of_the_process() {
    let guard = ConnGuard::default();
    let gate = &guard.shared().totals.memory;
    let memory = Memory::of_process();
    assert!(memory.used().is_some() && gate.memory.is_some());
    assert_eq!(gauge(&guard, Gauge::MemoryLimit), memory.limit());
    let budget = gate.budget.as_ref().map(Budget::limit);
    assert_eq!(budget, Some(Budget::of_process().limit()));
    assert!(gate.runtime.is_some());
}

#[tokio::test(start_paused = true)]
async fn what_is_used_and_both_shares_are_gauges() {
    let (memory, load) = (Memory::reported(1000).unwrap(), RuntimeLoad::reported());
    let builder = ConnGuard::builder().memory(memory.clone());
    let (guard, _) = tracking_guard(builder.runtime_load(load.clone()));
    let gauges = [
        Gauge::MemoryUsed,
        Gauge::MemoryLimit,
        Gauge::MemorySharePercent,
        Gauge::PressurePercent,
        Gauge::RuntimeDelay,
        Gauge::RuntimeSharePercent,
    ];
    let sampled = || gauges.map(|wanted| gauge(&guard, wanted));
    memory.report(900);
    assert_eq!(sampled(), [900, 1000, 100, 90, 0, 100].map(Some));
    memory.report(950);
    for _ in 0..10 {
        load.report(Duration::from_millis(400));
    }
    assert_eq!(sampled(), [950, 1000, 50, 95, 400, 25].map(Some));
}

/// A body that is not touched.
struct Untouched;

impl Body for Untouched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("a refused body is read");
    }
}

#[tokio::test(start_paused = true)]
async fn while_memory_grows_requests_are_refused_in_their_format_and_no_body_is_touched() {
    let fixture = fixture();
    let handler = service_fn(async |_: Request<Untouched>| {
        Ok::<_, Infallible>(http::Response::new(Full::<Bytes>::default()))
    });
    let service = fixture.guard.track_requests().layer(handler);
    let pair = connect(&fixture.guard);
    let send = async |version, kind: &'static str| {
        let request = Request::post("/").version(version);
        let mut request = request
            .header("content-type", kind)
            .body(Untouched)
            .unwrap();
        request.extensions_mut().insert(pair.server.conn().info());
        service.clone().oneshot(request).await.unwrap()
    };
    fixture.look(950);
    fixture.look(990); // One of four is served.
    let mut refused = [0; 2];
    for _ in 0..16 {
        let plain = send(Version::HTTP_11, "text/plain").await;
        refused[0] += usize::from(plain.status() == 503);
        let grpc = send(Version::HTTP_2, "application/grpc").await;
        let code = grpc.headers().get("grpc-status");
        refused[1] += usize::from(code.is_some_and(|code| code == "8"));
        assert_eq!(grpc.status(), 200);
    }
    assert_eq!(refused.iter().sum::<usize>(), 24);
    assert!(refused.iter().all(|refused| *refused > 0), "{refused:?}");
    let reasons = fixture.journal.refused();
    assert!(
        reasons
            .iter()
            .all(|(_, reason)| *reason == Reason::MemoryPressure)
    );
}

#[tokio::test(start_paused = true)]
async fn from_88_percent_on_connections_outside_of_the_share_end_with_an_answer() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let fixture = fixture();
        let pairs: Vec<_> = (0..16).map(|_| connect(&fixture.guard)).collect();
        let handler = service_fn(async |_: Request<Empty<Bytes>>| {
            Ok::<_, Infallible>(http::Response::new(Full::<Bytes>::default()))
        });
        let service = fixture.guard.track_requests().layer(handler);
        for (level, expected) in [(879, 0), (885, 8)] {
            fixture.look(860);
            fixture.look(level);
            for pair in &pairs {
                let mut request = Request::new(Empty::new());
                *request.version_mut() = version;
                request.extensions_mut().insert(pair.server.conn().info());
                let response = service.clone().oneshot(request).await.unwrap();
                assert_eq!(response.status(), 200);
                let closes = response.headers().get("connection");
                let is_told = closes.is_some_and(|value| value == "close");
                // On HTTP/2 the server sends a GOAWAY for it.
                let is_closing = pair.closing() == Some(Reason::MemoryPressure);
                assert_eq!(is_told, is_closing && version == Version::HTTP_11);
            }
            let closing = pairs.iter().filter(|pair| pair.closing().is_some());
            assert_eq!(closing.count(), expected, "{version:?} {level}");
        }
        assert_eq!(fixture.journal.refused(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn at_full_pressure_a_client_that_reads_64_kib_per_second_is_served() {
    let fixture = fixture();
    // The least limit that the guard enforces, and bursts as those of a window that opens seldom.
    for (timeout, pause) in [(7, 1), (7, 3), (300, 3)] {
        let builder = ConnGuard::builder().write_timeout(timeout * SECOND);
        let (guard, _) = tracking_guard(builder.memory(fixture.memory.clone()));
        fixture.look(1000);
        assert_eq!(guard.snapshot().pressure, 1.0);
        let (mut pair, _request) = connect_working(&guard, 1).unwrap();
        let mut reads = tokio::spawn(async move {
            let mut bytes = vec![0; 64 << 10];
            for _ in 0..120 / pause {
                for _ in 0..pause {
                    pair.client.read_exact(&mut bytes).await.unwrap();
                }
                sleep(pause as u32 * SECOND).await;
            }
            pair.client
        });
        let piece = [b'x'; 4096];
        loop {
            tokio::select! {
                written = pair.server.write_all(&piece) => written.unwrap(),
                _ = &mut reads => break,
            }
        }
    }
}
