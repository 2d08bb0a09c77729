//! The setting of the outermost guard, which keeps banned clients out.

use super::{Preset, Stack};
use palisade_ban::{Ban, BanLayer};

impl Stack {
    /// Refuses the requests of clients that `ban` keeps out, with 403, before any other guard of
    /// the stack sees them. Give a clone to the connection guard's `gate` as well, so that such a
    /// client gets no connection either. What it bans, it records to its own
    /// [metrics](palisade_ban::BanBuilder::metrics). With [`behind_proxy`](Self::behind_proxy), no
    /// peer is ever banned, by any clone of `ban`: a stack for direct clients needs a ban of its
    /// own. `None` removes it. Defaults to none.
    ///
    /// ```
    /// use palisade::{Ban, Stack};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let ban = Ban::builder().build()?;
    /// let stack = Stack::edge().ban(ban.clone()).build()?;
    /// let get = || request_from([203, 0, 113, 7]);
    /// assert_eq!(status(&stack, get()).await, 200);
    /// let client = ban.client_of(get().extensions()).ok_or("no client")?;
    /// ban.ban(&client, 60 * SECOND); // From anywhere in the application.
    /// assert_eq!(status(&stack, get()).await, 403);
    /// tokio::time::advance(60 * SECOND).await;
    /// assert_eq!(status(&stack, get()).await, 200);
    /// # Ok(())
    /// # }
    /// ```
    pub fn ban(mut self, ban: impl Into<Option<Ban>>) -> Self {
        self.ban = ban.into();
        self
    }

    /// Changes any option of the ban's layer, after all settings of the stack are applied. Defaults
    /// to no change.
    ///
    /// ```
    /// use palisade::{Ban, Stack, ban::Networks};
    /// # use palisade_testkit::example::*;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// let stack = Stack::edge()
    ///     .ban(Ban::denying(Networks::parse("203.0.113.0/24")?))
    ///     // Does not admit that there is anything here.
    ///     .tune_ban(|layer| layer.on_reject(|_| {
    ///         let mut response = Response::default();
    ///         *response.status_mut() = StatusCode::NOT_FOUND;
    ///         response
    ///     }))
    ///     .build()?;
    /// assert_eq!(status(&stack, request_from([203, 0, 113, 7])).await, 404);
    /// # Ok(())
    /// # }
    /// ```
    pub fn tune_ban(mut self, tune: impl FnOnce(BanLayer) -> BanLayer + Send + 'static) -> Self {
        self.tunes.ban = Some(Box::new(tune));
        self
    }

    pub(super) fn ban_layer(&self) -> BanLayer {
        if let (Some(ban), Preset::BehindProxy) = (&self.ban, self.preset) {
            ban.ignore_peers();
        }
        BanLayer::of(self.ban.clone())
    }
}
