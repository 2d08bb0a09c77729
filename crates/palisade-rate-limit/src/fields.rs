//! The header fields `RateLimit-Policy` and `RateLimit`, as draft-ietf-httpapi-ratelimit-headers-11
//! defines them: structured-field lists (RFC 9651), in which each quota is a string with
//! parameters.

use crate::{ConfigError, QuotaState};
use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};
use std::{fmt::Write, sync::Arc, time::Duration};

pub(crate) const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub(crate) const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The longest name.
const MAX_NAME_BYTES: usize = 64;
/// An integer has at most 15 digits (RFC 9651 section 3.3.1).
const MAX_INTEGER: u64 = 999_999_999_999_999;
/// What the name of the quota of a network ends with.
const OF_NETWORK: &str = "-network";

/// Writes the fields of one layer.
#[derive(Clone, Debug)]
pub(crate) struct Fields {
    /// The text between the quotes, escaped.
    name: Arc<str>,
}

// === Fields ===

impl Fields {
    pub(crate) fn new(name: &str) -> Result<Self, ConfigError> {
        let is_printable = |byte: &u8| matches!(byte, 0x20..=0x7e);
        let mut error = ConfigError::new("invalid rate limit");
        error.check(
            (1..=MAX_NAME_BYTES).contains(&name.len()) && name.as_bytes().iter().all(is_printable),
            "name",
            &name,
            "1 to 64 printable ASCII characters",
        );
        error.into_result()?;
        let name = name.replace('\\', "\\\\").replace('"', "\\\"");
        Ok(Self { name: name.into() })
    }

    /// Returns the fields of a request that costs `cost` cells and is refused, by the quotas of its
    /// client or of its network. `RateLimit` has the quotas that refuse it, so that none of their
    /// times is later than `Retry-After`.
    pub(crate) fn of_refusal(
        &self,
        quotas: &[QuotaState],
        cost: u32,
        is_network: bool,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let policy = self.policy(quotas, is_network);
        let limit = self.limit(quotas, is_network, |quota| quota.available < cost);
        let fields = [(POLICY, policy), (LIMIT, limit)];
        let present = |(name, value): (_, Option<_>)| Some((name, value?));
        fields.into_iter().filter_map(present).collect()
    }

    /// Adds the fields to the response of an admitted request. A response that names a time itself
    /// gets no second one.
    pub(crate) fn add_to(&self, headers: &mut HeaderMap, quotas: &[QuotaState]) {
        if let Some(policy) = self.policy(quotas, false) {
            headers.append(POLICY, policy);
        }
        if !headers.contains_key(RETRY_AFTER)
            && let Some(limit) = self.limit(quotas, false, |_| true)
        {
            headers.append(LIMIT, limit);
        }
    }

    fn policy(&self, quotas: &[QuotaState], is_network: bool) -> Option<HeaderValue> {
        self.list(
            quotas,
            is_network,
            |_| true,
            |text, quota| {
                let _ = write!(text, ";q={}", quota.burst);
                // The draft has no shorter windows than a second.
                if quota.window >= Duration::from_secs(1) {
                    let _ = write!(text, ";w={}", whole_seconds(quota.window));
                }
            },
        )
    }

    fn limit(
        &self,
        quotas: &[QuotaState],
        is_network: bool,
        is_listed: impl Fn(&QuotaState) -> bool,
    ) -> Option<HeaderValue> {
        self.list(quotas, is_network, is_listed, |text, quota| {
            let _ = write!(text, ";r={}", quota.available);
            if let Some(next) = quota.next {
                let _ = write!(text, ";t={}", whole_seconds(next));
            }
        })
    }

    /// Returns a list of those quotas that are listed; `None` if there are none. The second quota
    /// of a policy has the name of the layer and `-2`.
    fn list(
        &self,
        quotas: &[QuotaState],
        is_network: bool,
        is_listed: impl Fn(&QuotaState) -> bool,
        parameters: impl Fn(&mut String, &QuotaState),
    ) -> Option<HeaderValue> {
        let mut text = String::new();
        let listed = quotas.iter().zip(1..).filter(|(quota, _)| is_listed(quota));
        for (quota, number) in listed {
            let separator = if text.is_empty() { "" } else { ", " };
            let network = if is_network { OF_NETWORK } else { "" };
            let _ = write!(text, "{separator}\"{}{network}", self.name);
            if number > 1 {
                let _ = write!(text, "-{number}");
            }
            text.push('"');
            parameters(&mut text, quota);
        }
        let is_empty = text.is_empty();
        HeaderValue::try_from(text).ok().filter(|_| !is_empty)
    }
}

/// Returns `time` in seconds, rounded up, or the largest number of a structured field.
fn whole_seconds(time: Duration) -> u64 {
    let seconds = time.as_secs();
    let seconds = seconds.saturating_add(u64::from(time.subsec_nanos() > 0));
    seconds.min(MAX_INTEGER)
}
