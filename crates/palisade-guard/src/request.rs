//! The request body that the handler reads.

use crate::{
    Flow, Policy, Polled, Stamp, Unread, Upstream, exchange::Exchange, handler_poll::PolledBy,
    timer::poll_sleep,
};
use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use palisade_core::{BoxError, Violation};
use pin_project_lite::pin_project;
use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll},
};
use tokio::time::{Instant, Sleep, sleep_until};

pin_project! {
    /// The request body that a guarded handler reads.
    ///
    /// Fails with a [`Violation`] when it breaks a rule of a policy, and ends after that.
    #[derive(Debug)]
    pub struct RequestBody<B, P: Policy> {
        // `None` once a policy has ended the body.
        #[pin]
        inner: Option<B>,
        // `None` for an unguarded body.
        state: Option<BodyState<P>>,
    }
}

/// The request side of a shared request.
pub(crate) struct BodyState<P: Policy> {
    exchange: Arc<Exchange<P>>,
    upload: P::Upload,
    /// Whether the body waits for the client.
    is_waiting: bool,
    /// When the latest wait for the client began.
    waiting_since: Stamp,
    /// Whether the body has ever waited for the client.
    has_waited: bool,
    /// When the wait must be checked: a lower bound of the instant at which it is too long.
    due: Option<Stamp>,
    /// Wakes the task that polls this body at `due`, if that is not the handler's task.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B, P: Policy> RequestBody<B, P> {
    #[inline(always)]
    pub(crate) fn new(body: B, state: Option<BodyState<P>>) -> Self {
        Self {
            inner: Some(body),
            state,
        }
    }
}

impl<B, P> Body for RequestBody<B, P>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
    P: Policy<Unread: Unread<B>>,
{
    type Data = Bytes;
    type Error = BoxError;

    #[inline]
    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let mut this = self.project();
        let Some(state) = this.state else {
            return match this.inner.as_pin_mut() {
                Some(body) => body.poll_frame(cx).map_err(Into::into),
                None => Poll::Ready(None),
            };
        };
        let polled = match this.inner.as_mut().as_pin_mut() {
            Some(body) if state.is_plain() => Some(match body.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if state.resume_plain() && state.pass_if_it_fits(data.len()) => {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Ok(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                    Err(frame) => Poll::Ready(Some(Ok(frame))),
                },
                Poll::Pending => return state.inner_pending(this.inner, cx),
                Poll::Ready(None) if state.resume_plain() => {
                    state.exchange.body_ended.store(true, Relaxed);
                    state.exchange.set_unread(false);
                    return Poll::Ready(None);
                }
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            }),
            _ => None,
        };
        state.poll_policies(polled, this.inner, cx)
    }

    fn is_end_stream(&self) -> bool {
        let upstream = UnpolledBody(&self.inner);
        match &self.state {
            None => upstream.is_end_stream(),
            Some(state) => state
                .exchange
                .policy
                .request_ended(&state.upload, &upstream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let upstream = UnpolledBody(&self.inner);
        match &self.state {
            None => upstream.size_hint(),
            Some(BodyState {
                exchange, upload, ..
            }) => exchange
                .policy
                .request_hint(upload, exchange.shared(), &upstream),
        }
    }
}

// === BodyState ===

impl<P: Policy> BodyState<P> {
    #[inline(always)]
    pub(crate) fn new(exchange: Arc<Exchange<P>>, upload: P::Upload) -> Self {
        exchange.set_unread(true);
        Self {
            exchange,
            upload,
            is_waiting: false,
            waiting_since: 0,
            has_waited: false,
            due: None,
            timer: None,
        }
    }

    #[inline(always)]
    fn is_plain(&self) -> bool {
        let Exchange { policy, shared, .. } = &*self.exchange;
        policy.is_plain(&self.upload, shared)
    }

    /// Ends the wait for the client, if there is one, because a plain body is ready. Returns
    /// whether the body is still plain.
    #[inline(always)]
    fn resume_plain(&mut self) -> bool {
        if self.is_waiting {
            self.end_wait();
            return self.is_plain();
        }
        true
    }

    /// Passes a data frame of this size if it fits. Returns whether it does.
    #[inline(always)]
    fn pass_if_it_fits(&mut self, bytes: usize) -> bool {
        let Exchange { policy, shared, .. } = &*self.exchange;
        let fits = policy.fits(&self.upload, bytes);
        if fits {
            policy.passed(&mut self.upload, shared, bytes);
        }
        fits
    }

    /// Called when the inner body is pending and no policy holds bytes back.
    #[inline(never)]
    fn inner_pending<B: Body>(
        &mut self,
        mut inner: Pin<&mut Option<B>>,
        cx: &mut Context<'_>,
    ) -> Polled {
        match self.wait_for_client(&*inner, cx) {
            Ok(()) => Poll::Pending,
            Err(violation) => {
                inner.set(None);
                self.exchange.set_unread(false);
                Poll::Ready(Some(Err(violation.into())))
            }
        }
    }

    /// Polls the body through the policies. `polled` is the result of the inner body if that was
    /// polled already.
    #[inline(never)]
    fn poll_policies<B>(
        &mut self,
        polled: Option<Polled>,
        mut inner: Pin<&mut Option<B>>,
        cx: &mut Context<'_>,
    ) -> Polled
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
        P: Policy<Unread: Unread<B>>,
    {
        let mut slot = Poll::Pending;
        let flow = {
            let Self {
                exchange, upload, ..
            } = &mut *self;
            let mut upstream = ServerBody {
                body: inner.as_mut(),
                polled,
                body_ended: &exchange.body_ended,
            };
            exchange
                .policy
                .poll_request(upload, exchange.shared(), &mut upstream, &mut slot, cx)
        };
        match flow {
            Flow::Continue | Flow::Busy => {}
            Flow::Cut => inner.set(None),
            Flow::Linger => {
                P::Unread::keep_rest(inner.as_mut(), self.exchange.facts.version);
                inner.set(None);
            }
            Flow::LingerUnread => {
                // As on HTTP/1, where what lingers is not read.
                P::Unread::keep_rest(inner.as_mut(), Version::HTTP_11);
                inner.set(None);
            }
        }
        if slot.is_pending() && flow == Flow::Continue {
            return self.inner_pending(inner, cx);
        }
        if self.is_waiting {
            self.end_wait();
        }
        let has_failed = matches!(slot, Poll::Ready(Some(Err(_))));
        if has_failed || self.exchange.has_body_ended() || inner.is_none() {
            self.exchange.set_unread(false);
        }
        slot
    }

    /// Called when the body waits for the client. Registers the task of `cx` to be woken when the
    /// wait must be checked.
    fn wait_for_client<B: Body>(
        &mut self,
        inner: &Option<B>,
        cx: &mut Context<'_>,
    ) -> Result<(), Violation> {
        let now = self.exchange.client_wait.stamp(Instant::now());
        self.exchange.set_unread(false);
        if !self.is_waiting {
            self.is_waiting = true;
            self.waiting_since = now;
            if !self.has_waited {
                self.first_wait(inner, now);
            }
        }
        self.check_wait(now)?;
        let Self {
            exchange,
            upload,
            due,
            ..
        } = self;
        let by_handler = exchange.handler_poll.record_wait(*due, cx.waker()) == PolledBy::Handler;
        // A wait in another task continues even if the handler does not poll this body. Stored
        // before the stopwatch starts, because the response side loads both in the other order.
        exchange.awaited_elsewhere.store(!by_handler, SeqCst);
        exchange.client_wait.start(now);
        let view = exchange.shared();
        if let Err(violation) = exchange
            .policy
            .waits_for_client(upload, view, by_handler, cx)
        {
            self.end_wait_at(now);
            return Err(violation);
        }
        // The timer of the response future wakes the handler's task.
        if by_handler {
            Ok(())
        } else {
            self.poll_timer(cx)
        }
    }

    #[inline(never)]
    fn first_wait<B: Body>(&mut self, inner: &Option<B>, now: Stamp) {
        self.has_waited = true;
        let left = UnpolledBody(inner).size_hint().exact();
        let Self {
            exchange, upload, ..
        } = self;
        self.due = exchange
            .policy
            .first_wait(upload, exchange.shared(), left, now);
    }

    /// Checks the wait if the check is due at `now`.
    #[inline(always)]
    fn check_wait(&mut self, now: Stamp) -> Result<(), Violation> {
        if self.due.is_some_and(|due| due <= now) {
            self.expire_wait(now)
        } else {
            Ok(())
        }
    }

    #[inline(never)]
    fn expire_wait(&mut self, now: Stamp) -> Result<(), Violation> {
        let Self {
            exchange,
            upload,
            waiting_since,
            ..
        } = self;
        match exchange
            .policy
            .wait_expired(upload, exchange.shared(), *waiting_since, now)
        {
            Ok(due) => {
                self.due = due;
                Ok(())
            }
            Err(violation) => {
                self.end_wait_at(now);
                Err(violation)
            }
        }
    }

    /// Polls the timer for a task other than the handler's, and checks the wait when it fires.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<(), Violation> {
        while let Some(due) = self.due {
            let Some(due) = self.exchange.client_wait.instant(due) else {
                break;
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if timer.deadline() > due || (timer.is_elapsed() && timer.deadline() < due) {
                timer.as_mut().reset(due);
            }
            if poll_sleep(timer.as_mut(), cx).is_pending() {
                break;
            }
            self.check_wait(self.exchange.client_wait.stamp(Instant::now()))?;
        }
        Ok(())
    }

    /// Ends the wait for the client.
    #[inline(never)]
    fn end_wait(&mut self) {
        let now = self.exchange.client_wait.stamp(Instant::now());
        self.end_wait_at(now);
    }

    #[inline(always)]
    fn end_wait_at(&mut self, now: Stamp) {
        self.is_waiting = false;
        self.exchange.set_unread(true);
        let Self {
            exchange,
            upload,
            waiting_since,
            ..
        } = self;
        exchange
            .policy
            .wait_ended(upload, exchange.shared(), *waiting_since, now);
        exchange.client_wait.stop(now);
        exchange.handler_poll.clear_wait_on_handler_thread();
    }
}

impl<P: Policy> Drop for BodyState<P> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.is_waiting {
            self.exchange
                .client_wait
                .stop(self.exchange.client_wait.stamp(Instant::now()));
        }
        self.exchange.set_unread(false);
        let Self {
            exchange, upload, ..
        } = self;
        exchange.policy.release_upload(upload, exchange.shared());
    }
}

impl<P: Policy> fmt::Debug for BodyState<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyState")
            .field("is_waiting", &self.is_waiting)
            .finish_non_exhaustive()
    }
}

// === ServerBody, UnpolledBody ===

/// The request body of the server, as the upstream of the outermost policy.
struct ServerBody<'a, B> {
    body: Pin<&'a mut Option<B>>,
    /// A result that it has returned already.
    polled: Option<Polled>,
    body_ended: &'a AtomicBool,
}

impl<B> Upstream for ServerBody<'_, B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    #[inline(always)]
    fn poll(&mut self, slot: &mut Polled, cx: &mut Context<'_>) {
        match (self.polled.take(), self.body.as_mut().as_pin_mut()) {
            (Some(polled), _) => *slot = polled,
            (None, Some(body)) => store_polled(body.poll_frame(cx), slot),
            // A policy has ended the body, so the client may not have.
            (None, None) => {
                *slot = Poll::Ready(None);
                return;
            }
        }
        if let Poll::Ready(None) = slot {
            self.body_ended.store(true, Relaxed);
        }
    }

    #[inline(always)]
    fn size_hint(&self) -> SizeHint {
        UnpolledBody(&*self.body).size_hint()
    }

    #[inline(always)]
    fn is_end_stream(&self) -> bool {
        UnpolledBody(&*self.body).is_end_stream()
    }
}

/// Moves a result into `slot`. Rebuilds data frames: data fills only a third of a frame, and the
/// rest need not be copied.
#[inline(always)]
pub(crate) fn store_polled<E: Into<BoxError>>(
    polled: Poll<Option<Result<Frame<Bytes>, E>>>,
    slot: &mut Polled,
) {
    *slot = match polled {
        Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
            Ok(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Err(frame) => Poll::Ready(Some(Ok(frame))),
        },
        Poll::Pending => Poll::Pending,
        Poll::Ready(None) => Poll::Ready(None),
        Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
    };
}

/// The properties of the server's request body, without polling it.
struct UnpolledBody<'a, B>(&'a Option<B>);

impl<B: Body> Upstream for UnpolledBody<'_, B> {
    fn poll(&mut self, _: &mut Polled, _: &mut Context<'_>) {}

    #[inline(always)]
    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint)
    }

    #[inline(always)]
    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }
}
