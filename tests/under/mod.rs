//! The tests of the connection guard against a server other than plain `axum::serve`. The name of
//! the test crate that includes this module selects the server.
#![allow(
    clippy::duplicate_mod,
    reason = "the shared module detects the server by its module path"
)]

#[path = "../guarded_uploads.rs"]
mod guarded_uploads;
#[path = "../t01_connection_flood.rs"]
mod t01;
#[path = "../t02_file_limit.rs"]
mod t02;
#[path = "../t03_slow_head.rs"]
mod t03;
#[path = "../t04_idle.rs"]
mod t04;
#[path = "../t05_hoarding.rs"]
mod t05;
#[path = "../t07_slow_reader.rs"]
mod t07;
#[path = "../t15_http2_abuse.rs"]
mod t15;
#[path = "../t16_streams.rs"]
mod t16;
#[path = "../t19_zombies.rs"]
mod t19;
