//! The tests of the connection guard, for a server other than stock `axum::serve`: which one, the
//! name of the test says in whose module they stand.
#![allow(
    clippy::duplicate_mod,
    reason = "what they share knows by its path where it is"
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
