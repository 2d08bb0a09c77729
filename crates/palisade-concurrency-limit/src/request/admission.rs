//! Admission of a request by its head.

use crate::{
    limiter::{CountedRequest, FairShare, PermitExtras, PermitKind, Priority},
    options::Options,
};
use palisade_core::{Guard, Phase, Reason, RequestHead, Violation};
use palisade_guard::Keys;

/// The reason why a request got no permit, and its per-client count, if it was counted.
pub(crate) struct Denied {
    pub(crate) violation: Violation,
    pub(crate) counted: Option<CountedRequest>,
}

/// Takes a permit for a request with this head. Returns the permit's extras, or why there is no
/// permit.
#[inline(always)]
pub(crate) fn admit(
    options: &Options,
    head: &RequestHead<'_>,
    keys: &mut Keys,
) -> Result<Option<Box<PermitExtras>>, Denied> {
    let limiter = &*options.limiter;
    let mut extras = None;
    if let Some(max) = options.max_per_client {
        extras = count_client(options, head, keys, max)?;
    }
    let mut is_taken = try_take_permit(options, head, keys, &mut extras);
    if !is_taken && !limiter.is_scarce() && limiter.recall_all() {
        is_taken = try_take_permit(options, head, keys, &mut extras);
    }
    if !is_taken {
        let violation = limit_exceeded(Reason::Full, Phase::RequestHead, limiter.limit());
        return Err(Denied {
            violation,
            counted: extras.and_then(|extras| extras.counted),
        });
    }
    if let Err(violation) = finish_admission(options) {
        match extras {
            None => limiter.release(PermitKind::Common),
            Some(extras) => limiter.release_with_extras(extras),
        }
        return Err(Denied {
            violation,
            counted: None,
        });
    }
    Ok(extras)
}

/// Admits a request that holds its first permit, if one more may be present.
#[inline]
pub(crate) fn finish_admission(options: &Options) -> Result<(), Violation> {
    let limiter = &*options.limiter;
    let (present, max_present) = (limiter.present(), limiter.max_present(options.max_present));
    limiter.update_scarcity(present, max_present);
    if present > max_present && !limiter.make_room(max_present, options.rules().enforces) {
        return Err(limit_exceeded(
            Reason::Full,
            Phase::RequestHead,
            max_present,
        ));
    }
    limiter.count_admitted();
    Ok(())
}

/// The violation of a limit of `max`. The observed value is one more.
pub(crate) fn limit_exceeded(reason: Reason, phase: Phase, max: usize) -> Violation {
    let max = max as u64;
    let observed = max.saturating_add(1);
    Violation::new(Guard::ConcurrencyLimit, reason, phase, max, observed)
}

/// Counts one more request of the client.
#[inline(never)]
fn count_client(
    options: &Options,
    head: &RequestHead<'_>,
    keys: &mut Keys,
    max: usize,
) -> Result<Option<Box<PermitExtras>>, Denied> {
    let Some(client) = options.client_key(head, keys) else {
        return Ok(None);
    };
    let Some(counted) = options.limiter.client_counts().try_count(client, max) else {
        return Err(Denied {
            violation: limit_exceeded(Reason::ClientFull, Phase::RequestHead, max),
            counted: None,
        });
    };
    Ok(Some(Box::new(PermitExtras {
        counted: Some(counted),
        ..PermitExtras::default()
    })))
}

#[inline]
fn try_take_permit(
    options: &Options,
    head: &RequestHead<'_>,
    keys: &mut Keys,
    extras: &mut Option<Box<PermitExtras>>,
) -> bool {
    match options.fair_share() {
        Some(fair_share) if options.limiter.is_half_taken() => {
            try_take_fair_permit(options, fair_share, head, keys, extras)
        }
        _ => options.limiter.try_take_common() || try_take_reserve_permit(options, head, extras),
    }
}

/// Takes a permit while half of them are taken, so that the client matters.
#[inline(never)]
fn try_take_fair_permit(
    options: &Options,
    fair_share: &FairShare,
    head: &RequestHead<'_>,
    keys: &mut Keys,
    extras: &mut Option<Box<PermitExtras>>,
) -> bool {
    let client = options.client_key(head, keys);
    let is_light = client.is_some_and(|client| fair_share.is_light(client));
    let priority = if is_light {
        Priority::NewLight
    } else {
        Priority::NewHeavy
    };
    if is_light {
        options.limiter.grant_to_light_waiters();
    }
    let Some(kind) = options.limiter.try_take(priority, true) else {
        return try_take_reserve_permit(options, head, extras);
    };
    let extras = extras.get_or_insert_default();
    extras.kind = kind;
    extras.charge = client.map(|client| fair_share.start(client));
    true
}

#[cold]
fn try_take_reserve_permit(
    options: &Options,
    head: &RequestHead<'_>,
    extras: &mut Option<Box<PermitExtras>>,
) -> bool {
    let is_taken = options
        .reserve_predicate
        .as_ref()
        .is_some_and(|predicate| predicate(head))
        && options
            .limiter
            .try_take_from_reserve(options.max_reserve_permits);
    if is_taken {
        extras.get_or_insert_default().from_reserve = true;
    }
    is_taken
}
