//! The connection guard under tonic's own server, hardened: the same attacks, neighbours and numbers
//! as under `axum::serve`, from the same files. What is not there is left out: upgrades, and axum's
//! `ConnectInfo`.

mod under;
