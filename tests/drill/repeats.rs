//! Each reference server several times: an attack has the same verdict in nine of ten runs.
//!
//! `.ci/repeats` sets `PALISADE_DRILL_REPEATS`, the number of runs.

use crate::{MAX_DRILLS, TURNS, servers};
use palisade_drill::Drill;
use std::collections::BTreeMap;

/// The verdicts of each attack, with how often each was given.
type Counts = BTreeMap<String, BTreeMap<String, usize>>;

fn drills() -> [(&'static str, Drill); 5] {
    let places = servers::PLACES;
    [
        ("axum", Drill::serving(servers::bare).places(places)),
        (
            "careful layers",
            Drill::serving(servers::careful).places(places),
        ),
        (
            "palisade::serve",
            Drill::serving(servers::palisade_bare).places(places),
        ),
        (
            "palisade::serve, Mode::Off",
            Drill::serving(servers::palisade_off).places(places),
        ),
        (
            "palisade as a proxy",
            Drill::serving(servers::palisade_as_a_proxy)
                .places(servers::PROXY_PLACES)
                .get("/cheap"),
        ),
    ]
}

#[tokio::test]
async fn repeats_agree_in_nine_of_ten_runs() {
    let Ok(runs) = std::env::var("PALISADE_DRILL_REPEATS") else {
        println!("skipped: PALISADE_DRILL_REPEATS is not set");
        return;
    };
    let runs: usize = runs.parse().unwrap();
    let only = std::env::var("PALISADE_DRILL_SERVER").ok();
    let _turns = TURNS.acquire_many(MAX_DRILLS).await.unwrap();
    let mut counts = BTreeMap::<&str, Counts>::new();
    for _ in 0..runs {
        for (name, drill) in drills() {
            if only.as_ref().is_some_and(|only| only != name) {
                continue;
            }
            let report = drill.quick().post("/upload").large("/large").run().await;
            for attack in report.unwrap().attacks {
                let of_server = counts.entry(name).or_default();
                let verdicts = of_server.entry(attack.name).or_default();
                *verdicts.entry(attack.verdict.to_string()).or_default() += 1;
            }
        }
    }
    assert!(!counts.is_empty(), "no server of that name");
    let mut faults = Vec::new();
    println!("| server | attack | verdicts of {runs} runs |\n|---|---|---|");
    for (server, attacks) in counts {
        for (attack, verdicts) in attacks {
            if verdicts.len() > 1 {
                println!("| {server} | {attack} | {verdicts:?} |");
            }
            // An attack after the server went down is skipped, and in the quick drill after a
            // minute.
            let all: usize = verdicts.values().sum();
            let most = verdicts.values().max().copied().unwrap_or_default();
            if most < all - all.div_ceil(10) {
                faults.push(format!("{server}: {attack}: {verdicts:?}"));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}
