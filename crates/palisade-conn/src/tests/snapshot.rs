//! The snapshot for an operator.

use super::*;
use crate::{ConnHolder, ConnRates};
use tokio::time::sleep;

#[tokio::test(start_paused = true)]
async fn a_snapshot_shows_rates_in_total_and_per_client() {
    let (guard, _) = tracking_guard(ConnGuard::builder());
    let mut busy = connect_from(&guard, 1).unwrap();
    let quiet = connect_from(&guard, 2).unwrap();
    for _ in 0..20 {
        serve_once(&mut busy, false).await;
        sleep(SECOND / 5).await;
    }
    let now = guard.snapshot();
    assert_eq!((now.opened, now.opened_per_second), (2, 0.5));
    let ConnRates {
        requests,
        read,
        written,
        ..
    } = now.per_second;
    assert_eq!((requests, read, written), (5.0, 35.0, 30.0));
    let client_of = |pair: &Pair| {
        let client = pair.server.conn().client();
        *now.clients.iter().find(|one| one.key == client).unwrap()
    };
    assert_eq!(
        (client_of(&busy).connections, client_of(&busy).per_second),
        (1, now.per_second)
    );
    assert_eq!(
        (client_of(&quiet).connections, client_of(&quiet).per_second),
        (1, ConnRates::default())
    );
    let ConnHolder {
        requests,
        read,
        written,
        ..
    } = client_of(&busy);
    assert_eq!((requests, read, written), (20, 140, 120));
    assert_eq!(now.busiest[0].key, busy.server.conn().client());
    let [network] = &now.networks[..] else {
        panic!("{now:?}")
    };
    assert_eq!((network.connections, network.requests), (2, 20));
    sleep(7 * SECOND).await;
    assert_eq!(guard.snapshot().opened_per_second, 0.0);
    drop((busy, quiet));
    assert_nothing_left(&guard);
}
