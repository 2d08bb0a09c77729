//! The response of a policy in place of the handler's.

use crate::{Policy, ResponseBody};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_LENGTH};
use palisade_core::{AnswerForm, OnReject, Rejection, Settings};
use std::fmt;

/// A rejection, and how the policy that made it writes the response.
#[derive(Clone)]
pub struct Refusal {
    rejection: Rejection,
    on_reject: Option<OnReject>,
}

impl Refusal {
    /// To be answered as `settings` say. The caller has recorded the rejection.
    pub fn new(rejection: Rejection, settings: &Settings) -> Self {
        Self { rejection, on_reject: settings.on_reject.clone() }
    }

    /// The request body was read to its end, or will be: the connection may stay open.
    pub(crate) fn keep_open(&mut self) {
        self.rejection.keep_open();
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn response<B, P: Policy>(self, is_head: bool) -> Response<ResponseBody<B, P>> {
        let Self { rejection, on_reject } = self;
        let mut response = match (on_reject, rejection.form()) {
            (Some(on_reject), AnswerForm::Http { .. }) => {
                let response = on_reject(&rejection);
                rejection.complete(response)
            }
            _ => rejection.into_bytes(),
        };
        let status = response.status();
        if is_head && !response.body().is_empty() {
            // What a GET would get (RFC 9110 section 8.6). A body would break HTTP/2.
            let length = response.body().len();
            let headers = response.headers_mut();
            headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
        }
        let has_no_body = is_head
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if has_no_body {
            *response.body_mut() = Bytes::new();
        }
        response.map(ResponseBody::refusal)
    }

    /// The rejection.
    pub fn rejection(&self) -> &Rejection {
        &self.rejection
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Refusal").field(&self.rejection).finish()
    }
}
