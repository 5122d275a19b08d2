//! The oracles judged: each accepts what a correct cluster may show, and finds what was planted.

use holdfast_chaos::{
    oracle::{
        block::{self, Operation as Block},
        fencing::{self, AcceptedWrite, Preempt, Seen, Service},
        linearizable::Timed,
        reservations::{self, Answer, Operation as Reservation, Request},
    },
    random::Random,
};

fn at<O>(sent: u64, answered: u64, operation: O) -> Timed<O> {
    Timed { sent, answered: Some(answered), operation }
}

fn unknown<O>(sent: u64, operation: O) -> Timed<O> {
    Timed { sent, answered: None, operation }
}

#[test]
fn concurrent_writes_may_take_effect_in_either_order() {
    for seen in [1, 2] {
        let history = [at(0, 9, Block::Write(1)), at(1, 8, Block::Write(2)), at(10, 11, Block::Read(seen))];
        assert_eq!(block::check(&history, None), Ok(()));
    }
}

#[test]
fn a_stale_read_is_found_and_named() {
    let history = [
        at(0, 1, Block::Write(1)),
        at(2, 3, Block::Write(2)),
        at(4, 5, Block::Read(2)),
        at(6, 7, Block::Read(1)),
    ];
    let found = block::check(&history, None).unwrap_err();
    assert_eq!((found.stuck, found.explained), (3, vec![0, 1, 2]));
}

#[test]
fn a_lost_write_is_found() {
    assert!(block::check(&[at(0, 1, Block::Write(1)), at(2, 3, Block::Read(0))], None).is_err());
}

#[test]
fn a_value_that_nobody_wrote_is_found() {
    assert!(block::check(&[at(0, 1, Block::Write(1)), at(2, 3, Block::Read(7))], None).is_err());
}

#[test]
fn a_write_of_unknown_outcome_may_land_late_but_only_once() {
    let late = |reads: &[u64]| {
        let mut history = vec![unknown(0, Block::Write(1)), at(2, 3, Block::Write(2))];
        history.extend(reads.iter().zip(2..).map(|(value, n)| at(2 * n, 2 * n + 1, Block::Read(*value))));
        block::check(&history, None)
    };
    assert_eq!(late(&[2, 2]), Ok(()));
    assert_eq!(late(&[2, 1]), Ok(()));
    assert_eq!(late(&[1, 1]), Ok(()));
    assert!(late(&[2, 1, 2]).is_err(), "value 2 came back");
}

#[test]
fn compare_and_write_is_judged_with_its_verdict() {
    let swap = |expected, matched| Block::CompareAndWrite { expected, written: 9, matched };
    let with = |operation, seen| {
        block::check(&[at(0, 1, Block::Write(1)), at(2, 3, operation), at(4, 5, Block::Read(seen))], None)
    };
    assert_eq!(with(swap(1, Some(true)), 9), Ok(()));
    assert_eq!(with(swap(2, Some(false)), 1), Ok(()));
    assert!(with(swap(2, Some(true)), 9).is_err(), "it matched what was not there");
    assert!(with(swap(1, Some(false)), 1).is_err(), "it missed what was there");
    assert!(with(swap(1, Some(true)), 1).is_err(), "its write was lost");
}

#[test]
fn of_two_compare_and_writes_of_one_value_one_matches() {
    let both = |matched| {
        block::check(
            &[
                at(0, 9, Block::CompareAndWrite { expected: 0, written: 1, matched: Some(true) }),
                at(0, 9, Block::CompareAndWrite { expected: 0, written: 2, matched: Some(matched) }),
            ],
            None,
        )
    };
    assert_eq!(both(false), Ok(()));
    assert!(both(true).is_err());
}

#[test]
fn an_unseen_write_of_unknown_outcome_may_explain_a_mismatch() {
    let history = [
        unknown(0, Block::Write(5)),
        at(1, 2, Block::CompareAndWrite { expected: 0, written: 6, matched: Some(false) }),
    ];
    assert_eq!(block::check(&history, None), Ok(()));
}

#[test]
fn what_was_flushed_survives_a_loss_of_power_and_what_was_not_may() {
    let after = |flushed: bool, seen| {
        let mut history =
            vec![at(0, 1, Block::Write(1)), at(4, 5, Block::PowerLoss), at(6, 7, Block::Read(seen))];
        if flushed {
            history.push(at(2, 3, Block::Flush));
        }
        block::check(&history, None)
    };
    assert_eq!(after(true, 1), Ok(()));
    assert!(after(true, 0).is_err(), "a flushed write was lost");
    assert_eq!(after(false, 0), Ok(()));
    assert_eq!(after(false, 1), Ok(()));
    assert!(
        block::check(
            &[
                at(0, 1, Block::Write(1)),
                at(2, 3, Block::PowerLoss),
                at(4, 5, Block::Read(0)),
                at(6, 7, Block::Read(1))
            ],
            None
        )
        .is_err(),
        "it came back"
    );
}

#[test]
fn a_write_that_lands_too_late_is_found() {
    let history = [
        unknown(0, Block::Write(1)),
        at(2, 3, Block::Write(2)),
        at(20, 21, Block::Read(2)),
        at(22, 23, Block::Read(1)),
    ];
    assert_eq!(block::check(&history, None), Ok(()));
    assert_eq!(block::check(&history, Some(21)), Ok(()));
    assert!(block::check(&history, Some(17)).is_err());
}

/// A long history of a real register under `clients` at once, some outcomes unknown.
fn long_history(seed: u64, clients: u64, operations: u64) -> Vec<Timed<Block>> {
    let mut random = Random::new(seed);
    let (mut value, mut now) = (0, 0);
    let mut free_at = vec![0; clients as usize];
    let mut history = Vec::new();
    for written in 1..=operations {
        let client = random.below(clients) as usize;
        // It takes effect now; it was sent before and is answered later, by its client's own time.
        now += 1 + random.below(3);
        let sent = (now - random.below(4).min(now)).max(free_at[client]).min(now);
        let answered = now + random.below(6);
        free_at[client] = answered + 1;
        now = now.max(sent);
        let known = random.below(50) != 0;
        let operation = match random.below(3) {
            0 => Block::Read(value),
            1 => {
                value = written;
                Block::Write(written)
            }
            _ => {
                let expected = if random.below(2) == 0 { value } else { operations + 1 };
                let matched = expected == value;
                if matched {
                    value = written;
                }
                Block::CompareAndWrite { expected, written, matched: known.then_some(matched) }
            }
        };
        history.push(Timed { sent, answered: known.then_some(answered), operation });
    }
    history
}

#[test]
fn ten_thousand_operations_on_one_block_are_judged() {
    for seed in 0..4 {
        let mut history = long_history(seed, 8, 10_000);
        assert_eq!(block::check(&history, None), Ok(()), "seed {seed}");
        // A read near the end that sees a value overwritten long ago.
        let old = history.iter().take(2_000).find_map(|timed| match (timed.answered, timed.operation) {
            (Some(_), Block::Write(value)) => Some(value),
            _ => None,
        });
        let planted =
            history.iter_mut().rev().find_map(|timed| match (&mut timed.operation, timed.answered) {
                (Block::Read(value), Some(_)) => Some(value),
                _ => None,
            });
        *planted.unwrap() = old.unwrap();
        assert!(block::check(&history, None).is_err(), "seed {seed}");
    }
}

fn out(sent: u64, nexus: u8, request: Request, answer: Answer) -> Timed<Reservation> {
    at(sent, sent + 1, Reservation::Out(nexus, request, answer))
}

#[test]
fn reservations_follow_the_standard() {
    use Answer::{Conflict, Good, Illegal};
    let history = [
        out(0, 1, Request::Reserve(5, 0xa), Conflict),
        out(2, 1, Request::Register(0, 0xa), Good),
        out(4, 2, Request::Register(7, 0xb), Conflict),
        out(6, 2, Request::RegisterAndIgnore(0xb), Good),
        out(8, 1, Request::Reserve(5, 0xa), Good),
        out(10, 1, Request::Reserve(5, 0xa), Good),
        out(12, 2, Request::Reserve(5, 0xb), Conflict),
        out(14, 1, Request::Release(1, 0xa), Illegal),
        out(16, 2, Request::Release(5, 0xb), Good),
        at(18, 19, Reservation::ReadReservation(2, Some((0xa, 5)))),
        out(20, 2, Request::Preempt(1, 0xb, 0xa), Good),
        at(22, 23, Reservation::ReadKeys(3, vec![0xb])),
        at(24, 25, Reservation::ReadReservation(3, Some((0xb, 1)))),
        out(26, 2, Request::Preempt(1, 0xb, 0xa), Conflict),
        out(28, 1, Request::RegisterAndIgnore(0xc), Good),
        out(30, 2, Request::Preempt(5, 0xb, 0xc), Good),
        at(32, 33, Reservation::ReadReservation(5, Some((0xb, 1)))),
        out(34, 2, Request::Register(0xb, 0), Good),
        at(36, 37, Reservation::ReadReservation(6, None)),
        out(38, 1, Request::Clear(0xc), Conflict),
    ];
    assert_eq!(reservations::check(&history, None), Ok(()));
}

#[test]
fn each_broken_rule_of_reservations_is_found() {
    use Answer::{Conflict, Good, Unknown};
    let register = |sent, nexus, key| out(sent, nexus, Request::RegisterAndIgnore(key), Good);
    let wrong: [(&str, Vec<Timed<Reservation>>); 6] = [
        ("a lost registration", vec![register(0, 1, 0xa), at(2, 3, Reservation::ReadKeys(1, vec![]))]),
        (
            "a lost reservation",
            vec![
                register(0, 1, 0xa),
                out(2, 1, Request::Reserve(5, 0xa), Good),
                at(4, 5, Reservation::ReadReservation(1, None)),
            ],
        ),
        (
            "a generation that went back",
            vec![register(0, 1, 0xa), at(2, 3, Reservation::ReadKeys(0, vec![0xa]))],
        ),
        (
            "two holders",
            vec![
                register(0, 1, 0xa),
                register(2, 2, 0xb),
                out(4, 1, Request::Reserve(1, 0xa), Good),
                out(6, 2, Request::Reserve(1, 0xb), Good),
            ],
        ),
        (
            "GOOD for what never happened",
            vec![
                register(0, 1, 0xa),
                register(2, 2, 0xb),
                out(4, 1, Request::Preempt(5, 0xa, 0xb), Good),
                at(6, 7, Reservation::ReadKeys(3, vec![0xa, 0xb])),
            ],
        ),
        ("BUSY and yet done", vec![register(0, 1, 0xa), out(2, 1, Request::Reserve(1, 0xa), Conflict)]),
    ];
    for (what, history) in wrong {
        assert!(reservations::check(&history, None).is_err(), "{what}");
    }
    // Of an unknown outcome both may be true, but not in turn.
    let unknown_reserve = unknown(2, Reservation::Out(1, Request::Reserve(5, 0xa), Unknown));
    let read = |sent, seen| at(sent, sent + 1, Reservation::ReadReservation(1, seen));
    let held = Some((0xa, 5));
    for (seen, fine) in
        [([None, None], true), ([None, held], true), ([held, held], true), ([held, None], false)]
    {
        let history = [register(0, 1, 0xa), unknown_reserve.clone(), read(4, seen[0]), read(6, seen[1])];
        assert_eq!(reservations::check(&history, None).is_ok(), fine, "{seen:?}");
    }
}

#[test]
fn a_change_of_unknown_outcome_may_never_happen_but_not_after_its_time() {
    let history = |read_at, seen| {
        [
            out(0, 1, Request::RegisterAndIgnore(0xa), Answer::Good),
            unknown(2, Reservation::Out(1, Request::Reserve(5, 0xa), Answer::Unknown)),
            at(20, 21, Reservation::ReadReservation(1, None)),
            at(read_at, read_at + 1, Reservation::ReadReservation(1, seen)),
        ]
    };
    assert_eq!(reservations::check(&history(30, None), Some(10)), Ok(()));
    assert_eq!(reservations::check(&history(30, Some((0xa, 5))), None), Ok(()));
    assert_eq!(reservations::check(&history(30, Some((0xa, 5))), Some(25)), Ok(()));
    assert!(reservations::check(&history(30, Some((0xa, 5))), Some(10)).is_err());
}

const PREEMPT: Preempt = Preempt { victim: 2, sent: 10, good: 20, lifted: Some(100) };

#[test]
fn a_write_after_a_preempt_is_found_unless_it_may_have_come_before_or_after() {
    let write = |nexus, sent, good| AcceptedWrite { nexus, sent, good };
    let fine = [write(2, 5, 12), write(2, 19, 40), write(2, 99, 101), write(1, 30, 31)];
    assert_eq!(fencing::unfenced(&[PREEMPT], &fine), vec![]);
    let found = fencing::unfenced(&[PREEMPT], &[write(2, 21, 22)]);
    assert_eq!(found.len(), 1);
}

#[test]
fn a_unit_attention_that_never_came_is_found() {
    let answer = |sent, seen| fencing::Answer { sent, answered: sent + 1, seen };
    let told = [answer(1, Seen::Good), answer(21, Seen::Told), answer(23, Seen::Good)];
    assert_eq!(fencing::untold(&[PREEMPT], &told), vec![]);
    let early = [answer(1, Seen::Good), answer(12, Seen::Told), answer(23, Seen::Good)];
    assert_eq!(fencing::untold(&[PREEMPT], &early), vec![]);
    let untold = [answer(1, Seen::Good), answer(21, Seen::Good)];
    assert_eq!(fencing::untold(&[PREEMPT], &untold), vec![PREEMPT]);
    let of_before = [answer(1, Seen::Told), answer(21, Seen::Good)];
    assert_eq!(fencing::untold(&[PREEMPT], &of_before), vec![PREEMPT]);
    let born_later = [answer(15, Seen::Good), answer(21, Seen::Good)];
    assert_eq!(fencing::untold(&[PREEMPT], &born_later), vec![]);
    let never_asked = [answer(1, Seen::Good)];
    assert_eq!(fencing::untold(&[PREEMPT], &never_asked), vec![]);
}

#[test]
fn two_owners_in_one_instant_are_found() {
    let service = |node, from, to| Service { node, from, to };
    let apart = [service(1, 0, 9), service(2, 10, 19), service(1, 20, 30), service(1, 25, 40)];
    assert_eq!(fencing::two_owners(&apart), vec![]);
    assert_eq!(fencing::two_owners(&[service(1, 0, 100), service(1, 1, 2), service(2, 50, 51)]).len(), 1);
}
