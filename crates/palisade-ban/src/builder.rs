//! The options of lists and bans, their defaults and their ranges.

use crate::{
    accounts::{Accounts, Rules, micros},
    ban::{Ban, Shared},
};
use palisade_core::{ConfigError, GaugeSource, Mode, Networks, Reason, Recorder};
use palisade_guard::Table;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};

/// Builds a [`Ban`]. Values are checked by [`build`](Self::build), which names every fault at once.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` returns the handle"]
pub struct BanBuilder {
    mode: Mode,
    recorder: Recorder,
    allow: Option<Networks>,
    deny: Option<Networks>,
    strikes: (u32, Duration),
    strikes_for: [u32; Reason::ALL.len()],
    ban_times: (Duration, Duration),
    forgive_after: Duration,
    capacity: usize,
    ignores_peers: bool,
}

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// The longest option of time. Eight of the longest bans and their levels are shorter than the
/// longest debt of a table.
const MAX_TIME: Duration = Duration::from_secs(24 * 3600);
const MAX_FORGIVE_AFTER: Duration = Duration::from_secs(12 * 3600);
const MAX_STRIKES: u32 = 1_000_000;

// === BanBuilder ===

impl BanBuilder {
    pub(crate) fn new() -> Self {
        Self {
            mode: Mode::default(),
            recorder: Recorder::default(),
            allow: None,
            deny: None,
            strikes: (10, Duration::from_secs(60)),
            strikes_for: [0; Reason::ALL.len()],
            ban_times: (10 * SECOND, HOUR),
            forgive_after: Duration::from_secs(600),
            capacity: 1 << 16,
            ignores_peers: false,
        }
    }

    /// Sets whether bans and lists are enforced, only reported, or do nothing. A layer and a
    /// connection guard have modes of their own, and the weaker one holds. Defaults to
    /// [`Mode::Enforce`].
    ///
    /// ```
    /// # use palisade_testkit::example::*;
    /// use palisade_ban::{Ban, BanLayer, Mode, NetworkSet};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// for (mode, expected) in [(Mode::Enforce, 403), (Mode::Shadow, 200), (Mode::Off, 200)] {
    ///     let ban = Ban::builder().deny(NetworkSet::parse("203.0.113.0/24")?).mode(mode).build()?;
    ///     assert_eq!(status(&BanLayer::new(ban), request_from([203, 0, 113, 7])).await, expected);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets the sink for [`Event::Banned`](palisade_core::Event::Banned) and for the gauges. What
    /// is refused is recorded by the layer and the connection guard that refuse it, to their own
    /// metrics. Defaults to none.
    ///
    /// ```
    /// use palisade_ban::{Ban, Client, Prefix};
    /// use palisade_core::{Event, Metrics};
    /// use std::{sync::{Arc, Mutex}, time::Duration};
    ///
    /// /// Tells a firewall.
    /// #[derive(Clone, Default)]
    /// struct Firewall(Arc<Mutex<Vec<String>>>);
    /// impl Metrics for Firewall {
    ///     fn record(&self, event: &Event<'_>) {
    ///         if let Event::Banned { network, .. } = event {
    ///             self.0.lock().unwrap().push(network.to_string());
    ///         }
    ///     }
    /// }
    ///
    /// let firewall = Firewall::default();
    /// let ban = Ban::builder().metrics(firewall.clone()).build()?;
    /// let client = Client::from_peer(Some("2001:db8::1".parse()?), Prefix::default());
    /// ban.ban(&client, Duration::from_secs(60));
    /// assert_eq!(*firewall.0.lock().unwrap(), ["2001:db8::/64"]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn metrics(mut self, metrics: impl Into<Recorder>) -> Self {
        self.recorder = metrics.into();
        self
    }

    /// Sets the networks that are admitted whatever else holds. Their clients get no strikes, and
    /// cannot be banned. Put your offices, your monitoring and your proxies here. Defaults to none.
    ///
    /// The handle may be [replaced](Networks::reload) at run time.
    pub fn allow(mut self, networks: impl Into<Networks>) -> Self {
        self.allow = Some(networks.into());
        self
    }

    /// Sets the networks that are refused: those of a country, of a provider, of a list of known
    /// abusers. Defaults to none.
    ///
    /// ```
    /// # use palisade_testkit::example::*;
    /// use palisade_ban::{Ban, BanLayer, NetworkSet, Networks};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let abusers = Networks::parse("203.0.113.0/24  # from a file")?;
    /// let offices = NetworkSet::parse("203.0.113.7")?;
    /// let layer = BanLayer::new(Ban::builder().deny(abusers.clone()).allow(offices).build()?);
    /// assert_eq!(status(&layer, request_from([203, 0, 113, 6])).await, 403);
    /// assert_eq!(status(&layer, request_from([203, 0, 113, 7])).await, 200); // Allowed.
    /// abusers.reload("198.51.100.0/24")?; // The file has changed.
    /// assert_eq!(status(&layer, request_from([203, 0, 113, 6])).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn deny(mut self, networks: impl Into<Networks>) -> Self {
        self.deny = Some(networks.into());
        self
    }

    /// Sets how many strikes ban a client: `strikes` that come at once, or more than `strikes` per
    /// `time` for long. A strike is forgotten after each `time / strikes`.
    ///
    /// Range: 1 to 1,000,000 strikes in 1 ms to 24 h, a microsecond for each at least. Defaults to
    /// 10 in 60 s.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), palisade_ban::ConfigError> {
    /// use palisade_ban::{Ban, Client, Prefix};
    /// use std::time::Duration;
    ///
    /// let ban = Ban::builder().strikes(3, Duration::from_secs(60)).build()?;
    /// let client = Client::from_peer(Some([203, 0, 113, 7].into()), Prefix::default());
    /// for _ in 0..100 {
    ///     assert!(!ban.strike(&client, 1)); // Three in a minute, for long.
    ///     tokio::time::advance(Duration::from_secs(20)).await;
    /// }
    /// assert!(ban.strike(&client, 3)); // Three at once.
    /// # Ok(())
    /// # }
    /// ```
    pub fn strikes(mut self, strikes: u32, time: Duration) -> Self {
        self.strikes = (strikes, time);
        self
    }

    /// Sets how many strikes each refusal for `reason` is, by any guard that records to this
    /// [`Ban`]. May be called for several reasons. Defaults to 0 for every reason.
    ///
    /// Choose reasons that no honest client gives by itself, such as `BadRequest`. A page that
    /// loads many assets exceeds a rate limit without malice: let it take many strikes to ban.
    ///
    /// Not for `Banned` and `Denied`, by which a ban would prolong itself.
    ///
    /// ```
    /// use palisade_ban::{Ban, BanLayer, Reason};
    /// # use palisade_testkit::example::*;
    /// # use palisade_core::{Event, Guard, Metrics, Mode, Phase, Rejection, ResponseFormat, Violation};
    /// # use palisade_core::{ConnInfo, Prefix};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), BoxError> {
    /// let ban = Ban::builder().strike_for(Reason::BadRequest, 5).build()?;
    /// // Each guard: `ConnGuard::builder().metrics((snapshot, ban.clone()))`.
    /// # let bad_request_from = |peer: [u8; 4]| {
    /// #     let conn = ConnInfo::new((peer, 4711).into(), None, Prefix::default());
    /// #     let (guard, reason) = (Guard::Connection, Reason::BadRequest);
    /// #     let violation = Violation::new(guard, reason, Phase::RequestHead, 0, 0);
    /// #     let format = ResponseFormat::Http { close: true };
    /// #     let rejection = Rejection::new(violation, StatusCode::BAD_REQUEST, format);
    /// #     ban.record(&Event::refused(&rejection, Mode::Enforce, Some(&conn)));
    /// # };
    /// let layer = BanLayer::new(ban.clone());
    /// bad_request_from([203, 0, 113, 7]);
    /// assert_eq!(status(&layer, request_from([203, 0, 113, 7])).await, 200);
    /// bad_request_from([203, 0, 113, 7]); // Ten strikes.
    /// assert_eq!(status(&layer, request_from([203, 0, 113, 7])).await, 403);
    /// # Ok(())
    /// # }
    /// ```
    pub fn strike_for(mut self, reason: Reason, strikes: u32) -> Self {
        self.strikes_for[reason as usize] = strikes;
        self
    }

    /// Sets how long strikes ban a client: `first` for the first time, twice as long each further
    /// time, and `longest` at most.
    ///
    /// Range: 1 s to 24 h, and `longest` at least `first`. Defaults to 10 s and 1 h.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), palisade_ban::ConfigError> {
    /// use palisade_ban::{Ban, Client, Prefix};
    /// use std::time::Duration;
    ///
    /// let ban = Ban::builder().ban_times(Duration::from_secs(60), Duration::from_secs(180)).build()?;
    /// let client = Client::from_peer(Some([203, 0, 113, 7].into()), Prefix::default());
    /// for seconds in [60, 120, 180, 180] {
    ///     ban.strike(&client, 10);
    ///     assert_eq!(ban.banned_for(&client), Some(Duration::from_secs(seconds)));
    ///     tokio::time::advance(Duration::from_secs(seconds)).await;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn ban_times(mut self, first: Duration, longest: Duration) -> Self {
        self.ban_times = (first, longest);
        self
    }

    /// Sets the time without a ban after which the next one is half as long again. Range: 1 s to
    /// 12 h. Defaults to 10 minutes.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), palisade_ban::ConfigError> {
    /// use palisade_ban::{Ban, Client, Prefix};
    /// use std::time::Duration;
    ///
    /// let ban = Ban::builder().forgive_after(Duration::from_secs(300)).build()?;
    /// let client = Client::from_peer(Some([203, 0, 113, 7].into()), Prefix::default());
    /// for (wait, seconds) in [(0, 10), (10, 20), (20, 40), (340, 40), (1240, 10)] {
    ///     tokio::time::advance(Duration::from_secs(wait)).await;
    ///     ban.strike(&client, 10);
    ///     assert_eq!(ban.banned_for(&client), Some(Duration::from_secs(seconds)));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn forgive_after(mut self, time: Duration) -> Self {
        self.forgive_after = time;
        self
    }

    /// Sets the number of accounts in the table, at 8 bytes each, allocated at once. A banned
    /// client has two: the ban, and how often it was banned. A client with strikes has one. If the
    /// table is full, the accounts that would be paid first are evicted, so clients with few
    /// strikes are forgotten first, and then those whose ban ends first.
    ///
    /// Range: 1 to 16,777,216, rounded up to a power of two. Defaults to 65,536, which takes
    /// 512 KiB.
    pub fn capacity(mut self, accounts: usize) -> Self {
        self.capacity = accounts;
        self
    }

    /// Declares that every peer is a proxy, so that none is ever struck or banned: only clients
    /// that were found behind it are. `Stack::behind_proxy` does this by itself. A connection guard
    /// with a `Trust` knows its proxies, so that direct peers can be banned beside them. Defaults
    /// to peers that are clients, unless they are known as trusted proxies.
    pub fn behind_proxy(mut self) -> Self {
        self.ignores_peers = true;
        self
    }

    /// Builds the handle.
    ///
    /// ```
    /// use palisade_ban::{Ban, Reason};
    /// use std::time::Duration;
    ///
    /// let wrong = Ban::builder().strikes(0, Duration::ZERO).strike_for(Reason::Banned, 1);
    /// let error = wrong.build().unwrap_err();
    /// let fields: Vec<_> = error.faults().iter().map(|fault| &*fault.field).collect();
    /// assert_eq!(fields, ["strikes", "strike_for"]);
    /// ```
    ///
    /// # Errors
    ///
    /// If a value is out of its range. The error names every such value.
    pub fn build(self) -> Result<Ban, ConfigError> {
        self.check()?;
        Ok(self.build_checked())
    }

    /// Builds the handle from options that are in their ranges, as the defaults are.
    pub(crate) fn build_checked(self) -> Ban {
        let (strikes, time) = self.strikes;
        let rules = Rules {
            strikes,
            strike: (micros(time) / u64::from(strikes.max(1))).max(1),
            first_ban: micros(self.ban_times.0),
            longest_ban: micros(self.ban_times.1),
            level: micros(self.forgive_after),
        };
        let shared = Arc::new(Shared {
            mode: self.mode,
            recorder: self.recorder,
            accounts: Accounts::new(self.capacity, rules),
            allow: self.allow,
            deny: self.deny,
            strikes_for: self.strikes_for,
            ignores_peers: AtomicBool::new(self.ignores_peers),
            bans: AtomicU64::new(0),
        });
        let gauges = Arc::downgrade(&shared);
        shared.recorder.register(gauges as Weak<dyn GaugeSource>);
        Ban { shared }
    }

    fn check(&self) -> Result<(), ConfigError> {
        let mut error = ConfigError::new("the ban cannot be built");
        let (strikes, time) = self.strikes;
        let is_allowed = (1..=MAX_STRIKES).contains(&strikes)
            && (MILLISECOND..=MAX_TIME).contains(&time)
            && time.as_micros() >= u128::from(strikes);
        let allowed = "1 to 1000000 in 1 ms to 24 h, a microsecond for each at least";
        error.check(is_allowed, "strikes", &self.strikes, allowed);
        for reason in [Reason::Banned, Reason::Denied] {
            let is_allowed = self.strikes_for[reason as usize] == 0;
            let allowed = "a reason of another guard: a ban would prolong itself";
            error.check(is_allowed, "strike_for", &reason, allowed);
        }
        let (first, longest) = self.ban_times;
        let is_allowed = SECOND <= first && first <= longest && longest <= MAX_TIME;
        let allowed = "1 s to 24 h, the first no longer than the longest";
        error.check(is_allowed, "ban_times", &self.ban_times, allowed);
        let time = self.forgive_after;
        let is_allowed = (SECOND..=MAX_FORGIVE_AFTER).contains(&time);
        error.check(is_allowed, "forgive_after", &time, "1 s to 12 h");
        let is_allowed = (1..=Table::MAX_CAPACITY).contains(&self.capacity);
        error.check(is_allowed, "capacity", &self.capacity, "1 to 16777216");
        error.into_result()
    }
}
