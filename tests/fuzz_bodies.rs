//! The bodies of the fuzz targets as property tests.

use proptest::{collection::vec, prelude::*};

#[path = "../fuzz/bodies.rs"]
mod bodies;
#[path = "../fuzz/silence.rs"]
mod silence;
#[path = "../fuzz/sniff.rs"]
mod sniff;

proptest! {
    #[test]
    fn any_head_is_answered_in_its_own_form(
        method in "(POST|GET|[A-Z]{1,9})",
        content_type in "(application/grpc(-web|-web-text)?[-+;a-z]{0,9}|[ -~]{0,20})",
        timeout in "([0-9]{1,9}[HMSmun]|[ -~]{0,12})",
    ) {
        bodies::heads(format!("{method}\n{content_type}\n{timeout}").as_bytes());
    }

    #[test]
    fn any_bytes_for_a_head_do_no_harm(data in vec(any::<u8>(), 0..60)) {
        bodies::heads(&data);
    }

    #[test]
    fn any_frames_arrive_in_order_or_are_refused(data in vec(any::<u8>(), 0..600)) {
        bodies::frames(&data);
    }

    #[test]
    fn the_table_agrees_with_a_map(data in vec(any::<u8>(), 0..2000)) {
        bodies::table(&data);
    }

    #[test]
    fn no_client_that_falls_silent_is_there_for_ever(data in vec(any::<u8>(), 1..80)) {
        silence::silence(&data);
    }

    #[test]
    fn whatever_a_connection_begins_with_is_read_once_and_in_order(
        data in vec(any::<u8>(), 0..80),
    ) {
        sniff::sniff(&data);
    }
}
