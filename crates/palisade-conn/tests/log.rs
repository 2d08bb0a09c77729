//! The lines that a guard logs.
//!
//! They are tested in a process of their own: if other tests build guards at the same time, tracing
//! may conclude that no subscriber is interested.
#![cfg(feature = "tracing")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use palisade_conn::{ConnGuard, Mode, Transport};
use palisade_core::{Event as GuardEvent, Metrics};
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tracing::{Event, Metadata, Subscriber, field, span};

/// A subscriber that keeps the lines of guards.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl field::Visit for Line {
    fn record_debug(&mut self, field: &field::Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!("{field}={value:?} ");
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "palisade"
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

impl Lines {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A socket on which one byte arrives, and no more. The field tells whether it has been read.
struct OneByte(bool);

impl Transport for OneByte {}

impl AsyncRead for OneByte {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Pending;
        }
        buf.put_slice(b"G");
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for OneByte {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Metrics that ignore every event.
struct Ignores;

impl Metrics for Ignores {
    fn record(&self, _: &GuardEvent<'_>) {}
}

/// Metrics that panic on every event.
struct Panics;

impl Metrics for Panics {
    fn record(&self, event: &GuardEvent<'_>) {
        panic!("{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_logs_its_cap_and_each_problem_once() {
    let lines = Lines::default();
    let _subscribed = tracing::subscriber::set_default(lines.clone());
    let guard = ConnGuard::builder().max_connections(5000).build().unwrap();
    drop(guard.clone());
    let shadow = ConnGuard::builder().mode(Mode::Shadow).build().unwrap();
    let of_shadow = lines.0.lock().unwrap().split_off(2);
    assert_eq!(of_shadow.len(), 1); // It enforces no bound.
    drop(shadow);
    let logged = lines.take();
    let [line, bound] = &logged[..] else {
        panic!("{logged:?}")
    };
    assert!(bound.contains(&guard.memory_bound().to_string()), "{bound}");
    for part in [
        "connections=5000 ",
        "from=max_connections ",
        "per_client=64 ",
    ] {
        assert!(line.contains(part), "{line}");
    }

    let serve = async |guard: &ConnGuard| {
        let peer = Some(([192, 0, 2, 1], 1).into());
        let mut io = guard.admit(OneByte(false), peer, None).unwrap();
        io.read_u8().await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        // The connection is not closed: without tracking it counts as working.
        let mut byte = [0; 1];
        let read = poll_fn(|cx| {
            Poll::Ready(Pin::new(&mut io).poll_read(cx, &mut ReadBuf::new(&mut byte)))
        });
        assert!(read.await.is_pending());
    };
    serve(&guard).await;
    serve(&guard).await;
    let logged = lines.take();
    let [line] = &logged[..] else {
        panic!("{logged:?}")
    };
    assert!(
        line.contains("connections=1") && line.contains("connected(app)"),
        "{line}"
    );

    // The line is logged also where metrics receive the event.
    let guard = ConnGuard::builder().metrics(Ignores).build().unwrap();
    lines.take();
    serve(&guard).await;
    assert_eq!(lines.take().len(), 1);

    // Metrics that panic on each of several events are logged once.
    let guard = ConnGuard::builder().metrics(Panics).build().unwrap();
    lines.take();
    let peer = Some(([192, 0, 2, 1], 1).into());
    drop(guard.admit(OneByte(false), peer, None).unwrap());
    drop(guard.admit(OneByte(false), peer, None).unwrap());
    let logged = lines.take();
    let [line] = &logged[..] else {
        panic!("{logged:?}")
    };
    assert!(line.contains("the metrics of a guard panicked"), "{line}");
}
