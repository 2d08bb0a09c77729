//! The validation of a stack.

use super::Stack;
use palisade_core::ConfigError;
use palisade_core::Guard;
#[cfg(feature = "rate-limit")]
use palisade_core::Mode;

#[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
const SET_WITHOUT_CLIENT: &str = "set, without `client`";
#[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
const REQUIRES_CLIENT: &str = "with `client`, or with `Stack::edge`: the peer is a proxy or another \
                               service, so all requests would count as one client";

/// The shortest timeout: the resolution of tokio's timers.
#[cfg(feature = "timeout")]
const MIN_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(1);

const REQUIRES_FEATURE: &str = "a guard with its feature enabled";

impl Stack {
    /// Validates all settings. The faults are in the order of the guards.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let mut error = ConfigError::new("the guards cannot be built");
        self.check_modes(&mut error);
        #[cfg(feature = "rate-limit")]
        self.check_rate_limit(&mut error);
        #[cfg(feature = "timeout")]
        self.check_timeout(&mut error);
        #[cfg(feature = "slow-body")]
        if let Err(pace) = self.pace.build() {
            push_faults_of(
                &mut error,
                "pace",
                &pace,
                "otherwise every body is too slow, or none",
            );
        }
        #[cfg(feature = "concurrency-limit")]
        self.check_concurrency_limit(&mut error);
        error.into_result()
    }

    /// Reports modes of guards that are not in the stack, which would have no effect.
    fn check_modes(&self, error: &mut ConfigError) {
        for (guard, _) in &self.modes {
            let allowed = match guard {
                Some(Guard::Connection) => {
                    "a guard of requests: the connection guard has its own mode"
                }
                Some(Guard::LoadShed) if !cfg!(feature = "load-shed") => REQUIRES_FEATURE,
                Some(Guard::RateLimit) if !cfg!(feature = "rate-limit") => REQUIRES_FEATURE,
                Some(Guard::Timeout) if !cfg!(feature = "timeout") => REQUIRES_FEATURE,
                Some(Guard::BodyLimit) if !cfg!(feature = "body-limit") => REQUIRES_FEATURE,
                Some(Guard::SlowBody) if !cfg!(feature = "slow-body") => REQUIRES_FEATURE,
                Some(Guard::ConcurrencyLimit) if !cfg!(feature = "concurrency-limit") => {
                    REQUIRES_FEATURE
                }
                _ => continue,
            };
            error.push("mode_of", format!("{guard:?}"), allowed);
        }
    }

    #[cfg(feature = "concurrency-limit")]
    fn check_concurrency_limit(&self, error: &mut ConfigError) {
        let at_least_1 = "at least 1: every request would be refused";
        error.check(
            self.max_requests > 0,
            "max_requests",
            &self.max_requests,
            at_least_1,
        );
        let Some(requests) = self.max_requests_per_client else {
            return;
        };
        error.check(
            requests > 0,
            "max_requests_per_client",
            &requests,
            at_least_1,
        );
        if self.client_key_extractor().is_none() {
            error.push(
                "max_requests_per_client",
                SET_WITHOUT_CLIENT,
                REQUIRES_CLIENT,
            );
        }
    }

    #[cfg(feature = "rate-limit")]
    fn check_rate_limit(&self, error: &mut ConfigError) {
        let has_limit = self.rate_policy.is_some();
        self.rate_options.check(has_limit, error);
        let Some(policy) = &self.rate_policy else {
            let enables_rate_limit = |(guard, mode): &(Option<Guard>, Mode)| {
                *guard == Some(Guard::RateLimit) && *mode != Mode::Off
            };
            if self.modes.iter().any(enables_rate_limit) || self.tunes.rate_limit.is_some() {
                let allowed = "a quota: without one there is nothing to enforce";
                error.push("rate_limit", "not set", allowed);
            }
            if let Some(clients) = self.max_clients {
                let allowed = "nothing without `rate_limit`: no client is counted";
                error.push("max_clients", clients.to_string(), allowed);
            }
            return;
        };
        if self.client_key_extractor().is_none() {
            error.push("rate_limit", SET_WITHOUT_CLIENT, REQUIRES_CLIENT);
        }
        if let Err(policy) = policy.check() {
            push_faults_of(
                error,
                "rate_limit",
                &policy,
                "the table supports no other values",
            );
        }
        if let Some(clients) = self.max_clients {
            let at_least_1 = "at least 1: a client that is evicted at once has no limit";
            error.check(clients > 0, "max_clients", &clients, at_least_1);
        }
    }

    #[cfg(feature = "timeout")]
    fn check_timeout(&self, error: &mut ConfigError) {
        let at_least_1ms = "at least 1ms: no handler could answer in time";
        error.check(
            self.timeout >= MIN_TIMEOUT,
            "timeout",
            &self.timeout,
            at_least_1ms,
        );
        if let Some(total) = self.total_timeout
            && total < self.timeout
        {
            let timeout = self.timeout;
            let allowed = format!("at least `timeout`, {timeout:?}: the head comes before the end");
            error.push("total_timeout", format!("{total:?}"), allowed);
        }
    }
}

/// Adds the faults of `part` to `error`, each with the reason `why` its values are restricted.
#[cfg(any(feature = "rate-limit", feature = "slow-body"))]
pub(super) fn push_faults_of(
    error: &mut ConfigError,
    part: &str,
    part_error: &ConfigError,
    why: &str,
) {
    for fault in part_error.faults() {
        let (field, allowed) = (&fault.field, &fault.allowed);
        error.push(
            format!("{part}.{field}"),
            &fault.value,
            format!("{allowed}: {why}"),
        );
    }
}
