//! The connection guard under `palisade::serve`: the same attacks, honest clients and numbers as
//! under `axum::serve`, from the same files.
#![allow(
    clippy::duplicate_mod,
    reason = "the shared module detects the server by its module path"
)]

mod under;

#[path = "guarded_axum.rs"]
mod guarded_axum;
