//! The fuzz targets as property tests.

use proptest::{collection::vec, prelude::*};

#[path = "../fuzz/bodies.rs"]
mod bodies;
#[path = "../fuzz/silence.rs"]
mod silence;
#[path = "../fuzz/sniff.rs"]
mod sniff;

proptest! {
    #[test]
    fn any_request_head_is_answered_in_the_format_of_its_protocol(
        method in "(POST|GET|[A-Z]{1,9})",
        content_type in "(application/grpc(-web|-web-text)?[-+;a-z]{0,9}|[ -~]{0,20})",
        timeout in "([0-9]{1,9}[HMSmun]|[ -~]{0,12})",
    ) {
        bodies::heads(format!("{method}\n{content_type}\n{timeout}").as_bytes());
    }

    #[test]
    fn a_request_head_of_random_bytes_causes_no_panic(data in vec(any::<u8>(), 0..60)) {
        bodies::heads(&data);
    }

    #[test]
    fn any_frames_arrive_in_order_or_are_refused(data in vec(any::<u8>(), 0..600)) {
        bodies::frames(&data);
    }

    #[test]
    fn the_keyed_table_agrees_with_a_map(data in vec(any::<u8>(), 0..2000)) {
        bodies::table(&data);
    }

    #[test]
    fn no_client_that_falls_silent_keeps_its_connection_open(data in vec(any::<u8>(), 1..80)) {
        silence::silence(&data);
    }

    #[test]
    fn the_first_bytes_of_a_connection_are_read_once_and_in_order(
        data in vec(any::<u8>(), 0..80),
    ) {
        sniff::sniff(&data);
    }
}
