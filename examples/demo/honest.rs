//! Honest clients: each sends a few requests per second from its own address.

use crate::clients;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{Either, Full};
use hyper::client::conn::http1::SendRequest;
use palisade_testkit::{bodies::Pieces, guarded::ServerKind, open_loop::Pool};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout, timeout_at},
};

/// The number of clients that send small requests.
const CLIENTS: u8 = 8;
/// The interval between the requests of a client: `/`, a small upload and `/work` in turn, four
/// requests on a connection.
const REQUEST_INTERVAL: Duration = Duration::from_millis(250);
/// The time after which a client gives up on a response.
const PATIENCE: Duration = Duration::from_secs(2);
/// The length of a small upload.
const SMALL_UPLOAD_BYTES: usize = 2048;
/// The number of frames of a slow upload. One more client repeatedly uploads them: 80 KiB at
/// 32 KiB/s.
const SLOW_UPLOAD_FRAMES: u64 = 10;
/// The length of a frame of a slow upload.
const SLOW_UPLOAD_FRAME_BYTES: usize = 8 * 1024;
/// The pause before each frame of a slow upload.
const SLOW_UPLOAD_PAUSE: Duration = Duration::from_millis(250);

/// The connections of the CPU-bound clients, which 100 addresses share.
const CPU_BOUND_CONNECTIONS: usize = 1_000;
/// The time after which a CPU-bound client gives up on a response.
const CPU_BOUND_PATIENCE: Duration = Duration::from_secs(1);
/// The time in which the throughput of `/cpu` is measured.
const MEASUREMENT: Duration = Duration::from_secs(1);

/// What the honest clients send.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum HonestKind {
    /// A few requests per second of each client.
    Usual,
    /// Requests for `/cpu` at twice the rate that the server can do, whether or not earlier ones
    /// are answered.
    CpuBound,
}

type Upload = Either<Full<Bytes>, Pieces>;
type Sender = SendRequest<Upload>;

/// The running clients.
pub(crate) struct HonestClients {
    tasks: JoinSet<()>,
    stopped: watch::Sender<bool>,
    stats: Arc<Mutex<RequestStats>>,
    /// The numbers of requests sent and served at the last sample.
    last_sample: (u64, u64),
}

/// The outcomes of the honest requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequestStats {
    pub(crate) sent: u64,
    pub(crate) served: u64,
    /// The latencies of the served requests, without the slow uploads.
    pub(crate) latencies: Vec<Duration>,
    /// The outcomes of the other requests, and how often each occurred.
    pub(crate) failures: BTreeMap<String, u64>,
}

// === HonestClients ===

impl HonestClients {
    /// Starts the clients.
    pub(crate) async fn start(kind: HonestKind, addr: SocketAddr) -> Self {
        let (stopped, stop) = watch::channel(false);
        let stats = Arc::new(Mutex::new(RequestStats::default()));
        let mut tasks = JoinSet::new();
        match kind {
            HonestKind::Usual => {
                for number in 1..=CLIENTS {
                    tasks.spawn(send_requests(number, addr, stop.clone(), stats.clone()));
                }
                tasks.spawn(send_slow_uploads(CLIENTS + 1, addr, stop, stats.clone()));
            }
            HonestKind::CpuBound => {
                let pool = Pool::open(ServerKind::Axum, addr, CPU_BOUND_CONNECTIONS).await;
                let processors = thread::available_parallelism().map_or(1, usize::from);
                let capacity = pool.throughput(2 * processors, MEASUREMENT).await;
                tasks.spawn(send_cpu_bound(pool, 2.0 * capacity, stop, stats.clone()));
            }
        }
        Self {
            tasks,
            stopped,
            stats,
            last_sample: (0, 0),
        }
    }

    /// Resets the counts.
    pub(crate) fn reset_stats(&self) {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner) = RequestStats::default();
    }

    /// Returns the numbers of requests sent and served since the last call.
    pub(crate) fn sample(&mut self) -> (u64, u64) {
        let stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut self.last_sample, (stats.sent, stats.served));
        (
            stats.sent.saturating_sub(before.0),
            stats.served.saturating_sub(before.1),
        )
    }

    /// Stops the clients after their outstanding requests.
    pub(crate) async fn stop(mut self) -> RequestStats {
        self.stopped.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
        std::mem::take(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Sends small requests at the usual rate until `stop`.
async fn send_requests(
    number: u8,
    addr: SocketAddr,
    mut stop: watch::Receiver<bool>,
    stats: Arc<Mutex<RequestStats>>,
) {
    // Spread the clients over the interval.
    sleep(REQUEST_INTERVAL / u32::from(CLIENTS) * u32::from(number)).await;
    let from = Ipv4Addr::new(127, 0, 1, number);
    let mut connection = None;
    let mut turns = interval(REQUEST_INTERVAL);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in usize::from(number).. {
        tokio::select! {
            _ = turns.tick() => {}
            _ = stop.wait_for(|stopped| *stopped) => return,
        }
        if turn % 4 == 0 {
            connection = None;
        }
        let request = match turn % 3 {
            0 => Request::get("/").body(Full::default()),
            1 => Request::post("/upload").body(Full::from(vec![b'x'; SMALL_UPLOAD_BYTES])),
            _ => Request::get("/work").body(Full::default()),
        };
        let request = request.expect("the request is valid").map(Either::Left);
        let sent = Instant::now();
        let outcome = send_request(from, addr, &mut connection, request, PATIENCE).await;
        record(&stats, outcome, Some(sent.elapsed()));
    }
}

/// Sends slow uploads, one after the other, until `stop`.
async fn send_slow_uploads(
    number: u8,
    addr: SocketAddr,
    mut stop: watch::Receiver<bool>,
    stats: Arc<Mutex<RequestStats>>,
) {
    let from = Ipv4Addr::new(127, 0, 1, number);
    let duration = SLOW_UPLOAD_PAUSE * SLOW_UPLOAD_FRAMES as u32;
    while !*stop.borrow_and_update() {
        let body = Pieces::new(SLOW_UPLOAD_FRAMES, SLOW_UPLOAD_FRAME_BYTES)
            .declared()
            .every(SLOW_UPLOAD_PAUSE);
        let request = Request::post("/upload")
            .body(Either::Right(body))
            .expect("the request is valid");
        let mut connection = None;
        let outcome = tokio::select! {
            outcome = send_request(from, addr, &mut connection, request, duration + PATIENCE) => outcome,
            // An upload that is interrupted by the stop does not count.
            _ = stop.wait_for(|stopped| *stopped) => return,
        };
        let failed = outcome != Ok(StatusCode::OK);
        record(&stats, outcome, None);
        if failed {
            sleep(REQUEST_INTERVAL).await;
        }
    }
}

/// Sends requests for `/cpu` at an even rate until `stop`.
async fn send_cpu_bound(
    pool: Arc<Pool>,
    per_second: f64,
    mut stop: watch::Receiver<bool>,
    stats: Arc<Mutex<RequestStats>>,
) {
    let mut requests = JoinSet::new();
    let mut due = Instant::now();
    while !*stop.borrow_and_update() {
        due += Duration::from_secs_f64(1.0 / per_second.max(1.0));
        tokio::select! {
            () = sleep_until(due) => {}
            _ = stop.wait_for(|stopped| *stopped) => break,
        }
        while requests.try_join_next().is_some() {}
        let (pool, stats) = (pool.clone(), stats.clone());
        requests.spawn(async move {
            // The request stays with the server when its client gives up.
            let request = tokio::spawn(async move { pool.get("/cpu").await });
            let outcome = match timeout_at(due + CPU_BOUND_PATIENCE, request).await {
                Ok(Ok(status)) => StatusCode::from_u16(status).map_err(|_| "cut"),
                Ok(Err(_)) => Err("cut"),
                Err(_) => Err("too late"),
            };
            record(&stats, outcome, Some(due.elapsed()));
        });
    }
    while requests.join_next().await.is_some() {}
}

/// Sends `request` and returns the status of the response, or the reason why there is none.
async fn send_request(
    from: Ipv4Addr,
    addr: SocketAddr,
    connection: &mut Option<Sender>,
    mut request: Request<Upload>,
    patience: Duration,
) -> Result<StatusCode, &'static str> {
    let host = http::HeaderValue::from_static("demo");
    request.headers_mut().insert(http::header::HOST, host);
    let response = async {
        let mut sender = match connection.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => clients::http1(from, addr)
                .await
                .map_err(|_| "not connected")?,
        };
        let response = sender.send_request(request).await.map_err(|_| "cut")?;
        let status = response.status();
        clients::whole(response).await.map_err(|_| "cut")?;
        Ok((sender, status))
    };
    match timeout(patience, response).await {
        Ok(Ok((sender, status))) => {
            // After a refusal the server may close the connection, which hyper notices a moment
            // later.
            *connection = status.is_success().then_some(sender);
            Ok(status)
        }
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err("too late"),
    }
}

/// Counts the outcome of a request.
fn record(
    stats: &Mutex<RequestStats>,
    outcome: Result<StatusCode, &'static str>,
    latency: Option<Duration>,
) {
    let mut stats = stats.lock().unwrap_or_else(PoisonError::into_inner);
    stats.sent += 1;
    let failure = match outcome {
        Ok(StatusCode::OK) => {
            stats.served += 1;
            stats.latencies.extend(latency);
            return;
        }
        Ok(status) => status.as_str().to_owned(),
        Err(reason) => reason.to_owned(),
    };
    *stats.failures.entry(failure).or_default() += 1;
}

// === RequestStats ===

impl RequestStats {
    /// Returns the part of the requests that was served, from 0 to 1.
    pub(crate) fn served_ratio(&self) -> f64 {
        self.served as f64 / self.sent.max(1) as f64
    }

    /// Returns the latency that `percent` % of the served requests did not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent).div_ceil(100).checked_sub(1)?;
        sorted.get(index).copied()
    }
}
