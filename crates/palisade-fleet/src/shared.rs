//! What all handles of a fleet have in common.

use crate::{
    digest::Secret,
    machine::{Machine, Micros},
};
use palisade_core::{ConfigError, Mode, Recorder};
use palisade_guard::{Clock, Gcra};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
};
use tokio::sync::{Notify, watch};

/// What the clones and the policies hold. The task ends with the last of them.
pub(crate) struct Handle(pub(crate) Arc<Shared>);

/// What all clones have in common.
pub(crate) struct Shared {
    pub(crate) state: Mutex<State>,
    pub(crate) clock: Clock,
    /// Wakes the task that asks the store.
    pub(crate) changed: Notify,
    pub(crate) secret: Secret,
    pub(crate) mode: Mode,
    pub(crate) recorder: Recorder,
    /// The microseconds of the last call.
    pub(crate) round_trip: AtomicU64,
    /// The milliseconds by which the clock of the store has moved; 0 if it tells its time to the
    /// script.
    pub(crate) skew: AtomicU64,
    pub(crate) is_stopping: AtomicBool,
    /// Whether the task has ended.
    pub(crate) ended: watch::Sender<bool>,
}

pub(crate) struct State {
    pub(crate) machine: Machine,
    policies: Vec<Joined>,
    last_serial: u32,
}

/// The place of a policy that has joined.
pub(crate) struct Place {
    pub(crate) index: usize,
    pub(crate) serial: u32,
    /// The rule of its only quota.
    pub(crate) only_rule: Option<u16>,
    /// Keeps the name of the policy.
    pub(crate) alive: Arc<()>,
}

/// A policy that has joined.
struct Joined {
    name: Arc<str>,
    /// Without it, the name is free.
    alive: Weak<()>,
    quotas: Vec<Gcra>,
    /// The number of the rule of the first quota, for each multiple of the quotas.
    rules: Vec<(u32, Vec<Option<u16>>)>,
}

/// The most policies of one fleet, at one time.
const MAX_POLICIES: usize = 64;

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Shared {
    /// Lets the task report what is left, and end.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Relaxed);
        self.changed.notify_one();
    }

    /// No call will be made any more.
    pub(crate) fn end(&self) {
        let wakers = self.state.lock().machine.end();
        wakers.into_iter().for_each(Waker::wake);
    }

    pub(crate) fn now(&self) -> Micros {
        self.clock.now()
    }

    /// Wakes the task if it must look again.
    #[inline]
    pub(crate) fn wake(&self, is_changed: bool) {
        if is_changed {
            self.changed.notify_one();
        }
    }
}

impl State {
    pub(crate) fn new(machine: Machine) -> Self {
        Self {
            machine,
            policies: Vec::new(),
            last_serial: 0,
        }
    }

    /// Adds a policy. `error` has the faults that it has already.
    ///
    /// # Errors
    ///
    /// If there are any faults, if its name is in use, or if there are too many policies.
    pub(crate) fn join(
        &mut self,
        name: &Arc<str>,
        quotas: &[Gcra],
        mut error: ConfigError,
    ) -> Result<Place, ConfigError> {
        self.policies.iter_mut().for_each(Joined::forget_if_dropped);
        let is_taken = self.policies.iter().any(|policy| policy.name == *name);
        let allowed = "a name of its own for each policy: use Fleet::named";
        error.check(!is_taken, "named", name, allowed);
        let vacant = self.policies.iter().position(Joined::is_vacant);
        let index = vacant.unwrap_or(self.policies.len());
        error.check(index < MAX_POLICIES, "policies", &(index + 1), "64 at most");
        error.into_result()?;
        let alive = Arc::new(());
        let joined = Joined {
            name: Arc::clone(name),
            alive: Arc::downgrade(&alive),
            quotas: quotas.to_vec(),
            rules: Vec::new(),
        };
        match self.policies.get_mut(index) {
            Some(place) => *place = joined,
            None => self.policies.push(joined),
        }
        // So that nothing is left of the policy that was at this place before.
        self.last_serial += 1;
        let only_rule = match self.rules_of(index, 1) {
            [rule] => *rule,
            _ => None,
        };
        Ok(Place {
            index,
            serial: self.last_serial,
            only_rule,
            alive,
        })
    }

    /// Returns the rules of the accounts that have `times` the quotas of the policy at `index`.
    pub(crate) fn rules_of(&mut self, index: usize, times: u32) -> &[Option<u16>] {
        let Self {
            machine, policies, ..
        } = self;
        let Joined { rules, quotas, .. } = &mut policies[index];
        let known = rules.iter().position(|(of, _)| *of == times);
        let place = known.unwrap_or_else(|| {
            let rule = |gcra: &Gcra| {
                let gcra = gcra.times(times);
                machine.rule(gcra.period(), gcra.burst())
            };
            rules.push((times, quotas.iter().map(rule).collect()));
            rules.len() - 1
        });
        &rules[place].1
    }
}

impl Joined {
    fn is_vacant(&self) -> bool {
        self.name.is_empty()
    }

    fn forget_if_dropped(&mut self) {
        if self.alive.strong_count() == 0 {
            self.name = Arc::from("");
        }
    }
}
