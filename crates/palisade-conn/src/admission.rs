//! Who is let in, and who has to go for it.

use crate::{
    ClosedConn,
    guard::{Shared, Spared},
    judge::{CLASSES, DID_SOMETHING, EXCESS, End, Rank, is_newcomer, phase, spare},
    limits::Limits,
    permit::Permit,
    registry::{Found, Share, Shares},
    say,
    sweeper::SPARED,
};
use palisade_core::{
    CloseDecision, CloseMode, ConnInfo, Event, Guard, Mode, Phase, Reason, Violation,
};
use palisade_guard::Denied;
use std::sync::{
    Arc,
    atomic::Ordering::{Relaxed, SeqCst},
};

/// Where nobody is kept ready for sparing, so many connections are looked at.
const LOOKED_AT: usize = 32;

/// A client that has so many connections, or whose network has four times as many, takes no place
/// of one that is idle and did something, and none of the last tenth.
const FEW: Shares = Shares {
    client: 4,
    network: 16,
};

/// Who wants a place that is another's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newcomer {
    /// He has a reserved one.
    is_reserved: bool,
    /// It has [`FEW`] already.
    has_many: bool,
}

/// Why somebody was not let in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NotIn {
    /// Perhaps in a moment: connections are about to go.
    NotYet,
    Refused(Violation),
}

impl Newcomer {
    /// Whether one of this class goes for him.
    fn is_worth(self, class: u8) -> bool {
        let did_something = DID_SOMETHING.contains(&(class % CLASSES));
        (self.is_reserved || class < CLASSES) && !(self.has_many && did_something)
    }
}

impl Shared {
    /// Charges the client and its network for one connection.
    pub(crate) fn check_rate(&self, conn: &ConnInfo, is_told: bool) -> Result<(), Violation> {
        let Some(table) = &self.rates else {
            return Ok(());
        };
        if !is_told || self.limits.mode == Mode::Off || self.is_reserved_for(conn) {
            return Ok(());
        }
        let Limits {
            accept_rate,
            accept_rate_per_network,
            ..
        } = self.limits;
        // Another account, because a client may be the first of its network.
        let network = self.registry.network_of(conn).account(1);
        let rates = [
            (conn.client(), accept_rate),
            (network, accept_rate_per_network),
        ];
        let rates = rates
            .into_iter()
            .filter_map(|(key, rate)| Some((key, rate?)));
        // One table has one largest debt.
        let max_debt = rates
            .clone()
            .map(|(_, rate)| rate.max_debt())
            .max()
            .unwrap_or(1);
        let now = self.clock.now();
        for (key, rate) in rates {
            let charge = |debt| rate.decide(debt, 1).map(|debt| ((), debt));
            let wait = match table.update(key, now, max_debt, charge) {
                Some(Ok(())) => continue,
                Some(Err(Denied::Wait(micros))) => micros.div_ceil(1000),
                // Or others got eight decisions for the same key meanwhile.
                Some(Err(Denied::Never)) | None => 1,
            };
            return self.not_in(Reason::AcceptRate, 0, wait, conn);
        }
        Ok(())
    }

    /// Lets `conn` in if there is a place, or one can be had. `evict` the first time only.
    pub(crate) fn enter(
        self: &Arc<Self>,
        conn: &Arc<ConnInfo>,
        is_told: bool,
        evict: bool,
    ) -> Result<Permit, NotIn> {
        if self.limits.mode == Mode::Off {
            return Ok(Permit::off(self.clone(), conn.clone()));
        }
        let now = self.now();
        let is_enforced = self.limits.mode == Mode::Enforce;
        let is_reserved = is_told && self.is_reserved_for(conn);
        let most = self.limits.most(is_reserved);
        let open = self.open.load(SeqCst);
        let shares = self.limits.shares(open).filter(|_| is_told && !is_reserved);
        let next = open.saturating_add(1);
        // Who has his share already pays with one of his own, and nobody else does.
        let has_his_share = || shares.is_some_and(|shares| self.registry.has(conn, shares));
        if evict && next > self.limits.soft() && !has_his_share() {
            let has_many = shares.is_some_and(|_| self.registry.has(conn, FEW));
            // Where the tasks of those that were told to go do not run, each newcomer that waits in
            // vain would cost one more connection, and in the end the useful ones.
            let staying = next.saturating_sub(self.going.load(Relaxed));
            let may_evict = staying > self.limits.soft() / 2;
            let newcomer = Newcomer {
                is_reserved,
                has_many,
            };
            // Nothing can be spared: what is left is for clients that have few.
            if !(may_evict && self.evict(next, newcomer)) && has_many {
                let limit = self.limits.soft() as u64;
                self.not_in(Reason::ConnectionsFull, limit, next as u64, conn)
                    .map_err(NotIn::Refused)?;
            }
        }
        let one_more = |open| (open < most || !is_enforced).then_some(open + 1);
        let before = match self.open.fetch_update(SeqCst, SeqCst, one_more) {
            Err(_) if self.going.load(Relaxed) > 0 => return Err(NotIn::NotYet),
            // In shadow mode nobody is kept out.
            Ok(before) | Err(before) => before,
        };
        let open = before.saturating_add(1);
        if open > most {
            self.not_in(Reason::ConnectionsFull, most as u64, open as u64, conn)
                .map_err(NotIn::Refused)?;
        }
        let most = |share| match (share, shares) {
            (Share::Client, Some(shares)) => u64::from(shares.client),
            (Share::Network, Some(shares)) => u64::from(shares.network),
            (_, None) => 0,
        };
        let entered = self.registry.enter(conn, now, shares).or_else(|full| {
            let observed = u64::from(full.connections).saturating_add(1);
            let reason = match full.share {
                Share::Client => Reason::ClientConnectionsFull,
                Share::Network => Reason::NetworkConnectionsFull,
            };
            self.not_in(reason, most(full.share), observed, conn)
                .map_err(NotIn::Refused)?;
            // In shadow mode nobody is kept out.
            let any = Shares {
                client: u32::MAX,
                network: u32::MAX,
            };
            self.registry
                .enter(conn, now, Some(any))
                .map_err(|_| NotIn::NotYet)
        });
        let (place, spared) = entered.inspect_err(|_| _ = self.open.fetch_sub(1, SeqCst))?;
        // From here on dropping it undoes everything, whatever the metrics do.
        let permit = Permit::new(self.clone(), conn.clone(), place);
        if let Some((share, Found { conn, .. })) = spared {
            self.close_evicted(&conn, most(share), most(share).saturating_add(1));
        }
        self.opened.fetch_add(1, Relaxed);
        self.recorder.record(|| Event::opened(conn));
        self.sweeper.watch(self, open == 1);
        Ok(permit)
    }

    pub(crate) fn is_reserved_for(&self, conn: &ConnInfo) -> bool {
        self.limits.is_reserved_for(conn.peer().ip())
    }

    /// What whoever is not let in is told in the end.
    pub(crate) fn refused(&self, not_in: NotIn, conn: &ConnInfo) -> Violation {
        match not_in {
            NotIn::Refused(violation) => violation,
            NotIn::NotYet => {
                let limit = self.limits.most(self.is_reserved_for(conn)) as u64;
                let (reason, phase) = (Reason::ConnectionsFull, Phase::Accept);
                let observed = limit.saturating_add(1);
                let violation = Violation::new(Guard::Connection, reason, phase, limit, observed);
                self.tell(&violation, self.limits.mode, conn);
                violation
            }
        }
    }

    /// `Ok` in shadow mode.
    fn not_in(
        &self,
        reason: Reason,
        limit: u64,
        observed: u64,
        conn: &ConnInfo,
    ) -> Result<(), Violation> {
        let violation = Violation::new(Guard::Connection, reason, Phase::Accept, limit, observed);
        self.tell(&violation, self.limits.mode, conn);
        if self.limits.mode == Mode::Enforce {
            Err(violation)
        } else {
            Ok(())
        }
    }

    fn tell(&self, violation: &Violation, mode: Mode, conn: &ConnInfo) {
        if violation.phase == Phase::Accept && mode == Mode::Enforce {
            self.refused.fetch_add(1, Relaxed);
            say::load_test(violation, conn);
        }
        self.recorder
            .record(|| Event::disconnected(violation, mode, conn));
        self.kills.add(ClosedConn::new(violation, mode, conn));
    }

    /// Ends the connection, if that is not decided yet; in shadow mode only says so, once, unless
    /// it is the server that ends.
    pub(crate) fn end(&self, conn: &ConnInfo, end: End) -> bool {
        let End {
            reason,
            ending,
            phase,
            limit,
            observed,
        } = end;
        let mode = match (self.limits.mode, reason) {
            (Mode::Off, _) => return false,
            (_, Reason::Shutdown) => Mode::Enforce,
            (mode, _) => mode,
        };
        let is_first = if mode == Mode::Enforce {
            // Counted first: its socket counts it off. A verdict that a handler passed through the
            // state of its connection counts for nothing.
            let state = conn.state();
            if state.set_going() {
                self.going.fetch_add(1, Relaxed);
            }
            let is_first = state.end(CloseDecision { reason, ending });
            if state.is_gone() && state.take_going() {
                self.going.fetch_sub(1, Relaxed);
            }
            is_first
        } else {
            !conn.state().swap_shadowed()
        };
        let is_announced = matches!(reason, Reason::Idle | Reason::CancelledRequests)
            && conn.state().closing() == Some(reason);
        if is_first && !is_announced {
            let violation = Violation::new(Guard::Connection, reason, phase, limit, observed);
            self.tell(&violation, mode, conn);
        }
        is_first
    }

    /// Has the client told to begin no more requests, and tells of it as of an end for this reason.
    pub(crate) fn announce(&self, conn: &ConnInfo, end: End) {
        let End {
            reason,
            phase,
            limit,
            observed,
            ..
        } = end;
        let is_first = match self.limits.mode {
            Mode::Off => false,
            Mode::Shadow => !conn.state().swap_shadowed(),
            Mode::Enforce => conn.state().close(reason),
        };
        if is_first {
            let violation = Violation::new(Guard::Connection, reason, phase, limit, observed);
            self.tell(&violation, self.limits.mode, conn);
        }
    }

    fn close_evicted(&self, conn: &ConnInfo, limit: u64, observed: u64) -> bool {
        let sample = conn.state().sample();
        let phase = phase(&sample);
        let reason = Reason::ConnectionEvicted;
        // What waits for a client that does not read would wait in the kernel, and half a response
        // is not to look like a whole one.
        let is_cut = phase == Phase::Writing || sample.in_flight > 0;
        let ending = if is_cut {
            CloseMode::Reset
        } else {
            CloseMode::Graceful
        };
        self.end(
            conn,
            End {
                reason,
                ending,
                phase,
                limit,
                observed,
            },
        )
    }

    /// Parts with the least useful connection. `false` if there is none that can be spared for this
    /// one.
    pub(crate) fn evict(&self, open: usize, newcomer: Newcomer) -> bool {
        let limit = self.limits.soft() as u64;
        let now = self.now();
        let many = self.many_newcomers.load(Relaxed);
        while let Some(Spared {
            class,
            opened,
            conn,
        }) = self.next_spared(newcomer)
        {
            let Some(conn) = conn.upgrade() else { continue };
            let rank = self.rank(&conn, now.saturating_sub(opened), many);
            let is_still = if class == EXCESS {
                self.is_above_its_share(&conn)
            } else {
                rank.is_some_and(|(now, ..)| now <= class)
            };
            if is_still && self.close_evicted(&conn, limit, open as u64) {
                return true;
            }
        }
        self.evict_of_few(limit, open, 0, newcomer)
    }

    /// The same where there are no files left, for somebody who may not even be there: Linux says
    /// so before it looks if anybody waits. So nobody goes who has only just come.
    pub(crate) fn evict_for_file(&self) -> bool {
        const AT_LEAST: u64 = 1000;
        let open = self.open.load(Relaxed);
        let anybody = Newcomer {
            is_reserved: true,
            has_many: false,
        };
        self.evict_of_few(open.saturating_sub(1) as u64, open, AT_LEAST, anybody)
    }

    /// Parts with the least useful of a few that are at least so many milliseconds old.
    fn evict_of_few(&self, limit: u64, open: usize, at_least: u64, newcomer: Newcomer) -> bool {
        let now = self.now();
        let turn = self.turn.fetch_add(1, Relaxed);
        let mut few = Vec::with_capacity(LOOKED_AT);
        self.registry.copy_few(turn, LOOKED_AT, &mut few);
        let aged = few
            .iter()
            .map(|one| (&one.conn, now.saturating_sub(one.opened)));
        let newcomers = aged
            .clone()
            .filter(|(conn, age)| is_newcomer(&conn.state().sample(), *age));
        let many = 2 * newcomers.count() > few.len();
        let ranked = aged.filter(|(_, age)| *age >= at_least);
        let ranked = ranked.filter_map(|(conn, age)| Some((self.rank(conn, age, many)?, conn)));
        let ranked = ranked.filter(|((class, ..), _)| newcomer.is_worth(*class));
        let best = ranked.min_by_key(|(rank, _)| *rank);
        best.is_some_and(|(_, conn)| self.close_evicted(conn, limit, open as u64))
    }

    fn next_spared(&self, newcomer: Newcomer) -> Option<Spared> {
        let (next, left) = {
            let mut spared = self.spared.lock();
            let next = spared
                .iter()
                .rposition(|spared| newcomer.is_worth(spared.class));
            (next.map(|at| spared.remove(at)), spared.len())
        };
        if left < SPARED / 4 {
            self.sweeper.hurry();
        }
        next
    }

    /// Whether the client of `conn`, or its network, has more than its share where places are
    /// short.
    fn is_above_its_share(&self, conn: &ConnInfo) -> bool {
        self.limits
            .least_shares()
            .is_some_and(|Shares { client, network }| {
                let (client, network) = (client.saturating_add(1), network.saturating_add(1));
                self.registry.has(conn, Shares { client, network })
            })
    }

    /// Its rank among those that can be spared; not if it is told to go already.
    pub(crate) fn rank(&self, conn: &ConnInfo, age: u64, many: bool) -> Option<Rank> {
        let state = conn.state();
        if state.verdict().is_some() {
            return None;
        }
        let (class, work, oldest_first) = spare(&state.sample(), age, many)?;
        let is_reserved = self.is_reserved_for(conn);
        Some((
            if is_reserved { class + CLASSES } else { class },
            work,
            oldest_first,
        ))
    }
}
