//! Three nodes count one client together, on a Redis that is killed in the middle.
//!
//! ```text
//! cargo run --release --example fleet
//! ```
//!
//! Starts three servers and a `redis-server` on this machine and floods the servers from one
//! address for half a minute. Prints a table, and writes a chart to `target/fleet.svg`. Needs
//! `redis-server` (Debian: `apt install redis-server`).

use axum::{Router, routing::get};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use palisade::{
    Fleet, Guard, Metrics, Quota, Snapshot, Stack,
    conn::ConnGuard,
    types::{Event, Gauge},
};
use palisade_testkit::{clients, redis::RedisServer};
use parking_lot::Mutex;
use std::{
    error::Error,
    fmt::Write,
    future::IntoFuture,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

type BoxError = Box<dyn Error + Send + Sync>;

const NODES: usize = 3;
/// The limit, in requests a second.
const LIMIT: u32 = 100;
const BURST: u32 = 24;
const SECONDS: u32 = 30;
/// When Redis is killed, and when it is started again, in seconds.
const OUTAGE: (u32, u32) = (10, 18);

const FLOOD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Connections of the flood to each node, and the pause of each between two requests.
const CONNECTIONS: usize = 4;
const PAUSE: Duration = Duration::from_millis(10);
/// Another client, with a request to each node in turn.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const NEIGHBOUR_PAUSE: Duration = Duration::from_millis(50);

/// Points of the chart in each second.
const PER_SECOND: u32 = 2;
const POINTS: usize = (SECONDS * PER_SECOND) as usize;
const CHART_PATH: &str = "target/fleet.svg";

/// Requests of one client that were answered.
#[derive(Clone)]
struct Tally {
    /// Those that were served, by node and point of the chart.
    served: [[u32; POINTS]; NODES],
    refused: u32,
}

/// Notes when a node is alone, and when it counts with the others again.
struct Changes {
    node: usize,
    started: Instant,
    seen: Arc<Mutex<Vec<Change>>>,
}

struct Change {
    node: usize,
    is_alone: bool,
    at: Duration,
}

impl Metrics for Changes {
    fn record(&self, event: &Event<'_>) {
        if let Event::FleetChanged { is_alone, .. } = *event {
            let (node, at) = (self.node, self.started.elapsed());
            self.seen.lock().push(Change { node, is_alone, at });
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let Some(mut redis) = RedisServer::start().await else {
        println!("this example needs one");
        return Ok(());
    };
    let (started, changes) = (Instant::now(), Arc::default());
    let (mut nodes, mut metrics) = (Vec::new(), Vec::new());
    for node in 0..NODES {
        let snapshot = Snapshot::new();
        let seen = Arc::clone(&changes);
        let changes = Changes {
            node,
            started,
            seen,
        };
        nodes.push(start_node(&redis.url(), (snapshot.clone(), changes)).await?);
        metrics.push(snapshot);
    }
    println!("{NODES} nodes, a limit of {LIMIT} a second, a flood of one address: {SECONDS} s");

    let mut flood = JoinSet::new();
    for (node, to) in nodes.iter().enumerate() {
        for _ in 0..CONNECTIONS {
            flood.spawn(send(FLOOD, vec![(node, *to)], PAUSE, started));
        }
    }
    let all = nodes.iter().copied().enumerate().collect();
    let neighbour = tokio::spawn(send(NEIGHBOUR, all, NEIGHBOUR_PAUSE, started));

    sleep_until(started + Duration::from_secs(OUTAGE.0.into())).await;
    redis.kill();
    let killed = started.elapsed();
    sleep_until(started + Duration::from_secs(OUTAGE.1.into())).await;
    redis.restart().await;
    let restarted = started.elapsed();

    let mut flooded = Tally::new();
    while let Some(tally) = flood.join_next().await {
        flooded.add(&tally??);
    }
    print_table(&flooded, &neighbour.await??);
    for (what, is_alone, since) in [
        ("alone", true, killed),
        ("together again", false, restarted),
    ] {
        for change in &*changes.lock() {
            if change.is_alone == is_alone && change.at >= since {
                let (number, took) = (change.node + 1, change.at - since);
                println!("node {number} is {what} after {} ms", took.as_millis());
            }
        }
    }
    for (node, metrics) in metrics.iter().enumerate() {
        let gauge = |gauge| metrics.gauge(Guard::RateLimit, gauge).unwrap_or(0);
        let (calls, waited) = (gauge(Gauge::FleetCalls), gauge(Gauge::FleetWaited));
        println!("node {}: {calls} calls, {waited} requests waited", node + 1);
    }
    std::fs::create_dir_all("target")?;
    std::fs::write(CHART_PATH, chart(&flooded, (killed, restarted)))?;
    println!("written to {CHART_PATH}");
    Ok(())
}

/// Starts a server on loopback that counts clients with the other nodes.
async fn start_node(
    redis: &str,
    metrics: (Snapshot, Changes),
) -> Result<SocketAddr, Box<dyn Error + Send + Sync>> {
    let snapshot = metrics.0.clone();
    let fleet = Fleet::redis(redis)?
        .nodes(NODES as u32)
        .secret("a secret of 16 bytes or more")
        .metrics(metrics)
        .start()?;
    let stack = Stack::edge()
        .rate_limit(Quota::per_second(LIMIT).burst(BURST).fleet(&fleet))
        .metrics(snapshot)
        .build()?;
    let app = Router::new().route("/", get("hello")).layer(stack);
    let listener = ConnGuard::default().bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    tokio::spawn(palisade::serve(listener, app).into_future());
    Ok(addr)
}

/// Sends requests to these nodes in turn, each on its connection, until the time is over.
async fn send(
    from: Ipv4Addr,
    nodes: Vec<(usize, SocketAddr)>,
    pause: Duration,
    started: Instant,
) -> Result<Tally, BoxError> {
    let mut connections = Vec::new();
    for (node, to) in nodes {
        connections.push((node, clients::http1::<Empty<Bytes>>(from, to).await?));
    }
    let (mut tally, mut ticks) = (Tally::new(), interval(pause));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let count = connections.len();
    for turn in 0.. {
        ticks.tick().await;
        let (node, connection) = &mut connections[turn % count];
        let request = Request::get("/").header("host", "fleet");
        connection.ready().await?;
        let response = connection.send_request(request.body(Empty::new())?).await?;
        let status = clients::whole(response).await?.status();
        let point = started.elapsed().as_millis() * u128::from(PER_SECOND) / 1000;
        match tally.served[*node].get_mut(point as usize) {
            Some(served) if status == StatusCode::OK => *served += 1,
            Some(_) => tally.refused += 1,
            None => break,
        }
    }
    Ok(tally)
}

// === Tally ===

impl Tally {
    fn new() -> Self {
        Self {
            served: [[0; POINTS]; NODES],
            refused: 0,
        }
    }

    fn add(&mut self, other: &Self) {
        let served = self.served.as_flattened_mut().iter_mut();
        for (sum, more) in served.zip(other.served.as_flattened()) {
            *sum += more;
        }
        self.refused += other.refused;
    }

    fn total(&self) -> u32 {
        self.served.as_flattened().iter().sum()
    }

    /// Returns the requests a second of one node, or of all, at each point.
    fn rates(&self, node: Option<usize>) -> [f64; POINTS] {
        std::array::from_fn(|point| {
            let all = self.served.iter().enumerate();
            let of_node = all.filter(|(index, _)| node.is_none_or(|node| node == *index));
            let served: u32 = of_node.map(|(_, points)| points[point]).sum();
            f64::from(served * PER_SECOND)
        })
    }
}

fn print_table(flood: &Tally, neighbour: &Tally) {
    // Without the second in which a burst is served.
    let spans = [
        ("before", (1, OUTAGE.0)),
        ("outage", (OUTAGE.0 + 1, OUTAGE.1)),
        ("after", (OUTAGE.1 + 2, SECONDS)),
    ];
    println!("\nadmitted a second of the flood");
    print!("{:12}", "");
    spans.iter().for_each(|(name, _)| print!("{name:>10}"));
    println!();
    for node in (0..NODES).map(Some).chain([None]) {
        let name = node.map_or("all".to_owned(), |node| format!("node {}", node + 1));
        print!("{name:12}");
        let rates = flood.rates(node);
        for (_, (from, to)) in spans {
            let points = &rates[(from * PER_SECOND) as usize..(to * PER_SECOND) as usize];
            print!("{:>10.1}", points.iter().sum::<f64>() / points.len() as f64);
        }
        println!();
    }
    for (name, tally) in [("flood", flood), ("neighbour", neighbour)] {
        let (served, refused) = (tally.total(), tally.refused);
        println!("{name:12}{served:>10} served {refused:>10} refused");
    }
    println!();
}

// === Chart ===

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 500.0;
/// The edges of the area with the lines.
const LEFT: f64 = 72.0;
const RIGHT: f64 = 840.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = 440.0;

const STYLE: &str = "\
text { font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: #374151 }
.title { font-size: 18px; font-weight: 600; fill: #111827 }
.grid { stroke: #e5e7eb }
.axis { stroke: #6b7280 }
.limit { stroke: #dc2626; stroke-width: 1.5; stroke-dasharray: 7 4 }
.twice { stroke: #dc2626; stroke-dasharray: 2 4 }
.limit-text { fill: #b91c1c }
.outage { fill: #fef3c7 }
.outage-text { fill: #92400e; font-weight: 600 }
polyline { fill: none; stroke-width: 1.5; stroke-linejoin: round }
.all { stroke: #111827; stroke-width: 2.5 }
.node0 { stroke: #2563eb }
.node1 { stroke: #ea580c }
.node2 { stroke: #059669 }
";

fn chart(flood: &Tally, outage: (Duration, Duration)) -> String {
    let all = flood.rates(None);
    let highest = all.iter().fold(2.5 * f64::from(LIMIT), |a, b| a.max(*b));
    let highest = (highest / 50.0).ceil() * 50.0;
    let x = |seconds: f64| LEFT + seconds / f64::from(SECONDS) * (RIGHT - LEFT);
    let y = |rate: f64| BOTTOM - rate / highest * (BOTTOM - TOP);
    let text = |x: f64, y: f64, class: &str, anchor: &str, text: &str| {
        format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{text}\
             </text>\n"
        )
    };
    let line = |(x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str| {
        format!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" class=\"{class}\"/>\n"
        )
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">\n<style>{STYLE}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let title = format!("One limit of {LIMIT} requests a second over {NODES} nodes");
    let sent = NODES * CONNECTIONS * 1000 / PAUSE.as_millis() as usize;
    let sent = format!("{},{:03}", sent / 1000, sent % 1000);
    let about = format!(
        "A flood from one address: up to {sent} requests a second to all nodes. Without Redis each \
         node admits two thirds of the limit"
    );
    svg += &text(LEFT, 32.0, "title", "start", &title);
    svg += &text(LEFT, 54.0, "", "start", &about);

    let (from, to) = (x(outage.0.as_secs_f64()), x(outage.1.as_secs_f64()));
    let (width, height) = (to - from, BOTTOM - TOP);
    let _ = writeln!(
        svg,
        "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\" \
         class=\"outage\"/>"
    );
    for rate in (0..=highest as u32).step_by(50).map(f64::from) {
        svg += &line((LEFT, y(rate)), (RIGHT, y(rate)), "grid");
        svg += &text(LEFT - 8.0, y(rate) + 4.5, "", "end", &rate.to_string());
    }
    for second in (0..=SECONDS).step_by(5).map(f64::from) {
        svg += &line((x(second), BOTTOM), (x(second), BOTTOM + 5.0), "axis");
        let label = second.to_string();
        svg += &text(x(second), BOTTOM + 21.0, "", "middle", &label);
    }
    svg += &line((LEFT, BOTTOM), (RIGHT, BOTTOM), "axis");
    svg += &line((LEFT, TOP), (LEFT, BOTTOM), "axis");
    let middle = f64::midpoint(LEFT, RIGHT);
    svg += &text(middle, BOTTOM + 44.0, "", "middle", "time in seconds");
    let (at, label) = (f64::midpoint(TOP, BOTTOM), "admitted requests a second");
    let _ = writeln!(
        svg,
        "<text transform=\"translate(24 {at}) rotate(-90)\" text-anchor=\"middle\">{label}</text>"
    );
    let middle = f64::midpoint(from, to);
    svg += &text(middle, TOP + 20.0, "outage-text", "middle", "Redis is down");

    let lines = (0..NODES).map(Some).chain([None]);
    for (row, node) in lines.enumerate() {
        let class = node.map_or("all".to_owned(), |node| format!("node{node}"));
        let rates = flood.rates(node);
        // In the middle of the time that it stands for.
        let at = |point: usize| (point as f64 + 0.5) / f64::from(PER_SECOND);
        let points = rates.iter().enumerate();
        let points = points.map(|(point, rate)| format!("{:.1},{:.1} ", x(at(point)), y(*rate)));
        let points: String = points.collect();
        let _ = writeln!(svg, "<polyline class=\"{class}\" points=\"{points}\"/>");
        let name = node.map_or("all nodes".to_owned(), |node| format!("node {}", node + 1));
        let key = TOP + 4.0 + 20.0 * row as f64;
        let _ = writeln!(
            svg,
            "<polyline class=\"{class}\" points=\"{:.1},{key} {:.1},{key}\"/>",
            RIGHT + 8.0,
            RIGHT + 32.0
        );
        svg += &text(RIGHT + 40.0, key + 4.5, "", "start", &name);
    }
    // Above the lines, which lie on it.
    for (times, class, label) in [(1, "limit", "the limit"), (2, "twice", "twice the limit")] {
        let limit = y((times * LIMIT).into());
        svg += &line((LEFT, limit), (RIGHT, limit), class);
        svg += &text(RIGHT + 8.0, limit + 4.5, "limit-text", "start", label);
    }
    svg + "</svg>\n"
}
