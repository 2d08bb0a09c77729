//! What becomes of a request body that nobody will read.

use http::Version;
use http_body::Body;
use std::{
    future::poll_fn,
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

/// For so long a body is kept after its request was refused.
const KEPT_FOR: Duration = Duration::from_millis(100);
/// On HTTP/2, so many frames are thrown away at a stretch.
const STRETCH: usize = 32;
/// So many bodies are kept at a time; whatever comes beyond is dropped at once.
const KEPT: usize = 1024;
/// A client has sent a body as short as this before it looks for the answer.
const SHORT: u64 = 16 * 1024;

static LINGERING: Lingering = Lingering(AtomicUsize::new(0));

#[derive(Debug)]
struct Lingering(AtomicUsize);

/// One place among those that linger, given back on drop.
#[derive(Debug)]
struct Place(&'static Lingering);

/// Keeps the body of a refused request a little longer than the request, unread, so that its
/// client sees the answer.
///
/// A server that drops an unread body hangs up: HTTP/1 closes the socket, and what the client is
/// still writing makes the kernel send a reset that overtakes the answer; HTTP/2 resets the
/// stream, and some clients (curl before 8) look at that before they look at the answer. Measured
/// with uploads of 10 MB over loopback: without this hyper's own client saw none of the answers on
/// HTTP/1, and curl none on HTTP/2; with it both see all of them.
///
/// On HTTP/1 nothing is read. On HTTP/2 what comes is thrown away, because bytes that nobody reads
/// hold up the other streams of their connection. A body is kept for 100 milliseconds, 1,024 of
/// them at a time in the process. A body of at most 16 KiB, and whatever comes outside a tokio
/// runtime, is dropped at once.
///
/// # Panics
///
/// The runtime must have its timer enabled, as any that serves connections has; else the task that
/// keeps the body panics.
pub fn linger<B>(body: B, version: Version)
where
    B: Body + Send + 'static,
{
    if body.is_end_stream() || body.size_hint().exact().is_some_and(|length| length <= SHORT) {
        return;
    }
    if let Ok(runtime) = tokio::runtime::Handle::try_current()
        && let Some(place) = LINGERING.take(KEPT)
    {
        runtime.spawn(async move {
            if version == Version::HTTP_2 {
                // Ended by the time or by the end of the body.
                let _ = tokio::time::timeout(KEPT_FOR, throw_away(body)).await;
            } else {
                tokio::time::sleep(KEPT_FOR).await;
                drop(body);
            }
            drop(place);
        });
    }
}

async fn throw_away<B: Body>(body: B) {
    let mut body = pin!(body);
    let mut frames: usize = 0;
    let is_frame = |frame: Option<Result<_, _>>| matches!(frame, Some(Ok(_)));
    while poll_fn(|cx| body.as_mut().poll_frame(cx).map(is_frame)).await {
        frames = frames.wrapping_add(1);
        if frames.is_multiple_of(STRETCH) {
            tokio::task::yield_now().await;
        }
    }
}

// === Lingering ===

impl Lingering {
    fn take(&'static self, most: usize) -> Option<Place> {
        let taken = self.0.fetch_update(Relaxed, Relaxed, |kept| (kept < most).then(|| kept + 1));
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
    use http_body_util::{BodyExt, Full, StreamBody};
    use std::{convert::Infallible, sync::Arc};

    /// A body of which nobody knows the length, and which holds `held`.
    fn upload(held: &Arc<()>) -> impl Body + Send + 'static {
        let held = held.clone();
        StreamBody::new(futures_util::stream::pending::<Result<_, Infallible>>()).map_frame(
            move |frame: http_body::Frame<Bytes>| {
                let _ = &held;
                frame
            },
        )
    }

    #[tokio::test(start_paused = true)]
    async fn an_unread_body_is_kept_for_a_moment_and_no_longer() {
        let held = Arc::new(());
        linger(upload(&held), Version::HTTP_11);
        tokio::time::sleep(KEPT_FOR - Duration::from_millis(1)).await;
        assert_eq!(Arc::strong_count(&held), 2);
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_linger_at_a_time_and_all_places_come_back() {
        static FEW: Lingering = Lingering(AtomicUsize::new(0));
        let places: Vec<_> = (0..3).map_while(|_| FEW.take(2)).collect();
        assert_eq!((places.len(), FEW.0.load(Relaxed)), (2, 2));
        drop(places);
        assert_eq!(FEW.0.load(Relaxed), 0);
    }

    #[test]
    fn outside_a_runtime_and_for_short_bodies_nothing_is_kept() {
        let held = Arc::new(());
        linger(upload(&held), Version::HTTP_11);
        linger(Full::new(Bytes::from_static(b"short")), Version::HTTP_11);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
