//! The decisions of one guard.

use crate::{ClientWait, Facts, Keys, Of, Refusal, Shared, Stamp};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use palisade_core::{BoxError, Violation};
use std::{
    fmt,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// The result of polling a body.
pub type Polled = Poll<Option<Result<Frame<Bytes>, BoxError>>>;

/// The decisions of one guard. All hooks but the first five have a default that does nothing; a
/// hook that a policy does not use costs nothing. The [crate documentation](crate) has their order.
/// Refusals that are rare are boxed, so that the hook that returns none costs no more than a word.
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// What the request holds on the side of its response: with the response future, then with the
    /// response body.
    type Held: Default + Send + Unpin;
    /// What both sides of a request with a body see.
    type Shared: Send + Sync;
    /// What goes with the request body.
    type Upload: Send + Unpin;
    /// [`ByClone`] if the policy [queues](Self::is_queued) requests, else [`Never`].
    type Later;
    /// [`Drops`](crate::Drops), [`KeepsWhole`](crate::KeepsWhole) or [`Keeps`](crate::Keeps): what
    /// becomes of the body of a refused request.
    type Unread;

    /// Whether a sink listens, so that events need the connection.
    fn listens(&self) -> bool;

    /// Admits or refuses the request by its head. The policy records a refusal itself.
    /// `keys` has the client, for policies that ask for it.
    fn admit<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Result<Self::Held, Refusal>;

    /// Makes what both sides of the request see. Called for a request with a body, and for one
    /// that [asks for it](Self::needs_sharing). May add extensions to the request.
    fn share<B: Body>(
        &self,
        held: &mut Self::Held,
        request: &mut Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Self::Shared;

    /// Makes what goes with the request body.
    fn upload(&self, held: &mut Self::Held, shared: &Self::Shared, facts: &Facts) -> Self::Upload;

    /// Whether a request without a body needs [`Self::share`] all the same.
    #[inline(always)]
    fn needs_sharing(&self, _held: &Self::Held) -> bool {
        false
    }

    // --- Before the handler is called ---

    /// Whether the handler must not be called before [`Self::poll_admission`] is ready. Only the
    /// innermost policy may queue. Such a request needs sharing.
    #[inline(always)]
    fn is_queued(&self, _held: &Self::Held) -> bool {
        false
    }

    /// Ready when a queued request may be handled, or is refused.
    fn poll_admission(
        &self,
        _held: &mut Self::Held,
        _of: Of<'_, Self::Shared>,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<(), Box<Refusal>>> {
        Poll::Ready(Ok(()))
    }

    // --- While the handler works ---

    /// The handler of a shared request is about to be polled. Pending holds it back; only the
    /// innermost policy may do that.
    #[inline(always)]
    fn before_handler(
        &self,
        _held: &mut Self::Held,
        _of: Shared<'_, Self::Shared>,
        _cx: &mut Context<'_>,
    ) -> Poll<()> {
        Poll::Ready(())
    }

    /// The handler is pending, or that of a shared request was polled. A refusal drops the handler
    /// and answers in its place.
    #[inline(always)]
    fn after_handler(
        &self,
        _held: &mut Self::Held,
        _of: Of<'_, Self::Shared>,
        _handler: Handler,
        _cx: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        None
    }

    /// Whether the policy has deadlines for the response head at all.
    #[inline(always)]
    fn has_deadline(&self, _held: &Self::Held, _of: Of<'_, Self::Shared>) -> bool {
        false
    }

    /// The instant at which [`Self::expired`] is to be asked. May be earlier than necessary, and
    /// must not be later.
    #[inline(always)]
    fn deadline(
        &self,
        _held: &Self::Held,
        _of: Of<'_, Self::Shared>,
        _elapsed: &Elapsed<'_>,
    ) -> Option<Instant> {
        None
    }

    /// The instant of [`Self::deadline`], or of another policy's, has come and the handler is still
    /// pending. A refusal drops the handler and answers in its place.
    #[inline(always)]
    fn expired(
        &self,
        _held: &mut Self::Held,
        _of: Of<'_, Self::Shared>,
        _elapsed: &Elapsed<'_>,
    ) -> Option<Box<Refusal>> {
        None
    }

    /// The response head is ready: whether [`Self::poll_response`] is to see the body. A refusal
    /// replaces the response. Not called where there is neither a body nor anything shared.
    /// `started` as [`Elapsed::started`], if the handler has waited.
    #[inline(always)]
    fn response_head<B: Body>(
        &self,
        _held: &mut Self::Held,
        _of: Of<'_, Self::Shared>,
        _response: &Response<B>,
        _started: Option<Instant>,
    ) -> Result<bool, Box<Refusal>> {
        Ok(false)
    }

    // --- The request body ---

    /// Whether a data frame that is ready needs no more than [`Self::passed`], provided that it
    /// [`fits`](Self::fits), and the end of the body and a wait for its client no more than the
    /// hooks of a wait. Asked before the body is polled, and again when a wait has ended.
    #[inline(always)]
    fn is_plain(&self, _upload: &Self::Upload, _shared: &Self::Shared) -> bool {
        true
    }

    /// Whether a frame of so many bytes breaks no rule. Has no effect: other policies may object.
    #[inline(always)]
    fn fits(&self, _upload: &Self::Upload, _bytes: usize) -> bool {
        true
    }

    /// A frame of so many bytes was handed to the handler.
    #[inline(always)]
    fn passed(&self, _upload: &mut Self::Upload, _bytes: usize) {}

    /// Polls the request body where more than [`Self::passed`] is to be done: takes what `up` gives
    /// and leaves in `slot` what goes on.
    #[inline(always)]
    fn poll_request<U: Upstream>(
        &self,
        _upload: &mut Self::Upload,
        _of: Shared<'_, Self::Shared>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        up.poll(slot, cx);
        Flow::Go
    }

    /// The client is awaited for the first time, from `now` on; `left` is the length of what has
    /// not come, if that is known. Returns when the waiting is to be looked at first: in this wait,
    /// or at the beginning of the first wait after it. Nothing but [`Self::wait_expired`] may make
    /// that instant earlier.
    #[inline(always)]
    fn first_wait(
        &self,
        _upload: &mut Self::Upload,
        _of: Shared<'_, Self::Shared>,
        _left: Option<u64>,
        _now: Stamp,
    ) -> Option<Stamp> {
        None
    }

    /// The request body was polled, `by_handler` in its own task or by another task, and awaits its
    /// client. Called for each such poll, after [`Self::first_wait`]. A violation ends the body.
    #[inline(always)]
    fn client_awaited(
        &self,
        _upload: &mut Self::Upload,
        _of: Shared<'_, Self::Shared>,
        _by_handler: bool,
        _cx: &mut Context<'_>,
    ) -> Result<(), Violation> {
        Ok(())
    }

    /// The client has been awaited since `since`, and the waiting is to be looked at. Returns when
    /// it is to be looked at next, or the violation that ends the body.
    #[inline(always)]
    fn wait_expired(
        &self,
        _upload: &mut Self::Upload,
        _of: Shared<'_, Self::Shared>,
        _since: Stamp,
        _now: Stamp,
    ) -> Result<Option<Stamp>, Violation> {
        Ok(None)
    }

    /// Something came, or the body ended, at `now`, in a wait that began at `since`. What came has
    /// been counted by [`Self::poll_request`], if it went that way, and not yet by
    /// [`Self::passed`].
    #[inline(always)]
    fn wait_ends(
        &self,
        _upload: &mut Self::Upload,
        _of: Shared<'_, Self::Shared>,
        _since: Stamp,
        _now: Stamp,
    ) {
    }

    /// The length of the request body where that of `up` is known.
    #[inline(always)]
    fn request_hint<U: Upstream>(
        &self,
        _upload: &Self::Upload,
        _of: Shared<'_, Self::Shared>,
        up: &U,
    ) -> SizeHint {
        up.size_hint()
    }

    /// Whether the request body is at its end, by `up` or by this policy.
    #[inline(always)]
    fn request_ended<U: Upstream>(&self, _upload: &Self::Upload, up: &U) -> bool {
        up.is_end_stream()
    }

    // --- The response body ---

    /// Polls the response body: takes what `up` gives and leaves in `slot` what goes on.
    #[inline(always)]
    fn poll_response<U: Upstream>(
        &self,
        _held: &mut Self::Held,
        _of: Of<'_, Self::Shared>,
        up: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        up.poll(slot, cx);
        Flow::Go
    }

    // --- The end ---

    /// The request body is dropped.
    #[inline(always)]
    fn release_upload(&self, _upload: &mut Self::Upload, _of: Shared<'_, Self::Shared>) {}

    /// The request is over. Called exactly once. What it leaves in `held` is not dropped, so that
    /// a request that holds nothing unusual does not pay for what it might have held.
    #[inline(always)]
    fn release(&self, held: &mut Self::Held, of: Of<'_, Self::Shared>) {
        let _ = of;
        drop(std::mem::take(held));
    }
}

/// What became of the handler in this poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// It was not polled.
    HeldBack,
    /// It is pending. `awaits_client` if it asked for its request body in this poll and there was
    /// nothing to give.
    Pending {
        /// Whether bytes of the client are what it waits for.
        awaits_client: bool,
    },
    /// It has a response, or a policy further inside has.
    Ready,
}

/// How a body goes on after a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flow {
    /// As its frames say. A pending request body awaits its client.
    Go,
    /// A pending request body that does not await its client: the policy holds bytes back, and
    /// wakes the task when they may go on.
    Busy,
    /// What is in the slot is the last that comes of this body. What is left of it is dropped.
    Cut,
    /// The same for a request body, of which the rest is kept for a moment; see
    /// [`Unread`](crate::Unread).
    LetGo,
}

/// Where a policy gets its frames from.
pub trait Upstream {
    /// Puts the next frame into `slot`.
    fn poll(&mut self, slot: &mut Polled, cx: &mut Context<'_>);
    /// As [`Body::size_hint`].
    fn size_hint(&self) -> SizeHint;
    /// As [`Body::is_end_stream`].
    fn is_end_stream(&self) -> bool;
}

/// The time that a request has taken so far.
#[derive(Clone, Copy, Debug)]
pub struct Elapsed<'a> {
    /// When its handler waited first.
    pub started: Instant,
    /// When this was looked at.
    pub now: Instant,
    /// How long its client was awaited, for a request with a body.
    pub wait: Option<&'a ClientWait>,
}

impl Elapsed<'_> {
    /// The time since the handler waited first.
    #[inline]
    pub fn wall(&self) -> Duration {
        // Most handlers wait once, and to subtract instants costs 55 instructions.
        if self.now == self.started {
            return Duration::ZERO;
        }
        self.now.saturating_duration_since(self.started)
    }

    /// The time in which the client was awaited.
    pub fn waited(&self) -> Duration {
        self.wait
            .map_or(Duration::ZERO, |wait| wait.total(self.now))
    }

    /// Whether the client is awaited now.
    pub fn awaits_client(&self) -> bool {
        self.wait.is_some_and(ClientWait::runs)
    }
}

/// How a service that was made ready is kept for a request in a queue.
pub trait Later<S> {
    /// The ready service. Another one takes its place.
    fn take_ready(inner: &mut S) -> Option<S>;
}

/// No request queues. Asks nothing of the service.
#[derive(Debug)]
pub enum Never {}

/// A clone takes the place of the ready service.
#[derive(Debug)]
pub enum ByClone {}

impl<S> Later<S> for Never {
    fn take_ready(_: &mut S) -> Option<S> {
        None
    }
}

impl<S: Clone> Later<S> for ByClone {
    fn take_ready(inner: &mut S) -> Option<S> {
        let fresh = inner.clone();
        // The instance that was made ready is the one to call later.
        Some(std::mem::replace(inner, fresh))
    }
}

/// Admits everything.
impl Policy for () {
    type Held = ();
    type Shared = ();
    type Upload = ();
    type Later = Never;
    type Unread = crate::Drops;

    #[inline(always)]
    fn listens(&self) -> bool {
        false
    }

    #[inline(always)]
    fn admit<B: Body>(&self, _: &Request<B>, _: &Facts, _: &mut Keys) -> Result<(), Refusal> {
        Ok(())
    }

    #[inline(always)]
    fn share<B: Body>(&self, (): &mut (), _: &mut Request<B>, _: &Facts, _: &mut Keys) {}

    #[inline(always)]
    fn upload(&self, (): &mut (), (): &(), _: &Facts) {}
}
