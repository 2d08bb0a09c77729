use super::*;

fn tracked() -> ConnStats {
    ConnStats {
        tracked: true,
        ..ConnStats::default()
    }
}

#[test]
fn a_connection_at_work_is_never_evicted_and_the_least_useful_goes_first() {
    let silent = ConnStats {
        awaits_read: true,
        ..tracked()
    };
    let never_looked_at = tracked();
    let proven = ConnStats {
        requests: 3,
        answered: 3,
        ..tracked()
    };
    let working = ConnStats {
        in_flight: 1,
        ..proven
    };
    let blocked = ConnStats {
        write_blocked: true,
        ..proven
    };
    let upgraded = ConnStats {
        upgraded: true,
        ..proven
    };
    let untracked = ConnStats {
        read: 1,
        ..ConnStats::default()
    };
    let lingering = ConnStats {
        lingering: true,
        ..proven
    };
    let busy = ConnStats {
        requests: 90,
        answered: 90,
        ..proven
    };
    // A client that cancels all its requests has no response either.
    let cancelling = ConnStats {
        answered: 0,
        cancelled: 3,
        ..proven
    };
    let in_order = [
        (&lingering, 9000),
        (&lingering, 5),
        (&silent, 9000),
        (&cancelling, 8000),
        (&silent, 500),
        (&proven, 9000),
        (&proven, 7000),
        // Newcomers.
        (&never_looked_at, 9000),
        (&silent, 499),
        (&silent, 5),
        (&busy, 9000),
        (&busy, 5),
    ];
    let ranks = in_order.map(|(stats, age)| EvictionRank::of(stats, age, false).unwrap());
    assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
    for kept in [working, blocked, upgraded, untracked] {
        assert_eq!(EvictionRank::of(&kept, 9000, false), None);
    }
    // Among many newcomers, each ranks as a connection without a response.
    assert_eq!(
        EvictionRank::of(&silent, 5, true).map(|rank| rank.class.usefulness),
        Some(Usefulness::NoResponse)
    );
    assert_eq!(
        EvictionRank::of(&busy, 5, true),
        EvictionRank::of(&busy, 5, false)
    );
    // The longest stall goes first, after connections with little work and before newcomers.
    let stalled = |stalled| EvictionRank::of(&ConnStats { stalled, ..blocked }, 9000, false);
    assert_eq!(stalled(STALLED_SECONDS - 1), None);
    assert!(
        stalled(STALLED_SECONDS) > Some(ranks[6])
            && stalled(STALLED_SECONDS) < Some(ranks[7])
            && stalled(30) < stalled(STALLED_SECONDS)
    );
    assert_eq!(
        EvictionRank::of(
            &ConnStats {
                stalled: 30,
                ..working
            },
            9000,
            false
        ),
        None
    );
}

#[test]
fn a_stalled_upload_is_evicted_before_newcomers_unless_it_may_be_complete() {
    let upload = ConnStats {
        requests: 1,
        in_flight: 1,
        stalled: 5,
        ..tracked()
    };
    let upload = ConnStats {
        awaits_read: true,
        ..upload
    };
    let class =
        |stats: &ConnStats| EvictionRank::of(stats, 9000, false).map(|rank| rank.class.usefulness);
    let newcomer = EvictionRank::of(&tracked(), 5, false).map(|rank| rank.class.usefulness);
    let measured = ConnStats {
        body_left: true,
        ..upload
    };
    let chunked = ConnStats {
        unmeasured: true,
        ..upload
    };
    let http2 = ConnStats {
        http2: true,
        uploading: true,
        ..upload
    };
    for stalled in [measured, chunked, http2] {
        assert!(class(&stalled) < newcomer);
    }
    // Never while it arrives. Sooner if more is certainly to come.
    for (stalled, seconds) in [
        (measured, STALLED_UPLOAD_SECONDS),
        (chunked, STALLED_SECONDS),
        (http2, STALLED_SECONDS),
    ] {
        let after = |stalled: u8, stats| class(&ConnStats { stalled, ..stats });
        assert_eq!(after(seconds - 1, stalled), None);
        assert_eq!(after(seconds, stalled), Some(Usefulness::Stalled));
    }
    // The longest goes first.
    let rank = |stalled| {
        EvictionRank::of(
            &ConnStats {
                stalled,
                ..measured
            },
            9000,
            false,
        )
    };
    assert!(rank(3) < rank(2) && rank(2) < rank(1));
    // A connection that completed requests may wait for the handler, or for its own stream.
    for quiet in [chunked, http2] {
        assert!(
            class(&ConnStats {
                requests: 2,
                answered: 1,
                ..quiet
            }) > newcomer
        );
    }
    // The handler does not read more of the body.
    assert_eq!(
        class(&ConnStats {
            awaits_read: false,
            ..measured
        }),
        Some(Usefulness::Stalled)
    );
    assert_eq!(
        class(&ConnStats {
            awaits_read: false,
            ..chunked
        }),
        None
    );
}

#[test]
fn rare_small_requests_are_less_work_than_a_page_loaded_half_a_minute_ago() {
    let with_work = |answered, written| ConnStats {
        requests: 1,
        answered,
        written,
        ..tracked()
    };
    // 20 responses of 200 bytes each, one every 3 s for a minute.
    let rare = with_work(20, 4000);
    // Seven responses of 20 KiB each, within a second.
    let page = with_work(7, 140 * 1024);
    let once = with_work(1, 200);
    assert!(EvictionRank::of(&rare, 60_000, false) < EvictionRank::of(&page, 30_000, false));
    assert!(EvictionRank::of(&rare, 60_000, false) < EvictionRank::of(&once, 2000, false));
    assert!(EvictionRank::of(&once, 30_000, false) < EvictionRank::of(&rare, 60_000, false));
    // A client that opens a connection for each request is evicted before one that loaded a page,
    // and after older connections of its own kind.
    assert!(EvictionRank::of(&once, 5, false) < EvictionRank::of(&page, 20_000, false));
    assert!(
        EvictionRank::of(&once, 1000, false) < EvictionRank::of(&once, 5, false)
            && EvictionRank::of(&rare, 60_000, false) < EvictionRank::of(&once, 5, false)
    );
}
