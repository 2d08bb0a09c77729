//! One module per threat of `docs/threats.md`: a real client against a real server on loopback.
//! Tests that count the memory of the whole process have a test binary of their own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod t01_connection_flood;
mod t02_file_limit;
mod t03_slow_head;
mod t04_idle;
mod t05_endless;
mod t05_hoarding;
mod t06_compressed;
mod t06_dripping_uploads;
mod t06_places;
mod t06_shared_window;
mod t06_slow_body;
mod t07_slow_reader;
mod t07_unread_responses;
mod t07_window_stall;
mod t08_huge_body;
mod t09_heads;
mod t10_decompression;
mod t11_flood_over_nodes;
mod t11_request_flood;
mod t13_spoofed_identity;
mod t14_overload;
mod t15_http2_abuse;
mod t15_http2_floods;
mod t16_hpack;
mod t16_streams;
mod t16_streams_and_headers;
mod t18_memory_pressure;
mod t19_zombies;
mod t20_shutdown;
mod t21_cardinality_and_logs;
mod t28_refused_streams;
