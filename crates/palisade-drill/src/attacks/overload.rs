//! More requests for the CPU-bound GET than the processor can answer. There are no attackers: the
//! drill sends the load itself, and judges it by a rule of its own.

use super::attack::{Attack, Needs, Takes, remedy};

pub(super) fn attacks() -> Vec<Attack> {
    vec![Attack {
        name: "cpu-overload",
        threat: "T24",
        title: "requests at twice the capacity of the processor, each from an honest client",
        withholds: "nothing: there are more requests than processor time",
        stopped_by: "a limit on requests in flight near the number of processor cores, with a \
                     short queue, that refuses the rest at once",
        remedies: const {
            &[
                remedy("palisade", "Stack: load_shed, or a concurrency limit"),
                remedy("tower", "load_shed around a ConcurrencyLimitLayer"),
                remedy("nginx", "limit_conn on the upstream location"),
                remedy("HAProxy", "maxconn of the server and timeout queue 1s"),
            ]
        },
        connections: 0,
        needs: Needs::Cpu,
        takes: Takes::Work,
        ..Attack::BASE
    }]
}
