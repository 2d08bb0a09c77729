//! Measures the figures and prints them as one table.
#![allow(clippy::print_stdout)]

mod callgrind;
mod scenarios;

fn main() {
    if std::env::args().any(|argument| argument == callgrind::ARGUMENT) {
        return callgrind::be_counted();
    }
    let costs = callgrind::count().unwrap().unwrap();
    for (name, cost) in &costs {
        println!(
            "{name:32} {:9.2} ir {:6.2} allocs {:6.2} clock {:6.2} timers",
            cost.instructions, cost.allocations, cost.clock_reads, cost.timers
        );
    }
}
