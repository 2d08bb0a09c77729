//! The fuzz targets as property tests.

use palisade::client_ip::ProxyParse;
use proptest::{collection::vec, prelude::*, sample::select};
use std::net::{Ipv4Addr, Ipv6Addr};

#[path = "../fuzz/bodies.rs"]
mod bodies;
#[path = "../fuzz/fields.rs"]
mod fields;
#[path = "../fuzz/proxy_protocol.rs"]
mod proxy_protocol;
#[path = "../fuzz/silence.rs"]
mod silence;
#[path = "../fuzz/sniff.rs"]
mod sniff;

proptest! {
    #[test]
    fn any_request_head_is_answered_in_the_format_of_its_protocol(
        method in "(POST|GET|[A-Z]{1,9})",
        content_type in "(application/grpc(-web|-web-text)?[-+;a-z]{0,9}|[ -~]{0,20})",
        timeout in "([0-9]{1,9}[HMSmun]|[ -~]{0,12})",
    ) {
        bodies::heads(format!("{method}\n{content_type}\n{timeout}").as_bytes());
    }

    #[test]
    fn a_request_head_of_random_bytes_causes_no_panic(data in vec(any::<u8>(), 0..60)) {
        bodies::heads(&data);
    }

    #[test]
    fn any_frames_arrive_in_order_or_are_refused(data in vec(any::<u8>(), 0..600)) {
        bodies::frames(&data);
    }

    #[test]
    fn the_keyed_table_agrees_with_a_map(data in vec(any::<u8>(), 0..2000)) {
        bodies::table(&data);
    }

    #[test]
    fn no_client_that_falls_silent_keeps_its_connection_open(data in vec(any::<u8>(), 1..80)) {
        silence::silence(&data);
    }

    #[test]
    fn the_first_bytes_of_a_connection_are_read_once_and_in_order(
        data in vec(any::<u8>(), 0..80),
    ) {
        sniff::sniff(&data);
    }
    #[test]
    fn valid_proxy_headers_are_complete_at_every_parser(
        header in proxy_header(),
        data in vec(any::<u8>(), 0..20),
    ) {
        let verdict = proxy_protocol::check(&[&header[..], &data].concat());
        let is_complete = matches!(verdict, Ok(ProxyParse::Complete(complete))
            if complete.length() == header.len());
        prop_assert!(is_complete, "{verdict:?} {}", header.escape_ascii());
    }

    #[test]
    fn mutated_proxy_headers_have_the_same_verdict_at_every_parser(
        mut header in proxy_header(),
        data in vec(any::<u8>(), 0..20),
        mutations in vec((0..6, any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for (kind, place, byte) in mutations {
            let place = place.index(header.len().max(1));
            match kind {
                0 if place < header.len() => header[place] ^= 1 << (byte % 8),
                1 if place < header.len() => header[place] = byte,
                2 if place < header.len() => _ = header.remove(place),
                3 => header.truncate(place),
                4 => header.insert(place, byte),
                // What matters in a line.
                _ => header.insert(place, b" \r\n0+.:a"[usize::from(byte % 8)]),
            }
        }
        header.extend(data);
        let _ = proxy_protocol::check(&header);
    }

    #[test]
    fn random_proxy_headers_have_the_same_verdict_at_every_parser(
        data in vec(any::<u8>(), 0..300),
    ) {
        proxy_protocol::proxy_protocol(&data);
    }

    #[test]
    fn no_client_changes_what_a_proxy_adds_to_x_forwarded_for(
        data in r#"([0-9a-f.:, \[\]%"\n]{0,80}|.{0,200}|(10\.0\.0\.1, ?){0,40})"#,
    ) {
        fields::x_forwarded_for(data.as_bytes());
    }

    #[test]
    fn no_client_changes_what_a_proxy_adds_to_forwarded(
        data in r#"((for=|by=|[0-9.:;,="\\ \[\]\n]){0,60}|.{0,200})"#,
    ) {
        fields::forwarded(data.as_bytes());
    }

    #[test]
    fn fields_of_random_bytes_cause_no_panic(data in vec(any::<u8>(), 0..600)) {
        fields::x_forwarded_for(&data);
        fields::forwarded(&data);
    }
}

/// Headers of the PROXY protocol, both versions, with and without a checksum.
fn proxy_header() -> impl Strategy<Value = Vec<u8>> {
    let ports = any::<[u16; 2]>();
    let tcp4 = (any::<[Ipv4Addr; 2]>(), ports).prop_map(|([from, to], [from_port, to_port])| {
        format!("PROXY TCP4 {from} {to} {from_port} {to_port}\r\n").into_bytes()
    });
    let tcp6 = (any::<[Ipv6Addr; 2]>(), ports).prop_map(|([from, to], [from_port, to_port])| {
        format!("PROXY TCP6 {from} {to} {from_port} {to_port}\r\n").into_bytes()
    });
    let unknown = "PROXY UNKNOWN( [ -~]{0,91})?\r\n".prop_map(String::into_bytes);
    let kind = prop_oneof![select(vec![1, 2, 4, 0x30, 0xea]), 0x30..=0xffu8];
    let tlv = (kind, vec(any::<u8>(), 0..40))
        .prop_map(|(kind, value)| [&[kind, 0, value.len() as u8][..], &value].concat());
    let family = select(vec![0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32]);
    let addresses = prop_oneof![vec(any::<u8>(), 216), Just(vec![0; 216])];
    let v2 = (
        select(vec![0x20, 0x21]),
        family,
        addresses,
        vec(tlv, 0..4),
        any::<bool>(),
    );
    let v2 = v2.prop_map(|(command, family, addresses, tlvs, has_checksum)| {
        let length = [0, 12, 36, 216][usize::from(family >> 4)];
        let block = [&addresses[..length], &tlvs.concat()].concat();
        proxy_protocol::v2_header(command, family, &block, has_checksum)
    });
    prop_oneof![tcp4, tcp6, unknown, v2.clone(), v2]
}
