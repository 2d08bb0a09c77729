//! Strikes for refusals of other guards.

use crate::ban::Ban;
use palisade_core::{Event, Metrics, Mode};

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
        let strikes = self.shared.strikes_for.get(reason as usize);
        let strikes = strikes.copied().unwrap_or_default();
        if strikes == 0 || mode != Mode::Enforce {
            return;
        }
        if let Some(client) = self.client_of_event(client, conn) {
            self.strike_for(&client, strikes, Some(reason));
        }
    }
}
