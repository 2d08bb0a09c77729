//! What one request holds: on the side of its response, with its body, and what both sides see.

pub(crate) mod admission;
mod halves;
pub(crate) mod response;
mod stream;

pub(crate) use halves::{Flags, Halves};

use crate::{
    limiter::{Charge, Extras, Half, Waiter},
    options::Options,
};
use bytes::Bytes;
use http_body::Frame;
use palisade_core::{BoxError, ClientKey};
use parking_lot::Mutex;
use std::{
    sync::{Arc, OnceLock},
    task::Context,
    time::Duration,
};
use stream::StreamIdle;

/// What a request holds on the side of its response.
#[derive(Debug, Default)]
pub enum Held {
    /// Nothing.
    #[default]
    Nothing,
    /// A permit, and nothing to wait for so far.
    Permit(Option<Box<Extras>>),
    /// What both sides share has the permit, or the waiter.
    Shared,
    /// A waiter.
    Waits(Waits),
    /// A place in the queue.
    Queued(Box<Queued>),
}

/// A request that has waited: for its reader, or in the queue. Its release must tell the limiter
/// that it leaves, which the drop of this does not do.
#[derive(Debug)]
pub struct Waits(pub(crate) Arc<Waiter>);

/// A newcomer in the queue. As [`Waits`].
#[derive(Debug)]
pub struct Queued {
    pub(crate) waiter: Arc<Waiter>,
    pub(crate) wait: Duration,
}

/// What both sides of a request see.
#[derive(Debug)]
pub struct Common {
    /// Made when the request waits for the first time.
    waiter: OnceLock<Arc<Waiter>>,
    /// The permit, until there is a waiter.
    early: Mutex<Option<Permit>>,
    client: Option<ClientKey>,
    pub(crate) flags: Flags,
    /// Of a gRPC stream that had nothing to give.
    idle: Mutex<Option<Box<StreamIdle>>>,
}

/// A permit, and what comes with it.
pub(crate) type Permit = Option<Box<Extras>>;

/// What goes with the request body.
#[derive(Debug)]
pub struct Upload {
    /// What came while there was no permit: boxed, because that is rare and a frame is large.
    pub(crate) stash: Option<Box<Stash>>,
    /// Bytes that were handed on since the waiter was told last.
    pub(crate) progress: u64,
    pub(crate) stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing looks at the body.
    Unwatched,
    /// What comes is handed on while the request holds a permit.
    Watched,
    /// A frame is in the stash.
    Holding,
    /// The request was evicted.
    Cut,
}

/// A frame, an error or the end of a body.
pub(crate) type Stash = Option<Result<Frame<Bytes>, BoxError>>;

// === Common ===

impl Common {
    pub(crate) fn new(early: Option<Permit>, client: Option<ClientKey>, has_body: bool) -> Self {
        Self {
            waiter: OnceLock::new(),
            early: Mutex::new(early),
            client,
            flags: Flags::new(has_body),
            idle: Mutex::new(None),
        }
    }

    /// For a newcomer in the queue.
    pub(crate) fn queued(waiter: Arc<Waiter>, has_body: bool) -> Self {
        let common = Self::new(None, None, has_body);
        let _ = common.waiter.set(waiter);
        common
    }

    #[inline]
    pub(crate) fn waiter(&self) -> Option<&Arc<Waiter>> {
        self.waiter.get()
    }

    /// The two halves of a request that has waited.
    #[inline]
    pub(crate) fn halves<'a>(&'a self, options: &'a Options) -> Option<Halves<'a>> {
        let waiter = self.waiter.get()?;
        Some(Halves {
            limiter: &options.limiter,
            waiter,
            flags: &self.flags,
        })
    }

    /// The same for one that waits now. `None` if the request is over.
    #[inline]
    pub(crate) fn halves_to_wait<'a>(&'a self, options: &'a Options) -> Option<Halves<'a>> {
        match self.halves(options) {
            None => self.make_waiter(options),
            known => known,
        }
    }

    #[inline(never)]
    fn make_waiter<'a>(&'a self, options: &'a Options) -> Option<Halves<'a>> {
        let mut early = self.early.lock();
        if let Some(extras) = early.take() {
            let waiter = Waiter::working(options.rules(), self.client, extras);
            let _ = self.waiter.set(Arc::new(waiter));
        }
        drop(early);
        self.halves(options)
    }

    /// The permit of a request that has not waited.
    pub(crate) fn take_early(&self) -> Option<Permit> {
        self.early.lock().take()
    }

    /// From here on only the response asks for permits.
    #[inline]
    pub(crate) fn head_is_out(&self) {
        self.set_flag(Flags::set_head_out);
        if let Some(waiter) = self.waiter()
            && !self.flags.is_body_gone()
        {
            waiter.wake_half(Half::Body);
        }
    }

    /// The handler let go of the request body, so that it does not wait for the client any more.
    #[inline(never)]
    pub(crate) fn body_is_gone(&self, options: &Options) {
        self.set_flag(Flags::set_body_gone);
        if let Some(halves) = self.halves(options) {
            halves.body_is_gone();
        }
    }

    /// Under the lock: the other half, which may be making the waiter in this moment, sees the flag
    /// or is seen here.
    #[inline]
    fn set_flag(&self, set: impl FnOnce(&Flags)) {
        let _early = self.early.lock();
        set(&self.flags);
    }

    /// A gRPC stream has given something.
    pub(crate) fn stream_gives(&self) {
        if let Some(idle) = &mut *self.idle.lock() {
            idle.gives();
        }
    }

    /// A gRPC stream has nothing to give. It keeps its permit for as long as that may be work. Then
    /// it gives the permit up, and does so at once whenever it has nothing to give again: else a
    /// piece of news for ten thousand streams would keep all permits for that long.
    ///
    /// Not while the request body is there: its client could be silent for so long and then have
    /// any amount of work done without a permit.
    pub(crate) fn stream_waits(&self, options: &Options, cx: &mut Context<'_>) {
        let Some(waiter) = self.waiter() else { return };
        if !waiter.is_working() || !self.flags.is_body_gone() {
            return;
        }
        if self
            .idle
            .lock()
            .get_or_insert_with(|| Box::new(StreamIdle::new()))
            .poll(cx)
            .is_ready()
        {
            options.limiter.wait_for_client(waiter, Half::Answer, cx);
        }
    }
}

// === Held ===

impl Held {
    #[inline]
    pub(crate) fn waiter<'a>(&'a self, common: Option<&'a Common>) -> Option<&'a Arc<Waiter>> {
        match self {
            Self::Waits(waits) => Some(&waits.0),
            Self::Shared => common.and_then(Common::waiter),
            Self::Nothing | Self::Permit(_) | Self::Queued(_) => None,
        }
    }

    /// The client whose account the permit is in, if it is in one.
    pub(crate) fn charged_client(&self) -> Option<ClientKey> {
        let Self::Permit(Some(extras)) = self else {
            return None;
        };
        extras.charge.as_ref().map(Charge::client)
    }
}
