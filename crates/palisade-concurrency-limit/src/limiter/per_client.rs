//! Number of requests that each client has present.

use palisade_core::ClientKey;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

/// Request counts by client. No more entries than such requests.
#[derive(Debug, Default)]
pub(crate) struct ClientCounts(Mutex<HashMap<ClientKey, usize>>);

/// One counted request of a client. Dropping it reduces the count.
#[derive(Debug)]
pub(crate) struct CountedRequest {
    counts: Arc<ClientCounts>,
    client: ClientKey,
}

impl ClientCounts {
    /// Counts one more request of `client`. Returns `None` if it has `max` already.
    pub(crate) fn try_count(
        self: &Arc<Self>,
        client: ClientKey,
        max: usize,
    ) -> Option<CountedRequest> {
        let mut counts = self.0.lock();
        let count = counts.entry(client).or_default();
        if *count >= max {
            // `max` may be 0, and then no entry may be left behind.
            if *count == 0 {
                counts.remove(&client);
            }
            return None;
        }
        *count += 1;
        drop(counts);
        Some(CountedRequest {
            counts: self.clone(),
            client,
        })
    }
}

impl Drop for CountedRequest {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.counts.0.lock().entry(self.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}
