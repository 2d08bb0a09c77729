//! The drill as a program. See `palisade-drill --help`.
#![forbid(unsafe_code)]
#![allow(clippy::print_stderr, reason = "a command-line program prints")]

use clap::{Parser, Subcommand};
use palisade_drill::{
    Drill, DrillError, Grade, Report,
    attacks::{self, Attack},
    consent::{self, ConsentLine, Secret},
};
use std::{
    env, fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

/// Attacks an HTTP server of your own, beside honest clients, and grades it.
///
/// Exits with 0 if the grade is reached, 1 if it is not, 2 if the drill was used wrongly or may not
/// attack the target, and 3 if nothing can be said.
#[derive(Debug, Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// The address of a server that runs, such as 127.0.0.1:8080. One that is not loopback has to
    /// publish its consent.
    #[arg(required_unless_present_any = ["list", "command"], conflicts_with = "command")]
    target: Option<String>,
    /// After `--`: a command that serves 127.0.0.1:$PORT, in place of a target.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// The file with the secret of `palisade-drill consent`. The target has to publish the line
    /// that belongs to it, on loopback too. Or else: the variable `PALISADE_DRILL_SECRET`. There is
    /// no option for the secret itself, because other users see arguments in the list of processes.
    #[arg(long, value_name = "FILE", conflicts_with = "command")]
    secret_file: Option<PathBuf>,
    /// Lists the attacks, and ends.
    #[arg(long)]
    list: bool,
    /// The grade that is asked for.
    #[arg(long, value_name = "GRADE", default_value = "A", value_parser = grade)]
    at_least: Grade,
    /// Shorter attacks, one of each family.
    #[arg(long)]
    quick: bool,
    /// Speaks TLS, and asks for the host of this name. Certificates are not verified.
    #[arg(
        long,
        value_name = "NAME",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "localhost"
    )]
    tls: Option<String>,
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

/// What the program does instead of a drill.
#[derive(Debug, Subcommand)]
enum Action {
    /// Makes a secret, and the line that a server publishes to consent to a drill.
    ///
    /// Prints the secret and then the line, each on a line of its own.
    Consent {
        /// The time until the consent ends, 1 to 24.
        #[arg(long, value_name = "N", default_value_t = 4,
              value_parser = clap::value_parser!(u64).range(1..=24))]
        hours: u64,
        /// Writes the secret to a new file that no other user reads, and prints the line alone.
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
    },
}

/// The variable with the secret.
const SECRET: &str = "PALISADE_DRILL_SECRET";
/// The most bytes of a file with a secret that are read.
const MAX_SECRET_BYTES: u64 = 1 << 10;
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
                matches!(
                    error,
                    DrillError::Config(_)
                        | DrillError::Refused { .. }
                        | DrillError::ConsentEnded { .. }
                )
            });
            ExitCode::from(if is_wrong { WRONG } else { NO_GRADE })
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    if let Some(Action::Consent { hours, secret_file }) = &arguments.action {
        make_consent(*hours, secret_file.as_deref())?;
        return Ok(ExitCode::SUCCESS);
    }
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
    write(arguments.json.as_deref(), || report.to_json())?;
    write(arguments.html.as_deref(), || report.to_html())?;
    write(arguments.junit.as_deref(), || report.to_junit())?;
    write(arguments.markdown.as_deref(), || report.to_markdown())?;
    say(&report.to_string());
    if let Some(before) = before {
        say(&format!("\n{}", report.compare(&before)));
    }
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

fn drill(arguments: &Arguments) -> Result<Drill, Box<dyn std::error::Error>> {
    let mut drill = match arguments.command.split_first() {
        Some((program, rest)) => {
            let mut command = Command::new(program);
            command.args(rest).env_remove(SECRET);
            Drill::child(command)
        }
        None => {
            let target = arguments.target.as_deref().unwrap_or_default();
            match secret(arguments.secret_file.as_deref())? {
                Some(secret) => Drill::with_consent(target, secret)?,
                None => Drill::against(target)?,
            }
        }
    };
    drill = drill.get(&arguments.get).seed(arguments.seed);
    if arguments.quick {
        drill = drill.quick();
    }
    if let Some(name) = &arguments.tls {
        drill = drill.tls(name);
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

/// Returns the secret of the file, or else of the environment.
fn secret(path: Option<&Path>) -> Result<Option<Secret>, io::Error> {
    if let Some(path) = path {
        let mut text = String::new();
        let file = fs::File::open(path).map_err(|error| about(path, &error))?;
        let read = file.take(MAX_SECRET_BYTES).read_to_string(&mut text);
        read.map_err(|error| about(path, &error))?;
        let secret = text.parse().map_err(|error| about(path, &error))?;
        return Ok(Some(secret));
    }
    let Some(text) = env::var_os(SECRET) else {
        return Ok(None);
    };
    let secret = text.to_string_lossy().parse();
    Ok(Some(
        secret.map_err(|error| about(Path::new(SECRET), &error))?,
    ))
}

/// Prints a new secret and its line. What they are for goes to the standard error, so that the two
/// lines can be taken as they are.
fn make_consent(hours: u64, path: Option<&Path>) -> Result<(), Box<dyn std::error::Error>> {
    let secret = Secret::random()?;
    let line = ConsentLine::new(&secret, Duration::from_secs(hours * 60 * 60))?;
    match path {
        Some(path) => write_secret(path, &secret).map_err(|error| about(path, &error))?,
        None => say(&format!("{secret}\n")),
    }
    say(&format!("{line}\n"));
    let place = match path {
        Some(path) => format!("The secret is in {}: give", path.display()),
        None => "The first line is the secret: keep it in a file, and give".to_owned(),
    };
    eprintln!(
        "{place} that to the drill with --secret-file.\n\
         The line that begins with palisade-drill is for the server, which answers it to\n\
         GET {} while it consents.",
        consent::PATH
    );
    Ok(())
}

/// Writes a new file that belongs to this user alone.
fn write_secret(path: &Path, secret: &Secret) -> Result<(), io::Error> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    writeln!(options.open(path)?, "{secret}")
}

/// Prints `text`, if it is read at all: `head`, for example, has read enough at some time.
fn say(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

fn list() {
    for attack in attacks::all() {
        let cve = attack.cve.map(|cve| format!(", {cve}")).unwrap_or_default();
        let Attack {
            name,
            threat,
            title,
            ..
        } = attack;
        say(&format!("{name:<28}{threat}{cve}: {title}\n"));
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
