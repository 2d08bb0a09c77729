//! Attacks on HTTP/2, with frames of our own.

mod beat;
mod endless;
mod floods;
pub mod frames;
mod heads;
mod passages;
mod requests;
mod resets;
mod session;
mod stalls;
mod tunnel;
mod uploads;
mod windows;

use super::attack::Attack;

pub(super) fn attacks() -> Vec<Attack> {
    let mut attacks = resets::attacks();
    attacks.extend(endless::attacks());
    attacks.extend(floods::attacks());
    attacks.extend(windows::attacks());
    attacks.extend(stalls::attacks());
    attacks.extend(uploads::attacks());
    attacks.extend(heads::attacks());
    attacks.extend(requests::attacks());
    attacks.extend(passages::attacks());
    attacks.extend(tunnel::attacks());
    attacks
}
