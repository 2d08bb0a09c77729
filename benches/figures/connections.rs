//! The cost of a guarded connection compared with a bare one: reads, writes, sweeps and bytes.

use crate::{
    keys::resident_bytes,
    run::Run,
    table::{Limit, Row},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use palisade::conn::{ConnGuard, GuardedIo, RequestTracking, Transport};
use palisade_benches::runtime;
use std::{
    any::Any,
    convert::Infallible,
    future::{pending, poll_fn, ready},
    hint::black_box,
    io,
    mem::forget,
    net::Ipv4Addr,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The number of connections of the memory measurement.
const CONNECTIONS: u32 = 20_000;
/// The number of connections of the sweep measurement.
pub(crate) const SWEPT_CONNECTIONS: u32 = 500;
const DAY: Duration = Duration::from_secs(86_400);
const MILLISECOND: Duration = Duration::from_millis(1);

/// A transport that allocates nothing. Writes always succeed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StubTransport {
    /// Each read returns bytes; otherwise each read is pending.
    pub(crate) has_data: bool,
}

/// One call of an I/O method.
pub(crate) type Call = fn(&mut dyn ReadWrite, &mut Context<'_>);

/// Both directions of a connection.
pub(crate) trait ReadWrite: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> ReadWrite for T {}

pub(crate) fn read(io: &mut dyn ReadWrite, cx: &mut Context<'_>) {
    let mut buf = [0; 64];
    let _ = black_box(Pin::new(io).poll_read(cx, &mut ReadBuf::new(&mut buf)));
}

pub(crate) fn write(io: &mut dyn ReadWrite, cx: &mut Context<'_>) {
    let _ = black_box(Pin::new(io).poll_write(cx, &[0; 64]));
}

pub(crate) fn flush(io: &mut dyn ReadWrite, cx: &mut Context<'_>) {
    let _ = black_box(Pin::new(io).poll_flush(cx));
}

/// Returns a run of `call` on one connection.
pub(crate) fn repeat_call(mut io: impl ReadWrite + 'static, call: Call) -> Run {
    Box::new(move |calls| {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..calls {
            call(&mut io, &mut cx);
        }
    })
}

/// Admits a connection. Each `client` has its own address in its own network.
pub(crate) fn guarded(guard: &ConnGuard, client: u32, has_data: bool) -> GuardedIo<StubTransport> {
    let peer = (Ipv4Addr::from_bits(0x0a00_0000 + 256 * client), 1).into();
    guard
        .admit(StubTransport { has_data }, Some(peer), None)
        .expect("the connection is admitted")
}

/// Returns a run of sweeps of `connections` idle connections and one connection with a request at
/// work. Each sweep probes the latter, which wakes its reader and so counts the sweeps.
pub(crate) fn sweeps(connections: u32) -> Run {
    let runtime = runtime();
    let entered = runtime.enter();
    let guard = ConnGuard::builder()
        .max_connections(10_000)
        .accept_rate(None);
    let guard = guard
        .sweep_interval(MILLISECOND)
        .probe_interval(MILLISECOND)
        .first_request_timeout(DAY)
        .idle_timeout(DAY);
    let guard = guard.build().expect("the settings are valid");
    let idle: Vec<_> = (1..=connections)
        .map(|client| {
            let io = guarded(&guard, client, false);
            send_request(&io, ready(Response::new(Empty::new())));
            io
        })
        .collect();
    let mut probed = guarded(&guard, 0, false);
    let at_work = send_request(&probed, pending());
    drop(entered);
    Box::new(move |sweeps| {
        black_box((&idle, &at_work));
        for _ in 0..sweeps {
            let mut is_parked = false;
            runtime.block_on(poll_fn(|cx| {
                read(&mut probed, cx);
                if std::mem::replace(&mut is_parked, true) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }));
        }
    })
}

/// Sends a tracked request to `handler` and polls it once. Returns the state of the request.
fn send_request(
    io: &GuardedIo<StubTransport>,
    handler: impl Future<Output = Response<Empty<Bytes>>> + 'static,
) -> impl Any {
    let handler = async { Ok::<_, Infallible>(handler.await) };
    let tracking = RequestTracking::for_connection(io.conn().clone(), ());
    let mut response =
        Box::pin(tracking.call_with(Request::new(Empty::<Bytes>::new()), |(), _| handler));
    let mut cx = Context::from_waker(Waker::noop());
    let head = response.as_mut().poll(&mut cx);
    (response, head)
}

/// Measures the memory of a connection beyond its transport.
pub(crate) fn measure_bytes() -> io::Result<Row> {
    let _entered = runtime().enter();
    let guard = ConnGuard::builder()
        .max_connections(2 * CONNECTIONS as usize)
        .accept_rate(None);
    let guard = guard
        .max_per_network(None)
        .build()
        .map_err(io::Error::other)?;
    let before = resident_bytes()?;
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|n| guarded(&guard, n % 500, false))
        .collect();
    let each = (resident_bytes()?.saturating_sub(before)) as f64 / f64::from(CONNECTIONS);
    // Never freed, so that later memory measurements do not reuse this memory.
    forget(connections);
    // The limit is checked by palisade-conn's memory test, which counts the allocated bytes.
    let figure = "resident bytes of a guarded connection, the allocator's own among them";
    Ok(Row::timed("P15", figure, None, each, Limit::None))
}

// === StubTransport ===

impl Transport for StubTransport {}

impl AsyncRead for StubTransport {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.has_data {
            return Poll::Pending;
        }
        buf.put_slice(&[1; 16]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StubTransport {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
