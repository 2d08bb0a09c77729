//! The layer, its options, and the service's decision.

use crate::{
    body::RequestBody,
    future::{Queued, ResponseFuture},
    slots::{Extra, Rank, Slot, Slots},
    ticket::{About, Lease, Ticket, TicketOwner},
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use palisade_client_ip::ClientIp;
use palisade_core::{
    AnswerForm, BoxError, ClientKey, ConnInfo, Event, Extracted, Guard, GuardBody, KeyExtractor,
    Mode, Phase, Reason, Recorder, Rejection, RequestHead, Settings, Violation, linger,
};
use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`ConcurrencyLimit`]. Clones, and the services they make, share one limit.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimitLayer {
    shared: Arc<Shared>,
}

/// See the [crate docs](crate).
#[derive(Clone, Debug)]
pub struct ConcurrencyLimit<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// Changes the limit of a running server.
#[derive(Clone, Debug)]
pub struct ConcurrencyLimitHandle {
    slots: Arc<Slots>,
    recorder: Recorder,
}

type Predicate = Arc<dyn Fn(&RequestHead<'_>) -> bool + Send + Sync>;

/// Options and state of one layer.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) slots: Arc<Slots>,
    pub(crate) release_at_head: bool,
    client: Arc<dyn KeyExtractor>,
    per_client: Option<usize>,
    picks: Option<Predicate>,
    queue: Option<Queue>,
}

/// Why there is no slot, and the client under whom the request was counted before that showed.
struct Denied {
    violation: Violation,
    client: Option<ClientKey>,
}

#[derive(Clone, Copy, Debug)]
struct Queue {
    waiters: usize,
    wait: Duration,
}

/// How long a refused client is asked to stay away.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

// === ConcurrencyLimitLayer ===

palisade_core::settings_methods!(ConcurrencyLimitLayer, levels: slots);

impl ConcurrencyLimitLayer {
    /// At most `limit` requests at work. With 0 every request is refused.
    pub fn new(limit: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                settings: Settings::default(),
                slots: Arc::new(Slots::new(limit)),
                release_at_head: false,
                client: Arc::new(ClientIp::peer()),
                per_client: None,
                picks: None,
                queue: None,
            }),
        }
    }

    /// At most `requests` present, at work or waiting for their own clients. Where one more comes,
    /// the one that has waited for its client longest goes: 408, or the end of its body. With 0
    /// it follows the limit. Defaults to 8 times the limit.
    pub fn present(self, requests: usize) -> Self {
        self.shared.slots.set_max_present(requests);
        self
    }

    /// Keeps the last tenth of the slots for clients who hold few: each client pays for the time
    /// its requests work, may use one slot all the time, and is out of that tenth while it owes
    /// more. Then whoever keeps many slow requests in the air cannot shut out those who send a
    /// few. Who is a client: see [`Self::client`]. Remembers 65,536 clients in 512 KiB; clocks are
    /// read only while at least half of the slots are taken. Defaults to off.
    pub fn fairness(self) -> Self {
        self.shared.slots.keep_ledger();
        self
    }

    /// At most `requests` of one client present at a time; the next is answered 429. Costs one
    /// lock and one allocation per request. Defaults to no such limit.
    pub fn per_client(mut self, requests: usize) -> Self {
        Arc::make_mut(&mut self.shared).per_client = Some(requests);
        self
    }

    /// Who counts as one client for [`Self::fairness`] and [`Self::per_client`]. Requests for
    /// which it answers [`Extracted::Exempt`] or [`Extracted::Refuse`] are in no client's account.
    /// Defaults to [`ClientIp::peer`].
    pub fn client(mut self, client: impl KeyExtractor) -> Self {
        Arc::make_mut(&mut self.shared).client = Arc::new(client);
        self
    }

    /// `requests` slots beyond the limit for those that `picks` picks, health checks for example,
    /// when no other slot is free. Pick by what a client cannot make up, or by what costs nothing
    /// to answer. Defaults to none.
    pub fn reserve(
        mut self,
        requests: usize,
        picks: impl Fn(&RequestHead<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.shared.slots.set_max_picked(requests);
        Arc::make_mut(&mut self.shared).picks = Some(Arc::new(picks));
        self
    }

    /// Lets at most `waiters` newcomers wait for a slot, each for at most `wait`, first come first
    /// served, instead of refusing them at once. They are present while they wait. Dropping the
    /// response future leaves the queue. Defaults to no queue: under overload a queue makes
    /// everybody slow before it refuses the same number of requests.
    pub fn queue(mut self, waiters: usize, wait: Duration) -> Self {
        Arc::make_mut(&mut self.shared).queue = Some(Queue { waiters, wait });
        self
    }

    /// Ends the count at the response head instead of the end of the response body, as tower's
    /// does. For routes whose answers are long streams of your own. Defaults to the end of the
    /// body.
    pub fn release_at_head(mut self) -> Self {
        Arc::make_mut(&mut self.shared).release_at_head = true;
        self
    }

    /// A handle that changes the limit while the server runs.
    pub fn handle(&self) -> ConcurrencyLimitHandle {
        ConcurrencyLimitHandle {
            slots: self.shared.slots.clone(),
            recorder: self.shared.settings.recorder.clone(),
        }
    }
}

impl<S> Layer<S> for ConcurrencyLimitLayer {
    type Service = ConcurrencyLimit<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ConcurrencyLimit { inner, shared: self.shared.clone() }
    }
}

// === ConcurrencyLimit ===

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for ConcurrencyLimit<S>
where
    S: Service<Request<RequestBody<ReqBody>>, Response = Response<ResBody>> + Clone,
    ReqBody: Body<Data = Bytes> + Send + 'static,
    ReqBody::Error: Into<BoxError>,
    ResBody: Body<Data = Bytes>,
    ResBody::Error: Into<BoxError>,
{
    type Response = Response<GuardBody<crate::ResponseBody<ResBody>>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let Self { inner, shared } = self;
        let connect = request.method() == Method::CONNECT;
        if !shared.settings.is_on() {
            let request = request.map(RequestBody::passing);
            return ResponseFuture::admitted(inner.call(request), None, connect);
        }
        let Denied { mut violation, client } = match shared.admit(&RequestHead::from(&request)) {
            Ok(slot) => {
                let lease = lease(&request, slot);
                let request = share(request, lease.ticket());
                return ResponseFuture::admitted(inner.call(request), Some(lease), connect);
            }
            Err(denied) => denied,
        };
        if let (Reason::Full, Some(queue)) = (violation.reason, shared.queue)
            && !shared.only_watches()
        {
            let about = About::of(&request, shared);
            if let Some(ticket) = Ticket::newcomer(shared.clone(), about, client, queue.waiters) {
                // The instance that was made ready is the one to call later.
                let fresh = inner.clone();
                let ready = std::mem::replace(inner, fresh);
                let owner = TicketOwner::new(ticket);
                let request = share(request, Some(&owner.ticket));
                return ResponseFuture::queued(Queued::new(ready, request, owner, queue.wait));
            }
            violation = over(Reason::QueueFull, queue.waiters);
        }
        shared.slots.finish(&Extra::counted(client));
        let status = match violation.reason {
            Reason::ClientFull => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let rejection = Rejection::new(violation, status, AnswerForm::of(&request));
        let rejection = rejection.retry_after(RETRY_AFTER);
        let conn = ConnInfo::of(request.extensions()).map(Arc::as_ref);
        if shared.settings.refuse(&rejection, conn) {
            linger(request.into_body());
            ResponseFuture::refused(shared.clone(), rejection)
        } else {
            let request = request.map(RequestBody::passing);
            ResponseFuture::admitted(inner.call(request), None, connect)
        }
    }
}

/// What answers for an admitted request.
fn lease<B: Body>(request: &Request<B>, mut slot: Slot) -> Lease {
    // Without a body there is nothing to wait for, and with a slot beyond the limit no line.
    if !request.body().is_end_stream()
        && !slot.is_picked()
        && let Some(shared) = slot.shared()
    {
        let about = About::of(request, shared);
        if let Some(ticket) = Ticket::working(&mut slot, about) {
            return Lease::Ticket(TicketOwner::new(ticket));
        }
    }
    Lease::Slot(slot)
}

/// Lets the body of `request` speak for `ticket`, if there are both.
fn share<B: Body>(request: Request<B>, ticket: Option<&Arc<Ticket>>) -> Request<RequestBody<B>> {
    request.map(|body| match ticket {
        Some(ticket) if !body.is_end_stream() => RequestBody::waiting(body, ticket.clone()),
        _ => RequestBody::passing(body),
    })
}

impl About {
    fn of<B: Body>(request: &Request<B>, shared: &Shared) -> Self {
        let fair = shared.slots.ledger().is_some();
        Self {
            form: AnswerForm::of(request),
            conn: ConnInfo::of(request.extensions()).cloned(),
            client: if fair { shared.client(&request.into()) } else { None },
        }
    }
}

// === ConcurrencyLimitHandle ===

impl ConcurrencyLimitHandle {
    /// At most `limit` requests at work from now on. Those that are at work go on; with a lower
    /// limit nobody is let in until enough of them are done.
    pub fn set_limit(&self, limit: usize) {
        self.slots.set_limit(limit);
        let event = Event::limit_changed(Guard::ConcurrencyLimit, limit as u64);
        self.recorder.record(|| event);
    }

    /// The present limit.
    pub fn limit(&self) -> usize {
        self.slots.limit()
    }

    /// How many requests are at work now.
    pub fn working(&self) -> usize {
        self.slots.working()
    }
}

// === Shared ===

impl Shared {
    /// Whether verdicts are only recorded.
    pub(crate) fn only_watches(&self) -> bool {
        self.settings.mode == Mode::Shadow
    }

    fn client(&self, head: &RequestHead<'_>) -> Option<ClientKey> {
        match self.client.key(head) {
            Extracted::Key(client) => Some(client),
            Extracted::Exempt | Extracted::Refuse => None,
        }
    }

    /// A slot for the request with this head, or why there is none.
    fn admit(self: &Arc<Self>, head: &RequestHead<'_>) -> Result<Slot, Denied> {
        let slots = &*self.slots;
        let mut extra = Extra::default();
        if let Some(max) = self.per_client
            && let Some(client) = self.client(head)
        {
            if !slots.enter(client, max) {
                return Err(Denied { violation: over(Reason::ClientFull, max), client: None });
            }
            extra.client = Some(client);
        }
        if !self.take(head, &mut extra) {
            return Err(Denied {
                violation: over(Reason::Full, slots.limit()),
                client: extra.client,
            });
        }
        // From here on dropping the slot undoes everything.
        let slot = Slot::new(self.clone(), extra.boxed());
        if !slots.make_room(!self.only_watches()) {
            let violation = over(Reason::Full, slots.max_present());
            return Err(Denied { violation, client: None });
        }
        slots.count_admitted();
        Ok(slot)
    }

    fn take(&self, head: &RequestHead<'_>, extra: &mut Extra) -> bool {
        let slots = &*self.slots;
        let Some(ledger) = slots.ledger() else {
            return slots.take(Rank::Newcomer) || self.take_picked(head, extra);
        };
        let busy = slots.is_busy();
        let client = if busy { self.client(head) } else { None };
        let taken = slots.take(Rank::Newcomer)
            || (client.is_some_and(|client| ledger.is_light(client)) && slots.take(Rank::Light));
        if taken {
            extra.charge = client.map(|client| ledger.start(client));
        }
        taken || self.take_picked(head, extra)
    }

    fn take_picked(&self, head: &RequestHead<'_>, extra: &mut Extra) -> bool {
        extra.picked =
            self.picks.as_ref().is_some_and(|picks| picks(head)) && self.slots.take_picked();
        extra.picked
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("settings", &self.settings)
            .field("limit", &self.slots.limit())
            .field("per_client", &self.per_client)
            .field("queue", &self.queue)
            .field("release_at_head", &self.release_at_head)
            .finish_non_exhaustive()
    }
}

/// One more than `max`.
fn over(reason: Reason, max: usize) -> Violation {
    let max = max as u64;
    let observed = max.saturating_add(1);
    Violation::new(Guard::ConcurrencyLimit, reason, Phase::RequestHead, max, observed)
}

/// Whether a response ends the count with its head: what follows is another protocol, or a stream
/// that lives as long as it is read.
pub(crate) fn ends_at_head<B: Body>(response: &Response<B>, connect: bool) -> bool {
    let status = response.status();
    status == StatusCode::SWITCHING_PROTOCOLS
        || (connect && status.is_success())
        || (response.body().size_hint().exact().is_none()
            && response
                .headers()
                .get(http::header::CONTENT_TYPE)
                .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream")))
}
