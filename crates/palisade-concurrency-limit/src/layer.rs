//! The layer, its options, and the service's decision.

use crate::{
    limiter::Limiter,
    options::{Options, Queue},
    policy::ConcurrencyLimitPolicy,
};
use palisade_client_ip::ClientIp;
use palisade_core::{KeyExtractor, RequestHead};
use palisade_guard::{GuardLayer, Guarded, Settings};
use std::{sync::Arc, time::Duration};
use tower_layer::Layer;

/// Applies [`ConcurrencyLimit`]. Clones, and the services they make, share one limit.
///
/// They share the counts and the debts of clients. Each method changes the layer it is called on
/// and what is made from that afterwards, so that routes can differ: of two clones one may have
/// fewer requests [`present`](Self::present) before it refuses, or no [`fairness`](Self::fairness).
#[derive(Clone, Debug)]
pub struct ConcurrencyLimitLayer {
    guard: GuardLayer<ConcurrencyLimitPolicy>,
}

/// See the [crate docs](crate).
pub type ConcurrencyLimit<S> = Guarded<S, ConcurrencyLimitPolicy>;

/// Request body under [`ConcurrencyLimit`].
///
/// While the client is what it waits for, the request holds no permit. What comes is handed on
/// once the request holds one again, or at once where the response head is out. Fails once with
/// a [`Violation`](palisade_core::Violation) if the request has to go, and is then at its end.
pub type RequestBody<B> = palisade_guard::RequestBody<B, ConcurrencyLimitPolicy>;

/// Response body under [`ConcurrencyLimit`].
///
/// From a frame handed out until the next is asked for, the request holds no permit, nor while
/// the handler waits for the request body. Fails with a
/// [`Violation`](palisade_core::Violation), or ends with trailers in gRPC, if the request has
/// to go.
pub type ResponseBody<B> = palisade_guard::ResponseBody<B, ConcurrencyLimitPolicy>;

/// Response future of [`ConcurrencyLimit`]. To drop it is to leave the queue, or to give the permit
/// back.
pub type ResponseFuture<S, B> = palisade_guard::ResponseFuture<S, B, ConcurrencyLimitPolicy>;

/// Changes the limit of a running server.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimitHandle {
    limiter: Arc<Limiter>,
}

// === ConcurrencyLimitLayer ===

palisade_guard::settings_methods!(ConcurrencyLimitLayer, levels: limiter, tells: limiter);

impl ConcurrencyLimitLayer {
    /// At most `limit` requests at work, 2,097,151 at most. With 0 every request is refused.
    pub fn new(limit: usize) -> Self {
        Self {
            guard: GuardLayer::new(ConcurrencyLimitPolicy(Arc::new(Options {
                settings: Settings::default(),
                limiter: Arc::new(Limiter::new(limit)),
                max_present: 0,
                is_fair: false,
                release_at_head: false,
                client: Arc::new(ClientIp::peer()),
                per_client: None,
                picks: None,
                max_picked: 0,
                queue: None,
            }))),
        }
    }

    /// At most `requests` present, at work or waiting for their own clients. Where one more comes,
    /// the one goes that has waited longest for its client to send or take 512 bytes: 408, or the
    /// end of its body. Where nobody waits for a client, the one more is refused; so with fewer
    /// than the limit, no more than `requests` work. Those in the [`Self::queue`] are not present
    /// yet. With 0 it follows the limit. Defaults to 8 times the limit.
    pub fn present(mut self, requests: usize) -> Self {
        self.policy_mut().max_present = requests;
        self
    }

    /// Keeps the last tenth of the permits for light clients. Each client is charged the time that
    /// its requests work, pays back one permit all the time, and is heavy while it owes more than
    /// the usual request costs, or has two at work. A client with many slow requests in flight then
    /// cannot shut out those with a few. [`Self::client`] tells clients apart.
    ///
    /// While permits are short, new requests of heavy clients get what the light ones leave of the
    /// other nine tenths, and in any case a quarter of all: an address that many people share is
    /// served under overload too. A request that was admitted and waits for a permit to go on is
    /// passed by no newcomer, whatever its client owes, save for the reserved tenth.
    ///
    /// Remembers 65,536 clients in 512 KiB, and those at work. A request that comes while less than
    /// half of the permits are taken is in no account, and as light as any, until permits are short
    /// and it goes on after a wait for its client; it costs no clock and no lock. The others cost a
    /// few of each.
    /// Defaults to off.
    pub fn fairness(mut self) -> Self {
        self.policy().0.limiter.keep_accounts();
        self.policy_mut().is_fair = true;
        self
    }

    /// At most `requests` of one client present at a time; the next is answered 429. Costs one
    /// lock and one allocation per request. Defaults to no such limit.
    pub fn per_client(mut self, requests: usize) -> Self {
        self.policy_mut().per_client = Some(requests);
        self
    }

    /// Who counts as one client for [`Self::fairness`] and [`Self::per_client`]. Requests for
    /// which it answers [`Exempt`](palisade_core::KeyOutcome::Exempt) or
    /// [`Refuse`](palisade_core::KeyOutcome::Refuse) are in no client's account.
    /// Defaults to [`ClientIp::peer`].
    pub fn client(self, client: impl KeyExtractor) -> Self {
        self.shared_client(Arc::new(client))
    }

    /// The same by an extractor that other layers of a stack have, too: it is asked once.
    #[doc(hidden)]
    pub fn shared_client(mut self, client: Arc<dyn KeyExtractor>) -> Self {
        self.policy_mut().client = client;
        self
    }

    /// `requests` permits beyond the limit for those that `picks` picks, health checks for example,
    /// when no other permit is free. Pick by what a client cannot make up, or by what costs nothing
    /// to answer. Defaults to none.
    pub fn reserve(
        mut self,
        requests: usize,
        picks: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let policy = self.policy_mut();
        policy.max_picked = requests;
        policy.picks = Some(Arc::new(picks));
        self
    }

    /// Lets at most `waiters` newcomers wait for a permit, each for at most `wait`, first come
    /// first served, instead of refusing them at once; with [`Self::fairness`] those whose clients
    /// hold few come first. They are not [`present`](Self::present) before they have a permit, and
    /// refused if there is no room then. With 0 `waiters` all are refused at once. Dropping the
    /// response future leaves the queue. Defaults to no queue: under overload a queue makes
    /// all requests slow before it refuses the same number of them.
    pub fn queue(mut self, waiters: usize, wait: Duration) -> Self {
        self.policy_mut().queue = Some(Queue { waiters, wait });
        self
    }

    /// Ends the count at the response head instead of the end of the response body, as tower's
    /// does. For routes whose answers are long streams of your own. Defaults to the end of the
    /// body.
    pub fn release_at_head(mut self) -> Self {
        self.policy_mut().release_at_head = true;
        self
    }

    /// A handle that changes the limit while the server runs. It tells the metrics that were given
    /// last to this layer or to another one that shares its limit, then or later.
    pub fn handle(&self) -> ConcurrencyLimitHandle {
        ConcurrencyLimitHandle {
            limiter: self.policy().0.limiter.clone(),
        }
    }

    /// The policy of this layer, for a stack of several.
    #[doc(hidden)]
    pub fn policy(&self) -> &ConcurrencyLimitPolicy {
        self.guard.policy()
    }

    fn policy_mut(&mut self) -> &mut Options {
        Arc::make_mut(&mut self.guard.policy_mut().0)
    }
}

impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> ConcurrencyLimit<S> {
        self.guard.layer(inner)
    }
}

// === ConcurrencyLimitHandle ===

impl ConcurrencyLimitHandle {
    /// At most `limit` requests at work from now on. Those that are at work go on; with a lower
    /// limit nobody is let in until enough of them are done. With 0 whoever was let in still goes
    /// on, one at a time where they have to wait for a permit.
    pub fn set_limit(&self, limit: usize) {
        self.limiter.set_limit(limit);
    }

    /// The present limit.
    pub fn limit(&self) -> usize {
        self.limiter.limit()
    }

    /// How many requests are at work now.
    pub fn working(&self) -> usize {
        self.limiter.working()
    }
}
