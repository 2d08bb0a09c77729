//! The fuzz targets of this crate as property tests.
#![cfg(feature = "junit")]

#[path = "../../../fuzz/drill.rs"]
mod drill;

/// The generator of Marsaglia, xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let count = self.next() % most;
        (0..count).map(|_| (self.next() >> 24) as u8).collect()
    }
}

#[test]
fn whatever_is_read_as_a_report_is_written_in_every_format() {
    let mut random = Random(1);
    for _ in 0..300 {
        drill::report(&random.bytes(24));
    }
}

#[test]
fn every_machine_is_bounded_whatever_the_server_sends() {
    let attacks = palisade_drill::attacks::all().len() as u8;
    let mut random = Random(2);
    for round in 0..8 {
        for attack in 0..attacks {
            let mut data = vec![attack, random.next() as u8, round];
            data.extend(random.bytes(300));
            drill::machines(&data);
        }
    }
}
