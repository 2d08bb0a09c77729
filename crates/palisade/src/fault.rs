//! What is wrong with a stack.

use std::fmt;

/// What is wrong with a [`Stack`](crate::Stack): everything, not just the first thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackError {
    faults: Vec<Fault>,
}

/// One thing that is wrong with a [`Stack`](crate::Stack).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// The method that set it.
    pub field: String,
    /// What it was set to.
    pub value: String,
    /// What it may be.
    pub allowed: String,
    /// Why that is so.
    pub why: &'static str,
}

// === StackError ===

impl StackError {
    pub(crate) fn new(faults: Vec<Fault>) -> Self {
        Self { faults }
    }

    /// All of them, in the order of the guards.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the guards cannot be built:")?;
        for Fault { field, value, allowed, why } in &self.faults {
            write!(f, "\n  {field} is {value}, allowed is {allowed}: {why}")?;
        }
        Ok(())
    }
}

impl std::error::Error for StackError {}

// === Fault ===

#[cfg(any(
    feature = "concurrency-limit",
    feature = "rate-limit",
    feature = "slow-body",
    feature = "timeout"
))]
impl Fault {
    pub(crate) fn new(
        field: impl Into<String>,
        value: impl Into<String>,
        allowed: impl Into<String>,
        why: &'static str,
    ) -> Self {
        Self { field: field.into(), value: value.into(), allowed: allowed.into(), why }
    }
}
