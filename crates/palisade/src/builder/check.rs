//! What a stack cannot be.

use super::Stack;
use palisade_core::ConfigError;
use palisade_core::Guard;
#[cfg(feature = "rate-limit")]
use palisade_core::Mode;

#[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
const UNSAID: &str = "set, without `client`";
#[cfg(any(feature = "concurrency-limit", feature = "rate-limit"))]
const SAID: &str = "with `client`, or at the edge: the peer is a proxy or another service, so all would \
                    count as one client";

/// Timers of tokio are no finer.
#[cfg(feature = "timeout")]
const MIN_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(1);

const FEATURE_OFF: &str = "a guard whose feature is on";

impl Stack {
    /// Everything that is wrong, in the order of the guards.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let mut error = ConfigError::new("the guards cannot be built");
        self.check_modes(&mut error);
        #[cfg(feature = "rate-limit")]
        self.check_rate_limit(&mut error);
        #[cfg(feature = "timeout")]
        self.check_timeout(&mut error);
        #[cfg(feature = "slow-body")]
        if let Err(pace) = self.pace.build() {
            add(
                &mut error,
                "pace",
                &pace,
                "else everybody is too slow, or nobody",
            );
        }
        #[cfg(feature = "concurrency-limit")]
        self.check_concurrency_limit(&mut error);
        error.into_result()
    }

    /// A mode for a guard that is not in the stack would do nothing.
    fn check_modes(&self, error: &mut ConfigError) {
        for (guard, _) in &self.modes {
            let allowed = match guard {
                Some(Guard::Connection) => {
                    "a guard of requests: that of connections has its own mode"
                }
                Some(Guard::RateLimit) if !cfg!(feature = "rate-limit") => FEATURE_OFF,
                Some(Guard::Timeout) if !cfg!(feature = "timeout") => FEATURE_OFF,
                Some(Guard::BodyLimit) if !cfg!(feature = "body-limit") => FEATURE_OFF,
                Some(Guard::SlowBody) if !cfg!(feature = "slow-body") => FEATURE_OFF,
                Some(Guard::ConcurrencyLimit) if !cfg!(feature = "concurrency-limit") => {
                    FEATURE_OFF
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
        let Some(most) = self.max_requests_per_client else {
            return;
        };
        error.check(most > 0, "max_requests_per_client", &most, at_least_1);
        if self.client_of_preset().is_none() {
            error.push("max_requests_per_client", UNSAID, SAID);
        }
    }

    #[cfg(feature = "rate-limit")]
    fn check_rate_limit(&self, error: &mut ConfigError) {
        let Some(policy) = &self.policy else {
            let said = |(guard, mode): &(Option<Guard>, Mode)| {
                *guard == Some(Guard::RateLimit) && *mode != Mode::Off
            };
            if self.modes.iter().any(said) || self.tunes.rate_limit.is_some() {
                let quota = "a quota: without one there is nothing to enforce";
                error.push("rate_limit", "not set", quota);
            }
            if let Some(clients) = self.max_clients {
                let quota = "nothing without `rate_limit`: no client is counted";
                error.push("max_clients", clients.to_string(), quota);
            }
            return;
        };
        if self.client_of_preset().is_none() {
            error.push("rate_limit", UNSAID, SAID);
        }
        if let Err(policy) = policy.check() {
            add(error, "rate_limit", &policy, "a table counts no other");
        }
        if let Some(clients) = self.max_clients {
            let at_least_1 = "at least 1: a client that is forgotten at once has no limit";
            error.check(clients > 0, "max_clients", &clients, at_least_1);
        }
    }

    #[cfg(feature = "timeout")]
    fn check_timeout(&self, error: &mut ConfigError) {
        let least = "at least 1ms: no handler could answer in time";
        error.check(self.timeout >= MIN_TIMEOUT, "timeout", &self.timeout, least);
        if let Some(total) = self.total.filter(|total| *total < self.timeout) {
            let least = self.timeout;
            let allowed = format!("at least `timeout`, {least:?}: the head comes before the end");
            error.push("total_timeout", format!("{total:?}"), allowed);
        }
    }
}

/// What is wrong with a `part`, and why that is so.
#[cfg(any(feature = "rate-limit", feature = "slow-body"))]
fn add(error: &mut ConfigError, part: &str, of_part: &ConfigError, why: &str) {
    for fault in of_part.faults() {
        let (field, allowed) = (&fault.field, &fault.allowed);
        error.push(
            format!("{part}.{field}"),
            &fault.value,
            format!("{allowed}: {why}"),
        );
    }
}
