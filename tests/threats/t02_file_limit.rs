//! T02: 1,000 silent connections against a process that may open 600 files. Honest clients are
//! still served, because the cap follows the file limit. When other code in the process uses up the
//! files, accepting resumes as soon as files are free, without spinning meanwhile.
//!
//! The server is this test program, started once more with a lower limit.
#![cfg(unix)]

use axum::{Router, routing::get};
use palisade::conn::ConnGuard;
use palisade_testkit::{
    clients::{PATIENCE, RawClient},
    guarded::{SECOND, ServerKind, app, ask, read_until_closed},
    process,
};
use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, timeout},
};

/// The file limit of the server process.
const MAX_OPEN_FILES: u64 = 600;
/// The environment variable that makes this program the server.
const SERVER_VARIABLE: &str = "PALISADE_TEST_SERVER";

/// Runs the server; it is not a test. Does nothing unless [`SERVER_VARIABLE`] is set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server() {
    if std::env::var_os(SERVER_VARIABLE).is_none() {
        return;
    }
    process::lower_file_limit(MAX_OPEN_FILES).unwrap();
    let guard = ConnGuard::builder()
        .first_request_timeout(2 * SECOND)
        .build()
        .unwrap();
    let take_guard = guard.clone();
    // Uses up all files for a second. Returns the number of files taken and of accept errors
    // meanwhile.
    let take = || async move {
        let errors = || take_guard.snapshot().accept_errors.exhausted;
        let before = errors();
        let taken: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        tokio::time::sleep(SECOND).await;
        format!("{} {}", taken.len(), errors() - before)
    };
    let limit_guard = guard.clone();
    let limit = || async move { limit_guard.snapshot().limit.to_string() };
    let router = Router::new()
        .route("/take", get(take))
        .route("/limit", get(limit));
    let server = ServerKind::Axum.serve(&guard, app().merge(router)).await;
    println!("\nlistening {}", server.addr);
    tokio::time::sleep(4 * PATIENCE).await; // Killed by the test that started it.
}

async fn start_server() -> (Child, SocketAddr) {
    process::raise_file_limit();
    let (_, name) = concat!(module_path!(), "::server")
        .split_once("::")
        .unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(SERVER_VARIABLE, "1")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let found = async {
        loop {
            let line = lines
                .next_line()
                .await
                .unwrap()
                .expect("the server prints its address");
            if let Some(addr) = line.strip_prefix("listening ") {
                break addr.parse().unwrap();
            }
        }
    };
    let addr = timeout(PATIENCE, found).await.unwrap();
    (child, addr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn honest_clients_are_served_beside_more_silent_connections_than_files() {
    let (_child, addr) = start_server().await;
    let limit = ask(Ipv4Addr::LOCALHOST, addr, "/limit").await.unwrap();
    assert_eq!(limit.body(), "416");
    let neighbour = ServerKind::Axum.neighbour_on_one_connection(addr).await;
    let flood: JoinSet<_> = (0..1000)
        .map(|n| async move {
            let from = Ipv4Addr::new(127, 0, n as u8 % 10 + 10, n as u8 % 100 + 1);
            if let Ok(mut client) = RawClient::connect_from(from, addr).await {
                read_until_closed(&mut client).await;
            }
        })
        .collect();
    let mut served = 0;
    for n in 0..200 {
        let from = Ipv4Addr::new(127, 0, 4, n + 1);
        served += usize::from(ask(from, addr, "/").await.is_ok());
    }
    assert!(served >= 198, "{served} of 200");
    neighbour.was_served().await;
    timeout(PATIENCE, flood.join_all()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepting_waits_and_resumes_when_other_code_uses_up_the_files() {
    let (_child, addr) = start_server().await;
    let taking = tokio::spawn(ask(Ipv4Addr::LOCALHOST, addr, "/take"));
    // One connection after the other, until one finds no free file.
    let started = Instant::now();
    let mut slowest = Duration::ZERO;
    while !taking.is_finished() {
        let asked = Instant::now();
        let answer = ask(Ipv4Addr::new(127, 0, 0, 9), addr, "/").await.unwrap();
        assert_eq!(answer.body(), "served");
        slowest = slowest.max(asked.elapsed());
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let answer = taking.await.unwrap().unwrap();
    let answer = String::from_utf8(answer.body().to_vec()).unwrap();
    let (taken, errors) = answer.split_once(' ').unwrap();
    let (taken, errors): (usize, u64) = (taken.parse().unwrap(), errors.parse().unwrap());
    assert!(taken > 400, "{taken}");
    // Each accept error is followed by a pause of at least 10 ms within that second, whichever code
    // gets a file meanwhile: accepting neither spins nor stalls for a second afterwards.
    assert!((3..=105).contains(&errors), "{errors}");
    assert!(slowest < SECOND + SECOND / 2, "{slowest:?}");
}
