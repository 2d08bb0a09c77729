//! From the request to the response head.

use crate::{
    admission::Shared,
    body::{RequestBody, ResponseBody},
    lease::{Lease, TicketOwner},
    ticket::Half,
};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use palisade_core::{BoxError, Guard, GuardBody, Phase, Reason, Rejection, Violation};
use pin_project_lite::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Sleep, sleep};
use tower_service::Service;

pin_project! {
    /// Response future of [`ConcurrencyLimit`](crate::ConcurrencyLimit).
    ///
    /// Dropping it gives the slot, or the place in the queue, back.
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<RequestBody<B>>>,
    {
        #[pin]
        state: State<S, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B>
    where
        S: Service<Request<RequestBody<B>>>,
    {
        Admitted { #[pin] inner: S::Future, lease: Option<Lease> },
        Refused { shared: Option<Arc<Shared>>, rejection: Option<Rejection> },
        Queued { queued: Pin<Box<Queued<S, B>>> },
    }
}

pin_project! {
    /// A newcomer in the queue: all that is needed to go on later.
    pub(crate) struct Queued<S, B> {
        ready: Option<(S, Request<RequestBody<B>>, TicketOwner)>,
        wait: Duration,
        #[pin]
        sleep: Sleep,
    }
}

type Refusal = (Arc<Shared>, Rejection);
type Answer<B, E> = Result<Response<GuardBody<ResponseBody<B>>>, E>;

// === Queued ===

impl<S, B> Queued<S, B> {
    /// `ready` is the instance that was made ready for `request`.
    pub(crate) fn new(
        ready: S,
        request: Request<RequestBody<B>>,
        owner: TicketOwner,
        wait: Duration,
    ) -> Self {
        Self { ready: Some((ready, request, owner)), wait, sleep: sleep(wait) }
    }

    /// Ready with everything once there is a slot, or with a refusal once it took too long.
    #[expect(clippy::type_complexity, reason = "said once, taken apart at once")]
    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(S, Request<RequestBody<B>>, TicketOwner), Option<Refusal>>> {
        let this = self.project();
        let Some((_, _, owner)) = this.ready else { return Poll::Ready(Err(None)) };
        if owner.ticket.poll_work(Half::Answer, cx).is_ready() {
            if let Err(violation) = owner.ticket.shared.welcome() {
                let refusal = owner.refuse(violation, StatusCode::SERVICE_UNAVAILABLE);
                *this.ready = None;
                return Poll::Ready(Err(Some(refusal)));
            }
            return Poll::Ready(this.ready.take().ok_or(None));
        }
        ready!(this.sleep.poll(cx));
        let millis = u64::try_from(this.wait.as_millis()).unwrap_or(u64::MAX);
        let violation = Violation::new(
            Guard::ConcurrencyLimit,
            Reason::QueueTimeout,
            Phase::RequestHead,
            millis,
            millis,
        );
        let refusal = owner.refuse(violation, StatusCode::SERVICE_UNAVAILABLE);
        *this.ready = None;
        Poll::Ready(Err(Some(refusal)))
    }
}

// === ResponseFuture ===

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>>,
{
    pub(crate) fn admitted(inner: S::Future, lease: Option<Lease>) -> Self {
        Self { state: State::Admitted { inner, lease } }
    }

    pub(crate) fn refused(shared: Arc<Shared>, rejection: Rejection) -> Self {
        Self { state: State::Refused { shared: Some(shared), rejection: Some(rejection) } }
    }

    pub(crate) fn queued(queued: Queued<S, B>) -> Self {
        Self { state: State::Queued { queued: Box::pin(queued) } }
    }
}

impl<S, B, ResBody> Future for ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>, Response = Response<ResBody>>,
    ResBody: Body<Data = Bytes>,
    ResBody::Error: Into<BoxError>,
{
    type Output = Answer<ResBody, S::Error>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.as_mut().project().state.project() {
            StateProj::Admitted { inner, lease } if !matches!(lease, Some(Lease::Ticket(_))) => {
                match inner.poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Err(error)) => {
                        *lease = None; // Also where the future is kept.
                        Poll::Ready(Err(error))
                    }
                    Poll::Ready(Ok(response)) => Poll::Ready(Ok(respond(response, lease.take()))),
                }
            }
            _ => self.poll_waiting(cx),
        }
    }
}

impl<S, B, ResBody> ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>, Response = Response<ResBody>>,
    ResBody: Body<Data = Bytes>,
{
    /// A request that may have to wait, or one that is refused.
    #[inline(never)]
    fn poll_waiting(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer<ResBody, S::Error>> {
        let mut state = self.project().state;
        loop {
            let (shared, rejection) = match state.as_mut().project() {
                StateProj::Admitted { inner, lease } => {
                    if let Some(Lease::Ticket(owner)) = lease {
                        ready!(owner.ticket.poll_handler(cx));
                    }
                    let polled = inner.poll(cx);
                    if let (Poll::Pending, Some(Lease::Ticket(owner))) = (&polled, &*lease) {
                        owner.ticket.handler_waits(cx);
                    }
                    // An answer that is ready is not thrown away, unless it may say no more than
                    // that the body failed.
                    match displaced(lease) {
                        Some(owner) if polled.is_pending() || owner.ticket.body_told() => {
                            let violation = owner.ticket.displacement(Phase::RequestBody);
                            owner.refuse(violation, StatusCode::REQUEST_TIMEOUT)
                        }
                        owner => {
                            if let Some(owner) = owner {
                                owner.forgive();
                                *lease = None;
                            }
                            let response = ready!(polled);
                            let lease = lease.take();
                            return Poll::Ready(response.map(|response| respond(response, lease)));
                        }
                    }
                }
                StateProj::Queued { queued } => match ready!(queued.as_mut().poll(cx)) {
                    Ok((mut service, request, owner)) => {
                        let lease = Some(Lease::Ticket(owner));
                        let inner = service.call(request);
                        state.set(State::Admitted { inner, lease });
                        continue;
                    }
                    Err(refusal) => refusal.expect("polled after completion"),
                },
                StateProj::Refused { shared, rejection } => {
                    let shared = shared.take().expect("polled after completion");
                    let rejection = rejection.take().expect("polled after completion");
                    return Poll::Ready(Ok(shared.settings.answer(rejection)));
                }
            };
            // The handler is dropped here, before anybody hears the answer.
            state.set(State::Refused { shared: Some(shared), rejection: Some(rejection) });
        }
    }
}

impl<S, B> fmt::Debug for ResponseFuture<S, B>
where
    S: Service<Request<RequestBody<B>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// Who answers for a request that has to go.
fn displaced(lease: &mut Option<Lease>) -> Option<&mut TicketOwner> {
    match lease {
        Some(Lease::Ticket(owner)) if owner.ticket.is_displaced() => Some(owner),
        _ => None,
    }
}

#[inline(always)]
fn respond<B>(
    response: Response<B>,
    mut lease: Option<Lease>,
) -> Response<GuardBody<ResponseBody<B>>>
where
    B: Body<Data = Bytes>,
{
    if let Some(held) = &lease {
        if let Some(ticket) = held.ticket() {
            ticket.head_is_out();
        }
        if response.body().is_end_stream()
            || held.releases_at_head()
            || ends_at_head(&response, held)
        {
            lease = None;
        }
    }
    response.map(|body| GuardBody::passing(ResponseBody::new(body, lease)))
}

/// Whether a response ends the count with its head: what follows is another protocol, or a stream
/// that lives as long as it is read.
#[inline]
fn ends_at_head<B: Body>(response: &Response<B>, lease: &Lease) -> bool {
    let status = response.status();
    status == StatusCode::SWITCHING_PROTOCOLS
        || (lease.asks_for_tunnel() && status.is_success())
        || (response.body().size_hint().exact().is_none()
            && response
                .headers()
                .get(http::header::CONTENT_TYPE)
                .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream")))
}
