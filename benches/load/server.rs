//! The servers, each in a process of its own so that what it costs can be told.

use axum::{Router, routing::get};
use palisade::Quota;
use palisade_benches::{Server, generous, palisade, runtime};
use std::{
    env, fs,
    hint::spin_loop,
    io::{self, BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{self, Command, Stdio},
    time::Duration,
};
use tokio::{net::TcpListener, time::Instant};

/// The argument that makes this program a server.
pub(crate) const ARGUMENT: &str = "serve";

/// Of `/proc`'s times, since Linux 2.6 on every machine.
const TICKS_PER_SECOND: u64 = 100;

/// A server in its process. Ends with it.
#[derive(Debug)]
pub(crate) struct Child {
    process: process::Child,
    pub(crate) addr: SocketAddr,
}

/// Serves until it is killed, by the name of a [`Server`] and of what stands before its router.
pub(crate) fn run(name: &str) -> io::Result<()> {
    let work = async || {
        let until = Instant::now() + Duration::from_micros(200);
        while Instant::now() < until {
            spin_loop();
        }
        "ok"
    };
    let router = Router::new()
        .route("/", get(async || "ok"))
        .route("/work", get(work));
    let (name, router) = match name.split_once('+') {
        Some((name, "layers")) => (name, router.layer(palisade(generous()))),
        Some((name, "quota")) => (
            name,
            router.layer(palisade(Quota::per_second(100).burst(100))),
        ),
        _ => (name, router),
    };
    let server = Server::named(name).ok_or_else(|| io::Error::other("no such server"))?;
    let runtime = runtime();
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    println!("{}", listener.local_addr()?);
    runtime.block_on(server.start(&runtime, listener, router))?
}

// === Child ===

impl Child {
    pub(crate) fn start(name: &str) -> io::Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .args([ARGUMENT, name])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = process
            .stdout
            .take()
            .ok_or_else(|| io::Error::other("no output"))?;
        BufReader::new(output).read_line(&mut line)?;
        let addr = line.trim().parse().map_err(io::Error::other)?;
        Ok(Self { process, addr })
    }

    /// The time it was at work so far, in the kernel too, to 10 ms.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // After the name, which may hold anything: state, ten numbers, then the two times.
        let (_, rest) = stat
            .rsplit_once(')')
            .ok_or_else(|| io::Error::other("no name"))?;
        let times = rest
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(str::parse::<u64>);
        let ticks: u64 = times.sum::<Result<_, _>>().map_err(io::Error::other)?;
        Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
