use super::*;
use crate::Grade;
use std::collections::BTreeMap;

fn figures(served_share: f64, p99_ms: f64) -> Figures {
    let failed = u64::from(served_share < 1.0);
    let failures = (failed > 0).then(|| ("timed out".to_owned(), failed));
    Figures {
        sent: 50 + failed,
        served: 50,
        seconds: 5.0,
        served_share,
        p50_ms: Some(1.0),
        p99_ms: Some(p99_ms),
        failures: failures.into_iter().collect::<BTreeMap<_, _>>(),
    }
}

fn honest(during: [(f64, f64); 2]) -> Vec<Honest> {
    let kinds = [Kind::NewConnection, Kind::KeepAlive];
    let each = kinds.into_iter().zip(during);
    let each = each.map(|(kind, (share, p99))| Honest {
        kind,
        before: figures(1.0, 2.0),
        during: figures(share, p99),
    });
    each.collect()
}

const UNHARMED: [(f64, f64); 2] = [(1.0, 3.0), (1.0, 3.0)];

fn evidence(honest: &[Honest]) -> Evidence<'_> {
    Evidence {
        honest,
        during: Span {
            from: Duration::ZERO,
            to: Duration::from_secs(5),
        },
        lateness: Duration::from_millis(3),
        recovery: Some(Duration::from_millis(100)),
        has_ended: false,
        attackers: Attackers {
            connections: 100,
            opened: 100,
            alive: 0,
            displaced: None,
            takes_places: true,
            answers: None,
        },
    }
}

#[test]
fn a_server_that_serves_as_before_and_keeps_no_attacker_has_held() {
    let honest = honest(UNHARMED);
    assert_eq!(judge(&evidence(&honest)), (Verdict::Held, String::new()));
    let mut some = evidence(&honest);
    some.attackers.alive = 10;
    assert_eq!(judge(&some).0, Verdict::Held);
}

#[test]
fn attackers_that_stay_are_kept_and_those_that_newcomers_displace_are_not() {
    let honest = honest(UNHARMED);
    let mut stay = evidence(&honest);
    stay.attackers.alive = 90;
    let (verdict, reason) = judge(&stay);
    assert_eq!(verdict, Verdict::Kept);
    assert_eq!(
        reason,
        "90 of 100 attackers stay, perhaps patience: `places` tells"
    );
    stay.attackers.displaced = Some(5);
    assert_eq!(judge(&stay).0, Verdict::Held);
    stay.attackers.displaced = Some(80);
    let (verdict, reason) = judge(&stay);
    assert_eq!(verdict, Verdict::Kept);
    assert_eq!(reason, "80 of 100 attackers stay when places are short");
    stay.attackers.takes_places = false;
    assert_eq!(judge(&stay).0, Verdict::Held);
}

#[test]
fn one_kind_that_is_served_less_or_later_is_harm() {
    let fewer = honest([(0.9, 3.0), (1.0, 3.0)]);
    let (verdict, reason) = judge(&evidence(&fewer));
    assert_eq!(verdict, Verdict::Harmed);
    assert_eq!(
        reason,
        "new connection: served 90.0 % of the time (timed out x 1)"
    );
    let later = honest([(1.0, 3.0), (1.0, 57.0)]);
    let (verdict, reason) = judge(&evidence(&later));
    assert_eq!(verdict, Verdict::Harmed);
    assert_eq!(reason, "keep-alive: p99 57 ms, before 2.0 ms");
    let within = honest([(0.99, 56.0), (1.0, 56.0)]);
    assert_eq!(judge(&evidence(&within)).0, Verdict::Held);
}

#[test]
fn a_server_is_down_below_half_of_the_time_or_if_it_does_not_come_back_or_ended() {
    let half = honest([(0.0, 3.0), (0.98, 3.0)]);
    assert_eq!(judge(&evidence(&half)).0, Verdict::Down);
    let unharmed = honest(UNHARMED);
    let mut lost = evidence(&unharmed);
    lost.recovery = None;
    assert_eq!(
        judge(&lost),
        (Verdict::Down, "not back within 5 s".to_owned())
    );
    lost.has_ended = true;
    assert_eq!(judge(&lost).1, "the server ended");
    // Also on a machine that is busy, perhaps with its core dump.
    lost.lateness = Duration::from_millis(60);
    assert_eq!(judge(&lost).0, Verdict::Down);
}

#[test]
fn a_busy_machine_a_bad_start_and_too_few_requests_are_inconclusive() {
    let down = honest([(0.0, 3.0), (0.0, 3.0)]);
    let mut late = evidence(&down);
    late.lateness = Duration::from_millis(51);
    assert_eq!(judge(&late).0, Verdict::Inconclusive);

    let mut before = down.clone();
    before[0].before.served_share = 0.9;
    let (verdict, reason) = judge(&evidence(&before));
    assert_eq!(verdict, Verdict::Inconclusive);
    assert_eq!(
        reason,
        "new connection: served 90.0 % of the time before the attack"
    );

    let mut slow = honest(UNHARMED);
    slow[0].before.p99_ms = Some(501.0);
    let reason = judge(&evidence(&slow)).1;
    assert_eq!(reason, "new connection: p99 501 ms before the attack");

    let mut few = honest(UNHARMED);
    few[1].during.seconds = 2.0;
    assert_eq!(
        judge(&evidence(&few)).1,
        "keep-alive: 2.0 s of 5.0 s can be judged"
    );
    // Harm of another kind counts all the same.
    few[0].during = figures(0.6, 3.0);
    let (verdict, reason) = judge(&evidence(&few));
    assert_eq!(verdict, Verdict::Harmed);
    assert!(
        reason.starts_with("new connection: served 60.0 %"),
        "{reason}"
    );
    few[0].during = figures(0.4, 3.0);
    assert_eq!(judge(&evidence(&few)).0, Verdict::Down);
    few[0].during = few[1].during.clone();
    assert_eq!(judge(&evidence(&few)).0, Verdict::Inconclusive);
    assert_eq!(judge(&evidence(&[])).0, Verdict::Inconclusive);
}

#[test]
fn attackers_that_reach_nothing_prove_nothing() {
    let honest = honest(UNHARMED);
    let mut none = evidence(&honest);
    none.attackers.opened = 0;
    assert_eq!(judge(&none).1, "no attacker got a connection");
    none.attackers.connections = 0;
    assert_eq!(judge(&none).0, Verdict::Held);
}

#[test]
fn a_grade_is_that_of_the_worst_verdict() {
    use Verdict::*;
    assert_eq!(Grade::of([Held, Held]), Some(Grade::A));
    assert_eq!(Grade::of([Held, Kept]), Some(Grade::B));
    assert_eq!(Grade::of([Kept, Harmed, Inconclusive]), Some(Grade::C));
    assert_eq!(Grade::of([Harmed, Down, Held]), Some(Grade::F));
    assert_eq!(Grade::of([]), None);
}

#[test]
fn honest_clients_that_are_refused_count_even_if_the_drills_own_were_refused_before() {
    let crowd = |served, refused| Some(Answers::ToHonestClients { served, refused });
    let mut refused = honest([(0.1, 2.0); 2]);
    for honest in &mut refused {
        honest.before = figures(0.1, 2.0);
    }
    let mut seen = evidence(&refused);
    seen.attackers.answers = crowd(1, 39);
    assert_eq!(judge(&seen).0, Verdict::Down);
    // A busy machine says nothing.
    seen.lateness = MAX_LATENESS * 2;
    assert_eq!(judge(&seen).0, Verdict::Inconclusive);

    let unharmed = honest(UNHARMED);
    let mut seen = evidence(&unharmed);
    seen.attackers.connections = 40;
    seen.attackers.answers = crowd(40, 0);
    assert_eq!(judge(&seen).0, Verdict::Held);
    seen.attackers.answers = crowd(39, 1);
    assert_eq!(judge(&seen).0, Verdict::Harmed);
}
