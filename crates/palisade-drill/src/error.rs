//! The errors of a drill. Each says what to do.

use crate::text::printable;
use std::{error::Error, fmt, io, net::SocketAddr};

/// The reason why a drill gave no report.
#[non_exhaustive]
#[derive(Debug)]
pub enum DrillError {
    /// Options are wrong: all of them.
    Config(Vec<ConfigFault>),
    /// The target may not be attacked.
    Refused {
        /// The address, or the name that was asked for.
        target: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The target took its consent away during the drill, or its time is over. All connections were
    /// closed.
    ConsentEnded {
        /// The address.
        target: SocketAddr,
        /// Why, and what to do.
        reason: String,
    },
    /// The target does not serve the honest request, so that there is nothing to judge.
    NotServed {
        /// The address.
        target: SocketAddr,
        /// What happened instead, and what to do.
        reason: String,
    },
    /// The server of [`Drill::serving`](crate::Drill::serving) ended by itself or panicked before
    /// the first attack.
    ServerEnded,
    /// The server of [`Drill::child`](crate::Drill::child) did not start.
    ChildFailed {
        /// The program that was to be started.
        program: String,
        /// What happened instead, and what to do.
        reason: String,
    },
    /// A system call failed.
    Io(io::Error),
}

/// One wrong option.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFault {
    /// The method that sets the option.
    pub field: &'static str,
    /// The value that was set.
    pub value: String,
    /// The values that are allowed.
    pub allowed: String,
}

impl fmt::Display for DrillError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(faults) => {
                f.write_str("the drill cannot begin:")?;
                for ConfigFault {
                    field,
                    value,
                    allowed,
                } in faults
                {
                    let value = printable(value);
                    write!(f, "\n  {field} is {value}, allowed is {allowed}")?;
                }
                Ok(())
            }
            Self::Refused { target, reason } => {
                write!(f, "{} is not attacked: {reason}", printable(target))
            }
            Self::ConsentEnded { target, reason } => {
                write!(
                    f,
                    "{target} is no longer attacked, and there is no report: {reason}"
                )
            }
            Self::NotServed { target, reason } => {
                write!(f, "{target} does not serve the honest request: {reason}")
            }
            Self::ServerEnded => f.write_str(
                "the server ended before the first attack: `serving` needs a future that serves \
                 until it is dropped",
            ),
            Self::ChildFailed { program, reason } => {
                write!(f, "{} serves nothing: {reason}", printable(program))
            }
            Self::Io(error) => write!(f, "the drill cannot go on: {error}"),
        }
    }
}

impl Error for DrillError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for DrillError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_option_has_a_line() {
        let fault = |field, value: &str| ConfigFault {
            field,
            value: value.to_owned(),
            allowed: "1 to 4000".to_owned(),
        };
        let error = DrillError::Config(vec![fault("places", "0"), fault("get", "a\nb")]);
        let text = "the drill cannot begin:\n  places is 0, allowed is 1 to 4000\n  \
                    get is a\\nb, allowed is 1 to 4000";
        assert_eq!(error.to_string(), text);
    }
}
