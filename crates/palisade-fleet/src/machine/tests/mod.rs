//! The machine in virtual time.

mod fleet;
mod rules;
mod simulation;
