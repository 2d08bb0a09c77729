//! The drill against palisade's own server, with its guard and without it (T01, T03). The same
//! attacks tell the two apart.

use axum::{Router, routing::get};
use palisade::{Mode, conn::ConnGuard};
use palisade_drill::{Drill, Report, Verdict};
use std::time::Duration;

const PLACES: usize = 200;

async fn drill(mode: Mode) -> Report {
    let second = Duration::from_secs(1);
    let drill = Drill::serving(async move |listener| {
        let guard = ConnGuard::builder()
            .mode(mode)
            .max_connections(PLACES)
            .first_request_timeout(2 * second)
            .header_timeout(2 * second)
            .build()
            .unwrap();
        let app = Router::new().route("/", get("hello"));
        palisade::serve(guard.listen(listener), app).await
    });
    let drill = drill.places(PLACES).quick();
    let drill = drill.only("silent").only("dripped-head");
    drill.run().await.unwrap()
}

#[tokio::test]
async fn the_connection_guard_holds_what_is_kept_without_it() {
    let _turn = crate::TURNS.acquire().await.unwrap();
    for (mode, is_held) in [(Mode::Enforce, true), (Mode::Off, false)] {
        let mut judged = 0;
        // A busy machine says nothing, and is not busy for ever.
        for _ in 0..crate::MAX_RUNS {
            let report = drill(mode).await;
            assert_eq!(report.attacks.len(), 2, "{report}");
            let said = report.attacks.iter().map(|attack| attack.verdict);
            let said = said.filter(|verdict| *verdict != Verdict::Inconclusive);
            for verdict in said {
                assert_eq!(verdict == Verdict::Held, is_held, "{report}");
                judged += 1;
            }
            if judged > 0 {
                break;
            }
        }
        assert!(judged > 0, "no verdict with {mode:?}");
    }
}
