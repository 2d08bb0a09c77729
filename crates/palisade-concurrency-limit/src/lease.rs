//! Who answers for a request, and with that for its slot.

use crate::{
    admission::{RETRY_AFTER, Shared},
    slot::Slot,
    ticket::{Displaced, Half, Ticket},
};
use bytes::Bytes;
use http::StatusCode;
use http_body::Frame;
use palisade_core::{BoxError, Phase, Rejection, Violation};
use std::{
    sync::Arc,
    task::{Context, Poll},
};

/// Answers for a request: the response future, then the response body. When it is dropped the
/// request is over, wherever its parts may be.
#[derive(Debug)]
pub(crate) enum Lease {
    /// Nothing to wait for so far, and so nothing shared.
    Slot(Slot),
    Ticket(TicketOwner),
}

/// The one handle whose drop ends the request.
#[derive(Debug)]
pub(crate) struct TicketOwner {
    pub(crate) ticket: Arc<Ticket>,
    /// Nobody has to be told any more that it was displaced.
    told: bool,
}

// === Lease ===

impl Lease {
    /// Whether the count ends at the response head, whatever follows.
    #[inline]
    pub(crate) fn releases_at_head(&self) -> bool {
        match self {
            Self::Slot(slot) => slot.shared().is_some_and(|shared| shared.release_at_head),
            Self::Ticket(owner) => owner.ticket.shared.release_at_head,
        }
    }

    /// Whether the request is a `CONNECT`: a success makes a tunnel of it.
    #[inline]
    pub(crate) fn asks_for_tunnel(&self) -> bool {
        match self {
            Self::Slot(slot) => slot.connect,
            Self::Ticket(owner) => owner.ticket.about.connect,
        }
    }

    #[inline]
    pub(crate) fn ticket(&self) -> Option<&Arc<Ticket>> {
        match self {
            Self::Slot(_) => None,
            Self::Ticket(owner) => Some(&owner.ticket),
        }
    }

    /// Ready once the request holds a slot.
    pub(crate) fn poll_work(&self, cx: &Context<'_>) -> Poll<Result<(), Displaced>> {
        match self {
            Self::Slot(_) => Poll::Ready(Ok(())),
            Self::Ticket(owner) => owner.ticket.poll_work(Half::Answer, cx),
        }
    }

    /// `bytes` were handed on, and nothing is left to do until the client asks for more.
    pub(crate) fn wait_for_client(&mut self, bytes: u64, cx: &Context<'_>) {
        if let Self::Slot(slot) = self {
            // A slot beyond the limit is kept: there is no line for it.
            if slot.is_picked() {
                return;
            }
            let about = slot.about();
            let Some(ticket) = Ticket::working(slot, about) else { return };
            *self = Self::Ticket(TicketOwner::new(ticket));
        }
        if let Self::Ticket(owner) = self {
            owner.ticket.progressed(bytes);
            // Whether it was displaced at once shows when it is asked for more.
            let _ = owner.ticket.wait_for_client(Half::Answer, cx);
        }
    }

    /// The end of a response that has to go: an error, or trailers in gRPC.
    pub(crate) fn cut(&mut self) -> Option<Result<Frame<Bytes>, BoxError>> {
        match self {
            Self::Slot(_) => None,
            Self::Ticket(owner) => Some(owner.cut()),
        }
    }
}

// === TicketOwner ===

impl TicketOwner {
    pub(crate) fn new(ticket: Arc<Ticket>) -> Self {
        Self { ticket, told: false }
    }

    /// The answer to a request that has to go for `violation`.
    pub(crate) fn refuse(
        &mut self,
        violation: Violation,
        status: StatusCode,
    ) -> (Arc<Shared>, Rejection) {
        let Ticket { shared, about, .. } = &*self.ticket;
        let mut rejection = Rejection::new(violation, status, about.form);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            rejection = rejection.retry_after(RETRY_AFTER);
        }
        // Only a guard that enforces queues or displaces, so there is no verdict to ask for.
        shared.settings.refuse(&rejection, about.conn.as_deref());
        self.told = true;
        (shared.clone(), rejection)
    }

    /// It was displaced, but its answer is ready and goes out all the same.
    pub(crate) fn forgive(&mut self) {
        self.told = true;
    }

    fn cut(&mut self) -> Result<Frame<Bytes>, BoxError> {
        let violation = self.ticket.displacement(Phase::ResponseBody);
        let Ticket { shared, about, .. } = &*self.ticket;
        shared.settings.cut(&violation, about.conn.as_deref());
        self.told = true;
        violation.ending(about.form)
    }
}

impl Drop for TicketOwner {
    fn drop(&mut self) {
        let slots = self.ticket.slots();
        let mut before = slots.take_out(&self.ticket);
        if let Some(extra) = &mut before.extra {
            if before.worked {
                extra.pause(slots);
            }
            slots.finish(extra);
        }
        if before.worked {
            slots.release();
        }
        // Nobody asked again for the body that was cut.
        if before.displaced && !self.told {
            let _ = self.cut();
        }
        before.leave();
    }
}
