//! How often each kind of client asks: 20 requests a second in all. Pure.

use crate::sample::Kind;
use std::time::Duration;

/// The requests of all clients together in a second.
const REQUESTS_PER_SECOND: f64 = 20.0;

/// The bytes that a phone receives in one piece, and the time that they take at 64 KiB/s.
pub(super) const DOWNLOAD_PIECE_BYTES: usize = 4 << 10;
const DOWNLOAD_PIECE: Duration = Duration::from_micros(62_500);
/// The least time between the beginnings of two downloads.
pub(super) const DOWNLOAD_INTERVAL: Duration = Duration::from_secs(1);
/// The body that a phone sends, its pieces, and the time of each at 16 KiB/s.
pub(super) const UPLOAD_BYTES: usize = 8 << 10;
pub(super) const UPLOAD_PIECE_BYTES: usize = 512;
pub(super) const UPLOAD_PIECE: Duration = Duration::from_micros(31_250);
const UPLOAD: Duration = Duration::from_millis(500);
/// The time between two looks at a connection that is open and quiet.
pub(super) const LOOK: Duration = Duration::from_millis(500);
/// The pause before a connection that was cut or refused is opened again.
pub(super) const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// The time between two connections with several streams, and the number of those.
const H2_INTERVAL: Duration = Duration::from_millis(750);
pub(super) const H2_STREAMS: usize = 3;
/// The delays of the two flights of a slow handshake.
pub(super) const FLIGHT_DELAYS: [Duration; 2] =
    [Duration::from_millis(300), Duration::from_millis(500)];
/// The time that each of them accounts for.
const FLIGHT: Duration = Duration::from_millis(400);

/// Returns the most requests of `kind` in a second, if `kinds` are all.
pub(crate) fn requests_per_second(kind: Kind, kinds: &[Kind]) -> f64 {
    if let Some(rate) = fixed(kind) {
        return rate;
    }
    let reserved: f64 = kinds.iter().filter_map(|kind| fixed(*kind)).sum();
    let others = kinds.iter().filter(|kind| fixed(**kind).is_none()).count();
    (REQUESTS_PER_SECOND - reserved) / others.max(1) as f64
}

/// Returns the rate of a kind that has one of its own. The others share what is left.
fn fixed(kind: Kind) -> Option<f64> {
    match kind {
        Kind::NewConnection | Kind::KeepAlive | Kind::SmallPost => None,
        Kind::PhoneUpload => Some(1.0 / UPLOAD.as_secs_f64()),
        Kind::PhoneDownload => Some(1.0 / DOWNLOAD_INTERVAL.as_secs_f64()),
        Kind::EventStream | Kind::WebSocket => Some(1.0 / REOPEN_PAUSE.as_secs_f64()),
        Kind::Http2 => Some(H2_STREAMS as f64 / H2_INTERVAL.as_secs_f64()),
        Kind::SlowHandshake => Some(1.0 / (2 * FLIGHT).as_secs_f64()),
    }
}

/// Returns the time that one sample of `kind` accounts for, if `kinds` are all.
pub(crate) fn interval(kind: Kind, kinds: &[Kind]) -> Duration {
    match kind {
        Kind::NewConnection | Kind::KeepAlive | Kind::SmallPost => {
            Duration::from_secs_f64(1.0 / requests_per_second(kind, kinds))
        }
        Kind::PhoneUpload => UPLOAD,
        Kind::PhoneDownload => DOWNLOAD_PIECE,
        Kind::EventStream | Kind::WebSocket => LOOK,
        Kind::Http2 => H2_INTERVAL,
        Kind::SlowHandshake => FLIGHT,
    }
}

/// Returns the time that a client takes for itself until it can be served.
pub(crate) fn own_time(kind: Kind) -> Duration {
    match kind {
        Kind::PhoneUpload => UPLOAD,
        Kind::SlowHandshake => FLIGHT_DELAYS[0],
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Kind; 9] = [
        Kind::NewConnection,
        Kind::KeepAlive,
        Kind::SmallPost,
        Kind::PhoneUpload,
        Kind::PhoneDownload,
        Kind::EventStream,
        Kind::Http2,
        Kind::WebSocket,
        Kind::SlowHandshake,
    ];

    #[test]
    fn all_kinds_together_send_20_requests_a_second() {
        for kinds in [&ALL[..], &ALL[..2], &ALL[..3], &ALL[..5]] {
            let rates = kinds.iter().map(|kind| requests_per_second(*kind, kinds));
            let all: f64 = rates.sum();
            assert!((all - 20.0).abs() < 1e-9, "{kinds:?}: {all}");
        }
        assert_eq!(interval(Kind::KeepAlive, &ALL[..2]).as_millis(), 100);
    }

    #[test]
    fn a_second_is_enough_for_the_samples_that_a_verdict_needs() {
        for kind in ALL {
            let samples = 1.0 / interval(kind, &ALL).as_secs_f64();
            assert!(samples >= kind.least_samples() as f64, "{kind}: {samples}");
        }
    }

    #[test]
    fn phones_have_the_rates_that_they_are_named_for() {
        let kib = |bytes: usize, time: Duration| bytes as f64 / 1_024.0 / time.as_secs_f64();
        assert!((kib(DOWNLOAD_PIECE_BYTES, DOWNLOAD_PIECE) - 64.0).abs() < 1e-9);
        assert!((kib(UPLOAD_PIECE_BYTES, UPLOAD_PIECE) - 16.0).abs() < 1e-9);
        assert!((kib(UPLOAD_BYTES, UPLOAD) - 16.0).abs() < 1e-9);
    }
}
