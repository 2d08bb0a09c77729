//! Finds out whether a proxy stands in front of the server.

use crate::{connection::in_flight::InFlight, log};
use http::HeaderMap;

/// One request in this many is examined.
const EXAMINED_ONE_IN: u32 = 16;

/// Examines some of the requests for the headers of a proxy, and reports once if most have them.
/// Clients can write these headers themselves, so nothing but a report follows from them.
/// `requests` is the number of requests on this connection until now.
#[inline]
pub(super) fn examine(in_flight: &InFlight, requests: u32, headers: &HeaderMap) {
    // Counted over all connections: otherwise a health check that connects anew each time would
    // weigh more.
    let turn = (in_flight.conn().id() as u32).wrapping_add(requests);
    if turn.is_multiple_of(EXAMINED_ONE_IN) {
        count(in_flight, headers);
    }
}

#[cold]
fn count(in_flight: &InFlight, headers: &HeaderMap) {
    let Some(totals) = in_flight.totals() else {
        return;
    };
    if !totals.peers_are_clients
        || totals.trust.is_some()
        || in_flight.conn().known_client().is_none()
    {
        return;
    }
    let names = ["forwarded", "x-forwarded-for", "x-real-ip"];
    let is_forwarded = names.iter().any(|name| headers.contains_key(*name));
    if let Some(percent) = totals.examine(is_forwarded) {
        log::forwarded(&totals.recorder, percent);
    }
}
