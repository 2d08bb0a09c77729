//! The body of a request. It is charged to the byte budget of the guard, unless a layer charges it.

use crate::refusal::{self, RefusalReporter};
use bytes::Bytes;
use http::{Method, Request, header::CONTENT_ENCODING};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use palisade_core::{
    BodyAccount, BodyAccountRef, BoxError, BudgetFull, Charge, Client, HasBodyAccount,
    MessageBoundaries, Phase, Rejection, ResponseFormat, Violation,
};
use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicU8, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll, ready},
};

/// What is kept for a small frame beside its bytes: by the allocator, and in a list of frames.
const FRAME_OVERHEAD_BYTES: u64 = 256;
/// A frame with fewer bytes is small. It fills less than half of the block of 8 KiB or more into
/// which hyper has read it, and which it keeps.
const SMALL_FRAME_BYTES: usize = 4096;
/// What small frames take is charged in steps of this.
const STEP_BYTES: u64 = 16 * 1024;

// Values of `BodyCharge::head`.

/// The app works on its response.
const UNSENT: u8 = 0;
/// hyper has the head of the response.
const SENT: u8 = 1;
/// The server refuses the request.
const REFUSED: u8 = 2;

/// The body of a request that an app gets from [`serve`](crate::serve).
///
/// It is hyper's body, charged to the [byte budget](palisade_conn::ConnGuardBuilder::byte_budget)
/// of the guard: two bytes for each byte that arrives, until the response has ended and the body is
/// dropped, and 4 MiB at most. Bodies of up to 1 KiB are free. Where there is no room left, the
/// next read fails with a [`Violation`]. If the app has not responded yet, the response is 503 with
/// `Retry-After` then, whatever the app returns. A body for which even an empty budget has no room,
/// by its declared length, is answered 413 at its head. A `Stack`, or a `BodyBudgetLayer`, charges
/// by its own rules in place of this.
///
/// A request that claims to be gRPC is charged for the message that is being received, and for
/// what the app keeps of the frames before. Frames of less than 4 KiB are copied, unless they are
/// the last, and each that the app keeps is charged 256 bytes more, beyond the 4 MiB too.
pub struct RequestBody {
    incoming: Incoming,
    /// `None` if nothing is charged.
    upload: Option<Box<Upload>>,
}

/// The state of a body that is charged.
struct Upload {
    charge: Arc<BodyCharge>,
    /// Bytes that may arrive before the budget is charged again.
    paid: u64,
    /// The budget had no room for the last frame.
    full: Option<BudgetFull>,
    /// The body has been cut.
    cut: Option<Violation>,
    /// Where messages begin, in gRPC.
    messages: Option<MessageBoundaries>,
}

/// The charge of one request body, shared with the response. It is given back when both are
/// dropped.
pub(crate) struct BodyCharge {
    account: BodyAccount,
    /// What small frames take beside their bytes.
    small: Charge,
    refusals: RefusalReporter,
    /// The client if a proxy has named it.
    client: Option<Client>,
    format: ResponseFormat,
    live: Arc<Live>,
    /// Why the request is refused, if it is.
    full: OnceLock<BudgetFull>,
    /// What has become of the head of the response.
    head: AtomicU8,
}

/// A request with the charge of its body, if there is one.
type Wrapped = (Request<RequestBody>, Option<Arc<BodyCharge>>);

/// The frames that the app has not dropped, of those that are counted.
#[derive(Default)]
struct Live {
    bytes: AtomicU64,
    small: AtomicU64,
}

/// The data of a frame, which is counted until it is dropped.
struct LiveFrame {
    data: Bytes,
    live: Arc<Live>,
}

// === RequestBody ===

impl RequestBody {
    /// Returns whether a request has a body that may have to be charged.
    #[inline]
    pub(crate) fn is_upload(request: &Request<Incoming>) -> bool {
        !request.body().is_end_stream() && request.method() != Method::CONNECT
    }

    /// Returns `request` with a body that is charged, and its charge if there is one.
    ///
    /// # Errors
    ///
    /// The refusal of a body that would not find room in an empty budget.
    #[inline(never)]
    pub(crate) fn wrap_upload(
        mut request: Request<Incoming>,
        refusals: &RefusalReporter,
    ) -> Result<Wrapped, Box<Rejection>> {
        let conn = refusals.conn();
        conn.set_charged_body(true); // By this, and not by the socket.
        let length = request.body().size_hint();
        let is_free = length
            .exact()
            .is_some_and(|bytes| bytes <= BodyAccount::FREE_BYTES);
        let charge = |request: &Request<Incoming>| conn.body_charge(request.extensions());
        let (Some(of_body), Some(small), false) = (charge(&request), charge(&request), is_free)
        else {
            return Ok((request.map(Self::free), None));
        };
        let account = BodyAccount::new(of_body, BodyAccount::MAX_HELD);
        let client = Client::beside(Some(conn), request.extensions());
        let claim = ResponseFormat::detect(&request);
        let format = refusal::format_for(&request, claim);
        let is_encoded = request.headers().contains_key(CONTENT_ENCODING);
        let has_messages =
            matches!(claim, ResponseFormat::Grpc | ResponseFormat::GrpcWeb { .. }) && !is_encoded;
        let max_held = BodyAccount::MAX_HELD;
        if let Some(full) = BodyAccount::exceeds(account.budget(), length.lower(), max_held)
            && !has_messages
        {
            return match refusals.report_too_large(full, format, client) {
                Some(rejection) => Err(Box::new(rejection)),
                None => Ok((request.map(Self::free), None)), // Reported once.
            };
        }
        let charge = Arc::new(BodyCharge {
            account,
            small,
            refusals: refusals.clone(),
            client: client.copied(),
            format,
            live: Arc::default(),
            full: OnceLock::new(),
            head: AtomicU8::new(UNSENT),
        });
        BodyAccountRef::insert(request.extensions_mut(), &charge, is_encoded);
        let upload = Upload {
            charge: charge.clone(),
            paid: BodyAccount::FREE_BYTES,
            full: None,
            cut: None,
            messages: has_messages.then(MessageBoundaries::default),
        };
        let request = request.map(|incoming| Self {
            incoming,
            upload: Some(Box::new(upload)),
        });
        Ok((request, Some(charge)))
    }

    /// A body that is not charged.
    #[inline]
    pub(crate) fn free(incoming: Incoming) -> Self {
        Self {
            incoming,
            upload: None,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self { incoming, upload } = &mut *self;
        if let Some(upload) = upload
            && let Some(violation) = upload.check()
        {
            return Poll::Ready(Some(Err(violation.into())));
        }
        let frame = match ready!(Pin::new(&mut *incoming).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => return Poll::Ready(None),
        };
        let is_last = incoming.is_end_stream();
        Poll::Ready(Some(Ok(match upload {
            Some(upload) => frame.map_data(|data| upload.count(data, is_last)),
            None => frame,
        })))
    }

    /// A reader that has the last frame asks once more if there was no room for it.
    fn is_end_stream(&self) -> bool {
        let is_full = |upload: &Upload| upload.full.is_some() || upload.cut.is_some();
        !self.upload.as_deref().is_some_and(is_full) && self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody")
            .field("incoming", &self.incoming)
            .field("is_charged", &self.upload.is_some())
            .finish_non_exhaustive()
    }
}

/// Returns the data of a small frame in memory of its own. The last frame of a body stays where it
/// is: most bodies have one frame.
#[inline]
fn without_its_block(data: Bytes, is_last: bool) -> Bytes {
    if is_last || data.len() >= SMALL_FRAME_BYTES {
        data
    } else {
        Bytes::copy_from_slice(&data)
    }
}

// === Upload ===

impl Upload {
    /// Returns why the body ends, if the budget was full and the guard enforces its limits.
    #[inline]
    fn check(&mut self) -> Option<Violation> {
        if let Some(full) = self.full.take() {
            self.cut = self.charge.refuse(full);
        }
        self.cut
    }

    /// Counts the data of a frame, which is there already, so it is passed on with room or without.
    fn count(&mut self, data: Bytes, is_last: bool) -> Bytes {
        let charge = &self.charge;
        if charge.full.get().is_some() || charge.account.is_handed_over() {
            return data; // It was reported, or is charged by a layer.
        }
        if let Some(messages) = &mut self.messages
            && messages.begin_one(&data)
        {
            // The app has the messages before, and may keep them.
            let kept = charge.live.bytes.load(Relaxed);
            self.paid = BodyAccount::FREE_BYTES;
            self.full = charge.account.charge_exactly(kept).err();
        }
        let is_small = data.len() < SMALL_FRAME_BYTES;
        if is_small && let Err(full) = charge.pay_small() {
            self.full = Some(full);
        }
        self.pay(data.len() as u64);
        if is_small || self.messages.is_some() {
            let data = without_its_block(data, is_last);
            return LiveFrame::count(data, &self.charge.live);
        }
        data
    }

    fn pay(&mut self, bytes: u64) {
        match self.paid.checked_sub(bytes) {
            Some(paid) => self.paid = paid,
            None => match self.charge.account.charge_frame(bytes, self.paid) {
                Ok(paid) => self.paid = paid,
                Err(full) => {
                    // What follows is not charged if the guard only reports.
                    self.paid = u64::MAX;
                    self.full = Some(full);
                }
            },
        }
    }
}

// === BodyCharge ===

impl BodyCharge {
    /// Charges what small frames take, with one more.
    fn pay_small(&self) -> Result<(), BudgetFull> {
        let wanted = (self.live.small.load(Relaxed) + 1) * FRAME_OVERHEAD_BYTES;
        // A few are free, as a body of a few bytes is.
        let price = match wanted {
            ..=STEP_BYTES => 0,
            _ => wanted.next_multiple_of(STEP_BYTES),
        };
        match price.checked_sub(self.small.bytes()) {
            Some(more) => self.small.take(more),
            None => {
                self.small.give_back_to(price);
                Ok(())
            }
        }
    }

    /// Refuses the request, or cuts its body if hyper has the head of the response. Returns the
    /// violation if the guard enforces its limits.
    #[cold]
    fn refuse(&self, full: BudgetFull) -> Option<Violation> {
        let _ = self.full.set(full);
        let next = if self.refusals.is_enforced() {
            REFUSED
        } else {
            UNSENT
        };
        let head = self.head.compare_exchange(UNSENT, next, SeqCst, SeqCst);
        let client = self.client.as_ref();
        self.refusals
            .report_full(full, head.is_ok(), self.format, client)
    }

    /// Notes that the app has responded. Returns the refusal that is sent in place of its response,
    /// if there is one.
    pub(crate) fn set_responded(&self) -> Option<Rejection> {
        let responded = self.head.compare_exchange(UNSENT, SENT, SeqCst, SeqCst);
        responded.err().and_then(|_| self.refusal())
    }

    /// Returns the refusal of the request, if it is refused.
    pub(crate) fn refusal(&self) -> Option<Rejection> {
        if self.head.load(SeqCst) != REFUSED {
            return None;
        }
        let full = self.full.get()?;
        Some(RefusalReporter::no_room(
            *full,
            Phase::RequestBody,
            self.format,
        ))
    }
}

impl HasBodyAccount for BodyCharge {
    fn account(&self) -> &BodyAccount {
        &self.account
    }
}

impl fmt::Debug for BodyCharge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyCharge")
            .field("account", &self.account)
            .finish_non_exhaustive()
    }
}

// === LiveFrame ===

impl LiveFrame {
    /// Returns `data`, which is counted until it is dropped.
    fn count(data: Bytes, live: &Arc<Live>) -> Bytes {
        let is_small = data.len() < SMALL_FRAME_BYTES;
        let frame = Self {
            data,
            live: live.clone(),
        };
        live.bytes.fetch_add(frame.data.len() as u64, Relaxed);
        live.small.fetch_add(is_small.into(), Relaxed);
        Bytes::from_owner(frame)
    }
}

impl AsRef<[u8]> for LiveFrame {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for LiveFrame {
    fn drop(&mut self) {
        let is_small = self.data.len() < SMALL_FRAME_BYTES;
        self.live.bytes.fetch_sub(self.data.len() as u64, Relaxed);
        self.live.small.fetch_sub(is_small.into(), Relaxed);
    }
}
