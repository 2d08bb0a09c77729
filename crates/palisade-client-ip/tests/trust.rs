//! The client that a request counts for, whatever is in its fields.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::Full;
use palisade_client_ip::{
    Client, ClientIp, ClientIpLayer, Found, Missing, NetworkSet, Networks, Prefix, Source, Trust,
};
use palisade_core::{ClientKey, ConnInfo, KeyExtractor, KeyOutcome, RequestHead};
use palisade_testkit::contract;
use proptest::{collection::vec, prelude::*};
use std::{
    collections::HashSet,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
};
use tower::{Layer, ServiceExt, service_fn};

const XFF: &str = "x-forwarded-for";
/// Every field by which a proxy is known to name a client.
const KNOWN_FIELDS: [&str; 16] = [
    XFF,
    "forwarded",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "true-client-ip",
    "fly-client-ip",
    "fastly-client-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-envoy-external-address",
    "x-original-forwarded-for",
    "x-forwarded",
];
const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn fields(name: &str, lines: &[&str]) -> HeaderMap {
    let name: HeaderName = name.parse().unwrap();
    let lines = lines
        .iter()
        .map(|line| HeaderValue::from_bytes(line.as_bytes()).unwrap());
    lines.map(|line| (name.clone(), line)).collect()
}

/// What a trusted proxy's request with these lines of `X-Forwarded-For` counts for.
fn forwarded_for(lines: &[&str]) -> (IpAddr, Found) {
    let client = Trust::private().resolve(Some(PROXY), &fields(XFF, lines));
    (client.address().unwrap(), client.found())
}

fn forwarded(lines: &[&str]) -> (IpAddr, Found) {
    let trust = Trust::private().source(Source::Forwarded);
    let client = trust.resolve(Some(PROXY), &fields("forwarded", lines));
    (client.address().unwrap(), client.found())
}

// === The options ===

#[test]
fn trust_in_every_address_is_a_fault_that_gives_the_reason() {
    for (text, field) in [
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("::/0", "::/0"),
        ("0.0.0.0/1\n128.0.0.0/1", "0.0.0.0/0"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
    ] {
        let trust = Trust::networks(NetworkSet::parse(text).unwrap());
        let error = trust.check().unwrap_err();
        assert_eq!(error.faults().len(), 1);
        assert_eq!(error.faults()[0].value, field);
        assert!(error.faults()[0].allowed.contains("write its own address"));
        assert!(ClientIpLayer::new(trust).is_err());
    }
}

#[test]
fn networks_that_get_every_address_later_trust_none_of_them() {
    let networks = Networks::parse("10.0.0.0/8").unwrap();
    let trust = Trust::networks(networks.clone());
    let line = fields(XFF, &["6.6.6.6"]);
    assert_eq!(
        trust.resolve(Some(PROXY), &line).address(),
        Some(ip("6.6.6.6"))
    );
    networks.reload("0.0.0.0/0\n2001:db8::/32").unwrap();
    assert_eq!(trust.resolve(Some(PROXY), &line).address(), Some(PROXY));
    // The other family is not concerned.
    let v6 = trust.resolve(Some(ip("2001:db8::1")), &line);
    assert_eq!(v6.address(), Some(ip("6.6.6.6")));
    networks.reload("").unwrap();
    assert_eq!(trust.resolve(Some(PROXY), &line).found(), Found::Peer);
}

#[test]
fn a_number_of_hops_that_no_list_can_have_is_a_fault() {
    for hops in [0, 33, usize::MAX] {
        let error = Trust::hops(hops).check().unwrap_err();
        assert_eq!(error.faults()[0].field, "hops");
        assert!(Trust::private().and_hops(hops).check().is_err());
    }
    for hops in [1, 32] {
        Trust::hops(hops).check().unwrap();
    }
    let field = Source::Field(HeaderName::from_static("x-real-ip"));
    Trust::hops(1).source(field.clone()).check().unwrap();
    assert!(Trust::hops(2).source(field).check().is_err());
    // Unchecked, they take nothing from the field that a proxy did not write.
    let line = fields(XFF, &["6.6.6.6, 203.0.113.7"]);
    let client = Trust::hops(0).resolve(Some(PROXY), &line);
    assert_eq!(client.address(), Some(ip("203.0.113.7")));
    assert_eq!(
        Trust::hops(usize::MAX).resolve(Some(PROXY), &line).found(),
        Found::Short
    );
}

#[test]
fn a_list_is_no_field_with_one_address() {
    for name in [XFF, "forwarded"] {
        let source = Source::Field(HeaderName::from_static(name));
        assert!(Trust::private().source(source).check().is_err());
    }
}

#[test]
fn private_networks_are_those_of_the_documentation() {
    let trust = Trust::private();
    let line = fields(XFF, &["203.0.113.7"]);
    let is_trusted = |peer: &str| trust.resolve(Some(ip(peer)), &line).is_forwarded();
    for peer in [
        "127.0.0.1",
        "127.255.255.255",
        "::1",
        "10.0.0.0",
        "10.255.255.255",
        "172.16.0.0",
        "172.31.255.255",
        "192.168.0.1",
        "169.254.1.1",
        "fe80::1",
        "febf::1",
        "fc00::1",
        "fdff::1",
        "::ffff:10.1.2.3",
    ] {
        assert!(is_trusted(peer), "{peer}");
    }
    for peer in [
        "126.255.255.255",
        "128.0.0.0",
        "11.0.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.0.1",
        "192.169.0.1",
        "169.253.0.1",
        "100.64.0.1",
        "::2",
        "fec0::1",
        "fe7f::1",
        "fe00::1",
        "fbff::1",
        "2001:db8::1",
        "64:ff9b::10.0.0.1",
        "2002:a00:1::1",
    ] {
        assert!(!is_trusted(peer), "{peer}");
    }
}

// === Spoofing ===

#[test]
fn ten_thousand_values_of_every_known_field_from_an_untrusted_peer_are_one_client() {
    let mut trusts = vec![
        Trust::private(),
        Trust::private().and_hops(1),
        Trust::private().and_hops(2),
        Trust::private().source(Source::Forwarded),
    ];
    trusts.extend(KNOWN_FIELDS[2..].iter().map(|name| {
        let name = HeaderName::from_static(name);
        Trust::private().source(Source::Field(name))
    }));
    let mut keys = vec![HashSet::new(); trusts.len()];
    let mut headers = HeaderMap::new();
    for n in 0..10_000u32 {
        let [_, a, b, c] = n.wrapping_mul(0x9e37_79b1).to_be_bytes();
        for name in KNOWN_FIELDS {
            let value = match name {
                "forwarded" => format!("for=6.{a}.{b}.{c}"),
                XFF => format!("6.{a}.{b}.{c}, 10.0.0.7"),
                _ => format!("6.{a}.{b}.{c}"),
            };
            headers.insert(name, value.parse().unwrap());
        }
        for (trust, keys) in trusts.iter().zip(&mut keys) {
            let client = trust.resolve(Some(ip("203.0.113.7")), &headers);
            assert_eq!(client.found(), Found::Peer);
            keys.insert(client.key());
        }
    }
    for (trust, keys) in trusts.iter().zip(&keys) {
        trust.check().unwrap();
        assert_eq!(keys.len(), 1);
        // The same fields from a trusted proxy are many clients, so the values do differ.
        let believed = trust.resolve(Some(PROXY), &headers);
        assert!(believed.is_forwarded() || believed.found() == Found::Short);
    }
}

#[test]
fn ten_thousand_values_through_a_proxy_that_appends_are_one_client() {
    let (plain, list) = (Trust::private(), Trust::private().source(Source::Forwarded));
    let mut keys = HashSet::new();
    for n in 0..10_000u32 {
        let theirs = match n % 8 {
            0 => format!("6.6.{}.{}", n >> 8, n & 255),
            1 => "10.0.0.1".to_owned(),
            2 => "unknown".to_owned(),
            3 => "\"".to_owned(),
            4 => ",".repeat(n as usize % 500),
            5 => format!("for=\"6.6.6.{}", n & 255),
            6 => "\\\"".to_owned(),
            _ => "x".repeat(n as usize % 5000),
        };
        let line = format!("{theirs}, 203.0.113.7");
        // HAProxy adds a line of its own.
        for lines in [&[&*line][..], &[&*theirs, "203.0.113.7"]] {
            let client = plain.resolve(Some(PROXY), &fields(XFF, lines));
            assert_eq!(client.address(), Some(ip("203.0.113.7")), "{line}");
            keys.insert(client.key());
        }
        let line = format!("{theirs}, for=\"203.0.113.7:80\";proto=https");
        let client = list.resolve(Some(PROXY), &fields("forwarded", &[&line]));
        assert_eq!(client.address(), Some(ip("203.0.113.7")), "{line}");
        keys.insert(client.key());
    }
    assert_eq!(keys.len(), 1);
}

#[test]
fn no_other_field_is_read_where_the_configured_one_is_missing() {
    let mut headers = HeaderMap::new();
    for name in KNOWN_FIELDS {
        headers.insert(name, "6.6.6.6".parse().unwrap());
    }
    for name in KNOWN_FIELDS {
        let source = match name {
            XFF => Source::XForwardedFor,
            "forwarded" => Source::Forwarded,
            _ => Source::Field(HeaderName::from_static(name)),
        };
        let mut others = headers.clone();
        others.remove(name);
        let client = Trust::private()
            .source(source)
            .resolve(Some(PROXY), &others);
        assert_eq!(
            (client.address(), client.found()),
            (Some(PROXY), Found::Missing)
        );
    }
}

#[test]
fn hops_alone_believe_a_direct_peer_and_say_so() {
    // The peer writes the address of a victim.
    let client = Trust::hops(1).resolve(Some(ip("198.51.100.1")), &fields(XFF, &["203.0.113.7"]));
    assert_eq!(client.address(), Some(ip("203.0.113.7")));
    assert!(client.is_claim());
    let direct = Trust::hops(1).resolve(Some(ip("203.0.113.7")), &HeaderMap::new());
    assert!(!direct.is_claim());
    assert_eq!(client.key(), direct.key());
}

// === Fields ===

#[test]
fn the_field_twice_on_one_line_or_on_two_lines_is_one_list() {
    let client = (ip("203.0.113.7"), Found::Forwarded);
    assert_eq!(forwarded_for(&["6.6.6.6, 203.0.113.7"]), client);
    assert_eq!(forwarded_for(&["6.6.6.6", "203.0.113.7"]), client);
    assert_eq!(
        forwarded_for(&["6.6.6.6", "203.0.113.7, 10.0.0.1", "10.0.0.2"]),
        client
    );
    assert_eq!(
        forwarded(&["for=6.6.6.6", "for=203.0.113.7, for=10.0.0.1"]),
        client
    );
}

#[tokio::test]
async fn the_field_on_two_lines_over_http_2_is_one_list() {
    let (client_io, server_io) = tokio::io::duplex(64 * 1024);
    let serve = async {
        let mut server = h2::server::handshake(server_io).await.unwrap();
        let (request, mut respond) = server.accept().await.unwrap().unwrap();
        respond.send_response(Response::new(()), true).unwrap();
        assert!(server.accept().await.is_none());
        request.headers().clone()
    };
    let send = async {
        let (mut client, connection) = h2::client::handshake(client_io).await.unwrap();
        let exchange = async {
            let request = Request::get("http://localhost/");
            let request = request.header(XFF, "6.6.6.6").header(XFF, "203.0.113.7");
            let request = request.body(()).unwrap();
            let (response, _) = client.send_request(request, true).unwrap();
            drop(client);
            assert_eq!(response.await.unwrap().status(), 200);
        };
        let ((), ended) = tokio::join!(exchange, connection);
        ended.unwrap();
    };
    let (headers, ()) = tokio::join!(serve, send);
    assert_eq!(headers.get_all(XFF).iter().count(), 2);
    let client = Trust::private().resolve(Some(PROXY), &headers);
    assert_eq!(client.address(), Some(ip("203.0.113.7")));
}

#[test]
fn an_element_of_4097_bytes_ends_the_search() {
    for bytes in [4096, 4097, 60_000] {
        let long = "1".repeat(bytes);
        let (client, found) = forwarded_for(&[&long]);
        assert_eq!(client, PROXY);
        let is_over = bytes > 4096;
        assert_eq!(found == Found::TooLong, is_over);
        // What a proxy has written on its right is found as ever.
        let appended = format!("{long}, 10.0.0.2");
        assert_eq!(forwarded_for(&[&appended]).0, ip("10.0.0.2"));
        let appended = format!("{long}, 203.0.113.7");
        assert_eq!(
            forwarded_for(&[&appended]),
            (ip("203.0.113.7"), Found::Forwarded)
        );
        let quoted = format!("for=\"{long}, for=203.0.113.7");
        assert_eq!(forwarded(&[&quoted]), (ip("203.0.113.7"), Found::Forwarded));
    }
}

#[test]
fn the_33rd_element_ends_the_search() {
    let proxies = |count| vec!["10.0.0.1"; count].join(",");
    let found = |count| forwarded_for(&[&format!("203.0.113.7,{}", proxies(count))]);
    assert_eq!(found(31), (ip("203.0.113.7"), Found::Forwarded));
    assert_eq!(found(32), (ip("10.0.0.1"), Found::TooLong));
    assert_eq!(found(1000), (ip("10.0.0.1"), Found::TooLong));
    // Empty elements and lines count.
    let commas = format!("203.0.113.7{}", ",".repeat(32));
    assert_eq!(forwarded_for(&[&commas]), (PROXY, Found::TooLong));
    let commas = format!("203.0.113.7{}", ",".repeat(31));
    assert_eq!(
        forwarded_for(&[&commas]),
        (ip("203.0.113.7"), Found::Forwarded)
    );
    let mut lines = vec!["203.0.113.7"];
    lines.resize(33, "");
    assert_eq!(forwarded_for(&lines), (PROXY, Found::TooLong));
    // A list that is too long is not one that is too short.
    let long = fields(XFF, &[&vec!["203.0.113.7"; 40].join(",")]);
    let client = Trust::hops(32).resolve(Some(PROXY), &long);
    assert_eq!(client.found(), Found::Forwarded);
}

#[test]
fn commas_and_quotes_in_quotes_hide_no_element() {
    let client = (ip("203.0.113.7"), Found::Forwarded);
    for line in [
        r#"for=203.0.113.7;by="a,for=6.6.6.6""#,
        r#"for=203.0.113.7;by="a\",for=6.6.6.6""#,
        r#"for="203.0.113.7";by="\\", for=10.0.0.1"#,
        r#"for=6.6.6.6, for=203.0.113.7;by=",,,", for=10.0.0.1;by="\"""#,
        r#"for=", for=203.0.113.7"#,
        r#"for="\", for=203.0.113.7"#,
        r#"", for="203.0.113.7""#,
    ] {
        assert_eq!(forwarded(&[line]), client, "{line}");
    }
    // A quote that a proxy left open.
    assert_eq!(
        forwarded(&[r#"for=6.6.6.6, for="203.0.113.7"#]),
        (PROXY, Found::Malformed)
    );
    // `X-Forwarded-For` has no quotes.
    assert_eq!(
        forwarded_for(&[r#"6.6.6.6, "203.0.113.7""#]),
        (PROXY, Found::Malformed)
    );
    assert_eq!(forwarded_for(&[r#""6.6.6.6, 203.0.113.7"#]), client);
}

#[test]
fn text_that_is_not_an_address_ends_the_search_at_the_last_proxy() {
    for text in [
        "unknown",
        "_hidden",
        "0.0.0.0",
        "::",
        "10.0.0.01",
        "localhost",
        "\u{e4}",
    ] {
        let line = format!("203.0.113.7, {text}, 10.0.0.2");
        assert_eq!(
            forwarded_for(&[&line]),
            (ip("10.0.0.2"), Found::Malformed),
            "{text}"
        );
        let line = format!("203.0.113.7, {text}");
        assert_eq!(forwarded_for(&[&line]), (PROXY, Found::Malformed), "{text}");
        let line = format!("for=203.0.113.7, for=\"{text}\", for=10.0.0.2");
        assert_eq!(
            forwarded(&[&line]),
            (ip("10.0.0.2"), Found::Malformed),
            "{text}"
        );
    }
}

#[test]
fn empty_elements_are_skipped_and_ports_and_zones_are_dropped() {
    let client = (ip("203.0.113.7"), Found::Forwarded);
    for line in [
        "203.0.113.7,",
        ",203.0.113.7, ,,10.0.0.1",
        "203.0.113.7:443,[fe80::1%eth0]:80\t,\tfd00::1",
    ] {
        assert_eq!(forwarded_for(&[line]), client, "{line}");
    }
    for lines in [&[][..], &[""], &[" , ,"], &["", ""]] {
        assert_eq!(forwarded_for(lines), (PROXY, Found::Missing), "{lines:?}");
    }
}

#[test]
fn a_field_with_one_address_is_one_address_on_one_line() {
    let name = "cf-connecting-ip";
    let source = Source::Field(HeaderName::from_static(name));
    let trust = Trust::private().source(source);
    let resolve = |lines: &[&str]| {
        let client = trust.resolve(Some(PROXY), &fields(name, lines));
        (client.address().unwrap(), client.found())
    };
    let client = (ip("2001:db8::7"), Found::Forwarded);
    assert_eq!(resolve(&["2001:db8::7"]), client);
    assert_eq!(resolve(&[" [2001:db8::7]:80\t"]), client);
    assert_eq!(resolve(&["10.0.0.9"]), (ip("10.0.0.9"), Found::AllTrusted));
    let malformed = (PROXY, Found::Malformed);
    assert_eq!(resolve(&["2001:db8::7", "2001:db8::7"]), malformed);
    assert_eq!(resolve(&["6.6.6.6, 2001:db8::7"]), malformed);
    assert_eq!(resolve(&["for=6.6.6.6"]), malformed);
    assert_eq!(resolve(&["6".repeat(4097).as_str()]), malformed);
    assert_eq!(resolve(&[]), (PROXY, Found::Missing));
    assert_eq!(resolve(&[""]), (PROXY, Found::Missing));
}

#[test]
fn the_servers_own_address_is_an_address_like_any_other() {
    // A client writes it, or a server calls itself through its proxy.
    let server = "198.51.100.1";
    assert_eq!(
        forwarded_for(&[&format!("{server}, 203.0.113.7")]),
        (ip("203.0.113.7"), Found::Forwarded)
    );
    assert_eq!(
        forwarded_for(&[&format!("203.0.113.7, {server}")]),
        (ip(server), Found::Forwarded)
    );
    assert_eq!(
        forwarded_for(&["203.0.113.7, 127.0.0.1"]),
        (ip("203.0.113.7"), Found::Forwarded)
    );
    let only = Trust::networks(palisade_client_ip::Network::from(PROXY));
    let client = only.resolve(Some(PROXY), &fields(XFF, &["203.0.113.7, 127.0.0.1"]));
    assert_eq!(client.address(), Some(ip("127.0.0.1")));
}

#[test]
fn ipv4_mapped_addresses_are_ipv4_addresses_everywhere() {
    let mapped = Some(ip("::ffff:10.0.0.7"));
    let line = fields(
        XFF,
        &["::ffff:203.0.113.7, ::ffff:10.0.0.1, [::ffff:10.0.0.2]:80"],
    );
    for trust in [
        Trust::private(),
        Trust::networks(NetworkSet::parse("::ffff:10.0.0.0/104").unwrap()),
    ] {
        let client = trust.resolve(mapped, &line);
        assert_eq!(client.address(), Some(ip("203.0.113.7")));
        let key = ClientKey::address(ip("203.0.113.7"), Prefix::default());
        assert_eq!(client.key(), key);
        let missing = trust.resolve(mapped, &HeaderMap::new());
        assert_eq!(missing.address(), Some(PROXY));
    }
    let untrusted = Trust::private().resolve(Some(ip("::ffff:203.0.113.7")), &line);
    assert_eq!(untrusted.address(), Some(ip("203.0.113.7")));
}

#[test]
fn translated_addresses_are_compared_and_counted_in_their_ipv4_form() {
    let trust = Trust::networks(NetworkSet::parse("198.51.100.0/24").unwrap());
    let trust = trust.nat64(true).six_to_four(true);
    let line = fields(XFF, &["2002:cb00:7107::1, 64:ff9b::198.51.100.2"]);
    let peer = ip("64:ff9b::198.51.100.1");
    let client = trust.resolve(Some(peer), &line);
    assert_eq!(client.address(), Some(ip("203.0.113.7")));
    // The key of the connection is that of another client.
    let conn = ConnInfo::new(SocketAddr::new(peer, 80), None, Prefix::default());
    let proxy = trust.identify_connection(&conn, &HeaderMap::new());
    assert_eq!(proxy.address(), Some(ip("198.51.100.1")));
    let key = ClientKey::address(ip("198.51.100.1"), Prefix::default());
    assert_eq!(proxy.key(), key);
}

#[test]
fn a_client_from_a_unix_socket_is_unknown_unless_such_peers_are_trusted() {
    let line = fields(XFF, &["203.0.113.7"]);
    for trust in [Trust::private(), Trust::hops(1)] {
        for peer in [None, Some(ip("::")), Some(ip("0.0.0.0"))] {
            let client = trust.resolve(peer, &line);
            assert_eq!((client.address(), client.key()), (None, ClientKey::SHARED));
            let trust = trust.clone().unix_peers(true);
            assert_eq!(
                trust.resolve(peer, &line).address(),
                Some(ip("203.0.113.7"))
            );
            let missing = trust.resolve(peer, &HeaderMap::new());
            assert_eq!((missing.address(), missing.found()), (None, Found::Missing));
        }
    }
}

// === The layer ===

/// Returns the client that a handler behind the layer finds.
async fn through(layer: &ClientIpLayer, request: Request<Full<Bytes>>) -> Option<Client> {
    let service = layer.layer(service_fn(async |request: Request<Full<Bytes>>| {
        let client = Client::from_extensions(request.extensions()).copied();
        Ok::<_, Infallible>(client)
    }));
    service.oneshot(request).await.unwrap()
}

fn request(peer: Option<IpAddr>, headers: HeaderMap) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::default());
    if let Some(peer) = peer {
        request.extensions_mut().insert(SocketAddr::new(peer, 4711));
    }
    *request.headers_mut() = headers;
    request
}

#[tokio::test]
async fn the_layer_keeps_towers_contract() {
    contract::assert_contract(ClientIpLayer::new(Trust::private()).unwrap()).await;
}

#[tokio::test]
async fn the_layer_inserts_a_client_unless_there_is_one_or_none_is_known() {
    let layer = ClientIpLayer::new(Trust::private()).unwrap();
    let line = || fields(XFF, &["203.0.113.7"]);
    let client = through(&layer, request(Some(PROXY), line())).await.unwrap();
    assert_eq!(client.address(), Some(ip("203.0.113.7")));
    assert_eq!(through(&layer, request(None, line())).await, None);

    let other = Client::from_peer(Some(ip("192.0.2.1")), Prefix::default());
    let mut resolved = request(Some(PROXY), line());
    resolved.extensions_mut().insert(other);
    assert_eq!(through(&layer, resolved).await, Some(other));

    // Two layers, the inner one without any trust in this proxy: the outer one counts.
    let inner = ClientIpLayer::new(Trust::networks(NetworkSet::default())).unwrap();
    let service = layer.layer(inner.layer(service_fn(async |request: Request<_>| {
        Ok::<_, Infallible>(Client::from_extensions(request.extensions()).copied())
    })));
    let found = service.oneshot(request(Some(PROXY), line())).await.unwrap();
    assert_eq!(found, Some(client));
}

#[tokio::test]
async fn the_key_of_a_connection_is_kept_for_its_peer() {
    let wide = Prefix::new(24, 48).unwrap();
    let layer = ClientIpLayer::new(Trust::private().prefix(wide)).unwrap();
    let of_conn = |peer: IpAddr, headers| {
        let mut request = request(None, headers);
        let conn = ConnInfo::new(SocketAddr::new(peer, 80), None, wide);
        request.extensions_mut().insert(conn);
        request
    };
    let peer = through(&layer, of_conn(ip("203.0.113.9"), HeaderMap::new()))
        .await
        .unwrap();
    let line = fields(XFF, &["203.0.113.7"]);
    let client = through(&layer, of_conn(PROXY, line)).await.unwrap();
    assert_eq!(
        (peer.found(), client.found()),
        (Found::Peer, Found::Forwarded)
    );
    assert_eq!(peer.key(), client.key()); // One /24.
}

#[tokio::test]
async fn every_request_of_a_trusted_proxy_without_a_client_is_counted() {
    let trust = Trust::private().and_hops(2);
    let layer = ClientIpLayer::new(trust.clone()).unwrap();
    let long = vec![""; 33];
    for lines in [
        &[][..],
        &["203.0.113.7"],
        &["unknown"],
        &long,
        &["203.0.113.7, 10.0.0.1"], // Not counted.
    ] {
        through(&layer, request(Some(PROXY), fields(XFF, lines))).await;
    }
    through(
        &layer,
        request(Some(ip("203.0.113.7")), fields(XFF, &["unknown"])),
    )
    .await;
    let totals = trust.totals();
    assert_eq!((totals.missing, totals.short), (1, 1));
    assert_eq!((totals.malformed, totals.too_long), (1, 1));
}

#[cfg(feature = "tracing")]
#[tokio::test]
async fn each_kind_of_mistake_is_logged_once_and_without_text_of_the_field() {
    use std::sync::{Arc, Mutex};
    use tracing::{Event, Metadata, Subscriber, field, span};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl Subscriber for Lines {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut line = String::new();
            event.record(&mut |field: &field::Field, value: &dyn std::fmt::Debug| {
                line += &format!("{field}={value:?} ");
            });
            self.0.lock().unwrap().push(line);
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    let lines = Lines::default();
    let subscriber = tracing::subscriber::set_default(lines.clone());
    let layer = ClientIpLayer::new(Trust::private()).unwrap();
    for _ in 0..3 {
        through(&layer, request(Some(PROXY), HeaderMap::new())).await;
        through(&layer, request(Some(PROXY), fields(XFF, &["theirs"]))).await;
        through(&layer, request(Some(PROXY), fields(XFF, &["203.0.113.7"]))).await;
        through(
            &layer,
            request(Some(ip("203.0.113.7")), fields(XFF, &["theirs"])),
        )
        .await;
    }
    drop(subscriber);
    let lines = lines.0.lock().unwrap();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("peer=10.0.0.7") && lines[0].contains("found=Missing"));
    assert!(lines[1].contains("field=x-forwarded-for") && lines[1].contains("found=Malformed"));
    assert!(!lines[1].contains("theirs"));
}

#[test]
fn the_key_extractor_reads_the_client_before_anything_else() {
    let conn = ConnInfo::new(SocketAddr::new(PROXY, 80), None, Prefix::default());
    let mut request = request(Some(PROXY), HeaderMap::new());
    request.extensions_mut().insert(conn);
    let extract = |by: ClientIp, request: &Request<_>| by.extract(&RequestHead::from(request));
    let key = |address: &str, prefix| KeyOutcome::Key(ClientKey::address(ip(address), prefix));
    let default = Prefix::default();
    assert_eq!(
        extract(ClientIp::peer(), &request),
        key("10.0.0.7", default)
    );
    let client = Client::from_peer(Some(ip("203.0.113.7")), default);
    request.extensions_mut().insert(client);
    assert_eq!(
        extract(ClientIp::peer(), &request),
        key("203.0.113.7", default)
    );
    let wide = Prefix::new(24, 48).unwrap();
    let by_network = ClientIp::peer().prefix(wide);
    assert_eq!(extract(by_network, &request), key("203.0.113.0", wide));

    // Without a prefix of the extractor, that of the client holds.
    let client = Client::from_peer(Some(ip("203.0.113.7")), wide);
    request.extensions_mut().insert(client);
    assert_eq!(
        extract(ClientIp::peer(), &request),
        key("203.0.113.0", wide)
    );

    // An unknown client is treated as a request without a peer.
    let mut unknown = Request::new(Full::<Bytes>::default());
    unknown
        .extensions_mut()
        .insert(Client::from_peer(None, default));
    let refuse = ClientIp::peer().missing(Missing::Refuse);
    assert_eq!(extract(refuse, &unknown), KeyOutcome::Refuse);
}

// === The oracle ===

/// The rules again, from the left over the whole list, with the parsers of the standard library.
fn slow(
    is_proxy: impl Fn(IpAddr) -> bool,
    hops: Option<usize>,
    peer: IpAddr,
    lines: &[String],
) -> (IpAddr, Found) {
    let text = lines.join(",");
    let elements: Vec<_> = text
        .split(',')
        .map(str::trim)
        .filter(|e| !e.is_empty())
        .collect();
    let parse = |text: &str| {
        let bare = text.parse::<IpAddr>().ok();
        let address = bare.or(text.parse::<SocketAddr>().ok().map(|socket| socket.ip()));
        let canonical = address.map(|address| address.to_canonical());
        canonical.filter(|address| !address.is_unspecified())
    };
    if !is_proxy(peer) {
        return (peer, Found::Peer);
    }
    if elements.is_empty() {
        return (peer, Found::Missing);
    }
    // The valid addresses at the end, the last first.
    let valid: Vec<_> = elements
        .iter()
        .rev()
        .map_while(|text| parse(text))
        .collect();
    let is_malformed = valid.len() < elements.len();
    let client = match hops {
        Some(hops) => valid.get(hops - 1),
        None => valid.iter().find(|address| !is_proxy(**address)),
    };
    match (client, hops, valid.last()) {
        (Some(client), _, _) if is_proxy(*client) => (*client, Found::AllTrusted),
        (Some(client), _, _) => (*client, Found::Forwarded),
        (None, _, last) if is_malformed => (*last.unwrap_or(&peer), Found::Malformed),
        (None, Some(_), _) => (peer, Found::Short),
        (None, None, last) => (*last.unwrap(), Found::AllTrusted),
    }
}

fn element() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (0u8..4).prop_map(|n| format!("10.0.0.{n}")),
        2 => (0u8..4).prop_map(|n| format!("203.0.113.{n}:80")),
        1 => (0u8..4).prop_map(|n| format!("[2001:db8::{n}]:80")),
        1 => (0u8..4).prop_map(|n| format!("::ffff:10.0.0.{n}")),
        1 => (0u8..4).prop_map(|n| format!("fd00::{n}")),
        1 => Just(String::new()),
        1 => prop_oneof![Just("unknown"), Just("::"), Just("10.0.0.256")].prop_map(str::to_owned),
    ]
}

proptest! {
    #[test]
    fn the_walk_agrees_with_a_slow_oracle(
        lines in vec(vec(element(), 1..5), 0..5),
        hops in proptest::option::of(1usize..6),
        peer in prop_oneof![Just(PROXY), Just(ip("203.0.113.9")), Just(ip("fd00::9"))],
    ) {
        let lines: Vec<_> = lines.iter().map(|elements| elements.join(" ,")).collect();
        let borrowed: Vec<_> = lines.iter().map(String::as_str).collect();
        let headers = fields(XFF, &borrowed);
        let trust = Trust::private();
        let trust = match hops {
            Some(hops) => trust.and_hops(hops),
            None => trust,
        };
        let client = trust.resolve(Some(peer), &headers);
        let is_proxy = |address: IpAddr| {
            let text = address.to_string();
            text.starts_with("10.") || text.starts_with("fd00:")
        };
        let expected = slow(is_proxy, hops, peer, &lines);
        prop_assert_eq!((client.address().unwrap(), client.found()), expected);
    }

    #[test]
    fn no_bytes_in_the_fields_make_it_panic_or_leave_the_client_unknown(
        lines in vec(vec(any::<u8>(), 0..300), 0..40),
        hops in 0usize..40,
    ) {
        for source in [
            Source::XForwardedFor,
            Source::Forwarded,
            Source::Field(HeaderName::from_static("x-real-ip")),
        ] {
            let trust = Trust::private().source(source).nat64(true).six_to_four(true);
            let values = lines.iter().filter_map(|line| HeaderValue::from_bytes(line).ok());
            let headers: HeaderMap = values.map(|value| (trust.field().clone(), value)).collect();
            for trust in [trust.clone(), trust.and_hops(hops)] {
                prop_assert!(trust.resolve(Some(PROXY), &headers).address().is_some());
            }
        }
    }
}
