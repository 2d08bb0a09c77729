//! The same axum app three times on loopback: bare, behind what a careful user assembles from
//! tower, tower-http and `tower_governor` today, and behind palisade. Each is attacked in ten ways
//! while honest clients go on, and what came out stands side by side.
//!
//! ```text
//! cargo run --release --example demo              # about four minutes
//! cargo run --release --example demo -- --quick   # about two, with shorter numbers
//! cargo run --release --example demo -- --check   # and fails unless palisade held
//! ```
//!
//! Every server is a process of its own, fresh for each attack, so that its memory is its own.
//! Nothing leaves loopback; connections, bytes and time are bounded, and everything ends by itself.
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program for the terminal"
)]

mod attacks;
mod honest;
mod page;
mod report;
mod servers;

use attacks::{Attack, Attackers};
use honest::Honest;
use palisade_testkit::{clients, process};
use report::{Moment, Outcome};
use servers::{Kind, Server};
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

const PAGE: &str = "target/palisade-demo.html";
/// Honest clients alone, before the attack.
const BEFORE: Duration = Duration::from_millis(500);
/// For the server to be rid of attackers that were ended.
const AFTER: Duration = Duration::from_millis(500);
/// One for each connection of the largest attack, and some for the rest.
const FILES: u64 = 2_600;
const LOOK: Duration = Duration::from_millis(250);

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let files = process::raise_file_limit();
    match arguments[..] {
        ["--serve", kind, speed, ref files @ ..] => {
            let kind = Kind::named(kind).ok_or("no such server")?;
            if let [files] = files {
                servers::allow(files.parse()?)?;
            }
            return servers::serve(kind, speed == "quick").await;
        }
        _ if arguments
            .iter()
            .all(|argument| ["--quick", "--check"].contains(argument)) => {}
        _ => return Err("usage: demo [--quick] [--check]".into()),
    }
    let quick = arguments.contains(&"--quick");
    // On Linux every address of 127.0.0.0/8 is here; elsewhere they would have to be set up.
    if TcpListener::bind((Ipv4Addr::new(127, 0, 1, 1), 0))
        .await
        .is_err()
    {
        return Err("clients of this need addresses of their own, 127.0.x.y, as on Linux".into());
    }

    let attacks = attacks::all(quick);
    if let Some(files) = files.filter(|files| *files < FILES) {
        eprintln!("{files} open files are allowed here, {FILES} are needed: expect less attack");
    }
    let mut progress = Progress::new(&attacks);
    let mut results = Vec::new();
    for attack in &attacks {
        let mut outcomes = Vec::new();
        for kind in Kind::ALL {
            progress.begin(attack, kind);
            outcomes.push(one(attack, kind, quick, &mut progress).await?);
            progress.end(outcomes.last().expect("just pushed"));
        }
        results.push((attack, outcomes));
    }
    print!("{}", report::text(&results));
    std::fs::create_dir_all("target")?;
    std::fs::write(PAGE, page::html(&results))?;
    println!("\nthe same with charts: {PAGE}");

    let failures = report::failures(&results);
    if failures.is_empty() {
        println!("palisade held: 99 % or more of the honest requests served, no attacker held");
    }
    for failure in &failures {
        println!("palisade did not hold: {failure}");
    }
    if arguments.contains(&"--check") && !failures.is_empty() {
        return Err("palisade did not hold".into());
    }
    Ok(())
}

/// One attack on one server.
async fn one(
    attack: &Attack,
    kind: Kind,
    quick: bool,
    progress: &mut Progress,
) -> Result<Outcome, BoxError> {
    let mut server = Server::start(kind, quick, attack.files).await?;
    let at_start = server.memory();
    let mut honest = Honest::start(server.addr);
    sleep(BEFORE).await;
    honest.begin();

    let begun = Instant::now();
    let mut attackers = Attackers::start(attack, server.addr);
    let mut moments = Vec::new();
    let mut looks = interval(LOOK);
    while begun.elapsed() < attack.lasts + attack.settle {
        looks.tick().await;
        if begun.elapsed() >= attack.lasts {
            attackers.begin_nothing();
        }
        let (asked, served) = honest.since_last_look();
        let held = attackers.held();
        let memory = server.memory().map(|memory| memory.now);
        moments.push(Moment {
            at: begun.elapsed(),
            asked,
            served,
            held,
            memory,
        });
        progress.show(held, served, asked);
    }
    let held = attackers.held();
    let answers = attackers.end().await;
    let honest = honest.end().await;
    let reasons = server.reasons().await;
    sleep(AFTER).await;
    let at_end = server.memory();
    server.end().await;
    Ok(Outcome {
        kind,
        honest,
        held,
        answers,
        reasons,
        at_start,
        at_end,
        moments,
    })
}

// === Progress ===

/// What goes on, on stderr: one line that changes on a terminal, a line per attack elsewhere.
struct Progress {
    terminal: bool,
    done: usize,
    all: usize,
    what: String,
    ends: Instant,
}

impl Progress {
    fn new(attacks: &[Attack]) -> Self {
        let one = |attack: &Attack| attack.lasts + attack.settle + BEFORE + AFTER;
        let all: Duration = attacks.iter().map(one).sum();
        let all = all * Kind::ALL.len() as u32;
        let terminal = std::io::stderr().is_terminal();
        eprintln!(
            "{} attacks on 3 servers, about {} s",
            attacks.len(),
            all.as_secs()
        );
        let (done, what) = (0, String::new());
        let ends = Instant::now() + all;
        Self {
            terminal,
            done,
            all: attacks.len() * Kind::ALL.len(),
            what,
            ends,
        }
    }

    fn begin(&mut self, attack: &Attack, kind: Kind) {
        self.done += 1;
        self.what = format!(
            "[{:>2}/{}] {} on {}",
            self.done,
            self.all,
            attack.name,
            kind.name()
        );
    }

    fn show(&self, held: usize, served: u64, asked: u64) {
        if self.terminal {
            let left = self
                .ends
                .saturating_duration_since(Instant::now())
                .as_secs();
            let what = &self.what;
            eprint!("\r\x1b[K{what:<48} honest {served}/{asked}  held {held}  {left} s left");
            let _ = std::io::stderr().flush();
        }
    }

    fn end(&self, outcome: &Outcome) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        let percent = report::percent(outcome.honest.rate());
        eprintln!(
            "{clear}{:<48} honest {percent:>7}  held {}",
            self.what, outcome.held
        );
    }
}
