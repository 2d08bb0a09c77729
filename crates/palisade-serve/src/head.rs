//! Finds requests that hyper accepts and that are refused before the app: malformed ones, and ones
//! that another reader could interpret differently.

use crate::refusal::Refusal;
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri, Version,
    header::{HOST, TRANSFER_ENCODING},
    uri::{Authority, Scheme},
};
use http_body::Body;
use hyper::ext::Protocol;
use std::net::Ipv6Addr;

/// Returns why `request` is refused, if it is.
pub(crate) fn check<B: Body>(request: &Request<B>, allow_connect: bool) -> Option<Refusal> {
    let (uri, headers) = (request.uri(), request.headers());
    // hyper does not know the end of a body with `Transfer-Encoding` in advance.
    let may_have_coding = !request.body().is_end_stream();
    let is_target_valid = match *request.method() {
        Method::CONNECT => {
            // hyper accepts extended CONNECT only if the settings allow it.
            if !allow_connect && request.extensions().get::<Protocol>().is_none() {
                return Some(Refusal::ConnectRefused);
            }
            true
        }
        Method::OPTIONS if uri.path() == "*" => true,
        _ => uri.path().starts_with('/'),
    };
    let is_valid = is_target_valid
        && is_host_valid(request.version(), uri, headers)
        && (!may_have_coding || is_coding_valid(headers));
    (!is_valid).then_some(Refusal::BadRequest)
}

/// Returns whether there is no `Transfer-Encoding`, or a single `chunked`.
fn is_coding_valid(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings
        .next()
        .is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

/// Returns whether there is exactly one host, and the same in the target and in `Host`. Only
/// HTTP/1.1 requires `Host` (RFC 9112 section 3.2, RFC 9113 section 8.3.1).
fn is_host_valid(version: Version, uri: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (host, second_host) = (hosts.next(), hosts.next());
    let Some(authority) = uri.authority() else {
        let is_required = version == Version::HTTP_11;
        return second_host.is_none() && host.map_or(!is_required, |host| is_host(host.as_bytes()));
    };
    let is_same = |host: &HeaderValue| {
        let default_port = if uri.scheme() == Some(&Scheme::HTTPS) {
            443
        } else {
            80
        };
        let port_of = |authority: &Authority| authority.port_u16().unwrap_or(default_port);
        Authority::try_from(host.as_bytes()).is_ok_and(|host| {
            host.host().eq_ignore_ascii_case(authority.host())
                && port_of(&host) == port_of(authority)
        })
    };
    second_host.is_none()
        && is_host(authority.as_str().as_bytes())
        && host.map_or(version != Version::HTTP_11, |host| {
            is_host(host.as_bytes()) && is_same(host)
        })
}

/// Returns whether `bytes` are a name, an address or empty, with an optional port (RFC 3986 section
/// 3.2.2).
///
/// An IPv6 address with a zone, as in `[fe80::1%25eth0]`, is not a host. RFC 9844 withdrew this
/// form, which RFC 6874 had added: clients have to omit the zone, because it has no meaning on
/// another machine. A server answers an invalid `Host` with 400 (RFC 9112 section 3.2).
fn is_host(bytes: &[u8]) -> bool {
    let end = bytes
        .iter()
        .position(|byte| !IS_NAME_BYTE[usize::from(*byte)]);
    match bytes.split_at(end.unwrap_or(bytes.len())) {
        (_, []) => true,
        ([_, ..], [b':', port @ ..]) => is_port(port),
        ([], [b'[', rest @ ..]) => is_address(rest),
        _ => false,
    }
}

/// Whether each byte may occur in a name. Excludes `,`, `;` and `%`: RFC 3986 allows them, but no
/// host has them, and another reader may take them for the end of the name.
const IS_NAME_BYTE: [bool; 256] = {
    let mut table = [false; 256];
    let mut at = 0;
    while at < 128 {
        let byte = at as u8;
        table[at] = byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'.' | b'_' | b'~')
            || matches!(
                byte,
                b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b'='
            );
        at += 1;
    }
    table
};

fn is_port(digits: &[u8]) -> bool {
    let add = |port: u16, byte: &u8| match byte {
        b'0'..=b'9' => port.checked_mul(10)?.checked_add(u16::from(byte - b'0')),
        _ => None,
    };
    digits.iter().try_fold(0, add).is_some()
}

/// Returns whether `rest`, which follows a `[`, is an IPv6 address, `]` and an optional port.
#[cold]
fn is_address(rest: &[u8]) -> bool {
    let Some(end) = rest.iter().position(|byte| *byte == b']') else {
        return false;
    };
    let is_port = match &rest[end + 1..] {
        [] => true,
        [b':', port @ ..] => is_port(port),
        _ => false,
    };
    let is_ip = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    is_port && std::str::from_utf8(&rest[..end]).is_ok_and(is_ip)
}

#[cfg(test)]
mod tests;
