//! The consent of one address, from its first confirmation to its end.

use super::{
    fetch::{self, Refusal},
    secret::Secret,
    time::Clock,
};
use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};

/// How long a confirmation holds. A target that takes its line away is left alone after this time.
pub(super) const LEASE: Duration = Duration::from_secs(60);
/// The age of a confirmation at which the target is asked again.
const RENEWAL: Duration = Duration::from_secs(30);
/// The age below which it is not asked again.
const MIN_AGE: Duration = Duration::from_secs(2);
/// The pause between two questions, if the first has no answer.
const PAUSE: Duration = Duration::from_secs(2);

/// The consent of the server at one address. [`Consent::ask`] alone makes one.
#[derive(Clone)]
pub(crate) struct Consent(Arc<Shared>);

struct Shared {
    addr: SocketAddr,
    secret: Secret,
    clock: Clock,
    state: watch::Sender<State>,
}

/// What the target has said.
#[derive(Clone, Debug)]
struct State {
    /// When the question was sent that was last answered with the line.
    confirmed: Instant,
    /// The same time by the clock of the wall.
    confirmed_wall: Duration,
    /// The end of the line by the clock of the wall.
    until: Duration,
    /// The same end by a clock that cannot be set.
    ends: Instant,
    /// Why it does not consent any more.
    refusal: Option<String>,
    /// Why the last question had no answer.
    doubt: Option<String>,
}

impl Consent {
    /// Asks `addr` for its consent to the holder of `secret`, over the connection that `connect`
    /// opens.
    ///
    /// # Errors
    ///
    /// Why it does not consent, and what to do.
    pub(crate) async fn ask<S>(
        addr: SocketAddr,
        secret: &Secret,
        clock: Clock,
        connect: impl Future<Output = io::Result<S>>,
    ) -> Result<Self, String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (confirmed, confirmed_wall) = (Instant::now(), clock.now());
        let line = fetch::ask(connect, addr, secret, &clock).await;
        let line = line.map_err(|refusal| refusal.reason)?;
        let until = line.ends();
        let (state, _) = watch::channel(State {
            confirmed,
            confirmed_wall,
            until,
            ends: Instant::now() + until.saturating_sub(clock.now()),
            refusal: None,
            doubt: None,
        });
        let secret = secret.clone();
        Ok(Self(Arc::new(Shared {
            addr,
            secret,
            clock,
            state,
        })))
    }

    /// Checks that `addr` consents now. A consent that was once found to have ended stays so.
    ///
    /// # Errors
    ///
    /// Why not.
    pub(crate) fn covers(&self, addr: SocketAddr) -> Result<(), String> {
        let shared = &*self.0;
        if addr != shared.addr {
            return Err(format!("the consent is that of {}", shared.addr));
        }
        let holds = self.holds();
        if let Err(reason) = &holds {
            shared.state.send_if_modified(|state| {
                let is_new = state.refusal.is_none();
                state.refusal.get_or_insert_with(|| reason.clone());
                is_new
            });
        }
        holds
    }

    /// Returns why the consent does not hold at this moment, if so.
    fn holds(&self) -> Result<(), String> {
        let shared = &*self.0;
        let state = shared.state.borrow();
        if let Some(refusal) = &state.refusal {
            return Err(refusal.clone());
        }
        // Both clocks: the one of the wall may be set back, and the other may stop while the
        // machine sleeps.
        let (now, wall) = (Instant::now(), shared.clock.now());
        if now >= state.ends || wall >= state.until {
            return Err(
                "its consent has ended: publish a new line of `palisade-drill consent`".to_owned(),
            );
        }
        if now >= state.confirmed + LEASE || wall >= state.confirmed_wall + LEASE {
            let seconds = LEASE.as_secs();
            let doubt = state.doubt.as_deref().unwrap_or("it was not asked");
            return Err(format!(
                "its consent was not confirmed for {seconds} s, and no longer holds ({doubt})"
            ));
        }
        Ok(())
    }

    /// Asks again, unless that was done a moment ago. A target that gives no answer is not asked
    /// more often, and its last confirmation holds until the end of its time.
    ///
    /// # Errors
    ///
    /// Why the target does not consent now.
    pub(crate) async fn renew<S>(
        &self,
        connect: impl Future<Output = io::Result<S>>,
    ) -> Result<(), String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let shared = &*self.0;
        // A question is a socket.
        self.covers(shared.addr)?;
        let (asked, asked_wall) = (Instant::now(), shared.clock.now());
        let confirmed = shared.state.borrow().confirmed;
        if asked < confirmed + MIN_AGE {
            return Ok(());
        }
        let question = fetch::ask(connect, shared.addr, &shared.secret, &shared.clock);
        let answer = timeout_at(confirmed + LEASE, question).await;
        shared.state.send_modify(|state| match answer {
            Ok(Ok(line)) => {
                state.confirmed = state.confirmed.max(asked);
                state.confirmed_wall = asked_wall;
                // An end may come nearer and never moves away, whatever line or clock says so.
                let left = line.ends().saturating_sub(shared.clock.now());
                state.until = state.until.min(line.ends());
                state.ends = state.ends.min(Instant::now() + left);
                state.doubt = None;
            }
            Ok(Err(Refusal {
                is_final: true,
                reason,
            })) => drop(state.refusal.get_or_insert(reason)),
            Ok(Err(Refusal { reason, .. })) => state.doubt = Some(reason),
            Err(_) => {}
        });
        self.covers(shared.addr)
    }

    /// Asks again and again, over connections that `connect` opens, and returns why the consent has
    /// ended. Never before it has.
    pub(crate) async fn ended<S, Fut>(&self, connect: impl Fn() -> Fut) -> String
    where
        S: AsyncRead + AsyncWrite + Unpin,
        Fut: Future<Output = io::Result<S>>,
    {
        let shared = &*self.0;
        let mut changes = shared.state.subscribe();
        let mut asked: Option<Instant> = None;
        loop {
            if let Err(reason) = self.covers(shared.addr) {
                return reason;
            }
            let State {
                confirmed, ends, ..
            } = *changes.borrow_and_update();
            let pause = asked.map_or(confirmed, |asked| asked + PAUSE);
            let due = (confirmed + RENEWAL).max(pause);
            let end = ends.min(confirmed + LEASE);
            tokio::select! {
                () = sleep_until(due.min(end)) => {}
                // Another question was answered: the times are new ones.
                Ok(()) = changes.changed() => continue,
            }
            if due < end {
                asked = Some(Instant::now());
                if let Err(reason) = self.renew(connect()).await {
                    return reason;
                }
            }
        }
    }
}

impl fmt::Debug for Consent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consent")
            .field("addr", &self.0.addr)
            .field("state", &*self.0.state.borrow())
            .finish_non_exhaustive()
    }
}
