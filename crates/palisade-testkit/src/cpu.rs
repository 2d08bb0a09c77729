//! Handlers that need processor time.

use std::{hint::black_box, time::Duration};
use tokio::time::Instant;

/// Burns processor time.
pub fn burn(rounds: u64) {
    let mut state = 1_u64;
    for _ in 0..rounds {
        state = black_box(
            state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1),
        );
    }
    black_box(state);
}

/// Returns the rounds of [`burn`] that take `time`, at best.
pub fn rounds_in(time: Duration) -> u64 {
    const ROUNDS: u64 = 1_000_000;
    let of_one = |_| {
        let start = Instant::now();
        burn(ROUNDS);
        start.elapsed()
    };
    let best = (0..20).map(of_one).min().expect("there are some");
    (ROUNDS as f64 * time.as_secs_f64() / best.as_secs_f64()) as u64
}
