//! Options of one layer.

use crate::limiter::{FairShare, Limiter, Rules};
use palisade_core::{ClientKey, KeyExtractor, KeyOutcome, Mode, RequestHead};
use palisade_guard::{Keys, Settings};
use std::{fmt, sync::Arc, time::Duration};

/// Options of one layer, and the limiter that its clones share.
#[derive(Clone)]
pub struct Options {
    pub(crate) settings: Settings,
    pub(crate) limiter: Arc<Limiter>,
    /// Maximum number of requests present. 0 stands for the default multiple of the limit.
    pub(crate) max_present: usize,
    pub(crate) is_fair: bool,
    pub(crate) release_at_head: bool,
    pub(crate) key_extractor: Arc<dyn KeyExtractor>,
    pub(crate) max_per_client: Option<usize>,
    pub(crate) reserve_predicate: Option<Predicate>,
    pub(crate) max_reserve_permits: usize,
    pub(crate) queue: Option<QueueOptions>,
}

/// Selects the requests that may take permits beyond the limit.
pub(crate) type Predicate = Arc<dyn Fn(&RequestHead<'_>) -> bool + Send + Sync>;

#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueOptions {
    pub(crate) max_waiters: usize,
    pub(crate) max_wait: Duration,
}

impl Options {
    /// The options that the limiter needs.
    pub(crate) fn rules(&self) -> Rules {
        let enforces = self.settings.mode != Mode::Shadow;
        Rules {
            max_present: self.max_present,
            enforces,
            is_fair: self.is_fair,
        }
    }

    pub(crate) fn client_key(&self, head: &RequestHead<'_>, keys: &mut Keys) -> Option<ClientKey> {
        match keys.get(&self.key_extractor, head) {
            KeyOutcome::Key(client) => Some(client),
            _ => None,
        }
    }

    /// The debts of clients, if this layer uses fairness.
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
            .field("per_client", &self.max_per_client)
            .field("queue", &self.queue)
            .field("release_at_head", &self.release_at_head)
            .finish_non_exhaustive()
    }
}
