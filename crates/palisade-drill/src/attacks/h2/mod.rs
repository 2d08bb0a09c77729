//! Attacks on HTTP/2, with frames of our own.

mod endless;
mod floods;
pub mod frames;
mod resets;
mod session;
mod windows;

use super::attack::Attack;

pub(super) fn attacks() -> Vec<Attack> {
    let mut attacks = resets::attacks();
    attacks.extend(endless::attacks());
    attacks.extend(floods::attacks());
    attacks.extend(windows::attacks());
    attacks
}
