//! The connection guard under tonic's own server, hardened: the same attacks, honest clients and
//! numbers as under `axum::serve`, from the same files. Upgrades and axum's `ConnectInfo` are left
//! out because tonic does not have them.

mod under;
