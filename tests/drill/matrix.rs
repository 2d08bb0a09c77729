//! The mutation matrix: each guard of `palisade::serve` and of the stack switched off alone, and
//! the attacks that show it. The long test writes `docs/drill-matrix.md`.

mod mutants;

use crate::servers;
use axum::routing::get;
use mutants::{ATTACK_GAPS, Bounds, CONTROLS, GUARD_GAPS, MUTANTS, Mutant};
use palisade::Guard;
use palisade_drill::{Drill, Verdict, attacks};
use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};
use tokio::net::TcpListener;
use tower::BoxError;

/// The verdict of each attack.
type Verdicts = BTreeMap<&'static str, Verdict>;

async fn serve(listener: TcpListener, bounds: Bounds) -> Result<(), BoxError> {
    let Bounds { conn, stack, http } = bounds;
    let app = servers::app().route("/cheap", get(async || "hello\n"));
    let app = app.layer(stack.build()?);
    palisade::serve(conn.build()?.listen(listener), app)
        .http(http.build()?)
        .await?;
    Ok(())
}

/// Drills the server that `change` makes under `attacks`. Those of `worse` are expected to be worse
/// than held. An attack with another verdict is repeated: a busy machine is not busy for ever.
async fn verdicts(
    change: fn(Bounds) -> Bounds,
    attacks: &[&'static str],
    worse: &[&str],
) -> Verdicts {
    let mut verdicts = Verdicts::new();
    for _ in 0..crate::MAX_RUNS {
        let open = attacks.iter().filter(|attack| {
            let verdict = verdicts.get(*attack);
            verdict.is_none_or(|verdict| !is_expected(*verdict, worse.contains(attack)))
        });
        let open: Vec<_> = open.copied().collect();
        if open.is_empty() {
            break;
        }
        // A flood takes what is scarce, and the others a place.
        let (floods, others): (Vec<_>, Vec<_>) = open
            .into_iter()
            .partition(|attack| attack.starts_with("flood"));
        for (path, attacks) in [("/", floods), ("/cheap", others)] {
            if attacks.is_empty() {
                continue;
            }
            let drill = Drill::serving(move |listener| serve(listener, change(Bounds::new())));
            let drill = drill.get(path).post("/upload").large("/large");
            let drill = attacks
                .iter()
                .fold(drill, |drill, attack| drill.only(*attack));
            let report = drill.run().await.unwrap();
            println!("{report}");
            for attack in attacks {
                if let Some(result) = report.attack(attack) {
                    verdicts.insert(attack, result.verdict);
                }
            }
        }
    }
    verdicts
}

fn is_expected(verdict: Verdict, is_worse: bool) -> bool {
    match verdict {
        Verdict::Held => !is_worse,
        Verdict::Kept | Verdict::Harmed | Verdict::Down => is_worse,
        Verdict::Inconclusive => false,
    }
}

#[tokio::test]
async fn each_guard_that_is_switched_off_shows() {
    if !crate::is_long() {
        return;
    }
    let _turns = crate::TURNS.acquire_many(crate::MAX_DRILLS).await.unwrap();
    let mut all: Vec<_> = MUTANTS.iter().flat_map(|it| it.attacks).copied().collect();
    all.extend(CONTROLS);
    all.sort_unstable();
    all.dedup();
    let with = verdicts(|bounds| bounds, &all, &[]).await;
    let mut faults: Vec<_> = with
        .iter()
        .filter(|(_, verdict)| **verdict != Verdict::Held)
        .map(|(attack, verdict)| format!("{attack} is {verdict} with all guards"))
        .collect();
    let mut rows = Vec::new();
    for mutant in MUTANTS {
        let controls = CONTROLS.iter().filter(|it| !mutant.attacks.contains(it));
        let drilled: Vec<_> = mutant.attacks.iter().chain(controls).copied().collect();
        let without = verdicts(mutant.change, &drilled, mutant.attacks).await;
        for (attack, verdict) in &without {
            if !is_expected(*verdict, mutant.attacks.contains(attack)) {
                faults.push(format!("{attack} is {verdict} without {}", mutant.bound));
            }
        }
        rows.push((mutant, without));
    }
    fs::write(path(), document(&with, &rows)).unwrap();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn the_matrix_names_every_guard_and_attack_there_is() {
    let document = fs::read_to_string(path()).unwrap();
    let has = |name: &str| document.contains(&format!("`{name}`"));
    for attack in attacks::all() {
        let name = attack.name;
        let is_drilled = MUTANTS.iter().any(|mutant| mutant.attacks.contains(&name));
        let is_gap = ATTACK_GAPS
            .iter()
            .any(|(attacks, _)| attacks.contains(&name));
        assert!(
            is_drilled != is_gap,
            "{name}: give it a mutant or name the gap"
        );
        assert!(has(name), "{name}: {}", path().display());
    }
    for guard in Guard::ALL {
        let name = guard.as_str();
        let is_drilled = MUTANTS.iter().any(|mutant| mutant.guard == name);
        let is_gap = GUARD_GAPS.iter().any(|(gap, _)| *gap == name);
        assert!(
            is_drilled || is_gap,
            "{name}: give it a mutant or name the gap"
        );
        assert!(has(name), "{name}: {}", path().display());
    }
    for Mutant { bound, .. } in MUTANTS {
        assert!(has(bound), "{bound}");
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/drill-matrix.md")
}

fn document(with: &Verdicts, rows: &[(&Mutant, Verdicts)]) -> String {
    let mut text = String::from(INTRODUCTION);
    for (mutant, without) in rows {
        for attack in mutant.attacks {
            let word = |verdicts: &Verdicts| {
                let verdict = verdicts.get(attack);
                verdict.map_or("skipped".to_owned(), ToString::to_string)
            };
            let (guard, bound) = (mutant.guard, mutant.bound);
            let (with, without) = (word(with), word(without));
            let row = format!("| `{guard}` | `{bound}` | `{attack}` | {with} | {without} |\n");
            text.push_str(&row);
        }
    }
    text.push_str("\n## Guards whose absence no attack shows\n\n| guard | why |\n|---|---|\n");
    for (guard, why) in GUARD_GAPS {
        writeln!(text, "| `{guard}` | {why} |").unwrap();
    }
    text.push_str(
        "\n## Attacks that no guard of the matrix fails\n\n| attacks | why |\n|---|---|\n",
    );
    for (attacks, why) in ATTACK_GAPS {
        let names: Vec<_> = attacks.iter().map(|name| format!("`{name}`")).collect();
        writeln!(text, "| {} | {why} |", names.join(", ")).unwrap();
    }
    text
}

const INTRODUCTION: &str = "\
# The drill's mutation matrix

Written by `tests/drill/matrix.rs` in the long set; do not edit. Each guard of `palisade::serve` and
of its stack is switched off alone, with timeouts of a second, and places to spare. The attacks
meant for it go from *held* to worse. Two controls, `ambiguous-length` and `forty-assets`, stay
held without any of the guards.

| guard | switched off | attack | with it | without it |
|---|---|---|---|---|
";
