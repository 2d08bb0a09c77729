//! The two halves of a request that has waited: its request body, and its response.
//!
//! Until the response head is sent, both halves acquire the permit: the request body when data has
//! arrived, the handler once it has dropped the body. From then on only the response does, and data
//! of the request body is passed through. The permit is given back while the response waits for its
//! reader, and while both halves have nothing to do.

use crate::limiter::{Evicted, Half, Limiter, Waiter};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
};

/// The halves of one request.
#[derive(Clone, Copy)]
pub(crate) struct Halves<'a> {
    pub(super) limiter: &'a Limiter,
    pub(crate) waiter: &'a Arc<Waiter>,
    pub(super) flags: &'a Flags,
}

/// Flags that the halves share, in one word.
#[derive(Debug)]
pub(crate) struct Flags(AtomicU16);

/// The request body was dropped: the handler no longer waits for the client.
const BODY_DROPPED: u16 = 1;
/// The request body has reported that the request was evicted.
const EVICTION_REPORTED: u16 = 1 << 1;
/// The response head has been sent.
const HEAD_SENT: u16 = 1 << 2;
/// After the response head: the request body was polled and has no data.
const BODY_PENDING: u16 = 1 << 3;
/// After the response head: the response was polled and has no data.
const RESPONSE_PENDING: u16 = 1 << 4;
/// The handler was polled once more in the current wait for the client, to find out what it waits
/// for.
const HANDLER_REPOLLED: u16 = 1 << 5;
/// The request body is read by a task other than the handler's, or by something that does not poll
/// all its parts: polling the handler does not show what it waits for.
const BODY_READ_ELSEWHERE: u16 = 1 << 6;
/// The handler has work to do and must not be polled before the request holds a permit.
const HANDLER_NEEDS_PERMIT: u16 = 1 << 7;
/// The response is, or may be, a gRPC stream.
const GRPC_STREAM: u16 = 1 << 8;

/// Operations of the request body.
impl Halves<'_> {
    /// Resumes after data has arrived. Returns whether it may be passed on at once; otherwise see
    /// [`Self::poll_body_permit`].
    #[inline]
    pub(crate) fn resume_body(self) -> bool {
        if self.flags.contains(HEAD_SENT) {
            self.clear_body_pending();
            return !self.waiter.is_evicted();
        }
        self.waiter.is_working() || self.waiter.resume_kept()
    }

    /// Whether data may be passed on without notifying the waiter.
    #[inline]
    pub(crate) fn body_passes_through(self) -> bool {
        if self.flags.contains(HEAD_SENT) {
            !self.waiter.is_evicted()
        } else {
            self.waiter.holds_permit()
        }
    }

    /// Records that a wait for the client has ended.
    #[inline]
    pub(crate) fn body_wait_ended(self) {
        if self.flags.contains(HANDLER_REPOLLED) {
            self.flags.remove(HANDLER_REPOLLED);
        }
        if self.flags.contains(HEAD_SENT) {
            self.clear_body_pending();
        } else {
            self.waiter.resume_kept();
        }
    }

    /// Ready once data that has arrived may be passed on.
    pub(crate) fn poll_body_permit(self, cx: &Context<'_>) -> Poll<Result<(), Evicted>> {
        if !self.flags.contains(HEAD_SENT) {
            let polled = self.limiter.poll_permit(self.waiter, Half::RequestBody, cx);
            // Otherwise the half that sets `HEAD_SENT` wakes the body afterwards.
            if polled.is_ready() || !self.flags.contains(HEAD_SENT) {
                return polled;
            }
        }
        self.clear_body_pending();
        Poll::Ready(self.waiter.check_evicted())
    }

    /// Records that the body has no data. It was polled `by_handler`, or in another task.
    #[inline]
    pub(crate) fn body_awaits_client(
        self,
        by_handler: bool,
        cx: &Context<'_>,
    ) -> Result<(), Evicted> {
        self.flags.assign(BODY_READ_ELSEWHERE, !by_handler);
        if !by_handler {
            self.waiter.register(Half::RequestBody, cx);
        }
        if self.flags.contains(HEAD_SENT) {
            // The half that sets its flag last sees both flags.
            if self.flags.insert(BODY_PENDING) & RESPONSE_PENDING != 0 {
                self.limiter.stop_working(self.waiter);
            }
        } else {
            self.limiter.stop_working(self.waiter);
        }
        self.waiter.check_evicted()
    }

    pub(super) fn body_dropped(self) {
        if self.flags.contains(HEAD_SENT) {
            self.clear_body_pending();
        } else if self.waiter.is_waiting_for_client() && !self.waiter.resume_kept() {
            self.limiter.acquire_or_queue(self.waiter, None);
        }
    }

    /// Records that the body has reported the eviction.
    pub(crate) fn set_eviction_reported(self) {
        self.flags.insert(EVICTION_REPORTED);
    }

    /// Records that the body has work again. If the response is polled, it needs a permit for that.
    fn clear_body_pending(self) {
        const BOTH_PENDING: u16 = BODY_PENDING | RESPONSE_PENDING;
        if self.flags.contains(BODY_PENDING)
            && self.flags.remove(BODY_PENDING) & BOTH_PENDING == BOTH_PENDING
        {
            self.waiter.wake_half(Half::Response);
        }
    }
}

/// Operations of the response future and the response body.
impl Halves<'_> {
    /// Ready once the handler may be polled: at once while it can wait for the body, otherwise once
    /// the request holds a permit.
    #[inline]
    pub(crate) fn poll_handler_permit(self, cx: &Context<'_>) -> Poll<()> {
        let flags = self.flags.load();
        let needs_permit =
            flags & (HANDLER_NEEDS_PERMIT | BODY_READ_ELSEWHERE) == HANDLER_NEEDS_PERMIT;
        if needs_permit || flags & BODY_DROPPED != 0 {
            ready!(
                self.limiter
                    .poll_permit(self.waiter, Half::Response, cx)
                    .map(drop)
            );
        }
        self.flags.assign(HANDLER_NEEDS_PERMIT, false);
        Poll::Ready(())
    }

    /// Updates the state after a poll in which the handler was pending. If it does not await its
    /// client, it waits for something else and is at work: a handler that read ahead in vain, as
    /// axum's `Multipart` does, has work of its own, which needs a permit even though its client is
    /// silent.
    pub(crate) fn handler_pending(self, awaits_client: bool, cx: &Context<'_>) {
        let Self {
            limiter,
            waiter,
            flags,
        } = self;
        // Register before reading the state: an eviction after this wakes the handler.
        waiter.register(Half::Response, cx);
        if !waiter.is_waiting_for_client() {
            flags.remove(HANDLER_REPOLLED);
            return;
        }
        // The body sets this flag before it waits, so the flag is current if the state is waiting.
        let awaits_client = awaits_client || flags.contains(BODY_READ_ELSEWHERE);
        if !awaits_client && waiter.resume_kept() {
            // It continues with the permit that it kept.
        } else if !awaits_client {
            flags.insert(HANDLER_NEEDS_PERMIT);
            // The poll that this wake causes acquires the permit, or finds it granted.
            limiter.acquire_or_queue(waiter, Some(cx.waker()));
            cx.waker().wake_by_ref();
        } else if limiter.may_become_scarce_for(waiter)
            && flags.insert(HANDLER_REPOLLED) & HANDLER_REPOLLED == 0
        {
            // Another poll shows whether the handler waits for its client. Only once per wait, and
            // only if permits would be short if all requests worked.
            cx.waker().wake_by_ref();
        }
    }

    pub(crate) fn is_eviction_reported(self) -> bool {
        self.flags.contains(EVICTION_REPORTED)
    }

    /// Records that the response was polled and has no data.
    pub(crate) fn response_pending(self, cx: &Context<'_>) {
        // Without a body the handler does not wait for the client.
        if self.flags.contains(BODY_DROPPED) {
            return;
        }
        self.waiter.register(Half::Response, cx);
        if self.flags.insert(RESPONSE_PENDING) & BODY_PENDING != 0 {
            self.limiter.stop_working(self.waiter);
        }
    }
}

// === Flags ===

impl Flags {
    pub(super) fn new(has_body: bool) -> Self {
        Self(AtomicU16::new(if has_body { 0 } else { BODY_DROPPED }))
    }

    #[inline]
    fn load(&self) -> u16 {
        self.0.load(SeqCst)
    }

    #[inline]
    fn contains(&self, flag: u16) -> bool {
        self.load() & flag != 0
    }

    /// Sets a flag. Returns the previous flags.
    #[inline]
    fn insert(&self, flag: u16) -> u16 {
        self.0.fetch_or(flag, SeqCst)
    }

    /// Clears a flag. Returns the previous flags.
    #[inline]
    fn remove(&self, flag: u16) -> u16 {
        self.0.fetch_and(!flag, SeqCst)
    }

    /// Sets or clears a flag that only one half changes.
    #[inline]
    fn assign(&self, flag: u16, is_set: bool) {
        if self.contains(flag) != is_set {
            self.0.fetch_xor(flag, SeqCst);
        }
    }

    pub(super) fn set_head_sent(&self) {
        self.insert(HEAD_SENT);
    }

    pub(super) fn set_body_dropped(&self) {
        self.insert(BODY_DROPPED);
    }

    pub(crate) fn set_grpc_stream(&self) {
        self.insert(GRPC_STREAM);
    }

    /// Records that the response was polled and the request holds a permit.
    #[inline]
    pub(crate) fn clear_response_pending(&self) {
        self.assign(RESPONSE_PENDING, false);
    }

    #[inline]
    pub(crate) fn is_body_dropped(&self) -> bool {
        self.contains(BODY_DROPPED)
    }

    #[inline]
    pub(crate) fn is_grpc_stream(&self) -> bool {
        self.contains(GRPC_STREAM)
    }
}
