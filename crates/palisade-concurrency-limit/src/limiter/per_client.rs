//! How many requests each client has present.

use palisade_core::ClientKey;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

/// Counts requests by client. No longer than there are such requests.
#[derive(Debug, Default)]
pub(crate) struct PerClient(Mutex<HashMap<ClientKey, usize>>);

/// One of the requests that a client has present, until it is dropped.
#[derive(Debug)]
pub(crate) struct ClientCount {
    counts: Arc<PerClient>,
    client: ClientKey,
}

impl PerClient {
    /// Counts one more request of `client`. `None` if it has `max` already.
    pub(crate) fn enter(self: &Arc<Self>, client: ClientKey, max: usize) -> Option<ClientCount> {
        let mut counts = self.0.lock();
        let count = counts.entry(client).or_default();
        if *count >= max {
            // `max` may be 0, and then nothing may be left behind.
            if *count == 0 {
                counts.remove(&client);
            }
            return None;
        }
        *count += 1;
        drop(counts);
        Some(ClientCount {
            counts: self.clone(),
            client,
        })
    }
}

impl Drop for ClientCount {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.counts.0.lock().entry(self.client) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}
