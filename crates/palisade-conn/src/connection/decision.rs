//! Why and how a connection is closed.

use palisade_core::{Guard, Phase, Reason, Violation};

/// The bit of a code that says [`CloseMode::Reset`].
const RESET: u8 = 0x80;
/// The code of a connection whose socket has been dropped: too late for a decision. No reason has
/// this number.
pub(super) const CLOSED: u8 = 0x7f;

/// How a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseMode {
    /// In good order: the reader sees the end of the stream, the client a FIN.
    Graceful,
    /// At once: both sides see an error, the client an RST, and the kernel keeps nothing.
    Reset,
}

/// What was decided about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CloseDecision {
    pub(crate) reason: Reason,
    pub(crate) mode: CloseMode,
}

/// A close that is to be decided, and the rule that the connection broke. The numbers are in the
/// unit of the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CloseRequest {
    pub(crate) reason: Reason,
    pub(crate) mode: CloseMode,
    pub(crate) phase: Phase,
    pub(crate) limit: u64,
    pub(crate) observed: u64,
}

impl CloseRequest {
    /// A close for a reason without numbers.
    pub(crate) fn without_numbers(reason: Reason, mode: CloseMode, phase: Phase) -> Self {
        let (limit, observed) = (0, 0);
        Self {
            reason,
            mode,
            phase,
            limit,
            observed,
        }
    }

    /// Returns the decision that it asks for.
    pub(crate) fn decision(&self) -> CloseDecision {
        CloseDecision {
            reason: self.reason,
            mode: self.mode,
        }
    }

    /// Returns the rule that the connection broke.
    pub(crate) fn violation(&self) -> Violation {
        let Self {
            reason,
            phase,
            limit,
            observed,
            ..
        } = *self;
        Violation::new(Guard::Connection, reason, phase, limit, observed)
    }
}

impl CloseDecision {
    pub(crate) fn reset(reason: Reason) -> Self {
        let mode = CloseMode::Reset;
        Self { reason, mode }
    }

    pub(crate) fn graceful(reason: Reason) -> Self {
        let mode = CloseMode::Graceful;
        Self { reason, mode }
    }
}

/// Returns the code of a decision. Codes begin at 1: 0 means that nothing is decided.
pub(super) fn encode(decision: CloseDecision) -> u8 {
    const { assert!(Reason::ALL.len() < CLOSED as usize) };
    let code = decision.reason as u8 + 1;
    match decision.mode {
        CloseMode::Graceful => code,
        CloseMode::Reset => code | RESET,
    }
}

/// Returns the decision with this code, if it is one.
pub(super) fn decode(code: u8) -> Option<CloseDecision> {
    let reason = *Reason::ALL.get(usize::from(code & !RESET).checked_sub(1)?)?;
    let mode = if code & RESET == 0 {
        CloseMode::Graceful
    } else {
        CloseMode::Reset
    };
    Some(CloseDecision { reason, mode })
}
