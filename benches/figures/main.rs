//! Measures the figures and prints them as one table.
//!
//! Fails if a count is more than 10 % worse than the committed one. A figure over its design limit
//! is marked in the table, but is not a failure. Counting needs valgrind and strace. If one of them
//! is missing, its figures are left out and a message is printed.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program prints"
)]

mod bans;
mod callgrind;
mod connections;
mod identity;
mod identity_rows;
mod keys;
mod rate_limits;
mod run;
mod scenarios;
mod shares;
mod syscalls;
mod table;

use callgrind::Cost;
use palisade_benches::{
    Ready, connection, for_peers, high_quota, palisade, peer_request, peers, request,
};
use std::{collections::BTreeMap, env, io, path::Path, process::ExitCode};
use table::{Limit, Limit::AtMost, Row};
use tower::{Layer, Service};

type Costs = BTreeMap<&'static str, Cost>;

fn main() -> io::Result<ExitCode> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [callgrind::ARGUMENT, group] => {
            callgrind::run_scenarios(group.parse().map_err(io::Error::other)?);
            Ok(ExitCode::SUCCESS)
        }
        [syscalls::ARGUMENT, server, requests] => {
            syscalls::serve_and_request(server, requests.parse().map_err(io::Error::other)?);
            Ok(ExitCode::SUCCESS)
        }
        [] => measure(false),
        ["--write"] => measure(true),
        _ => Err(io::Error::other("expected no argument or --write")),
    }
}

fn measure(write: bool) -> io::Result<ExitCode> {
    // Measure memory first, so that no freed memory is reused.
    let mut rows = vec![connections::measure_bytes()?];
    rows.extend(keys::measure()?);
    let mut is_complete = true;
    match callgrind::count()? {
        Some(costs) => {
            add_counts(&costs, &mut rows);
            identity_rows::add(&mut rows, |scenario, bare| {
                cost_over(&costs, scenario, bare)
            });
        }
        None => {
            is_complete = false;
            eprintln!("valgrind is missing: no instructions, allocations, clock reads or timers");
        }
    }
    match syscalls::count()? {
        Some(more) => rows.extend(more),
        None => {
            is_complete = false;
            eprintln!("strace is missing: no system calls");
        }
    }
    rows.push(future_size());
    rows.sort_by_key(|row| {
        row.id
            .trim_start_matches('P')
            .trim_end_matches(['b', 'd', 'w'])
            .parse::<u32>()
            .ok()
    });
    table::print(&rows);

    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/figures.txt"));
    if write {
        if !is_complete {
            return Err(io::Error::other(
                "the figures are incomplete, so they are not written",
            ));
        }
        table::write(&rows, file)?;
    }
    Ok(if table::compare(&rows, file)? {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Returns the cost of `scenario` minus the cost of `bare`.
fn cost_over(costs: &Costs, scenario: &str, bare: &str) -> Cost {
    let cost = |name: &str| {
        *costs
            .get(name)
            .unwrap_or_else(|| panic!("no scenario {name}"))
    };
    cost(scenario) - cost(bare)
}

/// Adds the rows that callgrind has counted.
fn add_counts(costs: &Costs, rows: &mut Vec<Row>) {
    let cost = |scenario: &str, bare: &str| cost_over(costs, scenario, bare);
    let ir = |scenario: &str, bare: &str| cost(scenario, bare).instructions;

    let ready = cost("ready palisade", "ready bare");
    let ready_peers = cost("ready peers", "ready bare-of-peers");
    let mut count = |id, figure, peers: Option<f64>, palisade, limit| {
        rows.push(Row::count(id, figure, peers, palisade, limit));
    };
    let figure = "six guards, handler ready, no body: instructions over bare";
    count(
        "P1",
        figure,
        Some(ready_peers.instructions),
        ready.instructions,
        AtMost(650.0),
    );
    let clone = ir("clone palisade", "ready bare");
    let clone_peers = ir("clone peers", "ready bare-of-peers");
    let figure = "the same with a clone of the service per request";
    count("P1", figure, Some(clone_peers), clone, AtMost(800.0));
    for (scenario, figure) in [
        (
            "off palisade",
            "all six switched off, nothing but wrapping: instructions over bare",
        ),
        (
            "load_shed palisade",
            "load shed alone: instructions over bare",
        ),
        (
            "rate_limit palisade",
            "rate limit alone: instructions over bare",
        ),
        ("timeout palisade", "timeout alone: instructions over bare"),
        (
            "body_limit palisade",
            "body limit alone: instructions over bare",
        ),
        (
            "slow_body palisade",
            "slow body alone: instructions over bare",
        ),
        (
            "concurrency_limit palisade",
            "concurrency limit alone: instructions over bare",
        ),
        (
            "concurrency_limit_fair palisade",
            "concurrency limit with fairness: instructions over bare",
        ),
    ] {
        count("P1", figure, None, ir(scenario, "ready bare"), Limit::None);
    }

    let identity = cost("ready bare", "anonymous bare");
    let identity_peers = cost("ready bare-of-peers", "anonymous bare-of-peers");
    let figure = "the identity in the request: instructions";
    count(
        "P1b",
        figure,
        Some(identity_peers.instructions),
        identity.instructions,
        AtMost(750.0),
    );
    let figure = "the identity in the request: allocations";
    count(
        "P1b",
        figure,
        Some(identity_peers.allocations),
        identity.allocations,
        AtMost(3.0),
    );

    let pending = cost("pending palisade", "pending bare");
    let pending_peers = cost("pending peers", "pending bare-of-peers");
    let figure = "handler Pending once: instructions over bare";
    count(
        "P2",
        figure,
        Some(pending_peers.instructions),
        pending.instructions,
        AtMost(1100.0),
    );
    let figure = "timers registered, handler ready";
    count(
        "P2",
        figure,
        Some(ready_peers.timers),
        ready.timers,
        AtMost(0.0),
    );
    let figure = "timers registered, handler Pending once";
    count(
        "P2",
        figure,
        Some(pending_peers.timers),
        pending.timers,
        AtMost(1.0),
    );

    let small = cost("small palisade", "small bare");
    let small_peers = cost("small peers", "small bare-of-peers");
    let figure = "allocations, no request body";
    count(
        "P3",
        figure,
        Some(ready_peers.allocations),
        ready.allocations,
        AtMost(0.0),
    );
    let figure = "allocations, with a request body of one frame";
    count(
        "P3",
        figure,
        Some(small_peers.allocations),
        small.allocations,
        AtMost(1.0),
    );
    let figure = "clock reads";
    count(
        "P3",
        figure,
        Some(ready_peers.clock_reads),
        ready.clock_reads,
        AtMost(1.0),
    );
    let figure = "a request body of one frame: instructions over bare";
    count(
        "P3",
        figure,
        Some(small_peers.instructions),
        small.instructions,
        Limit::None,
    );

    let upload = cost("upload16 palisade", "upload16 bare");
    let upload_peers = cost("upload16 peers", "upload16 bare-of-peers");
    let long = cost("upload48 palisade", "upload48 bare");
    let long_peers = cost("upload48 peers", "upload48 bare-of-peers");
    let per_frame = |long: Cost, short: Cost| (long - short).instructions / 32.0;
    let figure = "64 KiB uploaded in 16 frames: instructions over bare";
    count(
        "P4",
        figure,
        Some(upload_peers.instructions),
        upload.instructions,
        AtMost(1800.0),
    );
    let (frame, frame_peers) = (per_frame(long, upload), per_frame(long_peers, upload_peers));
    count(
        "P4",
        "instructions per frame of 4 KiB",
        Some(frame_peers),
        frame,
        AtMost(60.0),
    );
    let figure = "the same upload: clock reads";
    count(
        "P4",
        figure,
        Some(upload_peers.clock_reads),
        upload.clock_reads,
        AtMost(2.0),
    );
    let waiting = cost("waiting16 palisade", "waiting16 bare");
    let waiting_peers = cost("waiting16 peers", "waiting16 bare-of-peers");
    let figure = "the same with one wait for the client: instructions over bare";
    count(
        "P4",
        figure,
        Some(waiting_peers.instructions),
        waiting.instructions,
        Limit::None,
    );
    let figure = "the same with one wait for the client: clock reads";
    count(
        "P4",
        figure,
        Some(waiting_peers.clock_reads),
        waiting.clock_reads,
        Limit::None,
    );

    let waits = cost("waits16 palisade", "waits16 bare");
    let waits_peers = cost("waits16 peers", "waits16 bare-of-peers");
    let figure = "64 KiB uploaded in 16 frames, a wait before each: instructions over bare";
    let most = AtMost(12_000.0);
    count(
        "P4w",
        figure,
        Some(waits_peers.instructions),
        waits.instructions,
        most,
    );
    let wait = per_frame(cost("waits48 palisade", "waits48 bare"), waits);
    let wait_peers = per_frame(cost("waits48 peers", "waits48 bare-of-peers"), waits_peers);
    let figure = "instructions per wait and frame of 4 KiB";
    count("P4w", figure, Some(wait_peers), wait, AtMost(550.0));
    let figure = "the same upload: clock reads";
    count(
        "P4w",
        figure,
        Some(waits_peers.clock_reads),
        waits.clock_reads,
        Limit::None,
    );
    // Not over bare, because how often a runtime polls its driver depends on the other work.
    let figure = "the same upload in a task of a runtime: instructions, all of them";
    let whole = |scenario: &str| costs[scenario].instructions;
    count(
        "P4w",
        figure,
        Some(whole("task16 peers")),
        whole("task16 palisade"),
        Limit::None,
    );

    let download = cost("download16 palisade", "download16 bare");
    let download_peers = cost("download16 peers", "download16 bare-of-peers");
    let figure = "64 KiB answered in 16 frames: instructions over bare";
    let peers = Some(download_peers.instructions);
    count("P4d", figure, peers, download.instructions, AtMost(4500.0));
    let frame = per_frame(cost("download48 palisade", "download48 bare"), download);
    let frame_peers = per_frame(
        cost("download48 peers", "download48 bare-of-peers"),
        download_peers,
    );
    let figure = "instructions per frame of 4 KiB answered";
    count("P4d", figure, Some(frame_peers), frame, AtMost(120.0));

    let percent =
        |scenario: &str, bare: &str| 100.0 * ir(scenario, bare) / costs[bare].instructions;
    let figure = "end to end, hyper HTTP/1: % instructions over bare";
    let peers = percent("hyper_h1 peers", "hyper_h1 bare");
    count(
        "P6",
        figure,
        Some(peers),
        percent("hyper_h1 palisade", "hyper_h1 bare"),
        AtMost(8.0),
    );
    let figure = "end to end, around an axum Router, HTTP/1: %";
    let peers = percent("axum_h1_around peers", "axum_h1 bare");
    let ours = percent("axum_h1_around palisade", "axum_h1 bare");
    count("P6", figure, Some(peers), ours, AtMost(10.0));
    let figure = "end to end, around an axum Router, HTTP/2: %";
    let peers = percent("axum_h2_around peers", "axum_h2 bare");
    let ours = percent("axum_h2_around palisade", "axum_h2 bare");
    count("P6", figure, Some(peers), ours, AtMost(4.0));
    let figure = "end to end, by Router::layer, HTTP/1: %";
    let ours = percent("axum_h1_layer palisade", "axum_h1 bare");
    count("P6", figure, None, ours, AtMost(17.0));
    let figure = "end to end, by Router::layer, HTTP/2: %";
    let ours = percent("axum_h2_layer palisade", "axum_h2 bare");
    count("P6", figure, None, ours, AtMost(7.0));
    let figure = "a Router::layer that does nothing, HTTP/1: % (axum's own)";
    count(
        "P6",
        figure,
        None,
        percent("axum_h1_layer bare", "axum_h1 bare"),
        Limit::None,
    );

    // palisade's servers pass the peer to the handler. The design bounds the first figure of each
    // pair, which compares with an `axum::serve` that does so too. The second compares with plain
    // `axum::serve`; its column of peers is the cost of passing the peer alone.
    for ([bare, with_peer, ours], figures, most) in [
        (
            [
                "serve_h1 bare",
                "serve_h1 bare-with-peer",
                "serve_h1 guarded",
            ],
            [
                "axum::serve behind the guard, HTTP/1: % over one with connect info",
                "axum::serve behind the guard, HTTP/1: % over axum::serve as it is",
            ],
            10.0,
        ),
        (
            [
                "serve_h2 bare",
                "serve_h2 bare-with-peer",
                "serve_h2 guarded",
            ],
            [
                "axum::serve behind the guard, HTTP/2: % over one with connect info",
                "axum::serve behind the guard, HTTP/2: % over axum::serve as it is",
            ],
            4.0,
        ),
        (
            [
                "serve_h1 bare",
                "serve_h1 bare-with-peer",
                "serve_h1 palisade",
            ],
            [
                "palisade::serve, HTTP/1: % over axum::serve with connect info",
                "palisade::serve, HTTP/1: % over axum::serve as it is",
            ],
            10.0,
        ),
        (
            [
                "serve_h2 bare",
                "serve_h2 bare-with-peer",
                "serve_h2 palisade",
            ],
            [
                "palisade::serve, HTTP/2: % over axum::serve with connect info",
                "palisade::serve, HTTP/2: % over axum::serve as it is",
            ],
            4.0,
        ),
    ] {
        count(
            "P6",
            figures[0],
            None,
            percent(ours, with_peer),
            AtMost(most),
        );
        let peers = percent(with_peer, bare);
        count(
            "P6",
            figures[1],
            Some(peers),
            percent(ours, bare),
            Limit::None,
        );
    }

    let plain = cost("refused413h2 palisade", "huge2 bare");
    let figure = "413 without any header: instructions over bare";
    let peers = ir("refused413 peers", "huge bare-of-peers");
    count("P8", figure, Some(peers), plain.instructions, AtMost(600.0));
    let peers = cost("refused413 peers", "huge bare-of-peers").allocations;
    let figure = "413 without any header: allocations";
    count("P8", figure, Some(peers), plain.allocations, AtMost(1.0));
    let close = cost("refused413 palisade", "huge bare");
    let figure = "413 with Connection: close: instructions over bare";
    count("P8", figure, None, close.instructions, Limit::None);
    let short = cost("refused429short palisade", "ready bare");
    let peers = cost("refused429 peers", "ready bare-of-peers");
    let figure = "429 with Retry-After of a second: instructions over bare";
    count(
        "P8",
        figure,
        Some(peers.instructions),
        short.instructions,
        AtMost(1100.0),
    );
    let figure = "429 with Retry-After of a second: allocations";
    count(
        "P8",
        figure,
        Some(peers.allocations),
        short.allocations,
        AtMost(2.0),
    );
    let long = cost("refused429 palisade", "ready bare");
    let figure = "429 with Retry-After of an hour: instructions over bare";
    count(
        "P8",
        figure,
        Some(peers.instructions),
        long.instructions,
        Limit::None,
    );
    let stack = cost("refused429stack palisade", "ready bare");
    let peers = cost("refused429stack peers", "ready bare-of-peers");
    let figure = "429 by the whole stack, an hour: instructions over bare";
    count(
        "P8",
        figure,
        Some(peers.instructions),
        stack.instructions,
        Limit::None,
    );
    let ratio = |refused: &str| costs[refused].instructions / costs["hyper_h1 bare"].instructions;
    let figure = "429 end to end, in 200s with an empty body, hyper HTTP/1";
    let (ours, peers) = (
        ratio("hyper_h1_refused palisade"),
        ratio("hyper_h1_refused peers"),
    );
    count("P8", figure, Some(peers), ours, AtMost(1.0));

    for (scenario, bare, figure) in [
        (
            "read palisade",
            "read bare",
            "a read of a guarded connection: instructions over bare",
        ),
        (
            "read_pending palisade",
            "read_pending bare",
            "a read that finds nothing: instructions over bare",
        ),
        (
            "write palisade",
            "write bare",
            "a write: instructions over bare",
        ),
        (
            "flush palisade",
            "flush bare",
            "a flush: instructions over bare",
        ),
    ] {
        count("P15", figure, None, ir(scenario, bare), AtMost(60.0));
    }
    let figure = "asking for both shares at rest, guard or layer: instructions";
    let asked = ir("shares palisade", "shares bare");
    count("P16", figure, None, asked, AtMost(12.0));
    // A policy that may refuse costs some instructions beyond its own.
    let figure = "load shed alone, which counts too: instructions over an empty policy";
    let asked = ir("load_shed palisade", "no_guard palisade");
    count("P16", figure, None, asked, Limit::None);

    let figure = "a sweep over one idle connection: instructions";
    let each = ir("sweep many", "sweep none") / f64::from(connections::SWEPT_CONNECTIONS);
    count("P15", figure, None, each, AtMost(100.0));
}

/// Returns the size that the guards add to a request's future.
fn future_size() -> Row {
    let conn = connection();
    let size = |future: &dyn std::any::Any| size_of_val(future);
    let ours = size(&palisade(high_quota()).layer(Ready).call(request(&conn)));
    let theirs = size(&peers(true).service(for_peers(Ready)).call(peer_request()));
    let (bare, bare_of_peers) = (
        size(&Ready.call(request(&conn))),
        size(&for_peers(Ready).call(peer_request())),
    );
    let over = |guarded: usize, bare: usize| guarded as f64 - bare as f64;
    let figure = "bytes added to the future of a request";
    Row::count(
        "P14",
        figure,
        over(theirs, bare_of_peers),
        over(ours, bare),
        AtMost(96.0),
    )
}
