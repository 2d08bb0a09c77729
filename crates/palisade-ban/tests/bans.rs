//! Strikes, bans and lists, on paused time.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version, header::CONTENT_TYPE};
use http_body_util::{Empty, Full};
use palisade_ban::{Ban, BanBuilder, BanLayer, Client, Mode, Networks, Prefix, Reason};
use palisade_client_ip::Trust;
use palisade_core::{
    AddressSource, ConnInfo, Event, Found, Gate, Gauge, Guard, Metrics, Phase, Rejection,
    ResponseFormat, Violation,
};
use palisade_testkit::Journal;
use proptest::prelude::*;
use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};
use tokio::time::advance;
use tower::{Layer, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const VICTIM: &str = "203.0.113.7";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A client that connects directly.
fn direct(address: &str) -> Client {
    Client::from_peer(Some(ip(address)), Prefix::default())
}

/// The client of a request that `peer` has forwarded for `client`.
fn forwarded(trust: &Trust, peer: &str, client: &str) -> Client {
    let mut headers = HeaderMap::new();
    headers.insert("x-forwarded-for", client.parse().unwrap());
    trust.resolve(Some(ip(peer)), &headers)
}

fn conn(peer: &str) -> Arc<ConnInfo> {
    ConnInfo::new((ip(peer), 4711).into(), None, Prefix::default())
}

/// Returns the reason for which a connection from `peer` is refused at accept.
fn at_accept(ban: &Ban, peer: &str) -> Option<Reason> {
    ban.refusal(&conn(peer))
        .map(|(violation, _)| violation.reason)
}

fn request<T: Clone + Send + Sync + 'static>(extension: T) -> Request<Empty<Bytes>> {
    let mut request = Request::default();
    request.extensions_mut().insert(extension);
    request
}

async fn respond(layer: &BanLayer, request: Request<Empty<Bytes>>) -> Response<()> {
    let handler =
        service_fn(async |_| Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())));
    let response = layer.layer(handler).oneshot(request).await.unwrap();
    response.map(|_| ())
}

async fn status(ban: &Ban, client: Client) -> u16 {
    let layer = BanLayer::new(ban.clone());
    respond(&layer, request(client)).await.status().as_u16()
}

/// A ban with its journal.
fn build(builder: BanBuilder) -> (Ban, Journal) {
    let journal = Journal::default();
    (builder.metrics(journal.clone()).build().unwrap(), journal)
}

fn three_strikes() -> BanBuilder {
    Ban::builder().strikes(3, MINUTE)
}

fn violation(reason: Reason) -> Violation {
    Violation::new(Guard::Connection, reason, Phase::RequestHead, 0, 0)
}

fn rejection(reason: Reason) -> Rejection {
    let format = ResponseFormat::Http { close: true };
    Rejection::new(violation(reason), StatusCode::BAD_REQUEST, format)
}

#[tokio::test(start_paused = true)]
async fn while_the_clock_rests_the_third_of_three_strikes_bans() {
    let (ban, journal) = build(three_strikes());
    let client = direct(VICTIM);
    for _ in 0..2 {
        assert!(!ban.strike(&client, 1));
        assert_eq!(ban.banned_for(&client), None);
    }
    assert!(ban.strike(&client, 1));
    // Without time nothing is forgotten, and nothing ends.
    for _ in 0..1_000 {
        assert!(ban.strike(&client, 1));
        assert_eq!(ban.banned_for(&client), Some(10 * SECOND));
    }
    let network = "203.0.113.7/32".parse().unwrap();
    assert_eq!(journal.bans(), [(network, None, Mode::Enforce)]);
    assert_eq!(journal.gauge(Guard::Ban, Gauge::Bans), Some(1));
}

#[tokio::test(start_paused = true)]
async fn an_honest_client_that_was_banned_is_admitted_again_in_time() {
    let (ban, _) = build(three_strikes());
    let client = direct(VICTIM);
    ban.strike(&client, 3);
    assert_eq!(status(&ban, client).await, 403);
    assert_eq!(at_accept(&ban, VICTIM), Some(Reason::Banned));
    advance(10 * SECOND - Duration::from_millis(1)).await;
    assert_eq!(status(&ban, client).await, 403);
    let (banned, _) = ban.refusal(&conn(VICTIM)).unwrap();
    assert_eq!((banned.limit, banned.observed), (0, 1)); // A millisecond is left.
    advance(Duration::from_millis(1)).await;
    assert_eq!(status(&ban, client).await, 200);
    assert_eq!(at_accept(&ban, VICTIM), None);
    // Its strikes are spent: the next two are as good as the first two were.
    assert!(!ban.strike(&client, 2));
    assert_eq!(status(&ban, client).await, 200);
}

#[tokio::test(start_paused = true)]
async fn bans_double_up_to_the_longest_and_levels_are_forgotten_one_by_one() {
    let (ban, journal) = build(Ban::builder());
    let client = direct(VICTIM);
    let strike = || {
        assert!(ban.strike(&client, 10));
        ban.banned_for(&client).unwrap().as_secs()
    };
    let mut bans = Vec::new();
    for _ in 0..12 {
        bans.push(strike());
        advance(Duration::from_secs(bans[bans.len() - 1])).await;
    }
    assert_eq!(
        bans,
        [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600, 3600]
    );
    assert_eq!(journal.bans().len(), 12);
    // Each ten minutes forget a level, and no more were gathered than make the longest ban.
    advance(20 * MINUTE).await;
    assert_eq!(strike(), 1280);
    advance(Duration::from_secs(1280) + 90 * MINUTE).await;
    assert_eq!(strike(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_too_small_keeps_the_longest_bans() {
    let (ban, journal) = build(Ban::builder().capacity(64));
    let abuser = direct(VICTIM);
    ban.ban(&abuser, 60 * MINUTE);
    for n in 0..10_000u32 {
        let address = Ipv4Addr::from_bits(0x0a00_0000 + n);
        let client = Client::from_peer(Some(address.into()), Prefix::default());
        assert!(ban.ban(&client, 10 * SECOND));
        ban.strike(&direct("198.51.100.1"), 1);
    }
    assert_eq!(ban.banned_for(&abuser), Some(60 * MINUTE));
    let gauge = |gauge| journal.gauge(Guard::Ban, gauge).unwrap();
    assert_eq!(gauge(Gauge::KeyCapacity), 64);
    assert!(gauge(Gauge::Keys) <= 64);
    assert!(gauge(Gauge::KeysEvicted) > 9_000);
}

#[tokio::test(start_paused = true)]
async fn a_client_without_an_address_is_never_struck_or_banned() {
    let (ban, journal) = build(three_strikes().strike_for(Reason::BadRequest, 3));
    for address in ["0.0.0.0", "::", "::ffff:0.0.0.0"] {
        let unknown = direct(address);
        assert!(!ban.strike(&unknown, 100) && !ban.ban(&unknown, MINUTE));
        let refused = rejection(Reason::BadRequest);
        let of_conn = conn(address);
        ban.record(&Event::refused(&refused, Mode::Enforce, Some(&of_conn)));
        ban.record(&Event::refused(&refused, Mode::Enforce, None));
        assert_eq!(status(&ban, unknown).await, 200);
        assert_eq!(ban.banned_for(&unknown), None);
        ban.unban(&unknown);
    }
    assert_eq!(journal.bans(), []);
    assert_eq!(journal.gauge(Guard::Ban, Gauge::Keys), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_list_of_all_addresses_does_not_refuse_what_has_none() {
    let all = Networks::parse("0.0.0.0/0\n::/0").unwrap();
    let ban = Ban::denying(all);
    assert_eq!(status(&ban, direct("::")).await, 200);
    assert_eq!(at_accept(&ban, "::"), None);
    assert_eq!(status(&ban, direct("2001:db8::1")).await, 403);
    assert_eq!(at_accept(&ban, "::ffff:192.0.2.1"), Some(Reason::Denied));
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_floods_is_not_banned_and_its_clients_are() {
    let (ban, journal) = build(three_strikes().strike_for(Reason::BadRequest, 1));
    let trust = Trust::networks("10.0.0.0/8".parse::<palisade_ban::Network>().unwrap());
    let proxy = Arc::new(
        ConnInfo::with_state((ip("10.0.0.1"), 1).into(), None, Prefix::default(), ()).of_proxy(),
    ) as Arc<ConnInfo>;
    let refused = rejection(Reason::BadRequest);
    let of_proxy = trust.resolve(Some(ip("10.0.0.1")), &HeaderMap::new());
    assert!(of_proxy.is_proxy());
    for _ in 0..1_000 {
        let event = Event::refused(&refused, Mode::Enforce, Some(&proxy));
        ban.record(&event);
        ban.record(&event.of_client(Some(&of_proxy)));
        let slow = violation(Reason::BadRequest);
        ban.record(&Event::disconnected(&slow, Mode::Enforce, &proxy));
        assert!(!ban.strike(&of_proxy, 1) && !ban.ban(&of_proxy, MINUTE));
    }
    assert_eq!(journal.bans(), []);
    let client = forwarded(&trust, "10.0.0.1", VICTIM);
    for _ in 0..3 {
        let event = Event::refused(&refused, Mode::Enforce, Some(&proxy));
        ban.record(&event.of_client(Some(&client)));
    }
    assert_eq!(journal.bans().len(), 1);
    assert_eq!(status(&ban, client).await, 403);
    assert_eq!(status(&ban, of_proxy).await, 200);
    assert!(ban.refusal(&proxy).is_none());
    // Nor is a proxy denied, by whatever list.
    let ban = Ban::denying("10.0.0.0/8".parse::<palisade_ban::Network>().unwrap());
    assert_eq!(status(&ban, of_proxy).await, 200);
    assert!(ban.refusal(&proxy).is_none());
}

#[tokio::test(start_paused = true)]
async fn behind_proxies_that_nothing_names_no_peer_is_banned() {
    let (ban, journal) = build(
        three_strikes()
            .strike_for(Reason::BadRequest, 3)
            .behind_proxy(),
    );
    let refused = rejection(Reason::BadRequest);
    let proxy = conn("10.0.0.1");
    ban.record(&Event::refused(&refused, Mode::Enforce, Some(&proxy)));
    assert_eq!(ban.client_of(request(proxy.clone()).extensions()), None);
    assert_eq!(journal.bans(), []);
    let client = direct(VICTIM); // Found by a layer of the application.
    let event = Event::refused(&refused, Mode::Enforce, Some(&proxy));
    ban.record(&event.of_client(Some(&client)));
    assert_eq!(journal.bans().len(), 1);
    assert_eq!(status(&ban, client).await, 403);
}

#[tokio::test(start_paused = true)]
async fn a_client_is_one_whether_it_is_direct_or_forwarded() {
    let trust = Trust::networks("10.0.0.0/8".parse::<palisade_ban::Network>().unwrap());
    for address in [VICTIM, "2001:db8::1"] {
        let client = forwarded(&trust, "10.0.0.1", address);
        assert_eq!(client.source(), AddressSource::Forwarded);
        let (ban, journal) = build(three_strikes());
        ban.strike(&client, 2);
        ban.strike(&direct(address), 1);
        assert_eq!(journal.bans().len(), 1);
        assert_eq!(status(&ban, client).await, 403);
        assert_eq!(status(&ban, direct(address)).await, 403);
        assert_eq!(at_accept(&ban, address), Some(Reason::Banned));
        ban.unban(&direct(address));
        assert_eq!(status(&ban, client).await, 200);
    }
    // An IPv6 client is its /64.
    let (ban, journal) = build(three_strikes());
    ban.strike(&direct("2001:db8::1"), 3);
    assert_eq!(at_accept(&ban, "2001:db8::ffff"), Some(Reason::Banned));
    assert_eq!(at_accept(&ban, "2001:db8:0:1::1"), None);
    assert_eq!(journal.bans()[0].0, "2001:db8::/64".parse().unwrap());
}

#[tokio::test(start_paused = true)]
async fn refusals_of_a_client_behind_nat64_strike_that_client_and_not_the_translator() {
    let (ban, _) = build(three_strikes().strike_for(Reason::BadRequest, 3));
    let trust = Trust::private().nat64(true);
    let address = format!("64:ff9b::{VICTIM}");
    let client = trust.resolve(Some(ip(&address)), &HeaderMap::new());
    let mut request = request(client);
    request.extensions_mut().insert(conn(&address));
    let facts = palisade_guard::Facts::from_request(&request, true);
    let rejection = rejection(Reason::BadRequest);
    let event = Event::refused(&rejection, Mode::Enforce, facts.conn());
    ban.record(&event.of_client(facts.client()));
    assert_eq!(status(&ban, client).await, 403);
    // All others come from the same /64.
    assert_eq!(at_accept(&ban, "64:ff9b::198.51.100.1"), None);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_writes_the_address_of_a_victim_does_not_keep_it_from_connecting() {
    let (ban, journal) = build(three_strikes());
    let hops = Trust::hops(1);
    let claimed = forwarded(&hops, "198.51.100.66", VICTIM);
    assert!(claimed.is_claim());
    for _ in 0..100 {
        ban.strike(&claimed, 1);
    }
    assert!(ban.ban(&claimed, 60 * MINUTE));
    assert!(!journal.bans().is_empty());
    // What names the address is refused, and the address itself is not.
    assert_eq!(status(&ban, claimed).await, 403);
    assert_eq!(at_accept(&ban, VICTIM), None);
    assert_eq!(status(&ban, direct(VICTIM)).await, 200);
    assert!(!ban.strike(&direct(VICTIM), 2)); // Nor do the strikes count for it.
    assert_eq!(ban.banned_for(&direct(VICTIM)), None);
    ban.unban(&direct(VICTIM));
    assert_eq!(status(&ban, claimed).await, 200);
    // Nor if the table knows the victim from a ban that has ended.
    ban.ban(&direct(VICTIM), SECOND);
    ban.ban(&claimed, 60 * MINUTE);
    advance(2 * SECOND).await;
    assert_eq!(status(&ban, claimed).await, 403);
    assert_eq!(at_accept(&ban, VICTIM), None);
    assert_eq!(status(&ban, direct(VICTIM)).await, 200);
    // What a banned client is, it may not be called either.
    ban.ban(&direct(VICTIM), MINUTE);
    assert_eq!(status(&ban, claimed).await, 403);
    assert_eq!(at_accept(&ban, VICTIM), Some(Reason::Banned));
}

#[tokio::test(start_paused = true)]
async fn an_allowed_network_takes_precedence_over_lists_and_bans() {
    let allowed = Networks::default();
    let builder = three_strikes().deny(Networks::parse("203.0.113.0/24").unwrap());
    let (ban, journal) = build(builder.allow(allowed.clone()));
    let (client, other) = (direct(VICTIM), direct("192.0.2.1"));
    ban.ban(&other, MINUTE);
    assert_eq!(
        (status(&ban, client).await, status(&ban, other).await),
        (403, 403)
    );
    assert_eq!(at_accept(&ban, VICTIM), Some(Reason::Denied));
    assert_eq!(journal.bans().len(), 1);

    allowed.reload("203.0.113.7\n192.0.2.0/24").unwrap();
    assert_eq!(
        (status(&ban, client).await, status(&ban, other).await),
        (200, 200)
    );
    assert_eq!(
        (at_accept(&ban, VICTIM), at_accept(&ban, "192.0.2.1")),
        (None, None)
    );
    // Nothing is held against an allowed client, so no firewall hears of it.
    let third = direct("192.0.2.3");
    assert!(!ban.strike(&third, 100) && !ban.ban(&third, MINUTE));
    assert_eq!(journal.bans().len(), 1);

    allowed.replace(palisade_ban::NetworkSet::default());
    assert_eq!(status(&ban, other).await, 403); // The ban has not ended.
    assert_eq!(status(&ban, third).await, 200);
    let gauge = |gauge| journal.gauge(Guard::Ban, gauge);
    advance(5 * SECOND).await;
    assert_eq!(gauge(Gauge::AllowedNetworks), Some(0));
    assert_eq!(gauge(Gauge::AllowedNetworksAge), Some(5));
    assert_eq!(gauge(Gauge::DeniedNetworks), Some(1));
    assert_eq!(gauge(Gauge::DeniedNetworksAge), Some(5));
}

#[tokio::test(start_paused = true)]
async fn in_shadow_mode_bans_are_recorded_and_nothing_is_refused() {
    let denied = Networks::parse("198.51.100.0/24").unwrap();
    let (ban, journal) = build(three_strikes().deny(denied).mode(Mode::Shadow));
    let client = direct(VICTIM);
    assert!(!ban.strike(&client, 3) && !ban.ban(&client, MINUTE));
    assert_eq!(journal.bans()[0].2, Mode::Shadow);
    let seen = Journal::default();
    let layer = BanLayer::new(ban.clone()).metrics(seen.clone());
    for address in [VICTIM, "198.51.100.1"] {
        let response = respond(&layer, request(direct(address))).await;
        assert_eq!(response.status(), 200);
        assert_eq!(ban.refusal(&conn(address)).unwrap().1, Mode::Shadow);
    }
    let refusals = seen.refusals();
    let refusals: Vec<_> = refusals.iter().map(|(v, mode)| (v.reason, *mode)).collect();
    let expected = [
        (Reason::Banned, Mode::Shadow),
        (Reason::Denied, Mode::Shadow),
    ];
    assert_eq!(refusals, expected);

    // A layer in shadow mode refuses nothing either, and one that is off says nothing.
    let (ban, _) = build(three_strikes());
    ban.strike(&client, 3);
    for (mode, recorded) in [(Mode::Shadow, 1), (Mode::Off, 0)] {
        let seen = Journal::default();
        let layer = BanLayer::new(ban.clone()).mode(mode).metrics(seen.clone());
        assert_eq!(respond(&layer, request(client)).await.status(), 200);
        assert_eq!(seen.refusals().len(), recorded);
    }
    // A ban that is off counts nothing.
    let (ban, journal) = build(three_strikes().mode(Mode::Off));
    assert!(!ban.strike(&client, 3) && !ban.ban(&client, MINUTE));
    assert_eq!((journal.bans().len(), status(&ban, client).await), (0, 200));
    assert!(ban.refusal(&conn(VICTIM)).is_none());
}

#[tokio::test(start_paused = true)]
async fn refusals_are_strikes_for_the_chosen_reasons_and_if_they_are_enforced() {
    let builder = three_strikes()
        .strike_for(Reason::BadRequest, 1)
        .strike_for(Reason::Gap, 1)
        .strike_for(Reason::SlowHead, 1);
    let (ban, journal) = build(builder);
    let peer = conn(VICTIM);
    for mode in [Mode::Shadow, Mode::Off] {
        for _ in 0..100 {
            ban.record(&Event::refused(
                &rejection(Reason::BadRequest),
                mode,
                Some(&peer),
            ));
            ban.record(&Event::cut(&violation(Reason::Gap), mode, Some(&peer)));
            ban.record(&Event::disconnected(
                &violation(Reason::SlowHead),
                mode,
                &peer,
            ));
        }
    }
    for _ in 0..100 {
        let unchosen = rejection(Reason::RateExceeded);
        ban.record(&Event::refused(&unchosen, Mode::Enforce, Some(&peer)));
        ban.record(&Event::opened(&peer));
    }
    assert_eq!(journal.bans(), []);
    ban.record(&Event::refused(
        &rejection(Reason::BadRequest),
        Mode::Enforce,
        Some(&peer),
    ));
    ban.record(&Event::cut(
        &violation(Reason::Gap),
        Mode::Enforce,
        Some(&peer),
    ));
    assert_eq!(journal.bans(), []);
    ban.record(&Event::disconnected(
        &violation(Reason::SlowHead),
        Mode::Enforce,
        &peer,
    ));
    let network = "203.0.113.7/32".parse().unwrap();
    assert_eq!(
        journal.bans(),
        [(network, Some(Reason::SlowHead), Mode::Enforce)]
    );

    // None by default.
    let (ban, journal) = build(Ban::builder());
    for reason in Reason::ALL {
        for _ in 0..100 {
            ban.record(&Event::refused(
                &rejection(*reason),
                Mode::Enforce,
                Some(&peer),
            ));
        }
    }
    assert_eq!(journal.bans(), []);
}

#[tokio::test(start_paused = true)]
async fn a_ban_is_recorded_once_and_again_if_it_becomes_twice_as_long() {
    let (ban, journal) = build(Ban::builder());
    let client = direct(VICTIM);
    for _ in 0..1_000 {
        assert!(ban.ban(&client, MINUTE));
        advance(Duration::from_millis(10)).await;
    }
    assert_eq!(journal.bans().len(), 1);
    assert_eq!(
        ban.banned_for(&client),
        Some(MINUTE - Duration::from_millis(10))
    );
    ban.ban(&client, 10 * MINUTE);
    assert_eq!(journal.bans().len(), 2);
    ban.ban(&client, MINUTE); // A longer one stays.
    assert_eq!(ban.banned_for(&client), Some(10 * MINUTE));
    assert_eq!(journal.bans().len(), 2);
    assert!(!ban.ban(&direct("192.0.2.1"), Duration::ZERO));
    // No ban is longer than the table can tell.
    ban.ban(&direct("192.0.2.1"), Duration::MAX);
    let days = ban.banned_for(&direct("192.0.2.1")).unwrap().as_secs() / 86_400;
    assert_eq!(days, 12);
}

#[test]
fn strikes_of_many_threads_at_once_are_one_ban() {
    let (ban, journal) = build(Ban::builder().strikes(1, SECOND));
    let client = direct(VICTIM);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..1_000).for_each(|_| _ = ban.strike(&client, 1)));
        }
    });
    assert_eq!(journal.bans().len(), 1);
    let left = ban.banned_for(&client).unwrap();
    assert!(left <= 10 * SECOND, "{left:?}"); // And no thread has raised the level.
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_gets_403_and_a_grpc_call_permission_denied() {
    let seen = Journal::default();
    let ban = Ban::denying(Networks::parse(VICTIM).unwrap());
    let layer = BanLayer::new(ban).metrics(seen.clone());
    let response = respond(&layer, request(conn(VICTIM))).await;
    assert_eq!(response.status(), 403);
    assert!(response.headers().get("retry-after").is_none());

    let mut call = request(conn(VICTIM));
    *call.method_mut() = http::Method::POST;
    *call.version_mut() = Version::HTTP_2;
    call.headers_mut()
        .insert(CONTENT_TYPE, "application/grpc".parse().unwrap());
    let response = respond(&layer, call).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "7");
    assert_eq!(response.headers()["grpc-message"], "access denied");
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "-1");
    assert_eq!(seen.refused(), [(Guard::Ban, Reason::Denied); 2]);
}

#[test]
fn every_wrong_option_is_named() {
    let wrong = Ban::builder()
        .strikes(10, Duration::from_micros(9))
        .strike_for(Reason::Banned, 1)
        .strike_for(Reason::Denied, 1)
        .ban_times(2 * SECOND, SECOND)
        .forgive_after(Duration::ZERO)
        .capacity(0);
    let error = wrong.build().unwrap_err();
    let fields: Vec<_> = error.faults().iter().map(|fault| &*fault.field).collect();
    let expected = [
        "strikes",
        "strike_for",
        "strike_for",
        "ban_times",
        "forgive_after",
        "capacity",
    ];
    assert_eq!(fields, expected);
    let day = 24 * 60 * MINUTE;
    let widest = Ban::builder()
        .strikes(1_000_000, day)
        .ban_times(SECOND, day)
        .forgive_after(day / 2)
        .capacity(1);
    assert!(widest.build().is_ok());
}

#[test]
fn a_client_found_by_the_guard_is_read_before_the_peer() {
    let ban = Ban::builder().build().unwrap();
    let mut request = request(conn("10.0.0.1"));
    let peer = ban.client_of(request.extensions()).unwrap();
    assert_eq!(
        (peer.address(), peer.found()),
        (Some(ip("10.0.0.1")), Found::Peer)
    );
    request.extensions_mut().insert(direct(VICTIM));
    let client = ban.client_of(request.extensions()).unwrap();
    assert_eq!(client.address(), Some(ip(VICTIM)));
    assert_eq!(ban.client_of(&http::Extensions::new()), None);
}

proptest! {
    /// A bucket that holds `max` strikes and loses one per `time / max`.
    #[test]
    fn strikes_ban_when_a_leaky_bucket_overflows(
        max in 1u32..20,
        seconds in 1u64..100,
        strikes in proptest::collection::vec((0u64..20_000, 1u32..4), 1..60),
    ) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let time = Duration::from_secs(seconds);
            let ban = Ban::builder().strikes(max, time).build().unwrap();
            let client = direct(VICTIM);
            let each = time.as_micros() as u64 / u64::from(max);
            let mut debt = 0u64;
            for (pause, count) in strikes {
                advance(Duration::from_millis(pause)).await;
                debt = debt.saturating_sub(pause * 1_000) + u64::from(count) * each;
                let overflows = debt > u64::from(max - 1) * each;
                prop_assert_eq!(ban.strike(&client, count), overflows);
                if overflows {
                    break;
                }
            }
            Ok(())
        })?;
    }
}
