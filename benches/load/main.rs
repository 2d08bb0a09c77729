//! Loads whole servers over loopback and reports what a clock says: never a gate, and nothing to
//! compare between machines. About three minutes.
//!
//! Each server is a process of its own with one thread. They take turns within one run, and what
//! is shown is how each stands to `axum::serve` in the same turn.
#![allow(clippy::print_stdout, reason = "it is a program that prints")]

mod client;
mod server;

use client::{FLOODER, HONEST, flood, p50, throughput};
use palisade_benches::Protocol;
use server::Child;
use std::{env, io, time::Duration};

/// So often each takes its turn.
const TURNS: usize = 10;
/// For so long.
const TURN: Duration = Duration::from_secs(1);
/// The server to which the others are compared.
const BARE: &str = "axum";

/// What a server did in its turn, and what it cost.
#[derive(Clone, Copy, Debug)]
struct Served {
    per_second: f64,
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
                cost(protocol, name)?;
                honest_beside_a_flood(protocol, name)?;
            }
            Ok(())
        }
        _ => Err(io::Error::other("it takes no arguments")),
    }
}

/// P7: requests on 16 connections that are kept, as many as the server can do.
fn cost(protocol: Protocol, name: &str) -> io::Result<()> {
    let others = [
        ("guarded", "axum::serve behind the connection guard"),
        ("palisade", "palisade::serve"),
        ("palisade+layers", "palisade::serve with the five layers"),
    ];
    let bare = Child::start(BARE)?;
    let servers = others.map(|(name, _)| Child::start(name));
    let servers = servers.into_iter().collect::<io::Result<Vec<_>>>()?;
    let mut cpu = vec![Vec::new(); others.len()];
    let mut rate = cpu.clone();
    for _ in 0..TURNS {
        let base = serve(&bare, protocol)?;
        for (place, server) in servers.iter().enumerate() {
            let served = serve(server, protocol)?;
            cpu[place].push(served.cpu_per_request / base.cpu_per_request);
            rate[place].push(served.per_second / base.per_second);
        }
    }
    for (place, (_, what)) in others.into_iter().enumerate() {
        show(
            &format!("P7 CPU per {name} request: {what}"),
            &mut cpu[place],
            "<= 1.04",
        );
        show(
            "P7 the same: requests per second",
            &mut rate[place],
            ">= 0.97",
        );
    }
    Ok(())
}

fn serve(server: &Child, protocol: Protocol) -> io::Result<Served> {
    let before = server.cpu()?;
    let served = throughput(server.addr, protocol, TURN)? as f64;
    let spent = server.cpu()? - before;
    Ok(Served {
        per_second: served / TURN.as_secs_f64(),
        cpu_per_request: spent.as_secs_f64() / served,
    })
}

/// P9: the median time of one who asks now and then, while one address asks on 64 connections for
/// as much as it gets.
fn honest_beside_a_flood(protocol: Protocol, name: &str) -> io::Result<()> {
    for (path, what) in [
        ("/", "a handler that does nothing"),
        ("/work", "one of 0.2 ms"),
    ] {
        let bare = Child::start(BARE)?;
        let guarded = Child::start("palisade+quota")?;
        let (mut ratios, mut alone, mut beside) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TURNS {
            let time = |server: &Child| -> io::Result<f64> {
                let flood = flood(FLOODER, server.addr, (protocol, path));
                let time = p50(HONEST, server.addr, (protocol, path), TURN);
                flood.stop();
                Ok(time?.as_secs_f64() * 1e3)
            };
            let (base, ours) = (time(&bare)?, time(&guarded)?);
            ratios.push(ours / base);
            alone.push(base);
            beside.push(ours);
        }
        show(
            &format!("P9 {name}, honest p50 beside a flood, {what}: part of bare"),
            &mut ratios,
            "<= 1.0",
        );
        show("P9 the same in ms, bare", &mut alone, "-");
        show(
            "P9 the same in ms, palisade::serve, layers and a quota",
            &mut beside,
            "-",
        );
    }
    Ok(())
}

fn show(figure: &str, values: &mut [f64], design: &str) {
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    let median = values[values.len() / 2];
    println!("{figure:80} {median:7.2} {least:7.2} {most:7.2}  {design}");
}
