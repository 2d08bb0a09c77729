//! The stack of guards. This file alone defines their order.

#[cfg(feature = "axum")]
mod boxed;
#[cfg(feature = "body-limit")]
mod buffered;

#[cfg(feature = "axum")]
pub use boxed::{Boxed, BoxedFuture, BoxedInner, BoxedLayer};
#[cfg(feature = "body-limit")]
pub use buffered::{BufferedLayer, BufferedStack};

use palisade_guard::{And, GuardLayer};
use tower_layer::Layer;

#[cfg(feature = "ban")]
use palisade_ban::{BanLayer, BanPolicy};
#[cfg(feature = "body-limit")]
use palisade_body_limit::{BodyBudgetLayer, BodyBudgetPolicy, BodyLimitLayer, BodyLimitPolicy};
#[cfg(feature = "concurrency-limit")]
use palisade_concurrency_limit::{
    ConcurrencyLimitHandle, ConcurrencyLimitLayer, ConcurrencyLimitPolicy,
};
#[cfg(feature = "load-shed")]
use palisade_load_shed::{LoadShedLayer, LoadShedPolicy};
#[cfg(feature = "rate-limit")]
use palisade_rate_limit::{RateLimitLayer, RateLimitPolicy};
#[cfg(feature = "slow-body")]
use palisade_slow_body::{SlowBodyLayer, SlowBodyPolicy};
#[cfg(feature = "timeout")]
use palisade_timeout::{TimeoutLayer, TimeoutPolicy};

/// All guards as one `Layer`. All clones, and the services they create, share all state, so it can
/// be applied any number of times. A request that passes several services of one stack, as with
/// nested routers, counts once.
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct StackLayer {
    guard: GuardLayer<Policies>,
    #[cfg(feature = "concurrency-limit")]
    concurrency_limit: ConcurrencyLimitHandle,
}

/// A service `S` inside all guards.
pub type Stacked<S> = palisade_guard::Guarded<S, Policies>;

/// The request body that a handler inside the stack reads.
pub type RequestBody<B> = palisade_guard::RequestBody<B, Policies>;

/// The response body of a service inside the stack.
pub type ResponseBody<B> = palisade_guard::ResponseBody<B, Policies>;

/// The policies of a stack, from the outermost guard to the innermost. Banned clients are refused
/// before they count for anything, and load is shed before anything is done for a request. The
/// cheapest refusals come first; the permit is granted last and given back last. The timeout is
/// outside the concurrency limit, so that it includes the wait for a permit.
pub(crate) type Policies = And<
    MaybeBan,
    And<
        MaybeLoadShed,
        And<
            MaybeRateLimit,
            And<
                MaybeTimeout,
                And<
                    MaybeBodyLimit,
                    And<MaybeBodyBudget, And<MaybeSlowBody, MaybeConcurrencyLimit>>,
                >,
            >,
        >,
    >,
>;

/// The policies outside of the concurrency limit, where a stack has a buffer between them.
#[cfg(feature = "body-limit")]
pub(crate) type OuterPolicies = And<
    MaybeBan,
    And<
        MaybeLoadShed,
        And<
            MaybeRateLimit,
            And<MaybeTimeout, And<MaybeBodyLimit, And<MaybeBodyBudget, MaybeSlowBody>>>,
        >,
    >,
>;

/// The layers of a stack, before they are combined into one.
pub(crate) struct Layers {
    #[cfg(feature = "ban")]
    pub(crate) ban: BanLayer,
    #[cfg(feature = "load-shed")]
    pub(crate) load_shed: LoadShedLayer,
    #[cfg(feature = "rate-limit")]
    pub(crate) rate_limit: RateLimitLayer,
    #[cfg(feature = "timeout")]
    pub(crate) timeout: TimeoutLayer,
    #[cfg(feature = "body-limit")]
    pub(crate) body_limit: BodyLimitLayer,
    #[cfg(feature = "body-limit")]
    pub(crate) body_budget: BodyBudgetLayer,
    #[cfg(feature = "slow-body")]
    pub(crate) slow_body: SlowBodyLayer,
    #[cfg(feature = "concurrency-limit")]
    pub(crate) concurrency_limit: ConcurrencyLimitLayer,
}

/// Defines the alias of a guard's policy, and the method of [`Layers`] that returns the policy.
/// Both are the unit if the guard's feature is off.
macro_rules! optional_policy {
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

optional_policy!("ban", MaybeBan, BanPolicy, ban);
optional_policy!("load-shed", MaybeLoadShed, LoadShedPolicy, load_shed);
optional_policy!("rate-limit", MaybeRateLimit, RateLimitPolicy, rate_limit);
optional_policy!("timeout", MaybeTimeout, TimeoutPolicy, timeout);
optional_policy!("body-limit", MaybeBodyLimit, BodyLimitPolicy, body_limit);
optional_policy!("body-limit", MaybeBodyBudget, BodyBudgetPolicy, body_budget);
optional_policy!("slow-body", MaybeSlowBody, SlowBodyPolicy, slow_body);
optional_policy!(
    "concurrency-limit",
    MaybeConcurrencyLimit,
    ConcurrencyLimitPolicy,
    concurrency_limit
);

// === Layers ===

impl Layers {
    #[allow(
        clippy::unit_arg,
        reason = "the policy of a guard is the unit if its feature is off"
    )]
    /// Combines the layers into one.
    pub(crate) fn to_stack_layer(&self) -> StackLayer {
        let bodies = And(
            self.body_limit(),
            And(
                self.body_budget(),
                And(self.slow_body(), self.concurrency_limit()),
            ),
        );
        let requests = And(self.rate_limit(), And(self.timeout(), bodies));
        StackLayer {
            guard: GuardLayer::new(And(self.ban(), And(self.load_shed(), requests))),
            #[cfg(feature = "concurrency-limit")]
            concurrency_limit: self.concurrency_limit.handle(),
        }
    }
}

// === StackLayer ===

#[cfg(feature = "body-limit")]
impl StackLayer {
    #[allow(
        clippy::clone_on_copy,
        clippy::unit_arg,
        reason = "the policy of a guard is the unit if its feature is off"
    )]
    /// Returns the guards outside of a buffer, and the one inside. They share the state of this
    /// stack.
    fn split(&self) -> (GuardLayer<OuterPolicies>, GuardLayer<MaybeConcurrencyLimit>) {
        let And(ban, And(load_shed, And(rate_limit, And(timeout, bodies)))) = self.guard.policy();
        let And(body_limit, And(body_budget, And(slow_body, concurrency_limit))) = bodies;
        let bodies = And(
            body_limit.clone(),
            And(body_budget.clone(), slow_body.clone()),
        );
        let requests = And(rate_limit.clone(), And(timeout.clone(), bodies));
        let outer = And(ban.clone(), And(load_shed.clone(), requests));
        (
            GuardLayer::new(outer),
            GuardLayer::new(concurrency_limit.clone()),
        )
    }
}

#[cfg(feature = "concurrency-limit")]
impl StackLayer {
    /// Returns a handle that changes the concurrency limit while the server runs.
    ///
    /// ```
    /// use palisade::Stack;
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge().max_requests(1).build()?;
    /// let limit = stack.concurrency_limit();
    /// let service = stack.layer(service_fn(work_for_a_second));
    /// let send = || service.clone().oneshot(Request::new(Empty::<Bytes>::new()));
    /// let (_, second) = tokio::join!(send(), send());
    /// assert_eq!(second?.status(), 503);
    /// limit.set_limit(2);
    /// let (_, second) = tokio::join!(send(), send());
    /// assert_eq!(second?.status(), 200);
    /// # Ok(())
    /// # }
    /// ```
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
