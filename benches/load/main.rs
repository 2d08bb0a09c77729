//! Measures the time of whole servers under load over loopback. The results do not gate changes and
//! cannot be compared between machines. Takes about five minutes.
//!
//! Each server is a process with one thread. The servers take turns within one run, and each result
//! is relative to `axum::serve` in the same turn.
#![allow(clippy::print_stdout, reason = "a command-line program prints")]

mod client;
mod redis;
mod server;

use client::{FLOODER, flood, latencies, throughput};
use palisade_benches::Protocol;
use redis::Redis;
use server::Child;
use std::{env, io, time::Duration};

/// The number of turns of each server.
const TURNS: usize = 10;
/// The duration of a turn.
const TURN_DURATION: Duration = Duration::from_secs(1);
/// The server with which the others are compared.
const BARE: &str = "axum";

/// The measurements of one turn.
#[derive(Clone, Copy, Debug)]
struct TurnResult {
    requests_per_second: f64,
    /// CPU seconds per request.
    cpu_per_request: f64,
}

fn main() -> io::Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [server::ARGUMENT, name] => server::run(name),
        [] => {
            println!(
                "{:80} {:>7} {:>7} {:>7}  design",
                "figure", "median", "least", "most"
            );
            for (protocol, name) in [(Protocol::Http1, "HTTP/1"), (Protocol::Http2, "HTTP/2")] {
                measure_cost(protocol, name)?;
                measure_latency_beside_a_flood(protocol, name)?;
            }
            measure_latency_of_a_fleet()
        }
        _ => Err(io::Error::other("expected no arguments")),
    }
}

/// P7: requests on 16 kept connections, as many as the server can serve.
fn measure_cost(protocol: Protocol, name: &str) -> io::Result<()> {
    let others = [
        ("guarded", "axum::serve behind the connection guard"),
        ("palisade", "palisade::serve"),
        ("palisade+layers", "palisade::serve with the six layers"),
    ];
    let bare = Child::start(BARE)?;
    let servers = others.map(|(name, _)| Child::start(name));
    let servers = servers.into_iter().collect::<io::Result<Vec<_>>>()?;
    let mut cpu = vec![Vec::new(); others.len()];
    let mut rate = cpu.clone();
    for _ in 0..TURNS {
        let base = run_turn(&bare, protocol)?;
        for (index, server) in servers.iter().enumerate() {
            let turn = run_turn(server, protocol)?;
            cpu[index].push(turn.cpu_per_request / base.cpu_per_request);
            rate[index].push(turn.requests_per_second / base.requests_per_second);
        }
    }
    for (index, (_, server)) in others.into_iter().enumerate() {
        show(
            &format!("P7 CPU per {name} request: {server}"),
            &mut cpu[index],
            "<= 1.04",
        );
        show(
            "P7 the same: requests per second",
            &mut rate[index],
            ">= 0.97",
        );
    }
    Ok(())
}

/// Loads `server` for one turn.
fn run_turn(server: &Child, protocol: Protocol) -> io::Result<TurnResult> {
    let before = server.cpu()?;
    let served = throughput(server.addr, protocol, TURN_DURATION)? as f64;
    let spent = server.cpu()? - before;
    Ok(TurnResult {
        requests_per_second: served / TURN_DURATION.as_secs_f64(),
        cpu_per_request: spent.as_secs_f64() / served,
    })
}

/// P9: the median latency of an honest client, while another address sends requests on 64
/// connections as fast as they are served.
fn measure_latency_beside_a_flood(protocol: Protocol, name: &str) -> io::Result<()> {
    for (path, what) in [
        ("/", "a handler that does nothing"),
        ("/work", "one of 0.2 ms"),
    ] {
        let bare = Child::start(BARE)?;
        let guarded = Child::start("palisade+quota")?;
        let (mut ratios, mut bare_times, mut guarded_times) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TURNS {
            let time = |server: &Child| -> io::Result<f64> {
                let flood = flood(FLOODER, server.addr, (protocol, path));
                let times = latencies(1, server.addr, (protocol, path), TURN_DURATION);
                flood.stop();
                let times = times?;
                Ok(times[times.len() / 2].as_secs_f64() * 1e3)
            };
            let (base, ours) = (time(&bare)?, time(&guarded)?);
            ratios.push(ours / base);
            bare_times.push(base);
            guarded_times.push(ours);
        }
        show(
            &format!("P9 {name}, honest p50 beside a flood, {what}: part of bare"),
            &mut ratios,
            "<= 1.0",
        );
        show("P9 the same in ms, bare", &mut bare_times, "-");
        show(
            "P9 the same in ms, palisade::serve, layers and a quota",
            &mut guarded_times,
            "-",
        );
    }
    Ok(())
}

/// P20: the latency of clients with a limit that is counted on a Redis. None waits for it.
fn measure_latency_of_a_fleet() -> io::Result<()> {
    let Some(_redis) = Redis::start()? else {
        println!("there is no redis-server: no figures of a fleet");
        return Ok(());
    };
    let (alone, fleet) = (
        Child::start("palisade+quota")?,
        Child::start("palisade+fleet")?,
    );
    for (percent, name) in [(50, "p50"), (99, "p99")] {
        let (mut ratios, mut more) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            let time = |server: &Child| -> io::Result<f64> {
                let times = latencies(64, server.addr, (Protocol::Http1, "/"), TURN_DURATION)?;
                Ok(times[times.len() * percent / 100].as_secs_f64() * 1e3)
            };
            let (base, ours) = (time(&alone)?, time(&fleet)?);
            ratios.push(ours / base);
            more.push(ours - base);
        }
        show(
            &format!("P20 {name} of 64 clients with a fleet: part of the limit of one node"),
            &mut ratios,
            "-",
        );
        show("P20 the same: ms more", &mut more, "<= 0.5");
    }
    Ok(())
}

/// Prints the median, least and most of `values`.
fn show(figure: &str, values: &mut [f64], design: &str) {
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    let median = values[values.len() / 2];
    println!("{figure:80} {median:7.2} {least:7.2} {most:7.2}  {design}");
}
