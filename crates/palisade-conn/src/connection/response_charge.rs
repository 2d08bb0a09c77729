//! What the server of a connection has charged to the budget for a response, or for the body of a
//! request.

use super::ConnHandle;
use http::Extensions;
use palisade_client_ip::Client;
use palisade_core::Charge;

/// Bytes of a response that are charged to the budget of the guard, until this is dropped. Returned
/// by [`ConnHandle::charge_response`].
#[derive(Debug)]
#[must_use = "the bytes are given back when this is dropped"]
pub struct ResponseCharge {
    conn: ConnHandle,
    bytes: u32,
}

impl ConnHandle {
    /// Charges the [budget](crate::ConnGuardBuilder::byte_budget) for `bytes` of a response that
    /// the server keeps because its client does not take them yet.
    ///
    /// Returns `None` if the budget has no room for them. Responses have half of it, because they
    /// can wait, where request bodies are refused. What a server keeps without a charge has to be
    /// limited in another way. A guard that does not enforce its limits, or has no budget, always
    /// has room.
    ///
    /// ```
    /// # use palisade_testkit::doc::*;
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use palisade_conn::{Budget, ConnGuard};
    ///
    /// let budget = Budget::new(100_000)?;
    /// let guard = ConnGuard::builder().byte_budget(budget.clone()).build()?;
    /// let (_client, socket) = pair().await?;
    /// let io = guard.admit(socket, None, None)?;
    /// let piece = io.conn().charge_response(40_000);
    /// assert!(piece.is_some() && io.conn().charge_response(10_001).is_none());
    /// assert_eq!(budget.held(), 40_000);
    /// drop(piece); // The client has taken it.
    /// assert_eq!(budget.held(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn charge_response(&self, bytes: u64) -> Option<ResponseCharge> {
        let bytes = match self.state().totals() {
            Some(totals) => totals.charge_response(self, bytes)?,
            None => 0,
        };
        let conn = self.clone();
        Some(ResponseCharge { conn, bytes })
    }
}

impl ConnHandle {
    /// Returns a charge for the body of the request with these extensions, if the guard has a byte
    /// budget. Behind a proxy it is that of the client.
    #[doc(hidden)]
    pub fn body_charge(&self, extensions: &Extensions) -> Option<Charge> {
        let totals = self.state().totals()?;
        let client = match Client::from_extensions(extensions) {
            Some(client) if self.is_proxy() => Some(client.key()),
            _ => totals.charged_client(self),
        };
        let charge = totals.memory.budget.as_ref()?.charge(client);
        Some(charge.on(self.info()))
    }
}

impl Drop for ResponseCharge {
    fn drop(&mut self) {
        if self.bytes > 0
            && let Some(totals) = self.conn.state().totals()
        {
            totals.give_back(&self.conn, self.bytes);
        }
    }
}
