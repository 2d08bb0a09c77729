//! Newcomers: honest connections that ask for all places of a server after an attack.

use crate::{
    engine::Engine,
    machine::{Actions, Event, Machine},
    plan::Plan,
    target::{Source, Target},
};
use bytes::Bytes;
use std::time::Duration;

/// The pause before a newcomer that was refused tries again.
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// Starts `count` newcomers, each from an address of its own, evenly within `ramp_up`. They send a
/// request each and stay, until the engine is dropped.
pub(crate) fn start(
    target: &Target,
    plan: &Plan,
    attack: u8,
    count: usize,
    ramp_up: Duration,
) -> Engine {
    let machines = (0..count).map(|address| {
        let source = Source::Newcomer { attack, address };
        let starts = ramp_up.mul_f64(address as f64 / count as f64);
        let machine: Box<dyn Machine> = Box::new(Newcomer {
            request: plan.get_request(),
        });
        (source, starts, machine)
    });
    Engine::run(target, Duration::MAX, None, machines)
}

/// Sends one request and stays.
struct Newcomer {
    request: Bytes,
}

impl Machine for Newcomer {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match event {
            Event::Opened => out.send(self.request.clone()),
            Event::Closed => out.reopen_at(now + RETRY_PAUSE),
            Event::Received(_) | Event::Woken => {}
        }
    }
}
