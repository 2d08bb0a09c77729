//! The first requests of clients with long answers: whether the target serves them at all.

#[cfg(feature = "rustls")]
use super::handshake;
use super::{
    answer::Answer,
    h2,
    long::{self, OpenPaths},
    open, phone,
    steady::{Steady, connect, head, patiently},
};
use crate::{
    error::DrillError,
    plan::Plan,
    sample::{Kind, Outcome},
    target::{Source, Target},
};

/// The kinds of [`Steady`] clients.
const KINDS: [Kind; 6] = [
    Kind::PhoneUpload,
    Kind::PhoneDownload,
    Kind::EventStream,
    Kind::Http2,
    Kind::WebSocket,
    Kind::SlowHandshake,
];

/// Returns the clients of routes that are known and served, and cautions about the others.
///
/// # Errors
///
/// If a route that was set is not served.
pub(crate) async fn learn(
    target: &Target,
    plan: &Plan,
    paths: &OpenPaths,
    speaks_h2: bool,
) -> Result<(Vec<Steady>, Vec<String>), DrillError> {
    let (mut clients, mut cautions) = (Vec::new(), Vec::new());
    for kind in KINDS {
        if kind == Kind::Http2 && !speaks_h2 {
            continue;
        }
        let Some(mut client) = long::steady(kind, plan, paths) else {
            continue;
        };
        match first(target, &mut client).await {
            Ok(()) => clients.push(client),
            Err(outcome) if kind == Kind::Http2 => cautions.push(format!(
                "HTTP/2 with a refused stream was no honest client: even without attackers its \
                 other streams are not served ({outcome})"
            )),
            Err(outcome) if kind == Kind::SlowHandshake => cautions.push(format!(
                "a slow handshake was no honest client: even without attackers the server does \
                 not wait for flights that come after 300 and 500 ms ({outcome})"
            )),
            Err(outcome) => {
                return Err(DrillError::NotServed {
                    target: target.addr(),
                    reason: format!("{kind}: {}", hint(kind, outcome)),
                });
            }
        }
    }
    Ok((clients, cautions))
}

/// Sends the first request of a client, without its pace.
async fn first(target: &Target, client: &mut Steady) -> Result<(), Outcome> {
    let source = Source::Honest(0);
    match client.kind {
        Kind::PhoneUpload => patiently(phone::upload_at_once(target, source, client)).await,
        Kind::Http2 => {
            client.expected = h2::streams(target, source, client).await?;
            client.expected.map(|_| ()).ok_or(Outcome::WrongBody)
        }
        #[cfg(feature = "rustls")]
        Kind::SlowHandshake => handshake::once(target, source, client).await,
        Kind::PhoneDownload => {
            patiently(async {
                let mut stream = connect(target, source, None, client).await?;
                head(&mut stream, &mut Answer::default()).await.map(|_| ())
            })
            .await
        }
        _ => patiently(open::open(target, source, client))
            .await
            .map(|_| ()),
    }
}

/// Returns what happened, and what to do.
fn hint(kind: Kind, outcome: Outcome) -> String {
    let option = match kind {
        Kind::PhoneUpload => "post",
        Kind::PhoneDownload => "large",
        Kind::EventStream => "events",
        _ => "websocket",
    };
    match outcome {
        Outcome::Status(status @ (401 | 403)) => {
            format!("answered {status}: set credentials with `header`")
        }
        Outcome::Status(status @ 413) => {
            format!("answered {status}: set a path that takes 8 KiB with `{option}`")
        }
        Outcome::Status(status) => {
            format!("answered {status}: set a path that serves it with `{option}`")
        }
        other => format!("{other}: set a path that serves it with `{option}`"),
    }
}
