//! Properties of a response head.

use http::{Response, StatusCode};
use http_body::Body;
use palisade_guard::Facts;

/// Whether the request is released at this response head: another protocol follows, or a stream
/// that lives as long as it is read.
#[inline]
pub(crate) fn releases_at_head<B: Body>(response: &Response<B>, facts: &Facts) -> bool {
    let status = response.status();
    status == StatusCode::SWITCHING_PROTOCOLS
        || (facts.is_connect && status.is_success())
        || (response.body().size_hint().exact().is_none()
            && content_type_starts_with(response, b"text/event-stream"))
}

pub(crate) fn is_grpc<B>(response: &Response<B>) -> bool {
    content_type_starts_with(response, b"application/grpc")
}

fn content_type_starts_with<B>(response: &Response<B>, start: &[u8]) -> bool {
    let kind = response.headers().get(http::header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(start))
}
