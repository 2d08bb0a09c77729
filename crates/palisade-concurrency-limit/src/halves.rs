//! What each half of a request does with the ticket they share.

use crate::ticket::{Displaced, Half, Ticket};
use palisade_core::{Phase, Violation};
use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    task::{Context, Poll, ready},
};

/// What the request body does.
impl Ticket {
    /// Something has come: whether it may be handed on at once. If not, see
    /// [`Self::poll_body`].
    #[inline]
    pub(crate) fn body_goes_on(&self) -> bool {
        if self.head_out.load(SeqCst) {
            self.body_waits_no_more();
            return !self.is_displaced();
        }
        self.is_working() || self.resume_kept()
    }

    /// Whether what comes may be handed on as it is, without a word to the ticket before.
    #[inline]
    pub(crate) fn body_passes(&self) -> bool {
        if self.head_out.load(SeqCst) { !self.is_displaced() } else { self.holds_slot() }
    }

    /// Something has come, after a wait.
    #[inline]
    pub(crate) fn body_has_something(&self) {
        if self.head_out.load(SeqCst) {
            self.body_waits_no_more();
        } else {
            self.resume_kept();
        }
    }

    /// Ready once what has come may be handed on.
    pub(crate) fn poll_body(self: &Arc<Self>, cx: &Context<'_>) -> Poll<Result<(), Displaced>> {
        if !self.head_out.load(SeqCst) {
            let polled = self.poll_work(Half::Body, cx);
            // Whoever sends the head wakes the body after that.
            if polled.is_ready() || !self.head_out.load(SeqCst) {
                return polled;
            }
        }
        self.body_waits_no_more();
        Poll::Ready(self.unless_displaced())
    }

    /// Nothing has come.
    #[inline]
    pub(crate) fn body_waits(self: &Arc<Self>) -> Result<(), Displaced> {
        if self.head_out.load(SeqCst) {
            // Of the two halves one sets its mark first, and so the other sees both.
            self.body_waits.store(true, SeqCst);
            if self.answer_waits.load(SeqCst) {
                self.stop_working();
            }
        } else {
            self.stop_working();
        }
        self.unless_displaced()
    }

    /// The handler let go of the request body, so that it does not wait for the client any more.
    pub(crate) fn body_is_gone(self: &Arc<Self>) {
        self.body_gone.store(true, SeqCst);
        if self.head_out.load(SeqCst) {
            self.body_waits_no_more();
        } else if self.is_waiting_for_client() && !self.resume_kept() {
            self.want_slot();
        }
    }

    /// The body says that the request was displaced.
    pub(crate) fn body_tells(&self) -> Violation {
        self.body_told.store(true, SeqCst);
        self.displacement(Phase::RequestBody)
    }

    /// There is something to do again, and where somebody asks for the answer that needs a slot.
    fn body_waits_no_more(&self) {
        if self.body_waits.swap(false, SeqCst) && self.answer_waits.load(SeqCst) {
            self.wake_half(Half::Answer);
        }
    }
}

/// What the response future and the response body do.
impl Ticket {
    /// Ready once the handler may be polled: while it has the body to wait for, and else with a
    /// slot.
    pub(crate) fn poll_handler(self: &Arc<Self>, cx: &Context<'_>) -> Poll<()> {
        let works = self.handler_works.load(SeqCst) && !self.read_elsewhere.load(SeqCst);
        if works || self.body_gone.load(SeqCst) {
            ready!(self.poll_work(Half::Answer, cx).map(drop));
        }
        self.handler_works.store(false, SeqCst);
        Poll::Ready(())
    }

    /// The handler was polled and is pending. If it does not await its client, it waits for
    /// something else, and is at work: a handler that read ahead in vain, as axum's `Multipart`
    /// does, has work of its own, and the silence of its client does not make that free.
    pub(crate) fn handler_waits(self: &Arc<Self>, awaits_client: bool, cx: &Context<'_>) {
        // Before the state is looked at: a displacement after that wakes the handler.
        self.listen(Half::Answer, cx);
        if !self.is_waiting_for_client() {
            self.probed.store(false, SeqCst);
            return;
        }
        // The body says so before it waits, so that a state of waiting is never older than that.
        let awaits_client = awaits_client || self.read_elsewhere.load(SeqCst);
        if !awaits_client && self.resume_kept() {
            // It works on with the slot it has.
        } else if !awaits_client {
            self.handler_works.store(true, SeqCst);
            // Its task asks for it in the poll that this brings about, or has it by then.
            self.want_slot();
            cx.waker().wake_by_ref();
        } else if self.finds_slots_short() && !self.probed.swap(true, SeqCst) {
            // Whether it waits for its client shows when it is polled again. Once in each wait,
            // and only where slots would be getting short if it did not.
            cx.waker().wake_by_ref();
        }
    }

    pub(crate) fn body_told(&self) -> bool {
        self.body_told.load(SeqCst)
    }

    /// From here on only the answer asks for slots.
    pub(crate) fn head_is_out(&self) {
        self.head_out.store(true, SeqCst);
        if !self.body_gone.load(SeqCst) {
            self.wake_half(Half::Body);
        }
    }

    /// The answer is asked for, and the request holds a slot.
    pub(crate) fn answer_works(&self) {
        self.answer_waits.store(false, SeqCst);
    }

    /// The answer is asked for, and has nothing to hand on.
    pub(crate) fn answer_waits(self: &Arc<Self>, cx: &Context<'_>) {
        // Without a body the handler does not wait for the client.
        if self.body_gone.load(SeqCst) {
            return;
        }
        self.listen(Half::Answer, cx);
        self.answer_waits.store(true, SeqCst);
        if self.body_waits.load(SeqCst) {
            self.stop_working();
        }
    }
}
