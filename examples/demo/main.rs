//! Compares three servers of the same axum app on loopback: without guards, with the layers that a
//! careful user assembles from tower, tower-http and `tower_governor` today, and with palisade.
//! Each server is attacked in eleven ways while honest clients send requests, and is overloaded by
//! honest clients alone. The results are printed as a table and written to a page.
//!
//! ```text
//! cargo run --release --example demo              # about five minutes
//! cargo run --release --example demo -- --quick   # about two minutes, with shorter attacks
//! cargo run --release --example demo -- --check   # fails if palisade fails its expectations
//! cargo run --release --example demo -- CPU       # the attacks with such a name
//! ```
//!
//! Each attack starts a new server process, so the measured memory is the server's own. One attack
//! needs a control group of version 1 for each server, and is skipped where none can be created.
//! All traffic stays on loopback; connections, bytes and time are bounded, and all processes end by
//! themselves.
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a command-line program prints"
)]

mod attacks;
mod honest;
mod page;
mod report;
mod servers;

use attacks::{Attack, Attackers};
use honest::HonestClients;
use palisade_testkit::{clients, cpu, process};
use report::{Outcome, Sample};
use servers::{Server, ServerKind};
use std::{
    io::{IsTerminal, Write},
    net::Ipv4Addr,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    time::{Instant, interval, sleep},
};
use tower::BoxError;

/// The path of the page.
const PAGE_PATH: &str = "target/palisade-demo.html";
/// The time for which the honest clients run alone before the attack.
const WARM_UP: Duration = Duration::from_millis(500);
/// The time for which the server can release its memory after the attackers are aborted.
const COOL_DOWN: Duration = Duration::from_millis(500);
/// The number of open files that the demo needs: one for each connection of the largest attack, and
/// some more.
const REQUIRED_FILES: u64 = 2_600;
/// The interval between samples during an attack.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// The processor time of a request for `/cpu`.
const CPU_TIME: Duration = Duration::from_millis(10);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let files = process::raise_file_limit();
    if let ["--serve", kind, speed, rounds, ref files @ ..] = arguments[..] {
        let kind = ServerKind::from_name(kind).ok_or("no such server")?;
        if let [files] = files {
            servers::limit_files(files.parse()?)?;
        }
        return servers::serve(kind, speed == "quick", rounds.parse()?).await;
    }
    let (options, names): (Vec<_>, Vec<_>) = { arguments }
        .into_iter()
        .partition(|argument| argument.starts_with("--"));
    if !options
        .iter()
        .all(|option| ["--quick", "--check"].contains(option))
    {
        return Err("usage: demo [--quick] [--check] [NAME]...".into());
    }
    let quick = options.contains(&"--quick");
    // Linux has all addresses of 127.0.0.0/8. Other systems would need to configure them.
    if TcpListener::bind((Ipv4Addr::new(127, 0, 1, 1), 0))
        .await
        .is_err()
    {
        return Err("the demo needs the loopback addresses 127.0.x.y, which Linux provides".into());
    }

    let mut attacks = attacks::all(quick);
    attacks
        .retain(|attack| names.is_empty() || names.iter().any(|name| attack.name.contains(name)));
    if attacks.is_empty() {
        return Err("no attack has such a name".into());
    }
    if let Some(files) = files
        && files < REQUIRED_FILES
    {
        eprintln!(
            "the limit on open files is {files}, but the demo needs {REQUIRED_FILES}: the attacks will \
             be weaker"
        );
    }
    let rounds = cpu::rounds_in(CPU_TIME);
    let mut progress = Progress::new(&attacks);
    let mut results = Vec::new();
    for attack in &attacks {
        let mut outcomes = Vec::new();
        for kind in ServerKind::ALL {
            progress.begin(attack, kind);
            let Some(mut server) = Server::start(kind, quick, attack, rounds).await? else {
                progress.skip();
                continue;
            };
            let outcome = run_attack(attack, kind, &mut server, &mut progress).await;
            progress.end(&outcome);
            outcomes.push(outcome);
        }
        results.push((attack, outcomes));
    }
    print!("{}", report::text(&results));
    std::fs::create_dir_all("target")?;
    std::fs::write(PAGE_PATH, page::html(&results))?;
    println!("\nthe same results with charts: {PAGE_PATH}");

    let failures = report::failures(&results);
    if failures.is_empty() {
        println!("palisade passed: honest requests served, no attacker held, not killed");
    }
    for failure in &failures {
        println!("palisade failed: {failure}");
    }
    if options.contains(&"--check") && !failures.is_empty() {
        return Err("palisade failed its expectations".into());
    }
    Ok(())
}

/// Runs one attack on one server, and stops the server.
async fn run_attack(
    attack: &Attack,
    kind: ServerKind,
    server: &mut Server,
    progress: &mut Progress,
) -> Outcome {
    let at_start = server.memory();
    let mut honest = HonestClients::start(attack.honest, server.addr).await;
    sleep(WARM_UP).await;
    honest.reset_stats();

    let started = Instant::now();
    let mut attackers = Attackers::start(attack, server.addr);
    let mut samples = Vec::new();
    let mut ticks = interval(SAMPLE_INTERVAL);
    while started.elapsed() < attack.duration + attack.settle {
        ticks.tick().await;
        if started.elapsed() >= attack.duration {
            attackers.begin_nothing_more();
        }
        let (sent, served) = honest.sample();
        let held = attackers.held();
        let memory = server.memory().map(|memory| memory.now);
        samples.push(Sample {
            at: started.elapsed(),
            sent,
            served,
            held,
            memory,
        });
        progress.show(held, served, sent);
    }
    let held = attackers.held();
    let responses = attackers.abort().await;
    let honest = honest.stop().await;
    let reasons = server.refusal_reasons().await;
    sleep(COOL_DOWN).await;
    let at_end = server.memory();
    let killed = server.is_killed();
    server.stop().await;
    Outcome {
        kind,
        honest,
        held,
        killed,
        responses,
        reasons,
        at_start,
        at_end,
        samples,
    }
}

// === Progress ===

/// The progress on stderr: one line that is updated on a terminal, one line per attack elsewhere.
struct Progress {
    is_terminal: bool,
    begun: usize,
    total: usize,
    /// The current attack and server.
    current: String,
    ends_at: Instant,
}

impl Progress {
    fn new(attacks: &[Attack]) -> Self {
        let duration = |attack: &Attack| attack.duration + attack.settle + WARM_UP + COOL_DOWN;
        let each: Duration = attacks.iter().map(duration).sum();
        let all = each * ServerKind::ALL.len() as u32;
        let is_terminal = std::io::stderr().is_terminal();
        eprintln!(
            "{} attacks on 3 servers, about {} s",
            attacks.len(),
            all.as_secs()
        );
        Self {
            is_terminal,
            begun: 0,
            total: attacks.len() * ServerKind::ALL.len(),
            current: String::new(),
            ends_at: Instant::now() + all,
        }
    }

    fn begin(&mut self, attack: &Attack, kind: ServerKind) {
        self.begun += 1;
        self.current = format!(
            "[{:>2}/{}] {} on {}",
            self.begun,
            self.total,
            attack.name,
            kind.name()
        );
    }

    fn show(&self, held: usize, served: u64, sent: u64) {
        if self.is_terminal {
            let left = self
                .ends_at
                .saturating_duration_since(Instant::now())
                .as_secs();
            let current = &self.current;
            eprint!("\r\x1b[K{current:<60} honest {served}/{sent}  held {held}  {left} s left");
            let _ = std::io::stderr().flush();
        }
    }

    fn end(&self, outcome: &Outcome) {
        let clear = if self.is_terminal { "\r\x1b[K" } else { "" };
        let percent = report::percent(outcome.honest.served_ratio());
        let killed = if outcome.killed { "  killed" } else { "" };
        eprintln!(
            "{clear}{:<60} honest {percent:>7}  held {}{killed}",
            self.current, outcome.held
        );
    }

    fn skip(&self) {
        let clear = if self.is_terminal { "\r\x1b[K" } else { "" };
        eprintln!("{clear}{:<60} {}", self.current, report::SKIPPED);
    }
}
