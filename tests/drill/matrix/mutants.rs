//! What is switched off, and what has no mutant.

use palisade::{
    Guard, Mode, Quota, Stack,
    conn::{ConnGuard, ConnGuardBuilder},
    serve::{Http, HttpBuilder},
    slow_body::Pace,
};
use std::time::Duration;

/// The timeouts of the server, which a drill outlasts.
const TIMEOUT: Duration = Duration::from_secs(1);
/// The timeout of a write: a slow phone opens its window every second or two.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// A timeout that no drill outlasts.
const NO_TIMEOUT: Duration = Duration::from_secs(3_600);
/// More places than there are attackers: timeouts alone end them.
const PLACES: usize = 2_000;

/// The bounds of a server, before they are built.
pub(super) struct Bounds {
    pub(super) conn: ConnGuardBuilder,
    pub(super) stack: Stack,
    pub(super) http: HttpBuilder,
}

impl Bounds {
    pub(super) fn new() -> Self {
        let conn = ConnGuard::builder()
            .max_connections(PLACES)
            .max_per_client(None)
            .first_request_timeout(TIMEOUT)
            .header_timeout(TIMEOUT)
            .idle_timeout(TIMEOUT)
            .write_timeout(WRITE_TIMEOUT);
        let pace = Pace::builder().window(TIMEOUT).grace(TIMEOUT).gap(TIMEOUT);
        let stack = Stack::edge()
            .rate_limit(Quota::per_second(50).burst(100))
            .max_body(1 << 20)
            .pace(pace);
        Self {
            conn,
            stack,
            http: Http::builder(),
        }
    }

    fn conn(mut self, change: fn(ConnGuardBuilder) -> ConnGuardBuilder) -> Self {
        self.conn = change(self.conn);
        self
    }

    fn off(mut self, guard: Guard) -> Self {
        self.stack = self.stack.mode_of(guard, Mode::Off);
        self
    }
}

/// A server with one guard or bound switched off.
pub(super) struct Mutant {
    /// The guard, by its label.
    pub(super) guard: &'static str,
    /// The option.
    pub(super) bound: &'static str,
    pub(super) change: fn(Bounds) -> Bounds,
    /// The attacks that are meant for it.
    pub(super) attacks: &'static [&'static str],
}

pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        guard: "connection",
        bound: "ConnGuardBuilder::mode",
        change: |bounds| bounds.conn(|conn| conn.mode(Mode::Off)),
        attacks: &["silent"],
    },
    Mutant {
        guard: "connection",
        bound: "ConnGuardBuilder::first_request_timeout",
        change: |bounds| bounds.conn(|conn| conn.first_request_timeout(NO_TIMEOUT)),
        attacks: &["silent", "dripped-head"],
    },
    Mutant {
        guard: "connection",
        bound: "ConnGuardBuilder::header_timeout",
        change: |bounds| bounds.conn(|conn| conn.header_timeout(NO_TIMEOUT)),
        attacks: &["head-after-chunked-post"],
    },
    Mutant {
        guard: "connection",
        bound: "ConnGuardBuilder::idle_timeout",
        change: |bounds| bounds.conn(|conn| conn.idle_timeout(NO_TIMEOUT)),
        attacks: &["keep-alive-silence", "pipelined-silence", "h2-idle"],
    },
    Mutant {
        guard: "connection",
        bound: "ConnGuardBuilder::write_timeout",
        change: |bounds| bounds.conn(|conn| conn.write_timeout(NO_TIMEOUT)),
        attacks: &["slow-reader"],
    },
    Mutant {
        guard: "slow_body",
        bound: "mode_of(Guard::SlowBody, Mode::Off)",
        change: |bounds| bounds.off(Guard::SlowBody),
        attacks: &["slow-body", "half-sent-upload"],
    },
    Mutant {
        guard: "rate_limit",
        bound: "mode_of(Guard::RateLimit, Mode::Off)",
        change: |bounds| bounds.off(Guard::RateLimit),
        attacks: &["flood-from-one-address"],
    },
    Mutant {
        guard: "body_limit",
        bound: "mode_of(Guard::BodyLimit, Mode::Off)",
        change: |bounds| bounds.off(Guard::BodyLimit),
        attacks: &["declared-huge-body"],
    },
];

/// Attacks that are held whatever is switched off.
pub(super) const CONTROLS: &[&str] = &["ambiguous-length", "forty-assets"];

/// The guards and bounds without a mutant, and why.
pub(super) const GUARD_GAPS: &[(&str, &str)] = &[
    ("ban", "no attack goes on after it has been refused often"),
    (
        "load_shed",
        "`cpu-overload` needs a child process: `.ci/past` has it, with a server of before",
    ),
    ("timeout", "no attack makes a handler wait"),
    (
        "concurrency_limit",
        "a flood that it refuses takes its permits from honest clients, too",
    ),
    (
        "ConnGuardBuilder::max_connections",
        "evicts where places are short: the drills with `places` in `tests/drill` have it",
    ),
    (
        "ConnGuardBuilder::max_per_client",
        "attackers come from many addresses",
    ),
    (
        "ConnGuardBuilder::max_overhead",
        "frames without a purpose cost less time than honest clients notice",
    ),
    (
        "ConnGuardBuilder::max_cancelled",
        "so do streams that are cancelled, with the limits of `Http` behind it",
    ),
    (
        "HttpBuilder",
        "its limits are on memory, which is not measured in a thread",
    ),
];

/// The attacks without a mutant, and why.
pub(super) const ATTACK_GAPS: &[(&[&str], &str)] = &[
    (
        &[
            "head-burst-then-silence",
            "one-byte-per-window",
            "h2-half-preface",
            "h2-silent",
            "h2-dripped-headers",
            "h2-rare-requests",
            "rare-requests",
        ],
        "other shapes of `silent`, `dripped-head` and `h2-idle`, by the same \
         timeouts: not run",
    ),
    (
        &["sipping-reader", "h2-slow-body", "h2-half-sent-upload"],
        "other shapes of `slow-reader` and `slow-body`: not run",
    ),
    (
        &[
            "zero-window",
            "one-byte-window",
            "h2-large-heads-stalled",
            "h2-huge-heads",
            "endless-head",
            "one-byte-chunks",
            "h2-tiny-data",
        ],
        "they take memory, which is not measured in a thread",
    ),
    (
        &[
            "rapid-reset",
            "made-you-reset",
            "paced-reset",
            "continuation-flood",
            "ping-flood",
            "settings-flood",
            "priority-flood",
            "empty-data-flood",
            "ping-beside-reset-tunnel",
        ],
        "honest clients notice less than the guard counts, and several guards hold each",
    ),
    (
        &["flood-from-many-addresses"],
        "the concurrency limit refuses honest clients as well",
    ),
    (
        &["pipelined-requests", "h2-flood-from-one-address"],
        "other shapes of `flood-from-one-address`: not run",
    ),
    (
        &["invented-identities", "h2-invented-identities"],
        "the address of the peer is the key unless proxies are trusted: a wrong \
         key is no bound that is off",
    ),
    (
        &["ambiguous-length", "h2-malformed"],
        "hyper refuses them, and no option allows them",
    ),
    (&["churn"], "hardly any work, with every guard or none"),
    (
        &[
            "silent-handshake",
            "dripped-handshake",
            "handshake-flood",
            "unfinished-handshakes",
        ],
        "they need TLS: `tests/drill/tls.rs` has them",
    ),
    (
        &["file-limit", "held-open-uploads", "cpu-overload"],
        "they need a child process: `.ci/past` has the last two, with a server of before",
    ),
    (
        &[
            "forty-assets",
            "hundred-behind-one-address",
            "slow-steady-upload",
            "pooled-connection",
            "returning-client",
        ],
        "honest clients, which a guard refuses and its absence does not",
    ),
];
