//! A response body that is limited.

use crate::{length, violation::too_large};
use http::{Response, StatusCode};
use http_body::Body;
use palisade_core::{Phase, Violation};

/// A response that is limited, and how much of it is left to send.
#[derive(Debug)]
pub struct Limited {
    limit: u64,
    remaining: u64,
}

impl Limited {
    /// What it takes to limit the body of `response`, which answers a `HEAD` or not. An error if it
    /// declares more than `limit`.
    #[inline(never)]
    pub(crate) fn new<B: Body>(
        response: &Response<B>,
        is_head: bool,
        limit: u64,
    ) -> Result<Self, Violation> {
        // A length may stand in these heads, and nothing follows it (RFC 9110 section 8.6).
        let has_no_body = is_head
            || matches!(
                response.status(),
                StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
            );
        let declared = if has_no_body {
            0
        } else {
            length::declared(response)
        };
        if declared > limit {
            return Err(too_large(Phase::Handler, limit, declared));
        }
        Ok(Self {
            limit,
            remaining: limit,
        })
    }

    /// Counts what is about to be sent. An error if it is too much.
    pub(crate) fn send(&mut self, bytes: usize) -> Result<(), Violation> {
        let bytes = bytes as u64;
        if let Some(left) = self.remaining.checked_sub(bytes) {
            self.remaining = left;
            return Ok(());
        }
        let sent = self.limit.saturating_sub(self.remaining);
        Err(too_large(
            Phase::ResponseBody,
            self.limit,
            sent.saturating_add(bytes),
        ))
    }
}
