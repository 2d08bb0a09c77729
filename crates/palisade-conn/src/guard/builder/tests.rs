use super::*;

#[test]
fn an_error_names_every_value_out_of_range() {
    let error = ConnGuard::builder()
        .max_connections(0)
        .reserve(1, [])
        .max_per_client(0)
        .max_per_network(0)
        .accept_rate((0, 1))
        .accept_rate_per_network((1, 0))
        .first_request_timeout(Duration::ZERO)
        .header_timeout(Duration::MAX)
        .idle_timeout(Duration::ZERO)
        .upgraded_idle_timeout(Duration::ZERO)
        .write_timeout(Duration::ZERO)
        .max_age(Duration::ZERO)
        .age_grace(Duration::MAX)
        .max_requests(0)
        .max_upgraded(0)
        .max_in_flight(0)
        .max_cancelled(0)
        .max_overhead(1023)
        .probe_interval(Duration::ZERO)
        .receive_buffer(4095)
        .sweep_interval(Duration::ZERO)
        .build()
        .unwrap_err();
    let fields: Vec<_> = error
        .faults()
        .iter()
        .map(|fault| fault.field.clone())
        .collect();
    let all = [
        "max_connections",
        "reserve",
        "max_per_client",
        "max_per_network",
        "accept_rate",
        "accept_rate_per_network",
        "first_request_timeout",
        "header_timeout",
        "idle_timeout",
        "upgraded_idle_timeout",
        "write_timeout",
        "max_age",
        "age_grace",
        "max_requests",
        "max_upgraded",
        "max_in_flight",
        "max_cancelled",
        "max_overhead",
        "probe_interval",
        "receive_buffer",
        "sweep_interval",
    ];
    assert_eq!(fields, all);
    let text = error.to_string();
    assert!(
        text.contains("\n  idle_timeout is 0ns, allowed is 1 ms to 24 h"),
        "{text}"
    );
}

#[test]
fn the_ends_of_the_ranges_are_allowed() {
    let min = ConnGuard::builder()
        .max_connections(1)
        .max_per_client(1)
        .max_requests(1);
    let min = min
        .accept_rate((1, 1))
        .age_grace(Duration::ZERO)
        .sweep_interval(MILLISECOND);
    min.idle_timeout(MILLISECOND)
        .max_age(MILLISECOND)
        .build()
        .unwrap();
    let max = ConnGuard::builder()
        .max_connections(MAX_CONNECTIONS)
        .max_age(30 * DAY);
    max.accept_rate((1_000_000, 1_000_000))
        .idle_timeout(DAY)
        .build()
        .unwrap();
}

#[test]
fn the_share_of_a_client_follows_the_cap() {
    let share = |max| {
        let guard = ConnGuard::builder().max_connections(max).build().unwrap();
        guard.shared().limits.per_client
    };
    assert_eq!(
        [share(100), share(10_000), share(1 << 20)],
        [Some(64), Some(100), Some(10_485)]
    );
}

#[test]
fn the_share_of_a_network_is_four_times_that_of_a_client() {
    let share = |builder: ConnGuardBuilder| builder.build().unwrap().shared().limits.per_network;
    let builder = || ConnGuard::builder().max_connections(1000);
    assert_eq!(share(builder()), Some(256));
    assert_eq!(share(builder().max_per_client(3)), Some(12));
    assert_eq!(share(builder().max_per_client(None)), None);
    assert_eq!(
        share(builder().max_per_client(None).max_per_network(7)),
        Some(7)
    );
    assert_eq!(share(builder().max_per_network(None)), None);
}

#[test]
fn without_a_limit_per_client_there_is_none_on_idle_connections() {
    let idle_limit =
        |builder: ConnGuardBuilder| builder.build().unwrap().shared().limits.keep_alive;
    assert_eq!(idle_limit(ConnGuard::builder()), Some(8));
    assert_eq!(idle_limit(ConnGuard::builder().max_per_client(None)), None);
    assert_eq!(
        idle_limit(
            ConnGuard::builder()
                .max_per_client(None)
                .keep_alive_per_client(3)
        ),
        Some(3)
    );
    assert_eq!(
        idle_limit(ConnGuard::builder().keep_alive_per_client(None)),
        None
    );
}
