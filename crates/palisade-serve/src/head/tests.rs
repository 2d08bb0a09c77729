//! Tests of the checks of request heads.

use super::*;
use bytes::Bytes;
use http_body_util::{Empty, Full};

/// Returns the status of the refusal of a request with a body, or 0 if it is not refused.
fn refused_with(method: &str, uri: &str, fields: &[(&str, &str)]) -> u16 {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    check(&request.body(Full::<Bytes>::from("x")).unwrap(), false)
        .map_or(0, |refusal| refusal.status().as_u16())
}

#[test]
fn a_request_has_one_valid_host_which_is_that_of_the_target() {
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
        assert_eq!(refused_with("GET", uri, &fields), status, "{uri} {hosts:?}");
    }
}

#[test]
fn only_http1_1_requires_a_host_and_the_same_rules_apply_to_the_authority() {
    for (version, uri, expected) in [
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
        assert_eq!(check(&request, false), expected, "{version:?} {uri}");
    }
}

#[test]
fn the_only_valid_transfer_coding_is_a_single_chunked() {
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
        assert_eq!(refused_with("POST", "/", &fields), status, "{codings:?}");
    }
}

#[test]
fn each_form_of_target_is_valid_for_its_methods_only() {
    for (method, uri, status) in [
        ("OPTIONS", "*", 0),
        ("GET", "*", 400),
        ("GET", "x:80", 400),
        ("CONNECT", "x:80", 501),
    ] {
        assert_eq!(
            refused_with(method, uri, &[("host", "x:80")]),
            status,
            "{method} {uri}"
        );
    }
    let connect = Request::builder()
        .method("CONNECT")
        .uri("x:80")
        .header("host", "x:80");
    assert_eq!(
        check(&connect.body(Empty::<Bytes>::new()).unwrap(), true),
        None
    );
}
