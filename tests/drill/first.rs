//! The five steps of `docs/drill.md`, and the grades that it promises.

use crate::{
    is_long,
    servers::{Capped, PLACES, app},
};
use palisade::{Quota, Stack, conn::ConnGuard};
use palisade_drill::{Drill, Grade, Verdict};
use std::time::Duration;
use tokio::net::TcpListener;
use tower::BoxError;

const DOCS: &str = include_str!("../../docs/drill.md");
/// How often a step is drilled whose grade is another one: the machine may be busy.
const MAX_RUNS: usize = 3;

/// Serves the app as after step `step`.
async fn serve(listener: TcpListener, step: usize) -> Result<(), BoxError> {
    let app = app();
    if step == 1 {
        axum::serve(Capped::new(listener), app).await?;
        return Ok(());
    }
    let mut connections = ConnGuard::builder().max_connections(PLACES);
    let mut stack = Stack::edge();
    if step >= 4 {
        stack = stack.rate_limit(Quota::per_second(50).burst(100));
    }
    if step >= 5 {
        connections = connections.write_timeout(Duration::from_secs(1));
    }
    let app = if step >= 3 {
        app.layer(stack.build()?)
    } else {
        app
    };
    palisade::serve(connections.build()?.listen(listener), app).await?;
    Ok(())
}

/// The grades in the table of the document: the last cell of the row of each step.
fn promised() -> Vec<Grade> {
    let rows = DOCS.lines().filter_map(|line| {
        let (step, rest) = line.strip_prefix("| ")?.split_once(" |")?;
        step.parse::<usize>().ok()?;
        Some(rest.trim_end_matches(" |").rsplit(' ').next()?.to_owned())
    });
    let grades = [Grade::A, Grade::B, Grade::C, Grade::F];
    let parse = |cell: String| grades.into_iter().find(|grade| grade.to_string() == cell);
    rows.map(|cell| parse(cell).unwrap()).collect()
}

#[test]
fn the_document_promises_five_grades_from_f_to_a() {
    let promised = promised();
    assert_eq!(promised.len(), 5, "{promised:?}");
    assert!(promised.is_sorted(), "{promised:?}");
    assert_eq!((promised[0], promised[4]), (Grade::F, Grade::A));
}

#[tokio::test]
async fn each_step_reaches_the_grade_that_the_document_promises() {
    // About six minutes.
    if !is_long() {
        return;
    }
    for (at, promised) in promised().into_iter().enumerate() {
        let step = at + 1;
        for run in 1..=MAX_RUNS {
            let drill = Drill::serving(move |listener| serve(listener, step));
            let drill = drill.places(PLACES).quick();
            let drill = drill.get("/").post("/upload").large("/large");
            let report = drill.run().await.unwrap();
            println!("step {step}: {report}");
            let is_clear = report
                .attacks
                .iter()
                .all(|attack| attack.verdict != Verdict::Inconclusive);
            if report.grade() == Some(promised) && (is_clear || run == MAX_RUNS) {
                break;
            }
            assert!(
                run < MAX_RUNS,
                "step {step} is to reach {promised}\n\n{report}"
            );
        }
    }
}
