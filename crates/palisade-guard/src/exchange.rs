//! The state that both sides of a shared request access: the response side (response future, then
//! response body) and the request side (request body), which may be in different tasks.

use crate::{
    ClientWait, Facts, Policy, SharedView, handler_poll::HandlerPoll, response_head::ResponseHead,
};
use std::sync::{
    Arc,
    atomic::{
        AtomicBool,
        Ordering::{Relaxed, SeqCst},
    },
};

/// The state of a shared request, accessible to both sides. One allocation per request.
#[derive(Debug)]
pub(crate) struct Exchange<P: Policy> {
    pub(crate) policy: Arc<P>,
    pub(crate) facts: Facts,
    pub(crate) shared: P::Shared,
    /// The time for which the handler has waited for its client.
    pub(crate) client_wait: ClientWait,
    pub(crate) handler_poll: HandlerPoll,
    /// Whether the latest wait for the client was polled with another waker than the handler's.
    pub(crate) awaited_elsewhere: AtomicBool,
    /// Whether the request body was read to its end.
    pub(crate) body_ended: AtomicBool,
    /// Whether the request body is counted in the connection's
    /// [unread bodies](palisade_core::ConnInfo::add_unread_body).
    is_unread: AtomicBool,
    pub(crate) response_head: ResponseHead,
}

// === Exchange ===

impl<P: Policy> Exchange<P> {
    pub(crate) fn new(policy: Arc<P>, facts: Facts, shared: P::Shared) -> Self {
        Self {
            policy,
            facts,
            shared,
            client_wait: ClientWait::default(),
            handler_poll: HandlerPoll::new(),
            awaited_elsewhere: AtomicBool::new(false),
            body_ended: AtomicBool::new(false),
            is_unread: AtomicBool::new(false),
            response_head: ResponseHead::new(),
        }
    }

    #[inline(always)]
    pub(crate) fn shared(&self) -> SharedView<'_, P::Shared> {
        SharedView::new(&self.facts, &self.shared, &self.response_head)
    }

    /// Sets whether the request body may hold bytes that the handler is not reading.
    #[inline]
    pub(crate) fn set_unread(&self, is_unread: bool) {
        if let Some(conn) = self.facts.shared_window()
            && self.is_unread.load(Relaxed) != is_unread
        {
            if is_unread {
                conn.add_unread_body();
                if self.is_unread.swap(true, SeqCst) {
                    conn.remove_unread_body(); // The other side has counted it concurrently.
                }
            } else if self.is_unread.swap(false, SeqCst) {
                conn.remove_unread_body();
            }
        }
    }

    pub(crate) fn has_body_ended(&self) -> bool {
        self.body_ended.load(Relaxed)
    }
}

impl<P: Policy> Drop for Exchange<P> {
    #[inline]
    fn drop(&mut self) {
        // The two sides may have called `set_unread` concurrently, so that the body may still be
        // counted as unread.
        self.set_unread(false);
    }
}
