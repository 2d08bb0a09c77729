//! The budget of bytes that all request bodies share.

use crate::account::{bytes_full, is_encoded};
use http::{Request, Response, StatusCode};
use http_body::Body;
use palisade_core::{
    BodyAccount, BodyAccountRef, Budget, BudgetFull, ClientKey, ConnInfo, KeyExtractor, KeyOutcome,
    MessageBoundaries, Mode, Phase, Rejection, RequestHead, Violation,
};
use palisade_guard::{
    Facts, Flow, GuardLayer, Guarded, KeepAny, Keys, NeverQueued, PerRequest, Policy, Polled,
    Refusal, RequestView, Settings, SharedView, Upstream,
};
use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::Instant;
use tower_layer::Layer;

/// Charges the bytes of all request bodies to one [`Budget`], so that together they cannot fill the
/// memory.
///
/// A [`BodyLimitLayer`](crate::BodyLimitLayer) limits each body. A thousand clients that each
/// upload almost as much and hold the last byte back still fill the memory. This layer charges two
/// bytes for each byte that arrives, until the response has ended and the body is dropped. Bodies
/// of up to 1 KiB are free. A request is charged no more than [`max_held`](Self::max_held).
///
/// With [`grpc`](Self::grpc) a gRPC request is charged for the message that is being received: a
/// stream of hours does not hold the sum of its messages.
///
/// A compressed body is charged for what arrives. With
/// [`BodyLimitLayer::decompressed`](crate::BodyLimitLayer::decompressed) inside of the layer that
/// decompresses it, what it becomes is charged as well.
///
/// A body that finds no room is refused with 503 and `Retry-After`, or cut if the response head has
/// been sent. The reason is [`Reason::BytesFull`](palisade_core::Reason). No request waits for
/// room, and a declared length reserves nothing. A body for which the whole budget has no room, by
/// its declared length, is refused with 413 at its head. A client may hold no more than what it
/// leaves of three quarters of the budget. The frame for which there is no room is still passed on.
/// The body ends when it is asked for more.
///
/// ```
/// use palisade_body_limit::{BodyBudgetLayer, Budget};
/// # use palisade_testkit::example::*;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let budget = Budget::new(64 << 10)?;
/// let layer = BodyBudgetLayer::new(budget.clone());
/// assert_eq!(status(&layer, Request::new(chunked(30, 1000))).await, 200);
/// assert_eq!(status(&layer, Request::new(chunked(100, 1000))).await, 503);
/// assert_eq!(budget.held(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it wraps a service"]
pub struct BodyBudgetLayer {
    guard: GuardLayer<BodyBudgetPolicy>,
}

/// The service of [`BodyBudgetLayer`].
pub type BodyBudget<S> = Guarded<S, BodyBudgetPolicy>;

/// The policy of [`BodyBudgetLayer`].
#[derive(Clone, Debug)]
pub struct BodyBudgetPolicy {
    pub(crate) settings: Settings,
    budget: Budget,
    client: Client,
    max_held: u64,
    max_held_for: PerRequest<u64>,
    /// Whether a gRPC request is charged for one message at a time.
    charges_messages: bool,
}

/// How the client of a request is found.
#[derive(Clone)]
enum Client {
    /// It is the peer.
    Peer,
    /// It is not known.
    Unknown,
    Extracted(Arc<dyn KeyExtractor>),
}

/// The state of a request that both of its sides share.
#[derive(Debug)]
pub struct BudgetState(Charged);

/// Where the bytes of a request are charged.
#[derive(Debug)]
enum Charged {
    /// Nothing is charged.
    Nowhere,
    Alone(BodyAccount),
    /// An inner layer may charge what it decompresses to the same account.
    Joinable(Arc<BodyAccount>),
}

/// The state of a request body.
#[derive(Debug)]
pub struct BudgetUpload {
    /// Bytes that may arrive before the budget is charged again.
    paid: u64,
    /// The budget had no room for the last frame.
    full: Option<BudgetFull>,
    /// Where messages begin and end, in gRPC.
    messages: Option<Box<MessageBoundaries>>,
}

// === BodyBudgetLayer ===

palisade_guard::settings_methods!(
    BodyBudgetLayer,
    records: budget,
    request: "Request::new(chunked(100, 1000))",
    example: "BodyBudgetLayer::new(palisade_body_limit::Budget::new(64 << 10).expect(\"valid\"))"
        => 503 "bytes_full"
);

impl BodyBudgetLayer {
    /// The default of [`Self::max_held`] in bytes: twice the default limit of a body.
    pub const MAX_HELD: u64 = BodyAccount::MAX_HELD;

    /// Charges request bodies to `budget`.
    pub fn new(budget: Budget) -> Self {
        Self {
            guard: GuardLayer::new(BodyBudgetPolicy {
                settings: Settings::default(),
                budget,
                client: Client::Peer,
                max_held: Self::MAX_HELD,
                max_held_for: PerRequest::default(),
                charges_messages: false,
            }),
        }
    }

    /// Sets what a request is charged at most, in bytes. What a handler reads beyond that, it is
    /// expected to pass on and not to keep. Defaults to 4 MiB.
    pub fn max_held(mut self, bytes: u64) -> Self {
        self.policy_mut().max_held = bytes;
        self
    }

    /// Chooses what a single request is charged at most, for routes that pass their body on as it
    /// arrives. `None` is [`Self::max_held`]. Defaults to that for all requests.
    pub fn max_held_for(
        mut self,
        choose: impl Fn(&RequestHead<'_>) -> Option<u64> + Send + Sync + 'static,
    ) -> Self {
        self.policy_mut().max_held_for = PerRequest::new(choose);
        self
    }

    /// Charges gRPC requests for the message that is being received, and not for the sum of all.
    /// Only for routes of gRPC: a handler that collects a whole body is not protected from a client
    /// that claims to be gRPC. Defaults to the sum.
    pub fn grpc(mut self) -> Self {
        self.policy_mut().charges_messages = true;
        self
    }

    /// Sets how the client of a request is found. Defaults to the peer of its connection.
    pub fn client(self, client: impl KeyExtractor) -> Self {
        self.shared_client(Arc::new(client))
    }

    /// Does not limit the share of one client, as behind a proxy, where all peers are the proxy.
    pub fn unknown_clients(mut self) -> Self {
        self.policy_mut().client = Client::Unknown;
        self
    }

    #[doc(hidden)]
    pub fn shared_client(mut self, client: Arc<dyn KeyExtractor>) -> Self {
        self.policy_mut().client = Client::Extracted(client);
        self
    }

    /// Returns the longest body that is charged as a whole, in bytes.
    #[doc(hidden)]
    pub fn longest_charged(&self) -> u64 {
        self.policy().max_held / BodyAccount::WEIGHT
    }

    #[doc(hidden)]
    pub fn policy(&self) -> &BodyBudgetPolicy {
        self.guard.policy()
    }

    fn policy_mut(&mut self) -> &mut BodyBudgetPolicy {
        self.guard.policy_mut()
    }
}

impl Default for BodyBudgetLayer {
    /// Charges the budget of this process: see [`Budget::of_process`].
    fn default() -> Self {
        Self::new(Budget::of_process())
    }
}

impl<S> Layer<S> for BodyBudgetLayer {
    type Service = BodyBudget<S>;

    fn layer(&self, inner: S) -> BodyBudget<S> {
        self.guard.layer(inner)
    }
}

// === BodyBudgetPolicy ===

impl BodyBudgetPolicy {
    fn client_of<B>(&self, request: &Request<B>, keys: &mut Keys) -> Option<ClientKey> {
        match &self.client {
            Client::Peer => ConnInfo::from_extensions(request.extensions())?.known_client(),
            Client::Unknown => None,
            Client::Extracted(extractor) => match keys.get(extractor, &request.into()) {
                KeyOutcome::Key(key) => Some(key),
                _ => None,
            },
        }
    }

    /// Returns whether this request is charged for one message at a time.
    #[inline(always)]
    fn is_per_message(&self, facts: &Facts) -> bool {
        self.charges_messages && facts.form.is_grpc()
    }

    /// Returns what a body would hold for which even an empty budget has no room, as its declared
    /// length shows.
    #[inline(always)]
    fn never_fits<B: Body>(&self, request: &Request<B>, facts: &Facts) -> Option<BudgetFull> {
        let declared = request.body().size_hint().lower();
        let may_fit = declared <= self.budget.limit() / BodyAccount::WEIGHT;
        if may_fit || !self.settings.is_enabled() || self.is_per_message(facts) {
            return None;
        }
        let max_held = self.max_held_for.choose(request).unwrap_or(self.max_held);
        BodyAccount::exceeds(&self.budget, declared, max_held)
    }

    #[cold]
    fn refuse_alone(&self, full: BudgetFull, facts: &Facts) -> Result<(), Refusal> {
        let violation = bytes_full(Phase::RequestHead, full);
        let rejection = Rejection::new(violation, StatusCode::PAYLOAD_TOO_LARGE, facts.form);
        self.settings.refuse_request(rejection, facts)
    }

    /// Pays for a frame that was not paid for in advance, and for more.
    #[inline(never)]
    fn pay(upload: &mut BudgetUpload, state: &BudgetState, bytes: u64) {
        upload.paid = match state.account() {
            None => u64::MAX,
            Some(account) => match account.charge_frame(bytes, upload.paid) {
                Ok(paid) => paid,
                Err(full) => {
                    upload.full = Some(full);
                    u64::MAX
                }
            },
        };
    }

    /// Reports that the budget was full, once. Fails if that ends the body.
    #[inline(always)]
    fn check(
        &self,
        upload: &mut BudgetUpload,
        view: SharedView<'_, BudgetState>,
    ) -> Result<(), Violation> {
        match upload.full.take() {
            Some(full) => self.full(view, full),
            None => Ok(()),
        }
    }

    /// Reports that the budget is full. Fails if that is enforced.
    #[cold]
    fn full(&self, view: SharedView<'_, BudgetState>, full: BudgetFull) -> Result<(), Violation> {
        let describe = |phase: Phase| (bytes_full(phase, full), StatusCode::SERVICE_UNAVAILABLE);
        match view.violated(&self.settings, describe) {
            Some(violation) => Err(violation),
            None => Ok(()),
        }
    }
}

impl Policy for BodyBudgetPolicy {
    type Held = ();
    type Shared = BudgetState;
    type Upload = BudgetUpload;
    type QueuedService = NeverQueued;
    type Unread = KeepAny;

    #[inline(always)]
    fn has_recorder(&self) -> bool {
        self.settings.recorder.is_enabled()
    }

    #[inline(always)]
    fn admit<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        _: &mut Keys,
    ) -> Result<(), Refusal> {
        if facts.has_body
            && let Some(full) = self.never_fits(request, facts)
        {
            return self.refuse_alone(full, facts);
        }
        Ok(())
    }

    #[inline(always)]
    fn share<B: Body>(
        &self,
        (): &mut (),
        request: &mut Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> BudgetState {
        let is_charging = facts.has_body && self.settings.is_enabled();
        let conn = ConnInfo::from_extensions(request.extensions());
        if is_charging {
            if let Some(conn) = conn {
                conn.set_charged_body(true);
            }
            // The server, or an outer layer, charges nothing twice.
            if let Some(outer) = BodyAccountRef::of(request.extensions()) {
                if self.settings.mode == Mode::Shadow {
                    return BudgetState(Charged::Nowhere); // What enforces its limit goes on.
                }
                outer.account().hand_over();
            }
        }
        let is_joinable = is_charging && is_encoded(request);
        let exact = request.body().size_hint().exact();
        let is_free = !is_joinable && exact.is_some_and(|bytes| bytes <= BodyAccount::FREE_BYTES);
        // In shadow mode it was reported, once.
        let was_reported = is_charging && self.never_fits(request, facts).is_some();
        if !is_charging || is_free || was_reported {
            return BudgetState(Charged::Nowhere);
        }
        let charge = self.budget.charge(self.client_of(request, keys));
        let charge = match conn {
            Some(conn) => charge.on(conn.clone()),
            None => charge,
        };
        let max_held = self.max_held_for.choose(request).unwrap_or(self.max_held);
        let account = BodyAccount::new(charge, max_held);
        if !is_joinable {
            return BudgetState(Charged::Alone(account));
        }
        let account = Arc::new(account);
        BodyAccountRef::insert(request.extensions_mut(), &account, true);
        BudgetState(Charged::Joinable(account))
    }

    #[inline(always)]
    fn upload(&self, (): &mut (), shared: &BudgetState, facts: &Facts) -> BudgetUpload {
        BudgetUpload {
            paid: match shared.0 {
                Charged::Nowhere => u64::MAX,
                Charged::Alone(_) | Charged::Joinable(_) => BodyAccount::FREE_BYTES,
            },
            full: None,
            // What is encoded has no messages before it is decoded.
            messages: (self.is_per_message(facts) && matches!(shared.0, Charged::Alone(_)))
                .then(Box::default),
        }
    }

    /// A response that has a body keeps what is charged until it has ended.
    #[inline(always)]
    fn response_head<B: Body>(
        &self,
        (): &mut (),
        view: RequestView<'_, BudgetState>,
        response: &mut Response<B>,
        _: Option<Instant>,
    ) -> Result<bool, Box<Refusal>> {
        let is_charged = view.shared.is_some_and(|shared| shared.account().is_some());
        Ok(is_charged && !response.body().is_end_stream())
    }

    #[inline(always)]
    fn is_plain(&self, upload: &BudgetUpload, _: &BudgetState) -> bool {
        upload.messages.is_none() && upload.full.is_none()
    }

    /// A reader that has the last frame asks once more if there was no room for it.
    #[inline(always)]
    fn request_ended<U: Upstream>(&self, upload: &BudgetUpload, upstream: &U) -> bool {
        upload.full.is_none() && upstream.is_end_stream()
    }

    #[inline(always)]
    fn passed(&self, upload: &mut BudgetUpload, state: &BudgetState, bytes: usize) {
        match upload.paid.checked_sub(bytes as u64) {
            Some(paid) => upload.paid = paid,
            None => Self::pay(upload, state, bytes as u64),
        }
    }

    fn poll_request<U: Upstream>(
        &self,
        upload: &mut BudgetUpload,
        view: SharedView<'_, BudgetState>,
        upstream: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        if let Err(violation) = self.check(upload, view) {
            *slot = Poll::Ready(Some(Err(violation.into())));
            return Flow::Linger;
        }
        upstream.poll(slot, cx);
        let Poll::Ready(Some(Ok(frame))) = slot else {
            return Flow::Continue;
        };
        let Some(data) = frame.data_ref() else {
            return Flow::Continue;
        };
        if upload
            .messages
            .as_mut()
            .is_some_and(|of| of.begin_one(data))
            && let Some(account) = view.shared.account()
        {
            // The handler has the messages before.
            account.give_back();
            upload.paid = BodyAccount::FREE_BYTES;
        }
        self.passed(upload, view.shared, data.len());
        Flow::Continue
    }

    /// The last frame before a wait may be the one for which there was no room.
    #[inline(always)]
    fn waits_for_client(
        &self,
        upload: &mut BudgetUpload,
        view: SharedView<'_, BudgetState>,
        _: bool,
        _: &mut Context<'_>,
    ) -> Result<(), Violation> {
        self.check(upload, view)
    }
}

impl BudgetState {
    fn account(&self) -> Option<&BodyAccount> {
        match &self.0 {
            Charged::Nowhere => None,
            Charged::Alone(account) => Some(account),
            Charged::Joinable(account) => Some(account),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "Peer",
            Self::Unknown => "Unknown",
            Self::Extracted(_) => "Extracted(..)",
        })
    }
}
