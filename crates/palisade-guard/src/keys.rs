//! The client key of a request, extracted once, and what a policy keeps beside it.

use palisade_core::{KeyExtractor, KeyOutcome, RequestHead};
use std::{net::IpAddr, sync::Arc};

/// Caches the outcome of the key extractor for one request, so that policies with the same
/// extractor run it once.
///
/// Lives only while the request passes `admit` and `share`. The extractors cannot be replaced in
/// that time, so an address identifies one of them.
#[derive(Debug, Default)]
pub struct Keys {
    known: Option<(usize, KeyOutcome)>,
    kept: Option<(usize, [u64; 2])>,
}

impl Keys {
    /// Returns the outcome of `extractor` for the request with this head.
    #[inline]
    pub fn get(&mut self, extractor: &Arc<dyn KeyExtractor>, head: &RequestHead<'_>) -> KeyOutcome {
        let id = Arc::as_ptr(extractor).cast::<()>().addr();
        match self.known {
            Some((known, key)) if known == id => key,
            _ => {
                let key = extractor.extract(head);
                self.known = Some((id, key));
                key
            }
        }
    }

    /// Returns the outcome of `extractor`, and the address of the client if it reports one.
    #[inline]
    pub fn get_with_address(
        &mut self,
        extractor: &Arc<dyn KeyExtractor>,
        head: &RequestHead<'_>,
    ) -> (KeyOutcome, Option<IpAddr>) {
        let id = Arc::as_ptr(extractor).cast::<()>().addr();
        match self.known {
            Some((known, key)) if known == id => (key, extractor.address(head)),
            _ => {
                let (key, address) = extractor.extract_with_address(head);
                self.known = Some((id, key));
                (key, address)
            }
        }
    }

    /// Keeps two words from `admit` for `share` of the policy at this address, in place of those
    /// that another policy has kept.
    ///
    /// ```
    /// use palisade_guard::Keys;
    /// let mut keys = Keys::default();
    /// assert_eq!(keys.kept(0x1000), None);
    /// keys.keep(0x1000, [7, 8]);
    /// assert_eq!((keys.kept(0x1000), keys.kept(0x2000)), (Some([7, 8]), None));
    /// ```
    pub fn keep(&mut self, policy: usize, words: [u64; 2]) {
        self.kept = Some((policy, words));
    }

    /// Returns what the policy at this address has kept.
    pub fn kept(&self, policy: usize) -> Option<[u64; 2]> {
        let (keeper, words) = self.kept?;
        (keeper == policy).then_some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use palisade_core::ClientKey;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    fn counting_extractor(calls: &Arc<AtomicU32>, name: &'static str) -> Arc<dyn KeyExtractor> {
        let calls = calls.clone();
        Arc::new(move |_: &RequestHead<'_>| {
            calls.fetch_add(1, Relaxed);
            KeyOutcome::Key(ClientKey::of(name))
        })
    }

    #[test]
    fn an_extractor_runs_once_until_another_one_is_asked() {
        let calls = Arc::new(AtomicU32::new(0));
        let one = counting_extractor(&calls, "one");
        let other = counting_extractor(&calls, "other");
        let request = Request::new(());
        let (head, mut keys) = (RequestHead::from(&request), Keys::default());
        for _ in 0..3 {
            assert_eq!(keys.get(&one, &head), KeyOutcome::Key(ClientKey::of("one")));
        }
        assert_eq!(calls.load(Relaxed), 1);
        assert_eq!(
            keys.get(&other, &head),
            KeyOutcome::Key(ClientKey::of("other"))
        );
        assert_eq!(
            keys.get(&one.clone(), &head),
            KeyOutcome::Key(ClientKey::of("one"))
        );
        assert_eq!(calls.load(Relaxed), 3);
    }
}
