//! Tests of response formats and of the responses to refused requests.

use super::*;
use http_body_util::{BodyExt, Empty, Full};

fn rejection(format: ResponseFormat) -> Rejection {
    let violation = Violation::new(
        Guard::RateLimit,
        Reason::RateExceeded,
        Phase::RequestHead,
        0,
        1500,
    );
    Rejection::new(violation, StatusCode::TOO_MANY_REQUESTS, format)
}

fn http1_request(content_type: &'static str) -> Request<Full<Bytes>> {
    request(Version::HTTP_11, content_type)
}

fn request(version: Version, content_type: &'static str) -> Request<Full<Bytes>> {
    let request = Request::post("/").version(version);
    let mut request = request.body(Full::new(Bytes::from("unread"))).unwrap();
    request
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    request
}

#[test]
fn the_response_format_follows_the_content_type_of_a_post() {
    for kind in ["application/grpc", "application/grpc+proto"] {
        assert_eq!(
            ResponseFormat::detect(&request(Version::HTTP_2, kind)),
            ResponseFormat::Grpc
        );
    }
    let web = ResponseFormat::GrpcWeb { close: true };
    assert_eq!(
        ResponseFormat::detect(&http1_request("application/grpc-web+proto")),
        web
    );
    let text = ResponseFormat::GrpcWebText { close: true };
    assert_eq!(
        ResponseFormat::detect(&http1_request("application/grpc-web-text")),
        text
    );
    assert_eq!(
        ResponseFormat::detect(&http1_request("text/html")),
        ResponseFormat::Http { close: true }
    );
    let get = Request::new(Empty::<Bytes>::new());
    assert_eq!(
        ResponseFormat::detect(&get),
        ResponseFormat::Http { close: false }
    );
}

#[test]
fn a_content_type_that_only_begins_like_grpc_is_plain_http() {
    for kind in [
        "application/grpcx",
        "application/grpc/x",
        "application/grpc-",
        "application/grpc-webx",
        "application/grpc-web-textual",
    ] {
        let format = ResponseFormat::detect(&request(Version::HTTP_2, kind));
        assert_eq!(format, ResponseFormat::Http { close: false }, "{kind}");
    }
    let grpc = request(Version::HTTP_2, "application/grpc;charset=utf-8");
    assert_eq!(ResponseFormat::detect(&grpc), ResponseFormat::Grpc);
}

#[test]
fn a_grpc_content_type_over_http1_is_plain_http_and_the_connection_is_closed() {
    let format = ResponseFormat::detect(&http1_request("application/grpc"));
    assert_eq!(format, ResponseFormat::Http { close: true });
}

#[test]
fn grpc_over_http1_that_accepts_trailers_is_translated_grpc_web() {
    let mut request = http1_request("application/grpc");
    request
        .headers_mut()
        .insert(TE, HeaderValue::from_static("trailers"));
    let format = ResponseFormat::detect(&request);
    assert_eq!(format, ResponseFormat::GrpcTranslated { close: true });
    let response = rejection(format).into_response::<Full<Bytes>>();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "8");
    assert_eq!(response.headers()[CONNECTION], "close");
    request
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpcx"));
    assert_eq!(
        ResponseFormat::detect(&request),
        ResponseFormat::Http { close: true }
    );
}

#[test]
fn only_an_unread_http1_body_closes_the_connection() {
    let h2 = request(Version::HTTP_2, "text/html");
    assert_eq!(
        ResponseFormat::detect(&h2),
        ResponseFormat::Http { close: false }
    );
    let close = ResponseFormat::detect(&http1_request("text/html"));
    let response = rejection(close).into_response::<Full<Bytes>>();
    assert_eq!(response.headers()[CONNECTION], "close");
}

#[test]
fn retry_after_is_whole_seconds_rounded_up_and_never_zero() {
    let retry_after = |millis| {
        let format = ResponseFormat::Http { close: false };
        let wait = Duration::from_millis(millis);
        let response = rejection(format)
            .retry_after(wait)
            .into_response::<Full<Bytes>>();
        response.headers()[RETRY_AFTER].to_str().unwrap().to_owned()
    };
    assert_eq!(retry_after(0), "1");
    assert_eq!(retry_after(999), "1");
    assert_eq!(retry_after(1001), "2");
    assert_eq!(retry_after(10_000), "10");
    assert_eq!(retry_after(10_001), "11");
    assert_eq!(retry_after(u64::MAX), "18446744073709552");
}

#[test]
fn a_grpc_response_is_trailers_only_and_has_the_pushback() {
    let wait = Duration::from_millis(1500);
    let response = rejection(ResponseFormat::Grpc).retry_after(wait);
    let response = response.into_response::<Full<Bytes>>();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "8");
    assert_eq!(response.headers()["grpc-message"], "too many requests");
    assert_eq!(response.headers()["grpc-retry-pushback-ms"], "1500");
    assert_eq!(response.headers()[CONTENT_TYPE], "application/grpc");
    assert!(response.body().is_end_stream());
}

#[test]
fn the_pushback_is_rounded_up_to_whole_milliseconds() {
    for (micros, millis) in [(0, "0"), (1, "1"), (999, "1"), (1000, "1"), (1001, "2")] {
        let wait = Duration::from_micros(micros);
        let response = rejection(ResponseFormat::Grpc).retry_after(wait);
        let response = response.into_response::<Full<Bytes>>();
        assert_eq!(response.headers()["grpc-retry-pushback-ms"], millis);
    }
}

/// The messages of `google.rpc` that the details of a status consist of, as prost reads them.
mod google_rpc {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Status {
        #[prost(int32, tag = "1")]
        pub(super) code: i32,
        #[prost(string, tag = "2")]
        pub(super) message: String,
        #[prost(message, repeated, tag = "3")]
        pub(super) details: Vec<Any>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Any {
        #[prost(string, tag = "1")]
        pub(super) type_url: String,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct RetryInfo {
        #[prost(message, optional, tag = "1")]
        pub(super) retry_delay: Option<Duration>,
    }

    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub(super) struct Duration {
        #[prost(int64, tag = "1")]
        pub(super) seconds: i64,
        #[prost(int32, tag = "2")]
        pub(super) nanos: i32,
    }
}

/// Decodes base64 without padding (RFC 4648 section 4).
fn from_base64(text: &[u8]) -> Vec<u8> {
    let sextet = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("not base64 without padding: {byte}"),
    };
    let bits = text.iter().flat_map(|&byte| {
        let sextet = sextet(byte);
        (0..6).rev().map(move |bit| (sextet >> bit) & 1)
    });
    let bits: Vec<u8> = bits.collect();
    let bytes = bits.chunks_exact(8);
    bytes
        .map(|bits| bits.iter().fold(0, |byte, bit| (byte << 1) | bit))
        .collect()
}

#[test]
fn a_grpc_response_has_a_retry_info_of_the_same_time_as_the_pushback() {
    use prost::Message;
    for (wait, seconds, nanos) in [
        (Duration::ZERO, 0, 0),
        (Duration::from_micros(1), 0, 1_000_000),
        (Duration::from_millis(1_500), 1, 500_000_000),
        (Duration::from_millis(127), 0, 127_000_000),
        (Duration::from_secs(12 * 24 * 60 * 60), 1_036_800, 0),
    ] {
        let response = rejection(ResponseFormat::Grpc).retry_after(wait);
        let response = response.into_response::<Full<Bytes>>();
        let details = from_base64(response.headers()["grpc-status-details-bin"].as_bytes());
        let status = google_rpc::Status::decode(&*details).unwrap();
        assert_eq!((status.code, &*status.message), (8, "too many requests"));
        let [detail] = &status.details[..] else {
            panic!("{status:?}");
        };
        assert_eq!(detail.type_url, "type.googleapis.com/google.rpc.RetryInfo");
        let delay = google_rpc::RetryInfo::decode(&*detail.value).unwrap();
        let expected = google_rpc::Duration { seconds, nanos };
        assert_eq!(delay.retry_delay, Some(expected), "{wait:?}");
    }
}

#[test]
fn a_grpc_response_without_a_time_for_the_retry_has_no_retry_info() {
    let never = Duration::from_millis(i32::MAX as u64 + 1);
    for rejection in [
        rejection(ResponseFormat::Grpc),
        rejection(ResponseFormat::Grpc).retry_after(never),
    ] {
        let response = rejection.into_response::<Full<Bytes>>();
        assert!(!response.headers().contains_key("grpc-status-details-bin"));
    }
    let plain = rejection(ResponseFormat::Http { close: false }).retry_after(Duration::ZERO);
    let response = plain.into_response::<Full<Bytes>>();
    assert!(!response.headers().contains_key("grpc-status-details-bin"));
}

#[tokio::test]
async fn a_grpc_web_response_has_its_trailers_in_a_body_frame() {
    let response =
        rejection(ResponseFormat::GrpcWeb { close: true }).into_response::<Full<Bytes>>();
    assert_eq!(response.headers()[CONNECTION], "close");
    let frame = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(frame[..5], [0x80, 0, 0, 0, 49]);
    assert_eq!(
        frame[5..],
        b"grpc-status: 8\r\ngrpc-message: too many requests\r\n"[..]
    );
    let response =
        rejection(ResponseFormat::GrpcWebText { close: false }).into_response::<Full<Bytes>>();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(text, base64(&frame));
}

#[test]
fn a_cut_body_ends_with_trailers_in_grpc_and_fails_in_every_other_format() {
    let violation = Violation::new(Guard::SlowBody, Reason::Gap, Phase::ResponseBody, 1, 2);
    for format in [
        ResponseFormat::Grpc,
        ResponseFormat::GrpcTranslated { close: true },
    ] {
        let trailers = violation
            .final_frame(format)
            .unwrap()
            .into_trailers()
            .unwrap();
        assert_eq!(trailers["grpc-status"], "4");
        assert_eq!(trailers["grpc-message"], "body too slow");
    }
    for format in [
        ResponseFormat::Http { close: false },
        ResponseFormat::GrpcWeb { close: false },
        ResponseFormat::GrpcWebText { close: false },
    ] {
        let error = violation.final_frame(format).unwrap_err();
        assert_eq!(Violation::from_error(&*error), Some(&violation));
    }
}

#[test]
fn base64_matches_the_test_vectors_of_rfc_4648() {
    for (plain, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
        assert_eq!(base64(plain.as_bytes()), text);
    }
    assert_eq!(base64(b"foobar"), "Zm9vYmFy");
}

#[test]
fn every_message_is_a_valid_header_value() {
    for reason in Reason::ALL {
        let violation = Violation {
            reason: *reason,
            ..*rejection(ResponseFormat::Grpc).violation()
        };
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let message = Rejection::new(violation, status, ResponseFormat::Grpc).message();
        assert!(
            message
                .bytes()
                .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'%')
        );
    }
}
