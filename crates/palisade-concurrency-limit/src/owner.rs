//! The handle whose drop ends a request with a ticket.

use crate::{slot::Share, ticket::Ticket};
use std::sync::{Arc, atomic::Ordering::Relaxed};

/// The one handle whose drop ends the request.
#[derive(Debug)]
pub struct TicketOwner {
    pub(crate) ticket: Arc<Ticket>,
}

impl TicketOwner {
    pub(crate) fn new(ticket: Arc<Ticket>) -> Self {
        Self { ticket }
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
            slots.release(before.extra.as_ref().map_or(Share::Common, |extra| extra.share));
        }
        // The body that was cut was not polled again.
        if before.displaced && !self.ticket.was_recorded.load(Relaxed) {
            self.ticket.record_cut();
        }
        before.leave();
    }
}
