//! Lingering: keeping or reading on a request body that no handler will read.

use http::{Request, Version, header::EXPECT};
use http_body::Body;
use std::{
    future::poll_fn,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

/// How long a body lingers that is not read to its end.
const LINGER_TIME: Duration = Duration::from_millis(100);
/// The longest time for which a body is read to its end.
const READ_TO_END_TIMEOUT: Duration = Duration::from_secs(1);
/// The largest declared length at which a body is read to its end, so that an HTTP/1 connection can
/// carry the next request.
const MAX_READ_TO_END_BYTES: u64 = 64 * 1024;
/// Frames that are discarded before the task yields.
const FRAMES_PER_YIELD: usize = 32;
/// The largest number of bodies that linger at a time in the whole process. Further ones are
/// dropped at once.
const MAX_LINGERING_BODIES: usize = 1024;

static LINGER_COUNT: LingerCount = LingerCount(AtomicUsize::new(0));

/// The number of bodies that linger.
#[derive(Debug)]
struct LingerCount(AtomicUsize);

/// The right to linger of one body. Counted down on drop.
#[derive(Debug)]
struct LingerSlot(&'static LingerCount);

/// How a policy treats a request body of type `B` that no handler will read. Implemented for
/// [`DropUnread`], [`KeepUnread`], [`KeepAny`] and pairs of these. A pair has the bounds on `B` of
/// both.
pub trait Unread<B> {
    /// Lets the body of a request linger that has not reached the handler. Returns `true` if the
    /// body is read to its end, so that the connection may stay open. Returns the request as an
    /// error if this policy does not keep the body.
    #[allow(
        clippy::result_large_err,
        reason = "refusals are rare, and a box would cost an allocation"
    )]
    fn keep_whole(request: Request<B>) -> Result<bool, Request<B>>;

    /// Takes the body out of `body` and lets it linger, if this policy keeps bodies that the
    /// handler has partly read. Otherwise leaves it, and the caller drops it.
    fn keep_rest(body: Pin<&mut Option<B>>, version: Version);
}

/// Drops the body. Has no bounds on its type.
#[derive(Debug)]
pub enum DropUnread {}

/// Keeps a body that has not reached the handler.
#[derive(Debug)]
pub enum KeepUnread {}

/// Keeps a body that has not reached the handler, and the rest of one that the handler has partly
/// read.
#[derive(Debug)]
pub enum KeepAny {}

impl<B> Unread<B> for DropUnread {
    fn keep_whole(request: Request<B>) -> Result<bool, Request<B>> {
        Err(request)
    }

    fn keep_rest(_: Pin<&mut Option<B>>, _: Version) {}
}

impl<B: Body + Send + 'static> Unread<B> for KeepUnread {
    fn keep_whole(request: Request<B>) -> Result<bool, Request<B>> {
        Ok(linger(request))
    }

    fn keep_rest(_: Pin<&mut Option<B>>, _: Version) {}
}

impl<B: Body + Send + Unpin + 'static> Unread<B> for KeepAny {
    fn keep_whole(request: Request<B>) -> Result<bool, Request<B>> {
        Ok(linger(request))
    }

    fn keep_rest(body: Pin<&mut Option<B>>, version: Version) {
        if let Some(body) = body.get_mut().take() {
            // The handler has read a part of the body, so the rest is not known to be short.
            linger_unread(body, version);
        }
    }
}

impl<B, X: Unread<B>, Y: Unread<B>> Unread<B> for (X, Y) {
    fn keep_whole(request: Request<B>) -> Result<bool, Request<B>> {
        X::keep_whole(request).or_else(Y::keep_whole)
    }

    fn keep_rest(mut body: Pin<&mut Option<B>>, version: Version) {
        X::keep_rest(body.as_mut(), version);
        Y::keep_rest(body, version);
    }
}

/// Keeps the body of a refused request for a moment after the request has ended, so that the client
/// sees the response. Returns `true` if the body is read to its end.
///
/// A server that drops an unread body ends the exchange before the client has read the response. On
/// HTTP/1 it closes the socket, and the bytes that the client is still writing make the kernel send
/// a reset that overtakes the response. On HTTP/2 it resets the stream, and some clients (curl
/// before 8) handle the reset before the response. Measured with uploads of 10 MB over loopback:
/// without lingering, hyper's own client saw none of the responses on HTTP/1, and curl none on
/// HTTP/2; with lingering, both see all of them.
///
/// On HTTP/2 the bytes that arrive are discarded, because unread bytes block the other streams of
/// the connection. On HTTP/1 a body with a declared length of at most 64 KiB is read to its end,
/// and the connection carries the next request. Any other body is not read, and the connection
/// closes. The connection also closes if the client expects `100 Continue`, because reading the
/// body would send that. At most 1,024 bodies linger at a time. Outside a tokio runtime no body
/// lingers.
pub fn linger<B: Body + Send + 'static>(request: Request<B>) -> bool {
    let body = request.body();
    if body.is_end_stream() {
        return true;
    }
    let is_short = body
        .size_hint()
        .exact()
        .is_some_and(|length| length <= MAX_READ_TO_END_BYTES);
    let version = request.version();
    let reads_to_end = is_short && version != Version::HTTP_2;
    if !reads_to_end || request.headers().contains_key(EXPECT) {
        linger_unread(request.into_body(), version);
        return false;
    }
    let body = request.into_body();
    spawn_lingering(async move {
        // Either result ends the lingering: the end of the body or the timeout.
        let _ = tokio::time::timeout(READ_TO_END_TIMEOUT, discard(body)).await;
    })
}

/// Lets `body` linger without reading it to its end.
fn linger_unread<B: Body + Send + 'static>(body: B, version: Version) {
    if body.is_end_stream() {
        return;
    }
    spawn_lingering(async move {
        if version == Version::HTTP_2 {
            let _ = tokio::time::timeout(LINGER_TIME, discard(body)).await;
        } else {
            tokio::time::sleep(LINGER_TIME).await;
            drop(body);
        }
    });
}

/// Spawns `lingering` if there is a runtime and the number of lingering bodies allows it. Returns
/// whether it was spawned.
fn spawn_lingering(lingering: impl Future<Output = ()> + Send + 'static) -> bool {
    if let Ok(runtime) = tokio::runtime::Handle::try_current()
        && let Some(slot) = LINGER_COUNT.try_acquire(MAX_LINGERING_BODIES)
    {
        runtime.spawn(async move {
            lingering.await;
            drop(slot);
        });
        return true;
    }
    false
}

/// Reads `body` until its end or an error and discards all frames.
async fn discard<B: Body>(body: B) {
    let mut body = std::pin::pin!(body);
    let mut frames: usize = 0;
    let is_frame = |frame: Option<Result<_, _>>| matches!(frame, Some(Ok(_)));
    while poll_fn(|cx| body.as_mut().poll_frame(cx).map(is_frame)).await {
        frames = frames.wrapping_add(1);
        if frames.is_multiple_of(FRAMES_PER_YIELD) {
            tokio::task::yield_now().await;
        }
    }
}

// === LingerCount ===

impl LingerCount {
    /// Counts one more body, unless `max` are counted already.
    fn try_acquire(&'static self, max: usize) -> Option<LingerSlot> {
        let acquired = self
            .0
            .fetch_update(Relaxed, Relaxed, |count| (count < max).then(|| count + 1));
        acquired.is_ok().then(|| LingerSlot(self))
    }
}

impl Drop for LingerSlot {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::HeaderValue;
    use http_body_util::{BodyExt, Full, StreamBody};
    use std::{convert::Infallible, sync::Arc};

    /// A body of unknown length that is always pending and owns a clone of `held`.
    fn upload(held: &Arc<()>) -> impl Body + Send + 'static {
        let held = held.clone();
        StreamBody::new(futures_util::stream::pending::<Result<_, Infallible>>()).map_frame(
            move |frame: http_body::Frame<Bytes>| {
                let _ = &held;
                frame
            },
        )
    }

    fn post<B>(version: Version, body: B) -> Request<B> {
        Request::post("/").version(version).body(body).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_unknown_length_is_kept_for_the_linger_time() {
        let held = Arc::new(());
        assert!(!linger(post(Version::HTTP_11, upload(&held))));
        tokio::time::sleep(LINGER_TIME - Duration::from_millis(1)).await;
        assert_eq!(Arc::strong_count(&held), 2);
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn a_short_declared_body_is_read_on_http1_unless_the_client_expects_100_continue() {
        let body = || Full::new(Bytes::from_static(b"ten bytes!"));
        assert!(linger(post(Version::HTTP_11, body())));
        assert!(!linger(post(Version::HTTP_2, body())));
        let long = Full::<Bytes>::from(vec![0; MAX_READ_TO_END_BYTES as usize + 1]);
        assert!(!linger(post(Version::HTTP_11, long)));
        let mut expects_continue = post(Version::HTTP_11, body());
        expects_continue
            .headers_mut()
            .insert(EXPECT, HeaderValue::from_static("100-continue"));
        assert!(!linger(expects_continue));
    }

    #[tokio::test(start_paused = true)]
    async fn a_partly_read_body_lingers_if_any_of_several_policies_keeps_it() {
        type Policies = (KeepUnread, (DropUnread, (KeepAny, KeepUnread)));
        let held = Arc::new(());
        let mut slot = Some(Box::pin(upload(&held)));
        <Policies as Unread<_>>::keep_rest(Pin::new(&mut slot), Version::HTTP_11);
        drop(slot);
        assert_eq!(Arc::strong_count(&held), 2);
        tokio::time::sleep(LINGER_TIME + Duration::from_millis(1)).await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_lingering_bodies_is_limited_and_returns_to_zero() {
        static COUNT: LingerCount = LingerCount(AtomicUsize::new(0));
        let slots: Vec<_> = (0..3).map_while(|_| COUNT.try_acquire(2)).collect();
        assert_eq!((slots.len(), COUNT.0.load(Relaxed)), (2, 2));
        drop(slots);
        assert_eq!(COUNT.0.load(Relaxed), 0);
    }

    #[test]
    fn outside_a_runtime_no_body_lingers() {
        let held = Arc::new(());
        assert!(!linger(post(Version::HTTP_11, upload(&held))));
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(!linger(post(
            Version::HTTP_11,
            Full::new(Bytes::from_static(b"short"))
        )));
    }
}
