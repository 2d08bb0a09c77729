//! The policy of the rate limit: the key and cost of a request, and its refusal.

use crate::{
    Account, Decision, KeyExtractor, KeyOutcome, Limiter, RequestHead, ResponseHead,
    options::Options,
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use palisade_core::{
    ClientKey, Gauge, GaugeSource, Guard, Mode, Phase, Reason, Rejection, Violation,
};
use palisade_guard::{
    Facts, KeepUnread, Keys, NeverQueued, Occupancy, OnReject, Policy, Refusal, RequestView,
    Settings,
};
use parking_lot::Mutex;
use std::{fmt, net::IpAddr, sync::Arc, time::Duration};
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

/// The gauges of a limiter.
pub(crate) struct LimiterGauges {
    limiter: Arc<dyn Limiter>,
    evicted_before: u64,
    /// The last occupancy of a large table, and when it was read.
    cached: Mutex<Option<(Instant, Occupancy)>>,
}

/// How long the occupancy of a large table is cached: reading a table of a million keys takes two
/// milliseconds.
const OCCUPANCY_CACHE_TTL: Duration = Duration::from_secs(1);
/// The occupancy of a table with at least this capacity is cached.
const MIN_CACHED_CAPACITY_KEYS: u64 = 1 << 16;

/// Why a request is refused.
#[derive(Clone, Copy)]
pub(crate) enum DenyReason {
    PeerMissing,
    RateExceeded(Duration),
    NetworkExceeded(Duration),
    OverBurst { cost: u32, burst: u32 },
}

/// What of a charge cannot be found out again from the request: the cells, the number of accounts,
/// and whose quota it was. One word, which [`Keys`] can keep.
#[derive(Clone, Copy)]
pub(crate) struct Settled(u64);

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
}

// === RateLimitPolicy ===

impl RateLimitPolicy {
    /// Charges the client for a request, or returns why the request is denied.
    #[inline]
    pub(crate) fn check(&self, head: &RequestHead<'_>, keys: &mut Keys) -> Result<(), DenyReason> {
        if !self.settings.is_enabled() {
            return Ok(());
        }
        let key = match keys.get(&self.key, head) {
            KeyOutcome::Key(key) => key,
            KeyOutcome::Exempt => return Ok(()),
            // Refused, or an outcome that this version does not know.
            _ => return Err(DenyReason::PeerMissing),
        };
        let cost = self.cost.as_ref().map_or(1, |cost| cost(head));
        match self.limiter.check(key, cost) {
            Decision::Admit => Ok(()),
            Decision::Deny { wait } => Err(DenyReason::RateExceeded(wait)),
            Decision::NeverPossible { burst } => Err(DenyReason::OverBurst { cost, burst }),
        }
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
        let mode = match options.ladder.mode {
            Mode::Enforce => self.settings.mode,
            mode => mode,
        };
        let network = options.network_of(address);
        let limiter = options.limiter(network, &self.limiter);
        let networks = address.filter(|_| mode != Mode::Off);
        let mut accounts = options.ladder.accounts(key, networks, network);
        let (accounts, decision) = limiter.check_accounts(&mut accounts, cost);
        if decision != Decision::Admit {
            let charged = Charged {
                key,
                address,
                network,
                cells: cost,
                accounts,
                is_grpc: false,
            };
            let own = || Facts::from_request(request, true);
            let facts = facts.map_or_else(own, Facts::clone);
            self.refuse_with(options, &charged, decision, mode, &facts)?;
        }
        let is_awaited = accounts > 0 && options.needs_response();
        Ok(is_awaited.then(|| Settled::new(network, cost, accounts)))
    }

    /// Returns what the request was charged, to be settled by its response.
    #[inline(never)]
    pub(crate) fn charged(
        &self,
        options: &Options,
        head: &RequestHead<'_>,
        settled: Settled,
        is_grpc: bool,
        keys: &mut Keys,
    ) -> Option<Charged> {
        let (outcome, address) = keys.get_with_address(&self.key, head);
        let KeyOutcome::Key(key) = outcome else {
            return None;
        };
        let address = address.filter(|_| options.needs_address());
        let [cells, accounts, network] = settled.parts();
        Some(Charged {
            key,
            address,
            network: network.checked_sub(1),
            cells: cells as u32,
            accounts,
            is_grpc,
        })
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

    /// Returns whether the response of an admitted request matters.
    #[inline]
    pub(crate) fn needs_response(&self) -> bool {
        let options = self.options.as_ref();
        options.is_some_and(|it| it.needs_response() && self.settings.is_enabled())
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
        decision: Decision,
        networks: Mode,
        facts: &Facts,
    ) -> Result<(), Refusal> {
        let cost = charged.cells;
        let is_network = charged.accounts > 0;
        let reason = match decision {
            Decision::NeverPossible { burst } => DenyReason::OverBurst { cost, burst },
            Decision::Deny { wait } if is_network => DenyReason::NetworkExceeded(wait),
            Decision::Deny { wait } => DenyReason::RateExceeded(wait),
            Decision::Admit => return Ok(()),
        };
        let mut settings = self.settings.clone();
        if is_network {
            settings.mode = networks;
        }
        let rejection = reason.rejection(facts);
        let limiter = options.limiter(charged.network, &self.limiter);
        if settings.mode == Mode::Enforce {
            let charged_to = charged.accounts(options);
            charged_to.for_each(|account| limiter.correct(account, cost, 0));
            let mut accounts =
                options
                    .ladder
                    .accounts(charged.key, charged.address, charged.network);
            if let Some(fields) = &options.fields
                && rejection.retry_delay().is_some()
                && let Some(refusing) = accounts.nth(charged.accounts)
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
    /// Returns the accounts that the request was charged to.
    fn accounts<'a>(&self, options: &'a Options) -> impl Iterator<Item = Account> + use<'a> {
        let accounts = options
            .ladder
            .accounts(self.key, self.address, self.network);
        accounts.take(self.accounts)
    }
}

// === Settled ===

impl Settled {
    fn new(network: Option<usize>, cells: u32, accounts: usize) -> Self {
        let network = network.and_then(|index| u16::try_from(index + 1).ok());
        let accounts = u16::try_from(accounts).unwrap_or(u16::MAX);
        Self(
            u64::from(cells)
                | u64::from(accounts) << 32
                | u64::from(network.unwrap_or_default()) << 48,
        )
    }

    /// Returns the cells, the number of accounts, and that of the networks or 0.
    fn parts(self) -> [usize; 3] {
        let Self(bits) = self;
        [
            bits as u32 as usize,
            usize::from((bits >> 32) as u16),
            usize::from((bits >> 48) as u16),
        ]
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
                Ok(Some(Settled(bits))) => {
                    keys.keep(self.id(), bits);
                    Ok(())
                }
                Err(refusal) => Err(*refusal),
            };
        }
        self.check(&request.into(), keys)
            .or_else(|reason| self.refuse(reason, facts))
    }

    #[inline(always)]
    fn needs_sharing(&self, (): &()) -> bool {
        self.needs_response()
    }

    #[inline(always)]
    fn share<B: Body>(
        &self,
        (): &mut (),
        request: &mut Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Option<Box<Charged>> {
        let options = self.options.as_deref()?;
        let settled = Settled(keys.kept(self.id())?);
        let (head, is_grpc) = ((&*request).into(), facts.form.is_grpc());
        let charged = self.charged(options, &head, settled, is_grpc, keys)?;
        Some(Box::new(charged))
    }

    #[inline(always)]
    fn upload(&self, (): &mut (), _: &Option<Box<Charged>>, _: &Facts) {}

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

// === LimiterGauges ===

impl LimiterGauges {
    pub(crate) fn new(limiter: Arc<dyn Limiter>, evicted_before: u64) -> Self {
        Self {
            limiter,
            evicted_before,
            cached: Mutex::new(None),
        }
    }

    fn occupancy(&self) -> Option<Occupancy> {
        let now = Instant::now();
        let mut cached = self.cached.lock();
        if let Some((read_at, occupancy)) = *cached
            && now.saturating_duration_since(read_at) < OCCUPANCY_CACHE_TTL
        {
            return Some(occupancy);
        }
        let occupancy = self.limiter.occupancy()?;
        if occupancy.capacity >= MIN_CACHED_CAPACITY_KEYS {
            *cached = Some((now, occupancy));
        }
        Some(occupancy)
    }
}

impl GaugeSource for LimiterGauges {
    fn guard(&self) -> Guard {
        Guard::RateLimit
    }

    fn sample(&self, visit: &mut dyn FnMut(Gauge, u64)) {
        if let Some(occupancy) = self.occupancy() {
            visit(Gauge::Keys, occupancy.keys);
            visit(Gauge::KeyCapacity, occupancy.capacity);
            let evicted = occupancy.evicted.saturating_sub(self.evicted_before);
            visit(Gauge::KeysEvicted, evicted);
        }
    }
}
