//! The decisions of one guard.

use crate::{ClientWait, Facts, Keys, Refusal, RequestView, SharedView, Stamp};
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

/// The decisions of one guard.
///
/// The first four methods are required. All others have a default, and a hook that a policy does
/// not use costs nothing. The [crate documentation](crate) lists the order in which the hooks are
/// called. Hooks that rarely refuse return the refusal in a box, so that the usual result is one
/// word.
///
/// A request has two sides, which may be in different tasks: the response side is the response
/// future and then the response body, the request side is the request body.
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// The policy's state on the response side, first with the response future and then with the
    /// response body.
    type Held: Default + Send + Unpin;
    /// The policy's state that both sides of a shared request can access.
    type Shared: Send + Sync;
    /// The policy's state on the request side.
    type Upload: Send + Unpin;
    /// [`QueueByClone`] if the policy [queues](Self::is_queued) requests, else [`NeverQueued`].
    type QueuedService;
    /// How the policy treats the body of a refused request: [`DropUnread`](crate::DropUnread),
    /// [`KeepUnread`](crate::KeepUnread) or [`KeepAny`](crate::KeepAny).
    type Unread;

    /// Returns whether a metrics sink is configured, so that events need the connection.
    fn has_recorder(&self) -> bool;

    /// Admits or refuses the request by its head. The policy records a refusal itself. `keys`
    /// returns the client key to policies that need it.
    fn admit<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Result<Self::Held, Refusal>;

    /// Creates the state that both sides of the request share. Called for a request that has a body
    /// or [needs sharing](Self::needs_sharing). May add extensions to the request.
    fn share<B: Body>(
        &self,
        held: &mut Self::Held,
        request: &mut Request<B>,
        facts: &Facts,
        keys: &mut Keys,
    ) -> Self::Shared;

    /// Creates the state on the request side. Called for a request that has a body.
    fn upload(&self, held: &mut Self::Held, shared: &Self::Shared, facts: &Facts) -> Self::Upload;

    /// Returns whether a request needs [`Self::share`] even without a body. `keys` has what
    /// [`Self::admit`] has kept there.
    #[inline(always)]
    fn needs_sharing(&self, _held: &Self::Held, _keys: &Keys) -> bool {
        false
    }

    // --- Before the handler is called ---

    /// Returns whether the handler must not be called before [`Self::poll_admission`] is ready.
    /// Only the innermost policy may queue requests. A queued request needs sharing.
    #[inline(always)]
    fn is_queued(&self, _held: &Self::Held) -> bool {
        false
    }

    /// Ready when a queued request is admitted or refused.
    fn poll_admission(
        &self,
        _held: &mut Self::Held,
        _view: RequestView<'_, Self::Shared>,
        _cx: &mut Context<'_>,
    ) -> Poll<Result<(), Box<Refusal>>> {
        Poll::Ready(Ok(()))
    }

    // --- While the handler runs ---

    /// Called before the handler of a shared request is polled. `Poll::Pending` holds the handler
    /// back. Only the innermost policy may do this.
    #[inline(always)]
    fn before_handler(
        &self,
        _held: &mut Self::Held,
        _view: SharedView<'_, Self::Shared>,
        _cx: &mut Context<'_>,
    ) -> Poll<()> {
        Poll::Ready(())
    }

    /// Called after a poll in which the handler was held back or pending, and after every poll of
    /// the handler of a shared request. A refusal drops the handler and is sent in place of its
    /// response.
    #[inline(always)]
    fn after_handler(
        &self,
        _held: &mut Self::Held,
        _view: RequestView<'_, Self::Shared>,
        _handler: Handler,
        _cx: &mut Context<'_>,
    ) -> Option<Box<Refusal>> {
        None
    }

    /// Returns whether the policy has a deadline for the response head.
    #[inline(always)]
    fn has_deadline(&self, _held: &Self::Held, _view: RequestView<'_, Self::Shared>) -> bool {
        false
    }

    /// Returns the instant at which [`Self::expired`] must be called. May be earlier than
    /// necessary, but never later.
    #[inline(always)]
    fn deadline(
        &self,
        _held: &Self::Held,
        _view: RequestView<'_, Self::Shared>,
        _elapsed: &Elapsed<'_>,
    ) -> Option<Instant> {
        None
    }

    /// Called when the [deadline](Self::deadline) of this or another policy has passed and the
    /// handler is still pending. A refusal drops the handler and is sent in place of its response.
    #[inline(always)]
    fn expired(
        &self,
        _held: &mut Self::Held,
        _view: RequestView<'_, Self::Shared>,
        _elapsed: &Elapsed<'_>,
    ) -> Option<Box<Refusal>> {
        None
    }

    /// Called when the response head is ready, which the policy may add to. Returns whether it
    /// needs [`Self::poll_response`]. A refusal replaces the response. Not called if the response
    /// has no body and the request is not shared. `started` is [`Elapsed::started`], or `None` if
    /// the request has no timer.
    #[inline(always)]
    fn response_head<B: Body>(
        &self,
        _held: &mut Self::Held,
        _view: RequestView<'_, Self::Shared>,
        _response: &mut Response<B>,
        _started: Option<Instant>,
    ) -> Result<bool, Box<Refusal>> {
        Ok(false)
    }

    // --- The request body ---

    /// Returns whether the policy can do without [`Self::poll_request`] at this moment. It then
    /// only gets [`Self::passed`] for a data frame that [`fits`](Self::fits), and the hooks of a
    /// wait for a pending body and for the end of the body. Called before the body is polled, and
    /// again after a wait has ended.
    #[inline(always)]
    fn is_plain(&self, _upload: &Self::Upload, _shared: &Self::Shared) -> bool {
        true
    }

    /// Returns whether a frame of this size keeps all rules. Must have no effect, because another
    /// policy may reject the frame.
    #[inline(always)]
    fn fits(&self, _upload: &Self::Upload, _bytes: usize) -> bool {
        true
    }

    /// Called when a frame of this size is passed to the handler.
    #[inline(always)]
    fn passed(&self, _upload: &mut Self::Upload, _shared: &Self::Shared, _bytes: usize) {}

    /// Polls the request body. Called where [`Self::passed`] is not enough. Polls `upstream` and
    /// stores the frame to be passed on in `slot`.
    #[inline(always)]
    fn poll_request<U: Upstream>(
        &self,
        _upload: &mut Self::Upload,
        _view: SharedView<'_, Self::Shared>,
        upstream: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        upstream.poll(slot, cx);
        Flow::Continue
    }

    /// Called at `now`, when the request body waits for the client for the first time. `left` is
    /// the remaining length of the body, if known. Returns when [`Self::wait_expired`] must be
    /// called for the first time: in this wait, or at the start of the first wait after that
    /// instant. Only [`Self::wait_expired`] may make the instant earlier.
    #[inline(always)]
    fn first_wait(
        &self,
        _upload: &mut Self::Upload,
        _view: SharedView<'_, Self::Shared>,
        _left: Option<u64>,
        _now: Stamp,
    ) -> Option<Stamp> {
        None
    }

    /// Called after each poll in which the request body waits for the client, and after
    /// [`Self::first_wait`]. `by_handler` says whether the handler polled the body in its own task.
    /// A violation ends the body.
    #[inline(always)]
    fn waits_for_client(
        &self,
        _upload: &mut Self::Upload,
        _view: SharedView<'_, Self::Shared>,
        _by_handler: bool,
        _cx: &mut Context<'_>,
    ) -> Result<(), Violation> {
        Ok(())
    }

    /// Checks a wait for the client that began at `since`. Returns when it must be checked next, or
    /// the violation that ends the body.
    #[inline(always)]
    fn wait_expired(
        &self,
        _upload: &mut Self::Upload,
        _view: SharedView<'_, Self::Shared>,
        _since: Stamp,
        _now: Stamp,
    ) -> Result<Option<Stamp>, Violation> {
        Ok(None)
    }

    /// Called at `now`, when a wait that began at `since` ends with a frame, an error, a violation
    /// or the end of the body. A frame that went through [`Self::poll_request`] has been counted
    /// there. A frame that goes to [`Self::passed`] has not been counted yet.
    #[inline(always)]
    fn wait_ended(
        &self,
        _upload: &mut Self::Upload,
        _view: SharedView<'_, Self::Shared>,
        _since: Stamp,
        _now: Stamp,
    ) {
    }

    /// Returns the size hint of the request body, given that of `upstream`.
    #[inline(always)]
    fn request_hint<U: Upstream>(
        &self,
        _upload: &Self::Upload,
        _view: SharedView<'_, Self::Shared>,
        upstream: &U,
    ) -> SizeHint {
        upstream.size_hint()
    }

    /// Returns whether the request body has ended, in `upstream` or because of this policy.
    #[inline(always)]
    fn request_ended<U: Upstream>(&self, _upload: &Self::Upload, upstream: &U) -> bool {
        upstream.is_end_stream()
    }

    // --- The response body ---

    /// Polls the response body. Polls `upstream` and stores the frame to be passed on in `slot`.
    #[inline(always)]
    fn poll_response<U: Upstream>(
        &self,
        _held: &mut Self::Held,
        _view: RequestView<'_, Self::Shared>,
        upstream: &mut U,
        slot: &mut Polled,
        cx: &mut Context<'_>,
    ) -> Flow {
        upstream.poll(slot, cx);
        Flow::Continue
    }

    // --- The end of the request ---

    /// Called when the request body is dropped.
    #[inline(always)]
    fn release_upload(&self, _upload: &mut Self::Upload, _view: SharedView<'_, Self::Shared>) {}

    /// Releases the request. Called exactly once. The value that remains in `held` is not dropped,
    /// so that a policy can skip the drop code of variants that rarely occur.
    #[inline(always)]
    fn release(&self, held: &mut Self::Held, view: RequestView<'_, Self::Shared>) {
        let _ = view;
        drop(std::mem::take(held));
    }
}

/// The result of polling the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handler {
    /// The handler was not polled.
    HeldBack,
    /// The handler is pending.
    Pending {
        /// Whether the handler waits for bytes from the client: it polled its request body in this
        /// poll, and the body was pending.
        awaits_client: bool,
    },
    /// The handler has returned a response, or an inner policy has refused the request.
    Ready,
}

/// How a body continues after a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Flow {
    /// The body continues normally. A pending request body waits for the client.
    Continue,
    /// The request body is pending, but does not wait for the client: the policy holds bytes back
    /// and wakes the task when it releases them.
    Busy,
    /// The result in the slot is the last one. The rest of the body is dropped.
    Cut,
    /// The result in the slot is the last one of a request body. The rest of the body may linger;
    /// see [`Unread`](crate::Unread).
    Linger,
    /// The same, but the rest is never read: reading it is what costs too much.
    LingerUnread,
}

/// The body from which a policy gets its frames.
pub trait Upstream {
    /// Polls the body and stores the result in `slot`.
    fn poll(&mut self, slot: &mut Polled, cx: &mut Context<'_>);
    /// See [`Body::size_hint`].
    fn size_hint(&self) -> SizeHint;
    /// See [`Body::is_end_stream`].
    fn is_end_stream(&self) -> bool;
}

/// The time that a request has used so far.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Elapsed<'a> {
    /// When the handler was pending for the first time.
    pub started: Instant,
    /// The current time.
    pub now: Instant,
    /// The time for which a shared request has waited for its client.
    pub client_wait: Option<&'a ClientWait>,
}

impl Elapsed<'_> {
    /// Returns the time since the handler was pending for the first time.
    #[inline]
    pub fn wall(&self) -> Duration {
        // Most handlers are pending once, and subtracting instants costs 55 instructions.
        if self.now == self.started {
            return Duration::ZERO;
        }
        self.now.saturating_duration_since(self.started)
    }

    /// Returns the time for which the request has waited for its client.
    pub fn waited(&self) -> Duration {
        self.client_wait
            .map_or(Duration::ZERO, |wait| wait.total(self.now))
    }

    /// Returns whether the request waits for its client at this moment.
    pub fn awaits_client(&self) -> bool {
        self.client_wait.is_some_and(ClientWait::is_running)
    }
}

/// How a ready service is kept for a queued request.
pub trait QueuedService<S> {
    /// Takes the ready service out of `inner` and replaces it. Returns `None` if requests are never
    /// queued.
    fn take_ready(inner: &mut S) -> Option<S>;
}

/// Requests are never queued. Has no bounds on the service.
#[derive(Debug)]
pub enum NeverQueued {}

/// A queued request takes the ready service, and a clone replaces it.
#[derive(Debug)]
pub enum QueueByClone {}

impl<S> QueuedService<S> for NeverQueued {
    fn take_ready(_: &mut S) -> Option<S> {
        None
    }
}

impl<S: Clone> QueuedService<S> for QueueByClone {
    fn take_ready(inner: &mut S) -> Option<S> {
        let fresh = inner.clone();
        // Only the instance on which `poll_ready` returned ready may be called.
        Some(std::mem::replace(inner, fresh))
    }
}

/// Admits every request.
impl Policy for () {
    type Held = ();
    type Shared = ();
    type Upload = ();
    type QueuedService = NeverQueued;
    type Unread = crate::DropUnread;

    #[inline(always)]
    fn has_recorder(&self) -> bool {
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
