//! State of one request: on the side of its response, with its request body, and shared by both.

pub(crate) mod admission;
mod halves;
pub(crate) mod response;
mod stream;

pub(crate) use halves::{Flags, Halves};

use crate::{
    limiter::{Charge, Half, PermitExtras, Waiter},
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

/// State of a request on the side of its response.
#[derive(Debug, Default)]
pub enum ResponseState {
    /// No permit.
    #[default]
    Nothing,
    /// A permit of a request that has not waited.
    Permit(Option<Box<PermitExtras>>),
    /// The permit, or the waiter, is in the shared state.
    Shared,
    /// A waiter.
    Waiting(Waiting),
    /// A place in the queue.
    Queued(Box<Queued>),
}

/// A request that has waited, for its reader or in the queue. Dropping this does not tell the
/// limiter that the request has ended; its release must.
#[derive(Debug)]
pub struct Waiting(pub(crate) Arc<Waiter>);

/// A new request in the queue. Like [`Waiting`], it must be released.
#[derive(Debug)]
pub struct Queued {
    pub(crate) waiter: Arc<Waiter>,
    pub(crate) max_wait: Duration,
}

/// State shared by both sides of a request.
#[derive(Debug)]
pub struct SharedState {
    /// Created when the request waits for the first time.
    waiter: OnceLock<Arc<Waiter>>,
    /// The permit, until there is a waiter.
    initial_permit: Mutex<Option<Permit>>,
    client: Option<ClientKey>,
    pub(crate) flags: Flags,
    /// Idle detection of a gRPC stream that has been pending.
    stream_idle: Mutex<Option<Box<StreamIdle>>>,
}

/// A permit and its extras.
pub(crate) type Permit = Option<Box<PermitExtras>>;

/// State of a request body.
#[derive(Debug)]
pub struct UploadState {
    /// What the body returned while there was no permit. Boxed, because that is rare and a frame is
    /// large.
    pub(crate) held_frame: Option<Box<BodyItem>>,
    /// Bytes passed on since the waiter's progress was updated last.
    pub(crate) progress: u64,
    pub(crate) stage: UploadStage,
}

/// Stage of a request body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UploadStage {
    /// Frames pass through.
    Unlimited,
    /// Frames are passed on while the request holds a permit.
    Limited,
    /// A frame is held until there is a permit.
    HoldsFrame,
    /// The request was evicted.
    Evicted,
}

/// A frame, an error or the end of a body.
pub(crate) type BodyItem = Option<Result<Frame<Bytes>, BoxError>>;

// === Common ===

impl SharedState {
    pub(crate) fn new(
        initial_permit: Option<Permit>,
        client: Option<ClientKey>,
        has_body: bool,
    ) -> Self {
        Self {
            waiter: OnceLock::new(),
            initial_permit: Mutex::new(initial_permit),
            client,
            flags: Flags::new(has_body),
            stream_idle: Mutex::new(None),
        }
    }

    /// The state of a new request in the queue.
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

    /// The two halves of a request, with a waiter created if it has none. `None` if the request has
    /// ended.
    #[inline]
    pub(crate) fn halves_or_new_waiter<'a>(&'a self, options: &'a Options) -> Option<Halves<'a>> {
        match self.halves(options) {
            None => self.create_waiter(options),
            known => known,
        }
    }

    #[inline(never)]
    fn create_waiter<'a>(&'a self, options: &'a Options) -> Option<Halves<'a>> {
        let mut initial_permit = self.initial_permit.lock();
        if let Some(extras) = initial_permit.take() {
            let waiter = Waiter::working(options.rules(), self.client, extras);
            let _ = self.waiter.set(Arc::new(waiter));
        }
        drop(initial_permit);
        self.halves(options)
    }

    /// Takes the permit of a request that has not waited.
    pub(crate) fn take_initial_permit(&self) -> Option<Permit> {
        self.initial_permit.lock().take()
    }

    /// Records that the response head has been sent. From now on only the response acquires
    /// permits.
    #[inline]
    pub(crate) fn response_head_sent(&self) {
        self.set_flag(Flags::set_head_sent);
        if let Some(waiter) = self.waiter()
            && !self.flags.is_body_dropped()
        {
            waiter.wake_half(Half::RequestBody);
        }
    }

    /// Records that the handler has dropped the request body, and so no longer waits for the
    /// client.
    #[inline(never)]
    pub(crate) fn body_dropped(&self, options: &Options) {
        self.set_flag(Flags::set_body_dropped);
        if let Some(halves) = self.halves(options) {
            halves.body_dropped();
        }
    }

    /// Sets a flag under the lock: the other half, which may be creating the waiter at the same
    /// time, either sees the flag, or its waiter is seen here.
    #[inline]
    fn set_flag(&self, set: impl FnOnce(&Flags)) {
        let _guard = self.initial_permit.lock();
        set(&self.flags);
    }

    /// Records that a gRPC stream has returned a frame.
    pub(crate) fn stream_progressed(&self) {
        if let Some(idle) = &mut *self.stream_idle.lock() {
            idle.record_progress();
        }
    }

    /// Updates the idle state of a gRPC stream that has no data. The stream keeps its permit as
    /// long as it may be at work. Once it has been idle, it gives the permit back whenever it has
    /// no data: otherwise one event for ten thousand streams would take all permits for the length
    /// of the idle timeout.
    ///
    /// Does nothing while the request body exists: its client could be silent until the stream is
    /// idle, and then have any amount of work done without a permit.
    pub(crate) fn poll_stream_idle(&self, options: &Options, cx: &mut Context<'_>) {
        let Some(waiter) = self.waiter() else { return };
        if !waiter.is_working() || !self.flags.is_body_dropped() {
            return;
        }
        if self
            .stream_idle
            .lock()
            .get_or_insert_with(|| Box::new(StreamIdle::new()))
            .poll_idle(cx)
            .is_ready()
        {
            options.limiter.wait_for_client(waiter, Half::Response, cx);
        }
    }
}

// === Held ===

impl ResponseState {
    #[inline]
    pub(crate) fn waiter<'a>(&'a self, common: Option<&'a SharedState>) -> Option<&'a Arc<Waiter>> {
        match self {
            Self::Waiting(waiting) => Some(&waiting.0),
            Self::Shared => common.and_then(SharedState::waiter),
            Self::Nothing | Self::Permit(_) | Self::Queued(_) => None,
        }
    }

    /// The client that the permit is charged to, if there is one.
    pub(crate) fn charged_client(&self) -> Option<ClientKey> {
        let Self::Permit(Some(extras)) = self else {
            return None;
        };
        extras.charge.as_ref().map(Charge::client)
    }
}
