//! Admission of new connections.

use crate::{
    connection::{
        ConnHandle,
        decision::CloseDecision,
        permit::Permit,
        registry::{Found, Place, Share},
    },
    eviction::{Claim, close_evicted, evict},
    guard::{
        close::report,
        limits::{Limits, Shares},
        shared::Shared,
    },
    sweep::task,
};
use palisade_core::{Event, Guard, Mode, Phase, Reason, Violation, shed::Shed};
use palisade_guard::Denied;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, SeqCst},
    },
};

/// The numbers of connections from which a client or a network has many. A client with many, or in
/// a network with many, gets no place of an idle connection that has worked, and none of the last
/// tenth of the places.
const MANY_CONNECTIONS: Shares = Shares {
    client: 4,
    network: 16,
};

/// The numbers of connections from which a client or a network has some. One that has gets no place
/// of a connection that is as useful as a new one, and none of the last twentieth of the places: a
/// client without a connection finds one, also where attackers of many addresses have few
/// connections each.
const SOME_CONNECTIONS: Shares = Shares {
    client: 1,
    network: 8,
};

/// Why a connection is not admitted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum AdmitError {
    /// It may be admitted in a moment: other connections are about to close.
    NotYet,
    /// It is refused.
    Refused(Violation),
}

/// The addresses of a connection whose header has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// The client, and the address that it connected to.
    Client {
        source: SocketAddr,
        destination: SocketAddr,
    },
    /// The header names no client: they are those of the socket.
    Proxy,
}

/// What is known of the client of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Newcomer {
    /// Its address.
    Peer,
    /// Nothing: the peer has no address.
    Unknown,
    /// Nothing yet: a header of its proxy follows.
    BeforeHeader,
}

impl Newcomer {
    pub(crate) fn of(peer: Option<SocketAddr>) -> Self {
        peer.map_or(Self::Unknown, |_| Self::Peer)
    }
}

/// Asks the gate of the guard whether the peer may connect.
///
/// # Errors
///
/// If it may not, and both the gate and the guard enforce it.
fn check_gate(shared: &Shared, conn: &ConnHandle) -> Result<(), Violation> {
    let Some(gate) = &shared.limits.gate else {
        return Ok(());
    };
    let mode = shared.limits.mode;
    if conn.known_client_hash().is_none() || mode == Mode::Off {
        return Ok(());
    }
    let Some((violation, of_gate)) = gate.refusal(conn) else {
        return Ok(());
    };
    let mode = mode.weaker(of_gate);
    if mode == Mode::Off || shared.is_reserved_for(conn) {
        return Ok(());
    }
    report(shared, &violation, mode, conn);
    if mode == Mode::Enforce {
        Err(violation)
    } else {
        Ok(())
    }
}

/// Asks the gate, and charges the client and its network for one connection.
///
/// # Errors
///
/// If the client may not connect, or one of them connects too often.
pub(crate) fn check_rate(shared: &Shared, conn: &ConnHandle) -> Result<(), Violation> {
    check_gate(shared, conn)?;
    let Some(table) = &shared.accept_rates else {
        return Ok(());
    };
    if conn.known_client_hash().is_none()
        || shared.limits.mode == Mode::Off
        || shared.is_reserved_for(conn)
    {
        return Ok(());
    }
    let Limits {
        accept_rate,
        accept_rate_per_network,
        ..
    } = shared.limits;
    // A separate account, because a client may be the first of its network.
    let network = shared.registry.network_of(conn).account(1);
    let rates = [
        (conn.client(), accept_rate),
        (network, accept_rate_per_network),
    ];
    let rates = rates
        .into_iter()
        .filter_map(|(key, rate)| Some((key, rate?)));
    // The table has one largest debt for all keys.
    let max_debt = rates
        .clone()
        .map(|(_, rate)| rate.max_debt())
        .max()
        .unwrap_or(1);
    let now = shared.clock.now();
    for (key, rate) in rates {
        let charge = |debt| rate.decide(debt, 1).map(|debt| ((), debt));
        let wait_millis = match table.update(key, now, max_debt, charge) {
            Some(Ok(())) => continue,
            Some(Err(Denied::Wait(micros))) => micros.div_ceil(1000),
            // `None`: other threads have decided for the same key eight times meanwhile.
            Some(Err(Denied::Never)) | None => 1,
        };
        return refuse(shared, Reason::AcceptRate, 0, wait_millis, conn);
    }
    Ok(())
}

/// Admits `conn` if there is a place, or if one can be made by eviction. The caller sets
/// `may_evict` in the first of several attempts only.
///
/// # Errors
///
/// If there is no place, or none yet.
pub(crate) fn admit(
    shared: &Arc<Shared>,
    conn: &ConnHandle,
    newcomer: Newcomer,
    may_evict: bool,
) -> Result<Permit, AdmitError> {
    if shared.limits.mode == Mode::Off {
        return Ok(Permit::unregistered(shared.clone(), conn.clone()));
    }
    if may_evict && let Some(Shed::Refuse(refused)) = shared.totals.shed_connection(conn) {
        let (limit, used) = refused.numbers;
        refuse(shared, refused.reason, limit, used, conn).map_err(AdmitError::Refused)?;
    }
    let now = shared.now();
    let is_enforced = shared.limits.mode == Mode::Enforce;
    let is_reserved = newcomer == Newcomer::Peer && shared.is_reserved_for(conn);
    let max = shared.limits.max_open(is_reserved);
    let open = shared.open.load(SeqCst);
    let shares = shares_of(shared, conn, is_reserved);
    let next = open.saturating_add(1);
    // A client that has its share evicts one of its own connections, and no other.
    let has_share = || shares.is_some_and(|shares| shared.registry.has(conn, shares));
    let (soft, evicts_above) = (shared.limits.soft(), shared.evicts_above());
    if may_evict && next > evicts_above && !has_share() {
        // Before its header it may be that of any client, and takes one of the last places without
        // the place of a connection that has worked: see `make_room`.
        let awaits_header = newcomer == Newcomer::BeforeHeader;
        let takes_last = awaits_header && (soft..max).contains(&open);
        let has = |shares_of_few| shares.is_some() && shared.registry.has(conn, shares_of_few);
        let has_some = has(SOME_CONNECTIONS);
        let has_many = takes_last || has_some && has(MANY_CONNECTIONS);
        // If the tasks of closing connections do not run, each new connection that waits in vain
        // would evict one more, and in the end a useful one.
        let close_pending = shared.close_pending.load(Relaxed);
        let staying = next.saturating_sub(close_pending);
        let is_evicted = (staying > soft / 2 || evicts_above < soft && staying > evicts_above)
            && evict(
                shared,
                next,
                Claim {
                    own: conn.id(),
                    is_reserved,
                    has_some,
                    has_many,
                    is_for_memory: next <= soft,
                    spares_unread: next <= max || close_pending > 0,
                },
            );
        // The places that are left are for clients with few connections, the last ones for those
        // without any.
        let last = max - max.saturating_sub(soft) / 2;
        let limit = if has_many { soft } else { last };
        // In shadow mode a connection is reported once, below.
        let is_open = !is_evicted && (is_enforced || next <= max);
        if is_open && !awaits_header && next > limit && (has_many || has_some) {
            let limit = limit as u64;
            refuse(shared, Reason::ConnectionsFull, limit, next as u64, conn)
                .map_err(AdmitError::Refused)?;
        }
    }
    let add_one = |open| (open < max || !is_enforced).then_some(open + 1);
    let before = match shared.open.fetch_update(SeqCst, SeqCst, add_one) {
        Err(_) if shared.close_pending.load(Relaxed) > 0 => return Err(AdmitError::NotYet),
        // In shadow mode every connection is admitted.
        Ok(before) | Err(before) => before,
    };
    let open = before.saturating_add(1);
    if open > max {
        refuse(
            shared,
            Reason::ConnectionsFull,
            max as u64,
            open as u64,
            conn,
        )
        .map_err(AdmitError::Refused)?;
    }
    let entered = enter(shared, conn, (now, now), shares);
    let (place, evicted) = entered.inspect_err(|_| _ = shared.open.fetch_sub(1, SeqCst))?;
    // From here on dropping the permit undoes everything, also if the metrics panic.
    let permit = Permit::new(shared.clone(), conn.clone(), place);
    close_of_share(shared, evicted, shares);
    shared.opened.fetch_add(1, Relaxed);
    shared.recorder.record(|| Event::opened(conn));
    task::watch(shared, open == 1);
    Ok(permit)
}

/// Lets an admitted connection continue as what its proxy has named, and keep its place and its
/// age. Accept rate and shares apply to the client from then on.
///
/// # Errors
///
/// The permit if the client is refused.
pub(crate) fn readmit(mut permit: Permit, named: Named) -> Result<Permit, Permit> {
    let shared = permit.shared_arc().clone();
    let before = permit.conn();
    let conn = match named {
        Named::Client {
            source,
            destination,
        } => {
            // Some proxies do not know it.
            let is_known = !destination.ip().is_unspecified();
            let local = Some(destination).filter(|_| is_known).or(before.local());
            shared.connection(Some(source), local).of_proxied()
        }
        Named::Proxy => shared
            .connection(Some(before.peer()), before.local())
            .of_proxy(),
    };
    let conn = conn.continues(before);
    if shared.limits.mode == Mode::Off {
        permit.continue_as(conn, Place::NOWHERE);
        return Ok(permit);
    }
    let is_reserved = shared.is_reserved_for(&conn);
    let shares = shares_of(&shared, &conn, is_reserved);
    let entered = check_rate(&shared, &conn)
        .and_then(|()| make_room(&shared, &conn, shares, is_reserved))
        .map_err(AdmitError::Refused)
        .and_then(|()| enter(&shared, &conn, (permit.opened(), shared.now()), shares));
    match entered {
        Ok((place, evicted)) => {
            permit.continue_as(conn, place);
            close_of_share(&shared, evicted, shares);
            Ok(permit)
        }
        Err(error) => {
            let reason = report_refusal(&shared, error, &conn).reason;
            let decision = CloseDecision::reset(reason);
            before.state().request_close(decision);
            Err(permit)
        }
    }
}

/// Returns the shares that apply to `conn`, if any do.
fn shares_of(shared: &Shared, conn: &ConnHandle, is_reserved: bool) -> Option<Shares> {
    let is_listed = conn.known_client_hash().is_some() && !is_reserved;
    let shares = is_listed.then(|| shared.limits.shares(shared.open.load(SeqCst)));
    shares.flatten()
}

/// Evicts a connection for one of which the header has been read, if that has one of the last
/// places. A client that has its share gives up another connection of its own.
///
/// # Errors
///
/// If the client has many connections, and none can be evicted for it.
fn make_room(
    shared: &Shared,
    conn: &ConnHandle,
    shares: Option<Shares>,
    is_reserved: bool,
) -> Result<(), Violation> {
    let (soft, open) = (shared.limits.soft(), shared.open.load(SeqCst));
    // One may have been evicted for it at accept.
    let staying = open.saturating_sub(shared.close_pending.load(Relaxed));
    let has = |shares| shared.registry.has(conn, shares);
    if staying <= soft || shares.is_some_and(has) {
        return Ok(());
    }
    let has_some = shares.is_some() && has(SOME_CONNECTIONS);
    let has_many = has_some && has(MANY_CONNECTIONS);
    let claim = Claim {
        own: conn.id(),
        is_reserved,
        has_some,
        has_many,
        is_for_memory: false,
        spares_unread: true,
    };
    if evict(shared, staying, claim) || !has_many {
        return Ok(());
    }
    let (limit, used) = (soft as u64, staying as u64);
    refuse(shared, Reason::ConnectionsFull, limit, used, conn)
}

/// Adds `conn` to the registry. The times are when it was opened, and now.
///
/// # Errors
///
/// If it is refused because of the share of its client or network.
fn enter(
    shared: &Shared,
    conn: &ConnHandle,
    (opened, now): (u64, u64),
    shares: Option<Shares>,
) -> Result<(Place, Option<(Share, Found)>), AdmitError> {
    let entered = shared.registry.enter_late(conn, opened, now, shares);
    entered.or_else(|full| {
        let observed = u64::from(full.connections).saturating_add(1);
        let reason = match full.share {
            Share::Client => Reason::ClientConnectionsFull,
            Share::Network => Reason::NetworkConnectionsFull,
        };
        let max = max_of(full.share, shares);
        refuse(shared, reason, max, observed, conn).map_err(AdmitError::Refused)?;
        // In shadow mode every connection is admitted.
        let unlimited = Shares {
            client: u32::MAX,
            network: u32::MAX,
        };
        shared
            .registry
            .enter_late(conn, opened, now, Some(unlimited))
            .map_err(|_| AdmitError::NotYet)
    })
}

/// Closes the connection that a client or network at its share gives up for a new one.
fn close_of_share(shared: &Shared, evicted: Option<(Share, Found)>, shares: Option<Shares>) {
    if let Some((share, Found { conn, .. })) = evicted {
        let max = max_of(share, shares);
        close_evicted(shared, &conn, max, max.saturating_add(1));
    }
}

fn max_of(share: Share, shares: Option<Shares>) -> u64 {
    shares.map_or(0, |shares| match share {
        Share::Client => shares.client.into(),
        Share::Network => shares.network.into(),
    })
}

/// Returns the violation of a connection that is not admitted, and reports it unless it has been
/// reported.
pub(crate) fn report_refusal(shared: &Shared, error: AdmitError, conn: &ConnHandle) -> Violation {
    match error {
        AdmitError::Refused(violation) => violation,
        AdmitError::NotYet => {
            let limit = shared.limits.max_open(shared.is_reserved_for(conn)) as u64;
            let violation = violation(Reason::ConnectionsFull, limit, limit.saturating_add(1));
            report(shared, &violation, shared.limits.mode, conn);
            violation
        }
    }
}

/// Reports a connection that exceeds a limit.
///
/// # Errors
///
/// If the limit is enforced.
fn refuse(
    shared: &Shared,
    reason: Reason,
    limit: u64,
    observed: u64,
    conn: &ConnHandle,
) -> Result<(), Violation> {
    let violation = violation(reason, limit, observed);
    report(shared, &violation, shared.limits.mode, conn);
    if shared.limits.mode == Mode::Enforce {
        Err(violation)
    } else {
        Ok(())
    }
}

fn violation(reason: Reason, limit: u64, observed: u64) -> Violation {
    Violation::new(Guard::Connection, reason, Phase::Accept, limit, observed)
}
