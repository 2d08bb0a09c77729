//! An attack drill for your own HTTP server, from `cargo test`. It attacks the server as attackers
//! do, sends the requests of honest clients beside that, and grades what it saw.
//!
//! ```
//! use palisade_drill::{Drill, Grade};
//!
//! # async fn my_server(listener: tokio::net::TcpListener) {
//! #     let app = axum::Router::new().route("/", axum::routing::get(async || "hello"));
//! #     axum::serve(listener, app).await.unwrap();
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), palisade_drill::DrillError> {
//! let drill = Drill::serving(my_server).get("/").quick();
//! # let drill = drill.only("churn");
//! let report = drill.run().await?;
//! report.assert(Grade::C); // Panics with the report if the grade is worse.
//! # Ok(())
//! # }
//! ```
//!
//! Load generators measure speed. A drill asks another question: is an honest client served as
//! before while others try to prevent it, and what do those others keep? One rule holds for every
//! server and every attack:
//!
//! | verdict | meaning |
//! |---|---|
//! | held | honest clients are served 99 % of the time, at a p99 latency of 3 times that before and 50 ms at most; 10 % of the attackers' connections are left at most |
//! | kept | honest clients are unharmed, but the attackers keep what they took |
//! | harmed | one kind of honest client is served less or later |
//! | down | honest clients are served less than half of the time, or not within 5 s afterwards |
//! | inconclusive | nothing can be said, for the reason that is given |
//!
//! A drill is *inconclusive* if its own clock was late, if too few requests were answered before
//! the attack, or if honest clients were harmed while other processes took a quarter of the
//! processor or more and left less than a fifth of it idle (on Linux, where that is known). A kind
//! of client that was served less than half of the time was harmed in any case.
//!
//! The grade is A if every attack was held, B if honest clients were unharmed throughout, C if some
//! were harmed, F if the server was down.
//!
//! # Honest clients that look like attackers
//!
//! A browser that asks for forty assets at once, a hundred clients behind one address, a slow
//! upload, a pool and a client that comes back are sent like attacks. A server that refuses them is
//! judged as one that falls: *harmed* if 1 % or more of their requests are not served, *down* if
//! more than half are not.
//!
//! # Places
//!
//! A server that keeps silent connections while it has room is patient, not weak. Say how many
//! connections it admits with [`Drill::places`]. The drill then sends more attackers than that, and
//! lets newcomers ask for all places: attackers that the server gives up for them are not *kept*.
//! Without it, the report says "perhaps patience".
//!
//! # Honest clients
//!
//! On loopback each kind has an address of its own. All together send 20 requests a second: a GET
//! on a new connection, and one on a connection that is kept; with [`Drill::post`] a small POST and
//! a phone that sends 8 KiB at 16 KiB/s; with [`Drill::large`] a phone that receives at 64 KiB/s;
//! with [`Drill::events`] an event stream, and with [`Drill::websocket`] a quiet WebSocket; and
//! where the server speaks HTTP/2, connections with three requests at once, of which the server
//! refuses one; and with TLS, handshakes whose flights are 300 and 500 ms late. [`Kind`] says what
//! counts as served.
//!
//! # A child process
//!
//! [`Drill::child`] starts the server as a process of its own, which listens on `127.0.0.1:$PORT`.
//! On Linux the drill measures its memory, open files and processor time, gives it few files with
//! [`Drill::file_limit`], so that places are short without [`Drill::places`], gives it little
//! memory with [`Drill::memory_limit`] and holds uploads open that need more, and with
//! [`Drill::cpu_get`] sends requests at twice the capacity of its processor cores. Memory is *kept*
//! only if a second round raises it again, because allocators keep freed heap. A process that dies
//! is *down*, with its exit status as the reason. An overload has no attackers: it is *held* if
//! 70 % of the capacity is answered within 1 s and the rest refused within 1 s, and *down* below
//! 20 %.
//!
//! # TLS
//!
//! With the feature `rustls`, `Drill::tls` lets all sides speak TLS, of which no certificate is
//! verified. It adds attacks on the handshake, and honest clients that make theirs slowly.
//!
//! # More
//!
//! [docs/drill.md] has the first drill step by step, the drill in CI, and drills of nginx, Go or
//! anything that listens.
//!
//! [docs/drill.md]: https://github.com/palisade-rs/palisade/blob/main/docs/drill.md
//!
//! # Safety
//!
//! On loopback, the drill attacks only a listener of the user that runs it (on Linux, where that is
//! known), not one of ssh or another program that forwards. Any other server has to publish its
//! [`consent`] to the holder of a secret, is asked for it before anything else is sent, and is left
//! alone within a minute after it has taken that away; no option, feature or variable lifts this.
//! Redirects are not followed. No option exceeds the [`bounds`]. When the future of [`Drill::run`]
//! is dropped, all connections end.
#![forbid(unsafe_code)]

pub mod attacks;
pub mod bounds;
mod child;
pub mod consent;
mod drill;
mod engine;
mod error;
mod figures;
mod files;
mod grade;
mod honest;
pub mod machine;
mod options;
mod overload;
mod plan;
mod processor;
mod report;
mod run;
mod sample;
mod series;
mod server;
mod target;
mod text;
mod tls;
mod usage;
mod variation;
mod verdict;
mod wave;
mod worker;

pub use drill::Drill;
pub use error::{ConfigFault, DrillError};
pub use figures::Figures;
pub use grade::{Grade, Verdict};
pub use overload::Overload;
pub use processor::Processor;
pub use report::{
    AttackReport, AttackersReport, Change, Comparison, Report, ReportError, SCHEMA, Skipped,
};
pub use sample::Kind;
pub use series::{Moment, Series};
pub use usage::ServerUsage;
pub use verdict::Honest;
