//! The round of an overload.

use super::{Run, plan};
use crate::{
    attacks::Attack,
    child::Child,
    figures::milliseconds,
    grade::Verdict,
    overload::{self, Evidence, Seen, Times, judge, pin},
    report::AttackReport,
    sample::Span,
};

impl Run {
    /// Returns what an overload needs and this drill has not.
    pub(super) fn missing_for_overload(&self) -> Option<&'static str> {
        if self.options.cpu_get.is_none() {
            Some("it needs the path of a GET that takes processor time: set `cpu_get`")
        } else if self.child.is_none() {
            Some("it needs a server in a process of its own: use `Drill::child`")
        } else if pin::cores() < 2 {
            Some("it needs two processor cores that can be assigned, one for the load (on Linux)")
        } else {
            None
        }
    }

    /// Runs an overload, and again if it was harmed or says nothing.
    pub(super) async fn overload(&mut self, attack: &Attack, number: u8) -> AttackReport {
        let first = self.overload_once(attack, number).await;
        if !matches!(first.verdict, Verdict::Harmed | Verdict::Inconclusive) {
            return first;
        }
        let second = self.overload_once(attack, number).await;
        super::confirm::confirm(&first, second)
    }

    async fn overload_once(&mut self, attack: &Attack, number: u8) -> AttackReport {
        let mut report = AttackReport::new(attack);
        let plan = plan(&self.target, &self.options, &self.schedule);
        let path = self.options.cpu_get.as_deref().unwrap_or("/");
        let request = format!("{}\r\n", plan.head("GET", path));
        let root = self.child.as_ref().map_or(0, Child::pid);
        let log = self.honest.log();
        log.forget(log.now());
        let from = log.now();
        let seen = overload::run(
            self.target.clone(),
            number,
            request.into(),
            root,
            Times::new(self.options.quick),
            !self.options.has_attackers,
            self.max_attackers,
        );
        let seen = seen.await;
        let log = self.honest.log();
        let during = Span {
            from,
            to: log.now(),
        };
        let recovery = self.recover().await;
        let exit = self.child.as_mut().and_then(Child::ended);
        let (seen, error) = match seen {
            Ok(seen) => (seen, None),
            Err(error) => (Seen::default(), Some(error)),
        };
        let (verdict, reason) = match (error, exit) {
            (_, Some(status)) => (Verdict::Down, format!("the server ended with {status}")),
            (Some(error), None) => {
                let reason = format!("processor cores cannot be assigned: {error}");
                (Verdict::Inconclusive, reason)
            }
            (None, None) => judge(&Evidence {
                overload: &seen.overload,
                served: seen.served,
                lateness: seen.lateness.max(self.honest.log().lateness(during)),
                foreign_share: seen.foreign_share,
                recovery,
                has_ended: false,
            }),
        };
        report.verdict = verdict;
        report.reason = reason;
        report.recovery_ms = recovery.map(milliseconds);
        report.overload = Some(seen.overload);
        report.series = Some(self.series(from, during, &[], &[]));
        report
    }
}
