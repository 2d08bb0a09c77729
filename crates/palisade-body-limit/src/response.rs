//! The byte counter of a limited response body.

use crate::{length, violation::too_large};
use http::{Response, StatusCode};
use http_body::Body;
use palisade_core::{Phase, Reason, Violation};

/// The limit of a response body, and the bytes of it that are left to send.
#[derive(Debug)]
pub struct Limited {
    limit: u64,
    remaining: u64,
}

impl Limited {
    /// Creates the counter for the body of `response`. `is_head` says whether the request method is
    /// `HEAD`. Fails if the response declares more than `limit` bytes.
    #[inline(never)]
    pub(crate) fn new<B: Body>(
        response: &Response<B>,
        is_head: bool,
        limit: u64,
    ) -> Result<Self, Violation> {
        // These heads may carry a `Content-Length` although no body follows (RFC 9110 section 8.6).
        let has_no_body = is_head
            || matches!(
                response.status(),
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        let declared = if has_no_body {
            0
        } else {
            length::declared_by_response(response)
        };
        if declared > limit {
            return Err(too_large(Reason::TooLarge, Phase::Handler, limit, declared));
        }
        Ok(Self {
            limit,
            remaining: limit,
        })
    }

    /// Counts `bytes` that are about to be sent. Fails if they exceed the limit.
    pub(crate) fn count(&mut self, bytes: usize) -> Result<(), Violation> {
        let bytes = bytes as u64;
        if let Some(remaining) = self.remaining.checked_sub(bytes) {
            self.remaining = remaining;
            return Ok(());
        }
        let sent = self.limit.saturating_sub(self.remaining);
        Err(too_large(
            Reason::TooLarge,
            Phase::ResponseBody,
            self.limit,
            sent.saturating_add(bytes),
        ))
    }
}
