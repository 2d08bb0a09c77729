//! Accepting connections with a guarded listener.

use super::*;
use crate::{GuardedListener, Listener};
use std::collections::VecDeque;
use tokio::time::{advance, timeout};
use tokio_test::{assert_pending, assert_ready, task::spawn};

/// A listener that returns these results in order.
struct ScriptedListener(VecDeque<io::Result<TestTransport>>);

impl Listener for ScriptedListener {
    type Io = TestTransport;

    fn poll_accept(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<io::Result<(TestTransport, Option<SocketAddr>)>> {
        match self.0.pop_front() {
            Some(next) => Poll::Ready(next.map(|transport| (transport, peer(1)))),
            None => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(([127, 0, 0, 1], 80).into())
    }

    fn local_of(_: &TestTransport) -> Option<SocketAddr> {
        None
    }
}

fn transport() -> TestTransport {
    TestTransport::new(duplex(64).0)
}

/// The error of a process without free files.
fn emfile() -> io::Result<TestTransport> {
    Err(io::Error::from_raw_os_error(24))
}

fn listen(
    guard: &ConnGuard,
    results: Vec<io::Result<TestTransport>>,
) -> GuardedListener<ScriptedListener> {
    guard.listen(ScriptedListener(results.into()))
}

#[tokio::test(start_paused = true)]
async fn accepting_skips_an_aborted_connection_and_pauses_after_a_shortage() {
    let guard = ConnGuard::default();
    let results = vec![
        Err(io::ErrorKind::ConnectionAborted.into()),
        Ok(transport()),
        emfile(),
        emfile(),
        emfile(),
        emfile(),
        emfile(),
        Ok(transport()),
        Err(io::Error::other("an unknown error")),
        Ok(transport()),
    ];
    let mut listener = listen(&guard, results);
    let started = Instant::now();
    let _first = listener.accept().await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
    let _second = listener.accept().await.unwrap();
    assert_eq!(
        started.elapsed(),
        Duration::from_millis(10 + 20 + 40 + 80 + 100)
    );
    listener.accept().await.unwrap_err();
    let failed = Instant::now();
    let _third = listener.accept().await.unwrap();
    assert_eq!(failed.elapsed(), Duration::from_millis(10));
    let counts = guard.snapshot().accept_errors;
    assert_eq!(
        (counts.of_one_connection, counts.exhausted, counts.other),
        (1, 5, 1)
    );
    assert_eq!(gauge(&guard, Gauge::AcceptErrors), Some(5));
}

#[tokio::test(start_paused = true)]
async fn endless_failures_to_accept_do_not_spin() {
    let guard = ConnGuard::default();
    let aborted = || Err(io::ErrorKind::ConnectionAborted.into());
    let mut listener = listen(&guard, (0..1_000_000).map(|_| aborted()).collect());
    timeout(10 * SECOND, listener.accept()).await.unwrap_err();
    let failures = guard.snapshot().accept_errors.of_one_connection;
    // 10 s of pauses of up to 100 ms, and the failures before the first pause.
    assert!(failures < 200, "{failures}");
}

#[tokio::test(start_paused = true)]
async fn a_shortage_of_files_evicts_a_silent_connection_and_no_newcomer() {
    let (guard, journal) = tracking_guard(ConnGuard::builder());
    let silent = connect(&guard);
    advance(SECOND).await;
    let newcomer = connect(&guard);
    let mut listener = listen(&guard, vec![emfile(), emfile(), Ok(transport())]);
    listener.accept().await.unwrap();
    assert!(newcomer.decision().is_none());
    assert!(silent.decision().is_some());
    assert_eq!(
        journal.disconnected()[0].0.reason,
        Reason::ConnectionEvicted
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_waits_until_the_evicted_one_is_closed() {
    let (guard, journal) =
        tracking_guard(ConnGuard::builder().max_connections(2).max_per_client(None));
    let accepted = (0..50).map(|_| Ok(transport())).collect();
    let mut listener = listen(&guard, accepted);
    for _ in 0..50 {
        let (mut io, _) = listener.accept().await.unwrap();
        tokio::spawn(async move { io.read(&mut [0]).await.map(drop) });
    }
    assert!(
        journal
            .disconnected()
            .iter()
            .all(|(violation, _)| violation.reason == Reason::ConnectionEvicted)
    );
    assert_eq!(guard.snapshot().refused, 0);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_accept_future_loses_no_connection() {
    let (guard, _) = tracking_guard(ConnGuard::builder().max_connections(1).max_per_client(None));
    let evicted = connect(&guard);
    let mut listener = listen(&guard, vec![Ok(transport())]);
    let mut accept = spawn(listener.accept());
    assert_pending!(accept.poll()); // The evicted connection is still open.
    drop(accept);
    drop(evicted);
    let accept = spawn(listener.accept()).poll();
    assert_ready!(accept).unwrap();
}
