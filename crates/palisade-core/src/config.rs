//! What is wrong with what somebody set.

use std::{borrow::Cow, error::Error, fmt};

/// What cannot be built, and everything that is wrong with it, not just the first thing.
///
/// Printed, also by a `main` that returns it, it has a line for each.
///
/// ```
/// use palisade_core::ConfigError;
///
/// let mut error = ConfigError::new("the bucket cannot be built");
/// error.check(false, "size", &0, "at least 1");
/// let text = "the bucket cannot be built:\n  size is 0, allowed is at least 1";
/// assert_eq!(error.into_result().unwrap_err().to_string(), text);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ConfigError {
    what: &'static str,
    faults: Vec<ConfigFault>,
}

/// One thing that is wrong.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFault {
    /// The method that set it.
    pub field: Cow<'static, str>,
    /// What it was set to.
    pub value: String,
    /// What it may be, and perhaps why.
    pub allowed: Cow<'static, str>,
}

// === ConfigError ===

impl ConfigError {
    /// Nothing is wrong so far with what would not be built: `what` says so.
    pub fn new(what: &'static str) -> Self {
        Self {
            what,
            faults: Vec::new(),
        }
    }

    /// `field` cannot be `value`, unless that is `fine`.
    pub fn check(
        &mut self,
        fine: bool,
        field: &'static str,
        value: &dyn fmt::Debug,
        allowed: &'static str,
    ) {
        if !fine {
            self.push(field, format!("{value:?}"), allowed);
        }
    }

    /// `field` cannot be `value`.
    pub fn push(
        &mut self,
        field: impl Into<Cow<'static, str>>,
        value: impl Into<String>,
        allowed: impl Into<Cow<'static, str>>,
    ) {
        let (field, value, allowed) = (field.into(), value.into(), allowed.into());
        self.faults.push(ConfigFault {
            field,
            value,
            allowed,
        });
    }

    /// # Errors
    ///
    /// Itself, if anything is wrong.
    pub fn into_result(self) -> Result<(), Self> {
        if self.faults.is_empty() {
            Ok(())
        } else {
            Err(self)
        }
    }

    /// Everything that is wrong; never empty in what a `build` returns.
    pub fn faults(&self) -> &[ConfigFault] {
        &self.faults
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.what)?;
        for ConfigFault {
            field,
            value,
            allowed,
        } in &self.faults
        {
            write!(f, "\n  {field} is {value}, allowed is {allowed}")?;
        }
        Ok(())
    }
}

/// As it is displayed: that is what a `main` that returns it shows.
impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for ConfigError {}
