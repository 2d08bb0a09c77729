//! Drills of reference servers: what each of them holds, and why (T01, T03, T06, T11).
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "the report of a drill that fails")]

mod matrix;
mod modes;
mod proxies;
mod repeats;
mod servers;
mod tls;

use palisade_drill::{Drill, Verdict};
use tokio::{net::TcpListener, sync::Semaphore};

/// Drills wait for most of their time, and two at once do not disturb each other. A flood does.
static TURNS: Semaphore = Semaphore::const_new(MAX_DRILLS as usize);
const MAX_DRILLS: u32 = 2;
/// How often an attack is repeated. A hole is open each time, and a busy machine is not busy for
/// ever.
const MAX_RUNS: usize = 3;

/// What is expected of a server under one attack.
struct Row {
    attack: &'static str,
    expected: &'static [Verdict],
    why: &'static str,
}

const fn row(attack: &'static str, expected: &'static [Verdict], why: &'static str) -> Row {
    Row {
        attack,
        expected,
        why,
    }
}

const HELD: &[Verdict] = &[Verdict::Held];
const KEPT: &[Verdict] = &[Verdict::Kept];
const HARMED: &[Verdict] = &[Verdict::Harmed, Verdict::Down];

/// Returns whether drills are run that take long: `.ci/long` does.
fn is_long() -> bool {
    let is_long = std::env::var_os("PALISADE_LONG_DRILLS").is_some();
    if !is_long {
        println!("skipped: PALISADE_LONG_DRILLS is not set");
    }
    is_long
}

/// Drills the server that `serve` runs under each attack of the table.
async fn check<Fut: Future + 'static>(
    serve: impl Fn(TcpListener) -> Fut + Clone + Send + 'static,
    table: &[Row],
) {
    let make = || Drill::serving(serve.clone()).places(servers::PLACES);
    check_drill(make, table).await;
}

/// Runs the drill that `make` returns under each attack of the table.
///
/// An attack with another verdict, or with none, is repeated.
async fn check_drill(make: impl Fn() -> Drill, table: &[Row]) {
    if !is_long() {
        return;
    }
    let is_flood = table.iter().any(|row| row.attack.contains("flood"));
    let turns = if is_flood { MAX_DRILLS } else { 1 };
    let _turns = TURNS.acquire_many(turns).await.unwrap();
    let mut open: Vec<_> = table.iter().collect();
    let mut last = String::new();
    for _ in 0..MAX_RUNS {
        let drill = make().quick();
        let drill = drill.post("/upload").large("/large");
        let drill = open.iter().fold(drill, |drill, row| drill.only(row.attack));
        let report = drill.run().await.unwrap();
        println!("{report}");
        // An attack may be skipped because an earlier one has brought the server down.
        open.retain(|row| {
            let result = report.attack(row.attack);
            !result.is_some_and(|result| row.expected.contains(&result.verdict))
        });
        if open.is_empty() {
            return;
        }
        last = report.to_string();
    }
    let rows = open
        .iter()
        .map(|row| format!("{}: {}\n", row.attack, row.why));
    panic!("not as expected:\n{}\n{last}", rows.collect::<String>());
}

#[tokio::test]
async fn axum_alone_falls_to_silent_connections() {
    let table = [row(
        "silent",
        HARMED,
        "nothing ends a connection that sends nothing",
    )];
    check(servers::bare, &table).await;
}

#[tokio::test]
async fn careful_layers_hold_neither_connections_nor_dripped_uploads() {
    let table = [
        row(
            "silent",
            HARMED,
            "no layer sees a connection without a request",
        ),
        row(
            "slow-body",
            HARMED,
            "an upload holds its permit while it drips",
        ),
    ];
    check(servers::careful, &table).await;
}

#[tokio::test]
async fn palisade_alone_holds_what_takes_connections() {
    let table = [
        row(
            "silent",
            HELD,
            "a silent connection makes room for a newcomer",
        ),
        row("dripped-head", HELD, "so does one without a whole head"),
    ];
    check(servers::palisade_bare, &table).await;
}

#[tokio::test]
async fn without_its_guard_palisade_keeps_silent_connections() {
    let table = [row("silent", KEPT, "no guard closes a connection")];
    check(servers::palisade_off, &table).await;
}

#[tokio::test]
async fn palisade_with_its_stack_makes_room_for_newcomers() {
    let table = [
        row(
            "silent",
            HELD,
            "a silent connection makes room for a newcomer",
        ),
        row(
            "slow-body",
            HARMED,
            "an upload that drips holds no permit, but its place until it is known to drip",
        ),
    ];
    check(servers::palisade_stacked, &table).await;
}

#[tokio::test]
async fn a_quota_holds_a_flood_from_one_address() {
    const FLOOD: &str = "flood-from-one-address";
    let table = [row(FLOOD, HARMED, "one client may have the whole pool")];
    check(servers::bare, &table).await;
    let table = [row(FLOOD, HELD, "tower_governor has a quota")];
    check(servers::careful, &table).await;
    let table = [row(FLOOD, HELD, "the stack has a quota")];
    check(servers::palisade_stacked, &table).await;
}

#[tokio::test]
async fn tonic_holds_floods_alone_and_connections_behind_palisade() {
    let silent = "its bounds are on streams, and on the age of a connection";
    let table = [
        row("silent", HARMED, silent),
        row("h2-idle", HARMED, silent),
        row(
            "rapid-reset",
            HELD,
            "20 streams that are reset end a connection",
        ),
    ];
    check(servers::tonic_alone, &table).await;
    let makes_room = "the guard of connections makes room";
    let table = [
        row("silent", HELD, makes_room),
        row("dripped-head", HELD, makes_room),
        row(
            "rapid-reset",
            HELD,
            "20 streams that are reset end a connection",
        ),
        row(
            "ping-flood",
            HELD,
            "the guard counts frames without a purpose",
        ),
    ];
    check(servers::tonic_hardened, &table).await;
}
