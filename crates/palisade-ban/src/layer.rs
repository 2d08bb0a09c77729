//! The layer and its options.

use crate::{ban::Ban, policy::BanPolicy};
use palisade_guard::{GuardLayer, Guarded, Settings};
use tower_layer::Layer;

/// Refuses the requests of clients that a [`Ban`] keeps out, with 403. All clones, and the services
/// they create, share its state.
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct BanLayer {
    guard: GuardLayer<BanPolicy>,
}

/// Refuses requests of banned and denied clients. See the [crate docs](crate).
pub type BanGuard<S> = Guarded<S, BanPolicy>;

/// The request body that the inner service reads.
pub type RequestBody<B> = palisade_guard::RequestBody<B, BanPolicy>;

/// The response body of the inner service.
pub type ResponseBody<B> = palisade_guard::ResponseBody<B, BanPolicy>;

/// Response future of [`BanGuard`].
pub type ResponseFuture<S, B> = palisade_guard::ResponseFuture<S, B, BanPolicy>;

// === BanLayer ===

impl BanLayer {
    /// Creates a layer that asks `ban` for each request.
    ///
    /// ```
    /// use palisade_ban::{Ban, BanLayer};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let ban = Ban::builder().build()?;
    /// let layer = BanLayer::new(ban.clone());
    /// let get = || request_from([203, 0, 113, 7]);
    /// assert_eq!(status(&layer, get()).await, 200);
    /// let client = ban.client_of(get().extensions()).ok_or("no client")?;
    /// ban.ban(&client, 60 * SECOND);
    /// assert_eq!(status(&layer, get()).await, 403);
    /// tokio::time::advance(60 * SECOND).await;
    /// assert_eq!(status(&layer, get()).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(ban: Ban) -> Self {
        Self::of(Some(ban))
    }

    /// Creates a layer that admits everything, for a stack without a ban.
    #[doc(hidden)]
    pub fn of(ban: Option<Ban>) -> Self {
        let settings = Settings::default();
        Self {
            guard: GuardLayer::new(BanPolicy { settings, ban }),
        }
    }

    /// Returns the policy of this layer, for a stack of several guards.
    #[doc(hidden)]
    pub fn policy(&self) -> &BanPolicy {
        self.guard.policy()
    }

    fn policy_mut(&mut self) -> &mut BanPolicy {
        self.guard.policy_mut()
    }
}

palisade_guard::settings_methods!(
    BanLayer,
    request: "request_from([203, 0, 113, 7])",
    example: "BanLayer::new(Ban::denying(Networks::parse(\"203.0.113.7\").unwrap()))" => 403 "denied"
);

impl<S> Layer<S> for BanLayer {
    type Service = BanGuard<S>;

    fn layer(&self, inner: S) -> BanGuard<S> {
        self.guard.layer(inner)
    }
}
