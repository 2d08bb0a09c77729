//! What a client that nothing is held against pays for bans and lists.

use crate::run::Run;
use palisade::{
    Ban,
    ban::{BanLayer, Networks},
    types::{Client, Gate, Prefix},
};
use palisade_benches::connection;
use std::{fmt::Write, hint::black_box, net::Ipv4Addr, time::Duration};

/// The clients that are banned.
const BANS: u32 = 10_000;
/// The networks of the list.
const NETWORKS: u32 = 100_000;

/// Returns a ban of which other clients are banned.
pub(crate) fn others_banned() -> Ban {
    let ban = Ban::builder().build().expect("the defaults are valid");
    for n in 0..BANS {
        let address = Ipv4Addr::from_bits(0x0a00_0000 + n);
        let client = Client::from_peer(Some(address.into()), Prefix::default());
        ban.ban(&client, Duration::from_secs(3600));
    }
    ban
}

/// Returns a ban with a long list of other networks.
pub(crate) fn others_denied() -> Ban {
    let mut text = String::new();
    for n in 0..NETWORKS {
        // Every other /24 from 190.0.1.0 on. The client is among them, in none.
        let network = Ipv4Addr::from_bits((190 << 24) + (n << 9) + 256);
        writeln!(text, "{network}/24").expect("writing to a `String` does not fail");
    }
    Ban::denying(Networks::parse(&text).expect("the networks are valid"))
}

/// Returns the layer of `ban`.
pub(crate) fn layer(ban: Ban) -> BanLayer {
    BanLayer::new(ban)
}

/// Returns a run that asks at accept.
pub(crate) fn accepts(ban: Ban) -> Run {
    let conn = connection();
    Box::new(move |connections| {
        for _ in 0..connections {
            black_box(black_box(&ban).refusal(black_box(&conn)).is_some());
        }
    })
}

/// Returns the same run without asking.
pub(crate) fn accepts_without_a_gate() -> Run {
    let conn = connection();
    Box::new(move |connections| {
        for _ in 0..connections {
            black_box(&conn);
            black_box(None::<u8>.is_some());
        }
    })
}
