//! A set of networks that is replaced while it is in use.

use crate::{ConfigError, network::set::NetworkSet};
use arc_swap::{ArcSwap, Guard};
use std::{fmt, net::IpAddr, ops::Deref, sync::Arc, time::Duration};
use tokio::time::Instant;

/// A handle on the present [`NetworkSet`] of one purpose. All clones share the set.
///
/// The set is replaced whole or not at all. A lookup sees the set before or the set after, it takes
/// no lock, and neither a lookup nor a replacement waits for the other. palisade reads no file and
/// handles no signal: the application decides when a list is read again.
///
/// ```
/// use palisade_core::Networks;
/// let proxies = Networks::parse("10.0.0.0/8")?;
/// let used_by_a_guard = proxies.clone();
///
/// // Later, in a task that watches the file:
/// proxies.reload("192.0.2.0/24\n2001:db8::/32")?;
/// assert!(used_by_a_guard.contains("192.0.2.1".parse()?));
/// assert!(!used_by_a_guard.contains("10.0.0.1".parse()?));
///
/// // A file with a mistake changes nothing.
/// assert!(proxies.reload("10.0.0.0/8\n10.0.0/8").is_err());
/// assert_eq!(used_by_a_guard.len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Networks(Arc<ArcSwap<Dated>>);

/// The set of a [`Networks`] at one moment, for several lookups that must agree. To be dropped
/// soon, not kept.
pub struct PresentNetworks(Guard<Arc<Dated>>);

struct Dated {
    set: NetworkSet,
    since: Instant,
}

// === Networks ===

impl Networks {
    /// Creates a handle on `set`.
    pub fn new(set: impl Into<NetworkSet>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Dated::now(set.into()))))
    }

    /// Creates a handle on the set that [`NetworkSet::parse`] returns.
    ///
    /// # Errors
    ///
    /// Every bad line, as from [`NetworkSet::parse`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        NetworkSet::parse(text).map(Self::new)
    }

    /// Replaces the set, also that of all clones.
    pub fn replace(&self, set: impl Into<NetworkSet>) {
        self.0.store(Arc::new(Dated::now(set.into())));
    }

    /// Replaces the set by the one that [`NetworkSet::parse`] returns.
    ///
    /// A list of 100,000 lines takes tens of milliseconds to parse: call this where a thread may
    /// block, as in tokio's `spawn_blocking`.
    ///
    /// # Errors
    ///
    /// Every bad line, as from [`NetworkSet::parse`]. The set is then unchanged, and so is
    /// [`Self::age`].
    pub fn reload(&self, text: &str) -> Result<(), ConfigError> {
        NetworkSet::parse(text).map(|set| self.replace(set))
    }

    /// Returns whether `address` is in the present set.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.load().set.contains(address)
    }

    /// Returns the present set.
    ///
    /// ```
    /// use palisade_core::Networks;
    /// let networks = Networks::parse("10.0.0.0/8")?;
    /// let before = networks.present();
    /// networks.reload("192.0.2.0/24")?;
    /// assert!(before.contains("10.0.0.1".parse()?)); // Not changed by the replacement.
    /// assert!(!networks.contains("10.0.0.1".parse()?));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn present(&self) -> PresentNetworks {
        PresentNetworks(self.0.load())
    }

    /// Returns the number of ranges in the present set: see [`NetworkSet::len`].
    pub fn len(&self) -> usize {
        self.present().len()
    }

    /// Returns whether the present set contains no address.
    pub fn is_empty(&self) -> bool {
        self.present().is_empty()
    }

    /// Returns the time since the present set was put in place.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), palisade_core::ConfigError> {
    /// use palisade_core::Networks;
    /// use std::time::Duration;
    /// let networks = Networks::parse("10.0.0.0/8")?;
    /// tokio::time::advance(Duration::from_secs(3600)).await;
    /// assert!(networks.reload("ten").is_err()); // The set grows old.
    /// assert_eq!(networks.age(), Duration::from_secs(3600));
    /// networks.reload("10.0.0.0/8")?;
    /// assert_eq!(networks.age(), Duration::ZERO);
    /// # Ok(())
    /// # }
    /// ```
    pub fn age(&self) -> Duration {
        self.0.load().since.elapsed()
    }
}

/// The empty set.
impl Default for Networks {
    fn default() -> Self {
        Self::new(NetworkSet::default())
    }
}

impl<S: Into<NetworkSet>> From<S> for Networks {
    fn from(set: S) -> Self {
        Self::new(set)
    }
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Networks").field(&*self.present()).finish()
    }
}

// === PresentNetworks ===

impl Deref for PresentNetworks {
    type Target = NetworkSet;

    #[inline]
    fn deref(&self) -> &NetworkSet {
        &self.0.set
    }
}

impl fmt::Debug for PresentNetworks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

// === Dated ===

impl Dated {
    fn now(set: NetworkSet) -> Self {
        let since = Instant::now();
        Self { set, since }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        net::Ipv4Addr,
        sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
        thread,
    };

    #[test]
    fn a_file_with_a_bad_line_changes_nothing() {
        let networks = Networks::parse("10.0.0.0/8").unwrap();
        let error = networks.reload("192.0.2.0/24\n192.0.2").unwrap_err();
        assert_eq!(error.faults()[0].field, "line 2");
        assert_eq!(
            *networks.present(),
            NetworkSet::parse("10.0.0.0/8").unwrap()
        );
        networks.reload("").unwrap();
        assert!(networks.is_empty() && !networks.contains([10, 0, 0, 1].into()));
    }

    #[test]
    fn lookups_during_a_replacement_see_the_set_before_or_the_set_after() {
        const RANGES: u32 = 2_000;
        const REPLACEMENTS: u64 = 500;
        // Every other address of two blocks: a set has all ranges of one block, and no other.
        let block = |first: u8| -> NetworkSet {
            let base = u32::from(first) << 24;
            let address = |n| IpAddr::from(Ipv4Addr::from_bits(base + 2 * n));
            (0..RANGES).map(|n| address(n).into()).collect()
        };
        let networks = Networks::new(block(10));
        let is_done = AtomicBool::new(false);
        let (lookups, halves) = (AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_done.load(SeqCst) {
                        let present = networks.present();
                        let of_block = |first: u8| {
                            let last = Ipv4Addr::new(first, 0, 15, 158);
                            let ends = [[first, 0, 0, 0].into(), IpAddr::from(last)];
                            ends.map(|address| present.contains(address))
                        };
                        let seen = (of_block(10), of_block(11), present.len());
                        let is_whole = seen == ([true; 2], [false; 2], RANGES as usize)
                            || seen == ([false; 2], [true; 2], RANGES as usize);
                        halves.fetch_add(u64::from(!is_whole), SeqCst);
                        lookups.fetch_add(1, SeqCst);
                    }
                });
            }
            for n in 1..=REPLACEMENTS {
                networks.replace(block(if n % 2 == 0 { 10 } else { 11 }));
            }
            // A busy machine may not have run the readers yet.
            while lookups.load(SeqCst) < 1_000 {
                networks.replace(block(10));
                thread::yield_now();
            }
            is_done.store(true, SeqCst);
        });
        assert_eq!(halves.load(SeqCst), 0);
    }
}
