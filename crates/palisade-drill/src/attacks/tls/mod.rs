//! Attacks on the handshake of TLS. The machines have the bare TCP connection, and write the bytes
//! of TLS themselves.

mod flood;
pub(crate) mod hello;
mod stalls;

use super::attack::Attack;

pub(super) fn attacks() -> Vec<Attack> {
    let mut attacks = stalls::attacks();
    attacks.extend(flood::attacks());
    attacks
}
