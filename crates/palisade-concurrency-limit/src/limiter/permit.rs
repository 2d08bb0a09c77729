//! One permit, and what may come with it.

use super::{
    fair_share::{Charge, FairShare},
    per_client::ClientCount,
};

/// A kind of permit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Share {
    /// A permit for any client, taken by a light request, or while permits were plentiful.
    #[default]
    Common,
    /// A permit for any client, taken by a heavy request.
    Heavy,
    /// A permit of the last tenth, for light requests.
    Reserve,
}

/// What only some permits come with.
#[derive(Debug, Default)]
pub struct Extras {
    /// The account of the client, if permits were getting short when the request came.
    pub(crate) charge: Option<Charge>,
    /// Held for its drop.
    pub(crate) counted: Option<ClientCount>,
    /// The permit is one of those beyond the limit.
    pub(crate) picked: bool,
    /// The kind of the permit.
    pub(crate) share: Share,
}

impl Extras {
    /// The request stops working, for now or for good.
    pub(crate) fn pause(&mut self, fair_share: Option<&FairShare>) {
        if let (Some(charge), Some(fair_share)) = (&mut self.charge, fair_share) {
            fair_share.pause(charge);
        }
    }
}
