//! The policy of the rate limit: the key and cost of a request, and its refusal.

use crate::{
    Account, Decision, KeyExtractor, KeyOutcome, Limiter, RequestHead, ResponseHead,
    limiter::{Checked, Deferred},
    options::Options,
    settled::Settled,
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use palisade_core::{ClientKey, GaugeSource, Guard, Mode, Phase, Reason, Rejection, Violation};
use palisade_guard::{
    Facts, Handler, KeepUnread, Keys, NeverQueued, OnReject, Policy, Refusal, RequestView,
    Settings, SharedView,
};
use parking_lot::Mutex;
use std::{
    fmt,
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::Instant;

/// The policy of [`RateLimitLayer`](crate::RateLimitLayer).
#[derive(Clone)]
pub struct RateLimitPolicy {
    pub(crate) settings: Settings,
    pub(crate) limiter: Arc<dyn Limiter>,
    pub(crate) gauges: Arc<dyn GaugeSource>,
    pub(crate) key: Arc<dyn KeyExtractor>,
    pub(crate) cost: Option<CostFn>,
    /// Kept apart, so that a layer without options checks once that it has none.
    pub(crate) options: Option<Arc<Options>>,
}

pub(crate) type CostFn = Arc<dyn Fn(&RequestHead<'_>) -> u32 + Send + Sync>;

/// Why a request is not admitted at once.
#[derive(Clone, Copy)]
pub(crate) enum NotAdmitted {
    Refused(DenyReason),
    /// Other nodes must be asked.
    Deferred {
        cost: u32,
    },
}

/// Why a request is refused.
#[derive(Clone, Copy)]
pub(crate) enum DenyReason {
    PeerMissing,
    RateExceeded(Duration),
    NetworkExceeded(Duration),
    FleetUnavailable(Duration),
    OverBurst { cost: u32, burst: u32 },
}

/// An admitted request, and what it has been charged.
#[derive(Debug)]
pub struct Charged {
    key: ClientKey,
    address: Option<IpAddr>,
    /// The index of the networks of which it has the quota.
    network: Option<usize>,
    cells: u32,
    /// The number of accounts that it was charged to: its own, and its networks from the narrowest
    /// on.
    accounts: usize,
    is_grpc: bool,
    /// The decision, if other nodes are asked about it.
    pub(crate) deferred: Option<Box<Mutex<State>>>,
}

/// What other nodes say about a request.
pub(crate) enum State {
    Waits(Deferred),
    Admitted,
    Refused(Option<Box<Refusal>>),
}

// === RateLimitPolicy ===

impl RateLimitPolicy {
    /// Charges the client for a request, or returns why the request is not admitted.
    #[inline]
    pub(crate) fn check(&self, head: &RequestHead<'_>, keys: &mut Keys) -> Result<(), NotAdmitted> {
        if !self.settings.is_enabled() {
            return Ok(());
        }
        let refused = |reason| Err(NotAdmitted::Refused(reason));
        let key = match keys.get(&self.key, head) {
            KeyOutcome::Key(key) => key,
            KeyOutcome::Exempt => return Ok(()),
            // Refused, or an outcome that this version does not know.
            _ => return refused(DenyReason::PeerMissing),
        };
        let cost = self.cost.as_ref().map_or(1, |cost| cost(head));
        match self.limiter.check(key, cost) {
            Decision::Admit => Ok(()),
            Decision::Deny { wait } => refused(DenyReason::RateExceeded(wait)),
            Decision::NeverPossible { burst } => refused(DenyReason::OverBurst { cost, burst }),
            Decision::Unavailable { wait } => refused(DenyReason::FleetUnavailable(wait)),
            Decision::Deferred => Err(NotAdmitted::Deferred { cost }),
        }
    }

    /// Continues after [`check`](Self::check) has left the decision about a request to other nodes.
    /// Returns what is left to be decided.
    #[cold]
    #[inline(never)]
    pub(crate) fn deferred<B>(
        &self,
        cost: u32,
        request: &Request<B>,
        keys: &mut Keys,
    ) -> Option<Settled> {
        if self.settings.mode == Mode::Enforce {
            return Some(Settled::new(None, cost, 1).deferred());
        }
        // What is not enforced does not wait either.
        if let KeyOutcome::Key(key) = keys.get(&self.key, &request.into()) {
            let mut client = std::iter::once(Account::of_client(key));
            self.limiter.admit_deferred(&mut client, cost);
        }
        None
    }

    pub(crate) fn options(&self) -> &Options {
        self.options.as_deref().unwrap_or(Options::NONE)
    }

    /// Charges the client, and the networks around it, for a request of a layer with options.
    /// Records a refusal. Returns what was charged, or `None` if nothing was.
    ///
    /// The client is charged first, then the networks from the narrowest on. A refusal charges no
    /// wider network, and what its client and the narrower networks were charged is given back: so
    /// a client that has used up its quota takes nothing from its neighbours, and one whose network
    /// is used up keeps its own quota.
    #[inline(never)]
    pub(crate) fn check_with<B: Body>(
        &self,
        options: &Options,
        request: &Request<B>,
        facts: Option<&Facts>,
        keys: &mut Keys,
    ) -> Result<Option<Settled>, Box<Refusal>> {
        if !self.settings.is_enabled() {
            return Ok(None);
        }
        let head = RequestHead::from(request);
        let (outcome, address) = if options.needs_address() {
            keys.get_with_address(&self.key, &head)
        } else {
            (keys.get(&self.key, &head), None)
        };
        let key = match outcome {
            KeyOutcome::Key(key) => key,
            KeyOutcome::Exempt => return Ok(None),
            // Refused, or an outcome that this version does not know.
            _ => {
                let own = || Facts::from_request(request, true);
                let facts = facts.map_or_else(own, Facts::clone);
                self.refuse(DenyReason::PeerMissing, &facts)?;
                return Ok(None);
            }
        };
        let cost = self.cost.as_ref().map_or(1, |cost| cost(&head));
        let mode = options.networks_mode(&self.settings);
        let network = options.network_of(address);
        let limiter = options.limiter(network, &self.limiter);
        let networks = address.filter(|_| mode != Mode::Off);
        let accounts = || options.ladder.accounts(key, networks, network);
        // Networks that are only watched are asked about apart: they must neither let a client
        // wait nor keep it from being charged.
        let is_watched = mode == Mode::Shadow && self.settings.mode == Mode::Enforce;
        let checked = if is_watched && limiter.charges_all_or_none() {
            let client = Charged::new(key, address, network, cost);
            let own = || Facts::from_request(request, true);
            let facts = || facts.map_or_else(own, Facts::clone);
            self.check_apart(options, limiter, &client, &facts)
        } else {
            limiter.check_or_defer(&mut accounts(), cost)
        };
        let settled = || Settled::new(network, cost, checked.charged);
        match checked.decision {
            Decision::Admit => {}
            Decision::Deferred if self.settings.mode == Mode::Enforce => {
                return Ok(Some(settled().deferred()));
            }
            // What is not enforced does not wait either.
            Decision::Deferred => limiter.admit_deferred(&mut accounts(), cost),
            _ => {
                let charged = Charged {
                    accounts: checked.charged,
                    ..Charged::new(key, address, network, cost)
                };
                let own = || Facts::from_request(request, true);
                let facts = facts.map_or_else(own, Facts::clone);
                self.refuse_with(options, &charged, checked, mode, &facts)?;
            }
        }
        let is_awaited = checked.charged > 0 && options.needs_response();
        Ok(is_awaited.then(settled))
    }

    /// Asks about a client and then, if it is admitted or waits, about the networks around it.
    /// Records a refusal by one of them, which is not enforced.
    #[inline(never)]
    fn check_apart(
        &self,
        options: &Options,
        limiter: &dyn Limiter,
        client: &Charged,
        facts: &dyn Fn() -> Facts,
    ) -> Checked {
        let account = Account::of_client(client.key);
        let mut checked = limiter.check_or_defer(&mut std::iter::once(account), client.cells);
        if !matches!(checked.decision, Decision::Admit | Decision::Deferred) {
            return checked;
        }
        let watched = self.watch_networks(options, limiter, client, facts);
        // What waits is charged to its client alone.
        if checked.decision == Decision::Admit {
            checked.charged += watched;
        }
        checked
    }

    /// Asks about the networks around a client. Returns how many of them were charged.
    fn watch_networks(
        &self,
        options: &Options,
        limiter: &dyn Limiter,
        client: &Charged,
        facts: &dyn Fn() -> Facts,
    ) -> usize {
        let Charged {
            key,
            address,
            network,
            cells,
            ..
        } = *client;
        let networks = || options.ladder.accounts(key, address, network).skip(1);
        if networks().next().is_none() {
            return 0;
        }
        let mut checked = limiter.check_or_defer(&mut networks(), cells);
        match checked.decision {
            Decision::Admit => {}
            Decision::Deferred => limiter.admit_deferred(&mut networks(), cells),
            _ => {
                checked.refusing += 1; // Of all accounts, the first of which is the client.
                let watched = self.refuse_with(options, client, checked, Mode::Shadow, &facts());
                debug_assert!(watched.is_ok(), "shadow mode refuses nothing");
            }
        }
        checked.charged
    }

    /// Returns what the request was charged, to be settled by its response.
    #[inline(never)]
    pub(crate) fn charged(
        &self,
        head: &RequestHead<'_>,
        settled: Settled,
        is_grpc: bool,
        keys: &mut Keys,
    ) -> Option<Charged> {
        let options = self.options();
        let (outcome, address) = keys.get_with_address(&self.key, head);
        let KeyOutcome::Key(key) = outcome else {
            return None;
        };
        let address = address.filter(|_| options.needs_address());
        let Settled { cells, .. } = settled;
        let mut charged = Charged {
            key,
            address,
            network: settled.network.checked_sub(1).map(usize::from),
            cells,
            accounts: settled.accounts.into(),
            is_grpc,
            deferred: None,
        };
        if settled.is_deferred {
            let limiter = options.limiter(charged.network, &self.limiter);
            let decision = limiter.defer(&mut charged.accounts(options), cells);
            charged.deferred = Some(Box::new(Mutex::new(State::Waits(decision))));
        }
        Some(charged)
    }

    /// Polls the decision about a request that other nodes are asked about. If they refuse it,
    /// records that, and keeps the refusal if it is enforced.
    #[inline(never)]
    pub(crate) fn poll_deferred(
        &self,
        charged: &Charged,
        deferred: &Mutex<State>,
        facts: &Facts,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), ()>> {
        let options = self.options();
        let mut state = deferred.lock();
        let checked = match &mut *state {
            State::Waits(decision) => ready!(decision.as_mut().poll(cx)),
            State::Admitted => return Poll::Ready(Ok(())),
            State::Refused(_) => return Poll::Ready(Err(())),
        };
        let networks = options.networks_mode(&self.settings);
        let refused = self.refuse_with(options, charged, checked, networks, facts);
        *state = match refused {
            Ok(()) => State::Admitted,
            Err(refusal) => State::Refused(Some(Box::new(refusal))),
        };
        match &*state {
            State::Refused(_) => Poll::Ready(Err(())),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Settles the charge of a request by its response, and adds header fields.
    #[inline(never)]
    pub(crate) fn answered<B>(&self, charged: &Charged, response: &mut Response<B>) {
        let Some(options) = self.options.as_deref() else {
            return;
        };
        let limiter = options.limiter(charged.network, &self.limiter);
        if let Some(settle) = &options.settle {
            let cells = settle(&ResponseHead::new(response, charged.cells));
            let accounts = charged.accounts(options);
            accounts.for_each(|account| limiter.correct(account, charged.cells, cells));
        }
        if let Some(fields) = &options.fields
            && options.fields_on_every_response
            && self.settings.mode == Mode::Enforce
            && !charged.is_grpc
        {
            let quotas = limiter.quotas(Account::of_client(charged.key));
            fields.add_to(response.headers_mut(), &quotas);
        }
    }

    /// Identifies this policy while a request is admitted.
    fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Records the refusal of a request by its client's account or, in `networks`, by that of a
    /// network. If it is enforced, gives back what was charged and returns it as an error, with
    /// header fields if the layer has a name.
    #[cold]
    #[inline(never)]
    fn refuse_with(
        &self,
        options: &Options,
        charged: &Charged,
        checked: Checked,
        networks: Mode,
        facts: &Facts,
    ) -> Result<(), Refusal> {
        let cost = charged.cells;
        let is_network = checked.refusing > 0;
        let reason = match checked.decision {
            Decision::NeverPossible { burst } => DenyReason::OverBurst { cost, burst },
            Decision::Deny { wait } if is_network => DenyReason::NetworkExceeded(wait),
            Decision::Deny { wait } => DenyReason::RateExceeded(wait),
            Decision::Unavailable { wait } => DenyReason::FleetUnavailable(wait),
            Decision::Admit | Decision::Deferred => return Ok(()),
        };
        let mut settings = self.settings.clone();
        if is_network {
            settings.mode = networks;
        }
        let rejection = reason.rejection(facts);
        let limiter = options.limiter(charged.network, &self.limiter);
        if settings.mode == Mode::Enforce {
            let charged_to = charged.accounts(options).take(checked.charged);
            charged_to.for_each(|account| limiter.refund(account, cost));
            let mut accounts =
                options
                    .ladder
                    .accounts(charged.key, charged.address, charged.network);
            if let Some(fields) = &options.fields
                && rejection.retry_delay().is_some()
                && let Some(refusing) = accounts.nth(checked.refusing)
            {
                let quotas = limiter.quotas(refusing);
                let fields = fields.of_refusal(&quotas, cost, is_network);
                settings.on_reject = Some(with_fields(settings.on_reject, fields));
            }
        }
        settings.refuse_request(rejection, facts)
    }

    /// Records a refusal. Returns it as an error if it is enforced.
    #[cold]
    #[inline(never)]
    pub(crate) fn refuse(&self, reason: DenyReason, facts: &Facts) -> Result<(), Refusal> {
        self.settings.refuse_request(reason.rejection(facts), facts)
    }
}

/// Returns a writer of responses in plain HTTP that adds `fields` to those of `on_reject`, or to
/// the default ones.
fn with_fields(on_reject: Option<OnReject>, fields: Vec<(HeaderName, HeaderValue)>) -> OnReject {
    Arc::new(move |rejection| {
        let mut response = match &on_reject {
            Some(on_reject) => on_reject(rejection),
            None => Response::new(Bytes::from_static(rejection.message().as_bytes())),
        };
        for (name, value) in &fields {
            response.headers_mut().append(name, value.clone());
        }
        response
    })
}

// === DenyReason ===

impl DenyReason {
    #[inline]
    fn rejection(self, facts: &Facts) -> Rejection {
        let (reason, status, limit, observed, wait) = match self {
            Self::PeerMissing => (
                Reason::PeerMissing,
                StatusCode::INTERNAL_SERVER_ERROR,
                0,
                0,
                None,
            ),
            Self::RateExceeded(wait) | Self::NetworkExceeded(wait) => {
                let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                (
                    match self {
                        Self::NetworkExceeded(_) => Reason::NetworkRateExceeded,
                        _ => Reason::RateExceeded,
                    },
                    StatusCode::TOO_MANY_REQUESTS,
                    0,
                    millis,
                    Some(wait),
                )
            }
            Self::FleetUnavailable(wait) => (
                Reason::FleetUnavailable,
                StatusCode::SERVICE_UNAVAILABLE,
                0,
                0,
                Some(wait),
            ),
            Self::OverBurst { cost, burst } => {
                let (limit, observed) = (burst.into(), cost.into());
                (
                    Reason::CostOverBurst,
                    StatusCode::PAYLOAD_TOO_LARGE,
                    limit,
                    observed,
                    None,
                )
            }
        };
        let phase = Phase::RequestHead;
        let violation = Violation::new(Guard::RateLimit, reason, phase, limit, observed);
        let rejection = Rejection::new(violation, status, facts.form);
        match wait {
            Some(wait) => rejection.retry_after(wait),
            None => rejection,
        }
    }
}

// === Charged ===

impl Charged {
    /// A request of this client that has not been charged.
    fn new(key: ClientKey, address: Option<IpAddr>, network: Option<usize>, cells: u32) -> Self {
        Self {
            key,
            address,
            network,
            cells,
            accounts: 0,
            is_grpc: false,
            deferred: None,
        }
    }

    /// Returns the accounts that the request was charged to.
    fn accounts<'a>(&self, options: &'a Options) -> impl Iterator<Item = Account> + use<'a> {
        let accounts = options
            .ladder
            .accounts(self.key, self.address, self.network);
        accounts.take(self.accounts)
    }

    /// Returns the refusal of other nodes, once.
    #[cold]
    #[inline(never)]
    pub(crate) fn take_refusal(&self) -> Option<Box<Refusal>> {
        match &mut *self.deferred.as_ref()?.lock() {
            State::Refused(refusal) => refusal.take(),
            _ => None,
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waits(_) => "Waits",
            Self::Admitted => "Admitted",
            Self::Refused(_) => "Refused",
        })
    }
}

impl Policy for RateLimitPolicy {
    type Held = ();
    type Shared = Option<Box<Charged>>;
    type Upload = ();
    type QueuedService = NeverQueued;
    type Unread = KeepUnread;

    #[inline(always)]
    fn has_recorder(&self) -> bool {
        self.settings.recorder.is_enabled()
    }

    #[inline(always)]
    fn admit<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Result<(), Refusal> {
        if let Some(options) = &self.options {
            return match self.check_with(options, request, Some(facts), keys) {
                Ok(None) => Ok(()),
                Ok(Some(settled)) => {
                    keys.keep(self.id(), settled.to_words());
                    Ok(())
                }
                Err(refusal) => Err(*refusal),
            };
        }
        match self.check(&request.into(), keys) {
            Ok(()) => Ok(()),
            Err(NotAdmitted::Refused(reason)) => self.refuse(reason, facts),
            Err(NotAdmitted::Deferred { cost }) => {
                if let Some(settled) = self.deferred(cost, request, keys) {
                    keys.keep(self.id(), settled.to_words());
                }
                Ok(())
            }
        }
    }

    #[inline(always)]
    fn needs_sharing(&self, (): &(), keys: &Keys) -> bool {
        keys.kept(self.id()).is_some()
    }

    #[inline(always)]
    fn share<B: Body>(
        &self,
        (): &mut (),
        request: &mut Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Option<Box<Charged>> {
        let settled = Settled::from_words(keys.kept(self.id())?);
        let (head, is_grpc) = ((&*request).into(), facts.form.is_grpc());
        let charged = self.charged(&head, settled, is_grpc, keys)?;
        Some(Box::new(charged))
    }

    #[inline(always)]
    fn upload(&self, (): &mut (), _: &Option<Box<Charged>>, _: &Facts) {}

    #[inline(always)]
    fn before_handler(
        &self,
        (): &mut (),
        view: SharedView<'_, Option<Box<Charged>>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(charged) = view.shared else {
            return Poll::Ready(());
        };
        let Some(deferred) = &charged.deferred else {
            return Poll::Ready(());
        };
        match self.poll_deferred(charged, deferred, view.facts, cx) {
            Poll::Ready(Ok(())) => Poll::Ready(()),
            // The refusal is returned by `after_handler`.
            Poll::Ready(Err(())) | Poll::Pending => Poll::Pending,
        }
    }

    #[inline(always)]
    fn after_handler(
        &self,
        (): &mut (),
        view: RequestView<'_, Option<Box<Charged>>>,
        handler: Handler,
        _: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        match (handler, view.shared) {
            (Handler::HeldBack, Some(Some(charged))) => charged.take_refusal(),
            _ => None,
        }
    }

    #[inline(always)]
    fn response_head<B: Body>(
        &self,
        (): &mut (),
        view: RequestView<'_, Option<Box<Charged>>>,
        response: &mut Response<B>,
        _: Option<Instant>,
    ) -> Result<bool, Box<Refusal>> {
        if let Some(Some(charged)) = view.shared {
            self.answered(charged, response);
        }
        Ok(false)
    }
}

impl fmt::Debug for RateLimitPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitPolicy")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
