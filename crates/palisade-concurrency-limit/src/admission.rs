//! Who gets a slot, and who does not.

use crate::{
    ledger::Ledger,
    lines::Rank,
    slot::{Counted, Extra, Share},
    slots::Slots,
};
use palisade_core::{
    ClientKey, Extracted, Guard, KeyExtractor, Mode, Phase, Reason, RequestHead, Violation,
};
use palisade_guard::Settings;
use std::{
    fmt,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

/// Picks the requests that may use the slots beyond the limit.
pub(crate) type Predicate = Arc<dyn Fn(&RequestHead<'_>) -> bool + Send + Sync>;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    pub(crate) waiters: usize,
    pub(crate) wait: Duration,
}

/// Options and state of one layer.
#[derive(Clone)]
pub struct Options {
    pub(crate) settings: Settings,
    pub(crate) slots: Arc<Slots>,
    /// 0: as [`Slots::usual_present`].
    pub(crate) max_present: usize,
    pub(crate) is_fair: bool,
    pub(crate) release_at_head: bool,
    pub(crate) client: Arc<dyn KeyExtractor>,
    pub(crate) per_client: Option<usize>,
    pub(crate) picks: Option<Predicate>,
    pub(crate) max_picked: usize,
    pub(crate) queue: Option<Queue>,
}

/// Why there is no slot, and how the request was counted before that showed.
pub(crate) struct Denied {
    pub(crate) violation: Violation,
    pub(crate) counted: Option<Counted>,
}

/// How long a refused client is asked to stay away.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

// === Options ===

impl Options {
    /// Whether verdicts are only recorded.
    pub(crate) fn only_watches(&self) -> bool {
        self.settings.mode == Mode::Shadow
    }

    pub(crate) fn client(&self, head: &RequestHead<'_>) -> Option<ClientKey> {
        match self.client.key(head) {
            Extracted::Key(client) => Some(client),
            Extracted::Exempt | Extracted::Refuse => None,
        }
    }

    #[inline]
    pub(crate) fn max_present(&self) -> usize {
        if self.max_present == 0 { self.slots.usual_present() } else { self.max_present }
    }

    /// The accounts of clients, where they matter.
    #[inline]
    pub(crate) fn ledger(&self) -> Option<&Ledger> {
        if self.is_fair { self.slots.ledger() } else { None }
    }

    /// A slot for the request with this head and what goes with it, or why there is none.
    #[inline(always)]
    pub(crate) fn admit(&self, head: &RequestHead<'_>) -> Result<Option<Box<Extra>>, Denied> {
        let mut extra = None;
        if let Some(max) = self.per_client {
            extra = self.enter(head, max)?;
        }
        let mut is_taken = self.take(head, &mut extra);
        if !is_taken && !self.slots.is_crowded() && self.slots.recall_all() {
            is_taken = self.take(head, &mut extra);
        }
        if !is_taken {
            let violation = over(Reason::Full, self.slots.limit());
            return Err(Denied { violation, counted: extra.and_then(|extra| extra.counted) });
        }
        if let Err(violation) = self.welcome() {
            match extra {
                None => self.slots.release(Share::Common),
                Some(extra) => self.slots.give_back(extra),
            }
            return Err(Denied { violation, counted: None });
        }
        Ok(extra)
    }

    /// Counts one more request of the client.
    #[inline(never)]
    fn enter(&self, head: &RequestHead<'_>, max: usize) -> Result<Option<Box<Extra>>, Denied> {
        let Some(client) = self.client(head) else { return Ok(None) };
        let Some(counted) = Counted::enter(&self.slots, client, max) else {
            return Err(Denied { violation: over(Reason::ClientFull, max), counted: None });
        };
        Ok(Some(Box::new(Extra { counted: Some(counted), ..Extra::default() })))
    }

    /// Lets one in that has got its first slot, if there is room for one more.
    #[inline]
    pub(crate) fn welcome(&self) -> Result<(), Violation> {
        let slots = &self.slots;
        let (present, max_present) = (slots.present(), self.max_present());
        slots.look_for_crowd(present, max_present);
        if present > max_present && !slots.make_room(max_present, !self.only_watches()) {
            return Err(over(Reason::Full, max_present));
        }
        slots.count_admitted();
        Ok(())
    }

    #[inline]
    fn take(&self, head: &RequestHead<'_>, extra: &mut Option<Box<Extra>>) -> bool {
        let slots = &*self.slots;
        match self.ledger() {
            Some(ledger) if slots.is_busy() => self.take_fairly(ledger, head, extra),
            _ => slots.take_any() || self.take_picked(head, extra),
        }
    }

    /// Slots are getting short: it matters who takes them.
    #[inline(never)]
    fn take_fairly(
        &self,
        ledger: &Ledger,
        head: &RequestHead<'_>,
        extra: &mut Option<Box<Extra>>,
    ) -> bool {
        let slots = &*self.slots;
        let client = self.client(head);
        let is_light = client.is_some_and(|client| ledger.is_light(client));
        let rank = if is_light { Rank::LightNewcomer } else { Rank::Newcomer };
        if is_light && slots.queued.load(SeqCst) > 0 && slots.has_room_for_light(true) {
            // Some waiting requests may be light by now, and come first.
            slots.grant();
        }
        let Some(share) = slots.take(rank, true) else { return self.take_picked(head, extra) };
        let extra = extra.get_or_insert_default();
        extra.share = share;
        extra.charge = client.map(|client| ledger.start(client));
        true
    }

    #[cold]
    fn take_picked(&self, head: &RequestHead<'_>, extra: &mut Option<Box<Extra>>) -> bool {
        let picked = self.picks.as_ref().is_some_and(|picks| picks(head))
            && self.slots.take_picked(self.max_picked);
        if picked {
            extra.get_or_insert_default().picked = true;
        }
        picked
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("settings", &self.settings)
            .field("limit", &self.slots.limit())
            .field("per_client", &self.per_client)
            .field("queue", &self.queue)
            .field("release_at_head", &self.release_at_head)
            .finish_non_exhaustive()
    }
}

/// One more than `max`.
pub(crate) fn over(reason: Reason, max: usize) -> Violation {
    let max = max as u64;
    let observed = max.saturating_add(1);
    Violation::new(Guard::ConcurrencyLimit, reason, Phase::RequestHead, max, observed)
}
