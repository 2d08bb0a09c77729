//! The client of a request, asked for once.

use palisade_core::{KeyExtractor, KeyOutcome, RequestHead};
use std::sync::Arc;

/// What the key extractor of one request said. Policies that share an extractor ask it once.
///
/// Lives while the request is admitted and shared, in which no policy changes.
#[derive(Debug, Default)]
pub struct Keys(Option<(usize, KeyOutcome)>);

impl Keys {
    /// The key of the request with this head, by `extractor`.
    #[inline]
    pub fn get(&mut self, extractor: &Arc<dyn KeyExtractor>, head: &RequestHead<'_>) -> KeyOutcome {
        let id = Arc::as_ptr(extractor).cast::<()>().addr();
        match self.0 {
            Some((known, key)) if known == id => key,
            _ => {
                let key = extractor.extract(head);
                self.0 = Some((id, key));
                key
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use palisade_core::ClientKey;
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    fn counts(calls: &Arc<AtomicU32>, name: &'static str) -> Arc<dyn KeyExtractor> {
        let calls = calls.clone();
        Arc::new(move |_: &RequestHead<'_>| {
            calls.fetch_add(1, Relaxed);
            KeyOutcome::Key(ClientKey::of(name))
        })
    }

    #[test]
    fn an_extractor_is_asked_once_and_another_one_gives_its_own_key() {
        let calls = Arc::new(AtomicU32::new(0));
        let (one, other) = (counts(&calls, "one"), counts(&calls, "other"));
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
