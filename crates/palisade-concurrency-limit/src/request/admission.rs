//! Whether a request gets a permit, by its head.

use crate::{
    limiter::{ClientCount, Extras, FairShare, Priority, Share},
    options::Options,
};
use palisade_core::{Guard, Phase, Reason, RequestHead, Violation};
use palisade_guard::Keys;

/// Why there is no permit, and how the request was counted before that showed.
pub(crate) struct Denied {
    pub(crate) violation: Violation,
    pub(crate) counted: Option<ClientCount>,
}

/// A permit for the request with this head and what comes with it, or why there is none.
#[inline(always)]
pub(crate) fn admit(
    options: &Options,
    head: &RequestHead<'_>,
    keys: &mut Keys,
) -> Result<Option<Box<Extras>>, Denied> {
    let limiter = &*options.limiter;
    let mut extras = None;
    if let Some(max) = options.per_client {
        extras = enter(options, head, keys, max)?;
    }
    let mut is_taken = take(options, head, keys, &mut extras);
    if !is_taken && !limiter.is_crowded() && limiter.recall_all() {
        is_taken = take(options, head, keys, &mut extras);
    }
    if !is_taken {
        let violation = over(Reason::Full, Phase::RequestHead, limiter.limit());
        return Err(Denied {
            violation,
            counted: extras.and_then(|extras| extras.counted),
        });
    }
    if let Err(violation) = welcome(options) {
        match extras {
            None => limiter.release(Share::Common),
            Some(extras) => limiter.release_with(extras),
        }
        return Err(Denied {
            violation,
            counted: None,
        });
    }
    Ok(extras)
}

/// Admits a request that has got its first permit, if there is room for one more.
#[inline]
pub(crate) fn welcome(options: &Options) -> Result<(), Violation> {
    let limiter = &*options.limiter;
    let (present, max_present) = (limiter.present(), limiter.max_present(options.max_present));
    limiter.look_for_crowd(present, max_present);
    if present > max_present && !limiter.make_room(max_present, options.rules().enforces) {
        return Err(over(Reason::Full, Phase::RequestHead, max_present));
    }
    limiter.count_admitted();
    Ok(())
}

/// One more than `max`.
pub(crate) fn over(reason: Reason, phase: Phase, max: usize) -> Violation {
    let max = max as u64;
    let observed = max.saturating_add(1);
    Violation::new(Guard::ConcurrencyLimit, reason, phase, max, observed)
}

/// Counts one more request of the client.
#[inline(never)]
fn enter(
    options: &Options,
    head: &RequestHead<'_>,
    keys: &mut Keys,
    max: usize,
) -> Result<Option<Box<Extras>>, Denied> {
    let Some(client) = options.client(head, keys) else {
        return Ok(None);
    };
    let Some(counted) = options.limiter.clients().enter(client, max) else {
        return Err(Denied {
            violation: over(Reason::ClientFull, Phase::RequestHead, max),
            counted: None,
        });
    };
    Ok(Some(Box::new(Extras {
        counted: Some(counted),
        ..Extras::default()
    })))
}

#[inline]
fn take(
    options: &Options,
    head: &RequestHead<'_>,
    keys: &mut Keys,
    extras: &mut Option<Box<Extras>>,
) -> bool {
    match options.fair_share() {
        Some(fair_share) if options.limiter.is_busy() => {
            take_fairly(options, fair_share, head, keys, extras)
        }
        _ => options.limiter.take_any() || take_picked(options, head, extras),
    }
}

/// Permits are getting short: it matters which client takes them.
#[inline(never)]
fn take_fairly(
    options: &Options,
    fair_share: &FairShare,
    head: &RequestHead<'_>,
    keys: &mut Keys,
    extras: &mut Option<Box<Extras>>,
) -> bool {
    let client = options.client(head, keys);
    let is_light = client.is_some_and(|client| fair_share.is_light(client));
    let priority = if is_light {
        Priority::LightNewcomer
    } else {
        Priority::Newcomer
    };
    if is_light {
        options.limiter.grant_to_light();
    }
    let Some(share) = options.limiter.take(priority, true) else {
        return take_picked(options, head, extras);
    };
    let extras = extras.get_or_insert_default();
    extras.share = share;
    extras.charge = client.map(|client| fair_share.start(client));
    true
}

#[cold]
fn take_picked(
    options: &Options,
    head: &RequestHead<'_>,
    extras: &mut Option<Box<Extras>>,
) -> bool {
    let is_picked = options.picks.as_ref().is_some_and(|picks| picks(head))
        && options.limiter.take_picked(options.max_picked);
    if is_picked {
        extras.get_or_insert_default().picked = true;
    }
    is_picked
}
