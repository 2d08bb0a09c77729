//! Attack connections as state machines: events in, actions out. No socket, no clock.
//!
//! The engine owns the sockets and the timers. A machine sees what happens to its connection, and
//! says what it does next. Each method gets the time since the attack began, so that a test runs a
//! machine through minutes at once.

use bytes::Bytes;
use std::time::Duration;

/// What happened to the connection of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The connection was opened. It is the first event, and the first after a reopening.
    Opened,
    /// The server sent these bytes, at least one.
    Received(&'a [u8]),
    /// The connection could not be opened, or the server closed or reset it, or
    /// [`Actions::close`] did.
    Closed,
    /// The time of [`Actions::wake_at`] has come, and all earlier bytes are written.
    Woken,
}

/// The state machine of one attack connection, which may be opened several times.
///
/// ```
/// use palisade_drill::machine::{Actions, Event, Machine};
/// use std::time::Duration;
///
/// /// Sends one byte a second.
/// struct Drip;
///
/// impl Machine for Drip {
///     fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
///         if matches!(event, Event::Opened | Event::Woken) {
///             out.send("x");
///             out.wake_at(now + Duration::from_secs(1));
///         }
///     }
/// }
///
/// let mut out = Actions::default();
/// Drip.on(Event::Opened, Duration::ZERO, &mut out);
/// assert_eq!(out.sent(), b"x");
/// assert_eq!(out.wake(), Some(Duration::from_secs(1)));
/// ```
pub trait Machine: Send {
    /// Reacts to `event` at `now`, the time since the attack began.
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions);

    /// Returns whether the connection, while it is open, still holds what the attack takes, as far
    /// as the client sees. A server may end what counts and leave the connection: a stream of many,
    /// for example. Defaults to `true`.
    fn holds(&self) -> bool {
        true
    }
}

/// What a machine does in answer to an event.
#[derive(Debug, Default)]
pub struct Actions {
    pub(crate) sends: Vec<Bytes>,
    pub(crate) reads: Option<bool>,
    pub(crate) closes: bool,
    pub(crate) wakes_at: Option<Duration>,
    pub(crate) reopens_at: Option<Duration>,
    pub(crate) signs: Signs,
}

/// What a machine tells of answers, for attacks with a gain that no open connection shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// Requests that were served.
    pub served: u64,
    /// Requests that were refused, cut or not answered.
    pub refused: u64,
    /// Whether the machine got what the server should refuse.
    pub has_passed: bool,
}

impl Actions {
    /// Sends `bytes` after all that was sent before.
    pub fn send(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        if !bytes.is_empty() {
            self.sends.push(bytes);
        }
    }

    /// Reads nothing more until [`resume_reading`](Self::resume_reading). The kernel's buffers
    /// still fill.
    pub fn pause_reading(&mut self) {
        self.reads = Some(false);
    }

    /// Reads again. A connection reads from its opening on.
    pub fn resume_reading(&mut self) {
        self.reads = Some(true);
    }

    /// Closes the connection at once, also if bytes are unsent. The machine sees
    /// [`Event::Closed`] next.
    pub fn close(&mut self) {
        self.closes = true;
    }

    /// Asks for [`Event::Woken`] at `at`, the time since the attack began. Replaces an earlier
    /// wish.
    pub fn wake_at(&mut self, at: Duration) {
        self.wakes_at = Some(at);
    }

    /// Opens the connection again at `at`. Has an effect in answer to [`Event::Closed`] alone, and
    /// while the attack lasts.
    pub fn reopen_at(&mut self, at: Duration) {
        self.reopens_at = Some(at);
    }

    /// Counts a request that was served.
    pub fn served(&mut self) {
        self.signs.served += 1;
    }

    /// Counts a request that was refused, cut or not answered.
    pub fn refused(&mut self) {
        self.signs.refused += 1;
    }

    /// Says that the machine got what the server should refuse. Each machine counts once.
    pub fn passed(&mut self) {
        self.signs.has_passed = true;
    }

    /// Returns what the machine tells of answers.
    pub fn signs(&self) -> Signs {
        self.signs
    }

    /// Returns all bytes that are sent, for tests.
    pub fn sent(&self) -> Vec<u8> {
        self.sends.concat()
    }

    /// Returns the time of the wish to be woken.
    pub fn wake(&self) -> Option<Duration> {
        self.wakes_at
    }

    /// Returns the time of the wish to be opened again.
    pub fn reopening(&self) -> Option<Duration> {
        self.reopens_at
    }

    /// Returns whether the connection is to be closed.
    pub fn is_closing(&self) -> bool {
        self.closes
    }

    /// Returns whether reading is to stop or to go on, if that is to change.
    pub fn reading(&self) -> Option<bool> {
        self.reads
    }
}

/// Runs `machine` without a socket until `until`: opens it at zero, and wakes it whenever it asks.
/// Returns what it did and when, for tests.
///
/// ```
/// use palisade_drill::machine::{Actions, Event, Machine, trace};
/// use std::time::Duration;
///
/// struct Silent;
/// impl Machine for Silent {
///     fn on(&mut self, _: Event<'_>, _: Duration, _: &mut Actions) {}
/// }
/// let events = trace(&mut Silent, Duration::from_secs(60));
/// assert_eq!(events, [(Duration::ZERO, vec![])]);
/// ```
pub fn trace(machine: &mut dyn Machine, until: Duration) -> Vec<(Duration, Vec<u8>)> {
    let mut done = Vec::new();
    let (mut now, mut event) = (Duration::ZERO, Event::Opened);
    loop {
        let mut out = Actions::default();
        machine.on(event, now, &mut out);
        done.push((now, out.sent()));
        match out.wake() {
            // A machine that asks for the present would never end.
            Some(at) if at > now && at <= until => (now, event) = (at, Event::Woken),
            _ => return done,
        }
    }
}
