//! Which requests are refused, by numbers that the test reports.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode, Version, header::RETRY_AFTER};
use http_body_util::{BodyExt, Empty, Full};
use palisade_core::{Event, Gauge, Guard, Metrics, Reason};
use palisade_load_shed::{LoadShedLayer, Memory, Mode, RuntimeLoad};
use palisade_metrics::Snapshot;
use palisade_testkit::{
    Journal,
    example::{BoxError, Echo, Layer, ServiceExt, service_fn},
};
use std::{panic::AssertUnwindSafe, sync::Mutex, sync::mpsc::channel, time::Duration};

const LIMIT: u64 = 1_000_000;
const SECOND: Duration = Duration::from_secs(1);

/// A layer over memory and load that the test reports.
struct Fixture {
    memory: Memory,
    load: RuntimeLoad,
    journal: Journal,
    layer: LoadShedLayer,
}

fn fixture() -> Fixture {
    let (memory, load) = (Memory::reported(LIMIT).unwrap(), RuntimeLoad::reported());
    let journal = Journal::default();
    let layer = LoadShedLayer::new()
        .memory(memory.clone())
        .runtime_load(load.clone())
        .critical(|head| head.uri.path() == "/health")
        .sheddable(|head| head.uri.path() == "/export")
        .metrics(journal.clone());
    Fixture {
        memory,
        load,
        journal,
        layer,
    }
}

impl Fixture {
    /// Reports growth to this part of the limit. Half of the requests is to be admitted then.
    fn grow_to(&self, percent: u64) {
        self.memory.report(LIMIT / 100 * (percent - 1));
        self.memory.report(LIMIT / 100 * percent);
        assert_eq!(self.memory.share(), 0.5);
    }

    /// Reports a delay of two seconds for as long as it takes. One request in 64 is to be admitted
    /// then.
    fn overload(&self) {
        (0..12).for_each(|_| self.load.report(2 * SECOND));
        assert!(self.load.share() < 0.02);
    }

    async fn answer(&self, request: Request<Empty<Bytes>>) -> Response<Bytes> {
        let response = self.layer.layer(Echo).oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        Response::from_parts(head, body.collect().await.unwrap().to_bytes())
    }

    /// Returns how many of 64 requests are served.
    async fn served(&self, path: &str) -> usize {
        let mut served = 0;
        for _ in 0..64 {
            let request = Request::get(path).body(Empty::new()).unwrap();
            let response = self.answer(request).await;
            if response.status() == StatusCode::OK {
                served += 1;
                continue;
            }
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            let seconds = response.headers()[RETRY_AFTER].to_str().unwrap();
            assert!((1..=5).contains(&seconds.parse::<u64>().unwrap()));
        }
        assert_eq!(self.load.in_flight(), 0);
        served
    }
}

#[tokio::test(start_paused = true)]
async fn at_rest_every_request_is_served_however_much_memory_is_in_use() {
    let fixture = fixture();
    assert_eq!(fixture.served("/").await, 64);
    for _ in 0..100 {
        fixture.memory.report(LIMIT / 1000 * 985);
        fixture.load.report(Duration::from_millis(200));
    }
    assert_eq!(fixture.served("/").await, 64);
    assert_eq!(fixture.journal.refused(), []);
}

#[tokio::test(start_paused = true)]
async fn while_memory_grows_a_share_is_served_above_95_percent_and_all_below() {
    for (percent, served, served_of_sheddable) in [(91, 64, 64), (94, 64, 32), (96, 32, 32)] {
        let fixture = fixture();
        fixture.grow_to(percent);
        assert_eq!(fixture.served("/").await, served, "{percent} %");
        let of_sheddable = fixture.served("/export").await;
        assert_eq!(of_sheddable, served_of_sheddable, "{percent} %");
        assert_eq!(fixture.served("/health").await, 64);
        let refused = 128 - served - served_of_sheddable;
        let expected = vec![(Guard::LoadShed, Reason::MemoryPressure); refused];
        assert_eq!(fixture.journal.refused(), expected);
        // It stands still.
        (0..12).for_each(|_| fixture.memory.report(LIMIT / 100 * percent));
        assert_eq!(fixture.served("/").await, 64);
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_runtime_is_overloaded_a_share_is_served_and_all_that_is_critical() {
    let fixture = fixture();
    fixture.overload();
    assert_eq!(fixture.served("/").await, 1);
    assert_eq!(fixture.served("/export").await, 0);
    assert_eq!(fixture.served("/health").await, 64);
    let expected = vec![(Guard::LoadShed, Reason::RuntimeBusy); 127];
    assert_eq!(fixture.journal.refused(), expected);
    (0..10).for_each(|_| fixture.load.report(Duration::ZERO));
    assert_eq!(fixture.served("/").await, 64);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_plain_http_has_a_text_and_one_of_grpc_a_status() {
    let fixture = fixture();
    fixture.overload();
    let response = fixture.answer(Request::default()).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.body(), "server is busy");
    let call = Request::post("/echo.Echo/Unary").version(Version::HTTP_2);
    let call = call.header("content-type", "application/grpc");
    let response = fixture.answer(call.body(Empty::new()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "8"); // RESOURCE_EXHAUSTED
    assert_eq!(response.headers()["grpc-message"], "server is busy");
    let pushback = response.headers()["grpc-retry-pushback-ms"].to_str();
    assert!((1000..=5000).contains(&pushback.unwrap().parse::<u64>().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn shadow_mode_reports_what_it_would_refuse_and_off_asks_nothing() {
    let mut fixture = fixture();
    fixture.grow_to(96);
    fixture.layer = fixture.layer.mode(Mode::Shadow);
    assert_eq!(fixture.served("/").await, 64);
    assert_eq!(fixture.journal.refused().len(), 32);
    fixture.layer = fixture.layer.mode(Mode::Off);
    assert_eq!(fixture.served("/").await, 64);
    assert_eq!(fixture.journal.refused().len(), 32);
}

#[tokio::test(start_paused = true)]
async fn clones_and_their_services_share_the_ranks() {
    let fixture = fixture();
    fixture.grow_to(96);
    let (layer, clone) = (fixture.layer.clone(), fixture.layer.clone());
    let mut served = 0;
    for n in 0..64 {
        let layer = if n % 2 == 0 { &layer } else { &clone };
        let request = Request::new(Empty::<Bytes>::new());
        let response = layer.layer(Echo).oneshot(request).await.unwrap();
        served += i32::from(response.status() == StatusCode::OK);
    }
    assert_eq!(served, 32);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_removed_refuses_nothing() {
    let mut fixture = fixture();
    fixture.grow_to(96);
    fixture.overload();
    fixture.layer = fixture.layer.memory(None);
    assert_eq!(fixture.served("/").await, 1);
    fixture.layer = fixture.layer.runtime_load(None);
    assert_eq!(fixture.served("/").await, 64);
}

#[tokio::test(start_paused = true)]
async fn a_request_is_in_flight_until_it_is_answered_fails_panics_or_is_dropped() {
    let Fixture { load, layer, .. } = fixture();
    let handler = service_fn(async |request: Request<_>| match request.uri().path() {
        "/fails" => Err(BoxError::from("it fails")),
        "/panics" => panic!("the handler panics"),
        "/hangs" => std::future::pending().await,
        _ => Ok(Response::new(Full::<Bytes>::default())),
    });
    let service = layer.layer(handler);
    let send = |path| {
        let request = Request::get(path).body(Empty::<Bytes>::new()).unwrap();
        service.clone().oneshot(request)
    };
    let mut hangs = Box::pin(send("/hangs"));
    assert!(hangs.as_mut().now_or_never().is_none());
    assert_eq!(load.in_flight(), 1);
    drop(hangs);
    assert_eq!(load.in_flight(), 0);
    assert_eq!(send("/").await.unwrap().status(), StatusCode::OK);
    assert_eq!(load.in_flight(), 0);
    assert!(send("/fails").await.is_err());
    assert_eq!(load.in_flight(), 0);
    let panic = AssertUnwindSafe(send("/panics")).catch_unwind().await;
    assert!(panic.is_err());
    assert_eq!(load.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_gauges_are_those_of_the_sources_whenever_the_metrics_are_set() {
    let memory = || {
        let memory = Memory::reported(LIMIT).unwrap();
        memory.report(LIMIT / 2);
        memory
    };
    let (before, after) = (Snapshot::new(), Snapshot::new());
    let first = LoadShedLayer::new().metrics(before.clone());
    let first = first.memory(memory()).runtime_load(None);
    let second = LoadShedLayer::new().memory(memory()).runtime_load(None);
    let second = second.metrics(after.clone());
    for metrics in [before, after] {
        let gauge = |gauge| metrics.gauge(Guard::LoadShed, gauge);
        assert_eq!(gauge(Gauge::MemoryUsed), Some(LIMIT / 2));
        assert_eq!(gauge(Gauge::MemoryLimit), Some(LIMIT));
        assert_eq!(gauge(Gauge::MemorySharePercent), Some(100));
        assert_eq!(gauge(Gauge::RuntimeDelay), None);
    }
    drop((first, second));
}

/// Metrics that pass the delay of each stall on.
struct Stalls(Mutex<std::sync::mpsc::Sender<Duration>>);

impl Metrics for Stalls {
    fn record(&self, event: &Event<'_>) {
        if let Event::RuntimeStalled { delay, .. } = event {
            let _ = self.0.lock().unwrap().send(*delay);
        }
    }
}

#[tokio::test]
async fn a_runtime_that_runs_no_tasks_is_reported_to_the_metrics_of_the_layer() {
    let (sender, stalls) = channel();
    let layer = LoadShedLayer::new().metrics(Stalls(Mutex::new(sender)));
    // Blocks the only worker of the runtime until that is reported.
    let delay = stalls.recv_timeout(30 * SECOND).unwrap();
    assert!(delay >= SECOND, "{delay:?}");
    drop(layer);
}
