//! Reports as text: the worst attack first, with what stops it.

use super::{AttackReport, Report};
use crate::{overload::Overload, text::sentence, usage::ServerUsage};
use std::fmt;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = sentence(&self.target);
        write!(
            f,
            "palisade-drill {} against {target}",
            sentence(&self.version)
        )?;
        if self.tls {
            f.write_str(" over TLS")?;
        }
        let limits = [
            self.places.map(|places| format!("{places} places")),
            self.file_limit.map(|files| format!("{files} files")),
            self.memory_limit
                .map(|bytes| format!("{} MiB", bytes >> 20)),
        ];
        let limits: Vec<_> = limits.into_iter().flatten().collect();
        if !limits.is_empty() {
            write!(f, " with {}", limits.join(", "))?;
        }
        let quick = if self.quick { ", quick" } else { "" };
        writeln!(f, ": {:.0} s{quick}, seed {}", self.seconds, self.seed)?;
        match self.grade() {
            Some(grade) => write!(f, "grade {grade}: ")?,
            None => write!(f, "no grade: ")?,
        }
        writeln!(f, "{}", self.counts())?;

        for attack in self.worst_first() {
            write_attack(f, attack)?;
        }
        if !self.skipped.is_empty() {
            writeln!(f)?;
        }
        for skipped in &self.skipped {
            let (name, reason) = (sentence(&skipped.name), sentence(&skipped.reason));
            writeln!(f, "skipped       {name}: {reason}")?;
        }
        for caution in &self.cautions {
            writeln!(f, "not ruled out: {}", sentence(caution))?;
        }
        Ok(())
    }
}

fn write_attack(f: &mut fmt::Formatter<'_>, attack: &AttackReport) -> fmt::Result {
    let verdict = attack.verdict;
    let (name, threat) = (sentence(&attack.name), sentence(&attack.threat));
    write!(f, "\n{verdict:<14}{name} ({threat}")?;
    if let Some(cve) = &attack.cve {
        write!(f, ", {}", sentence(cve))?;
    }
    writeln!(f, "): {}", sentence(&attack.title))?;
    let mut line = |label: &str, text: String| writeln!(f, "  {label:<12}{text}");
    if !attack.reason.is_empty() {
        line("because", sentence(&attack.reason))?;
    }
    for honest in &attack.honest {
        let (before, during) = (&honest.before, &honest.during);
        line(
            "honest",
            format!(
                "{}: {} of {} served, p50 {}, p99 {} (before {})",
                honest.kind,
                during.served,
                during.sent,
                latency(during.p50_ms),
                latency(during.p99_ms),
                latency(before.p99_ms),
            ),
        )?;
    }
    if let Some(overload) = &attack.overload {
        return line("overload", load(overload)).and_then(|()| write_remedies(f, attack));
    }
    let attackers = &attack.attackers;
    let mut text = format!(
        "{} attackers, {} connections, {} open at the end and {} with what \
         they took, {} sent a second",
        attackers.connections,
        attackers.opened,
        attackers.alive,
        attackers.holding,
        bytes(attackers.sent_per_second)
    );
    if let Some(left) = attackers.displaced_to {
        text.push_str(&format!(", {left} left when places were short"));
    }
    if attackers.served > 0 || attackers.refused > 0 {
        let (served, refused) = (attackers.served, attackers.refused);
        text.push_str(&format!(", {served} requests served and {refused} not"));
    }
    line("attackers", text)?;
    if let Some(server) = &attack.server {
        line("server", usage(server))?;
    }
    if let Some(price) = attackers.bytes_per_lost_request {
        line("price", format!("{} for each lost request", bytes(price)))?;
    }
    if let (Some(price), Some(connections)) = (
        attackers.bytes_per_kept_place,
        attackers.connections_per_kept_place,
    ) {
        let price = bytes(price);
        line(
            "price",
            format!("{connections:.1} connections and {price} for each kept place"),
        )?;
    }
    for caution in &attack.cautions {
        line("not ruled out", format!("  {}", sentence(caution)))?;
    }
    write_remedies(f, attack)
}

/// Writes what stops an attack that was not held.
fn write_remedies(f: &mut fmt::Formatter<'_>, attack: &AttackReport) -> fmt::Result {
    let mut line = |label: &str, text: String| writeln!(f, "  {label:<12}{text}");
    if attack.is_unstopped() {
        line("stopped by", sentence(&attack.stopped_by))?;
        for remedy in &attack.remedies {
            line("", sentence(remedy))?;
        }
    }
    Ok(())
}

/// Formats what became of an overload.
pub(super) fn load(overload: &Overload) -> String {
    format!(
        "capacity {:.0} a second with {:.1} cores busy; of {:.0} a second, {:.0} answered within 1 \
         s; {} refused, {} of them after more than 1 s",
        overload.capacity_per_second,
        overload.busy_cores,
        overload.offered_per_second,
        overload.answered_per_second,
        overload.refused,
        overload.refused_late,
    )
}

/// Formats what a server used.
pub(super) fn usage(server: &ServerUsage) -> String {
    format!(
        "memory {}, at most {}, then {}; files {}, at most {}, then {}; {:.1} s of processor time",
        bytes(server.memory_before as f64),
        bytes(server.memory_peak as f64),
        bytes(server.memory_after as f64),
        server.files_before,
        server.files_peak,
        server.files_after,
        server.cpu_seconds,
    )
}

/// Formats a latency in milliseconds.
pub(super) fn latency(milliseconds: Option<f64>) -> String {
    match milliseconds {
        Some(time) if time < 10.0 => format!("{time:.1} ms"),
        Some(time) => format!("{time:.0} ms"),
        None => "-".to_owned(),
    }
}

/// Formats a number of bytes.
fn bytes(count: f64) -> String {
    match count {
        count if count < 1_024.0 => format!("{count:.0} B"),
        count if count < 1_048_576.0 => format!("{:.0} KiB", count / 1_024.0),
        count => format!("{:.0} MiB", count / 1_048_576.0),
    }
}
