//! What a request at rest costs that asks for the shares of memory and runtime.

use crate::run::Run;
use palisade::types::shed::{LoadShedding, Shares};
use palisade_benches::at_rest;
use std::hint::black_box;

fn shedding() -> LoadShedding {
    let (memory, load) = at_rest();
    LoadShedding::new(Some(memory), Some(load))
}

/// Returns a run that asks as request tracking and the layer do for each request.
pub(crate) fn asked() -> Run {
    let shedding = shedding();
    Box::new(move |requests| {
        for _ in 0..requests {
            black_box(black_box(&shedding).ask().is_some());
        }
    })
}

/// Returns the same run without asking.
pub(crate) fn not_asked() -> Run {
    let shedding = shedding();
    Box::new(move |requests| {
        for _ in 0..requests {
            black_box(&shedding);
            black_box(None::<Shares>.is_some());
        }
    })
}
