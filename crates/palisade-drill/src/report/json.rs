//! Reports as JSON.

use super::{Report, SCHEMA};
use crate::text::printable;
use serde::Deserialize;
use std::{error::Error, fmt};

/// The reason why a text is no report.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportError {
    /// The report is of a later version of this crate.
    LaterSchema {
        /// The version of its form.
        schema: u32,
    },
    /// The text is cut off, or was never a report.
    Malformed {
        /// Where and why.
        reason: String,
    },
}

impl fmt::Display for ReportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LaterSchema { schema } => write!(
                f,
                "the report has schema {schema}, and this version reads {SCHEMA} at most: use a \
                 later palisade-drill"
            ),
            Self::Malformed { reason } => {
                write!(f, "the text is no whole report: {reason}")
            }
        }
    }
}

impl Error for ReportError {}

/// The part of a report that every schema has.
#[derive(Deserialize)]
struct Version {
    schema: u32,
}

impl Report {
    /// Returns the report as JSON.
    pub fn to_json(&self) -> String {
        // All keys are strings and all numbers finite, so that nothing can fail.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Reads a report from JSON.
    ///
    /// ```
    /// use palisade_drill::{Report, ReportError};
    /// let error = Report::from_json(r#"{"schema": 99}"#).unwrap_err();
    /// assert_eq!(error, ReportError::LaterSchema { schema: 99 });
    /// ```
    ///
    /// # Errors
    ///
    /// If the text is no whole report, or one of a later schema.
    pub fn from_json(text: &str) -> Result<Self, ReportError> {
        let malformed = |error: serde_json::Error| ReportError::Malformed {
            reason: printable(&error.to_string()),
        };
        let Version { schema } = serde_json::from_str(text).map_err(malformed)?;
        if schema > SCHEMA {
            return Err(ReportError::LaterSchema { schema });
        }
        serde_json::from_str(text).map_err(malformed)
    }
}
