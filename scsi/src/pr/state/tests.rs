use super::*;
use crate::sense::asc;
use std::vec;

const PORTS: [RelativePort; 2] = [RelativePort(1), RelativePort(2)];
const WE: ReservationType = ReservationType::WriteExclusive;
const EA: ReservationType = ReservationType::ExclusiveAccess;
const WERO: ReservationType = ReservationType::WriteExclusiveRegistrantsOnly;
const WEAR: ReservationType = ReservationType::WriteExclusiveAllRegistrants;

fn initiator(n: u8) -> TransportId {
    TransportId::iscsi("iqn.2026-01.x:host", [n; 6]).unwrap()
}

fn nexus(n: u8) -> Nexus {
    Nexus::new(initiator(n), RelativePort(1))
}

fn register(existing_key: Option<u64>, new_key: u64) -> PrOut<'static> {
    PrOut::Register { existing_key, new_key, aptpl: false, all_target_ports: false, initiator_ports: None }
}

fn preempt(key: u64, victim: u64, kind: ReservationType) -> PrOut<'static> {
    PrOut::Preempt { key, victim, kind: Some(kind), abort: false }
}

/// Nexuses 1..=n registered with keys 0x10 * n.
fn registered(n: u8) -> Reservations {
    let mut state = Reservations::default();
    for i in 1..=n {
        state.apply(&nexus(i), &register(Some(0), 0x10 * u64::from(i)), &PORTS).unwrap();
    }
    state
}

fn reserved(n: u8, kind: ReservationType) -> Reservations {
    let mut state = registered(n);
    state.apply(&nexus(1), &PrOut::Reserve { key: 0x10, kind }, &PORTS).unwrap();
    state
}

fn told(applied: &Applied) -> Vec<(Nexus, AdditionalSense)> {
    applied.unit_attentions.clone()
}

#[test]
fn register_needs_the_existing_key() {
    let mut state = registered(1);
    assert_eq!(state.apply(&nexus(1), &register(Some(0x99), 5), &PORTS), Err(Refusal::Conflict));
    assert_eq!(state.apply(&nexus(2), &register(Some(0x10), 5), &PORTS), Err(Refusal::Conflict));
    assert!(state.apply(&nexus(1), &register(None, 5), &PORTS).unwrap().changed);
    assert_eq!(state.registrants()[0].key, 5);
}

#[test]
fn unregistering_the_unregistered_does_nothing() {
    let mut state = registered(1);
    for request in [register(Some(0), 0), register(None, 0)] {
        assert_eq!(state.apply(&nexus(2), &request, &PORTS), Ok(Applied::default()));
    }
    assert_eq!(state.generation(), 1);
}

#[test]
fn generation_moves_on_registrations_not_on_reserve_and_release() {
    let mut state = registered(2);
    assert_eq!(state.generation(), 2);
    state.apply(&nexus(1), &PrOut::Reserve { key: 0x10, kind: WE }, &PORTS).unwrap();
    state.apply(&nexus(1), &PrOut::Release { key: 0x10, kind: Some(WE) }, &PORTS).unwrap();
    assert_eq!(state.generation(), 2);
    state.apply(&nexus(1), &preempt(0x10, 0x20, WE), &PORTS).unwrap();
    assert_eq!(state.generation(), 3);
    state.apply(&nexus(1), &PrOut::Clear { key: 0x10 }, &PORTS).unwrap();
    assert_eq!(state.generation(), 4);
    assert!(state.registrants().is_empty());
}

#[test]
fn aptpl_is_the_last_one_asked_for() {
    let mut state = Reservations::default();
    let ask = |existing_key, aptpl| PrOut::Register {
        existing_key,
        new_key: 1,
        aptpl,
        all_target_ports: false,
        initiator_ports: None,
    };
    state.apply(&nexus(1), &ask(Some(0), true), &PORTS).unwrap();
    assert!(state.aptpl());
    state.apply(&nexus(1), &ask(None, false), &PORTS).unwrap();
    assert!(!state.aptpl());
}

#[test]
fn all_target_ports_registers_through_each_and_conflicts_as_a_whole() {
    let all = |existing_key, new_key| PrOut::Register {
        existing_key,
        new_key,
        aptpl: false,
        all_target_ports: true,
        initiator_ports: None,
    };
    let mut state = Reservations::default();
    state.apply(&nexus(1), &all(Some(0), 7), &PORTS).unwrap();
    assert_eq!(state.registrants().iter().map(|r| r.nexus.port).collect::<Vec<_>>(), PORTS);
    assert_eq!(state.generation(), 1);
    state.apply(&nexus(1), &register(Some(7), 8), &PORTS).unwrap();
    assert_eq!(state.apply(&nexus(1), &all(Some(8), 9), &PORTS), Err(Refusal::Conflict));
    state.apply(&nexus(1), &all(None, 0), &PORTS).unwrap();
    assert!(state.registrants().is_empty());
}

#[test]
fn reserve_is_idempotent_for_the_holder_and_conflicts_otherwise() {
    let mut state = reserved(2, WE);
    let reserve = |key, kind| PrOut::Reserve { key, kind };
    assert_eq!(state.apply(&nexus(1), &reserve(0x10, WE), &PORTS), Ok(Applied::default()));
    assert_eq!(state.apply(&nexus(1), &reserve(0x10, EA), &PORTS), Err(Refusal::Conflict));
    assert_eq!(state.apply(&nexus(2), &reserve(0x20, WE), &PORTS), Err(Refusal::Conflict));
    assert_eq!(state.apply(&nexus(3), &reserve(0, WE), &PORTS), Err(Refusal::Conflict));
    let mut all = reserved(2, WEAR);
    assert_eq!(all.apply(&nexus(2), &reserve(0x20, WEAR), &PORTS), Ok(Applied::default()));
}

#[test]
fn release_by_others_is_good_and_the_wrong_type_is_an_error() {
    let mut state = reserved(2, WE);
    let release = |key, kind| PrOut::Release { key, kind };
    assert_eq!(state.apply(&nexus(2), &release(0x20, Some(WE)), &PORTS), Ok(Applied::default()));
    assert_eq!(state.apply(&nexus(2), &release(0x10, Some(WE)), &PORTS), Err(Refusal::Conflict));
    for wrong in [Some(EA), None] {
        let Err(Refusal::Sense(sense)) = state.apply(&nexus(1), &release(0x10, wrong), &PORTS) else {
            panic!("released")
        };
        assert_eq!(sense.additional, asc::INVALID_RELEASE_OF_PERSISTENT_RESERVATION);
    }
    assert!(state.apply(&nexus(1), &release(0x10, Some(WE)), &PORTS).unwrap().unit_attentions.is_empty());
    assert_eq!(state.reservation(), None);
}

#[test]
fn release_of_a_registrants_type_tells_the_other_registrants() {
    for kind in [WERO, WEAR] {
        let mut state = reserved(3, kind);
        let applied =
            state.apply(&nexus(1), &PrOut::Release { key: 0x10, kind: Some(kind) }, &PORTS).unwrap();
        let expected = [(nexus(2), asc::RESERVATIONS_RELEASED), (nexus(3), asc::RESERVATIONS_RELEASED)];
        assert_eq!(told(&applied), expected);
        assert!(!applied.narrowed);
    }
}

#[test]
fn unregistering_the_holder_releases() {
    for (kind, ua) in [(WE, false), (EA, false), (WERO, true)] {
        let mut state = reserved(2, kind);
        let applied = state.apply(&nexus(1), &register(Some(0x10), 0), &PORTS).unwrap();
        assert_eq!(state.reservation(), None);
        let expected = if ua { vec![(nexus(2), asc::RESERVATIONS_RELEASED)] } else { vec![] };
        assert_eq!(told(&applied), expected);
    }
}

#[test]
fn all_registrants_survive_one_holders_unregister_but_not_the_last() {
    let mut state = reserved(2, WEAR);
    let applied = state.apply(&nexus(1), &register(Some(0x10), 0), &PORTS).unwrap();
    assert!(told(&applied).is_empty() && applied.narrowed, "who unregistered may no longer write");
    assert!(state.view().holds(&nexus(2)) && !state.view().holds(&nexus(1)));
    state.apply(&nexus(2), &register(Some(0x20), 0), &PORTS).unwrap();
    assert_eq!(state.reservation(), None);
}

#[test]
fn clear_tells_every_other_registrant() {
    let mut state = reserved(3, EA);
    let applied = state.apply(&nexus(2), &PrOut::Clear { key: 0x20 }, &PORTS).unwrap();
    let preempted = asc::RESERVATIONS_PREEMPTED;
    assert_eq!(told(&applied), [(nexus(1), preempted), (nexus(3), preempted)]);
    assert_eq!(state, Reservations { generation: 4, ..Reservations::default() });
}

#[test]
fn preempt_of_the_holder_takes_the_reservation_over() {
    let mut state = reserved(3, WERO);
    let applied = state.apply(&nexus(2), &preempt(0x20, 0x10, WERO), &PORTS).unwrap();
    assert_eq!(told(&applied), [(nexus(1), asc::REGISTRATIONS_PREEMPTED)]);
    assert!(applied.narrowed && applied.abort_tasks_of.is_empty());
    assert_eq!(state.reservation(), Some(&Reservation::new(WERO, nexus(2))));
    assert_eq!(state.registrants().len(), 2);
}

#[test]
fn preempt_that_changes_the_type_tells_the_rest() {
    let mut state = reserved(3, WERO);
    let applied = state.apply(&nexus(2), &preempt(0x20, 0x10, EA), &PORTS).unwrap();
    let expected = [(nexus(1), asc::REGISTRATIONS_PREEMPTED), (nexus(3), asc::RESERVATIONS_RELEASED)];
    assert_eq!(told(&applied), expected);
}

#[test]
fn preempt_of_the_own_key_by_the_holder_changes_the_type_and_keeps_the_registration() {
    let mut state = reserved(2, WE);
    let applied = state.apply(&nexus(1), &preempt(0x10, 0x10, EA), &PORTS).unwrap();
    assert_eq!(told(&applied), [(nexus(2), asc::RESERVATIONS_RELEASED)]);
    assert_eq!(state.reservation(), Some(&Reservation::new(EA, nexus(1))));
    assert_eq!(state.registrants().len(), 2);
}

#[test]
fn preempt_of_the_own_key_without_a_reservation_unregisters_the_issuer() {
    let mut state = registered(2);
    let applied = state.apply(&nexus(1), &preempt(0x10, 0x10, WE), &PORTS).unwrap();
    assert!(told(&applied).is_empty());
    assert_eq!(state.registrants().len(), 1);
    assert_eq!(state.reservation(), None);
}

#[test]
fn preempt_of_other_registrants_leaves_the_reservation_and_ignores_the_type() {
    let mut state = reserved(3, WE);
    let request = PrOut::Preempt { key: 0x20, victim: 0x30, kind: None, abort: true };
    let applied = state.apply(&nexus(2), &request, &PORTS).unwrap();
    assert_eq!(told(&applied), [(nexus(3), asc::REGISTRATIONS_PREEMPTED)]);
    assert_eq!(applied.abort_tasks_of, [nexus(3)]);
    assert_eq!(state.reservation(), Some(&Reservation::new(WE, nexus(1))));
}

#[test]
fn preempt_with_an_invalid_type_is_refused_where_the_type_matters() {
    let mut state = reserved(2, WE);
    let request = PrOut::Preempt { key: 0x20, victim: 0x10, kind: None, abort: false };
    let refused = state.apply(&nexus(2), &request, &PORTS).unwrap_err();
    assert_eq!(refused, Refusal::Sense(Sense::illegal_field_cdb(2, Some(7))));
}

#[test]
fn preempt_with_a_key_nobody_has_conflicts() {
    assert_eq!(registered(2).apply(&nexus(1), &preempt(0x10, 0x99, WE), &PORTS), Err(Refusal::Conflict));
    assert_eq!(reserved(2, WEAR).apply(&nexus(1), &preempt(0x10, 0x99, WE), &PORTS), Err(Refusal::Conflict));
    assert_eq!(registered(2).apply(&nexus(3), &preempt(0x30, 0x10, WE), &PORTS), Err(Refusal::Conflict));
}

#[test]
fn preempt_with_zero_takes_an_all_registrants_reservation_only() {
    for mut state in [registered(2), reserved(2, WE)] {
        let refused = state.apply(&nexus(1), &preempt(0x10, 0, WE), &PORTS).unwrap_err();
        assert_eq!(refused, Refusal::Sense(Sense::illegal_field_parameter(8, None)));
    }
    let mut state = reserved(3, WEAR);
    let applied = state.apply(&nexus(2), &preempt(0x20, 0, EA), &PORTS).unwrap();
    let gone = asc::REGISTRATIONS_PREEMPTED;
    assert_eq!(told(&applied), [(nexus(1), gone), (nexus(3), gone)]);
    assert_eq!(state.reservation(), Some(&Reservation::new(EA, nexus(2))));
    assert_eq!(state.registrants().len(), 1);
}

#[test]
fn preempt_with_a_key_under_all_registrants_removes_registrations_only() {
    let mut state = reserved(3, WEAR);
    let applied = state.apply(&nexus(2), &preempt(0x20, 0x10, EA), &PORTS).unwrap();
    assert_eq!(told(&applied), [(nexus(1), asc::REGISTRATIONS_PREEMPTED)]);
    assert_eq!(state.reservation().map(Reservation::kind), Some(WEAR));
    assert!(applied.narrowed);
}

fn move_to(port: u16, unregister: bool, new_key: u64) -> PrOut<'static> {
    PrOut::RegisterAndMove {
        key: 0x10,
        new_key,
        unregister,
        aptpl: true,
        initiator: initiator(9),
        port: RelativePort(port),
    }
}

#[test]
fn register_and_move_hands_the_reservation_over() {
    let mut state = reserved(2, WE);
    let applied = state.apply(&nexus(1), &move_to(2, true, 0x90), &PORTS).unwrap();
    let destination = Nexus::new(initiator(9), RelativePort(2));
    assert!(applied.narrowed && applied.unit_attentions.is_empty());
    assert_eq!(state.reservation(), Some(&Reservation::new(WE, destination)));
    assert_eq!(state.view().registrant(&destination).map(|r| r.key), Some(0x90));
    assert_eq!(state.view().registrant(&nexus(1)), None);
    assert_eq!((state.generation(), state.aptpl()), (3, true));
}

#[test]
fn register_and_move_is_for_a_single_holder_and_a_known_port() {
    assert_eq!(registered(1).apply(&nexus(1), &move_to(2, false, 1), &PORTS), Err(Refusal::Conflict));
    assert_eq!(reserved(2, WEAR).apply(&nexus(1), &move_to(2, false, 1), &PORTS), Err(Refusal::Conflict));
    let refused = reserved(2, WE).apply(&nexus(1), &move_to(5, false, 1), &PORTS);
    assert_eq!(refused, Err(Refusal::Sense(Sense::illegal_field_parameter(18, None))));
}

fn spec_i_pt(ports: &[TransportId]) -> Vec<u8> {
    let ids: Vec<u8> = ports.iter().flat_map(|p| p.as_bytes().to_vec()).collect();
    let mut list = vec![0; 24];
    list[15] = 0x77;
    list[20] = 0x08;
    list.extend_from_slice(&(ids.len() as u32).to_be_bytes());
    list.extend_from_slice(&ids);
    list
}

fn parse_register(list: &[u8]) -> PrOut<'_> {
    let len = (list.len() as u32).to_be_bytes();
    PrOut::parse(&[0x5f, 0, 0, 0, 0, len[0], len[1], len[2], len[3], 0], list).unwrap()
}

#[test]
fn spec_i_pt_registers_the_listed_ports_or_none() {
    let list = spec_i_pt(&[initiator(5), initiator(6)]);
    let mut state = Reservations::default();
    state.apply(&nexus(1), &parse_register(&list), &PORTS).unwrap();
    let nexuses: Vec<Nexus> = state.registrants().iter().map(|r| r.nexus).collect();
    assert_eq!(nexuses, [nexus(1), nexus(5), nexus(6)]);
    assert_eq!(state.generation(), 1);

    let before = registered(5);
    let mut state = before.clone();
    let refused = state.apply(&nexus(8), &parse_register(&spec_i_pt(&[initiator(7), initiator(5)])), &PORTS);
    assert_eq!(refused, Err(Refusal::Sense(Sense::illegal_field_parameter(28, None))));
    assert_eq!(state, before);
}

#[test]
fn registrants_are_bounded() {
    let registrant = |n: usize| Registrant {
        nexus: Nexus::new(TransportId::sas((n as u64).to_be_bytes()), RelativePort(1)),
        key: 1,
        all_target_ports: false,
    };
    let full: Vec<Registrant> = (0..PR_REGISTRANTS_MAX).map(registrant).collect();
    let mut state = Reservations::from_parts(0, false, full, None).unwrap();
    let Err(Refusal::Sense(sense)) = state.apply(&nexus(1), &register(Some(0), 1), &PORTS) else {
        panic!("registered")
    };
    assert_eq!(sense.additional, asc::INSUFFICIENT_REGISTRATION_RESOURCES);
}

#[test]
fn stored_parts_are_checked() {
    let one = Registrant { nexus: nexus(1), key: 1, all_target_ports: false };
    let held = |n| Some(Reservation::new(WE, nexus(n)));
    let parts = |list: &[Registrant], r| Reservations::from_parts(1, false, list.to_vec(), r);
    assert!(parts(&[one], held(1)).is_ok());
    assert_eq!(parts(&[one], held(2)), Err(InvalidParts::HolderNotRegistered));
    assert_eq!(parts(&[], Some(Reservation::new(WEAR, nexus(1)))), Err(InvalidParts::HolderNotRegistered));
    assert_eq!(parts(&[one, one], None), Err(InvalidParts::DuplicateRegistrant));
    assert_eq!(parts(&[Registrant { key: 0, ..one }], None), Err(InvalidParts::ZeroKey));
}

#[test]
fn narrowing_is_less_access_for_anyone() {
    let narrowed = |state: &Reservations, n: u8, request: PrOut<'_>| {
        state.clone().apply(&nexus(n), &request, &PORTS).unwrap().narrowed
    };
    assert!(narrowed(&registered(1), 1, PrOut::Reserve { key: 0x10, kind: WE }));
    assert!(!narrowed(&registered(1), 2, register(Some(0), 5)));
    assert!(!narrowed(&reserved(1, WERO), 2, register(Some(0), 5)));
    assert!(!narrowed(&reserved(2, WE), 2, register(Some(0x20), 0)), "a mere registrant had no access");
    assert!(narrowed(&reserved(2, WERO), 2, register(Some(0x20), 0)));
    assert!(!narrowed(&reserved(2, WE), 2, PrOut::Clear { key: 0x20 }));
}

mod random {
    use super::*;
    use proptest::prelude::*;

    fn request() -> impl Strategy<Value = PrOut<'static>> {
        let key = 0u64..4;
        let kind = (0usize..6).prop_map(|i| ReservationType::ALL[i]);
        prop_oneof![
            (proptest::option::of(key.clone()), key.clone(), any::<bool>()).prop_map(
                |(existing_key, new_key, all_target_ports)| PrOut::Register {
                    existing_key,
                    new_key,
                    aptpl: false,
                    all_target_ports,
                    initiator_ports: None,
                }
            ),
            (key.clone(), kind.clone()).prop_map(|(key, kind)| PrOut::Reserve { key, kind }),
            (key.clone(), kind.clone()).prop_map(|(key, k)| PrOut::Release { key, kind: Some(k) }),
            key.clone().prop_map(|key| PrOut::Clear { key }),
            (key.clone(), key.clone(), kind, any::<bool>())
                .prop_map(|(key, victim, k, abort)| PrOut::Preempt { key, victim, kind: Some(k), abort }),
            (key, 1u64..4, any::<bool>(), 1u8..4, 1u16..4).prop_map(|(key, new_key, unregister, n, p)| {
                PrOut::RegisterAndMove {
                    key,
                    new_key,
                    unregister,
                    aptpl: false,
                    initiator: initiator(n),
                    port: RelativePort(p),
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn state_stays_valid_and_the_issuer_is_never_told(
            steps in proptest::collection::vec((1u8..4, request()), 0..60),
        ) {
            let mut state = Reservations::default();
            for (n, request) in steps {
                let before = state.clone();
                match state.apply(&nexus(n), &request, &PORTS) {
                    Err(_) => prop_assert_eq!(&state, &before),
                    Ok(applied) => {
                        prop_assert_eq!(applied.changed, state != before);
                        prop_assert!(applied.unit_attentions.iter().all(|(to, _)| *to != nexus(n)));
                        prop_assert!(!applied.abort_tasks_of.contains(&nexus(n)));
                        prop_assert!(state.generation() - before.generation() <= 1);
                    }
                }
                let Reservations { generation, aptpl, registrants, reservation } = state.clone();
                prop_assert_eq!(
                    Reservations::from_parts(generation, aptpl, registrants, reservation),
                    Ok(state.clone())
                );
            }
        }
    }
}
