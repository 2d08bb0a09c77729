//! The course of a drill: for each attack before, during, after, and a verdict.

mod confirm;
mod overload;
mod round;
mod schedule;

use crate::{
    attacks::{self, Attack, InQuick, Needs, Plan, Protocol},
    bounds::{MAX_ATTACK_TIME, MAX_RUN_TIME},
    child::{Child, Limits, NO_GROUP, tree},
    consent::Clock,
    error::DrillError,
    files,
    grade::Verdict,
    honest::{
        HonestClients, Route, openings,
        preflight::{self, Http2},
    },
    options::Options,
    report::{AttackReport, Report, SCHEMA, Skipped},
    sample::Kind,
    server::Subject,
    target::{Target, is_loopback, owner},
    text::printable_bytes,
    tls::Tls,
    usage::ServerUsage,
    worker::Worker,
};
use bytes::Bytes;
use confirm::{confirm, unless_crowded, without_second};
use http::{HeaderMap, Method, Request};
use http_body_util::Full;
use schedule::Schedule;
use std::time::Duration;
use tokio::time::Instant;

/// The distance between the numbers of an attack in its two rounds, more than there are attacks.
const SECOND_ROUND: u8 = 100;
/// The time of a quick drill.
const QUICK_TIME: Duration = Duration::from_secs(60);
/// The body of a small POST.
const SMALL_BODY: &[u8] = b"palisade-drill";

/// A drill under way.
struct Run {
    target: Target,
    options: Options,
    schedule: Schedule,
    honest: HonestClients,
    server: Option<Worker<()>>,
    child: Option<Child>,
    /// The largest number of attackers, by the limit on open files.
    max_attackers: usize,
    /// When clients that return came for the first time.
    visited: Option<Instant>,
    /// The first processes of the server, if it is not in this one; `None` if they are not known.
    roots: Option<Vec<u32>>,
}

/// Runs the drill in the thread of the engine.
///
/// # Errors
///
/// See [`Drill::run`](crate::Drill::run).
pub(crate) async fn run(subject: Subject, options: Options) -> Result<Report, DrillError> {
    let epoch = Instant::now();
    let (target, server, child) = match subject {
        Subject::Server(server) => {
            let (addr, worker) = server.start()?;
            (Target::open(&[addr]).await?, Some(worker), None)
        }
        Subject::Child(command) => {
            let limits = Limits {
                files: options.file_limit,
                memory: options.memory_limit,
            };
            // Before the limit of this process is raised, which the child would inherit.
            let (child, target) = Child::start(command, limits).await?;
            (target, None, Some(child))
        }
        Subject::Running(addrs) => (Target::open(&addrs).await?, None, None),
        Subject::Consenting(addrs, secret) => {
            let clock = Clock::default();
            (
                Target::consenting(&addrs, &secret, &clock).await?,
                None,
                None,
            )
        }
    };
    let asked = target.clone();
    tokio::select! {
        biased;
        // The drill is dropped, which ends all connections.
        error = asked.consent_ended() => Err(error),
        report = drill(target, server, child, options, epoch) => {
            // Attacks that it skipped for want of consent make no report.
            asked.has_consent()?;
            report
        }
    }
}

/// Runs the drill of a target that may be attacked.
async fn drill(
    target: Target,
    mut server: Option<Worker<()>>,
    child: Option<Child>,
    options: Options,
    epoch: Instant,
) -> Result<Report, DrillError> {
    let tls = options.tls.as_deref().map(Tls::new).transpose()?;
    let target = target.with_tls(tls);
    let max_attackers = files::raise_limit(if server.is_some() { 2 } else { 1 });
    let (routes, headers) = match learn(&target, &options).await {
        Err(_) if server.as_mut().is_some_and(Worker::has_ended) => {
            return Err(DrillError::ServerEnded);
        }
        learned => learned?,
    };
    let h2 = preflight::http2(&target).await;
    let mut schedule = Schedule::new(options.quick);
    if options.places.is_some() {
        schedule = schedule.with_newcomers();
    }
    let mut report = Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        target: target.addr().to_string(),
        places: options.places,
        file_limit: options.file_limit,
        memory_limit: options.memory_limit,
        tls: target.tls().is_some(),
        quick: options.quick,
        seed: options.seed,
        seconds: 0.0,
        attacks: Vec::new(),
        skipped: Vec::new(),
        cautions: cautions(&target, &headers),
    };
    let of_child = child.iter().flat_map(Child::cautions);
    report.cautions.extend(of_child.cloned());
    let plan = plan(&target, &options, &schedule);
    let (steady, cautions) = openings::learn(&target, &plan, &options.open, h2.is_some()).await?;
    report.cautions.extend(cautions);
    let honest = HonestClients::start(&target, routes, steady, epoch)?;
    let roots = match (&server, &child) {
        (Some(_), _) => Some(Vec::new()),
        (None, Some(child)) => Some(vec![child.pid()]),
        (None, None) => Some(target.addr())
            .filter(|addr| is_loopback(*addr))
            .and_then(owner::inode)
            .map(tree::with_socket)
            .filter(|roots| !roots.is_empty()),
    };
    let mut run = Run {
        target,
        options,
        schedule,
        honest,
        server,
        child,
        max_attackers,
        visited: None,
        roots,
    };
    let returning = attacks::all().into_iter().enumerate();
    for (number, attack) in returning.filter(|(_, attack)| attack.times.returns.is_some()) {
        if run.options.selects(&attack) {
            run.first_visit(&attack, number as u8).await;
        }
    }
    let mut down = false;
    for (number, attack) in attacks::all().into_iter().enumerate() {
        if !run.options.selects(&attack) {
            continue;
        }
        let reason = if down {
            Some("the target is down".to_owned())
        } else if let Err(reason) = run.target.check().await {
            // The port may be of another program by now.
            Some(reason)
        } else if epoch.elapsed() + run.schedule.of(&attack).longest() > MAX_RUN_TIME {
            Some("the time of the drill is over: select fewer attacks with `only`".to_owned())
        } else if let Some(reason) = run.too_long(&attack, epoch.elapsed()) {
            Some(reason)
        } else {
            run.missing(&attack, h2)
        };
        if let Some(reason) = reason {
            let name = attack.name.to_owned();
            report.skipped.push(Skipped { name, reason });
            continue;
        }
        let result = match attack.needs {
            Needs::Cpu => run.overload(&attack, number as u8).await,
            _ => run.attack(&attack, number as u8).await,
        };
        let is_lost = result.verdict == Verdict::Down && result.recovery_ms.is_none();
        down = is_lost || run.has_ended();
        report.attacks.push(result);
    }
    report.seconds = epoch.elapsed().as_secs_f64();
    Ok(report)
}

/// Sends the first honest requests. Returns the routes, and the headers of the GET's answer.
async fn learn(target: &Target, options: &Options) -> Result<(Vec<Route>, HeaderMap), DrillError> {
    let plan = plan(target, options, &Schedule::new(options.quick));
    let request = |method: Method, path: &str, body: &'static [u8]| {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in plan.fields("", "").into_iter().skip(4) {
            request = request.header(name, value);
        }
        request
            .header("host", &plan.host)
            .body(Full::new(Bytes::from_static(body)))
            .map_err(|error| DrillError::Io(std::io::Error::other(error)))
    };
    let get = request(Method::GET, &options.get, b"")?;
    let (route, headers) = preflight::learn(target, Kind::NewConnection, get).await?;
    let mut routes = vec![
        route.clone(),
        Route {
            kind: Kind::KeepAlive,
            ..route
        },
    ];
    if let Some(path) = &options.post {
        let post = request(Method::POST, path, SMALL_BODY)?;
        routes.push(preflight::learn(target, Kind::SmallPost, post).await?.0);
    }
    Ok((routes, headers))
}

/// Returns what attackers know.
fn plan(target: &Target, options: &Options, schedule: &Schedule) -> Plan {
    let addr = target.addr();
    let tls = target.tls();
    Plan {
        host: tls.map_or_else(|| addr.to_string(), |tls| tls.host(addr)),
        tls: tls.is_some(),
        get: options.get.clone(),
        post: options.post.clone(),
        large: options.large.clone(),
        headers: options.headers.clone(),
        ends: schedule.attack(),
        seed: options.seed,
    }
}

/// Returns what no verdict of this drill can rule out.
fn cautions(target: &Target, headers: &HeaderMap) -> Vec<String> {
    let mut cautions = Vec::new();
    if !target.has_addresses() {
        cautions.push(
            "attackers and honest clients have the same address, so that a limit for each client \
             refuses both"
                .to_owned(),
        );
    }
    if !owner::is_known() {
        cautions.push("this system does not tell whose listener it is".to_owned());
    }
    let known = ["nginx", "haproxy", "envoy", "caddy", "cloudflare"];
    let header = |name: &str| {
        let value = headers.get(name)?;
        Some(printable_bytes(value.as_bytes()))
    };
    if let Some(via) = header("via") {
        cautions.push(format!("a proxy answers for the server: Via {via}"));
    } else if let Some(server) = header("server")
        && known
            .iter()
            .any(|name| server.to_lowercase().contains(name))
    {
        cautions.push(format!(
            "a proxy may answer for the server: Server {server}"
        ));
    }
    cautions
}

impl Run {
    /// Returns what the attack needs and this target has not.
    fn missing(&self, attack: &Attack, h2: Option<Http2>) -> Option<String> {
        let reason = match (attack.needs, attack.protocol) {
            (Needs::Post | Needs::MemoryLimit, _) if self.options.post.is_none() => {
                "it needs the path of a POST: set `post`"
            }
            (Needs::Large, _) if self.options.large.is_none() => {
                "it needs the path of a large GET: set `large`"
            }
            (Needs::Cpu, _) => self.missing_for_overload()?,
            (Needs::MemoryLimit, _) if self.options.memory_limit.is_none() => {
                "it needs a server with little memory: use `Drill::child` and `memory_limit`"
            }
            (Needs::MemoryLimit, _) if self.child.as_ref().and_then(Child::group).is_none() => {
                NO_GROUP
            }
            (Needs::FileLimit, _) if self.options.file_limit.is_none() => {
                "it needs a server that may open few files: use `Drill::child` and `file_limit`"
            }
            (Needs::Tls, _) if self.target.tls().is_none() => {
                "it needs a target that speaks TLS: set `tls`"
            }
            (_, Protocol::Http2) if h2.is_none() && self.target.tls().is_some() => {
                "the target does not choose HTTP/2 by ALPN"
            }
            (_, Protocol::Http2) if h2.is_none() => {
                "the target does not speak HTTP/2 in clear text"
            }
            (Needs::Tunnels, _) if h2.is_none_or(|h2| !h2.offers_tunnels) => {
                "the target offers no extended CONNECT (RFC 8441)"
            }
            _ => return None,
        };
        Some(reason.to_owned())
    }

    /// Returns why the quick drill has no time for the attack. Attacks that are asked for by name
    /// are run in any case.
    fn too_long(&self, attack: &Attack, elapsed: Duration) -> Option<String> {
        if !self.options.quick || !self.options.only.is_empty() {
            return None;
        }
        match attack.in_quick {
            InQuick::Skipped(reason) => Some(format!("by quick: {reason}")),
            _ if elapsed + self.schedule.of(attack).shortest() > QUICK_TIME => {
                Some("by quick: the minute is over".to_owned())
            }
            _ => None,
        }
    }

    /// Runs one attack. Harm is confirmed by a second round, because a hiccup of the machine looks
    /// like it; so are memory that is left behind, and a round that says nothing. An attack of
    /// minutes is not repeated.
    async fn attack(&mut self, attack: &Attack, number: u8) -> AttackReport {
        let first = self.round(attack, number).await;
        // From other addresses: a server that bans the first ones shows nothing by that. Clients
        // that return are the same ones.
        let number = match attack.times.returns {
            Some(_) => number,
            None => number.saturating_add(SECOND_ROUND),
        };
        // A watch of minutes is not repeated: there is no time for it.
        let is_long = self.schedule.of(attack).attack() > MAX_ATTACK_TIME;
        let has_grown = first.server.as_ref().is_some_and(ServerUsage::has_grown);
        let is_sure = match first.verdict {
            Verdict::Harmed | Verdict::Inconclusive => false,
            Verdict::Held | Verdict::Kept => !has_grown,
            Verdict::Down => true,
        };
        if is_sure || is_long || self.has_ended() {
            return unless_crowded(first, None);
        }
        if let Err(reason) = self.target.check().await {
            return unless_crowded(without_second(first, &reason), None);
        }
        let processor = first.processor;
        let second = self.round(attack, number).await;
        unless_crowded(confirm(&first, second), processor)
    }
}
