//! How to put palisade in front of a server, task by task.
//!
//! | guide | answers |
//! |---|---|
//! | [`getting_started`] | How does a bare axum server become a guarded one? |
//! | [`shadow_mode`] | How do the guards go live without refusing an honest client? |
//! | [`choosing_numbers`] | Which limits suit my service? |
//! | [`composing`] | Where does the stack go among other layers? |
//! | [`tonic`] | What is different for gRPC? |
//! | [`behind_proxy`] | What holds behind nginx or a load balancer? |
//! | [`banning`] | How are abusers kept out for a while? |
//! | [`migrating`] | Which option replaces the one that I use today? |
//!
//! Every example is a whole program that is compiled and run as a test:
//! `cargo test -p palisade --all-features --doc guide`. The servers are real, on a free port of
//! 127.0.0.1, unless an example needs no more than one service. The examples need
//!
//! ```toml
//! [dependencies]
//! axum = "0.8"
//! palisade = { version = "0.1", features = ["axum", "tonic"] }
//! tokio = { version = "1", features = ["full"] }
//! tonic = "0.14"        # For the gRPC services.
//! tower = "0.5"         # For `ServiceBuilder`.
//! tower-http = "0.7"    # For its layers, with one feature each.
//! ```
//!
//! The module exists in the documentation only. The terms are those of `docs/glossary.md` in the
//! repository.

pub mod banning;
pub mod behind_proxy;
pub mod choosing_numbers;
pub mod composing;
pub mod getting_started;
pub mod migrating;
pub mod shadow_mode;
pub mod tonic;
