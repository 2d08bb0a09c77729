//! The servers, each in a separate process so that its CPU time can be measured.

use crate::redis;
use axum::{Router, routing::get};
use palisade::{Fleet, Quota};
use palisade_benches::{Server, high_quota, palisade, runtime};
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

/// The unit of times in `/proc`: 100 ticks per second on every machine since Linux 2.6.
const TICKS_PER_SECOND: u64 = 100;

/// A server process. Dropping this kills it.
#[derive(Debug)]
pub(crate) struct Child {
    process: process::Child,
    pub(crate) addr: SocketAddr,
}

/// Serves until the process is killed. `name` is a [`Server`], and optionally `+` and the layers
/// around its router.
pub(crate) fn run(name: &str) -> io::Result<()> {
    let work = async || {
        let until = Instant::now() + Duration::from_micros(200);
        while Instant::now() < until {
            spin_loop();
        }
        "ok"
    };
    let runtime = runtime();
    let router = Router::new()
        .route("/", get(async || "ok"))
        .route("/work", get(work));
    let (name, router) = match name.split_once('+') {
        Some((name, "layers")) => (name, router.layer(palisade(high_quota()))),
        Some((name, "quota")) => (name, router.layer(palisade(quota()))),
        Some((name, "fleet")) => {
            let _entered = runtime.enter();
            let fleet = Fleet::redis(redis::url_of_parent()).map_err(io::Error::other)?;
            let fleet = fleet.nodes(1).secret("of 16 bytes at least").start();
            let policy = quota().fleet(&fleet.map_err(io::Error::other)?);
            (name, router.layer(palisade(policy)))
        }
        _ => (name, router),
    };
    let server = Server::from_name(name).ok_or_else(|| io::Error::other("no such server"))?;
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    println!("{}", listener.local_addr()?);
    runtime.block_on(server.start(&runtime, listener, router))?
}

fn quota() -> Quota {
    Quota::per_second(100).burst(100)
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
            .ok_or_else(|| io::Error::other("the server has no stdout"))?;
        BufReader::new(output).read_line(&mut line)?;
        let addr = line.trim().parse().map_err(io::Error::other)?;
        Ok(Self { process, addr })
    }

    /// Returns the CPU time used so far, in user and kernel mode, with a resolution of 10 ms.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // After the process name, which may contain any character: the state, ten numbers, then the
        // two times.
        let (_, rest) = stat
            .rsplit_once(')')
            .ok_or_else(|| io::Error::other("the process has no name"))?;
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
        // An error means that the process has exited already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
