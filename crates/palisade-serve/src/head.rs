//! Requests that hyper takes and the app is not to see: the next reader of one might read it
//! differently.

use crate::refusal::Refusal;
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri, Version,
    header::{HOST, TRANSFER_ENCODING},
    uri::{Authority, Scheme},
};
use http_body::Body;
use hyper::ext::Protocol;
use std::net::Ipv6Addr;

/// How `request` is refused, if it is.
pub(crate) fn fault<B: Body>(request: &Request<B>, takes_connect: bool) -> Option<Refusal> {
    let (uri, headers) = (request.uri(), request.headers());
    // Where hyper found a coding, there is a body whose end it does not know.
    let may_be_coded = !request.body().is_end_stream();
    let is_target_fit = match *request.method() {
        Method::CONNECT => {
            // An extended one is there only where the settings allow it.
            if !takes_connect && request.extensions().get::<Protocol>().is_none() {
                return Some(Refusal::ConnectRefused);
            }
            true
        }
        Method::OPTIONS if uri.path() == "*" => true,
        _ => uri.path().starts_with('/'),
    };
    let is_fit = is_target_fit
        && is_host_fit(request.version(), uri, headers)
        && (!may_be_coded || is_coding_fit(headers));
    (!is_fit).then_some(Refusal::BadRequest)
}

fn is_coding_fit(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    codings
        .next()
        .is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && codings.next().is_none()
}

/// RFC 9112 section 3.2, RFC 9113 section 8.3.1: one host, and one only.
fn is_host_fit(version: Version, uri: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    let Some(authority) = uri.authority() else {
        let is_needed = version == Version::HTTP_11;
        return another.is_none() && host.map_or(!is_needed, |host| is_host(host.as_bytes()));
    };
    let is_same = |host: &HeaderValue| {
        let port = if uri.scheme() == Some(&Scheme::HTTPS) {
            443
        } else {
            80
        };
        let port_of = |authority: &Authority| authority.port_u16().unwrap_or(port);
        Authority::try_from(host.as_bytes()).is_ok_and(|host| {
            host.host().eq_ignore_ascii_case(authority.host())
                && port_of(&host) == port_of(authority)
        })
    };
    another.is_none()
        && is_host(authority.as_str().as_bytes())
        && host.map_or(version != Version::HTTP_11, |host| {
            is_host(host.as_bytes()) && is_same(host)
        })
}

/// A name, an address or nothing, and perhaps a port (RFC 3986 section 3.2.2).
///
/// An IPv6 address with a zone, as in `[fe80::1%25eth0]`, is not a host: RFC 9844 withdrew the form
/// that RFC 6874 had added, and clients are to leave the zone out, because it means nothing on
/// another machine. A server answers an invalid `Host` with 400 (RFC 9112 section 3.2).
fn is_host(bytes: &[u8]) -> bool {
    let end = bytes.iter().position(|byte| !IN_NAME[usize::from(*byte)]);
    match bytes.split_at(end.unwrap_or(bytes.len())) {
        (_, []) => true,
        ([_, ..], [b':', port @ ..]) => is_port(port),
        ([], [b'[', rest @ ..]) => is_address(rest),
        _ => false,
    }
}

/// Of what a name may have, nothing that no host has and somebody may take for the end of it: no
/// `,`, no `;`, no `%`.
const IN_NAME: [bool; 256] = {
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

/// What comes after the `[`.
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
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::{Empty, Full};

    fn fault_of(method: &str, uri: &str, fields: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        fault(&request.body(Full::<Bytes>::from("x")).unwrap(), false)
            .map_or(0, |refusal| refusal.status().as_u16())
    }

    #[test]
    fn there_is_one_host_and_it_is_the_one_that_the_target_names() {
        for (uri, hosts, status) in [
            ("/", &["x"][..], 0),
            ("/", &["[::1]:8080"], 0),
            ("/", &["x_y.example:80"], 0),
            ("/", &[""], 0),
            ("/", &[], 400),
            ("/", &["x", "x"], 400),
            ("/", &["x y"], 400),
            ("/", &["u@x"], 400),
            ("/", &["x/"], 400),
            ("/", &["x:"], 0),
            ("/", &["x:65535"], 0),
            ("/", &["[::1]"], 0),
            ("/", &["x:1:2"], 400),
            ("/", &["x:65536"], 400),
            ("/", &["x:+1"], 400),
            ("/", &[":"], 400),
            ("/", &[":80"], 400),
            ("/", &["["], 400),
            ("/", &["[::1"], 400),
            ("/", &["[::1]x"], 400),
            ("/", &["::1"], 400),
            ("/", &["x]:80"], 400),
            ("/", &["x,y"], 400),
            ("/", &["%zz"], 400),
            ("/", &["\u{e4}"], 400),
            ("/", &["x:8a"], 400),
            ("/", &["[::1]:8a"], 400),
            ("/", &["[]"], 400),
            ("/", &["[fe80::1]:80"], 0),
            ("/", &["[fe80::1%25eth0]:80"], 400),
            ("/", &["[fe80::1%eth0]"], 400),
            ("/", &["[fe80::1%]"], 400),
            ("http://[fe80::1]/", &["[fe80::1]"], 0),
            ("http://[fe80::1]/", &["[fe80::1%25eth0]"], 400),
            ("http://x/", &["X"], 0),
            ("http://x:80/", &["x"], 0),
            ("https://x/", &["x:443"], 0),
            ("https://x/", &["x:80"], 400),
            ("http://x/", &["x:8080"], 400),
            ("http://x/", &["y"], 400),
            ("http://x/", &[""], 400),
            ("http://x/", &[], 400),
            ("http://u@x/", &["x"], 400),
        ] {
            let fields: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            assert_eq!(fault_of("GET", uri, &fields), status, "{uri} {hosts:?}");
        }
    }

    #[test]
    fn only_http1_1_needs_a_host_and_one_in_the_target_is_held_to_the_same_rules() {
        for (version, uri, fault_is) in [
            (Version::HTTP_2, "http://[fe80::1]:80/", None),
            (
                Version::HTTP_2,
                "http://[fe80::1%25eth0]:80/",
                Some(Refusal::BadRequest),
            ),
            (Version::HTTP_2, "http://u@x/", Some(Refusal::BadRequest)),
            (Version::HTTP_10, "/", None),
            (Version::HTTP_11, "/", Some(Refusal::BadRequest)),
            (Version::HTTP_2, "http://x/", None),
            (Version::HTTP_2, "/", None),
        ] {
            let request = Request::builder().version(version).uri(uri);
            let request = request.body(Empty::<Bytes>::new()).unwrap();
            assert_eq!(fault(&request, false), fault_is, "{version:?} {uri}");
        }
    }

    #[test]
    fn the_one_coding_is_chunked() {
        for (codings, status) in [
            (&["chunked"][..], 0),
            (&["Chunked"], 0),
            (&["gzip, chunked"], 400),
            (&["chunked, chunked"], 400),
            (&[",chunked"], 400),
            (&["chunked", "chunked"], 400),
            (&["identity", "chunked"], 400),
        ] {
            let mut fields = vec![("host", "x")];
            fields.extend(codings.iter().map(|coding| ("transfer-encoding", *coding)));
            assert_eq!(fault_of("POST", "/", &fields), status, "{codings:?}");
        }
    }

    #[test]
    fn each_form_of_target_has_its_methods() {
        for (method, uri, status) in [
            ("OPTIONS", "*", 0),
            ("GET", "*", 400),
            ("GET", "x:80", 400),
            ("CONNECT", "x:80", 501),
        ] {
            assert_eq!(
                fault_of(method, uri, &[("host", "x:80")]),
                status,
                "{method} {uri}"
            );
        }
        let connect = Request::builder()
            .method("CONNECT")
            .uri("x:80")
            .header("host", "x:80");
        assert_eq!(
            fault(&connect.body(Empty::<Bytes>::new()).unwrap(), true),
            None
        );
    }
}
