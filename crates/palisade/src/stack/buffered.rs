//! The stack with a buffer for short request bodies.

use super::{MaybeConcurrencyLimit, OuterPolicies, StackLayer};
use palisade_body_limit::{BufferLayer, Buffered};
use palisade_guard::{GuardLayer, Guarded};
use tower_layer::Layer;

/// A [`StackLayer`] that reads short request bodies before the handler is called. Created by
/// [`StackLayer::buffered`].
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct BufferedLayer {
    outer: GuardLayer<OuterPolicies>,
    buffer: BufferLayer,
    inner: GuardLayer<MaybeConcurrencyLimit>,
}

/// A service `S` inside a [`BufferedLayer`].
pub type BufferedStack<S> = Guarded<Buffered<Guarded<S, MaybeConcurrencyLimit>>, OuterPolicies>;

impl StackLayer {
    /// Reads short request bodies before the handler is called, and before the request takes a
    /// permit: see [`BufferLayer`]. The other guards hold while a body is read. The service inside
    /// must be `Clone`.
    ///
    /// A request whose body is complete is refused with 503 if there is no permit then, and not
    /// before its client has sent it. Until then it counts neither as present nor for the share of
    /// its client: the byte budget and the connection guard's `max_in_flight` limit how many are
    /// read at a time. Apply the layer once: a stack that is buffered twice counts a request twice.
    /// Defaults to no buffer: a stack passes bodies on as they arrive.
    ///
    /// ```
    /// use palisade::{Stack, body_limit::BufferLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().max_requests(1).build()?.buffered(BufferLayer::default());
    /// let service = stack.layer(service_fn(work_for_a_second));
    /// // A minute of upload.
    /// let upload = Request::new(Pieces::new(60, 1_000).declared().every(SECOND));
    /// let upload = service.clone().oneshot(upload);
    /// let others = async {
    ///     for _ in 0..30 {
    ///         let request = Request::new(Pieces::new(0, 0));
    ///         let response = service.clone().oneshot(request).await?;
    ///         assert_eq!(response.status(), 200);
    ///     }
    ///     Ok::<_, BoxError>(())
    /// };
    /// let (upload, others) = tokio::join!(upload, others);
    /// assert_eq!(upload?.status(), 200);
    /// others?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn buffered(self, buffer: BufferLayer) -> BufferedLayer {
        let (outer, inner) = self.split();
        BufferedLayer {
            outer,
            buffer,
            inner,
        }
    }
}

impl<S> Layer<S> for BufferedLayer {
    type Service = BufferedStack<S>;

    fn layer(&self, inner: S) -> BufferedStack<S> {
        let limited = self.inner.layer(inner);
        self.outer.layer(self.buffer.layer(limited))
    }
}
