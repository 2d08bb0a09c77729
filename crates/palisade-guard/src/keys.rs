//! The client key of a request, extracted once, and what a policy keeps beside it.

use palisade_core::{KeyExtractor, KeyOutcome, RequestHead};
use std::{any::Any, sync::Arc};

/// Caches the outcome of the key extractor for one request, so that policies with the same
/// extractor run it once.
///
/// Lives only while the request passes `admit` and `share`. The extractors cannot be replaced in
/// that time, so an address identifies one of them.
#[derive(Debug, Default)]
pub struct Keys {
    known: Option<(usize, KeyOutcome)>,
    kept: Option<Box<dyn Any + Send + Sync>>,
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

    /// Keeps a value from `admit` for `share`, in place of one that another policy has kept.
    ///
    /// ```
    /// use palisade_guard::Keys;
    /// let mut keys = Keys::default();
    /// keys.keep(Box::new(7u32));
    /// assert_eq!(keys.take_kept::<u64>(), None);
    /// assert_eq!(keys.take_kept::<u32>().as_deref(), Some(&7));
    /// assert_eq!(keys.take_kept::<u32>(), None);
    /// ```
    pub fn keep<T: Any + Send + Sync>(&mut self, value: Box<T>) {
        self.kept = Some(value);
    }

    /// Returns the value that has been kept, if it is one of this type.
    pub fn take_kept<T: Any>(&mut self) -> Option<Box<T>> {
        if self.kept.as_ref()?.is::<T>() {
            self.kept.take()?.downcast().ok()
        } else {
            None
        }
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
