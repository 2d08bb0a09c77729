use super::*;
use crate::connection::decision::{CloseDecision, CloseMode};
use palisade_core::Reason;

fn registry() -> Registry {
    Registry::new(
        Prefix::new(24, 48).unwrap(),
        Shares {
            client: 0,
            network: 0,
        },
    )
}

/// Shares that limit only the client.
fn client_share(client: u32) -> Option<Shares> {
    Some(Shares {
        client,
        network: u32::MAX,
    })
}

fn conn(last: u8) -> ConnHandle {
    conn_from([192, 0, 2, last])
}

fn conn_from(peer: [u8; 4]) -> ConnHandle {
    let conn = ConnHandle::new((peer, 1).into(), None, Prefix::default(), None);
    conn.set_tracked();
    conn
}

#[test]
fn removed_connections_leave_nothing_behind_in_any_order() {
    let registry = registry();
    let conns: Vec<_> = (0..240).map(|n| conn((n % 7) as u8)).collect();
    let enter = |at: u64| {
        registry
            .enter(&conns[at as usize], at, client_share(1000))
            .unwrap()
            .0
    };
    let places: Vec<_> = (0..240).map(enter).collect();
    assert_eq!(registry.counts(), (240, 7));
    // 101 is prime: each index occurs once, in scattered order.
    for step in 0..240 {
        let at = step * 101 % 240;
        registry.leave(places[at], &conns[at]);
    }
    assert_eq!(registry.counts(), (0, 0));
    // The slots are reused.
    (0..240).for_each(|at| _ = enter(at));
    let slots: usize = registry
        .shards
        .iter()
        .map(|shard| shard.lock().slots.len())
        .sum();
    assert_eq!(slots, 240);
}

#[test]
fn rings_and_chains_stay_intact_when_connections_are_added_and_removed_at_random() {
    let registry = registry();
    let mut open: Vec<(Place, ConnHandle)> = Vec::new();
    let mut random = 1u64;
    for step in 0..20_000 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let random = (random >> 33) as usize;
        // The number grows to several hundred, shrinks to zero, and grows again.
        if (step / 1000 % 2 == 0 && !random.is_multiple_of(3)) || open.is_empty() {
            let next = conn((random % 60) as u8);
            let shares = if random.is_multiple_of(5) {
                None
            } else {
                client_share(u32::MAX)
            };
            open.push((registry.enter(&next, step, shares).unwrap().0, next));
        } else {
            let (place, conn) = open.swap_remove(random % open.len());
            registry.leave(place, &conn);
        }
        assert_eq!(registry.counts().0, open.len());
    }
    let mut counted = 0;
    for shard in &registry.shards {
        let shard = shard.lock();
        let taken = shard
            .slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.conn.is_some());
        for (at, slot) in taken {
            counted += slot.connections;
            assert_eq!(shard.slots[slot.older as usize].newer, at as u32);
            assert_eq!(shard.slots[slot.newer as usize].older, at as u32);
        }
    }
    assert_eq!(counted, open.len() as u32);
    for (place, conn) in open.drain(..) {
        registry.leave(place, &conn);
    }
    assert_eq!(registry.counts(), (0, 0));
}

#[test]
fn a_client_at_its_share_evicts_its_own_least_useful_connection() {
    let registry = registry();
    let neighbour = conn(2);
    registry.enter(&neighbour, 0, client_share(2)).unwrap();
    let (working, silent, next) = (conn(1), conn(1), conn(1));
    let _request = working.begin_request(false);
    assert!(
        registry
            .enter(&working, 1, client_share(2))
            .unwrap()
            .1
            .is_none()
    );
    assert!(
        registry
            .enter(&silent, 2, client_share(2))
            .unwrap()
            .1
            .is_none()
    );
    let (share, evicted) = registry
        .enter(&next, 3, client_share(2))
        .unwrap()
        .1
        .unwrap();
    assert_eq!(share, Share::Client);
    assert_eq!(evicted.conn.id(), silent.id());
}

#[test]
fn a_client_at_its_share_is_refused_if_all_its_connections_work() {
    let registry = registry();
    let conns = [conn(1), conn(1)];
    let _requests = conns.each_ref().map(|conn| conn.begin_request(false));
    conns
        .iter()
        .for_each(|conn| _ = registry.enter(conn, 0, client_share(2)).unwrap());
    let full = registry.enter(&conn(1), 0, client_share(2)).unwrap_err();
    assert_eq!(full.connections, 2);
    assert!(registry.enter(&conn(2), 0, client_share(2)).is_ok());
}

#[test]
fn an_evictable_connection_is_found_among_many_that_work() {
    let registry = registry();
    let conns: Vec<_> = (0..200).map(|_| conn(1)).collect();
    let _requests: Vec<_> = conns[..150]
        .iter()
        .map(|conn| conn.begin_request(false))
        .collect();
    conns
        .iter()
        .for_each(|conn| _ = registry.enter(conn, 0, client_share(200)).unwrap());
    let (_, evicted) = registry
        .enter(&conn(1), 0, client_share(200))
        .unwrap()
        .1
        .unwrap();
    assert!(
        conns[150..]
            .iter()
            .any(|idle| idle.id() == evicted.conn.id())
    );
}

#[test]
fn a_network_at_its_share_evicts_its_own_least_useful_connection() {
    let registry = registry();
    let limits = Shares {
        client: 3,
        network: 4,
    };
    let shares = Some(limits);
    let neighbours: Vec<_> = (0..30).map(|n| conn_from([198, 51, n, 1])).collect();
    neighbours
        .iter()
        .for_each(|conn| _ = registry.enter(conn, 0, shares).unwrap());
    let own: Vec<_> = (0..4).map(conn).collect();
    let requests: Vec<_> = own[..3]
        .iter()
        .map(|conn| conn.begin_request(false))
        .collect();
    for conn in &own {
        assert!(registry.enter(conn, 1, shares).unwrap().1.is_none());
    }
    assert!(registry.has(&conn(9), limits));
    assert!(!registry.has(&neighbours[0], limits));
    let next = conn(9);
    let (place, evicted) = registry.enter(&next, 2, shares).unwrap();
    let (share, evicted) = evicted.unwrap();
    assert_eq!((share, evicted.conn.id()), (Share::Network, own[3].id()));
    // If all of them work, none can be evicted.
    let _more = [own[3].begin_request(false), next.begin_request(false)];
    let full = registry.enter(&conn(10), 3, shares).unwrap_err();
    assert_eq!((full.share, full.connections), (Share::Network, 5));
    assert!(
        registry
            .enter(&conn_from([203, 0, 113, 1]), 3, shares)
            .is_ok()
    );
    // Idle connections can be evicted again.
    drop(requests);
    registry.leave(place, &next);
    assert!(registry.enter(&conn(10), 4, shares).unwrap().1.is_some());
}

#[test]
fn evicted_connections_that_stay_open_are_limited_for_a_network() {
    let registry = registry();
    let shares = Some(Shares {
        client: 1,
        network: 4,
    });
    let decision = CloseDecision {
        reason: Reason::ConnectionEvicted,
        mode: CloseMode::Graceful,
    };
    let mut conns = Vec::new();
    let refused = (0..u8::MAX).find_map(|last| {
        conns.push(conn(last));
        match registry.enter(&conns[last as usize], 0, shares) {
            Ok((_, evicted)) => {
                evicted.inspect(|(_, found)| _ = found.conn.state().request_close(decision));
                None
            }
            Err(full) => Some(full.connections),
        }
    });
    assert_eq!(refused, Some(8));
}

#[test]
fn no_connection_is_evicted_while_another_is_about_to_close() {
    let registry = registry();
    let conns = [conn(1), conn(1), conn(1)];
    for conn in &conns {
        assert!(
            registry
                .enter(conn, 0, client_share(3))
                .unwrap()
                .1
                .is_none()
        );
    }
    let idle = CloseDecision {
        reason: Reason::Idle,
        mode: CloseMode::Graceful,
    };
    conns[1].state().set_close_pending();
    conns[1].state().request_close(idle);
    let next = conn(1);
    assert!(
        registry
            .enter(&next, 0, client_share(3))
            .unwrap()
            .1
            .is_none()
    );
    // If it does not close, another one is evicted.
    assert!(conns[1].state().take_close_pending());
    assert!(
        registry
            .enter(&conn(1), 0, client_share(3))
            .unwrap()
            .1
            .is_some()
    );
}

#[test]
fn evicted_connections_that_stay_open_are_limited_for_a_client() {
    let registry = registry();
    let decision = CloseDecision {
        reason: Reason::ConnectionEvicted,
        mode: CloseMode::Graceful,
    };
    let mut conns = Vec::new();
    let refused = loop {
        let next = conn(1);
        match registry.enter(&next, 0, client_share(4)) {
            Ok((_, evicted)) => {
                if let Some((_, Found { conn, .. })) = evicted {
                    conn.state().request_close(decision);
                }
                conns.push(next); // None of them ever closes.
            }
            Err(full) => break full,
        }
    };
    assert_eq!((refused.connections, conns.len()), (8, 8));
}

#[test]
fn the_connections_of_one_client_are_copied_together() {
    let registry = registry();
    let conns: Vec<_> = (0..100).map(|n| conn(n % 7)).collect();
    for (n, conn) in conns.iter().enumerate() {
        let shares = if n < 90 { client_share(100) } else { None };
        registry.enter(conn, 0, shares).unwrap();
    }
    let mut all = Vec::new();
    (0..SHARDS).for_each(|shard| registry.copy(shard, &mut all));
    assert_eq!(all.len(), 100);
    let clients: Vec<_> = all.chunk_by(|_, next| !next.is_newest).collect();
    // A connection without shares is in a group of its own.
    assert_eq!(clients.len(), 7 + 10);
    for client in clients {
        assert!(
            client
                .iter()
                .all(|one| one.conn.client() == client[0].conn.client())
        );
    }
}

#[test]
fn copy_few_returns_other_connections_each_turn_and_no_more_than_the_limit() {
    let registry = registry();
    let conns: Vec<_> = (0..200).map(conn).collect();
    conns
        .iter()
        .for_each(|conn| _ = registry.enter(conn, 0, None).unwrap());
    let mut seen = std::collections::HashSet::new();
    for turn in 0..200 {
        let mut few = Vec::new();
        registry.copy_few(turn, 32, &mut few);
        assert!(few.len() <= 32);
        seen.extend(few.iter().map(|found| found.conn.id()));
    }
    assert_eq!(seen.len(), 200);
}
