//! Order of queued requests.

use super::permit::PermitKind;

/// Priority of a queued request when a permit is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Has held a permit; its client is light or unknown, or fairness is off.
    AdmittedLight,
    /// Has held a permit; its client is heavy.
    AdmittedHeavy,
    /// Has never held a permit; its client is light, or fairness is off.
    NewLight,
    /// Has never held a permit; its client is heavy or unknown.
    NewHeavy,
}

/// Position of a request in a queue: of those queued for a permit with this priority, or, without
/// one, of those that wait for their clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    pub(crate) number: u64,
    pub(crate) priority: Option<Priority>,
}

impl Priority {
    pub(crate) const ALL: [Self; 4] = [
        Self::AdmittedLight,
        Self::AdmittedHeavy,
        Self::NewLight,
        Self::NewHeavy,
    ];

    /// Admitted requests before new ones; within each pair, the light priority and the heavy one.
    pub(crate) const PAIRS: [[Self; 2]; 2] = [
        [Self::AdmittedLight, Self::AdmittedHeavy],
        [Self::NewLight, Self::NewHeavy],
    ];

    pub(crate) fn is_new(self) -> bool {
        matches!(self, Self::NewLight | Self::NewHeavy)
    }

    /// Whether light-only permits are open to this priority.
    pub(crate) fn is_light(self) -> bool {
        matches!(self, Self::AdmittedLight | Self::NewLight)
    }

    /// The kind of permit that this priority takes if it is not a light-only one.
    pub(crate) fn permit_kind(self, is_fair: bool) -> PermitKind {
        if is_fair && !self.is_light() {
            PermitKind::Heavy
        } else {
            PermitKind::Common
        }
    }
}
