//! The quota of an account, on all nodes.

use super::request::Micros;

/// A quota of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The time for one cell.
    pub(crate) period: Micros,
    pub(crate) burst: u32,
    /// The cells that a node admits before it has reported them.
    pub(super) allowance: u32,
    /// The most cells that are asked for in advance.
    pub(super) most_in_advance: u8,
}

/// The most cells that are asked for in advance.
const MAX_IN_ADVANCE: u32 = 128;

impl Rule {
    pub(crate) fn new(period: Micros, burst: u32, nodes: u32) -> Self {
        let nodes = nodes.max(1);
        Self {
            period,
            burst,
            allowance: (burst / nodes.saturating_mul(4)).max(1),
            most_in_advance: (burst / nodes).min(MAX_IN_ADVANCE) as u8,
        }
    }

    /// Returns the longest debt in the store, in cells. Normal work never reaches it.
    pub(super) fn longest_debt(&self, nodes: u32) -> u64 {
        2 * u64::from(self.burst) + 2 * u64::from(nodes) * u64::from(self.allowance)
    }
}
