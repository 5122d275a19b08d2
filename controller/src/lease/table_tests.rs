use super::*;

const LEASE: u64 = LEASE_MS as u64;
const NODE: u32 = 1;

fn renewal(incarnation: u64, head: u64) -> Renewal {
    Renewal { node: NODE, incarnation, data_path_stalled_ms: 0, head }
}

/// Leads in term 3 since 0; nothing an earlier leader granted runs from 2000 on.
fn leading() -> LeaseTable {
    let mut table = LeaseTable::new();
    table.begin(3, Millis(0));
    table
}

#[test]
fn who_does_not_lead_grants_nothing() {
    let mut table = LeaseTable::new();
    assert_eq!(table.grant(renewal(1, 5), Millis(0)), Err(NotGranted::NotLeading));
    table.begin(3, Millis(0));
    assert_eq!(table.grant(renewal(1, 5), Millis(0)), Ok(()));
    table.end();
    assert_eq!(table.grant(renewal(1, 5), Millis(0)), Err(NotGranted::NotLeading));
}

#[test]
fn new_leader_expires_nobody_before_a_full_lease_from_its_election() {
    let mut table = LeaseTable::new();
    table.begin(3, Millis(500));
    assert!(!table.is_expired(NODE, Millis(500 + LEASE - 1)));
    assert!(table.is_expired(NODE, Millis(500 + LEASE)));
    assert_eq!(table.barrier(9, [NODE], Millis(600)), Barrier::Waiting(Millis(500 + LEASE)));
    assert_eq!(table.barrier(9, [NODE], Millis(500 + LEASE)), Barrier::Passed);
}

#[test]
fn lease_runs_from_its_grant_and_a_renewal_prolongs_it() {
    let mut table = leading();
    table.applied(NODE, 1, 5);
    table.grant(renewal(1, 5), Millis(5000)).unwrap();
    assert!(table.is_leased(NODE, 1, Millis(5000 + LEASE - 1)));
    assert!(!table.is_leased(NODE, 1, Millis(5000 + LEASE)));
    table.grant(renewal(1, 5), Millis(6000)).unwrap();
    assert_eq!(table.left_ms(NODE, Millis(6000)), LEASE_MS);
    assert!(!table.is_expired(NODE, Millis(6000 + LEASE - 1)));
    assert!(table.is_expired(NODE, Millis(6000 + LEASE)));
}

#[test]
fn new_incarnation_does_not_shorten_the_old_lease() {
    let mut table = leading();
    table.applied(NODE, 1, 5);
    table.grant(renewal(1, 5), Millis(5000)).unwrap();
    table.joined(NODE, 2);
    assert!(!table.is_leased(NODE, 2, Millis(5001)));
    assert!(!table.are_predecessors_expired(NODE, 2, Millis(5000 + LEASE - 1)));
    assert!(table.are_predecessors_expired(NODE, 2, Millis(5000 + LEASE)));
    // Its own lease does not count against it.
    table.grant(renewal(2, 5), Millis(6000)).unwrap();
    assert!(table.are_predecessors_expired(NODE, 2, Millis(5000 + LEASE)));
    assert!(!table.is_expired(NODE, Millis(5000 + LEASE)));
}

#[test]
fn predecessors_under_an_earlier_leader_are_waited_out() {
    let mut table = leading();
    table.joined(NODE, 2);
    assert!(!table.are_predecessors_expired(NODE, 2, Millis(LEASE - 1)));
    assert!(table.are_predecessors_expired(NODE, 2, Millis(LEASE)));
    // The first incarnation has none.
    table.joined(7, 1);
    assert!(table.are_predecessors_expired(7, 1, Millis(1)));
}

#[test]
fn old_incarnation_is_not_renewed() {
    let mut table = leading();
    table.joined(NODE, 2);
    assert_eq!(table.grant(renewal(1, 5), Millis(3000)), Err(NotGranted::StaleIncarnation));
    table.applied(NODE, 1, 99);
    assert_eq!(table.applied_index(NODE), 0);
}

#[test]
fn hanging_data_path_is_not_renewed() {
    let mut table = leading();
    let stalled = Renewal { data_path_stalled_ms: DATA_PATH_STALLED_MS_MAX + 1, ..renewal(1, 5) };
    let refused = Err(NotGranted::DataPathStalled(DATA_PATH_STALLED_MS_MAX + 1));
    assert_eq!(table.grant(stalled, Millis(3000)), refused);
    let slow = Renewal { data_path_stalled_ms: DATA_PATH_STALLED_MS_MAX, ..renewal(1, 5) };
    assert_eq!(table.grant(slow, Millis(3000)), Ok(()));
}

#[test]
fn node_that_lags_a_whole_lease_behind_is_not_renewed_until_it_catches_up() {
    let mut table = leading();
    table.applied(NODE, 1, 5);
    table.grant(renewal(1, 5), Millis(3000)).unwrap();
    table.grant(renewal(1, 8), Millis(3400)).unwrap();
    table.grant(renewal(1, 8), Millis(3400 + LEASE - 1)).unwrap();
    let late = Millis(3400 + LEASE - 1 + LEASE);
    assert_eq!(table.grant(renewal(1, 9), late), Err(NotGranted::Lagging(8)));
    table.applied(NODE, 1, 8);
    assert_eq!(table.grant(renewal(1, 9), late), Ok(()));
}

#[test]
fn barrier_waits_for_who_was_granted_on_an_older_index() {
    let mut table = leading();
    table.applied(NODE, 1, 5);
    table.grant(renewal(1, 5), Millis(3000)).unwrap();
    // The change is committed at 6, then the lease is renewed: the renewal does not prolong what may serve without it.
    table.grant(renewal(1, 6), Millis(3400)).unwrap();
    assert_eq!(table.barrier(6, [NODE], Millis(3500)), Barrier::Waiting(Millis(3000 + LEASE)));
    assert_eq!(table.barrier(6, [NODE], Millis(3000 + LEASE)), Barrier::Passed);
}

#[test]
fn barrier_passes_when_every_node_has_applied() {
    let mut table = leading();
    for node in [1, 2] {
        table.applied(node, 1, 5);
        table.grant(Renewal { node, ..renewal(1, 5) }, Millis(3000)).unwrap();
    }
    table.applied(1, 1, 6);
    assert_eq!(table.barrier(6, [1, 2], Millis(3100)), Barrier::Waiting(Millis(3000 + LEASE)));
    table.applied(2, 1, 7);
    assert_eq!(table.barrier(6, [1, 2], Millis(3100)), Barrier::Passed);
}

#[test]
fn barrier_does_not_believe_a_new_process_for_the_old_one() {
    let mut table = leading();
    table.applied(NODE, 1, 5);
    table.grant(renewal(1, 5), Millis(3000)).unwrap();
    table.applied(NODE, 2, 6);
    assert_eq!(table.barrier(6, [NODE], Millis(3100)), Barrier::Waiting(Millis(3000 + LEASE)));
    assert_eq!(table.barrier(6, [NODE], Millis(3000 + LEASE)), Barrier::Passed);
}

#[test]
fn barrier_of_a_new_leader_believes_reports_and_waits_for_the_silent() {
    let mut table = leading();
    table.applied(1, 1, 6);
    assert_eq!(table.barrier(6, [1], Millis(10)), Barrier::Passed);
    assert_eq!(table.barrier(6, [1, 2], Millis(10)), Barrier::Waiting(Millis(LEASE)));
}

#[test]
fn grants_outlive_a_change_of_leader_and_back() {
    let mut table = leading();
    table.applied(NODE, 1, 5);
    table.grant(renewal(1, 5), Millis(9000)).unwrap();
    table.end();
    table.begin(7, Millis(9100));
    assert!(!table.is_expired(NODE, Millis(9000 + LEASE - 1)));
    // Another leader may have renewed it in between.
    assert!(!table.is_expired(NODE, Millis(9100 + LEASE - 1)));
    assert!(table.is_expired(NODE, Millis(9100 + LEASE)));
}

#[test]
fn many_grants_are_merged_to_the_safe_side() {
    let mut table = leading();
    table.applied(NODE, 1, 1000);
    for n in 0..100 {
        table.grant(renewal(1, 1000 + n), Millis(3000 + n)).unwrap();
    }
    let entry = &table.nodes[&NODE];
    assert!(entry.grants.len() <= GRANTS_KEPT);
    // The merged grant counts as one on the older index until the newest end.
    assert_eq!(table.barrier(1100, [NODE], Millis(3100)), Barrier::Waiting(Millis(3099 + LEASE)));
}

proptest::proptest! {
    /// The table against a model that remembers every single grant: it never says that a lease is over, or that a barrier
    /// has passed, while a grant on an older index still runs at a process that has not applied it.
    #[test]
    fn never_passes_early(steps in proptest::collection::vec((0u8..5, 1u32..3, 1u64..4, 0u64..900), 1..200)) {
        let mut table = LeaseTable::new();
        let mut grants: Vec<(u32, u64, u64, u64)> = Vec::new(); // node, incarnation, index, until
        let mut applied: BTreeMap<(u32, u64), u64> = BTreeMap::new();
        let (mut now, mut head, mut term) = (0u64, 1u64, 1u64);
        let mut newest = BTreeMap::new();
        table.begin(term, Millis(0));
        for (what, node, incarnation, step) in steps {
            now += step;
            match what {
                0 | 1 => {
                    let ok = table.grant(Renewal { node, incarnation, data_path_stalled_ms: 0, head }, Millis(now));
                    let top = newest.entry(node).or_insert(incarnation);
                    *top = (*top).max(incarnation);
                    if ok.is_ok() {
                        grants.push((node, incarnation, head, now + LEASE));
                    }
                }
                2 => {
                    let index = head.saturating_sub(step % 3);
                    table.applied(node, incarnation, index);
                    let top = newest.entry(node).or_insert(incarnation);
                    *top = (*top).max(incarnation);
                    // A report of an older process than the newest known is not looked at.
                    if *top == incarnation {
                        let seen = applied.entry((node, incarnation)).or_default();
                        *seen = (*seen).max(index);
                    }
                }
                3 => head += 1,
                _ => {
                    term += 1;
                    table.end();
                    table.begin(term, Millis(now));
                }
            }
            let runs = |(node, incarnation, index, until): &(u32, u64, u64, u64), asked: u64| {
                *until > now && *index < asked
                    && applied.get(&(*node, *incarnation)).is_none_or(|a| *a < asked)
            };
            for asked in [head.saturating_sub(1), head] {
                if table.barrier(asked, [1, 2], Millis(now)) == Barrier::Passed {
                    assert!(!grants.iter().any(|g| runs(g, asked)), "barrier {asked} at {now}");
                }
            }
            for node in [1, 2] {
                if table.is_expired(node, Millis(now)) {
                    assert!(!grants.iter().any(|g| g.0 == node && g.3 > now));
                }
            }
        }
    }
}

#[test]
fn a_node_is_removed_only_once_no_process_of_it_can_hold_a_lease_and_then_gets_none() {
    let mut table = leading();
    assert_eq!(table.begin_removal(NODE, Millis(100)), Err(Millis(LEASE)), "an earlier leader's lease");
    assert_eq!(table.grant(renewal(1, 5), Millis(3000)), Ok(()));
    assert_eq!(table.begin_removal(NODE, Millis(3100)), Err(Millis(3000 + LEASE)));
    // The refusal changed nothing.
    table.applied(NODE, 1, 5);
    assert_eq!(table.grant(renewal(1, 5), Millis(3200)), Ok(()));
    let over = Millis(3200 + LEASE);
    assert_eq!(table.begin_removal(NODE, over), Ok(()));
    assert_eq!(table.grant(renewal(1, 5), over), Err(NotGranted::Removed));
    assert_eq!(table.grant(renewal(2, 5), over), Err(NotGranted::Removed), "nor does its next process");
    table.keep(NODE);
    assert_eq!(table.grant(renewal(1, 5), over), Ok(()));
}

proptest::proptest! {
    /// How far barriers have passed is what asking for each of them says.
    #[test]
    fn what_has_passed_is_what_every_single_barrier_says(
        steps in proptest::collection::vec((0u8..4, 1u32..4, 1u64..3, 0u64..3, 0u64..700), 1..60),
    ) {
        let mut table = LeaseTable::new();
        table.begin(1, Millis(0));
        let (mut now, mut head) = (0, 1u64);
        for (kind, node, incarnation, less, pause) in steps {
            now += pause;
            match kind {
                0 => head += 1,
                1 => table.applied(node, incarnation, head.saturating_sub(less)),
                2 => {
                    // Refused or not.
                    let renewal = Renewal { node, incarnation, data_path_stalled_ms: 0, head };
                    let _ = table.grant(renewal, Millis(now));
                }
                _ => table.joined(node, incarnation),
            }
            let nodes = [1, 2, 3, 4];
            let (passed, holding) = table.passed(head, nodes, Millis(now));
            for index in 1..=head {
                let is = table.barrier(index, nodes, Millis(now)) == Barrier::Passed;
                proptest::prop_assert_eq!(is, index <= passed, "barrier {} with {} passed", index, passed);
            }
            proptest::prop_assert_eq!(holding.is_empty(), passed == head);
            for node in holding {
                let alone = table.barrier(passed + 1, [node], Millis(now));
                proptest::prop_assert!(alone != Barrier::Passed, "node {} holds nothing back", node);
            }
        }
    }
}
