//! One request in flight.

use super::{
    state::{ConnState, REQUEST, UPLOAD, WAITING, count},
    totals::ConnTotals,
};
use palisade_core::{
    ClientKey, ConnInfo, Reason,
    shed::{LoadShedding, Shed},
};
use std::{
    num::NonZeroU64,
    sync::{Arc, atomic::Ordering::Relaxed},
};

/// A request that its client cancels within this time was not waited for.
const EARLY_MILLIS: u32 = 1000;

/// One request on a connection, from its head to the end of its response body. It ends when this
/// is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// A connection with a [`ConnState`].
    conn: Arc<ConnInfo>,
    /// When it began, by the coarse clock of the totals.
    begun: u32,
    /// The requests that its client had in flight then, with this one; 1 if its connection had no
    /// other.
    of_client: u32,
    /// The hash of the client, if the peer is a proxy.
    proxied: Option<NonZeroU64>,
    /// The bytes that its head is charged.
    head_bytes: u32,
    stage: Stage,
    is_upload: bool,
    is_waiting: bool,
    /// Whether the socket charges its body to the budget.
    is_charged_by_socket: bool,
    /// Whether it counts among those of all connections.
    is_in_totals: bool,
}

/// The limit that a request is over.
pub(crate) enum OverLimit {
    /// That on requests in flight: the limit and the number.
    InFlight((u64, u64)),
    /// Memory is short, or the runtime overloaded, and the request is outside of the share.
    Share(Shed),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The response head has not come.
    Handler,
    /// It has, or the handler failed.
    Responded,
    /// The response body has ended.
    Answered,
}

/// Returns what request tracking asks for each request on `conn`, so that a layer inside of it does
/// not ask again.
pub(crate) fn asked_for(conn: &ConnInfo) -> Option<&LoadShedding> {
    let state = conn.state_as::<ConnState>()?;
    // A connection may be marked before its first request, and no tracking be there.
    let is_asked = state.is_tracked() && state.requests() > 0;
    let totals = state.totals().filter(|_| is_asked)?;
    Some(&totals.memory.shedding)
}

impl InFlight {
    /// Counts a request whose head has arrived on `conn`. `proxied` is its client, if the peer is a
    /// proxy. Returns `None` if the connection is not one of a guard's.
    #[inline]
    pub(crate) fn begin(
        conn: Arc<ConnInfo>,
        http2: bool,
        proxied: Option<ClientKey>,
    ) -> Option<Self> {
        let state = conn.state_as::<ConnState>()?;
        // The key with the hash 0 is that of unknown clients, which have no share.
        let proxied = proxied.filter(|client| client.to_hash() != 0);
        state.set_protocol(http2);
        let is_alone = count(state.in_flight.fetch_add(REQUEST, Relaxed), REQUEST) == 0;
        let requests = match state.requests.fetch_add(1, Relaxed).checked_add(1) {
            Some(requests) => requests,
            None => {
                // After an overflow it must not look as if there had been no request.
                state.requests.store(u32::MAX, Relaxed);
                u32::MAX
            }
        };
        let (mut begun, mut of_client) = (0, 1);
        if let Some(totals) = state.totals() {
            of_client = match proxied {
                Some(client) => totals.begin_proxied(client),
                None => {
                    let all_of_client = totals.begin_request(conn.known_client_hash());
                    if is_alone { 1 } else { all_of_client }
                }
            };
            begun = totals.time();
            if totals.max_requests.is_some_and(|max| requests >= max) {
                state.begin_closing(Reason::MaxRequests);
            }
        }
        Some(Self {
            conn,
            begun,
            of_client,
            proxied: proxied.and_then(|client| NonZeroU64::new(client.to_hash())),
            head_bytes: 0,
            stage: Stage::Handler,
            is_upload: false,
            is_waiting: false,
            is_charged_by_socket: false,
            is_in_totals: true,
        })
    }

    /// Returns the request's connection.
    pub(crate) fn conn(&self) -> &Arc<ConnInfo> {
        &self.conn
    }

    /// Returns the state of the request's connection.
    #[inline]
    pub(crate) fn state(&self) -> &ConnState {
        let state = self.conn.state_as();
        state.expect("`begin` admits only connections with this state")
    }

    /// Returns the counters of all connections of the guard, if it watches.
    #[inline]
    pub(crate) fn totals(&self) -> Option<&Arc<ConnTotals>> {
        self.state().totals()
    }

    /// Notes that on HTTP/1 a body of `length` follows the head; `None` if only the body itself
    /// shows where it ends. Call it before the response.
    pub(crate) fn expect_body(&self, length: Option<u64>) {
        self.state().expect_body(length);
    }

    /// Notes that on HTTP/2 a body follows the head.
    pub(crate) fn set_upload(&mut self) {
        if !std::mem::replace(&mut self.is_upload, true) {
            self.state().in_flight.fetch_add(UPLOAD, Relaxed);
        }
    }

    /// Lets the socket charge what it reads to the budget, until the request ends. Only for HTTP/1:
    /// of several bodies at once the socket does not know which one ends.
    pub(crate) fn charge_by_socket(&mut self) {
        self.is_charged_by_socket = true;
        self.conn.set_charged_body(false); // Until a layer says so.
        self.state().set_charges_reads();
    }

    /// Notes that the response head has come, or that there will be none for another reason than
    /// the client. Without it the request may count as cancelled early.
    pub(crate) fn set_responded(&mut self) {
        self.stage = Stage::Responded;
    }

    /// Notes that the response was given completely. Without it the request counts as cancelled.
    pub(crate) fn set_answered(&mut self) {
        self.stage = Stage::Answered;
    }

    /// Returns the limit that this request is over, if it is.
    ///
    /// A client may have no more requests in flight than what it leaves of three quarters of the
    /// limit of all connections, and always one on each of its connections. Where peers are not
    /// clients, or have no address, only the limit of all connections applies.
    #[inline]
    pub(crate) fn over_limit(&self) -> Option<OverLimit> {
        let totals = self.totals()?;
        match totals.exceeded_in_flight(self.conn.peer().ip(), self.of_client) {
            Some(exceeded) => Some(OverLimit::InFlight(exceeded)),
            None => totals.shed(&self.conn).map(OverLimit::Share),
        }
    }

    /// Returns the limit on requests in flight and their number if this request is over that.
    #[cfg(test)]
    fn exceeded_limit(&self) -> Option<(u64, u64)> {
        match self.over_limit()? {
            OverLimit::InFlight(exceeded) => Some(exceeded),
            OverLimit::Share(_) => None,
        }
    }

    /// Charges the budget of the guard for the bytes of the head, until the request ends.
    ///
    /// # Errors
    ///
    /// If there is no room: the limit and the bytes that would be held.
    pub(crate) fn charge_head(&mut self, bytes: u64) -> Result<(), (u64, u64)> {
        if let Some(totals) = self.totals() {
            let charged = totals.charge_for(self.charged_client(totals), &self.conn, bytes);
            self.head_bytes = charged.map_err(|full| (full.limit, full.observed))?;
        }
        Ok(())
    }

    /// Stops counting the request among those of all connections, because it is refused for their
    /// number. Otherwise a client that does not read its refusals would use up with them the room
    /// that it was refused.
    pub(crate) fn leave_totals(&mut self) {
        if let Some(totals) = self.totals()
            && self.is_in_totals
        {
            self.end_in(totals);
            self.is_in_totals = false;
        }
    }

    /// Returns the hash of the client that is charged.
    fn charged_client(&self, totals: &ConnTotals) -> Option<u64> {
        let proxied = self.proxied.map(NonZeroU64::get);
        proxied.or_else(|| totals.charged_hash(&self.conn))
    }

    fn end_in(&self, totals: &ConnTotals) {
        match self.proxied {
            Some(client) => totals.end_proxied(client.get()),
            None => totals.end_request(self.conn.known_client_hash()),
        }
    }

    /// Notes on HTTP/2 whether more of the response is ready than the client takes.
    pub(crate) fn set_waiting(&mut self, is_waiting: bool) {
        if self.is_waiting == is_waiting {
            return;
        }
        self.is_waiting = is_waiting;
        let in_flight = &self.state().in_flight;
        if is_waiting {
            in_flight.fetch_add(WAITING, Relaxed);
        } else {
            in_flight.fetch_sub(WAITING, Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let state = self.state();
        if let Some(totals) = state.totals() {
            // A panic of the handler is not its client's cancellation.
            if self.stage == Stage::Handler
                && totals.time().wrapping_sub(self.begun) < EARLY_MILLIS
                && !std::thread::panicking()
            {
                let _ = state
                    .early
                    .fetch_update(Relaxed, Relaxed, |early| early.checked_add(1));
            }
            if self.is_in_totals {
                self.end_in(totals);
            }
            if self.head_bytes > 0 {
                let client = self.charged_client(totals);
                totals.give_back_for(client, &self.conn, self.head_bytes);
            }
        }
        if self.stage != Stage::Answered {
            state.cancelled.fetch_add(1, Relaxed);
        }
        state.request_ended(self.is_upload);
        let mut ended = REQUEST;
        if self.is_upload {
            ended += UPLOAD;
        }
        if self.is_waiting {
            ended += WAITING;
        }
        state.in_flight.fetch_sub(ended, Relaxed);
        if self.is_charged_by_socket {
            state.clear_charges_reads();
        }
    }
}

#[cfg(test)]
mod tests;
