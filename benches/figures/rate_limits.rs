//! Rate limits with options, for clients of IPv6.

use crate::run::Run;
use palisade::{
    Fleet, Mode, Quota,
    fleet::MemoryStore,
    rate_limit::{Networks, Prefix, RateLimitLayer},
};
use palisade_benches::{Ready, drive, ipv6_connection, low_quota, request, runtime};
use tower::Layer;

/// Returns the name of a scenario, and its layer. Each is compared with the first one, and the
/// ladder with a layer that has a limit of networks for IPv4 only.
pub(crate) fn layers() -> [(&'static str, RateLimitLayer); 6] {
    let quota = quota();
    let alone = || RateLimitLayer::new(quota).expect("the quota is valid");
    let networks = Networks::parse("192.0.2.0/24\n198.51.100.0/24").expect("two networks");
    let with_networks = alone().quota_for(networks, low_quota());
    let named = alone().name("api").expect("the name is valid");
    let per_24 = Prefix::new(24, 128).expect("bits of an address");
    [
        ("v6 rate_limit", alone()),
        ("v6 no_level", alone().wider(per_24, 64)),
        ("v6 ladder", alone().ladder().wider_mode(Mode::Enforce)),
        ("v6 quota_for", with_networks.expect("the quota is valid")),
        ("v6 settle", alone().settle(|response| response.charged - 1)),
        ("v6 fields", named.fields_on_every_response(true)),
    ]
}

/// Returns a usual rate, because that decides how the quota of a network is divided, and a burst
/// that is never used up.
fn quota() -> Quota {
    Quota::per_second(10).burst(100_000)
}

/// Sends requests through a layer that counts over several nodes. Its task never runs, so that all
/// requests are within what the node may admit before it reports.
pub(crate) fn fleet() -> Run {
    let runtime = runtime();
    let fleet = Fleet::with_store(MemoryStore::new()).nodes(1);
    let fleet = {
        let _entered = runtime.enter();
        fleet.secret("of 16 bytes at least").start()
    };
    let policy = quota().fleet(&fleet.expect("the options are valid"));
    let layer = RateLimitLayer::new(policy).expect("the policy is valid");
    let (mut service, conn) = (layer.layer(Ready), ipv6_connection());
    Box::new(move |requests| {
        // Without the runtime, the task would end, and the node count alone.
        let _runtime = &runtime;
        for _ in 0..requests {
            drive(&mut service, request(&conn));
        }
    })
}
