//! Prints how servers behave while their handlers need more processor time than there is. Each
//! server is a process of its own. Takes 20 minutes; an argument chooses the rows that contain it.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a command-line program prints, and ends with a panic"
)]

mod server;

use palisade_testkit::{
    cpu::rounds_in,
    cpu_group::CpuGroup,
    guarded::ServerKind,
    open_loop::{Answer, Outcome, Pool, evenly, in_bursts},
    process::raise_file_limit,
};
use server::{Spec, start_others};
use std::{env, sync::Arc, thread, time::Duration};

const SECOND: Duration = Duration::from_secs(1);
/// The requests of this time in the beginning are shown in a row of their own.
const START: Duration = Duration::from_secs(3);
const TIME: Duration = Duration::from_secs(15);
/// What one request burns.
const HANDLER: Duration = Duration::from_millis(10);

/// What happens while requests arrive.
#[derive(Clone, Copy, Debug)]
enum Scenario {
    /// Requests come evenly, at this part of the capacity.
    Even(f64),
    /// Bursts of 300 ms at three times the capacity, six tenths in the mean.
    Bursts,
    /// A worker is blocked for 5 s, beside half of the capacity.
    Blocked,
    /// Other processes burn 300 ms of each 600 on every processor, beside half of the capacity.
    BurstingOthers,
    /// Other processes burn half of every processor, at one and a half times the capacity beside
    /// them.
    Others,
    /// Half a processor at most, by the quota of a control group, at twice the capacity of that.
    Quota,
}

fn main() {
    server::serve_if_told();
    raise_file_limit();
    let arguments = env::args().skip(1);
    let wanted: Vec<_> = arguments
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    println!(
        "{:46} {:>8} {:>8} {:>5} {:>8} {:>5} {:>6} {:>7} {:>7}",
        "scenario", "capacity", "in time", "part", "refused", "late", "failed", "p50 ms", "p99 ms"
    );
    let rounds = rounds_in(HANDLER);
    let all = [
        ("2 x", Scenario::Even(2.0)),
        ("10 x", Scenario::Even(10.0)),
        ("0.7 x", Scenario::Even(0.7)),
        ("0.9 x", Scenario::Even(0.9)),
        ("bursts", Scenario::Bursts),
        ("blocked", Scenario::Blocked),
        ("bursting others", Scenario::BurstingOthers),
        ("others", Scenario::Others),
        ("quota", Scenario::Quota),
    ];
    let overload = &all[..2];
    for (name, kind, scenarios) in [
        ("serve", ServerKind::Serve, &all[..]),
        ("axum", ServerKind::Axum, overload),
        ("tonic", ServerKind::Tonic, overload),
    ] {
        for workers in [0, 1, 2, 4] {
            for is_guarded in [false, true] {
                let spec = Spec {
                    kind,
                    workers,
                    is_guarded,
                    rounds,
                };
                let runtime = if workers == 0 {
                    'c'.to_string()
                } else {
                    workers.to_string()
                };
                let off = if is_guarded { "" } else { " off" };
                for (scenario_name, scenario) in scenarios {
                    let title = format!("{name} {runtime}{off}: {scenario_name}");
                    let is_wanted = wanted.iter().all(|wanted| title.contains(wanted.as_str()));
                    // Without the guard only the overload is of interest.
                    let is_shown = is_guarded || matches!(scenario, Scenario::Even(2.0));
                    // A blocked worker needs another one.
                    let is_possible = workers > 1 || !matches!(scenario, Scenario::Blocked);
                    if is_wanted && is_shown && is_possible {
                        run(&title, spec, *scenario);
                    }
                }
            }
        }
    }
}

fn run(title: &str, spec: Spec, scenario: Scenario) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(async {
        let group = match scenario {
            Scenario::Quota => match CpuGroup::create(SECOND / 20, SECOND / 10) {
                Some(group) => Some(group),
                None => return println!("{title}: this process may not create control groups"),
            },
            _ => None,
        };
        let server = spec.start();
        if let Some(group) = &group {
            group.add(server.process.id()).unwrap();
        }
        let pool = Pool::open(spec.kind, server.addr, 1000).await;
        let threads = spec.workers.max(1);
        let _others = match scenario {
            Scenario::Others => Some(start_others(processors(), SECOND, Duration::ZERO)),
            _ => None,
        };
        let capacity = pool.throughput(2 * threads, 2 * SECOND).await;
        let answers = answers(&pool, capacity, scenario).await;
        let rows = [(" (first 3 s)", Duration::ZERO, START), ("", START, TIME)];
        for (part, from, to) in rows {
            let outcome = Outcome::of(&answers, from, to);
            show(&format!("{title}{part}"), capacity, &outcome);
        }
    });
}

async fn answers(pool: &Arc<Pool>, capacity: f64, scenario: Scenario) -> Vec<Answer> {
    let (burst, period) = (3 * SECOND / 10, 3 * SECOND / 2);
    match scenario {
        Scenario::Even(load) => pool.send_at("/cpu", evenly(load * capacity, TIME)).await,
        Scenario::Bursts => {
            let times = in_bursts(3.0 * capacity, burst, period, TIME);
            pool.send_at("/cpu", times).await
        }
        Scenario::Blocked => {
            let (mut answers, blocked) = tokio::join!(
                pool.send_at("/cpu", evenly(0.5 * capacity, TIME)),
                pool.send_at("/block", [2 * SECOND]),
            );
            answers.extend(blocked);
            answers
        }
        Scenario::BurstingOthers => {
            let _others = start_others(processors(), burst, burst);
            pool.send_at("/cpu", evenly(0.5 * capacity, TIME)).await
        }
        Scenario::Others => pool.send_at("/cpu", evenly(1.5 * capacity, TIME)).await,
        Scenario::Quota => pool.send_at("/cpu", evenly(2.0 * capacity, TIME)).await,
    }
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn show(name: &str, capacity: f64, outcome: &Outcome) {
    let Outcome {
        per_second,
        refused,
        late,
        failed,
        p50,
        p99,
    } = outcome;
    let part = per_second / capacity;
    let [p50, p99] = [p50, p99].map(|time| time.as_secs_f64() * 1e3);
    println!(
        "{name:46} {capacity:8.1} {per_second:8.1} {part:5.2} {refused:8} {late:5} {failed:6} \
         {p50:7.1} {p99:7.1}"
    );
}
