//! What a set of networks takes, and that a search for the client takes nothing.
//!
//! One test, because the counters belong to the process.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use http::{HeaderMap, HeaderName, HeaderValue, Request};
use palisade_client_ip::{Client, Found, NetworkSet, Networks, Prefix, Source, Trust};
use palisade_core::ConnInfo;
use palisade_testkit::alloc::CountingAllocator;
use std::{fmt::Write, hint::black_box, net::Ipv6Addr};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

#[test]
fn networks_take_4_mib_and_a_search_for_the_client_allocates_nothing() {
    const NETWORKS: u128 = 100_000;
    let mut text = String::new();
    for n in 0..NETWORKS {
        let first = Ipv6Addr::from_bits((0x2001 << 112) | (n << 65));
        writeln!(text, "{first}/64").unwrap();
    }
    let before = ALLOCATOR.live();
    let proxies = Networks::parse(&text).unwrap();
    assert_eq!(proxies.len(), NETWORKS as usize);
    let taken = ALLOCATOR.live() - before;
    assert!(taken <= 4 << 20, "{taken}");
    for _ in 0..3 {
        proxies.reload(&text).unwrap();
        assert!(ALLOCATOR.live() - before <= 4 << 20); // The set before is gone.
    }
    proxies.replace(NetworkSet::parse("10.0.0.0/8\n198.51.100.0/24").unwrap());

    let long = "x".repeat(60_000);
    let commas = ",".repeat(5_000);
    let quotes = "\\\"".repeat(2_000);
    let deep = "10.0.0.1, ".repeat(100);
    let lines = [
        "203.0.113.7, 198.51.100.9, 10.0.0.9",
        "[2001:db8::7]:443, 198.51.100.9:80",
        "for=\"[2001:db8::7]:443\";proto=https, for=\"198.51.100\\.9\"",
        &long,
        &commas,
        &quotes,
        &deep,
    ];
    for source in [
        Source::XForwardedFor,
        Source::Forwarded,
        Source::Field(HeaderName::from_static("x-real-ip")),
    ] {
        let trust = Trust::networks(proxies.clone()).source(source);
        let trust = trust.nat64(true).six_to_four(true);
        for line in lines {
            let mut headers = HeaderMap::new();
            headers.insert(trust.field().clone(), HeaderValue::from_str(line).unwrap());
            for peer in [[10, 0, 0, 7], [203, 0, 113, 7]] {
                // A thread's first look at a set, and the first key of the process.
                let first = trust.resolve(Some(peer.into()), &headers);
                let before = ALLOCATOR.allocations();
                let again = black_box(&trust).resolve(Some(peer.into()), &headers);
                assert_eq!(ALLOCATOR.allocations(), before);
                assert_eq!(first, again);
            }
        }
    }

    // As an extension, the client is one allocation.
    let mut request = Request::new(());
    let conn = ConnInfo::new(([10, 0, 0, 7], 80).into(), None, Prefix::default());
    request.extensions_mut().insert(conn.clone());
    request.headers_mut().insert(
        "x-forwarded-for",
        HeaderValue::from_static("203.0.113.7, 10.0.0.9"),
    );
    let trust = Trust::networks(proxies);
    let before = ALLOCATOR.allocations();
    let client = trust.identify_connection(&conn, request.headers());
    request.extensions_mut().insert(client);
    assert_eq!(ALLOCATOR.allocations(), before + 1);
    let inserted = Client::from_extensions(request.extensions()).unwrap();
    assert_eq!((inserted, inserted.found()), (&client, Found::Forwarded));
}
