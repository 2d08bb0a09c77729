//! Configuration errors.

use std::{borrow::Cow, error::Error, fmt};

/// The error of a `build` method: every option that is wrong, not only the first.
///
/// It is printed with one line per fault, also by a `main` function that returns it.
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
    summary: &'static str,
    faults: Vec<ConfigFault>,
}

/// One wrong option.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFault {
    /// The method that sets the option.
    pub field: Cow<'static, str>,
    /// The value that was set.
    pub value: String,
    /// The values that are allowed, and in some cases the reason.
    pub allowed: Cow<'static, str>,
}

// === ConfigError ===

impl ConfigError {
    /// Creates an error without faults. `summary` is the first line of its text.
    pub fn new(summary: &'static str) -> Self {
        Self {
            summary,
            faults: Vec::new(),
        }
    }

    /// Adds a fault, unless `is_allowed`: `field` was set to `value`.
    ///
    /// ```
    /// use palisade_core::ConfigError;
    /// let mut error = ConfigError::new("the bucket cannot be built");
    /// error.check(5 > 0, "size", &5, "at least 1"); // No fault.
    /// error.check(9 < 5, "water", &9, "less than `size`");
    /// let text = "the bucket cannot be built:\n  water is 9, allowed is less than `size`";
    /// assert_eq!(error.to_string(), text);
    /// ```
    pub fn check(
        &mut self,
        is_allowed: bool,
        field: &'static str,
        value: &dyn fmt::Debug,
        allowed: &'static str,
    ) {
        if !is_allowed {
            self.push(field, format!("{value:?}"), allowed);
        }
    }

    /// Adds a fault: `field` was set to `value`.
    ///
    /// ```
    /// use palisade_core::ConfigError;
    /// let mut error = ConfigError::new("the bucket cannot be built");
    /// error.push("handle", "not set", "metal or wood");
    /// let text = "the bucket cannot be built:\n  handle is not set, allowed is metal or wood";
    /// assert_eq!(error.to_string(), text);
    /// ```
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

    /// Returns `Ok` if no fault was added.
    ///
    /// ```
    /// use palisade_core::ConfigError;
    /// fn check(size: u32) -> Result<(), ConfigError> {
    ///     let mut error = ConfigError::new("the bucket cannot be built");
    ///     error.check(size > 0, "size", &size, "at least 1");
    ///     error.into_result()
    /// }
    /// assert_eq!(check(1), Ok(()));
    /// assert!(check(0).is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// The error itself, if it has a fault.
    pub fn into_result(self) -> Result<(), Self> {
        if self.faults.is_empty() {
            Ok(())
        } else {
            Err(self)
        }
    }

    /// Returns all faults. A `build` method never returns an error without faults.
    ///
    /// ```
    /// use palisade_core::ConfigError;
    /// let mut error = ConfigError::new("the bucket cannot be built");
    /// error.check(false, "size", &0, "at least 1");
    /// error.check(false, "holes", &3, "none");
    /// let fields: Vec<_> = error.faults().iter().map(|fault| &*fault.field).collect();
    /// assert_eq!(fields, ["size", "holes"]);
    /// ```
    pub fn faults(&self) -> &[ConfigFault] {
        &self.faults
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.summary)?;
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

/// The same text as `Display`, because a `main` function that returns the error prints `Debug`.
impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error for ConfigError {}
