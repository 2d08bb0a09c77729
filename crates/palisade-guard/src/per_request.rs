//! Settings of single requests.

use http::Request;
use palisade_core::RequestHead;
use std::{fmt, sync::Arc};

/// Chooses a setting for a request by its head, in place of the layer's own. Defaults to none.
pub struct PerRequest<T>(Option<Arc<Choose<T>>>);

type Choose<T> = dyn Fn(&RequestHead<'_>) -> Option<T> + Send + Sync;

impl<T> PerRequest<T> {
    /// Chooses with this function.
    pub fn new(choose: impl Fn(&RequestHead<'_>) -> Option<T> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(choose)))
    }

    /// Returns whether there is a function that chooses.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the setting of `request`; `None` if the layer's own applies.
    ///
    /// ```
    /// use http::Request;
    /// use palisade_guard::PerRequest;
    /// let limit = PerRequest::new(|head| (head.uri.path() == "/backup").then_some(1 << 30));
    /// assert_eq!(limit.choose(&Request::get("/backup").body(())?), Some(1 << 30));
    /// assert_eq!(limit.choose(&Request::get("/").body(())?), None);
    /// assert_eq!(PerRequest::<u64>::default().choose(&Request::new(())), None);
    /// # Ok::<(), http::Error>(())
    /// ```
    #[inline]
    pub fn choose<B>(&self, request: &Request<B>) -> Option<T> {
        let choose = self.0.as_ref()?;
        choose(&request.into())
    }
}

impl<T> Clone for PerRequest<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for PerRequest<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> fmt::Debug for PerRequest<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() {
            "PerRequest(..)"
        } else {
            "PerRequest(none)"
        })
    }
}
