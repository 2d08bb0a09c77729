//! The order of the guards. It stands here and nowhere else.

#[cfg(feature = "axum")]
mod boxed;

#[cfg(feature = "axum")]
pub use boxed::{Boxed, BoxedFuture, BoxedInner, BoxedLayer};

use palisade_guard::{And, GuardLayer};
use tower_layer::Layer;

#[cfg(feature = "body-limit")]
use palisade_body_limit::{BodyLimitLayer, BodyLimitPolicy};
#[cfg(feature = "concurrency-limit")]
use palisade_concurrency_limit::{
    ConcurrencyLimitHandle, ConcurrencyLimitLayer, ConcurrencyLimitPolicy,
};
#[cfg(feature = "rate-limit")]
use palisade_rate_limit::{RateLimitLayer, RateLimitPolicy};
#[cfg(feature = "slow-body")]
use palisade_slow_body::{SlowBodyLayer, SlowBodyPolicy};
#[cfg(feature = "timeout")]
use palisade_timeout::{TimeoutLayer, TimeoutPolicy};

/// All guards as one `Layer`. Clones, and the services they make, share all state: apply it as
/// often as you like. A request that passes several services of one stack, as on a router inside a
/// router, counts once.
#[derive(Clone, Debug)]
pub struct StackLayer {
    guard: GuardLayer<Policies>,
    #[cfg(feature = "concurrency-limit")]
    concurrency_limit: ConcurrencyLimitHandle,
}

/// `S` behind all guards.
pub type Stacked<S> = palisade_guard::Guarded<S, Policies>;

/// The request body that a handler behind the stack reads.
pub type RequestBody<B> = palisade_guard::RequestBody<B, Policies>;

/// The response body of a service behind the stack.
pub type ResponseBody<B> = palisade_guard::ResponseBody<B, Policies>;

/// The guards of a stack, outside to inside. What is cheapest to refuse is refused first; the permit
/// is taken last and given back last. The timeout stands outside the concurrency limit, so that
/// waiting for a permit counts.
pub(crate) type Policies =
    And<RateLimitOf, And<TimeoutOf, And<BodyLimitOf, And<SlowBodyOf, ConcurrencyLimitOf>>>>;

/// The layers of a stack, before they become one.
pub(crate) struct Layers {
    #[cfg(feature = "rate-limit")]
    pub(crate) rate_limit: RateLimitLayer,
    #[cfg(feature = "timeout")]
    pub(crate) timeout: TimeoutLayer,
    #[cfg(feature = "body-limit")]
    pub(crate) body_limit: BodyLimitLayer,
    #[cfg(feature = "slow-body")]
    pub(crate) slow_body: SlowBodyLayer,
    #[cfg(feature = "concurrency-limit")]
    pub(crate) concurrency_limit: ConcurrencyLimitLayer,
}

/// A guard's policy, and how it is taken from the layers; nothing where the guard's feature is off.
macro_rules! policy_of {
    ($feature:literal, $alias:ident, $policy:ident, $field:ident) => {
        #[cfg(feature = $feature)]
        type $alias = $policy;
        #[cfg(not(feature = $feature))]
        type $alias = ();

        impl Layers {
            #[cfg(feature = $feature)]
            fn $field(&self) -> $alias {
                self.$field.policy().clone()
            }

            #[cfg(not(feature = $feature))]
            fn $field(&self) -> $alias {}
        }
    };
}

policy_of!("rate-limit", RateLimitOf, RateLimitPolicy, rate_limit);
policy_of!("timeout", TimeoutOf, TimeoutPolicy, timeout);
policy_of!("body-limit", BodyLimitOf, BodyLimitPolicy, body_limit);
policy_of!("slow-body", SlowBodyOf, SlowBodyPolicy, slow_body);
policy_of!(
    "concurrency-limit",
    ConcurrencyLimitOf,
    ConcurrencyLimitPolicy,
    concurrency_limit
);

// === Layers ===

impl Layers {
    #[allow(
        clippy::unit_arg,
        reason = "the policy of a guard whose feature is off is a unit"
    )]
    pub(crate) fn stack(&self) -> StackLayer {
        let bodies = And(
            self.body_limit(),
            And(self.slow_body(), self.concurrency_limit()),
        );
        StackLayer {
            guard: GuardLayer::new(And(self.rate_limit(), And(self.timeout(), bodies))),
            #[cfg(feature = "concurrency-limit")]
            concurrency_limit: self.concurrency_limit.handle(),
        }
    }
}

// === StackLayer ===

#[cfg(feature = "concurrency-limit")]
impl StackLayer {
    /// A handle that changes the concurrency limit while the server runs.
    pub fn concurrency_limit(&self) -> ConcurrencyLimitHandle {
        self.concurrency_limit.clone()
    }
}

impl<S> Layer<S> for StackLayer {
    type Service = Stacked<S>;

    fn layer(&self, inner: S) -> Stacked<S> {
        self.guard.layer(inner)
    }
}
