//! Polls of a guarded socket: close decisions, wakes and probes.

use super::*;
use crate::CloseMode;
use std::io::IoSlice;
use tokio_test::{assert_pending, assert_ready, task::spawn};

/// A call of one poll function, without the number of bytes that it returns.
type PollFunction =
    fn(Pin<&mut GuardedIo<TestTransport>>, &mut Context<'_>) -> Poll<io::Result<()>>;

const POLL_FUNCTIONS: [(&str, PollFunction); 5] = [
    ("poll_read", |io, cx| {
        io.poll_read(cx, &mut ReadBuf::new(&mut [0; 8]))
    }),
    ("poll_write", |io, cx| io.poll_write(cx, b"x").map_ok(drop)),
    ("poll_write_vectored", |io, cx| {
        io.poll_write_vectored(cx, &[IoSlice::new(b"x")])
            .map_ok(drop)
    }),
    ("poll_flush", |io, cx| io.poll_flush(cx)),
    ("poll_shutdown", |io, cx| io.poll_shutdown(cx)),
];

#[tokio::test(start_paused = true)]
async fn every_poll_function_reports_a_close_decision() {
    for (name, poll_function) in POLL_FUNCTIONS {
        for mode in [CloseMode::Graceful, CloseMode::Reset] {
            let (guard, _) = tracking_guard(ConnGuard::builder());
            let mut pair = connect(&guard);
            pair.client.write_all(b"unread").await.unwrap();
            pair.server.conn().state().request_close(CloseDecision {
                reason: Reason::Idle,
                mode,
            });
            let mut task = spawn(());
            let mut io = Pin::new(&mut pair.server);
            let result = assert_ready!(task.enter(|cx, _| poll_function(io.as_mut(), cx)));
            let is_error = !matches!(
                (name, mode),
                ("poll_read" | "poll_shutdown", CloseMode::Graceful)
            );
            assert_eq!(result.is_err(), is_error, "{name} {mode:?}");
            assert_eq!(
                pair.reset.load(Relaxed),
                mode == CloseMode::Reset,
                "{name} {mode:?}"
            );
            if name == "poll_read" {
                assert_eq!(pair.server.conn().state().stats().read, 0);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_decision_wakes_the_reader_and_the_writer() {
    let (guard, _) = tracking_guard(ConnGuard::builder());
    let Pair {
        server,
        client: _client,
        ..
    } = connect(&guard);
    let conn = server.conn().clone();
    let (mut read, mut write) = tokio::io::split(server);
    let mut reader = spawn(async move { read.read(&mut [0; 8]).await });
    let mut writer = spawn(async move { write.write_all(&[0; 4096]).await });
    assert_pending!(reader.poll());
    assert_pending!(writer.poll());
    assert!(guard.close(&conn, Reason::MaxAge, CloseMode::Reset));
    assert!(reader.is_woken() && writer.is_woken());
    assert_ready!(reader.poll()).unwrap_err();
    assert_ready!(writer.poll()).unwrap_err();
    drop((reader, writer));
    assert_nothing_left(&guard);
}

#[tokio::test(start_paused = true)]
async fn a_hang_up_behind_an_unread_byte_is_found_by_a_probe_in_poll_flush() {
    let (guard, journal) = tracking_guard(ConnGuard::builder());
    let Pair {
        mut server,
        mut client,
        hung_up,
        ..
    } = connect_unread(&guard, 1).unwrap();
    // All bytes arrive before the first read, so the reader never waits.
    client.write_all(b"request and a byte more").await.unwrap();
    server.read_exact(&mut [0; 23]).await.unwrap();
    let _request = server.conn().begin_request(false);
    let started = Instant::now();
    // hyper flushes whenever it is polled, and polls nothing else until it is woken.
    let mut polls = 0;
    let result = std::future::poll_fn(|cx| {
        polls += 1;
        // The first probe finds the client, so the task must be woken for a second one.
        hung_up.store(polls > 2, Relaxed);
        match Pin::new(&mut server).poll_flush(cx) {
            Poll::Ready(Ok(())) => Poll::Pending,
            other => other,
        }
    })
    .await;
    assert_eq!(violation(&result.unwrap_err()).reason, Reason::HungUp);
    assert_within_two_ticks(started.elapsed(), 10 * SECOND);
    drop(server);
    assert_eq!(journal.closed(), [Some(Reason::HungUp)]);
}
