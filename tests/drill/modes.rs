//! The drill against palisade's own server, with its guard and without it (T01, T03). The same
//! attacks tell the two apart.

use axum::{Router, routing::get};
use palisade::{Mode, conn::ConnGuard};
use palisade_drill::{Drill, Grade, Report, Verdict};
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
    let guarded = drill(Mode::Enforce).await;
    for attack in &guarded.attacks {
        // A busy machine says nothing.
        let expected = [Verdict::Held, Verdict::Inconclusive];
        assert!(expected.contains(&attack.verdict), "{guarded}");
    }
    let bare = drill(Mode::Off).await;
    for attack in &bare.attacks {
        assert_ne!(attack.verdict, Verdict::Held, "{bare}");
    }
    assert!(bare.grade() <= Some(Grade::B), "{bare}");
}
