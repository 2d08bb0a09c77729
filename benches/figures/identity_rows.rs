//! The figures of clients behind proxies, of their networks, and of bans.

use crate::{
    callgrind::Cost,
    table::{Limit, Limit::AtMost, Row},
};

/// Adds the rows. `cost` returns the cost of a scenario beyond that of another one.
pub(crate) fn add(rows: &mut Vec<Row>, cost: impl Fn(&str, &str) -> Cost) {
    let ir = |scenario: &str, bare: &str| cost(scenario, bare).instructions;
    let mut count = |id, figure, peers: Option<f64>, palisade, limit| {
        rows.push(Row::count(id, figure, peers, palisade, limit));
    };
    let figure = "the client of an untrusted peer, with the extension: instructions";
    count(
        "P17",
        figure,
        None,
        ir("client untrusted", "client bare"),
        AtMost(250.0),
    );
    let figure = "the client behind three hops, with the extension: instructions";
    count(
        "P17",
        figure,
        None,
        ir("client three-hops", "client bare"),
        AtMost(1000.0),
    );
    let figure = "the same: allocations";
    let allocated = cost("client three-hops", "client bare").allocations;
    count("P17", figure, None, allocated, AtMost(1.0));
    for (figure, small, middle, large) in [
        (
            "X-Forwarded-For, 4 KiB over 2: growth over that of 2 over 1",
            "x-forwarded-for 1",
            "x-forwarded-for 2",
            "x-forwarded-for 4",
        ),
        (
            "Forwarded, 4 KiB over 2: growth over that of 2 over 1",
            "forwarded 1",
            "forwarded 2",
            "forwarded 4",
        ),
        (
            "PROXY header, 4 KiB over 2: growth over that of 2 over 1",
            "proxy-header 1",
            "proxy-header 2",
            "proxy-header 4",
        ),
    ] {
        // Twice as much for twice as many bytes: linear time.
        let growth = ir(large, middle) / ir(middle, small);
        count("P17", figure, None, growth, AtMost(2.1));
    }
    for (scenario, bare, figure, limit) in [
        (
            "ban palisade",
            "no_guard palisade",
            "a ban asked for the peer, 10,000 others banned: instructions over an empty policy",
            200.0,
        ),
        (
            "ban_named palisade",
            "no_guard_named palisade",
            "a ban asked for a named client: instructions over an empty policy",
            200.0,
        ),
        (
            "deny palisade",
            "no_guard palisade",
            "a ban and a list of 100,000 networks: instructions over an empty policy",
            400.0,
        ),
        (
            "accept ban",
            "accept bare",
            "a ban asked at accept: instructions",
            300.0,
        ),
        (
            "accept deny",
            "accept bare",
            "a ban and a list of 100,000 networks at accept: instructions",
            300.0,
        ),
    ] {
        count("P19", figure, None, ir(scenario, bare), AtMost(limit));
    }
    let figure = "each limit of a wider network, of two: instructions";
    let each = ir("v6 ladder", "v6 no_level") / 2.0;
    count("P18", figure, None, each, AtMost(250.0));
    let figure = "a ladder of two: instructions over the rate limit alone";
    let ladder = ir("v6 ladder", "v6 rate_limit");
    count("P18", figure, None, ladder, Limit::None);
    let figure = "a quota for certain networks: instructions";
    let networks = ir("v6 quota_for", "v6 rate_limit");
    count("P18", figure, None, networks, Limit::None);
    let figure = "a charge that the response gives back: instructions";
    let settled = cost("v6 settle", "v6 rate_limit");
    count("P18", figure, None, settled.instructions, Limit::None);
    let figure = "the same: allocations";
    count("P18", figure, None, settled.allocations, AtMost(1.0));
    let fleet = cost("v6 fleet", "v6 rate_limit");
    let figure = "over several nodes: instructions over the rate limit of one";
    count("P20", figure, None, fleet.instructions, AtMost(250.0));
    let figure = "the same: allocations";
    count("P20", figure, None, fleet.allocations, AtMost(0.0));
    let figure = "RateLimit fields on every response: instructions";
    let fields = ir("v6 fields", "v6 rate_limit");
    count("P18", figure, None, fields, Limit::None);
}
