//! The connection guard under `palisade::serve`: the same attacks, neighbours and numbers as under
//! `axum::serve`, from the same files.
#![allow(
    clippy::duplicate_mod,
    reason = "what they share knows by its path where it is"
)]

mod under;

#[path = "guarded_axum.rs"]
mod guarded_axum;
