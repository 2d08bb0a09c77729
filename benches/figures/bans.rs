//! What a client that nothing is held against pays for bans and lists.

use crate::run::{Run, ScenarioList};
use palisade::{
    Ban,
    ban::{BanLayer, Networks},
    types::{Client, Gate, Prefix},
};
use palisade_benches::{Ready, anonymous, connection, request};
use palisade_guard::GuardLayer;
use std::{fmt::Write, hint::black_box, net::Ipv4Addr, time::Duration};
use tower::Layer;

/// The clients that are banned.
const BANS: u32 = 10_000;
/// The networks of the list.
const NETWORKS: u32 = 100_000;

/// Adds a request of the peer, one of a named client, and a new connection.
pub(crate) fn scenarios(all: &mut ScenarioList) {
    let of_peer = || {
        let conn = connection();
        move || request(&conn)
    };
    let bans = || BanLayer::new(others_banned());
    all.drive("ban palisade", bans().layer(Ready), of_peer());
    let lists = BanLayer::new(others_denied());
    all.drive("deny palisade", lists.layer(Ready), of_peer());
    let named = || {
        let mut request = anonymous();
        let address = [192, 0, 2, 1].into();
        let client = Client::from_peer(Some(address), Prefix::default());
        request.extensions_mut().insert(client);
        request
    };
    let no_guard = GuardLayer::new(()).layer(Ready);
    all.drive("no_guard_named palisade", no_guard, named);
    all.drive("ban_named palisade", bans().layer(Ready), named);
    all.add("accept bare", accepts_without_a_gate);
    all.add("accept ban", || accepts(others_banned()));
    all.add("accept deny", || accepts(others_denied()));
}

/// Returns a ban of which other clients are banned.
fn others_banned() -> Ban {
    let ban = Ban::builder().build().expect("the defaults are valid");
    for n in 0..BANS {
        let address = Ipv4Addr::from_bits(0x0a00_0000 + n);
        let client = Client::from_peer(Some(address.into()), Prefix::default());
        ban.ban(&client, Duration::from_secs(3600));
    }
    ban
}

/// Returns a ban with a long list of other networks.
fn others_denied() -> Ban {
    let mut text = String::new();
    for n in 0..NETWORKS {
        // Every other /24 from 190.0.1.0 on. The client is among them, in none.
        let network = Ipv4Addr::from_bits((190 << 24) + (n << 9) + 256);
        writeln!(text, "{network}/24").expect("writing to a `String` does not fail");
    }
    Ban::denying(Networks::parse(&text).expect("the networks are valid"))
}

/// Returns a run that asks at accept.
fn accepts(ban: Ban) -> Run {
    let conn = connection();
    Box::new(move |connections| {
        for _ in 0..connections {
            black_box(black_box(&ban).refusal(black_box(&conn)).is_some());
        }
    })
}

/// Returns the same run without asking.
fn accepts_without_a_gate() -> Run {
    let conn = connection();
    Box::new(move |connections| {
        for _ in 0..connections {
            black_box(&conn);
            black_box(None::<u8>.is_some());
        }
    })
}
