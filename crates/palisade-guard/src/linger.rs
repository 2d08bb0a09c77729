//! What becomes of a request body that no handler will read.

use http::{Request, Version, header::EXPECT};
use http_body::Body;
use std::{
    future::poll_fn,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

/// A body that is kept unread is kept for this long.
const KEEP_TIME: Duration = Duration::from_millis(100);
/// A body that is read to its end is read for no longer than this.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// A declared body of at most this many bytes is read to its end, so that an HTTP/1 connection can
/// carry the next request.
const MAX_DRAINED_BYTES: u64 = 64 * 1024;
/// Frames that are discarded before other tasks get a turn.
const FRAMES_PER_TURN: usize = 32;
/// Bodies that linger at a time, in the whole process. Further ones are dropped at once.
const MAX_LINGERING: usize = 1024;

static LINGERING: Lingering = Lingering(AtomicUsize::new(0));

#[derive(Debug)]
struct Lingering(AtomicUsize);

/// One place among the bodies that linger, released on drop.
#[derive(Debug)]
struct Place(&'static Lingering);

/// How a policy treats a request body of type `B` that no handler will read. Implemented for
/// [`Drops`], [`KeepsWhole`], [`Keeps`] and pairs of these; a pair asks of the body what both ask.
pub trait Unread<B> {
    /// Keeps the body of a request that no handler has seen, unless it gives that back. `true` if
    /// the body is read to its end, so that the connection may stay open.
    #[allow(
        clippy::result_large_err,
        reason = "a refusal is rare, and a box costs an allocation"
    )]
    fn keep(request: Request<B>) -> Result<bool, Request<B>>;

    /// Takes what is left of a body that is being read, if it is to be kept. Else the caller drops
    /// it.
    fn let_go(body: Pin<&mut Option<B>>, version: Version);
}

/// Drops the body. Asks nothing of its type.
#[derive(Debug)]
pub enum Drops {}

/// Keeps a body that no handler has seen.
#[derive(Debug)]
pub enum KeepsWhole {}

/// Keeps a body that no handler has seen, and what is left of one that is being read.
#[derive(Debug)]
pub enum Keeps {}

impl<B> Unread<B> for Drops {
    fn keep(request: Request<B>) -> Result<bool, Request<B>> {
        Err(request)
    }

    fn let_go(_: Pin<&mut Option<B>>, _: Version) {}
}

impl<B: Body + Send + 'static> Unread<B> for KeepsWhole {
    fn keep(request: Request<B>) -> Result<bool, Request<B>> {
        Ok(linger(request))
    }

    fn let_go(_: Pin<&mut Option<B>>, _: Version) {}
}

impl<B: Body + Send + Unpin + 'static> Unread<B> for Keeps {
    fn keep(request: Request<B>) -> Result<bool, Request<B>> {
        Ok(linger(request))
    }

    fn let_go(body: Pin<&mut Option<B>>, version: Version) {
        if let Some(body) = body.get_mut().take() {
            // The handler has read some of it: what is left is not known to be short.
            keep_unread(body, version);
        }
    }
}

impl<B, X: Unread<B>, Y: Unread<B>> Unread<B> for (X, Y) {
    fn keep(request: Request<B>) -> Result<bool, Request<B>> {
        X::keep(request).or_else(Y::keep)
    }

    fn let_go(mut body: Pin<&mut Option<B>>, version: Version) {
        X::let_go(body.as_mut(), version);
        Y::let_go(body, version);
    }
}

/// Keeps the body of a refused request a little longer than the request, so that its client sees
/// the response. `true` if the body is read to its end.
///
/// A server that drops an unread body hangs up: HTTP/1 closes the socket, and what the client is
/// still writing makes the kernel send a reset that overtakes the response; HTTP/2 resets the
/// stream, and some clients (curl before 8) look at that before they look at the response. Measured
/// with uploads of 10 MB over loopback: without this hyper's own client saw none of the responses
/// on HTTP/1, and curl none on HTTP/2; with it both see all of them.
///
/// On HTTP/2 what arrives is discarded, because unread bytes hold up the other streams of the
/// connection. On HTTP/1 a body that declares at most 64 KiB is read to its end, and the connection
/// carries the next request; any other one is not read, and the connection closes. So does that of
/// a client that waits for `100 Continue`, which a read would send. At most 1,024 bodies linger at
/// a time. Outside a tokio runtime nothing does.
pub fn linger<B: Body + Send + 'static>(request: Request<B>) -> bool {
    let body = request.body();
    if body.is_end_stream() {
        return true;
    }
    let is_short = body
        .size_hint()
        .exact()
        .is_some_and(|length| length <= MAX_DRAINED_BYTES);
    let version = request.version();
    let is_drained = is_short && version != Version::HTTP_2;
    if !is_drained || request.headers().contains_key(EXPECT) {
        keep_unread(request.into_body(), version);
        return false;
    }
    let body = request.into_body();
    spawn(async move {
        // Ends at the end of the body or of the time.
        let _ = tokio::time::timeout(DRAIN_TIME, discard(body)).await;
    })
}

fn keep_unread<B: Body + Send + 'static>(body: B, version: Version) {
    if body.is_end_stream() {
        return;
    }
    spawn(async move {
        if version == Version::HTTP_2 {
            let _ = tokio::time::timeout(KEEP_TIME, discard(body)).await;
        } else {
            tokio::time::sleep(KEEP_TIME).await;
            drop(body);
        }
    });
}

fn spawn(lingering: impl Future<Output = ()> + Send + 'static) -> bool {
    if let Ok(runtime) = tokio::runtime::Handle::try_current()
        && let Some(place) = LINGERING.take(MAX_LINGERING)
    {
        runtime.spawn(async move {
            lingering.await;
            drop(place);
        });
        return true;
    }
    false
}

async fn discard<B: Body>(body: B) {
    let mut body = std::pin::pin!(body);
    let mut frames: usize = 0;
    let is_frame = |frame: Option<Result<_, _>>| matches!(frame, Some(Ok(_)));
    while poll_fn(|cx| body.as_mut().poll_frame(cx).map(is_frame)).await {
        frames = frames.wrapping_add(1);
        if frames.is_multiple_of(FRAMES_PER_TURN) {
            tokio::task::yield_now().await;
        }
    }
}

// === Lingering ===

impl Lingering {
    fn take(&'static self, max: usize) -> Option<Place> {
        let taken = self
            .0
            .fetch_update(Relaxed, Relaxed, |kept| (kept < max).then(|| kept + 1));
        taken.is_ok().then(|| Place(self))
    }
}

impl Drop for Place {
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

    /// A body of unknown length that gives nothing and holds `held`.
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
    async fn a_body_of_unknown_length_is_kept_unread_for_a_moment() {
        let held = Arc::new(());
        assert!(!linger(post(Version::HTTP_11, upload(&held))));
        tokio::time::sleep(KEEP_TIME - Duration::from_millis(1)).await;
        assert_eq!(Arc::strong_count(&held), 2);
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test]
    async fn a_short_declared_body_is_read_to_its_end_on_http1_unless_the_client_awaits_a_word() {
        let body = || Full::new(Bytes::from_static(b"ten bytes!"));
        assert!(linger(post(Version::HTTP_11, body())));
        assert!(!linger(post(Version::HTTP_2, body())));
        let long = Full::<Bytes>::from(vec![0; MAX_DRAINED_BYTES as usize + 1]);
        assert!(!linger(post(Version::HTTP_11, long)));
        let mut awaits = post(Version::HTTP_11, body());
        awaits
            .headers_mut()
            .insert(EXPECT, HeaderValue::from_static("100-continue"));
        assert!(!linger(awaits));
    }

    #[tokio::test(start_paused = true)]
    async fn of_several_policies_the_one_that_keeps_half_read_bodies_keeps_them() {
        type Policies = (KeepsWhole, (Drops, (Keeps, KeepsWhole)));
        let held = Arc::new(());
        let mut slot = Some(Box::pin(upload(&held)));
        <Policies as Unread<_>>::let_go(Pin::new(&mut slot), Version::HTTP_11);
        drop(slot);
        assert_eq!(Arc::strong_count(&held), 2);
        tokio::time::sleep(KEEP_TIME + Duration::from_millis(1)).await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_so_many_linger_at_a_time_and_all_places_come_back() {
        static FEW: Lingering = Lingering(AtomicUsize::new(0));
        let places: Vec<_> = (0..3).map_while(|_| FEW.take(2)).collect();
        assert_eq!((places.len(), FEW.0.load(Relaxed)), (2, 2));
        drop(places);
        assert_eq!(FEW.0.load(Relaxed), 0);
    }

    #[test]
    fn outside_a_runtime_nothing_is_kept() {
        let held = Arc::new(());
        assert!(!linger(post(Version::HTTP_11, upload(&held))));
        assert_eq!(Arc::strong_count(&held), 1);
        assert!(!linger(post(
            Version::HTTP_11,
            Full::new(Bytes::from_static(b"short"))
        )));
    }
}
