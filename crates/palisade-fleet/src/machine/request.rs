//! Requests, as the machine sees them.

/// All times are in microseconds since one epoch.
pub(crate) type Micros = u64;

/// One account of a request, under one quota.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    /// The account and the quota, in this process. Never 0.
    pub(crate) tag: u64,
    pub(crate) rule: u16,
    /// The place of the account among those of the request.
    pub(crate) account: u8,
}

/// What is decided about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Admit,
    /// The account at this place has nothing left for so long.
    Deny {
        wait: Micros,
        account: u8,
    },
    /// The node itself has refused it.
    Local,
    /// The store must be asked.
    Ask,
    /// The store cannot be asked.
    Alone,
}

/// What comes of asking the store for a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Decided(Outcome),
    /// The request waits under this number.
    Waits(u32),
}
