//! The drill as a program. See `palisade-drill --help`.
#![forbid(unsafe_code)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program prints"
)]

use clap::Parser;
use palisade_drill::{Drill, DrillError, Grade, Report, attacks};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// Attacks an HTTP server of your own on this machine, beside honest clients, and grades it.
///
/// Exits with 0 if the grade is reached, 1 if it is not, 2 if the drill was used wrongly or may not
/// attack the target, and 3 if nothing can be said.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The loopback address of a server that runs, such as 127.0.0.1:8080.
    #[arg(required_unless_present_any = ["list", "command"], conflicts_with = "command")]
    target: Option<String>,
    /// After `--`: a command that serves 127.0.0.1:$PORT, in place of a target.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Lists the attacks, and ends.
    #[arg(long)]
    list: bool,
    /// The grade that is asked for.
    #[arg(long, value_name = "GRADE", default_value = "A", value_parser = grade)]
    at_least: Grade,
    /// Shorter attacks, one of each family.
    #[arg(long)]
    quick: bool,
    /// The path of a cheap GET.
    #[arg(long, value_name = "PATH", default_value = "/")]
    get: String,
    /// The path of a POST that reads its body.
    #[arg(long, value_name = "PATH")]
    post: Option<String>,
    /// The path of a GET with a response of 256 KiB or more.
    #[arg(long, value_name = "PATH")]
    large: Option<String>,
    /// The path of an event stream.
    #[arg(long, value_name = "PATH")]
    events: Option<String>,
    /// The path of a WebSocket.
    #[arg(long, value_name = "PATH")]
    websocket: Option<String>,
    /// The path of a GET that takes processor time, of a command.
    #[arg(long, value_name = "PATH")]
    cpu_get: Option<String>,
    /// The limit on open files of the command.
    #[arg(long, value_name = "FILES")]
    file_limit: Option<u64>,
    /// The limit on memory of the command.
    #[arg(long, value_name = "MIB")]
    memory_limit: Option<u64>,
    /// The connections that the server admits.
    #[arg(long)]
    places: Option<usize>,
    /// A header of every request, such as 'authorization: Bearer x'. May be repeated.
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// Runs only the attack of this name. May be repeated.
    #[arg(long, value_name = "ATTACK")]
    only: Vec<String>,
    /// Does not run the attack of this name. May be repeated.
    #[arg(long, value_name = "ATTACK")]
    skip: Vec<String>,
    /// The seed of what varies between attackers: their beginnings, pauses and padding; 0 for
    /// nothing.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes the report as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the report as one HTML page.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Writes the report as `JUnit` XML.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Writes the report as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Compares with an earlier report in JSON.
    #[arg(long, value_name = "FILE")]
    before: Option<PathBuf>,
}

/// The program was used wrongly, or may not attack the target.
const WRONG: u8 = 2;
/// No attack has a verdict.
const NO_GRADE: u8 = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // Wrong arguments end the process with 2.
    let arguments = Arguments::parse();
    match run(arguments).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            let is_wrong = error.downcast_ref().is_none_or(|error| {
                matches!(error, DrillError::Config(_) | DrillError::Refused { .. })
            });
            ExitCode::from(if is_wrong { WRONG } else { NO_GRADE })
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    if arguments.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    // Before anything is attacked.
    let before = arguments.before.as_deref().map(read).transpose()?;
    let report = tokio::select! {
        report = drill(&arguments)?.run() => report?,
        // The drill is dropped, which ends all connections and the command.
        () = interrupted() => {
            eprintln!("interrupted: there is no report");
            return Ok(ExitCode::from(NO_GRADE));
        }
    };
    print!("{report}");
    if let Some(before) = before {
        print!("\n{}", report.compare(&before));
    }
    write(arguments.json.as_deref(), || report.to_json())?;
    write(arguments.html.as_deref(), || report.to_html())?;
    write(arguments.junit.as_deref(), || report.to_junit())?;
    write(arguments.markdown.as_deref(), || report.to_markdown())?;
    Ok(match report.grade() {
        None => ExitCode::from(NO_GRADE),
        Some(grade) if grade < arguments.at_least => ExitCode::FAILURE,
        Some(_) => ExitCode::SUCCESS,
    })
}

/// Waits until the program is to end.
async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let signals = [SignalKind::terminate(), SignalKind::hangup()].map(signal);
        if let [Ok(mut terminate), Ok(mut hangup)] = signals {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

fn drill(arguments: &Arguments) -> Result<Drill, DrillError> {
    let mut drill = match arguments.command.split_first() {
        Some((program, rest)) => {
            let mut command = Command::new(program);
            command.args(rest);
            Drill::child(command)
        }
        None => Drill::against(arguments.target.as_deref().unwrap_or_default())?,
    };
    drill = drill.get(&arguments.get).seed(arguments.seed);
    if arguments.quick {
        drill = drill.quick();
    }
    if let Some(path) = &arguments.post {
        drill = drill.post(path);
    }
    if let Some(path) = &arguments.large {
        drill = drill.large(path);
    }
    if let Some(path) = &arguments.events {
        drill = drill.events(path);
    }
    if let Some(path) = &arguments.websocket {
        drill = drill.websocket(path);
    }
    if let Some(path) = &arguments.cpu_get {
        drill = drill.cpu_get(path);
    }
    if let Some(files) = arguments.file_limit {
        drill = drill.file_limit(files);
    }
    if let Some(mebibytes) = arguments.memory_limit {
        drill = drill.memory_limit(mebibytes.saturating_mul(1 << 20));
    }
    if let Some(places) = arguments.places {
        drill = drill.places(places);
    }
    for (name, value) in &arguments.header {
        drill = drill.header(name, value);
    }
    for name in &arguments.only {
        drill = drill.only(name);
    }
    for name in &arguments.skip {
        drill = drill.skip(name);
    }
    Ok(drill)
}

fn list() {
    for attack in attacks::all() {
        let cve = attack.cve.map(|cve| format!(", {cve}")).unwrap_or_default();
        println!(
            "{:<28}{}{cve}: {}",
            attack.name, attack.threat, attack.title
        );
    }
}

fn read(path: &Path) -> Result<Report, Box<dyn std::error::Error>> {
    let text = fs::read_to_string(path).map_err(|error| about(path, &error))?;
    Ok(Report::from_json(&text).map_err(|error| about(path, &error))?)
}

fn write(path: Option<&Path>, text: impl FnOnce() -> String) -> Result<(), io::Error> {
    let Some(path) = path else {
        return Ok(());
    };
    fs::write(path, text()).map_err(|error| about(path, &error))
}

/// Returns an error that names the file.
fn about(path: &Path, error: &dyn std::error::Error) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

fn grade(text: &str) -> Result<Grade, String> {
    match text {
        "A" | "a" => Ok(Grade::A),
        "B" | "b" => Ok(Grade::B),
        "C" | "c" => Ok(Grade::C),
        "F" | "f" => Ok(Grade::F),
        _ => Err("allowed are A, B, C and F".to_owned()),
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("allowed is 'name: value'")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}
