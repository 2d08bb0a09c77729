//! Children on real sockets: this test program, started again as a server.

use super::*;
use crate::{Drill, Verdict};
use axum::{
    Router,
    body::Bytes,
    http::StatusCode,
    routing::{get, post},
};
use http_body_util::BodyExt;
use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::sync::Semaphore;

/// Returns the command that serves with the test `name`.
fn command(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--test-threads=1"])
        .env("DRILL_TEST_SERVES", "yes")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn server() -> Command {
    command("child::tests::the_server_of_other_tests")
}

/// Returns whether tests are run that take 15 s or more, each a drill: `.ci/long` does.
fn is_long() -> bool {
    let is_long = std::env::var_os("PALISADE_LONG_DRILLS").is_some();
    if !is_long {
        println!("skipped: PALISADE_LONG_DRILLS is not set");
    }
    is_long
}

/// For other tests, which start it in a child process. Serves `/`, and ends with status 7 after the
/// number of requests in `DRILL_TEST_REQUESTS`. Each loses the bytes in `DRILL_TEST_LEAK_BYTES`.
#[tokio::test]
async fn the_server_of_other_tests() {
    if std::env::var_os("DRILL_TEST_SERVES").is_none() {
        return;
    }
    let port = std::env::var("PORT").unwrap();
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let left = number("DRILL_TEST_REQUESTS").unwrap_or(u64::MAX);
    let leak_bytes = number("DRILL_TEST_LEAK_BYTES").unwrap_or(0) as usize;
    let left = Arc::new(AtomicU64::new(left));
    let hello = async move || {
        if left.fetch_sub(1, Relaxed) == 0 {
            std::process::exit(7);
        }
        std::mem::forget(vec![1_u8; leak_bytes]);
        "hello"
    };
    let places = Arc::new(Semaphore::new(4));
    let shed = async move || match places.try_acquire() {
        Ok(_place) => {
            // The turn of this thread comes after that of all that wait.
            tokio::task::yield_now().await;
            work();
            StatusCode::OK
        }
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let app = Router::new()
        .route("/", get(hello))
        .route("/work", get(async || work()))
        .route("/keep", post(async |body: Bytes| body.len().to_string()))
        .route("/stream", post(count))
        .route("/shed", get(shed));
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}"));
    axum::serve(listener.await.unwrap(), app).await.unwrap();
}

/// Reads a body and keeps nothing of it.
async fn count(mut body: axum::body::Body) -> String {
    let mut bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
    bytes.to_string()
}

/// Takes 5 ms of processor time.
fn work() {
    let until = Instant::now() + Duration::from_millis(5);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Returns whether the process is there and runs.
fn runs(pid: u32) -> bool {
    !tree::members(pid).is_empty()
}

#[tokio::test]
async fn a_child_serves_is_limited_and_ends_with_its_handle() {
    let limits = Limits {
        files: Some(300),
        memory: Some(64 << 20),
    };
    let (child, target) = Child::start(server(), limits).await.unwrap();
    let pid = child.pid();
    assert!(runs(pid) && target.addr().ip().is_loopback());
    if limit::IS_POSSIBLE {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let files = limits.lines().find(|line| line.contains("open files"));
        let files: Vec<_> = files.unwrap().split_whitespace().collect();
        assert_eq!(files[3..5], ["300", "300"]);
    }
    // Either it has its own group, or that is said.
    let has_group = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
        .is_ok_and(|own| own.contains("palisade-drill-"));
    assert_eq!(child.group().is_some(), has_group);
    assert_eq!(child.cautions().contains(&NO_GROUP.to_owned()), !has_group);
    let meter = Meter::start(pid).unwrap().unwrap();
    let usage = meter.finish().await.unwrap();
    assert!(usage.memory_after > 1 << 20 && usage.files_after > 3);
    drop(child);
    assert!(!runs(pid));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_a_child_has_started_ends_with_it() {
    let mut shell = Command::new("sh");
    let server = server();
    let words = std::iter::once(server.get_program()).chain(server.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    shell.args(["-c", &format!("{} & wait", words.join(" "))]);
    shell.env("DRILL_TEST_SERVES", "yes");
    shell.stdout(Stdio::null()).stderr(Stdio::null());
    let (child, _) = Child::start(shell, Limits::default()).await.unwrap();
    let members = child.members.clone();
    assert_eq!(members.len(), 2);
    drop(child);
    // The second is not this process's child, so that its end is not waited for.
    while runs(members[1].pid) {
        tokio::task::yield_now().await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_a_child_leaves_behind_when_it_ends_itself_ends_too() {
    let pid_file = std::env::temp_dir().join(format!("palisade-drill-pid-{}", std::process::id()));
    let mut shell = Command::new("sh");
    let script = format!(
        "sleep 60 & echo $! > {}; sleep 1; exit 0",
        pid_file.display()
    );
    shell.args(["-c", &script]);
    let error = Child::start(shell, Limits::default())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("ended with exit status: 0"), "{error}");
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    std::fs::remove_file(pid_file).unwrap();
    let pid: u32 = pid.trim().parse().unwrap();
    let gone = async {
        while runs(pid) {
            tokio::task::yield_now().await;
        }
    };
    let patience = Duration::from_secs(20);
    assert!(tokio::time::timeout(patience, gone).await.is_ok());
}

#[tokio::test]
async fn a_child_that_does_not_serve_says_what_it_did() {
    let error = |command| async {
        let started = Child::start(command, Limits::default()).await;
        started.unwrap_err().to_string()
    };
    let text = error(Command::new("/nonexistent/server")).await;
    assert!(text.starts_with("/nonexistent/server serves nothing: it cannot be started"));
    let text = error(command("no_such_test")).await;
    assert!(
        text.contains("ended with exit status: 0 before it accepted"),
        "{text}"
    );
}

#[tokio::test]
async fn a_child_ends_when_the_drill_is_dropped_in_the_middle() {
    let marker = format!("drill-{}", std::process::id());
    let mut command = server();
    // An argument by which the process is found: a filter that no test has.
    command.args(["--skip", &marker]);
    let drill = Drill::child(command).quick().only("silent");
    let found = || {
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let mut all = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        all.any(|line| String::from_utf8_lossy(&line).contains(&marker))
    };
    {
        let mut run = std::pin::pin!(drill.run());
        let seen = async {
            while !found() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            report = &mut run => panic!("{report:?}"),
            () = seen, if cfg!(target_os = "linux") => {}
        }
    }
    assert!(!found());
}

#[tokio::test]
async fn a_child_that_ends_in_the_middle_is_down_with_its_exit_status() {
    let _turn = crate::drill::tests::TURNS.acquire().await;
    let drill = || {
        let mut command = server();
        // 20 requests a second: after the beginning of the attack.
        command.env("DRILL_TEST_REQUESTS", "40");
        Drill::child(command).only("churn")
    };
    let Some(report) = crate::drill::tests::until_judged("silent", drill).await else {
        return;
    };
    let silent = report.attack("silent").unwrap();
    assert_eq!(silent.verdict, Verdict::Down, "{report}");
    assert_eq!(silent.reason, "the server ended with exit status: 7");
    assert_eq!(report.skipped[0].reason, "the target is down");
    assert_eq!(silent.server, None);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_low_file_limit_makes_places_short() {
    if !is_long() {
        return;
    }
    let _turn = crate::drill::tests::TURNS.acquire().await;
    let drill = Drill::child(server())
        .file_limit(128)
        .quick()
        .only("file-limit");
    let report = drill.run().await.unwrap();
    let result = &report.attacks[0];
    assert!(result.verdict != Verdict::Held, "{report}");
    assert_eq!(result.attackers.connections, 400);
    assert!(report.to_string().contains(" with 128 files:"), "{report}");
    // Only what the server has accepted takes a file.
    let usage = result.server.as_ref().unwrap();
    assert!((100..=140).contains(&usage.files_peak), "{report}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn uploads_held_open_end_a_server_that_keeps_them_and_not_one_that_does_not() {
    let verdict = async |path: &str| {
        let _turn = crate::drill::tests::TURNS.acquire().await;
        let drill = Drill::child(server()).memory_limit(256 << 20).post(path);
        let drill = drill.quick().only("held-open-uploads");
        let report = drill.run().await.unwrap();
        println!("{report}");
        report
    };
    let report = verdict("/keep").await;
    let Some(result) = report.attacks.first() else {
        assert_eq!(report.skipped[0].reason, NO_GROUP);
        return;
    };
    assert_eq!(result.verdict, Verdict::Down, "{report}");
    let reason = "the kernel ended a process of the server at its limit of 256 MiB";
    assert_eq!(result.reason, reason);
    if is_long() {
        let streams = &verdict("/stream").await.attacks[0];
        assert!([Verdict::Held, Verdict::Inconclusive].contains(&streams.verdict));
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn memory_that_every_round_raises_is_kept() {
    if !is_long() {
        return;
    }
    let _turn = crate::drill::tests::TURNS.acquire().await;
    let mut command = server();
    command.env("DRILL_TEST_LEAK_BYTES", "8192");
    let report = Drill::child(command).quick().only("churn").run().await;
    let report = report.unwrap();
    let expected = [Verdict::Kept, Verdict::Inconclusive];
    assert!(expected.contains(&report.attacks[0].verdict), "{report}");
    println!("{report}");
}

#[tokio::test]
async fn what_a_child_uses_is_in_the_report() {
    let _turn = crate::drill::tests::TURNS.acquire().await;
    let drill = Drill::child(server()).quick().only("churn");
    let report = drill.run().await.unwrap();
    let text = report.to_string();
    if Meter::is_known() {
        let usage = report.attacks[0].server.as_ref().unwrap();
        assert!(usage.files_peak >= usage.files_before && usage.memory_peak > 1 << 20);
        assert!(usage.cpu_seconds > 0.0, "{usage:?}");
        assert!(text.contains(" s of processor time"), "{text}");
    } else {
        assert!(text.contains("are not measured"), "{text}");
    }
    assert_eq!(crate::Report::from_json(&report.to_json()), Ok(report));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_overload_is_held_by_a_server_that_refuses_and_not_by_one_that_lets_all_wait() {
    if !is_long() {
        return;
    }
    let all = crate::drill::tests::MAX_DRILLS_AT_ONCE;
    let _turns = crate::drill::tests::TURNS.acquire_many(all).await;
    let verdict = async |path: &str| {
        let drill = Drill::child(server()).cpu_get(path).quick();
        let report = drill.only("cpu-overload").run().await.unwrap();
        println!("{report}");
        report.attacks[0].verdict
    };
    // A busy machine says nothing.
    let refuses = verdict("/shed").await;
    assert!([Verdict::Held, Verdict::Inconclusive].contains(&refuses));
    let waits = verdict("/work").await;
    assert!([Verdict::Harmed, Verdict::Down, Verdict::Inconclusive].contains(&waits));
}

/// For another test, which starts it in child processes. Keeps a core busy for a minute.
#[test]
fn the_busy_process_of_another_test() {
    if std::env::var_os("DRILL_TEST_SPINS").is_none() {
        return;
    }
    let until = Instant::now() + Duration::from_secs(60);
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// Child processes that end with their handle.
struct Busy(Vec<std::process::Child>);

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn beside_another_process_on_every_core_a_drill_is_held_or_says_nothing() {
    if !is_long() {
        return;
    }
    let _turn = crate::drill::tests::TURNS.acquire().await;
    let cores = std::thread::available_parallelism().unwrap().get();
    let busy = (0..cores).map(|_| {
        let mut command = command("child::tests::the_busy_process_of_another_test");
        command.env("DRILL_TEST_SPINS", "yes").spawn().unwrap()
    });
    let busy = Busy(busy.collect());
    let drill = Drill::child(server()).rehearse().quick();
    let report = drill.only("silent").only("churn").run().await.unwrap();
    drop(busy);
    println!("{report}");
    for attack in &report.attacks {
        let verdicts = [Verdict::Held, Verdict::Inconclusive];
        assert!(verdicts.contains(&attack.verdict), "{report}");
        // They took what two processes on each core can take, or most of it.
        let processor = attack.processor.unwrap();
        assert!(processor.others > 0.4, "{processor:?}");
        assert!(processor.idle < 0.2, "{processor:?}");
    }
}
