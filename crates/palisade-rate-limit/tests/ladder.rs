//! Limits of wider networks, and quotas of certain networks: what neighbours take from each other.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use palisade_core::{Gauge, Guard, GuardBody, Reason};
use palisade_rate_limit::{
    Account, ClientIp, ClientKey, Decision, KeyExtractor, Limiter, Mode, Networks, Prefix, Quota,
    RateLimitLayer, RequestHead, TableLimiter,
};
use palisade_testkit::Journal;
use std::{
    convert::Infallible,
    future::Ready,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt, service_fn};

/// The burst of one client.
const BURST: usize = 4;
/// The time in which a client without a pause gets one request more.
const PERIOD: Duration = Duration::from_millis(100);
const TABLE_KEYS: usize = 1 << 16;

fn quota() -> Quota {
    Quota::period(PERIOD).burst(BURST as u32)
}

fn limiter(quota: Quota) -> TableLimiter {
    TableLimiter::new(quota).unwrap().capacity(TABLE_KEYS)
}

fn layer() -> RateLimitLayer {
    RateLimitLayer::with_limiter(limiter(quota()))
}

fn enforced_ladder() -> RateLimitLayer {
    layer().ladder().wider_mode(Mode::Enforce)
}

/// The address of a host in a /64 of `2001:db8:1::/48`: the number of its /56, and of the /64
/// there.
fn host(home: u8, network: u8) -> IpAddr {
    let network = u16::from_be_bytes([home, network]);
    Ipv6Addr::new(0x2001, 0xdb8, 1, network, 0, 0, 0, 1).into()
}

fn request_from(address: IpAddr) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    request
        .extensions_mut()
        .insert(SocketAddr::new(address, 4711));
    request
}

fn respond_ok(_: Request<Full<Bytes>>) -> Ready<Result<Response<Full<Bytes>>, Infallible>> {
    std::future::ready(Ok(Response::default()))
}

/// Returns how many of `count` requests are admitted.
async fn admitted(layer: &RateLimitLayer, address: IpAddr, count: usize) -> usize {
    let mut service = layer.layer(service_fn(respond_ok));
    let mut admitted = 0;
    for _ in 0..count {
        let response = send(&mut service, address).await;
        admitted += usize::from(response.status() == 200);
    }
    admitted
}

async fn send<S>(service: &mut S, address: IpAddr) -> Response<GuardBody<Full<Bytes>>>
where
    S: Service<
            Request<Full<Bytes>>,
            Response = Response<GuardBody<Full<Bytes>>>,
            Error = Infallible,
        >,
{
    let ready = service.ready().await.unwrap();
    ready.call(request_from(address)).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_networks_of_a_56_together_get_8_times_one_clients_quota() {
    let journal = Journal::default();
    let layer = enforced_ladder().metrics(journal.clone());
    let mut served = 0;
    for network in 0..=255 {
        served += admitted(&layer, host(0, network), 2 * BURST).await;
    }
    assert_eq!(served, 8 * BURST);
    // A sibling that is quiet is refused nothing: its home is another /56 of the /48.
    assert_eq!(admitted(&layer, host(1, 0), BURST).await, BURST);
    let network = (Guard::RateLimit, Reason::NetworkRateExceeded);
    let refused = journal.refused();
    let by_network = refused.iter().filter(|&&refused| refused == network);
    assert_eq!(by_network.count(), 248 * 2 * BURST);

    // A second later the home gets what its rate has paid off, and again no more.
    advance(Duration::from_secs(1)).await;
    let mut served = 0;
    for network in 0..=255 {
        served += admitted(&layer, host(0, network), BURST).await;
    }
    assert_eq!(served, 8 * BURST); // 80 cells of 12.5 ms, of which the burst can hold 32.
}

#[tokio::test(start_paused = true)]
async fn the_networks_of_a_48_together_get_64_times_one_clients_quota() {
    let layer = enforced_ladder();
    let mut served = 0;
    for home in 0..100 {
        for network in 0..9 {
            served += admitted(&layer, host(home, network), BURST).await;
        }
    }
    assert_eq!(served, 64 * BURST);
    let elsewhere: IpAddr = "2001:db8:2::1".parse().unwrap();
    assert_eq!(admitted(&layer, elsewhere, BURST).await, BURST);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_charges_no_wider_network_so_a_noisy_neighbour_takes_its_own_quota_only() {
    let layer = enforced_ladder();
    assert_eq!(admitted(&layer, host(0, 0), 1_000).await, BURST);
    for network in 1..8 {
        assert_eq!(admitted(&layer, host(0, network), BURST).await, BURST);
    }
    assert_eq!(admitted(&layer, host(0, 8), 1).await, 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_network_refuses_is_not_charged_to_its_client() {
    let limiter = Arc::new(limiter(quota()));
    let layer = RateLimitLayer::with_limiter(limiter.clone())
        .ladder()
        .wider_mode(Mode::Enforce);
    for network in 0..8 {
        assert_eq!(admitted(&layer, host(0, network), BURST).await, BURST);
    }
    assert_eq!(admitted(&layer, host(0, 9), 100).await, 0);
    let key = ClientKey::address(host(0, 9), Prefix::default());
    let [quota] = limiter.quotas(Account::of_client(key))[..] else {
        panic!("one quota");
    };
    assert_eq!((quota.available, quota.next), (BURST as u32, None));
    // Nor is the /48, which had room: 56 clients of other homes find it.
    for home in 1..8 {
        for network in 0..8 {
            assert_eq!(admitted(&layer, host(home, network), BURST).await, BURST);
        }
    }
    assert_eq!(admitted(&layer, host(9, 0), BURST).await, 0);
}

#[tokio::test(start_paused = true)]
async fn networks_that_begin_alike_have_accounts_of_their_own() {
    // The /64, the /56 and the /48 of this address consist of the same bits.
    let first = host(0, 0);
    let journal = Journal::default();
    let layer = enforced_ladder().metrics(journal.clone());
    assert_eq!(admitted(&layer, first, 10).await, BURST);
    assert_eq!(journal.gauge(Guard::RateLimit, Gauge::Keys), Some(3));
    assert_eq!(
        journal.refused(),
        vec![(Guard::RateLimit, Reason::RateExceeded); 10 - BURST]
    );
}

#[tokio::test(start_paused = true)]
async fn a_network_is_in_shadow_mode_until_it_is_enforced() {
    let journal = Journal::default();
    let layer = layer().ladder().metrics(journal.clone());
    for network in 0..=255 {
        assert_eq!(admitted(&layer, host(0, network), 1).await, 1);
    }
    let refusals = journal.refusals();
    assert_eq!(refusals.len(), 256 - 8 * BURST);
    for (violation, mode) in refusals {
        assert_eq!(
            (violation.reason, mode),
            (Reason::NetworkRateExceeded, Mode::Shadow)
        );
    }
    // What a /56 would refuse is not charged to the /48.
    let enforced = layer.clone().wider_mode(Mode::Enforce);
    for home in 1..64 {
        for network in 0..8 {
            admitted(&enforced, host(home, network), BURST).await;
        }
    }
    assert_eq!(admitted(&enforced, host(100, 0), 1).await, 0);
    let off = layer.wider_mode(Mode::Off);
    let before = journal.refused().len();
    assert_eq!(admitted(&off, host(100, 0), BURST).await, BURST);
    assert_eq!(journal.refused().len(), before);
}

#[tokio::test(start_paused = true)]
async fn a_layer_in_shadow_mode_enforces_no_network_either() {
    let journal = Journal::default();
    let layer = enforced_ladder()
        .mode(Mode::Shadow)
        .metrics(journal.clone());
    for network in 0..=255 {
        assert_eq!(admitted(&layer, host(0, network), BURST).await, BURST);
    }
    let modes = journal.refusals().into_iter().map(|(_, mode)| mode);
    assert_eq!(modes.collect::<Vec<_>>(), vec![Mode::Shadow; 248 * BURST]);
}

#[tokio::test(start_paused = true)]
async fn ipv4_networks_are_limited_by_a_prefix_of_their_own_and_not_by_the_ladder() {
    let journal = Journal::default();
    let layer = enforced_ladder()
        .wider(Prefix::new(24, 128).unwrap(), 2)
        .metrics(journal.clone());
    let served = async |host: u8| admitted(&layer, [192, 0, 2, host].into(), BURST).await;
    assert_eq!([served(1).await, served(2).await], [BURST, BURST]);
    assert_eq!(served(3).await, 0);
    // The IPv4-mapped form of an address is in the same network.
    let mapped = "::ffff:192.0.2.4".parse().unwrap();
    assert_eq!(admitted(&layer, mapped, 1).await, 0);
    assert_eq!(admitted(&layer, [192, 0, 3, 1].into(), BURST).await, BURST);
    // Two clients and their /24, one client and its /24.
    assert_eq!(journal.gauge(Guard::RateLimit, Gauge::Keys), Some(5));
}

#[tokio::test(start_paused = true)]
async fn each_quota_of_a_policy_holds_for_a_network() {
    let policy = quota().and(Quota::per_hour(6));
    let layer = RateLimitLayer::new(policy).unwrap();
    let layer = layer.ladder().wider_mode(Mode::Enforce);
    let mut served = 0;
    for _ in 0..10 {
        for network in 0..=255 {
            served += admitted(&layer, host(0, network), 1).await;
        }
        advance(Duration::from_secs(1)).await;
    }
    assert_eq!(served, 8 * 6);
}

#[tokio::test(start_paused = true)]
async fn a_closure_and_an_unknown_client_have_no_network() {
    let by_ip = ClientIp::peer();
    let by_closure = enforced_ladder().key(move |head: &RequestHead<'_>| by_ip.extract(head));
    for network in 0..20 {
        assert_eq!(admitted(&by_closure, host(0, network), BURST).await, BURST);
    }
    let mut service = enforced_ladder().layer(service_fn(respond_ok));
    let mut statuses = Vec::new();
    for _ in 0..=BURST {
        let ready = service.ready().await.unwrap();
        let response = ready.call(Request::new(Full::default())).await.unwrap();
        statuses.push(response.status().as_u16());
    }
    assert_eq!(statuses, [200, 200, 200, 200, 429]);
}

#[tokio::test(start_paused = true)]
async fn a_limiter_without_accounts_admits_all_networks_and_has_one_policy() {
    struct Clients(TableLimiter);
    impl Limiter for Clients {
        fn check(&self, key: ClientKey, cost: u32) -> Decision {
            self.0.check(key, cost)
        }
    }
    let layer = RateLimitLayer::with_limiter(Clients(limiter(quota())));
    let layer = layer
        .ladder()
        .wider_mode(Mode::Enforce)
        .name("api")
        .unwrap();
    for network in 0..20 {
        assert_eq!(admitted(&layer, host(0, network), 10).await, BURST);
    }
    let mut service = layer.layer(service_fn(respond_ok));
    let refused = send(&mut service, host(0, 0)).await;
    assert_eq!(refused.status(), 429);
    assert!(!refused.headers().contains_key("ratelimit-policy"));
    let error = layer.quota_for(Networks::default(), quota()).unwrap_err();
    assert_eq!(error.faults()[0].field, "quota_for");
}

#[tokio::test(start_paused = true)]
async fn the_wait_of_a_network_ends_when_it_says_so() {
    let layer = enforced_ladder();
    for network in 0..8 {
        admitted(&layer, host(0, network), BURST).await;
    }
    let mut service = layer.layer(service_fn(respond_ok));
    let refused = send(&mut service, host(0, 8)).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    advance(PERIOD / 8 - Duration::from_micros(1)).await;
    assert_eq!(send(&mut service, host(0, 8)).await.status(), 429);
    advance(Duration::from_micros(1)).await;
    assert_eq!(send(&mut service, host(0, 8)).await.status(), 200);
}

// --- Honest clients ---

#[tokio::test(start_paused = true)]
async fn of_two_offices_in_one_48_the_quiet_one_is_refused_nothing() {
    let layer = enforced_ladder();
    for _ in 0..20 {
        for network in 0..=255 {
            admitted(&layer, host(0, network), BURST).await;
        }
        for desk in 0..5 {
            assert_eq!(admitted(&layer, host(1, desk), 1).await, 1);
        }
        advance(PERIOD).await;
    }
}

#[tokio::test(start_paused = true)]
async fn forty_assets_at_once_and_then_a_page_a_second_are_served_with_the_ladder() {
    let layer = RateLimitLayer::new(Quota::per_second(10).burst(40)).unwrap();
    let layer = layer.ladder().wider_mode(Mode::Enforce);
    for _ in 0..10 {
        assert_eq!(admitted(&layer, host(0, 0), 40).await, 40);
        advance(Duration::from_secs(4)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_phone_whose_address_changes_midway_is_refused_nothing() {
    let layer = enforced_ladder();
    for minute in 0..60u8 {
        // A carrier gives each connection another /64 of its /48, and then an IPv4 address.
        let address = match minute % 3 {
            0 | 1 => host(minute, 7),
            _ => [198, 51, 100, minute].into(),
        };
        assert_eq!(admitted(&layer, address, BURST).await, BURST);
    }
}

#[tokio::test(start_paused = true)]
async fn privacy_addresses_of_one_64_are_one_client_of_its_network() {
    let layer = enforced_ladder();
    let mut served = 0;
    for host in 1..=100 {
        let address = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0x1234, 0, 0, host);
        served += admitted(&layer, address.into(), 1).await;
    }
    assert_eq!(served, BURST);
    assert_eq!(admitted(&layer, host(0, 1), BURST).await, BURST);
}

#[tokio::test(start_paused = true)]
async fn two_thousand_people_behind_one_carrier_address_are_served_by_a_quota_for_it() {
    let carrier = Networks::parse("198.51.100.0/24  # Carrier NAT.").unwrap();
    let layer = RateLimitLayer::new(Quota::per_second(10).burst(40))
        .unwrap()
        .quota_for(carrier, Quota::per_second(2_000).burst(8_000))
        .unwrap();
    let address = [198, 51, 100, 7].into();
    // Each opens a page of four requests, and then one request a second.
    assert_eq!(admitted(&layer, address, 4 * 2_000).await, 8_000);
    for _ in 0..3 {
        advance(Duration::from_secs(1)).await;
        assert_eq!(admitted(&layer, address, 2_000).await, 2_000);
    }
    assert_eq!(admitted(&layer, address, 1).await, 0);
    assert_eq!(admitted(&layer, [203, 0, 113, 7].into(), 100).await, 40);
}

// --- Quotas of certain networks ---

#[tokio::test(start_paused = true)]
async fn networks_are_replaced_while_the_server_runs_and_debts_are_kept() {
    let offices = Networks::default();
    let layer = layer()
        .quota_for(offices.clone(), Quota::period(PERIOD).burst(10))
        .unwrap();
    let office = [192, 0, 2, 1].into();
    assert_eq!(admitted(&layer, office, 20).await, BURST);
    offices.reload("192.0.2.1").unwrap();
    assert_eq!(admitted(&layer, office, 20).await, 10 - BURST);
    offices.reload("").unwrap();
    assert_eq!(admitted(&layer, office, 1).await, 0);
    advance(PERIOD).await; // Its debt is now that of the smaller burst.
    assert_eq!(admitted(&layer, office, 20).await, 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_in_several_networks_has_the_policy_that_was_set_first() {
    let all = || Networks::parse("192.0.2.0/24").unwrap();
    let one = Networks::parse("192.0.2.1").unwrap();
    let with_burst = |burst| Quota::period(PERIOD).burst(burst);
    let layer = layer().quota_for(one, with_burst(7)).unwrap();
    let layer = layer.quota_for(all(), with_burst(6)).unwrap();
    let layer = layer.quota_for(all(), with_burst(5)).unwrap();
    assert_eq!(admitted(&layer, [192, 0, 2, 1].into(), 20).await, 7);
    assert_eq!(admitted(&layer, [192, 0, 2, 2].into(), 20).await, 6);
    assert_eq!(admitted(&layer, [192, 0, 3, 2].into(), 20).await, BURST);
}

#[tokio::test(start_paused = true)]
async fn the_wider_networks_of_a_client_are_multiples_of_its_own_policy() {
    let offices = Networks::parse("2001:db8:1::/48").unwrap();
    let layer = enforced_ladder()
        .quota_for(offices, quota().burst(10))
        .unwrap();
    let mut served = 0;
    for network in 0..=255 {
        served += admitted(&layer, host(0, network), 20).await;
    }
    assert_eq!(served, 8 * 10);
}

#[tokio::test(start_paused = true)]
async fn an_office_in_a_network_that_is_used_up_is_served_and_pays_none_of_its_debts() {
    let office = Networks::parse("2001:db8:1::/64").unwrap();
    let layer = enforced_ladder()
        .quota_for(office, Quota::period(PERIOD / 100).burst(BURST as u32))
        .unwrap();
    for network in 1..=8 {
        assert_eq!(admitted(&layer, host(0, network), BURST).await, BURST);
    }
    assert_eq!(admitted(&layer, host(0, 0), 2 * BURST).await, BURST);
    assert_eq!(admitted(&layer, host(0, 9), BURST).await, 0);
}

#[tokio::test(start_paused = true)]
async fn longer_debts_of_a_quota_for_networks_are_no_clean_slate() {
    // The table knows of the longest debt of any policy: a longer one would count as paid.
    let slow = Networks::parse("192.0.2.0/24").unwrap();
    let layer = layer()
        .quota_for(slow, Quota::per_hour(1).burst(3))
        .unwrap();
    assert_eq!(admitted(&layer, [192, 0, 2, 1].into(), 100).await, 3);
    assert_eq!(admitted(&layer, [203, 0, 113, 1].into(), 100).await, BURST);
}

#[test]
fn an_invalid_quota_for_networks_is_a_fault() {
    let error = layer()
        .quota_for(Networks::default(), Quota::per_second(0))
        .unwrap_err();
    assert_eq!(error.faults()[0].field, "cells");
}
