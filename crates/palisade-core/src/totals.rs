//! What the connections of one guard have in common.

use crate::{ClientKey, Mode, Network, Recorder, sync::Mutex};
use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
};

/// The requests of clients are counted in so many places, at random: two that share one count together,
/// which costs them something only where there is hardly anything left.
const PLACES: usize = 4096;
/// So many requests are looked at before anything is said of them.
const LOOKED_AT: u32 = 128;
/// Above this part of them, of a hundred, a proxy is before the server.
const MOSTLY: u32 = 90;

/// What all connections of one guard count together, and how much of it there may be.
///
/// Each [`ConnInfo`](crate::ConnInfo) of the guard leads to it, so that whoever tells of a request
/// needs nothing else.
#[derive(Debug, Default)]
pub struct ConnTotals {
    /// Whether what is too much is refused. Defaults to [`Mode::Enforce`].
    pub mode: Mode,
    /// Hears of it. Defaults to no sink.
    pub recorder: Recorder,
    /// So many requests one connection may bring. Defaults to any number.
    pub max_requests: Option<u32>,
    /// So many requests may be in flight on all of them. Defaults to any number.
    pub max_in_flight: Option<usize>,
    /// Who is let in above that. Defaults to nobody.
    pub reserved: Arc<[Network]>,
    /// So many of them may be upgraded. Defaults to any number.
    pub max_upgraded: Option<usize>,
    /// Each peer counts as a client, so that a proxy among them is to be found out.
    /// Defaults to not.
    pub peers_are_clients: bool,
    in_flight: AtomicUsize,
    in_flight_by_client: OnceLock<Box<[AtomicU32]>>,
    upgraded: AtomicUsize,
    /// Those who have any, so that there are no more of them than upgraded connections.
    pub(crate) upgraded_by_client: Mutex<HashMap<ClientKey, u32>>,
    millis: AtomicU32,
    looked_at: AtomicU32,
    forwarded: AtomicU32,
    forwarded_percent: AtomicU32,
    is_proxy_told: AtomicBool,
}

impl ConnTotals {
    /// Requests in flight on all connections.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// Connections that are upgraded and count as such.
    pub fn upgraded(&self) -> usize {
        self.upgraded.load(Relaxed)
    }

    /// It is so many milliseconds since anything, by a clock that may wrap. Told from time to
    /// time by the guard, so that nobody else asks for the time.
    pub fn set_time(&self, millis: u32) {
        self.millis.store(millis, Relaxed);
    }

    /// One request in some was looked at, and said that it was forwarded or not. Returns, once, how
    /// many of a hundred do if that is more than nine in ten.
    pub fn look(&self, is_forwarded: bool) -> Option<u32> {
        let forwarded = self.forwarded.fetch_add(is_forwarded.into(), Relaxed);
        if self.looked_at.fetch_add(1, Relaxed) != LOOKED_AT - 1 {
            return None;
        }
        // Whoever counts between these two lines is forgotten, which does no harm.
        self.looked_at.store(0, Relaxed);
        self.forwarded.store(0, Relaxed);
        let forwarded = forwarded.saturating_add(is_forwarded.into());
        let percent = forwarded.min(LOOKED_AT) * 100 / LOOKED_AT;
        self.forwarded_percent.store(percent, Relaxed);
        (percent > MOSTLY && !self.is_proxy_told.swap(true, Relaxed)).then_some(percent)
    }

    /// How many of a hundred requests said that they were forwarded, of the latest that were
    /// looked at.
    pub fn forwarded_percent(&self) -> u32 {
        self.forwarded_percent.load(Relaxed)
    }

    pub(crate) fn time(&self) -> u32 {
        self.millis.load(Relaxed)
    }

    /// How many are in flight now of the client with this hash, or 1 where nobody counts that.
    #[inline]
    pub(crate) fn begin_request(&self, client: Option<u64>) -> u32 {
        self.in_flight.fetch_add(1, Relaxed);
        self.of(client)
            .map_or(1, |own| own.fetch_add(1, Relaxed).saturating_add(1))
    }

    #[inline]
    pub(crate) fn end_request(&self, client: Option<u64>) {
        self.in_flight.fetch_sub(1, Relaxed);
        if let Some(own) = self.of(client) {
            own.fetch_sub(1, Relaxed);
        }
    }

    /// Whether one request more than may be is in flight for `peer`, whose client has `own`: how
    /// many may be, and how many are.
    #[inline]
    pub(crate) fn over_in_flight(&self, peer: IpAddr, own: u32) -> Option<(u64, u64)> {
        let over = over(self.max_in_flight?, self.in_flight(), own as usize)?;
        let is_reserved = self.reserved.iter().any(|network| network.contains(peer));
        (!is_reserved).then_some(over)
    }

    /// The requests of `client`, and of whoever falls into the same place.
    #[inline]
    fn of(&self, client: Option<u64>) -> Option<&AtomicU32> {
        let client = client.filter(|_| self.peers_are_clients)?;
        let places = self
            .in_flight_by_client
            .get_or_init(|| (0..PLACES).map(|_| AtomicU32::new(0)).collect());
        places.get(client as usize % PLACES)
    }

    /// Fails with how many may be upgraded, and how many would be. Where peers are clients, one of
    /// them may have no more than it leaves, as of requests.
    pub(crate) fn begin_upgraded(&self, client: Option<ClientKey>) -> Result<(), (u64, u64)> {
        let all = self.upgraded.fetch_add(1, Relaxed).saturating_add(1);
        let own = client
            .filter(|_| self.peers_are_clients)
            .map_or(1, |client| {
                let mut by_client = self.upgraded_by_client.lock();
                let own = by_client.entry(client).or_insert(0);
                *own += 1;
                *own
            });
        let over = self
            .max_upgraded
            .and_then(|most| over(most, all, own as usize));
        over.map_or(Ok(()), Err)
    }

    pub(crate) fn end_upgraded(&self, client: Option<ClientKey>) {
        self.upgraded.fetch_sub(1, Relaxed);
        if let Some(client) = client
            && let Entry::Occupied(mut own) = self.upgraded_by_client.lock().entry(client)
        {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

/// Whether one more than may be is there, of `all` of which one has `own`: how many may be, and how
/// many are.
///
/// The last quarter is for who has no other. Of the rest one may have no more than he leaves
/// (dynamic thresholds, as of the buffers of a switch: Choudhury and Hahne, 1998): alone half of it,
/// beside ten that ask for all they can get a twelfth.
#[inline]
fn over(most: usize, all: usize, own: usize) -> Option<(u64, u64)> {
    if all > most {
        return Some((most as u64, all as u64));
    }
    let left = (most - most / 4).saturating_sub(all);
    (own > 1 && own > left).then_some((left.max(1) as u64, own as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_told_of_once_and_not_for_a_few() {
        let totals = ConnTotals::default();
        let round = |forwarded: u32| {
            (0..LOOKED_AT)
                .filter_map(|n| totals.look(n < forwarded))
                .collect::<Vec<_>>()
        };
        assert_eq!((round(0), totals.forwarded_percent()), (vec![], 0));
        assert_eq!((round(115), totals.forwarded_percent()), (vec![], 89));
        assert_eq!((round(117), totals.forwarded_percent()), (vec![91], 91));
        assert_eq!((round(128), totals.forwarded_percent()), (vec![], 100));
        assert_eq!((round(64), totals.forwarded_percent()), (vec![], 50));
    }
}
