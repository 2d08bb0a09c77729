//! The options of one layer.

use crate::limiter::{FairShare, Limiter, Rules};
use palisade_core::{ClientKey, KeyExtractor, KeyOutcome, Mode, RequestHead};
use palisade_guard::{Keys, Settings};
use std::{fmt, sync::Arc, time::Duration};

/// Options of one layer, and the limiter that its clones share.
#[derive(Clone)]
pub struct Options {
    pub(crate) settings: Settings,
    pub(crate) limiter: Arc<Limiter>,
    /// So many requests may be present. 0: as many as usual.
    pub(crate) max_present: usize,
    pub(crate) is_fair: bool,
    pub(crate) release_at_head: bool,
    pub(crate) client: Arc<dyn KeyExtractor>,
    pub(crate) per_client: Option<usize>,
    pub(crate) picks: Option<Predicate>,
    pub(crate) max_picked: usize,
    pub(crate) queue: Option<Queue>,
}

/// Picks the requests that may have permits beyond the limit.
pub(crate) type Predicate = Arc<dyn Fn(&RequestHead<'_>) -> bool + Send + Sync>;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    pub(crate) waiters: usize,
    pub(crate) wait: Duration,
}

impl Options {
    /// What the limiter needs to know.
    pub(crate) fn rules(&self) -> Rules {
        let enforces = self.settings.mode != Mode::Shadow;
        Rules {
            max_present: self.max_present,
            enforces,
            is_fair: self.is_fair,
        }
    }

    pub(crate) fn client(&self, head: &RequestHead<'_>, keys: &mut Keys) -> Option<ClientKey> {
        match keys.get(&self.client, head) {
            KeyOutcome::Key(client) => Some(client),
            KeyOutcome::Exempt | KeyOutcome::Refuse => None,
        }
    }

    /// The accounts of clients, where they matter.
    #[inline]
    pub(crate) fn fair_share(&self) -> Option<&FairShare> {
        if self.is_fair {
            self.limiter.fair_share()
        } else {
            None
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("settings", &self.settings)
            .field("limit", &self.limiter.limit())
            .field("per_client", &self.per_client)
            .field("queue", &self.queue)
            .field("release_at_head", &self.release_at_head)
            .finish_non_exhaustive()
    }
}
