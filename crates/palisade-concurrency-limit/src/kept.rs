//! Requests that wait for their clients and keep their slots meanwhile.
//!
//! To give a slot up and to take one again costs a lock each and a place in a line. While slots are
//! plentiful a request that waits keeps its own, which costs it one atomic operation each way.
//! It is listed here once, so that its slot can be recalled as soon as slots get short.

use crate::ticket::{Ticket, UNLISTED};
use parking_lot::Mutex;
use std::sync::{Arc, atomic::Ordering::SeqCst};

/// The requests that have kept their slots at some time, and are not over. Longer than the limit
/// only by those that were listed before slots got short.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Vec<Arc<Ticket>>>);

impl Kept {
    /// Lists `ticket`, unless it is listed.
    pub(crate) fn list(&self, ticket: &Arc<Ticket>) {
        let mut tickets = self.0.lock();
        // Its other half, in another task, may have listed it.
        if ticket.listed_at.load(SeqCst) == UNLISTED {
            ticket.listed_at.store(tickets.len(), SeqCst);
            tickets.push(ticket.clone());
            // Or have ended it: either that sees the place, or this sees the end.
            if ticket.is_over() {
                ticket.listed_at.store(UNLISTED, SeqCst);
                tickets.pop();
            }
        }
    }

    pub(crate) fn unlist(&self, ticket: &Ticket) {
        if ticket.listed_at.load(SeqCst) != UNLISTED {
            let mut tickets = self.0.lock();
            let place = ticket.listed_at.swap(UNLISTED, SeqCst);
            if place < tickets.len() {
                let unlisted = tickets.swap_remove(place);
                if let Some(moved) = tickets.get(place) {
                    moved.listed_at.store(place, SeqCst);
                }
                drop(tickets);
                drop(unlisted);
            }
        }
    }

    /// Those that keep their slots now.
    pub(crate) fn keeping(&self) -> Vec<Arc<Ticket>> {
        self.0.lock().iter().filter(|ticket| ticket.is_keeping()).cloned().collect()
    }

    /// How many keep their slots now.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().iter().filter(|ticket| ticket.is_keeping()).count()
    }
}
