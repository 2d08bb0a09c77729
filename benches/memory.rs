//! The time of a sample of the memory, and of what is read for metrics, with the files of this
//! machine. At most 60 µs are planned.

use criterion::{Criterion, criterion_group, criterion_main};
use palisade::Memory;
use std::path::Path;

fn sample(c: &mut Criterion) {
    let mut sample = Memory::sampler(Path::new("/"));
    c.bench_function("memory/sample", |b| b.iter(&mut sample));
}

criterion_group!(benches, sample);
criterion_main!(benches);
