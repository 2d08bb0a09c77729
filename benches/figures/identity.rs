//! What it costs to find the client of a request, and to read the header of a connection.

use crate::run::{Run, ScenarioList};
use http::{HeaderMap, Request};
use palisade::{
    client_ip::{NetworkSet, ProxyHeader, ProxyParse, Source, Trust},
    types::{ConnInfo, Prefix},
};
use std::{hint::black_box, net::SocketAddr, sync::Arc};

/// Three proxies in a row, as nginx and `HAProxy` write them.
const CHAIN: &str = "203.0.113.7, 198.51.100.9, 10.0.0.8";

fn trust() -> Trust {
    let proxies = NetworkSet::parse("10.0.0.0/8\n198.51.100.0/24");
    Trust::networks(proxies.expect("two networks"))
}

fn conn(peer: [u8; 4]) -> Arc<ConnInfo> {
    let conn = ConnInfo::with_state((peer, 4711).into(), None, Prefix::default(), ());
    Arc::new(if trust().is_proxy(peer.into()) {
        conn.of_proxy()
    } else {
        conn
    })
}

/// Returns a run that finds the client of a request from `peer` as request tracking does, and
/// inserts it.
fn found(peer: [u8; 4], is_found: bool) -> Run {
    let (trust, conn) = (trust(), conn(peer));
    let mut request = Request::new(());
    let chain = CHAIN.parse().expect("a field");
    request.headers_mut().insert("x-forwarded-for", chain);
    request.extensions_mut().insert(conn.clone());
    Box::new(move |requests| {
        for _ in 0..requests {
            let mut request = black_box(request.clone());
            if is_found {
                let client = trust.identify_guarded(&conn, request.headers());
                request.extensions_mut().insert(client);
            }
            black_box(request);
        }
    })
}

fn not_found() -> Run {
    found([192, 0, 2, 1], false)
}

fn of_untrusted_peer() -> Run {
    found([192, 0, 2, 1], true)
}

fn of_three_hops() -> Run {
    found([10, 0, 0, 7], true)
}

/// Returns a run that reads so many bytes of a field in which all addresses are proxies: `element`
/// over and over.
fn field(source: Source, name: &'static str, element: &str, bytes: usize) -> Run {
    let trust = trust().source(source);
    let mut fields = HeaderMap::new();
    let elements = vec![element; bytes / (element.len() + 1)];
    fields.insert(name, elements.join(",").parse().expect("a field"));
    let peer = SocketAddr::from(([10, 0, 0, 7], 4711)).ip();
    Box::new(move |requests| {
        for _ in 0..requests {
            black_box(black_box(&trust).resolve(Some(peer), &fields));
        }
    })
}

/// As long as an element can be, so that 32 of them fill 4 KiB.
fn x_forwarded_for(bytes: usize) -> Run {
    let spaces = " ".repeat(116);
    let element = format!("{spaces}10.0.0.8");
    field(Source::XForwardedFor, "x-forwarded-for", &element, bytes)
}

fn forwarded(bytes: usize) -> Run {
    let element = format!("for=10.0.0.8;secret=\"{}\"", "\\\"".repeat(50));
    field(Source::Forwarded, "forwarded", &element, bytes)
}

/// Returns a run that parses a header of so many bytes, of which all but 28 are TLVs.
fn proxy_header(bytes: usize) -> Run {
    let mut header =
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\0\xcb\0\x71\x07\xc6\x33\x64\x01\xdc\x04\x01\xbb".to_vec();
    while header.len() + 64 <= bytes {
        header.extend_from_slice(&[&[0xe0, 0, 61][..], &[b'x'; 61]].concat());
    }
    let length = u16::try_from(header.len() - 16).expect("a short header");
    header[14..16].copy_from_slice(&length.to_be_bytes());
    let parse = |header: &[u8]| matches!(ProxyHeader::parse(header), Ok(ProxyParse::Complete(_)));
    assert!(parse(&header));
    Box::new(move |requests| {
        for _ in 0..requests {
            assert!(parse(black_box(&header)));
        }
    })
}

/// Adds the scenarios of this file.
pub(crate) fn scenarios(all: &mut ScenarioList) {
    all.add("client bare", not_found);
    all.add("client untrusted", of_untrusted_peer);
    all.add("client three-hops", of_three_hops);
    all.add("x-forwarded-for 1", || x_forwarded_for(1 << 10));
    all.add("x-forwarded-for 2", || x_forwarded_for(2 << 10));
    all.add("x-forwarded-for 4", || x_forwarded_for(4 << 10));
    all.add("forwarded 1", || forwarded(1 << 10));
    all.add("forwarded 2", || forwarded(2 << 10));
    all.add("forwarded 4", || forwarded(4 << 10));
    all.add("proxy-header 1", || proxy_header(1 << 10));
    all.add("proxy-header 2", || proxy_header(2 << 10));
    all.add("proxy-header 4", || proxy_header(4 << 10));
}
