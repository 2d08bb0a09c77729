//! Drills three servers of the same axum app on loopback: without guards, with the layers that a
//! careful user assembles from tower, tower-http and `tower_governor` today, and with palisade.
//!
//! ```text
//! cargo run --release --example demo              # about four minutes
//! cargo run --release --example demo -- --check   # fails if palisade does not hold every attack
//! cargo run --release --example demo -- silent    # the attacks of these names
//! ```
//!
//! Each server is a process of its own, which may open 1,024 files. `palisade_drill` attacks it,
//! sends honest requests beside that, and says what became of both.
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a command-line program prints"
)]

mod servers;
mod table;

use palisade_drill::{Drill, Grade};
use servers::{Server, ServerKind};
use tower::BoxError;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [serve, kind] = &arguments[..]
        && serve == "--serve"
    {
        let kind = ServerKind::from_name(kind).ok_or("no such server")?;
        return servers::serve(kind).await;
    }
    let (options, names): (Vec<_>, Vec<_>) = arguments
        .into_iter()
        .partition(|argument| argument.starts_with("--"));
    if options.iter().any(|option| option != "--check") {
        return Err("usage: demo [--check] [ATTACK]...".into());
    }
    let mut reports = Vec::new();
    for kind in ServerKind::ALL {
        eprintln!("the drill of {} takes a minute or two", kind.name());
        let server = Server::start(kind).await?;
        let drill = Drill::against(server.addr)?.places(servers::PLACES).quick();
        let drill = drill.get("/").post("/upload").large("/large");
        let drill = names.iter().fold(drill, Drill::only);
        reports.push((kind, drill.run().await?));
        server.stop().await;
    }
    print!("{}", table::text(&reports));
    let Some((_, palisade)) = reports.last() else {
        return Ok(());
    };
    if palisade.grade() == Some(Grade::A) {
        return Ok(());
    }
    println!("\nThe drill of palisade in full:\n\n{palisade}");
    if options.is_empty() {
        Ok(())
    } else {
        Err("palisade does not hold every attack".into())
    }
}
