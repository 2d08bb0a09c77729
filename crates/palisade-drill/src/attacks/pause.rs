//! The pause before a closed connection is opened again.

use crate::machine::Actions;
use std::time::Duration;

/// The pause before a connection that the server closed is replaced. Without one, attackers would
/// be a flood of connections, which is an attack of its own.
pub(crate) const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// Opens a closed connection again after [`RECONNECT_PAUSE`].
pub(crate) fn reopen(now: Duration, out: &mut Actions) {
    out.reopen_at(now + RECONNECT_PAUSE);
}
