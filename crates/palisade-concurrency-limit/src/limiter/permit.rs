//! Kinds of permits, and the data that a permit may carry.

use super::{
    fair_share::{Charge, FairShare},
    per_client::CountedRequest,
};

/// Kind of a permit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PermitKind {
    /// For any client; taken by a light request, or while permits were plentiful.
    #[default]
    Common,
    /// For any client; taken by a heavy request.
    Heavy,
    /// From the last tenth, which only light requests may take.
    LightOnly,
}

/// Data that only some permits carry.
#[derive(Debug, Default)]
pub struct PermitExtras {
    /// The charge of the client, if permits were short when the request arrived.
    pub(crate) charge: Option<Charge>,
    /// The client's count. Held for its drop.
    pub(crate) counted: Option<CountedRequest>,
    /// The permit is one of those beyond the limit.
    pub(crate) from_reserve: bool,
    /// The kind of the permit.
    pub(crate) kind: PermitKind,
}

impl PermitExtras {
    /// Records that the request has stopped working, until it resumes or for good.
    pub(crate) fn pause(&mut self, fair_share: Option<&FairShare>) {
        if let (Some(charge), Some(fair_share)) = (&mut self.charge, fair_share) {
            fair_share.pause(charge);
        }
    }
}
