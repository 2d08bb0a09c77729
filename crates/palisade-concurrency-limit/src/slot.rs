//! A slot that somebody holds, and what may go with it.

use crate::{admission::Shared, ledger::Charge, slots::Slots, ticket::About};
use http::{Method, Request};
use http_body::Body;
use palisade_core::{AnswerForm, ClientKey, ConnInfo, Settings};
use std::sync::Arc;

/// One slot, given back when dropped, and whatever else goes with the request.
#[derive(Debug)]
pub(crate) struct Slot {
    /// `None` once somebody else has taken over.
    shared: Option<Arc<Shared>>,
    extra: Option<Box<Extra>>,
    /// Whose request it is, where somebody listens.
    conn: Option<Arc<ConnInfo>>,
    form: AnswerForm,
    /// The request is a `CONNECT`.
    pub(crate) connect: bool,
}

/// What only some requests have.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// Its account, if slots were getting short when it came.
    pub(crate) charge: Option<Charge>,
    /// Held for its drop.
    pub(crate) counted: Option<Counted>,
    /// Holds a slot of those beyond the limit.
    pub(crate) picked: bool,
}

/// One of the requests that a client has present, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    slots: Arc<Slots>,
    client: ClientKey,
}

// === Slot ===

impl Slot {
    /// The slot that was just taken from those of `shared`.
    #[inline]
    pub(crate) fn new(shared: Arc<Shared>, extra: Option<Box<Extra>>) -> Self {
        let form = AnswerForm::Http { close: false };
        Self { shared: Some(shared), extra, conn: None, form, connect: false }
    }

    /// Takes note of whose it is, in case that its answer has to be cut.
    #[inline]
    pub(crate) fn belongs_to<B: Body>(&mut self, request: &Request<B>, settings: &Settings) {
        self.form = AnswerForm::of(request);
        self.conn = settings.conn(request.extensions());
        self.connect = request.method() == Method::CONNECT;
    }

    /// Hands the slot and all that goes with it to somebody else.
    #[inline]
    pub(crate) fn hand_over(&mut self) -> Option<(Arc<Shared>, Option<Box<Extra>>)> {
        Some((self.shared.take()?, self.extra.take()))
    }

    /// What is known of the request now that its head is gone.
    pub(crate) fn about(&mut self) -> About {
        let charge = self.extra.as_ref().and_then(|extra| extra.charge.as_ref());
        let client = charge.map(Charge::client);
        About { form: self.form, client, conn: self.conn.take(), connect: self.connect }
    }

    #[inline]
    pub(crate) fn shared(&self) -> Option<&Arc<Shared>> {
        self.shared.as_ref()
    }

    /// Whether it is one of those beyond the limit.
    #[inline]
    pub(crate) fn is_picked(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.picked)
    }
}

impl Drop for Slot {
    #[inline]
    fn drop(&mut self) {
        let Some(shared) = &self.shared else { return };
        match self.extra.take() {
            None => shared.slots.release(),
            Some(extra) => shared.slots.give_back(extra),
        }
    }
}

// === Extra ===

impl Extra {
    /// The request stops working, for now or for good.
    pub(crate) fn pause(&mut self, slots: &Slots) {
        if let (Some(charge), Some(ledger)) = (&mut self.charge, slots.ledger()) {
            ledger.pause(charge);
        }
    }
}

// === Counted ===

impl Counted {
    /// Counts one more request of `client`. `None` if it has `max` already.
    pub(crate) fn enter(slots: &Arc<Slots>, client: ClientKey, max: usize) -> Option<Self> {
        slots.enter(client, max).then(|| Self { slots: slots.clone(), client })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.slots.exit(self.client);
    }
}
