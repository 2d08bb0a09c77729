//! What is kept of a charge until its response.

/// What of a charge cannot be found out again from the request. Two words, which
/// [`Keys`](palisade_guard::Keys) can keep.
#[derive(Clone, Copy)]
pub(crate) struct Settled {
    pub(crate) cells: u32,
    pub(crate) accounts: u16,
    /// The number of the networks of which it has the quota, from 1 on, or 0.
    pub(crate) network: u16,
    pub(crate) is_deferred: bool,
}

impl Settled {
    pub(crate) fn new(network: Option<usize>, cells: u32, accounts: usize) -> Self {
        let network = network.and_then(|index| u16::try_from(index + 1).ok());
        Self {
            cells,
            accounts: u16::try_from(accounts).unwrap_or(u16::MAX),
            network: network.unwrap_or_default(),
            is_deferred: false,
        }
    }

    pub(crate) fn deferred(self) -> Self {
        Self {
            is_deferred: true,
            ..self
        }
    }

    pub(crate) fn to_words(self) -> [u64; 2] {
        let Self {
            cells,
            accounts,
            network,
            is_deferred,
        } = self;
        let word = u64::from(cells) | u64::from(accounts) << 32 | u64::from(network) << 48;
        [word, is_deferred.into()]
    }

    pub(crate) fn from_words([word, is_deferred]: [u64; 2]) -> Self {
        Self {
            cells: word as u32,
            accounts: (word >> 32) as u16,
            network: (word >> 48) as u16,
            is_deferred: is_deferred != 0,
        }
    }
}
