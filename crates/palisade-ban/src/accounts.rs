//! Strikes, bans and levels of clients: debts in one table of fixed size.

use palisade_core::{Client, ClientKey};
use palisade_guard::{Clock, Occupancy, Table};
use std::time::Duration;

/// The number of a client's account with the time until it is admitted again.
const BAN: u32 = 1;
/// The number of its account of strikes.
const STRIKES: u32 = 2;
/// The number of its account of levels: how often it was banned, and not long ago.
const LEVELS: u32 = 3;
/// Added to the number if the client may have written its address itself, which may be that of a
/// victim. So it shares no account with the address.
const CLAIMED: u32 = 8;

/// Every debt of the table is shorter.
const MAX_DEBT: u64 = Table::MAX_DEBT;

/// When clients are banned, and for how long. All times are in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The strikes that ban a client, if they come at once.
    pub(crate) strikes: u32,
    /// The time in which one strike is forgotten.
    pub(crate) strike: u64,
    pub(crate) first_ban: u64,
    pub(crate) longest_ban: u64,
    /// The time in which one level is forgotten.
    pub(crate) level: u64,
}

/// The accounts of all clients.
#[derive(Debug)]
pub(crate) struct Accounts {
    table: Table,
    clock: Clock,
    rules: Rules,
}

// === Rules ===

impl Rules {
    /// Returns the longest time at this level: it doubles with each level.
    fn ban_at(&self, level: u64) -> u64 {
        let doubled = u32::try_from(level).ok().and_then(|n| 1u64.checked_shl(n));
        let times = doubled.unwrap_or(u64::MAX);
        self.first_ban.saturating_mul(times).min(self.longest_ban)
    }

    /// Returns the levels of a debt. A level that is forgotten in part still counts.
    fn levels_of(&self, debt: u64) -> u64 {
        debt.div_ceil(self.level)
    }

    /// Returns the debt of a client that is banned at `level`. Levels are forgotten from the end of
    /// the ban on. There are no more than make the ban the longest one.
    fn debt_after(&self, level: u64) -> u64 {
        let ban = self.ban_at(level);
        let next = level + u64::from(ban < self.longest_ban);
        ban.saturating_add(next.saturating_mul(self.level))
            .min(MAX_DEBT)
    }
}

// === Accounts ===

impl Accounts {
    pub(crate) fn new(capacity: usize, rules: Rules) -> Self {
        Self {
            table: Table::new(capacity),
            clock: Clock::new(),
            rules,
        }
    }

    /// Returns whether the client with this hash may be banned, or what claims to be it. `false`
    /// for nearly all clients that are not. Reads no clock.
    #[inline]
    pub(crate) fn may_be_banned(&self, hash: u64, is_claim: bool) -> bool {
        let may_hold = |number| self.table.may_hold(ClientKey::account_hash(hash, number));
        may_hold(BAN) || is_claim && may_hold(BAN + CLAIMED)
    }

    /// Returns the time for which `client` is banned; zero if it is not.
    ///
    /// What claims to be a client is banned with it, and not the other way round.
    pub(crate) fn banned_for(&self, client: &Client) -> Duration {
        let own = self.debt_of(client.key().account(BAN));
        own.max(self.debt_of(account(client, BAN)))
    }

    /// Adds strikes. Returns for how long this bans the client, unless there are too few of them,
    /// or another thread has banned it in the meantime.
    pub(crate) fn strike(&self, client: &Client, strikes: u32) -> Option<Duration> {
        let now = self.clock.now();
        let strike = self.rules.strike;
        let most = u64::from(self.rules.strikes - 1).saturating_mul(strike);
        let added = u64::from(strikes).saturating_mul(strike);
        let key = account(client, STRIKES);
        let is_too_many = self.update(key, now, |debt| match debt.saturating_add(added) {
            debt if debt > most => (true, 0),
            debt => (false, debt),
        })?;
        if !is_too_many {
            return None;
        }
        let levels = account(client, LEVELS);
        let level = self.rules.levels_of(self.table.debt(levels, now, MAX_DEBT));
        let ban = self.rules.ban_at(level);
        let free = |debt| if debt == 0 { Ok(((), ban)) } else { Err(()) };
        let key = account(client, BAN);
        // Of strikes that come together, one bans the client, and one raises its level.
        self.table.update(key, now, MAX_DEBT, free)?.ok()?;
        self.update(levels, now, |_| ((), self.rules.debt_after(level)));
        Some(Duration::from_micros(ban))
    }

    /// Bans a client for this time, unless it is banned for longer. Returns for how long, if that
    /// is news: it was not banned, or for less than half of the time.
    pub(crate) fn ban(&self, client: &Client, time: Duration) -> Option<Duration> {
        let time = micros(time).min(MAX_DEBT);
        let key = account(client, BAN);
        let is_news = self.update(key, self.clock.now(), |debt| {
            (debt < time.div_ceil(2), debt.max(time))
        })?;
        is_news.then_some(Duration::from_micros(time))
    }

    /// Forgets what is held against a client.
    pub(crate) fn clear(&self, client: &Client) {
        let now = self.clock.now();
        let own = [BAN, STRIKES, LEVELS].map(|number| client.key().account(number));
        let claimed = [BAN, STRIKES, LEVELS].map(|number| client.key().account(number + CLAIMED));
        for key in own.into_iter().chain(claimed) {
            self.update(key, now, |_| ((), 0));
        }
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        self.table.occupancy(self.clock.now(), MAX_DEBT)
    }

    fn debt_of(&self, key: ClientKey) -> Duration {
        let debt = self.table.debt(key, self.clock.now(), MAX_DEBT);
        Duration::from_micros(debt)
    }

    /// Replaces a debt. `None` if too many threads change it at the same time.
    fn update<T>(&self, key: ClientKey, now: u64, new: impl Fn(u64) -> (T, u64)) -> Option<T> {
        let decide = |debt| Ok::<_, std::convert::Infallible>(new(debt));
        let Ok(value) = self.table.update(key, now, MAX_DEBT, decide)?;
        Some(value)
    }
}

/// Returns one of the accounts of `client`.
fn account(client: &Client, number: u32) -> ClientKey {
    let claimed = if client.is_claim() { CLAIMED } else { 0 };
    client.key().account(number + claimed)
}

/// Returns the whole microseconds of `time`, at most the longest debt.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(MAX_DEBT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_core::Prefix;

    const RULES: Rules = Rules {
        strikes: 2,
        strike: 30_000_000,
        first_ban: 10_000_000,
        longest_ban: 3_600_000_000,
        level: 600_000_000,
    };

    #[tokio::test(start_paused = true)]
    async fn strikes_that_come_after_the_ban_change_neither_the_ban_nor_the_level() {
        let accounts = Accounts::new(64, RULES);
        let client = Client::from_peer(Some([192, 0, 2, 1].into()), Prefix::default());
        let levels = || accounts.debt_of(account(&client, LEVELS));
        assert_eq!(accounts.strike(&client, 1), None);
        assert_eq!(accounts.strike(&client, 1), Some(Duration::from_secs(10)));
        let level = levels();
        assert_eq!(level, Duration::from_secs(10 + 600));
        // As of threads that have looked before the ban.
        for _ in 0..10 {
            assert_eq!(accounts.strike(&client, 5), None);
        }
        assert_eq!(accounts.banned_for(&client), Duration::from_secs(10));
        assert_eq!(levels(), level);
    }

    #[test]
    fn no_level_and_no_debt_is_too_large() {
        for level in [0, 1, 8, 9, 63, 64, u64::from(u32::MAX), u64::MAX] {
            assert!(RULES.ban_at(level) <= RULES.longest_ban);
            assert!(RULES.debt_after(level.min(9)) <= MAX_DEBT);
        }
        assert_eq!(RULES.levels_of(MAX_DEBT), MAX_DEBT.div_ceil(RULES.level));
        let debt = RULES.debt_after(9) - RULES.longest_ban;
        assert_eq!(RULES.levels_of(debt), 9);
        assert_eq!(RULES.ban_at(9), RULES.longest_ban);
    }
}
