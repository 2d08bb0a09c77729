//! The policy of the layer.

use crate::ban::Ban;
use http::{Request, StatusCode};
use http_body::Body;
use palisade_core::{Client, ConnInfo, Event, Mode, Phase, Rejection, ResponseFormat};
use palisade_guard::{DropUnread, Facts, Keys, NeverQueued, Policy, Refusal, Settings};

/// The policy of [`BanLayer`](crate::BanLayer).
#[derive(Clone, Debug)]
pub struct BanPolicy {
    pub(crate) settings: Settings,
    /// `None` in a stack without one.
    pub(crate) ban: Option<Ban>,
}

// === BanPolicy ===

impl BanPolicy {
    /// Refuses a request of a client that `ban` keeps out.
    // Not by the facts: their address would keep them out of the registers of each request.
    #[cold]
    #[inline(never)]
    fn refuse<B: Body>(
        &self,
        ban: &Ban,
        request: &Request<B>,
        format: ResponseFormat,
    ) -> Result<(), Refusal> {
        let mode = self.settings.mode.weaker(ban.shared.mode);
        let client = ban.client_of(request.extensions());
        let violation = client.and_then(|client| ban.violation(&client, Phase::RequestHead));
        let Some(violation) = violation.filter(|_| mode != Mode::Off) else {
            return Ok(());
        };
        let rejection = Rejection::new(violation, StatusCode::FORBIDDEN, format);
        let conn = ConnInfo::from_extensions(request.extensions()).map(AsRef::as_ref);
        let client = Client::beside(conn, request.extensions());
        let event = || Event::refused(&rejection, mode, conn).of_client(client);
        self.settings.recorder.record(event);
        if mode == Mode::Enforce {
            return Err(Refusal::new(rejection, self.settings.on_reject.clone()));
        }
        Ok(())
    }
}

impl Policy for BanPolicy {
    type Held = ();
    type Shared = ();
    type Upload = ();
    type QueuedService = NeverQueued;
    /// Nothing more is read of a client that is kept out.
    type Unread = DropUnread;

    #[inline(always)]
    fn has_recorder(&self) -> bool {
        self.settings.recorder.is_enabled()
    }

    #[inline(always)]
    fn admit<B: Body>(
        &self,
        request: &Request<B>,
        facts: &Facts,
        _: &mut Keys,
    ) -> Result<(), Refusal> {
        match &self.ban {
            Some(ban) if ban.may_keep_out(request.extensions()) => {
                self.refuse(ban, request, facts.form)
            }
            _ => Ok(()),
        }
    }

    #[inline(always)]
    fn share<B: Body>(&self, (): &mut (), _: &mut Request<B>, _: &Facts, _: &mut Keys) {}

    #[inline(always)]
    fn upload(&self, (): &mut (), (): &(), _: &Facts) {}
}
