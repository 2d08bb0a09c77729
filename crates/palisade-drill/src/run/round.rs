//! One round of one attack.

use super::{Run, plan};
use crate::{
    attacks::{Attack, InQuick, Protocol, Takes},
    bounds::MAX_CONNECTIONS,
    child::{Child, Group, Meter},
    engine::{Counts, Engine},
    figures::{figures, milliseconds},
    grade::Verdict,
    honest::pace,
    options::more_than,
    processor::Reading,
    report::{AttackReport, AttackersReport},
    sample::Span,
    series::{self, Series},
    variation,
    verdict::{Answers, Attackers, Evidence, Honest, MAX_RECOVERY, is_kept, judge},
    wave,
};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// The interval between two looks at the honest clients after an attack.
const RECOVERY_CHECK: Duration = Duration::from_millis(20);
/// The interval between two looks at the attackers while newcomers come.
const WAVE_CHECK: Duration = Duration::from_millis(200);
/// The age from which an unfinished request is judged: what a server that holds may take at least.
const PATIENCE: Duration = Duration::from_millis(100);

/// The time for which honest clients are watched once they are served again, after harm.
const AFTER_RECOVERY: Duration = Duration::from_millis(500);
/// The interval between two looks at the number of connected attackers.
const HISTORY_INTERVAL: Duration = Duration::from_millis(100);

/// The time of the first visit of clients that return.
const FIRST_VISIT: Duration = Duration::from_millis(300);

/// What a round has seen of the attackers.
struct Seen {
    connections: usize,
    counts: Counts,
    displaced: Option<usize>,
    /// The connected attackers over time.
    history: Vec<(Duration, usize)>,
}

/// Returns what the verdict rests on, if that is what the machines tell.
fn answers(takes: Takes, counts: &Counts) -> Option<Answers> {
    let Counts {
        served,
        refused,
        passed,
        ..
    } = *counts;
    match takes {
        Takes::Nothing => Some(Answers::ToHonestClients { served, refused }),
        Takes::Passage => Some(Answers::ToTrespassers { refused, passed }),
        Takes::Places | Takes::Work => None,
    }
}

impl Run {
    /// Lets clients that return come for the first time.
    pub(super) async fn first_visit(&mut self, attack: &Attack, number: u8) {
        let schedule = self.schedule.of(attack);
        let mut plan = plan(&self.target, &self.options, &schedule);
        plan.seed = variation::of_attack(plan.seed, number);
        let clients = self.wanted(attack).min(self.max_attackers);
        let ramp_up = schedule.ramp_up;
        let engine = Engine::start(&self.target, attack, &plan, number, clients, ramp_up);
        sleep(FIRST_VISIT).await;
        engine.stop().await;
        self.visited = Some(Instant::now());
    }

    /// Waits until clients that have been here may return.
    async fn wait_for_return(&self, attack: &Attack) {
        if let (Some(visited), Some([quick, full])) = (self.visited, attack.times.returns) {
            let pause = if self.options.quick { quick } else { full };
            sleep_until(visited + pause).await;
        }
    }

    /// Runs one round and judges it.
    pub(super) async fn round(&mut self, attack: &Attack, number: u8) -> AttackReport {
        let schedule = self.schedule.of(attack);
        let log = self.honest.log();
        self.wait_for_return(attack).await;
        log.forget(log.now());
        let from = log.now();
        let reading = self.processor();
        sleep(schedule.before).await;
        let before = Span {
            from,
            to: log.now(),
        };

        let group = self.child.as_ref().and_then(Child::group);
        let kills = group.map_or(0, Group::kills);
        let meter = self.child.as_ref().map(|child| Meter::start(child.pid()));
        let meter = meter.and_then(Result::ok).flatten();
        let began = log.now();
        let (seen, during) = self.run_attackers(attack, number).await;
        let log = self.honest.log();
        let attacked = Span {
            from: began,
            to: log.now(),
        };
        let processor = self.processor();
        let processor = processor.zip(reading);
        let recovery = self.recover().await;
        let exit = self.child.as_mut().and_then(Child::ended);
        let group = self.child.as_ref().and_then(Child::group);
        let is_killed = group.is_some_and(|group| group.kills() > kills);
        let at_limit = group.filter(|_| is_killed).map(|group| {
            let mebibytes = group.limit() >> 20;
            format!("the kernel ended a process of the server at its limit of {mebibytes} MiB")
        });
        let has_ended = self.has_ended() || is_killed;

        let honest = self.figures(before, during);
        let log = self.honest.log();
        let lateness = log.lateness(before).max(log.lateness(during));
        let evidence = Evidence {
            honest: &honest,
            during,
            lateness,
            recovery,
            has_ended,
            attackers: Attackers {
                connections: seen.connections,
                opened: seen.counts.opened,
                alive: seen.counts.holding,
                displaced: seen.displaced,
                takes_places: attack.takes == Takes::Places,
                answers: answers(attack.takes, &seen.counts),
            },
        };
        let (verdict, reason) = judge(&evidence);
        let mut report = AttackReport::new(attack);
        report.verdict = verdict;
        report.processor = processor.and_then(|(now, before)| now.since(&before));
        report.lateness_ms = milliseconds(lateness);
        report.reason = match (at_limit, exit) {
            (Some(at_limit), _) => at_limit,
            (None, Some(status)) if verdict == Verdict::Down => {
                format!("the server ended with {status}")
            }
            _ => reason,
        };
        if matches!(verdict, Verdict::Harmed | Verdict::Down) && recovery.is_some() {
            sleep(AFTER_RECOVERY).await;
        }
        let log = self.honest.log();
        let mut memory_over_time = Vec::new();
        if let Some(meter) = meter {
            report.server = meter.finish().await;
            let age = |at: Instant| log.now().saturating_sub(at.elapsed());
            let memory = meter.memory().into_iter();
            memory_over_time = memory.map(|(at, bytes)| (age(at), bytes)).collect();
        }
        report.series = Some(self.series(from, attacked, &seen.history, &memory_over_time));
        report.recovery_ms = recovery.map(milliseconds);
        report.attackers = self.price(attack, &seen, &honest);
        report.honest = honest;
        if let InQuick::Less(what) = attack.in_quick
            && self.options.quick
        {
            report.cautions.push(format!("quick: {what}"));
        }
        let wanted = self.wanted(attack);
        if seen.connections < wanted {
            report.cautions.push(format!(
                "the limit on open files allows {} of {wanted} attackers: raise `ulimit -n`",
                seen.connections
            ));
        }
        let is_short = attack.takes == Takes::Places
            && self.options.admitted().is_some()
            && seen.displaced.is_none()
            && is_kept(seen.counts.holding, seen.connections);
        if is_short {
            let caution = "the limit on open files leaves none for newcomers: raise `ulimit -n`";
            report.cautions.push(caution.to_owned());
        }
        report
    }

    /// Runs the attackers. Returns what they did, and the span that is judged.
    async fn run_attackers(&self, attack: &Attack, number: u8) -> (Seen, Span) {
        let schedule = &self.schedule.of(attack);
        let log = self.honest.log();
        let mut plan = plan(&self.target, &self.options, schedule);
        plan.seed = variation::of_attack(plan.seed, number);
        let connections = self.wanted(attack).min(self.max_attackers);
        let engine = Engine::start(
            &self.target,
            attack,
            &plan,
            number,
            connections,
            schedule.ramp_up,
        );
        let mut history = vec![(log.now(), 0)];
        self.watch(&engine, schedule.ramp_up + schedule.lead_in, &mut history)
            .await;
        let from = log.now();
        self.watch(&engine, schedule.middle, &mut history).await;
        let during = Span {
            from,
            to: log.now(),
        };
        let takes_places = attack.takes == Takes::Places;
        if takes_places {
            self.watch(&engine, schedule.settle, &mut history).await;
        }
        let counts = engine.census().await;
        let mut displaced = None;
        if let Some(places) = self.options.admitted()
            && takes_places
            && is_kept(counts.holding, connections)
        {
            let rest = MAX_CONNECTIONS - connections.min(MAX_CONNECTIONS);
            let rest = rest.min(self.max_attackers.saturating_sub(connections));
            // Fewer newcomers could not displace all that stay.
            if rest >= places {
                let ramp_up = schedule.wave / 8;
                let newcomers = wave::start(&self.target, &plan, number, places, ramp_up);
                let left = self.watch_wave(&engine, connections, &mut history).await;
                displaced = Some(left);
                newcomers.stop().await;
            }
        }
        let counts = Counts {
            alive: counts.alive,
            holding: counts.holding,
            ..engine.stop().await
        };
        history.push((log.now(), 0));
        let seen = Seen {
            connections,
            counts,
            displaced,
            history,
        };
        (seen, during)
    }

    /// Returns the counters of the processor, if the processes of the server are known.
    fn processor(&self) -> Option<Reading> {
        self.roots.as_deref().and_then(Reading::take)
    }

    /// Waits for `time`, and writes the number of connected attackers into `history`.
    async fn watch(&self, engine: &Engine, time: Duration, history: &mut Vec<(Duration, usize)>) {
        let ends = Instant::now() + time;
        while Instant::now() < ends {
            sleep_until(ends.min(Instant::now() + HISTORY_INTERVAL)).await;
            history.push((self.honest.log().now(), engine.counts().alive));
        }
    }

    /// Returns the round over time, which began at `from` and ends now.
    pub(super) fn series(
        &self,
        from: Duration,
        attack: Span,
        attackers: &[(Duration, usize)],
        memory: &[(Duration, u64)],
    ) -> Series {
        let log = self.honest.log();
        let round = Span {
            from,
            to: log.now(),
        };
        let kinds = self.honest.kinds().iter();
        let honest = kinds.map(|kind| (log.samples(*kind, round), self.honest.interval(*kind)));
        series::series(&series::Seen {
            round,
            attack,
            honest: &honest.collect::<Vec<_>>(),
            attackers,
            memory,
            patience: PATIENCE,
        })
    }

    /// Waits until newcomers have displaced the attackers, or the wave is over. Returns the number
    /// of attackers that still hold something.
    async fn watch_wave(
        &self,
        engine: &Engine,
        connections: usize,
        history: &mut Vec<(Duration, usize)>,
    ) -> usize {
        let log = self.honest.log();
        let ends = log.now() + self.schedule.wave;
        loop {
            let counts = engine.census().await;
            history.push((log.now(), counts.alive));
            let left = counts.holding;
            if !is_kept(left, connections) || log.now() >= ends {
                return left;
            }
            sleep(WAVE_CHECK).await;
        }
    }

    /// Returns the number of attackers that the attack wants.
    fn wanted(&self, attack: &Attack) -> usize {
        if !self.options.has_attackers {
            return 0;
        }
        // HTTP/2 attackers take streams: few connections hold as much.
        let fills = attack.takes == Takes::Places && attack.protocol == Protocol::Http1;
        match self.options.admitted() {
            Some(places) if fills => attack.connections.max(more_than(places)),
            _ => attack.connections,
        }
    }

    /// Returns whether a server that the drill started has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        let server = self.server.as_mut();
        let child = self.child.as_mut();
        server.is_some_and(super::Worker::has_ended)
            || child.is_some_and(|child| child.ended().is_some())
    }

    /// Waits until every kind of honest client is served again. Returns how long that took; `None`
    /// if it took too long, or if the server has ended.
    pub(super) async fn recover(&mut self) -> Option<Duration> {
        let from = self.honest.log().now();
        self.honest.retry();
        loop {
            if self.has_ended() {
                return None;
            }
            let log = self.honest.log();
            let kinds = self.honest.kinds().iter();
            let served = kinds.map(|kind| {
                let end = log.served_since(*kind, from)?;
                Some(end.saturating_sub(pace::own_time(*kind)))
            });
            let served: Option<Vec<_>> = served.collect();
            if let Some(served) = served {
                let last = served.into_iter().max().unwrap_or(from);
                return Some(last.saturating_sub(from));
            }
            if log.now() - from > MAX_RECOVERY {
                return None;
            }
            sleep(RECOVERY_CHECK).await;
        }
    }

    /// Returns what each kind of honest client saw.
    fn figures(&self, before: Span, during: Span) -> Vec<Honest> {
        let log = self.honest.log();
        let of = |kind, span| {
            let interval = self.honest.interval(kind);
            figures(&log.samples(kind, span), span, interval, PATIENCE)
        };
        let kinds = self.honest.kinds().iter();
        let honest = kinds.map(|kind| Honest {
            kind: *kind,
            before: of(*kind, before),
            during: of(*kind, during),
        });
        honest.collect()
    }

    /// Returns what the attackers did, and what it cost them.
    fn price(&self, attack: &Attack, seen: &Seen, honest: &[Honest]) -> AttackersReport {
        let Counts {
            opened,
            failed,
            alive,
            holding,
            sent,
            received,
            served,
            refused,
            passed,
        } = seen.counts;
        let schedule = &self.schedule.of(attack);
        let seconds = schedule.attack().as_secs_f64();
        let lost: f64 = honest
            .iter()
            .map(|honest| {
                let wanted = schedule.middle.as_secs_f64() * self.honest.rate(honest.kind);
                (1.0 - honest.during.served_share) * wanted
            })
            .sum();
        let kept = match attack.takes {
            Takes::Places => seen.displaced.unwrap_or(holding),
            Takes::Passage => passed,
            Takes::Work | Takes::Nothing => 0,
        };
        AttackersReport {
            connections: seen.connections,
            opened,
            failed,
            alive,
            holding,
            displaced_to: seen.displaced,
            served,
            refused,
            passed,
            sent_per_second: sent as f64 / seconds,
            received_per_second: received as f64 / seconds,
            bytes_per_lost_request: (lost >= 1.0 && attack.takes != Takes::Nothing)
                .then(|| sent as f64 / lost),
            bytes_per_kept_place: (kept > 0).then(|| sent as f64 / kept as f64),
            connections_per_kept_place: (kept > 0).then(|| opened as f64 / kept as f64),
        }
    }
}
