//! The layer, its options, and the service's decision.

use crate::{
    admission::{Denied, RETRY_AFTER, Shared, over},
    body::RequestBody,
    future::{Queued, ResponseFuture},
    lease::{Lease, TicketOwner},
    slot::Slot,
    slots::Slots,
    ticket::{About, Ticket},
};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use palisade_client_ip::ClientIp;
use palisade_core::{
    AnswerForm, BoxError, ConnInfo, Event, Guard, GuardBody, KeyExtractor, Reason, Recorder,
    Rejection, RequestHead, Settings, linger,
};
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tower_layer::Layer;
use tower_service::Service;

/// Applies [`ConcurrencyLimit`]. Clones, and the services they make, share one limit.
///
/// They share what is counted and how far: [`Self::present`], [`Self::fairness`] and the number in
/// [`Self::reserve`] hold for all of them, whichever they are called on. All other methods change
/// the one they are called on, and what is made from it afterwards.
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

pub(crate) type Predicate = Arc<dyn Fn(&RequestHead<'_>) -> bool + Send + Sync>;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    waiters: usize,
    wait: Duration,
}

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
    /// the one goes that has waited longest for its client to send or take 512 bytes: 408, or the
    /// end of its body. Where nobody waits for a client, the one more is refused; so with fewer
    /// than the limit, no more than `requests` work. Those in the [`Self::queue`] are not present
    /// yet. With 0 it follows the limit. Defaults to 8 times the limit.
    pub fn present(self, requests: usize) -> Self {
        self.shared.slots.set_max_present(requests);
        self
    }

    /// Keeps the last tenth of the slots for clients who hold few: each client pays for the time
    /// its requests work, may use one slot all the time, and is out of that tenth while it owes
    /// more or has two at work. Then whoever keeps many slow requests in the air cannot shut out
    /// those who send a few. Who is a client: see [`Self::client`].
    ///
    /// Remembers 65,536 clients in 512 KiB, and those at work. A request without a body that comes
    /// while less than half of the slots are taken is in no account, and as light as any where its
    /// answer goes on later; it costs no clock and no lock. The others cost a few of each.
    /// Defaults to off.
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
    /// which it answers [`Exempt`](palisade_core::Extracted::Exempt) or
    /// [`Refuse`](palisade_core::Extracted::Refuse) are in no client's account.
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
    /// served, instead of refusing them at once; with [`Self::fairness`] those whose clients hold
    /// few come first. They are not [`present`](Self::present) before they have a slot, and refused
    /// if there is no room then. With 0 `waiters` all are refused at once. Dropping the response
    /// future leaves the queue. Defaults to no queue: under overload a queue makes everybody slow
    /// before it refuses the same number of requests.
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

    /// A handle that changes the limit while the server runs. It tells the metrics that this layer
    /// has now, so call it after [`Self::metrics`].
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

    #[inline(always)]
    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let shared = &self.shared;
        let lease = if shared.settings.is_on() {
            match shared.admit(&RequestHead::from(&request)) {
                Ok(slot) => Some(lease(shared, &request, slot)),
                Err(denied) => return self.call_denied(request, denied),
            }
        } else {
            None
        };
        // Here and nowhere else the request is moved: a move is a copy of 200 bytes and more.
        let request = share(request, lease.as_ref().and_then(Lease::ticket));
        ResponseFuture::admitted(self.inner.call(request), lease)
    }
}

impl<S> ConcurrencyLimit<S> {
    /// A request for which there is no slot now: it waits, or is refused.
    #[cold]
    #[inline(never)]
    fn call_denied<B, ResBody>(
        &mut self,
        request: Request<B>,
        denied: Denied,
    ) -> ResponseFuture<S, B>
    where
        S: Service<Request<RequestBody<B>>, Response = Response<ResBody>> + Clone,
        B: Body<Data = Bytes> + Send + 'static,
    {
        let Self { inner, shared } = self;
        let Denied { mut violation, counted } = denied;
        if let (Reason::Full, Some(queue)) = (violation.reason, shared.queue)
            && !shared.only_watches()
        {
            let about = About::of(&request, shared);
            let fresh = inner.clone();
            if let Some(owner) = Ticket::newcomer(shared.clone(), about, counted, queue.waiters) {
                // The instance that was made ready is the one to call later.
                let ready = std::mem::replace(inner, fresh);
                let request = share(request, Some(&owner.ticket));
                return ResponseFuture::queued(Queued::new(ready, request, owner, queue.wait));
            }
            violation = over(Reason::QueueFull, queue.waiters);
        }
        let status = match violation.reason {
            Reason::ClientFull => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let rejection = Rejection::new(violation, status, AnswerForm::of(&request));
        let rejection = rejection.retry_after(RETRY_AFTER);
        let conn = ConnInfo::of(request.extensions()).map(Arc::as_ref);
        if shared.settings.refuse(&rejection, conn) {
            let version = request.version();
            linger(request.into_body(), version);
            ResponseFuture::refused(shared.clone(), rejection)
        } else {
            ResponseFuture::admitted(inner.call(share(request, None)), None)
        }
    }
}

/// What answers for an admitted request.
#[inline(always)]
fn lease<B: Body>(shared: &Shared, request: &Request<B>, mut slot: Slot) -> Lease {
    // Without a body there is nothing to wait for, and with a slot beyond the limit no line.
    if !request.body().is_end_stream() && !slot.is_picked() {
        let about = About::of(request, shared);
        if let Some(ticket) = Ticket::working(&mut slot, about) {
            return Lease::Ticket(TicketOwner::new(ticket));
        }
    }
    slot.belongs_to(request, &shared.settings);
    Lease::Slot(slot)
}

/// Lets the body of `request` speak for `ticket`, if there are both.
#[inline]
fn share<B: Body>(request: Request<B>, ticket: Option<&Arc<Ticket>>) -> Request<RequestBody<B>> {
    let ticket = ticket.filter(|_| !request.body().is_end_stream()).cloned();
    request.map(|body| RequestBody::new(body, ticket))
}

impl About {
    fn of<B: Body>(request: &Request<B>, shared: &Shared) -> Self {
        let fair = shared.slots.ledger().is_some();
        Self {
            form: AnswerForm::of(request),
            conn: shared.settings.conn(request.extensions()),
            client: if fair { shared.client(&request.into()) } else { None },
            connect: request.method() == Method::CONNECT,
        }
    }
}

// === ConcurrencyLimitHandle ===

impl ConcurrencyLimitHandle {
    /// At most `limit` requests at work from now on. Those that are at work go on; with a lower
    /// limit nobody is let in until enough of them are done. With 0 whoever was let in still goes
    /// on, one at a time where they have to wait for a slot.
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
