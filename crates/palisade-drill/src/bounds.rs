//! The bounds of a drill, which no option exceeds.

use std::time::Duration;

/// The largest number of attack connections that are open at once.
pub const MAX_CONNECTIONS: usize = 4_000;
/// The largest number of bytes that the connections of one attack send and receive. Over TLS, those
/// that it carries: handshakes and records come on top.
pub const MAX_ATTACK_BYTES: u64 = 512 << 20;
/// The longest time of one attack, in which attackers send anything.
pub const MAX_ATTACK_TIME: Duration = Duration::from_secs(30);
/// The longest time of the one attack with a request once a minute.
pub const MAX_PATIENT_ATTACK_TIME: Duration = Duration::from_secs(150);
/// The longest time of all attacks of a run.
pub const MAX_RUN_TIME: Duration = Duration::from_secs(15 * 60);
/// The largest number of connections that one attack opens or tries to open, one after the other
/// included.
pub const MAX_OPENED: u64 = 60_000;
