//! What one request holds: on the side of its response, with its body, and what both sides see.

use crate::{
    admission::Options,
    owner::TicketOwner,
    slot::Extra,
    ticket::{About, Ticket},
};
use bytes::Bytes;
use http_body::Frame;
use palisade_core::{BoxError, ClientKey};
use palisade_guard::Facts;
use parking_lot::Mutex;
use std::{
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::Duration,
};

/// What a request holds on the side of its response.
#[derive(Debug, Default)]
pub enum Held {
    /// Nothing.
    #[default]
    Nothing,
    /// A slot, and nothing to wait for so far.
    Slot(Option<Box<Extra>>),
    /// What both sides share has the slot, or the ticket.
    Shared,
    /// A ticket.
    Ticket(TicketOwner),
    /// A place in the queue.
    Queued(Box<Queued>),
}

/// A newcomer in the queue.
#[derive(Debug)]
pub struct Queued {
    pub(crate) owner: TicketOwner,
    pub(crate) wait: Duration,
}

/// What both sides of a request see.
#[derive(Debug)]
pub struct Common {
    /// Made when the request waits for the first time.
    pub(crate) ticket: OnceLock<Arc<Ticket>>,
    pub(crate) early: Mutex<Early>,
    pub(crate) client: Option<ClientKey>,
    /// The response is a gRPC stream, or may be.
    pub(crate) streams: AtomicBool,
}

/// What the ticket begins with, until there is one.
#[derive(Debug, Default)]
pub(crate) struct Early {
    pub(crate) slot: Option<Option<Box<Extra>>>,
    pub(crate) head_out: bool,
    pub(crate) body_gone: bool,
}

/// What goes with the request body.
#[derive(Debug)]
pub struct Upload {
    /// What came while there was no slot: boxed, because that is rare and a frame is large.
    pub(crate) stash: Option<Box<Stash>>,
    /// Bytes that were handed on since the ticket was told last.
    pub(crate) progress: u64,
    pub(crate) stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing looks at the body.
    Unwatched,
    /// What comes is handed on while the request holds a slot.
    Watched,
    /// A frame is in the stash.
    Holding,
    /// The request had to go.
    Cut,
}

/// A frame, an error or the end of a body.
pub(crate) type Stash = Option<Result<Frame<Bytes>, BoxError>>;

// === Common ===

impl Common {
    #[inline]
    pub(crate) fn known(&self) -> Option<&Arc<Ticket>> {
        self.ticket.get()
    }

    /// The ticket, made if need be. `None` if the request is over.
    #[inline]
    pub(crate) fn ticket(&self, options: &Arc<Options>, facts: &Facts) -> Option<&Arc<Ticket>> {
        if self.ticket.get().is_none() {
            self.make_ticket(options, facts);
        }
        self.ticket.get()
    }

    #[inline(never)]
    fn make_ticket(&self, options: &Arc<Options>, facts: &Facts) {
        let mut early = self.early.lock();
        if let Some(extra) = early.slot.take() {
            let (about, options) = (about(facts, self.client), options.clone());
            let ticket = Ticket::working(options, about, extra, early.head_out, early.body_gone);
            let _ = self.ticket.set(ticket);
        }
    }

    /// From here on only the response asks for slots.
    #[inline]
    pub(crate) fn head_is_out(&self) {
        self.early.lock().head_out = true;
        if let Some(ticket) = self.known() {
            ticket.head_is_out();
        }
    }

    #[inline]
    pub(crate) fn body_is_gone(&self) {
        self.early.lock().body_gone = true;
        if let Some(ticket) = self.known() {
            ticket.body_is_gone();
        }
    }
}

pub(crate) fn about(facts: &Facts, client: Option<ClientKey>) -> About {
    About { conn: facts.conn.clone(), client }
}

// === Held ===

impl Held {
    #[inline]
    pub(crate) fn ticket<'a>(&'a self, common: Option<&'a Common>) -> Option<&'a Arc<Ticket>> {
        match self {
            Self::Ticket(owner) => Some(&owner.ticket),
            Self::Shared => common.and_then(Common::known),
            Self::Nothing | Self::Slot(_) | Self::Queued(_) => None,
        }
    }
}
