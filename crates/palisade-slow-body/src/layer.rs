//! The layer and its options.

use crate::{Pace, policy::SlowBodyPolicy};
use palisade_core::{Pressure, RequestHead};
use palisade_guard::{GuardLayer, Guarded, PerRequest, Settings};
use std::time::Duration;
use tower_layer::Layer;

/// Applies [`SlowBody`]. See the [crate docs](crate).
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct SlowBodyLayer {
    guard: GuardLayer<SlowBodyPolicy>,
}

/// Ends bodies that are slower than their [`Pace`]. See the [crate docs](crate).
pub type SlowBody<S> = Guarded<S, SlowBodyPolicy>;

/// The request body that [`SlowBody`] passes to the handler.
///
/// Fails with a [`Violation`](crate::Violation) when the client is slower than the pace.
pub type RequestBody<B> = palisade_guard::RequestBody<B, SlowBodyPolicy>;

/// The response body of the handler, cut when the client takes it more slowly than the pace.
///
/// The server then polls the body too rarely. A body that is cut fails with a
/// [`Violation`](crate::Violation), or ends with trailers in gRPC.
pub type ResponseBody<B> = palisade_guard::ResponseBody<B, SlowBodyPolicy>;

/// Response future of [`SlowBody`].
///
/// When the request body is too slow, in whatever task it is read, the future drops the handler
/// and resolves to a response in its place. Dropping the future drops the handler and leaves
/// nothing behind.
pub type ResponseFuture<S, B> = palisade_guard::ResponseFuture<S, B, SlowBodyPolicy>;

// === SlowBodyLayer ===

impl SlowBodyLayer {
    /// Creates a layer with the default paces.
    pub fn new() -> Self {
        let response = Pace {
            gap: Some(Duration::from_secs(120)),
            rate: None,
            ..Pace::default()
        };
        let policy = SlowBodyPolicy {
            settings: Settings::default(),
            request: Pace::default(),
            grpc: Pace::conversation(),
            response,
            pressure: Pressure::default(),
            pace_for: PerRequest::default(),
        };
        Self {
            guard: GuardLayer::new(policy),
        }
    }

    /// Sets the pace at which request bodies must arrive. Defaults to [`Pace::default`].
    pub fn request(mut self, pace: Pace) -> Self {
        self.policy_mut().request = pace;
        self
    }

    /// Sets the pace of request bodies of gRPC over HTTP/2, where clients send only when they have
    /// a message. A stream on which the client is silent for longer by design needs its own pace,
    /// set with [`Self::pace_for`].
    ///
    /// Any client can [claim to be gRPC](crate#requests-that-claim-to-be-grpc). If that is too much
    /// trust, set [`Pace::default`] here, and set [`Pace::conversation`] for the streaming methods
    /// alone, with [`Self::pace_for`]. Defaults to [`Pace::conversation`].
    pub fn grpc(mut self, pace: Pace) -> Self {
        self.policy_mut().grpc = pace;
        self
    }

    /// Sets the pace at which clients must take response bodies. The layer sees it only
    /// [indirectly](crate#limitations): because the kernel buffers megabytes, the server asks for
    /// more only every 20 s while a client reads 64 KiB per second. Defaults to [`Pace::gap_only`]
    /// of 120 s.
    pub fn response(mut self, pace: Pace) -> Self {
        self.policy_mut().response = pace;
        self
    }

    /// Sets the pace of single requests. If `choose` returns a pace, it applies to the request body
    /// and the response body, also in gRPC. `choose` is called once per request, before the
    /// handler; it must be quick and must not panic.
    ///
    /// ```
    /// # use palisade_slow_body::{Pace, SlowBodyLayer};
    /// let layer = SlowBodyLayer::new().pace_for(|head| {
    ///     let chat = head.uri.path().starts_with("/chat/");
    ///     chat.then(Pace::conversation)
    /// });
    /// ```
    ///
    /// Defaults to none.
    pub fn pace_for(
        mut self,
        choose: impl Fn(&RequestHead<'_>) -> Option<Pace> + Send + Sync + 'static,
    ) -> Self {
        self.policy_mut().pace_for = PerRequest::new(choose);
        self
    }

    /// Raises the required rate under pressure, from the rate at 0.8 to that
    /// [at full pressure](crate::PaceBuilder::full_pressure_rate), for bytes that arrive from then
    /// on. Defaults to no pressure.
    pub fn pressure(mut self, pressure: Pressure) -> Self {
        self.policy_mut().pressure = pressure;
        self
    }

    /// Returns the policy of this layer, to be combined with those of other layers.
    #[doc(hidden)]
    pub fn policy(&self) -> &SlowBodyPolicy {
        self.guard.policy()
    }

    fn policy_mut(&mut self) -> &mut SlowBodyPolicy {
        self.guard.policy_mut()
    }
}

impl Default for SlowBodyLayer {
    fn default() -> Self {
        Self::new()
    }
}

palisade_guard::settings_methods!(SlowBodyLayer);

impl<S> Layer<S> for SlowBodyLayer {
    type Service = SlowBody<S>;

    fn layer(&self, inner: S) -> SlowBody<S> {
        self.guard.layer(inner)
    }
}
