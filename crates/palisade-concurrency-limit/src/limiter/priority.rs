//! Which waiting request comes first.

use super::permit::Share;

/// Decides which request comes first when a permit is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Had a permit before; its client holds few and is not in debt, or is not known.
    Light,
    /// Had a permit before.
    Heavy,
    /// Never had one; its client holds few and is not in debt.
    LightNewcomer,
    /// Never had one.
    Newcomer,
}

/// Where a request waits: among those for a permit with this priority, or among those for their
/// clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    pub(crate) number: u64,
    pub(crate) priority: Option<Priority>,
}

impl Priority {
    pub(crate) const ALL: [Self; 4] = [
        Self::Light,
        Self::Heavy,
        Self::LightNewcomer,
        Self::Newcomer,
    ];

    /// Requests that had a permit before come before newcomers. Of each the light and the heavy.
    pub(crate) const PAIRS: [[Self; 2]; 2] = [
        [Self::Light, Self::Heavy],
        [Self::LightNewcomer, Self::Newcomer],
    ];

    pub(crate) fn is_newcomer(self) -> bool {
        matches!(self, Self::LightNewcomer | Self::Newcomer)
    }

    /// Whether the permits kept for clients that hold few are for this one too.
    pub(crate) fn is_light(self) -> bool {
        matches!(self, Self::Light | Self::LightNewcomer)
    }

    /// The share of a permit outside of the reserve that this one takes.
    pub(crate) fn share(self, is_fair: bool) -> Share {
        if is_fair && !self.is_light() {
            Share::Heavy
        } else {
            Share::Common
        }
    }
}
