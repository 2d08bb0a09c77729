//! What a stack cannot be.

use super::Stack;
use crate::Fault;
#[cfg(feature = "rate-limit")]
use palisade_core::{Guard, Mode};

impl Stack {
    /// Everything that is wrong, in the order of the guards.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let faults = std::iter::empty();
        #[cfg(feature = "rate-limit")]
        let faults = faults.chain(self.faults_of_rate_limit());
        #[cfg(feature = "timeout")]
        let faults = faults.chain(self.faults_of_timeout());
        #[cfg(feature = "slow-body")]
        let faults = faults.chain(self.faults_of_pace());
        #[cfg(feature = "concurrency-limit")]
        let faults = faults.chain(self.faults_of_concurrency_limit());
        faults.collect()
    }

    #[cfg(feature = "concurrency-limit")]
    fn faults_of_concurrency_limit(&self) -> Vec<Fault> {
        let zero = |field| Fault::new(field, "0", "at least 1", "every request would be refused");
        let mut faults = Vec::new();
        if self.max_requests == 0 {
            faults.push(zero("max_requests"));
        }
        if self.max_requests_per_client == Some(0) {
            faults.push(zero("max_requests_per_client"));
        }
        if self.max_requests_per_client.is_some() && self.client_of_preset().is_none() {
            let why = "the peer is a proxy or another service, so all would count as one client";
            let value = "set, without `client`";
            let allowed = "with `client`, or at the edge";
            faults.push(Fault::new("max_requests_per_client", value, allowed, why));
        }
        faults
    }

    #[cfg(feature = "rate-limit")]
    fn faults_of_rate_limit(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let Some(policy) = &self.policy else {
            let said = |(guard, mode): &(Option<Guard>, Mode)| {
                *guard == Some(Guard::RateLimit) && *mode != Mode::Off
            };
            if self.modes.iter().any(said) || self.tunes.rate_limit.is_some() {
                let why = "without a quota there is nothing to enforce";
                faults.push(Fault::new("rate_limit", "not set", "a quota", why));
            }
            return faults;
        };
        if self.client_of_preset().is_none() {
            faults.push(Fault::new(
                "rate_limit",
                "set, without `client`",
                "with `client`, or at the edge",
                "the peer is a proxy or another service, so all would count as one client",
            ));
        }
        if let Err(error) = policy.check() {
            faults.extend(error.faults().iter().map(|fault| {
                let field = format!("rate_limit.{}", fault.field);
                Fault::new(field, &fault.value, fault.allowed, "a table counts no other")
            }));
        }
        faults
    }

    #[cfg(feature = "timeout")]
    fn faults_of_timeout(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        if self.timeout.is_zero() {
            let value = format!("{:?}", self.timeout);
            let why = "no handler could answer in time";
            faults.push(Fault::new("timeout", value, "more than 0", why));
        }
        if let Some(total) = self.total.filter(|total| *total < self.timeout) {
            let allowed = format!("at least `timeout`, {:?}", self.timeout);
            let why = "the head comes before the end";
            faults.push(Fault::new("total_timeout", format!("{total:?}"), allowed, why));
        }
        faults
    }

    #[cfg(feature = "slow-body")]
    fn faults_of_pace(&self) -> Vec<Fault> {
        let Err(error) = self.pace.build() else { return Vec::new() };
        let fault = |fault: &palisade_slow_body::PaceFault| {
            let field = format!("pace.{}", fault.field);
            Fault::new(field, &fault.value, fault.allowed, "else everybody is too slow, or nobody")
        };
        error.faults().iter().map(fault).collect()
    }
}
