//! An HTTP/2 attacker that sends something at its opening, and something at each interval.

use super::session::Session;
use crate::{
    attacks::pause::reopen,
    machine::{Actions, Event, Machine},
    plan::Plan,
};
use std::time::Duration;

/// What an attacker sends, in the frames of its session.
pub(super) type Frames = fn(&Plan, &mut Session) -> Vec<u8>;

/// Begins a connection, sends `first`, then `again` at each interval, and answers SETTINGS and
/// PING. What is sent at an interval is the same each time but for the numbers of streams.
pub(super) struct Beat {
    pub(super) plan: Plan,
    pub(super) settings: &'static [(u16, u32)],
    pub(super) first: Frames,
    pub(super) again: Option<(Duration, Frames)>,
    /// Whether it goes on after the attack has ended, to keep what it took.
    pub(super) keeps_on: bool,
    /// Whether it acknowledges SETTINGS and PING; not in the middle of a header block.
    pub(super) answers: bool,
    pub(super) session: Session,
}

impl Beat {
    pub(super) fn new(plan: &Plan, first: Frames) -> Self {
        Self {
            plan: plan.clone(),
            settings: &[],
            first,
            again: None,
            keeps_on: true,
            answers: true,
            session: Session::default(),
        }
    }

    /// Sends `frames` again and again.
    pub(super) fn every(mut self, interval: Duration, frames: Frames) -> Self {
        self.again = Some((interval, frames));
        self
    }

    /// Ends with the attack.
    pub(super) fn until_the_end(mut self) -> Self {
        self.keeps_on = false;
        self
    }
}

impl Machine for Beat {
    fn on(&mut self, event: Event<'_>, now: Duration, out: &mut Actions) {
        match (event, self.again) {
            (Event::Opened, _) => {
                self.session.open(self.settings, out);
                out.send((self.first)(&self.plan, &mut self.session));
            }
            (Event::Received(bytes), _) => {
                if self.answers {
                    self.session.answer(bytes, out);
                }
                return;
            }
            (Event::Closed, _) => return reopen(now, out),
            (Event::Woken, Some((_, frames))) if self.keeps_on || now < self.plan.ends => {
                out.send(frames(&self.plan, &mut self.session));
            }
            (Event::Woken, _) => return,
        }
        if let Some((interval, _)) = self.again {
            out.wake_at(now + interval);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::frames::{ACK, PING, PREFACE, Reader, Received, SETTINGS, frame};
    use super::*;
    use crate::{attacks::Attack, machine::trace};

    /// Returns the frames that the attack `name` sends, and when.
    pub(in super::super) fn frames_of(
        attacks: &[Attack],
        name: &str,
        seconds: u64,
    ) -> Vec<(Duration, Vec<Received>)> {
        let attack = attacks.iter().find(|attack| attack.name == name).unwrap();
        let plan = Plan {
            post: Some("/up".to_owned()),
            large: Some("/large".to_owned()),
            ..Plan::new("a")
        };
        let sent = trace(&mut *(attack.make)(&plan, 0), Duration::from_secs(seconds));
        let frames = sent.into_iter().map(|(at, bytes)| {
            let (mut reader, mut seen) = (Reader::default(), Vec::new());
            let bytes = bytes.strip_prefix(PREFACE).unwrap_or(&bytes);
            reader.read(bytes, |frame| seen.push(frame));
            (at, seen)
        });
        frames.collect()
    }

    /// Returns types, flags and streams.
    pub(in super::super) fn brief(frames: &[Received]) -> Vec<(u8, u8, u32)> {
        let frames = frames.iter();
        frames
            .map(|frame| (frame.kind, frame.flags, frame.stream))
            .collect()
    }

    #[test]
    fn settings_and_pings_are_answered_and_a_closed_connection_is_replaced() {
        let mut beat = Beat::new(&Plan::new("a"), |_, _| Vec::new());
        let mut out = Actions::default();
        beat.on(Event::Opened, Duration::ZERO, &mut out);
        assert_eq!(out.sent(), [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat());
        let mut out = Actions::default();
        let ping = frame(PING, 0, 0, b"12345678");
        beat.on(Event::Received(&ping), Duration::ZERO, &mut out);
        assert_eq!(out.sent(), frame(PING, ACK, 0, b"12345678"));
        let mut out = Actions::default();
        beat.on(Event::Closed, Duration::ZERO, &mut out);
        assert_eq!(out.reopening(), Some(Duration::from_millis(500)));
    }
}
