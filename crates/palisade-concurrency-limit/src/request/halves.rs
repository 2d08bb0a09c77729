//! What each half of a request that has waited does: its body, and what answers it.
//!
//! Until the response head is out, both halves ask for the permit: the body when something has
//! come, the handler once it let go of the body. From then on only the answer does, and what comes
//! of the body is handed through. The permit is given up where the answer waits for its reader, or
//! where both halves have nothing to do.

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

/// What the halves tell each other, in one word.
#[derive(Debug)]
pub(crate) struct Flags(AtomicU16);

/// The request body is gone: the handler does not wait for the client any more.
const BODY_GONE: u16 = 1;
/// The request body said that the request was evicted.
const BODY_TOLD: u16 = 1 << 1;
/// The response head is out.
const HEAD_OUT: u16 = 1 << 2;
/// Once the head is out: the request body has nothing to hand on.
const BODY_WAITS: u16 = 1 << 3;
/// Once the head is out: the answer has nothing to hand on, though its reader asks.
const ANSWER_WAITS: u16 = 1 << 4;
/// In the present wait for the client the handler was polled once more to see what it waits for.
const PROBED: u16 = 1 << 5;
/// The request body is read by another task than the handler's, or by something that does not poll
/// all its parts: a poll of the handler does not show what it waits for.
const READ_ELSEWHERE: u16 = 1 << 6;
/// The handler has work of its own to do and must not be polled before it holds a permit.
const HANDLER_WORKS: u16 = 1 << 7;
/// The response is a gRPC stream, or may be.
const STREAMS: u16 = 1 << 8;

/// What the request body does.
impl Halves<'_> {
    /// Something has come: whether it may be handed on at once. If not, see
    /// [`Self::poll_body`].
    #[inline]
    pub(crate) fn body_goes_on(self) -> bool {
        if self.flags.has(HEAD_OUT) {
            self.body_waits_no_more();
            return !self.waiter.is_displaced();
        }
        self.waiter.is_working() || self.waiter.resume_kept()
    }

    /// Whether what comes may be handed on as it is, without a word to the waiter before.
    #[inline]
    pub(crate) fn body_passes(self) -> bool {
        if self.flags.has(HEAD_OUT) {
            !self.waiter.is_displaced()
        } else {
            self.waiter.holds_permit()
        }
    }

    /// Something has come, after a wait.
    #[inline]
    pub(crate) fn body_has_something(self) {
        if self.flags.has(PROBED) {
            self.flags.clear(PROBED);
        }
        if self.flags.has(HEAD_OUT) {
            self.body_waits_no_more();
        } else {
            self.waiter.resume_kept();
        }
    }

    /// Ready once what has come may be handed on.
    pub(crate) fn poll_body(self, cx: &Context<'_>) -> Poll<Result<(), Evicted>> {
        if !self.flags.has(HEAD_OUT) {
            let polled = self.limiter.poll_work(self.waiter, Half::Body, cx);
            // The half that sends the head wakes the body after that.
            if polled.is_ready() || !self.flags.has(HEAD_OUT) {
                return polled;
            }
        }
        self.body_waits_no_more();
        Poll::Ready(self.waiter.unless_displaced())
    }

    /// Nothing has come. The body is polled `by_handler`, or in another task.
    #[inline]
    pub(crate) fn body_waits(self, by_handler: bool, cx: &Context<'_>) -> Result<(), Evicted> {
        self.flags.put(READ_ELSEWHERE, !by_handler);
        if !by_handler {
            self.waiter.listen(Half::Body, cx);
        }
        if self.flags.has(HEAD_OUT) {
            // Of the two halves one sets its mark first, and so the other sees both.
            if self.flags.set(BODY_WAITS) & ANSWER_WAITS != 0 {
                self.limiter.stop_working(self.waiter);
            }
        } else {
            self.limiter.stop_working(self.waiter);
        }
        self.waiter.unless_displaced()
    }

    pub(super) fn body_is_gone(self) {
        if self.flags.has(HEAD_OUT) {
            self.body_waits_no_more();
        } else if self.waiter.is_waiting_for_client() && !self.waiter.resume_kept() {
            self.limiter.want_permit(self.waiter, None);
        }
    }

    /// The body says that the request was evicted.
    pub(crate) fn body_tells(self) {
        self.flags.set(BODY_TOLD);
    }

    /// There is something to do again, and where the answer is asked for that needs a permit.
    fn body_waits_no_more(self) {
        const BOTH: u16 = BODY_WAITS | ANSWER_WAITS;
        if self.flags.has(BODY_WAITS) && self.flags.clear(BODY_WAITS) & BOTH == BOTH {
            self.waiter.wake_half(Half::Answer);
        }
    }
}

/// What the response future and the response body do.
impl Halves<'_> {
    /// Ready once the handler may be polled: while it has the body to wait for, and else with a
    /// permit.
    #[inline]
    pub(crate) fn poll_handler(self, cx: &Context<'_>) -> Poll<()> {
        let flags = self.flags.get();
        let works = flags & (HANDLER_WORKS | READ_ELSEWHERE) == HANDLER_WORKS;
        if works || flags & BODY_GONE != 0 {
            ready!(
                self.limiter
                    .poll_work(self.waiter, Half::Answer, cx)
                    .map(drop)
            );
        }
        self.flags.put(HANDLER_WORKS, false);
        Poll::Ready(())
    }

    /// The handler was polled and is pending. If it does not await its client, it waits for
    /// something else, and is at work: a handler that read ahead in vain, as axum's `Multipart`
    /// does, has work of its own, and the silence of its client does not make that free.
    pub(crate) fn handler_waits(self, awaits_client: bool, cx: &Context<'_>) {
        let Self {
            limiter,
            waiter,
            flags,
        } = self;
        // Before the state is looked at: a displacement after that wakes the handler.
        waiter.listen(Half::Answer, cx);
        if !waiter.is_waiting_for_client() {
            flags.clear(PROBED);
            return;
        }
        // The body says so before it waits, so that a state of waiting is never older than that.
        let awaits_client = awaits_client || flags.has(READ_ELSEWHERE);
        if !awaits_client && waiter.resume_kept() {
            // It works on with the permit it has.
        } else if !awaits_client {
            flags.set(HANDLER_WORKS);
            // Its task asks for it in the poll that this brings about, or has it by then.
            limiter.want_permit(waiter, Some(cx.waker()));
            cx.waker().wake_by_ref();
        } else if limiter.finds_permits_short(waiter) && flags.set(PROBED) & PROBED == 0 {
            // Whether it waits for its client shows when it is polled again. Once in each wait,
            // and only where permits would be getting short if it did not.
            cx.waker().wake_by_ref();
        }
    }

    pub(crate) fn body_told(self) -> bool {
        self.flags.has(BODY_TOLD)
    }

    /// The answer is asked for, and has nothing to hand on.
    pub(crate) fn answer_waits(self, cx: &Context<'_>) {
        // Without a body the handler does not wait for the client.
        if self.flags.has(BODY_GONE) {
            return;
        }
        self.waiter.listen(Half::Answer, cx);
        if self.flags.set(ANSWER_WAITS) & BODY_WAITS != 0 {
            self.limiter.stop_working(self.waiter);
        }
    }
}

// === Flags ===

impl Flags {
    pub(super) fn new(has_body: bool) -> Self {
        Self(AtomicU16::new(if has_body { 0 } else { BODY_GONE }))
    }

    #[inline]
    fn get(&self) -> u16 {
        self.0.load(SeqCst)
    }

    #[inline]
    fn has(&self, flag: u16) -> bool {
        self.get() & flag != 0
    }

    /// Sets a flag. Returns those that were set before.
    #[inline]
    fn set(&self, flag: u16) -> u16 {
        self.0.fetch_or(flag, SeqCst)
    }

    /// Clears a flag. Returns those that were set before.
    #[inline]
    fn clear(&self, flag: u16) -> u16 {
        self.0.fetch_and(!flag, SeqCst)
    }

    /// Sets or clears a flag that one half alone changes.
    #[inline]
    fn put(&self, flag: u16, is_set: bool) {
        if self.has(flag) != is_set {
            self.0.fetch_xor(flag, SeqCst);
        }
    }

    pub(super) fn set_head_out(&self) {
        self.set(HEAD_OUT);
    }

    pub(super) fn set_body_gone(&self) {
        self.set(BODY_GONE);
    }

    pub(crate) fn set_streams(&self) {
        self.set(STREAMS);
    }

    /// The answer is asked for, and the request holds a permit.
    #[inline]
    pub(crate) fn answer_works(&self) {
        self.put(ANSWER_WAITS, false);
    }

    #[inline]
    pub(crate) fn is_body_gone(&self) -> bool {
        self.has(BODY_GONE)
    }

    #[inline]
    pub(crate) fn is_stream(&self) -> bool {
        self.has(STREAMS)
    }
}
