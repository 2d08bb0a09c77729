//! The options of a layer that limits more than one quota per client.

use crate::{ConfigError, Limiter, Policy, account::Ladder, fields::Fields, fleet::FleetLimiter};
use http::{Extensions, HeaderMap, Response, StatusCode};
use palisade_core::{Mode, Networks};
use palisade_guard::Settings;
use std::{net::IpAddr, sync::Arc};

/// What a layer does beyond one quota per client. A layer without any of it checks once that it has
/// none.
#[derive(Clone, Default)]
pub(crate) struct Options {
    pub(crate) ladder: Ladder,
    pub(crate) networks: Vec<NetworkQuota>,
    pub(crate) settle: Option<SettleFn>,
    pub(crate) fields: Option<Fields>,
    pub(crate) fields_on_every_response: bool,
}

pub(crate) type SettleFn = Arc<dyn Fn(&ResponseHead<'_>) -> u32 + Send + Sync>;

/// Networks with a policy of their own.
#[derive(Clone)]
pub(crate) struct NetworkQuota {
    networks: Networks,
    limiter: Arc<dyn Limiter>,
}

/// A borrowed response without its body: the argument of
/// [`settle`](crate::RateLimitLayer::settle).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ResponseHead<'a> {
    /// The status that the handler has chosen.
    pub status: StatusCode,
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// The values that the handler and the inner layers have inserted.
    pub extensions: &'a Extensions,
    /// The number of cells that the request was charged.
    pub charged: u32,
}

// === Options ===

impl Options {
    /// No options.
    pub(crate) const NONE: &'static Self = &Self {
        ladder: Ladder::NONE,
        networks: Vec::new(),
        settle: None,
        fields: None,
        fields_on_every_response: false,
    };

    /// Returns whether the response of an admitted request matters.
    #[inline]
    pub(crate) fn needs_response(&self) -> bool {
        self.settle.is_some() || (self.fields.is_some() && self.fields_on_every_response)
    }

    /// Returns the mode of the limits of networks in a layer with these settings.
    pub(crate) fn networks_mode(&self, settings: &Settings) -> Mode {
        match self.ladder.mode {
            Mode::Enforce => settings.mode,
            mode => mode,
        }
    }

    /// Returns whether the address of a client matters.
    pub(crate) fn needs_address(&self) -> bool {
        !self.ladder.is_empty() || !self.networks.is_empty()
    }

    /// Returns the index of the first networks that the address is in.
    pub(crate) fn network_of(&self, address: Option<IpAddr>) -> Option<usize> {
        let address = address?;
        let mut networks = self.networks.iter();
        networks.position(|quota| quota.networks.contains(address))
    }

    /// Returns the limiter of the networks with this index, or else `others`.
    pub(crate) fn limiter<'a>(
        &'a self,
        network: Option<usize>,
        others: &'a Arc<dyn Limiter>,
    ) -> &'a dyn Limiter {
        let quota = network.and_then(|network| self.networks.get(network));
        &**quota.map_or(others, |quota| &quota.limiter)
    }
}

// === NetworkQuota ===

impl NetworkQuota {
    pub(crate) fn new(
        networks: Networks,
        policy: Policy,
        others: &dyn Limiter,
    ) -> Result<Self, ConfigError> {
        let limiter = match policy.handle() {
            None => others.with_policy(policy)?,
            Some(fleet) => {
                let table = others.table_for(&policy)?;
                Arc::new(FleetLimiter::new(table, &policy, fleet)?)
            }
        };
        Ok(Self { networks, limiter })
    }
}

// === ResponseHead ===

impl<'a> ResponseHead<'a> {
    pub(crate) fn new<B>(response: &'a Response<B>, charged: u32) -> Self {
        Self {
            status: response.status(),
            headers: response.headers(),
            extensions: response.extensions(),
            charged,
        }
    }
}
