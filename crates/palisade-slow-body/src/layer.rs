//! The layer and its service.

use crate::{Pace, policy::SlowBodyPolicy};
use palisade_core::{Pressure, RequestHead};
use palisade_guard::{GuardLayer, Guarded, Settings};
use std::{sync::Arc, time::Duration};
use tower_layer::Layer;

/// Applies [`SlowBody`]. See the [crate docs](crate).
#[derive(Clone, Debug)]
pub struct SlowBodyLayer {
    guard: GuardLayer<SlowBodyPolicy>,
}

/// Ends bodies that are slower than their pace. See the [crate docs](crate).
pub type SlowBody<S> = Guarded<S, SlowBodyPolicy>;

/// The request body that the inner service reads. It fails with a [`Violation`](crate::Violation)
/// when the client is slower than its pace.
pub type RequestBody<B> = palisade_guard::RequestBody<B, SlowBodyPolicy>;

/// The response body of the inner service. It fails with a [`Violation`](crate::Violation), or ends
/// with trailers in gRPC, when the server asks it for more too seldom, because the client takes
/// nothing.
pub type ResponseBody<B> = palisade_guard::ResponseBody<B, SlowBodyPolicy>;

/// Response future of [`SlowBody`].
///
/// When the request body is too slow, in whatever task that is read, it drops the handler and
/// answers in its place. Dropping it drops the handler and leaves nothing behind.
pub type ResponseFuture<S, B> = palisade_guard::ResponseFuture<S, B, SlowBodyPolicy>;

// === SlowBodyLayer ===

impl SlowBodyLayer {
    /// Every number at its default.
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
            choose: None,
        };
        Self {
            guard: GuardLayer::new(policy),
        }
    }

    /// How fast request bodies must come. Defaults to [`Pace::default`].
    pub fn request(mut self, pace: Pace) -> Self {
        self.policy_mut().request = pace;
        self
    }

    /// How fast the request bodies of gRPC over HTTP/2 must come, whose clients speak when they
    /// have something to say. A stream on which the client is silent for longer by design wants a
    /// pace of its own by [`Self::pace_for`].
    ///
    /// That a request is gRPC is [the client's own word](crate#whoever-says-grpc). Where that is
    /// too much trust, give [`Pace::default`] here, and a pace for conversations to their methods
    /// alone by [`Self::pace_for`]. Defaults to [`Pace::conversation`].
    pub fn grpc(mut self, pace: Pace) -> Self {
        self.policy_mut().grpc = pace;
        self
    }

    /// How fast response bodies must be taken; see [what can be seen of
    /// that](crate#what-it-cannot-see). A kernel that buffers megabytes makes a reader of 64 KiB a
    /// second come back for more only every 20 s. Defaults to [`Pace::gap_only`] of 120 s.
    pub fn response(mut self, pace: Pace) -> Self {
        self.policy_mut().response = pace;
        self
    }

    /// Gives the requests for which `choose` returns a pace that one for both their bodies, also
    /// if they are gRPC. It is called once for each request, before the inner service: be quick,
    /// never panic.
    ///
    /// ```
    /// # use palisade_slow_body::{Pace, SlowBodyLayer};
    /// let layer = SlowBodyLayer::new().pace_for(|head| {
    ///     let chat = head.uri.path().starts_with("/chat/");
    ///     chat.then(Pace::conversation)
    /// });
    /// ```
    ///
    /// Defaults to no such requests.
    pub fn pace_for(
        mut self,
        choose: impl Fn(&RequestHead<'_>) -> Option<Pace> + Send + Sync + 'static,
    ) -> Self {
        self.policy_mut().choose = Some(Arc::new(choose));
        self
    }

    /// Multiplies the rate that is asked for by 1 at no pressure to 8 at full pressure, for bytes
    /// that come from then on. Defaults to no pressure for ever.
    pub fn pressure(mut self, pressure: Pressure) -> Self {
        self.policy_mut().pressure = pressure;
        self
    }

    /// The policy of this layer, for a stack of several.
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
