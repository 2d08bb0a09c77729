//! Forwarding fields of any bytes, in lines. `tests/fuzz_bodies.rs` runs the same as a property
//! test.

use http::{HeaderMap, HeaderName, HeaderValue};
use palisade::client_ip::{Found, Source, Trust};
use std::net::IpAddr;

const PROXY: [u8; 4] = [10, 0, 0, 7];
const CLIENT: [u8; 4] = [203, 0, 113, 7];

/// `X-Forwarded-For`, and a field with one address.
pub(crate) fn x_forwarded_for(data: &[u8]) {
    check(Source::XForwardedFor, data, "203.0.113.7");
    let name = HeaderName::from_static("x-real-ip");
    let trust = Trust::private().source(Source::Field(name));
    trust.resolve(Some(PROXY.into()), &fields(&trust, &lines(data)));
}

pub(crate) fn forwarded(data: &[u8]) {
    check(Source::Forwarded, data, "for=203.0.113.7");
    check(
        Source::Forwarded,
        data,
        "for=\"203.0.113.7:80\";by=\"a,\\\"\"",
    );
}

/// Checks that a client is found in any bytes, that nothing is read from another peer, and that
/// what a client has written does not change what the proxy adds, in the line or in a new one.
fn check(source: Source, data: &[u8], added: &str) {
    let trust = Trust::private().source(source);
    let theirs = lines(data);
    let headers = fields(&trust, &theirs);
    let client = trust.resolve(Some(PROXY.into()), &headers);
    assert!(client.address().is_some());
    trust
        .clone()
        .and_hops(2)
        .resolve(Some(PROXY.into()), &headers);
    let direct = trust.resolve(Some(CLIENT.into()), &headers);
    assert_eq!(direct.address(), Some(CLIENT.into()));
    assert_eq!(direct.found(), Found::Peer);

    let mut new_line = theirs.clone();
    new_line.push(added.as_bytes().to_vec());
    let mut same_line = theirs;
    match same_line.last_mut() {
        Some(last) => last.extend_from_slice(format!(", {added}").as_bytes()),
        None => same_line.push(added.as_bytes().to_vec()),
    }
    for lines in [new_line, same_line] {
        let client = trust.resolve(Some(PROXY.into()), &fields(&trust, &lines));
        assert_eq!(client.address(), Some(IpAddr::from(CLIENT)));
        assert_eq!(client.found(), Found::Forwarded);
    }
}

/// The lines of `data` that a server accepts as values of a field.
fn lines(data: &[u8]) -> Vec<Vec<u8>> {
    let lines = data.split(|byte| *byte == b'\n');
    let is_value = |line: &&[u8]| HeaderValue::from_bytes(line).is_ok();
    lines.filter(is_value).map(<[u8]>::to_vec).collect()
}

fn fields(trust: &Trust, lines: &[Vec<u8>]) -> HeaderMap {
    let values = lines
        .iter()
        .filter_map(|line| HeaderValue::from_bytes(line).ok());
    values.map(|value| (trust.field().clone(), value)).collect()
}
