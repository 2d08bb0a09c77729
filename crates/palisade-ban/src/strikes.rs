//! Strikes for refusals of other guards.

use crate::ban::{Ban, client_of_conn};
use palisade_core::{ConnInfo, Event, Metrics, Mode};
use std::sync::atomic::Ordering::Relaxed;

/// Holds refusals against their clients, for the reasons that
/// [`BanBuilder::strike_for`](crate::BanBuilder::strike_for) selects: give a clone to the
/// `metrics` of the other guards. What a guard in [`Mode::Shadow`] would have refused counts for
/// nothing.
impl Metrics for Ban {
    fn record(&self, event: &Event<'_>) {
        let (violation, mode, conn, client) = match *event {
            Event::Refused {
                rejection,
                mode,
                conn,
                client,
                ..
            } => (rejection.violation(), mode, conn, client),
            Event::Cut {
                violation,
                mode,
                conn,
                client,
                ..
            } => (violation, mode, conn, client),
            Event::Disconnected {
                violation,
                mode,
                conn,
                ..
            } => (violation, mode, Some(conn), None),
            _ => return,
        };
        let reason = violation.reason;
        let strikes = self.shared.strikes_for[reason as usize];
        if strikes == 0 || mode != Mode::Enforce {
            return;
        }
        let ignores_peers = self.shared.ignores_peers.load(Relaxed);
        let is_client = |conn: &&ConnInfo| !ignores_peers || conn.is_proxied();
        let peer = || conn.filter(is_client).and_then(client_of_conn);
        if let Some(client) = client.copied().or_else(peer) {
            self.strike_for(&client, strikes, Some(reason));
        }
    }
}
