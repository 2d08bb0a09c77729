//! The most memory that a server behind a guard uses, and what enforces each part of it.

use super::shared::Shared;
use crate::{io::transport::MAX_UNSENT_BYTES, track::head::FREE_BYTES};
use palisade_core::{Budget, Memory};
use std::fmt;

const KIB: u64 = 1 << 10;
/// What a connection of palisade's server keeps beside its requests: the window of its request
/// bodies on HTTP/2, and everything else. `tests/t16_memory.rs` measures it.
const CONNECTION_BYTES: u64 = (512 + 256) * KIB;
/// What it keeps of a request: the send buffer, a piece of the response, the task, and a head that
/// is not charged. `tests/t16_memory.rs` measures it.
const REQUEST_BYTES: u64 = (64 + 16 + 4) * KIB + FREE_BYTES;

/// The most memory that a server behind a guard uses by its own doing, part by part. As text, one
/// line. Returned by [`ConnGuard::memory_bound`](crate::ConnGuard::memory_bound).
///
/// It holds for `palisade::serve` with the default settings of `Http`, where the guard enforces its
/// limits. What handlers allocate comes on top, as do the pieces of responses as the app makes
/// them, and the tables of layers.
///
/// The sum may exceed the limit of the memory, because a connection rarely uses what it may use.
/// Above 80 % of the limit the [steps](crate#memory) of the guard hold it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryBound {
    /// Bytes that were in use when the guard was built: the program itself. 0 if that is not known.
    /// Nothing limits them.
    pub base: u64,
    /// Bytes of the tables of the guard and of the budget. Their sizes are fixed.
    pub tables: u64,
    /// Bytes of request bodies, large heads and unread responses, limited by
    /// [`byte_budget`](crate::ConnGuardBuilder::byte_budget). `None` if there is no limit. The sum
    /// does not contain them then.
    pub budget: Option<u64>,
    /// Connections, limited by [`max_connections`](crate::ConnGuardBuilder::max_connections).
    pub connections: u64,
    /// Bytes of one connection, limited by the settings of the server.
    pub connection_bytes: u64,
    /// Requests, limited by [`max_in_flight`](crate::ConnGuardBuilder::max_in_flight).
    pub requests: u64,
    /// Bytes of one request without those that are charged to the budget, limited by the settings
    /// of the server.
    pub request_bytes: u64,
    /// Bytes of one connection that the kernel keeps, received and unsent, limited by
    /// [`receive_buffer`](crate::ConnGuardBuilder::receive_buffer) and
    /// [`TCP_NOTSENT_LOWAT`](crate#sockets). `None` if the first is not limited. What is sent and
    /// not acknowledged comes on top.
    pub kernel_bytes: Option<u64>,
    /// The limit of the memory in bytes, if it is known.
    pub limit: Option<u64>,
}

impl MemoryBound {
    pub(crate) fn of(shared: &Shared) -> Self {
        let (limits, gate) = (&shared.limits, &shared.totals.memory);
        Self {
            base: shared.base,
            tables: shared.table_bytes(),
            budget: gate.budget.as_ref().map(Budget::limit),
            connections: limits.connections as u64,
            connection_bytes: CONNECTION_BYTES,
            requests: limits.max_in_flight as u64,
            request_bytes: REQUEST_BYTES,
            // The kernel doubles the value.
            kernel_bytes: limits
                .receive_buffer
                .map(|bytes| 2 * u64::from(bytes) + u64::from(MAX_UNSENT_BYTES)),
            limit: gate.memory.as_ref().and_then(Memory::least_limit),
        }
    }

    /// Returns the sum in bytes of all parts but the kernel's.
    pub fn total(&self) -> u64 {
        let connections = self.connections.saturating_mul(self.connection_bytes);
        let requests = self.requests.saturating_mul(self.request_bytes);
        [self.tables, self.budget.unwrap_or(0), connections, requests]
            .into_iter()
            .fold(self.base, u64::saturating_add)
    }

    /// Returns the part of the kernel in bytes, which is not in the sum. `None` if it is not
    /// limited.
    pub fn kernel_total(&self) -> Option<u64> {
        Some(self.connections.saturating_mul(self.kernel_bytes?))
    }
}

impl fmt::Display for MemoryBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let Self {
            connections,
            requests,
            ..
        } = self;
        write!(f, "at most {} MiB", mib(self.total()))?;
        if let Some(limit) = self.limit {
            write!(f, " of {}", mib(limit))?;
        }
        write!(
            f,
            ": {} at the start, {} of tables, ",
            mib(self.base),
            mib(self.tables)
        )?;
        match self.budget {
            Some(bytes) => write!(f, "{} by byte_budget, ", mib(bytes))?,
            None => f.write_str("bodies without a byte_budget, ")?,
        }
        let (connection, request) = (self.connection_bytes / KIB, self.request_bytes / KIB);
        write!(f, "{connections} x {connection} KiB by max_connections, ")?;
        write!(
            f,
            "{requests} x {request} KiB by max_in_flight; the kernel "
        )?;
        match (self.kernel_bytes, self.kernel_total()) {
            (Some(bytes), Some(total)) => {
                let (bytes, total) = (bytes / KIB, mib(total));
                write!(f, "{total}: {connections} x {bytes} KiB by receive_buffer")?;
            }
            _ => f.write_str("without a receive_buffer")?,
        }
        let sum = self
            .total()
            .saturating_add(self.kernel_total().unwrap_or(u64::MAX));
        if self.limit.is_some_and(|limit| sum > limit) {
            f.write_str("; what exceeds the limit is held off from 80 % of it on")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConnGuard, ConnGuardBuilder};

    const MIB: u64 = 1 << 20;

    /// A guard in memory of this size, of which `used` are in use. The limit on files is that of
    /// the machine.
    fn builder(limit: u64, used: u64, connections: usize) -> ConnGuardBuilder {
        let memory = Memory::reported(limit).unwrap();
        memory.report(used);
        let budget = Budget::new(limit / 4).unwrap();
        let builder = ConnGuard::builder().max_connections(connections);
        builder.memory(memory).byte_budget(budget)
    }

    #[test]
    fn the_parts_follow_the_options() {
        let guard = builder(256 * MIB, 8 * MIB, 1024).build().unwrap();
        let bound = guard.memory_bound();
        assert_eq!((bound.base, bound.limit), (8 * MIB, Some(256 * MIB)));
        assert_eq!((bound.connections, bound.requests), (1024, 4096));
        assert_eq!(bound.budget, Some(64 * MIB));
        assert_eq!(bound.kernel_bytes, Some((512 + 64) * KIB));
        let sum = 8 * MIB + bound.tables + 64 * MIB + 768 * MIB + 4096 * 92 * KIB;
        assert_eq!(bound.total(), sum);
        assert_eq!(bound.kernel_total(), Some(576 * MIB));
        assert!((512 * KIB..MIB).contains(&bound.tables), "{}", bound.tables);
        // Memory that is in use later does not count.
        guard
            .shared()
            .totals
            .memory
            .memory
            .as_ref()
            .unwrap()
            .report(99 * MIB);
        assert_eq!(guard.memory_bound(), bound);
    }

    #[test]
    fn the_text_says_what_enforces_each_part_and_what_exceeds_the_limit() {
        let small = builder(1 << 40, 0, 10).max_in_flight(10).build().unwrap();
        let text = "at most 262154 MiB of 1048576: 0 at the start, 1 of tables, \
                    262144 by byte_budget, 10 x 768 KiB by max_connections, \
                    10 x 92 KiB by max_in_flight; \
                    the kernel 6: 10 x 576 KiB by receive_buffer";
        assert_eq!(small.memory_bound().to_string(), text);
        let unlimited = builder(MIB, 0, 1).byte_budget(None).receive_buffer(None);
        let bound = unlimited.build().unwrap().memory_bound();
        let text = bound.to_string();
        assert!(
            text.contains("bodies without a byte_budget, 1 x 768 KiB"),
            "{text}"
        );
        let end = "the kernel without a receive_buffer; what exceeds the limit is held off from \
                   80 % of it on";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn a_budget_above_the_limit_of_the_memory_is_refused() {
        let build = |bytes| {
            let memory = Memory::reported(MIB).unwrap();
            let budget = Budget::new(bytes).unwrap();
            ConnGuard::builder()
                .memory(memory)
                .byte_budget(budget)
                .build()
        };
        build(MIB).unwrap();
        let error = build(MIB + 1).unwrap_err();
        assert_eq!(error.faults()[0].field, "byte_budget");
        assert_eq!(
            error.to_string(),
            "the connection guard cannot be built:\n  byte_budget is 1048577, allowed is at most \
             the limit of the memory, 1048576"
        );
        // Without memory nothing is known of a limit.
        let budget = Budget::new(u64::MAX).unwrap();
        let builder = ConnGuard::builder().memory(None).byte_budget(budget);
        assert_eq!(builder.build().unwrap().memory_bound().limit, None);
    }
}
