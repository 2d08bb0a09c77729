//! The server: a process of its own, with handlers that burn processor time in async code.

use axum::{Router, routing::get};
use palisade::conn::{ConnGuard, RuntimeLoad};
use palisade_testkit::{
    cpu::burn,
    guarded::ServerKind,
    server_process::{ChildProcess, ServerProcess, say_listening},
};
use std::{env, future::pending, thread, time::Duration};
use tokio::time::Instant;

/// Tells a child process what to do, in place of running the scenarios.
const SERVES: &str = "PALISADE_TEST_OVERLOAD";

/// What a server is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) kind: ServerKind,
    /// 0 for tokio's current-thread runtime.
    pub(crate) workers: usize,
    /// Whether the guard refuses requests for the load of the runtime.
    pub(crate) is_guarded: bool,
    /// The rounds of [`burn`] of one request.
    pub(crate) rounds: u64,
}

impl Spec {
    /// Starts the server.
    pub(crate) fn start(self) -> ServerProcess {
        let Self {
            kind,
            workers,
            is_guarded,
            rounds,
        } = self;
        let told = format!("{kind:?} {workers} {is_guarded} {rounds}");
        ChildProcess::start([(SERVES, told)]).serving()
    }
}

/// Starts so many processes that burn processor time beside a server, and pause in turn, for these
/// times.
pub(crate) fn start_others(count: usize, burn: Duration, pause: Duration) -> Vec<ChildProcess> {
    let told = format!("{} {}", burn.as_millis(), pause.as_millis());
    let start = |_| ChildProcess::start([(SERVES, told.clone())]);
    (0..count).map(start).collect()
}

/// Serves for ever if this process is a child, or [burns time](start_others). Otherwise returns.
pub(crate) fn serve_if_told() {
    let Ok(spec) = env::var(SERVES) else { return };
    // Ends with its parent, also if that is killed.
    thread::spawn(|| {
        let _ = std::io::stdin().lines().count();
        std::process::exit(0);
    });
    match spec.split(' ').collect::<Vec<_>>()[..] {
        [kind, workers, is_guarded, rounds] => serve(Spec {
            kind: ServerKind::ALL
                .into_iter()
                .find(|known| format!("{known:?}") == kind)
                .unwrap(),
            workers: workers.parse().unwrap(),
            is_guarded: is_guarded.parse().unwrap(),
            rounds: rounds.parse().unwrap(),
        }),
        [burn, pause] => {
            let [burn, pause] = [burn, pause].map(|text| text.parse().unwrap());
            burn_in_turns(Duration::from_millis(burn), Duration::from_millis(pause));
        }
        _ => panic!("{spec}"),
    }
}

fn serve(spec: Spec) {
    let runtime = if spec.workers == 0 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(spec.workers);
        runtime
    };
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(async {
        let load = spec.is_guarded.then(RuntimeLoad::default);
        let guard = ConnGuard::builder().runtime_load(load).build().unwrap();
        // In a task, where a worker polls it, as applications do.
        let server = tokio::spawn(async move { spec.kind.serve(&guard, app(spec.rounds)).await });
        let server = server.await.unwrap();
        say_listening(server.addr);
        pending::<()>().await;
    });
}

fn burn_in_turns(time: Duration, pause: Duration) -> ! {
    loop {
        let start = Instant::now();
        while start.elapsed() < time {
            burn(1000);
        }
        thread::park_timeout(pause);
    }
}

fn app(rounds: u64) -> Router {
    Router::new()
        .route("/", get("ready"))
        .route(
            "/cpu",
            get(async move || {
                burn(rounds);
                "done"
            }),
        )
        .route(
            "/block",
            get(async || {
                // As a call of a blocking library does.
                let start = Instant::now();
                while let Some(left) = Duration::from_secs(5).checked_sub(start.elapsed()) {
                    thread::park_timeout(left);
                }
                "done"
            }),
        )
        .route(
            "/sleep",
            get(async || {
                tokio::time::sleep(Duration::from_millis(900)).await;
                "done"
            }),
        )
}
