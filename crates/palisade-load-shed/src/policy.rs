//! The policy of the layer.

use crate::gauges::Gauges;
use http::{Request, StatusCode};
use http_body::Body;
use palisade_core::{
    Client, ConnInfo, GaugeSource, Guard, Memory, Phase, Rejection, ResponseFormat, RuntimeLoad,
    Violation,
    shed::{LoadShedding, Shares, Verdict},
};
use palisade_guard::{
    Facts, KeepUnread, Keys, NeverQueued, Policy, Refusal, RequestView, Settings,
};
use std::sync::{Arc, Weak};

/// The policy of [`LoadShedLayer`](crate::LoadShedLayer).
#[derive(Clone, Debug)]
pub struct LoadShedPolicy {
    pub(crate) settings: Settings,
    pub(crate) shedding: LoadShedding,
    /// Registered with the metrics.
    pub(crate) gauges: Arc<Gauges>,
}

// === LoadShedPolicy ===

impl LoadShedPolicy {
    pub(crate) fn new(memory: Option<Memory>, load: Option<RuntimeLoad>) -> Self {
        let shedding = LoadShedding::new(memory, load);
        Self {
            settings: Settings::default(),
            gauges: Arc::new(Gauges(shedding.clone())),
            shedding,
        }
    }

    pub(crate) fn set_memory(&mut self, memory: Option<Memory>) {
        self.shedding.set_memory(memory);
        self.renew_gauges();
    }

    pub(crate) fn set_runtime(&mut self, load: Option<RuntimeLoad>) {
        self.shedding.set_runtime(load);
        self.shedding.record_to(&self.settings.recorder);
        self.renew_gauges();
    }

    /// Registers the gauges of the present sources. Those of the sources before are gone with their
    /// last layer.
    fn renew_gauges(&mut self) {
        self.gauges = Arc::new(Gauges(self.shedding.clone()));
        let gauges = Arc::downgrade(&self.gauges);
        self.settings
            .recorder
            .register(gauges as Weak<dyn GaugeSource>);
    }

    /// Admits or refuses a request that has found these shares.
    // Not by the facts: their address would keep them out of the registers of each request.
    #[cold]
    #[inline(never)]
    fn admit_by<B: Body>(
        &self,
        shares: Shares,
        request: &Request<B>,
        format: ResponseFormat,
    ) -> Result<(), Refusal> {
        if !self.settings.is_enabled() {
            return Ok(());
        }
        let shedding = &self.shedding;
        let conn = ConnInfo::from_extensions(request.extensions()).map(Arc::as_ref);
        let Some(shares) = shares.not_asked_on(conn, shedding) else {
            return Ok(());
        };
        // How many clients there are is not known.
        let rank = shedding.rank(None, 0, 0);
        let Some(shed) = shedding.shed(shares, rank) else {
            return Ok(());
        };
        let Verdict::Refuse(refused) = shedding.verdict(shed, &request.into()) else {
            return Ok(());
        };
        let (limit, observed) = refused.numbers;
        let (guard, phase) = (Guard::LoadShed, Phase::RequestHead);
        let violation = Violation::new(guard, refused.reason, phase, limit, observed);
        let rejection = Rejection::new(violation, StatusCode::SERVICE_UNAVAILABLE, format);
        let rejection = rejection.retry_after(refused.retry_after);
        let client = Client::beside(conn, request.extensions());
        if self.settings.refuse(&rejection, conn, client) {
            return Err(Refusal::new(rejection, self.settings.on_reject.clone()));
        }
        Ok(())
    }
}

impl Policy for LoadShedPolicy {
    type Held = ();
    type Shared = ();
    type Upload = ();
    type QueuedService = NeverQueued;
    type Unread = KeepUnread;

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
        if let Some(shares) = self.shedding.ask() {
            self.admit_by(shares, request, facts.form)?;
        }
        self.shedding.begin_request();
        Ok(())
    }

    #[inline(always)]
    fn share<B: Body>(&self, (): &mut (), _: &mut Request<B>, _: &Facts, _: &mut Keys) {}

    #[inline(always)]
    fn upload(&self, (): &mut (), (): &(), _: &Facts) {}

    #[inline(always)]
    fn release(&self, (): &mut (), _: RequestView<'_, ()>) {
        self.shedding.end_request();
    }
}
