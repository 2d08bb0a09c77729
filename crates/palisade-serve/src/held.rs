//! The bytes of response bodies that are kept for one HTTP/2 connection, because its client does
//! not take them.
//!
//! A response has ended for hyper when h2 has its last piece, and then only the socket of the
//! client delays it. So each frame of a body is counted until all of its bytes are dropped: when
//! they are written, when the stream is reset, or when the connection ends.

use bytes::Bytes;
use palisade_conn::{ConnHandle, ResponseCharge};
use pin_project_lite::pin_project;
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::{Instant, Sleep, sleep},
};

/// A connection that holds less may always hold one more frame, however full the budget is: about
/// what hyper takes of one response at once.
const FREE_BYTES_PER_CONNECTION: usize = 64 * 1024;
/// The bytes of one response that are not counted, as most responses have no more.
const FREE_BYTES_PER_RESPONSE: usize = 1024;
/// What is kept for a frame beside its bytes: by h2, and to count it.
const FRAME_OVERHEAD_BYTES: usize = 256;
/// What the budget must have room for before there is more of a response. Its length is not known
/// then.
const MIN_ROOM_BYTES: u64 = 16 * 1024;
/// The longest time between two checks of a response that waits for room: other connections make
/// room in the budget, too.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The bytes that one connection holds. Clones are handles to the same count.
#[derive(Clone, Debug)]
pub(crate) struct HeldBytes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    conn: ConnHandle,
    bytes: AtomicUsize,
    /// Notified of each frame that is dropped.
    freed: Arc<Notify>,
}

/// The data of a frame, which is counted until it is dropped.
struct HeldFrame {
    data: Bytes,
    held: HeldBytes,
    /// `None` if it is free, or the budget has no room for all of it.
    charge: Option<ResponseCharge>,
}

/// The place of one response in what its connection holds. More of the response is made only when
/// there is room.
#[derive(Debug)]
pub(crate) struct Room {
    held: HeldBytes,
    /// What is left of [`FREE_BYTES_PER_RESPONSE`].
    free: usize,
    /// Set while the response waits.
    wait: Option<Pin<Box<Wait>>>,
}

pin_project! {
    /// A wait for the next frame that is dropped, or for the next check.
    #[derive(Debug)]
    struct Wait {
        #[pin]
        freed: OwnedNotified,
        #[pin]
        check: Sleep,
    }
}

// === HeldBytes ===

impl HeldBytes {
    pub(crate) fn new(conn: &ConnHandle) -> Self {
        Self(Arc::new(Shared {
            conn: conn.clone(),
            bytes: AtomicUsize::new(0),
            freed: Arc::default(),
        }))
    }

    /// Returns whether the connection may hold one more frame.
    #[inline]
    fn has_room(&self) -> bool {
        self.has_free_bytes() || self.0.conn.charge_response(MIN_ROOM_BYTES).is_some()
    }

    #[inline]
    fn has_free_bytes(&self) -> bool {
        self.0.bytes.load(SeqCst) < FREE_BYTES_PER_CONNECTION
    }

    /// Ready when a frame is dropped, for the first that waits. A notification that is not consumed
    /// is passed on when this is dropped.
    fn freed(&self) -> OwnedNotified {
        self.0.freed.clone().notified_owned()
    }
}

// === HeldFrame ===

impl HeldFrame {
    /// Counts `data`, which is there already, so it is kept with room or without.
    fn new(data: Bytes, held: HeldBytes) -> Self {
        let mut frame = Self {
            data,
            held,
            charge: None,
        };
        let Shared { conn, bytes, .. } = &*frame.held.0;
        let added = frame.memory();
        if bytes.fetch_add(added, SeqCst) + added > FREE_BYTES_PER_CONNECTION {
            frame.charge = charge_what_fits(conn, added as u64);
        }
        frame
    }

    fn memory(&self) -> usize {
        self.data.len() + FRAME_OVERHEAD_BYTES
    }
}

impl AsRef<[u8]> for HeldFrame {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for HeldFrame {
    fn drop(&mut self) {
        let was_charged = self.charge.take().is_some();
        let Shared { bytes, freed, .. } = &*self.held.0;
        let left = bytes.fetch_sub(self.memory(), SeqCst) - self.memory();
        // Without room the first that waits would lose its place. h2 may hold its lock here: what
        // is woken is the task of a stream, and not run here.
        if was_charged || left < FREE_BYTES_PER_CONNECTION {
            freed.notify_one();
        }
    }
}

/// Charges the budget for `bytes`, or for a part of them. If the room that is left were not taken,
/// all responses with larger frames would be made.
fn charge_what_fits(conn: &ConnHandle, mut bytes: u64) -> Option<ResponseCharge> {
    loop {
        let charge = conn.charge_response(bytes);
        if charge.is_some() || bytes < MIN_ROOM_BYTES {
            return charge;
        }
        bytes /= 2;
    }
}

// === Room ===

impl Room {
    pub(crate) fn new(held: HeldBytes) -> Self {
        Self {
            held,
            free: FREE_BYTES_PER_RESPONSE,
            wait: None,
        }
    }

    pub(crate) fn conn(&self) -> &ConnHandle {
        &self.held.0.conn
    }

    /// Returns whether the response waits for room.
    pub(crate) fn is_waiting(&self) -> bool {
        self.wait.is_some()
    }

    /// Ready when the connection may hold one more frame. Of the responses that wait, the first
    /// comes first. After a wait, call [`Self::pass_on`].
    ///
    /// Room is made by the client, which takes what the connection holds, and by the deadlines for
    /// that. So nothing waits for a response that itself waits here.
    #[inline]
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.wait.is_none() && self.held.has_free_bytes() {
            return Poll::Ready(());
        }
        self.poll_wait(cx)
    }

    #[cold]
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.held.has_room() {
                if let Some(mut wait) = self.wait.take() {
                    // A notification that is used here is not passed on.
                    let _ = wait.as_mut().project().freed.poll(cx);
                }
                return Poll::Ready(());
            }
            match &mut self.wait {
                // Registered first, then checked again: what is dropped from now on notifies it.
                None => self.wait = Some(Wait::register(&self.held)),
                Some(wait) => ready!(wait.as_mut().poll_room(&self.held, cx)),
            }
        }
    }

    /// Lets the next response go on, if this one has not used up the room that it waited for.
    pub(crate) fn pass_on(&self) {
        if self.held.has_free_bytes() {
            self.held.0.freed.notify_one();
        }
    }

    /// Returns `data`, which is counted until all of it is dropped.
    pub(crate) fn count(&mut self, data: Bytes) -> Bytes {
        let bytes = data.len() + FRAME_OVERHEAD_BYTES;
        if let Some(free) = self.free.checked_sub(bytes) {
            self.free = free;
            return data;
        }
        self.free = 0;
        Bytes::from_owner(HeldFrame::new(data, self.held.clone()))
    }
}

// === Wait ===

impl Wait {
    fn register(held: &HeldBytes) -> Pin<Box<Self>> {
        let mut wait = Box::pin(Self {
            freed: held.freed(),
            check: sleep(CHECK_INTERVAL),
        });
        wait.as_mut().project().freed.enable();
        wait
    }

    /// Ready when there may be room, and registered again then.
    fn poll_room(self: Pin<&mut Self>, held: &HeldBytes, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if this.freed.as_mut().poll(cx).is_ready() {
            this.freed.set(held.freed());
            this.freed.enable();
        } else {
            ready!(this.check.as_mut().poll(cx));
        }
        this.check.reset(Instant::now() + CHECK_INTERVAL);
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests;
