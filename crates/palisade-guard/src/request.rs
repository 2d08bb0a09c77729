//! The request body that the handler reads.

use crate::{
    Flow, Policy, Polled, Stamp, Unread, Upstream, exchange::Exchange, handler_poll::PolledBy,
    timer::poll_sleep,
};
use bytes::Bytes;
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
    /// Fails with a [`Violation`] when it breaks a rule of a policy, and is at its end then.
    #[derive(Debug)]
    pub struct RequestBody<B, P: Policy> {
        // `None` once it was let go.
        #[pin]
        inner: Option<B>,
        // `None` for a request that shares nothing.
        reading: Option<Reading<P>>,
    }
}

/// What it takes to guard one request body.
pub(crate) struct Reading<P: Policy> {
    exchange: Arc<Exchange<P>>,
    upload: P::Upload,
    /// The client is awaited, since `since`.
    awaits: bool,
    since: Stamp,
    has_waited: bool,
    /// When the waiting is to be looked at: a lower bound of the instant at which it is too long.
    due: Option<Stamp>,
    /// Wakes the task that polls this body at `due`, where that is not the handler's task.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B, P: Policy> RequestBody<B, P> {
    #[inline(always)]
    pub(crate) fn new(body: B, reading: Option<Reading<P>>) -> Self {
        Self {
            inner: Some(body),
            reading,
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
        let Some(reading) = this.reading else {
            return match this.inner.as_pin_mut() {
                Some(body) => body.poll_frame(cx).map_err(Into::into),
                None => Poll::Ready(None),
            };
        };
        let first = match this.inner.as_mut().as_pin_mut() {
            Some(body) if reading.is_plain() => Some(match body.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if reading.goes_on_plainly() && reading.passes(data.len()) => {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    Ok(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                    Err(frame) => Poll::Ready(Some(Ok(frame))),
                },
                Poll::Pending => return reading.pending(this.inner, cx),
                Poll::Ready(None) if reading.goes_on_plainly() => {
                    reading.exchange.ended.store(true, Relaxed);
                    reading.exchange.set_unread(false);
                    return Poll::Ready(None);
                }
                Poll::Ready(None) => Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            }),
            _ => None,
        };
        reading.poll_slowly(first, this.inner, cx)
    }

    fn is_end_stream(&self) -> bool {
        let up = Known(&self.inner);
        match &self.reading {
            None => up.is_end_stream(),
            Some(reading) => reading.exchange.policy.request_ended(&reading.upload, &up),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let up = Known(&self.inner);
        match &self.reading {
            None => up.size_hint(),
            Some(Reading {
                exchange, upload, ..
            }) => exchange.policy.request_hint(upload, exchange.shared(), &up),
        }
    }
}

// === Reading ===

impl<P: Policy> Reading<P> {
    #[inline(always)]
    pub(crate) fn new(exchange: Arc<Exchange<P>>, upload: P::Upload) -> Self {
        exchange.set_unread(true);
        Self {
            exchange,
            upload,
            awaits: false,
            since: 0,
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

    /// The body of plain frames has something to give: ends the wait for it, if there was one.
    /// Whether it is plain still.
    #[inline(always)]
    fn goes_on_plainly(&mut self) -> bool {
        if self.awaits {
            self.end_wait();
            return self.is_plain();
        }
        true
    }

    /// Whether a data frame merely passes, and is counted.
    #[inline(always)]
    fn passes(&mut self, bytes: usize) -> bool {
        let policy = &*self.exchange.policy;
        let passes = policy.fits(&self.upload, bytes);
        if passes {
            policy.passed(&mut self.upload, bytes);
        }
        passes
    }

    /// The body has nothing to give, and no policy holds anything back.
    #[inline(never)]
    fn pending<B: Body>(&mut self, mut inner: Pin<&mut Option<B>>, cx: &mut Context<'_>) -> Polled {
        match self.await_client(&*inner, cx) {
            Ok(()) => Poll::Pending,
            Err(violation) => {
                inner.set(None);
                self.exchange.set_unread(false);
                Poll::Ready(Some(Err(violation.into())))
            }
        }
    }

    /// Handles everything but a data frame that merely passes. The `first` frame is given if the
    /// body was polled already.
    #[inline(never)]
    fn poll_slowly<B>(
        &mut self,
        first: Option<Polled>,
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
            let mut up = Server {
                body: inner.as_mut(),
                first,
                ended: &exchange.ended,
            };
            exchange
                .policy
                .poll_request(upload, exchange.shared(), &mut up, &mut slot, cx)
        };
        match flow {
            Flow::Go | Flow::Busy => {}
            Flow::Cut => inner.set(None),
            Flow::LetGo => {
                P::Unread::let_go(inner.as_mut(), self.exchange.facts.version);
                inner.set(None);
            }
        }
        if slot.is_pending() && flow == Flow::Go {
            return self.pending(inner, cx);
        }
        if self.awaits {
            self.end_wait();
        }
        let has_failed = matches!(slot, Poll::Ready(Some(Err(_))));
        if has_failed || self.exchange.has_ended() || inner.is_none() {
            self.exchange.set_unread(false);
        }
        slot
    }

    /// The client is awaited. Registers the task of `cx` to be woken when the waiting is to be
    /// looked at.
    fn await_client<B: Body>(
        &mut self,
        inner: &Option<B>,
        cx: &mut Context<'_>,
    ) -> Result<(), Violation> {
        let now = self.exchange.wait.stamp(Instant::now());
        self.exchange.set_unread(false);
        if !self.awaits {
            self.awaits = true;
            self.since = now;
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
        let by_handler = exchange.handler.body_waits(*due, cx.waker()) == PolledBy::Handler;
        // A poll of the handler need not poll this body again, so that it would not show. Said
        // before the clock runs: the handler looks in the other order.
        exchange.awaited_elsewhere.store(!by_handler, SeqCst);
        exchange.wait.begin(now);
        let of = exchange.shared();
        if let Err(violation) = exchange.policy.client_awaited(upload, of, by_handler, cx) {
            self.end_wait_at(now);
            return Err(violation);
        }
        // The timer of the response future serves the handler's task.
        if by_handler {
            Ok(())
        } else {
            self.poll_timer(cx)
        }
    }

    #[inline(never)]
    fn first_wait<B: Body>(&mut self, inner: &Option<B>, now: Stamp) {
        self.has_waited = true;
        let left = Known(inner).size_hint().exact();
        let Self {
            exchange, upload, ..
        } = self;
        self.due = exchange
            .policy
            .first_wait(upload, exchange.shared(), left, now);
    }

    /// Looks at the waiting if that is due at `now`.
    #[inline(always)]
    fn check_wait(&mut self, now: Stamp) -> Result<(), Violation> {
        if self.due.is_some_and(|due| due <= now) {
            self.wait_expired(now)
        } else {
            Ok(())
        }
    }

    #[inline(never)]
    fn wait_expired(&mut self, now: Stamp) -> Result<(), Violation> {
        let Self {
            exchange,
            upload,
            since,
            ..
        } = self;
        match exchange
            .policy
            .wait_expired(upload, exchange.shared(), *since, now)
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

    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Result<(), Violation> {
        while let Some(due) = self.due {
            let Some(due) = self.exchange.wait.instant(due) else {
                break;
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if timer.deadline() > due || (timer.is_elapsed() && timer.deadline() < due) {
                timer.as_mut().reset(due);
            }
            if poll_sleep(timer.as_mut(), cx).is_pending() {
                break;
            }
            self.check_wait(self.exchange.wait.stamp(Instant::now()))?;
        }
        Ok(())
    }

    /// Something came, or the body is over.
    #[inline(never)]
    fn end_wait(&mut self) {
        let now = self.exchange.wait.stamp(Instant::now());
        self.end_wait_at(now);
    }

    #[inline(always)]
    fn end_wait_at(&mut self, now: Stamp) {
        self.awaits = false;
        self.exchange.set_unread(true);
        let Self {
            exchange,
            upload,
            since,
            ..
        } = self;
        exchange
            .policy
            .wait_ends(upload, exchange.shared(), *since, now);
        exchange.wait.end(now);
        exchange.handler.wait_ends();
    }
}

impl<P: Policy> Drop for Reading<P> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.awaits {
            self.exchange
                .wait
                .end(self.exchange.wait.stamp(Instant::now()));
        }
        self.exchange.set_unread(false);
        let Self {
            exchange, upload, ..
        } = self;
        exchange.policy.release_upload(upload, exchange.shared());
    }
}

impl<P: Policy> fmt::Debug for Reading<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading")
            .field("awaits", &self.awaits)
            .finish_non_exhaustive()
    }
}

// === Server, Known ===

/// The body as the server gives it.
struct Server<'a, B> {
    body: Pin<&'a mut Option<B>>,
    /// What it has given already.
    first: Option<Polled>,
    ended: &'a AtomicBool,
}

impl<B> Upstream for Server<'_, B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>>,
{
    #[inline(always)]
    fn poll(&mut self, slot: &mut Polled, cx: &mut Context<'_>) {
        match (self.first.take(), self.body.as_mut().as_pin_mut()) {
            (Some(first), _) => *slot = first,
            (None, Some(body)) => pour(body.poll_frame(cx), slot),
            // It was cut: that is not its end.
            (None, None) => {
                *slot = Poll::Ready(None);
                return;
            }
        }
        if let Poll::Ready(None) = slot {
            self.ended.store(true, Relaxed);
        }
    }

    #[inline(always)]
    fn size_hint(&self) -> SizeHint {
        Known(&*self.body).size_hint()
    }

    #[inline(always)]
    fn is_end_stream(&self) -> bool {
        Known(&*self.body).is_end_stream()
    }
}

/// Moves a result into `slot`. Data is a third of what a frame has room for: the rest need not be
/// copied.
#[inline(always)]
pub(crate) fn pour<E: Into<BoxError>>(
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

/// What is known of a request body without polling it.
struct Known<'a, B>(&'a Option<B>);

impl<B: Body> Upstream for Known<'_, B> {
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
