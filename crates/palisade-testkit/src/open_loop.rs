//! An open-loop client: sends requests at their times, whether or not earlier ones are answered.

use crate::{
    clients,
    guarded::{Client, ServerKind},
};
use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinSet,
    time::{Instant, sleep_until},
};

/// The client addresses, in networks of their own. Each has some of the connections.
const ADDRESSES: usize = 100;
/// The requests that may be on their way at once.
const SLOTS: usize = 1000;
/// The streams of an HTTP/2 connection.
const STREAMS: usize = 100;
/// A response that comes later is of no use.
pub const LATE: Duration = Duration::from_secs(1);

/// Connections that are open, and the streams on them.
#[derive(Debug)]
pub struct Pool {
    /// In turn, so that all addresses send as much.
    free: Mutex<VecDeque<Client>>,
    permits: Semaphore,
}

/// What became of one request.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// When it was due, from the beginning.
    pub due: Duration,
    /// From then to the response.
    pub time: Duration,
    /// 0 if there was none.
    pub status: u16,
}

/// What became of the requests of some time.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Those that were served in time, per second.
    pub per_second: f64,
    pub refused: usize,
    pub late: usize,
    pub failed: usize,
    pub p50: Duration,
    pub p99: Duration,
}

impl Pool {
    /// Opens the connections: `slots` at most, over `kind`'s protocol.
    pub async fn open(kind: ServerKind, addr: SocketAddr, slots: usize) -> Arc<Self> {
        let slots = slots.min(SLOTS);
        let mut free = VecDeque::new();
        while free.len() < slots {
            let network = 1 + (free.len() % ADDRESSES) as u8;
            let from = Ipv4Addr::new(127, 1, network, 1);
            match kind {
                ServerKind::Tonic => {
                    let sender = clients::http2(from, addr).await.unwrap();
                    let streams = STREAMS.min(slots - free.len());
                    let clients = (0..streams).map(|_| Client::Http2(sender.clone()));
                    free.extend(clients);
                }
                _ => free.push_back(Client::Http1(clients::http1(from, addr).await.unwrap())),
            }
            // A connection that has had a request is no newcomer.
            let client = free.back_mut().unwrap();
            assert_eq!(client.get("/").await.unwrap().status(), 200);
        }
        Arc::new(Self {
            permits: Semaphore::new(free.len()),
            free: Mutex::new(free),
        })
    }

    /// Sends `GET path` on a free connection, and returns the status: 0 if there is no response.
    pub async fn get(&self, path: &str) -> u16 {
        let _permit = self.permits.acquire().await.unwrap();
        let mut client = self.free.lock().await.pop_front().unwrap();
        let status = client
            .get(path)
            .await
            .map_or(0, |response| response.status().as_u16());
        self.free.lock().await.push_back(client);
        status
    }

    /// Sends `GET path` at these times. Returns what became of each request.
    pub async fn send_at(
        self: &Arc<Self>,
        path: &'static str,
        times: impl IntoIterator<Item = Duration>,
    ) -> Vec<Answer> {
        let start = Instant::now();
        let mut requests = JoinSet::new();
        for due in times {
            sleep_until(start + due).await;
            let pool = self.clone();
            requests.spawn(async move {
                let status = pool.get(path).await;
                let time = (start + due).elapsed();
                Answer { due, time, status }
            });
        }
        requests.join_all().await
    }

    /// Returns how many requests per second are served if `clients` send `GET /cpu` one after the
    /// other.
    pub async fn throughput(self: &Arc<Self>, clients: usize, time: Duration) -> f64 {
        let served = Arc::new(AtomicUsize::new(0));
        let until = Instant::now() + time;
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let (pool, served) = (self.clone(), served.clone());
            tasks.spawn(async move {
                while Instant::now() < until {
                    let is_served = pool.get("/cpu").await == 200;
                    served.fetch_add(is_served.into(), Relaxed);
                }
            });
        }
        let start = Instant::now();
        tasks.join_all().await;
        served.load(Relaxed) as f64 / start.elapsed().as_secs_f64()
    }
}

impl Outcome {
    /// Returns the outcome of the requests that were due in this time.
    pub fn of(answers: &[Answer], from: Duration, to: Duration) -> Self {
        let of_time = answers
            .iter()
            .filter(|answer| (from..to).contains(&answer.due));
        let of_time: Vec<_> = of_time.copied().collect();
        let count = |is: &dyn Fn(&Answer) -> bool| of_time.iter().filter(|one| is(one)).count();
        let mut times: Vec<_> = of_time
            .iter()
            .filter(|answer| answer.status == 200)
            .map(|answer| answer.time)
            .collect();
        times.sort_unstable();
        let percentile = |percent: usize| {
            let index = times.len() * percent / 100;
            times
                .get(index)
                .or(times.last())
                .copied()
                .unwrap_or_default()
        };
        let in_time = count(&|answer| answer.status == 200 && answer.time <= LATE);
        Self {
            per_second: in_time as f64 / (to - from).as_secs_f64(),
            refused: count(&|answer| answer.status == 503),
            late: count(&|answer| answer.status == 200 && answer.time > LATE),
            failed: count(&|answer| ![200, 503].contains(&answer.status)),
            p50: percentile(50),
            p99: percentile(99),
        }
    }
}

/// Returns the times of `per_second` requests, evenly, for `time`.
pub fn evenly(per_second: f64, time: Duration) -> impl Iterator<Item = Duration> {
    let count = (per_second * time.as_secs_f64()) as u32;
    (0..count).map(move |number| Duration::from_secs_f64(f64::from(number) / per_second))
}

/// Returns the same for bursts: of each period, all requests come in the beginning.
pub fn in_bursts(
    per_second: f64,
    burst: Duration,
    period: Duration,
    time: Duration,
) -> impl Iterator<Item = Duration> {
    let periods = time.div_duration_f64(period) as u32;
    (0..periods)
        .flat_map(move |number| evenly(per_second, burst).map(move |due| period * number + due))
}
