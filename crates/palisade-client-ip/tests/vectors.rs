//! What other servers make of forwarding fields, row by row, and what palisade makes of them.
//!
//! The rows are those of the tests of nginx's realip module, of Envoy's XFF extension and of
//! ASP.NET's forwarded headers, and the examples of RFC 7239. The addresses are others. Where
//! palisade finds another client, a remark at the row says so and why. A row without one is judged
//! as there. Left out are rows of what palisade does not do: it changes no header, and leaves the
//! scheme and the host of a request as they are.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use http::{HeaderMap, HeaderName, HeaderValue};
use palisade_client_ip::{Found, NetworkSet, Source, Trust};
use std::net::IpAddr;

const XFF: &str = "x-forwarded-for";

fn trust(networks: &str) -> Trust {
    Trust::networks(NetworkSet::parse(&networks.replace(' ', "\n")).unwrap())
}

fn fields(name: &str, lines: &[&str]) -> HeaderMap {
    let name: HeaderName = name.parse().unwrap();
    let lines = lines
        .iter()
        .map(|line| HeaderValue::from_str(line).unwrap());
    lines.map(|line| (name.clone(), line)).collect()
}

/// Asserts that a request from `peer` with these lines is of `client`.
#[track_caller]
fn check(trust: &Trust, peer: &str, name: &str, lines: &[&str], client: &str, found: Found) {
    trust.check().unwrap();
    let resolved = trust.resolve(Some(peer.parse().unwrap()), &fields(name, lines));
    let client: IpAddr = client.parse().unwrap();
    assert_eq!(
        (resolved.address(), resolved.found()),
        (Some(client), found)
    );
}

#[test]
fn nginx_realip_recursive() {
    let proxies = trust("127.0.0.1/32 10.0.1.0/24");
    let field = |name: &'static str| Source::Field(HeaderName::from_static(name));
    let real_ip = proxies.clone().source(field("x-real-ip"));
    let custom = proxies.clone().source(field("x-real-ip-custom"));
    let peer = "127.0.0.1";
    let forwarded = Found::Forwarded;
    check(
        &real_ip,
        peer,
        "x-real-ip",
        &["192.0.2.1"],
        "192.0.2.1",
        forwarded,
    );
    let name = "x-real-ip-custom";
    check(&custom, peer, name, &["192.0.2.1"], "192.0.2.1", forwarded);
    check(
        &proxies,
        peer,
        XFF,
        &["10.0.0.1, 192.0.2.1"],
        "192.0.2.1",
        forwarded,
    );
    let lines = ["10.0.1.1, 192.0.2.1, 127.0.0.1"];
    check(&proxies, peer, XFF, &lines, "192.0.2.1", forwarded);
    let lines = ["10.0.1.1", "192.0.2.1", "127.0.0.1"];
    check(&proxies, peer, XFF, &lines, "192.0.2.1", forwarded);
    // With `real_ip_recursive off` the rightmost address counts, here that of a proxy. palisade has
    // no such mode, because the next address is the client's: `and_hops(1)` is the same.
    let last = proxies.clone().and_hops(1);
    let lines = ["192.0.2.1, 10.0.1.1, 127.0.0.1"];
    check(&last, peer, XFF, &lines, "127.0.0.1", Found::AllTrusted);
    let lines = ["192.0.2.1", "127.0.0.1, 10.0.1.1"];
    check(&last, peer, XFF, &lines, "10.0.1.1", Found::AllTrusted);
    check(&proxies, peer, XFF, &lines, "192.0.2.1", forwarded);
    // nginx keeps the peer where there is no field, as palisade does.
    check(&proxies, peer, XFF, &[], "127.0.0.1", Found::Missing);
    check(
        &proxies,
        "10.0.0.1",
        XFF,
        &["192.0.2.1"],
        "10.0.0.1",
        Found::Peer,
    );
}

#[test]
fn envoy_xff_num_trusted_hops() {
    // Envoy does not count the proxy that is the peer: its 1 is 2 here.
    let hops = Trust::hops(2);
    let peer = "192.0.2.11";
    check(&hops, peer, "x-other", &["abc"], peer, Found::Missing);
    let lines = ["203.0.113.4,203.0.113.2"];
    check(&hops, peer, XFF, &lines, "203.0.113.4", Found::Forwarded);
    // Both take the peer if the list is too short.
    check(&hops, peer, XFF, &["203.0.113.4"], peer, Found::Short);
}

#[test]
fn envoy_xff_trusted_cidrs() {
    let proxies = trust("192.0.2.0/24 198.51.100.0/24 2001:db8:7e57:1::/64");
    let two = ["203.0.113.4,203.0.113.2"];
    // Envoy's extension finds no client here. palisade takes the peer: what an untrusted one writes
    // is not read.
    check(
        &proxies,
        "10.10.11.11",
        XFF,
        &two,
        "10.10.11.11",
        Found::Peer,
    );
    check(
        &proxies,
        "192.0.2.11",
        XFF,
        &two,
        "203.0.113.2",
        Found::Forwarded,
    );
    let v6 = "2001:db8:7e57:1::1";
    check(&proxies, v6, XFF, &two, "203.0.113.2", Found::Forwarded);
    let recursive = ["203.0.113.4,203.0.113.2,192.0.2.5, 198.51.100.1"];
    check(
        &proxies,
        "192.0.2.11",
        XFF,
        &recursive,
        "203.0.113.2",
        Found::Forwarded,
    );
    let all = ["192.0.2.4,192.0.2.5, 198.51.100.1"];
    check(
        &proxies,
        "192.0.2.11",
        XFF,
        &all,
        "192.0.2.4",
        Found::AllTrusted,
    );
    // Envoy's tests set a number of hops, too, which the networks override. Here both hold, for a
    // proxy of one's own behind others of unknown networks: the peer must be in the networks, and
    // the client is at the place that `and_hops` says.
    let both = proxies.clone().and_hops(4);
    check(
        &both,
        "192.0.2.11",
        XFF,
        &recursive,
        "203.0.113.4",
        Found::Forwarded,
    );
    check(
        &both,
        "10.10.11.11",
        XFF,
        &recursive,
        "10.10.11.11",
        Found::Peer,
    );
    // Envoy gives up on more than 20 addresses, wherever the client is. palisade stops at the first
    // untrusted one, so a client cannot make itself unknown by a long list of its own.
    let many: Vec<_> = (1..=21).map(|n| format!("203.0.113.{n}")).collect();
    let many = many.join(", ");
    check(
        &proxies,
        "192.0.2.11",
        XFF,
        &[&many],
        "203.0.113.21",
        Found::Forwarded,
    );
    let hops = Trust::hops(22);
    check(
        &hops,
        "192.0.2.11",
        XFF,
        &[&many],
        "192.0.2.11",
        Found::Short,
    );
}

#[test]
fn asp_net_forward_limit_without_known_proxies() {
    let (a, b, c) = ("192.0.2.11", "192.0.2.12", "192.0.2.13");
    let peer = "10.0.0.1";
    let one = "192.0.2.11:12345";
    let two = "192.0.2.12:23456, 192.0.2.11:12345";
    let three = "192.0.2.13:34567, 192.0.2.12:23456, 192.0.2.11:12345";
    let forwarded = Found::Forwarded;
    check(&Trust::hops(1), peer, XFF, &[one], a, forwarded);
    check(&Trust::hops(1), peer, XFF, &[two], a, forwarded);
    check(&Trust::hops(2), peer, XFF, &[two], b, forwarded);
    check(&Trust::hops(2), peer, XFF, &[three], b, forwarded);
    check(&Trust::hops(3), peer, XFF, &[three], c, forwarded);
    // ASP.NET's limit is an upper bound: from a shorter list it takes the leftmost address, which
    // the client may have written. palisade's number is exact, and the peer counts.
    check(&Trust::hops(10), peer, XFF, &[one], peer, Found::Short);
    check(&Trust::hops(10), peer, XFF, &[two], peer, Found::Short);
    // Both stop at text that is not an address, and keep what was read.
    let dots = "192.0.2.12.23456, 192.0.2.11:12345";
    check(&Trust::hops(10), peer, XFF, &[dots], a, Found::Malformed);
    let dots = "192.0.2.13:34567, 192.0.2.12.23456, 192.0.2.11:12345";
    check(&Trust::hops(10), peer, XFF, &[dots], a, Found::Malformed);
    check(
        &Trust::hops(1),
        peer,
        XFF,
        &["192.0.2.11.12345"],
        peer,
        Found::Malformed,
    );
    check(
        &Trust::hops(1),
        peer,
        XFF,
        &["BAD-IP"],
        peer,
        Found::Malformed,
    );
}

#[test]
fn asp_net_loopback_is_known() {
    let loopback = trust("127.0.0.0/8 ::1");
    for (peer, client, found) in [
        ("192.0.2.11", "192.0.2.11", Found::Peer),
        ("127.0.0.1", "10.0.0.1", Found::Forwarded),
        ("127.0.1.1", "10.0.0.1", Found::Forwarded),
        ("::1", "10.0.0.1", Found::Forwarded),
    ] {
        check(&loopback, peer, XFF, &["10.0.0.1:1234"], client, found);
    }
    // `::` is a peer without an address here, such as that of a Unix socket. Neither believes it.
    let fields = fields(XFF, &["10.0.0.1:1234"]);
    let unspecified = loopback.resolve("::".parse().ok(), &fields);
    assert_eq!(
        (unspecified.address(), unspecified.found()),
        (None, Found::Peer)
    );
    let unknown = loopback.resolve(None, &fields);
    assert_eq!((unknown.address(), unknown.found()), (None, Found::Peer));
    // Without known proxies, ASP.NET believes a peer without an address. palisade asks for it.
    let hops = Trust::hops(1);
    assert_eq!(hops.resolve(None, &fields).found(), Found::Peer);
    let believed = hops.unix_peers(true).resolve(None, &fields);
    assert_eq!(believed.address(), Some([10, 0, 0, 1].into()));
}

#[test]
fn asp_net_known_proxies_and_a_limit() {
    let peer = "10.0.0.1";
    let known = |networks: &str, hops: usize| trust(networks).and_hops(hops);
    let (a, b, c) = ("192.0.2.11", "192.0.2.12", "192.0.2.13");
    let one = "192.0.2.11:12345";
    let two = "192.0.2.12:23456, 192.0.2.11:12345";
    let three = "192.0.2.13:34567, 192.0.2.12:23456, 192.0.2.11:12345";
    check(&known("20.0.0.1", 1), peer, XFF, &[one], peer, Found::Peer);
    check(&known(peer, 1), peer, XFF, &[""], peer, Found::Missing);
    check(&known(peer, 1), peer, XFF, &[one], a, Found::Forwarded);
    check(&known(peer, 1), peer, XFF, &[two], a, Found::Forwarded);
    let known_two = "10.0.0.1 192.0.2.11";
    check(
        &known(known_two, 1),
        peer,
        XFF,
        &[two],
        a,
        Found::AllTrusted,
    );
    check(&known(known_two, 2), peer, XFF, &[two], b, Found::Forwarded);
    let known_three = "10.0.0.1 192.0.2.11 192.0.2.12";
    check(
        &known(known_three, 1),
        peer,
        XFF,
        &[two],
        a,
        Found::AllTrusted,
    );
    check(
        &known(known_three, 2),
        peer,
        XFF,
        &[two],
        b,
        Found::AllTrusted,
    );
    check(
        &known(known_three, 3),
        peer,
        XFF,
        &[three],
        c,
        Found::Forwarded,
    );
    let bad_second = "192.0.2.13:34567, 192.0.2.12;23456, 192.0.2.11:12345";
    check(
        &known(known_three, 3),
        peer,
        XFF,
        &[bad_second],
        a,
        Found::Malformed,
    );
    let bad_third = "192.0.2.13;34567, 192.0.2.12:23456, 192.0.2.11:12345";
    check(
        &known(known_three, 3),
        peer,
        XFF,
        &[bad_third],
        b,
        Found::Malformed,
    );
    // ASP.NET also stops at a hop that is not known. `and_hops` asks for the peer only, for CDNs
    // of unknown networks, and marks such a client as a claim.
    check(&known(peer, 2), peer, XFF, &[two], b, Found::Forwarded);
    let claim = known(peer, 2).resolve(peer.parse().ok(), &fields(XFF, &[two]));
    let proven = known(known_two, 2).resolve(peer.parse().ok(), &fields(XFF, &[two]));
    assert!(claim.is_claim() && !proven.is_claim());
}

#[test]
fn asp_net_ipv4_mapped_addresses() {
    let known = |networks: &str| trust(&format!("127.0.0.0/8 ::1 {networks}"));
    let (v4, v6) = ("203.0.113.55", "2001:db8:802::200e");
    // An address has its IPv4 form before it is compared, and so have the networks. No row differs.
    for (networks, line, client) in [
        ("", "203.0.113.55,::ffff:127.0.0.1", v4),
        ("172.123.142.121", "203.0.113.55,::ffff:172.123.142.121", v4),
        (
            "::ffff:172.123.142.121",
            "203.0.113.55,::ffff:172.123.142.121",
            v4,
        ),
        (
            "172.0.0.0/8",
            "203.0.113.55,::ffff:172.123.142.121,172.32.24.23",
            v4,
        ),
        (
            "172.0.0.0/8 2001:db8:2d:183::1/64",
            "2001:db8:802::200e,2001:db8:2d:183::356e,::ffff:172.123.142.121,172.32.24.23",
            v6,
        ),
        (
            "2001:db8:2d:183::356e",
            "203.0.113.55,2001:db8:2d:183::356e,::ffff:127.0.0.1",
            v4,
        ),
    ] {
        check(
            &known(networks),
            "::1",
            XFF,
            &[line],
            client,
            Found::Forwarded,
        );
    }
}

#[test]
fn rfc_7239_examples() {
    let name = "forwarded";
    let peer = "10.0.0.1";
    let one = trust(peer).source(Source::Forwarded);
    // Section 4. A hidden client counts as the proxy that hides it: its clients share a key, and
    // none of them can have a second one.
    let v6 = "2001:db8:cafe::17";
    check(
        &one,
        peer,
        name,
        &["for=\"_gazonk\""],
        peer,
        Found::Malformed,
    );
    let line = "For=\"[2001:db8:cafe::17]:4711\"";
    check(&one, peer, name, &[line], v6, Found::Forwarded);
    let line = "for=192.0.2.60;proto=http;by=203.0.113.43";
    check(&one, peer, name, &[line], "192.0.2.60", Found::Forwarded);
    let line = "for=192.0.2.43, for=198.51.100.17";
    check(&one, peer, name, &[line], "198.51.100.17", Found::Forwarded);
    let both = trust("10.0.0.1 198.51.100.17").source(Source::Forwarded);
    check(&both, peer, name, &[line], "192.0.2.43", Found::Forwarded);
    // Section 6.3: the same, twice.
    let line = "for=_hidden, for=_SEVKISEK";
    check(&one, peer, name, &[line], peer, Found::Malformed);
    // Section 7.1: one list in one line or in two.
    let two = trust("10.0.0.1 2001:db8:cafe::17").source(Source::Forwarded);
    for lines in [
        &["for=192.0.2.43,for=\"[2001:db8:cafe::17]\""][..],
        &["for=192.0.2.43, for=\"[2001:db8:cafe::17]\""],
        &["for=192.0.2.43", "for=\"[2001:db8:cafe::17]\""],
    ] {
        check(&two, peer, name, lines, "192.0.2.43", Found::Forwarded);
    }
    // The RFC leaves open what an unknown hop means. On the right of it stand proxies alone, so it
    // is one of them, and what it has added cannot be told from what a client has written.
    for lines in [
        &["for=192.0.2.43,for=\"[2001:db8:cafe::17]\",for=unknown"][..],
        &["for=192.0.2.43, for=\"[2001:db8:cafe::17]\", for=unknown"],
        &["for=192.0.2.43", "for=\"[2001:db8:cafe::17]\", for=unknown"],
    ] {
        check(&two, peer, name, lines, peer, Found::Malformed);
    }
    // Section 7.4: the same chain in the older field.
    let two = trust("10.0.0.1 2001:db8:cafe::17");
    let line = "192.0.2.43, 2001:db8:cafe::17";
    check(&two, peer, XFF, &[line], "192.0.2.43", Found::Forwarded);
    // Section 7.5.
    let line = "for=192.0.2.43, for=198.51.100.17;by=203.0.113.60;proto=http;host=example.com";
    check(&both, peer, name, &[line], "192.0.2.43", Found::Forwarded);
    check(
        &both,
        peer,
        name,
        &["for=192.0.2.43"],
        "192.0.2.43",
        Found::Forwarded,
    );
}
