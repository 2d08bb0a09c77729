//! Which peers may connect: the interface between a list of addresses and the connection guard.

use crate::{ConnInfo, Mode, Violation};
use std::fmt;

/// Decides which peers may connect. A connection guard asks it at accept, before it counts the
/// connection.
///
/// ```
/// use palisade_core::{ConnInfo, Gate, Guard, Mode, Networks, Phase, Reason, Violation};
///
/// /// Admits the office only.
/// #[derive(Debug)]
/// struct OfficeOnly(Networks);
///
/// impl Gate for OfficeOnly {
///     fn refusal(&self, conn: &ConnInfo) -> Option<(Violation, Mode)> {
///         let is_office = self.0.contains(conn.peer().ip());
///         let denied = Violation::new(Guard::Ban, Reason::Denied, Phase::Accept, 0, 0);
///         (!is_office).then_some((denied, Mode::Enforce))
///     }
/// }
///
/// # use palisade_core::Prefix;
/// let gate = OfficeOnly(Networks::parse("192.0.2.0/24")?);
/// let conn = |peer: &str| peer.parse().map(|peer| ConnInfo::new(peer, None, Prefix::default()));
/// assert!(gate.refusal(&*conn("192.0.2.1:4711")?).is_none());
/// assert!(gate.refusal(&*conn("203.0.113.7:4711")?).is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Gate: fmt::Debug + Send + Sync + 'static {
    /// Returns the rule by which the peer of `conn` may not connect, and whether the gate enforces
    /// it. `None` admits the peer as far as the gate is concerned.
    ///
    /// Called in the accept loop: it must return at once and must not panic.
    fn refusal(&self, conn: &ConnInfo) -> Option<(Violation, Mode)>;
}
