//! What a guarded connection costs beside a bare one: reads, writes, looks of the sweeper, bytes.

use crate::{
    keys::resident,
    scenarios::Run,
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

/// So many connections are counted in bytes.
const CONNECTIONS: u32 = 20_000;
/// So many are looked at by the sweeper.
pub(crate) const SWEPT: u32 = 500;
const DAY: Duration = Duration::from_secs(86_400);
const MILLISECOND: Duration = Duration::from_millis(1);

/// Takes no memory; gives a piece with every read if it `gives`, and takes everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stub {
    pub(crate) gives: bool,
}

/// One call.
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

/// Calls of one kind on one connection.
pub(crate) fn calls(mut io: impl ReadWrite + 'static, call: Call) -> Run {
    Box::new(move |calls| {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..calls {
            call(&mut io, &mut cx);
        }
    })
}

/// A connection of a client of its own, in a network of its own.
pub(crate) fn guarded(guard: &ConnGuard, client: u32, gives: bool) -> GuardedIo<Stub> {
    let peer = (Ipv4Addr::from_bits(0x0a00_0000 + 256 * client), 1).into();
    guard
        .admit(Stub { gives }, Some(peer), None)
        .expect("there is a place")
}

/// So many looks of the sweeper at `connections` idle connections, and at one more with a request
/// at work, which is asked to look after its client each time and so can count them.
pub(crate) fn sweeps(connections: u32) -> Run {
    let runtime = runtime();
    let entered = runtime.enter();
    let guard = ConnGuard::builder()
        .max_connections(10_000)
        .no_accept_rate();
    let guard = guard
        .precision(MILLISECOND)
        .probe(MILLISECOND)
        .first_request(DAY)
        .idle(DAY);
    let guard = guard.build().expect("these numbers can be");
    let idle: Vec<_> = (1..=connections)
        .map(|client| {
            let io = guarded(&guard, client, false);
            request(&io, ready(Response::new(Empty::new())));
            io
        })
        .collect();
    let mut counting = guarded(&guard, 0, false);
    let at_work = request(&counting, pending());
    drop(entered);
    Box::new(move |sweeps| {
        black_box((&idle, &at_work));
        for _ in 0..sweeps {
            let mut is_parked = false;
            runtime.block_on(poll_fn(|cx| {
                read(&mut counting, cx);
                if std::mem::replace(&mut is_parked, true) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }));
        }
    })
}

/// Returns what is left of one request that `handler` answers, polled once.
fn request(
    io: &GuardedIo<Stub>,
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

/// What a connection holds beyond its transport.
pub(crate) fn bytes() -> io::Result<Row> {
    let _entered = runtime().enter();
    let guard = ConnGuard::builder()
        .max_connections(2 * CONNECTIONS as usize)
        .no_accept_rate();
    let guard = guard
        .no_max_per_network()
        .build()
        .map_err(io::Error::other)?;
    let before = resident()?;
    let connections: Vec<_> = (0..CONNECTIONS)
        .map(|n| guarded(&guard, n % 500, false))
        .collect();
    let each = (resident()?.saturating_sub(before)) as f64 / f64::from(CONNECTIONS);
    // For good: others measure memory after us, and are not to find any that was freed.
    forget(connections);
    // The memory test of palisade-conn counts what it asks for, and holds the limit.
    let figure = "resident bytes of a guarded connection, the allocator's own among them";
    Ok(Row::timed("P15", figure, None, each, Limit::None))
}

// === Stub ===

impl Transport for Stub {}

impl AsyncRead for Stub {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.gives {
            return Poll::Pending;
        }
        buf.put_slice(&[1; 16]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stub {
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
