//! EXTENDED COPY: blocks between units and within one, its errors, its end before its time.

use super::*;

#[test]
fn blocks_are_copied_between_units_and_within_one() {
    let mut net = Net::new();
    let (first, second) = (net.blocks(A, 10, 3000), net.blocks(B, 5, 9));
    let list =
        list(1, &[A, B], &[segment(0, 1, 3000, 10, 100), segment(1, 0, 9, 5, 1), segment(0, 0, 0, 1, 1)]);
    assert_eq!(copy(&mut net, &list).status, Status::Good);
    assert_eq!(net.blocks(B, 100, 3000), first);
    assert_eq!(net.blocks(A, 1, 9), second);
    let told = bytes(net.ask(A, &cdb(0x84, 0, &[1], 2, 12), &[]));
    let copied = (3009 * BLOCK as u32).to_be_bytes();
    assert_eq!(told, [[0, 0, 0, 8, 1, 0, 3, 0].as_slice(), &copied].concat());
    // Told once; and nothing is known of others' copies.
    let again = net.ask(A, &cdb(0x84, 0, &[1], 2, 12), &[]);
    assert_eq!(sense(&again), Sense::illegal_field_cdb(2, None));
}

#[test]
fn overlapping_ranges_are_copied_as_if_all_was_read_first() {
    for (from, to) in [(0_u64, 1000_u64), (1000, 0), (0, 3000), (7, 7)] {
        let mut net = Net::new();
        for (lba, block) in net.units.get_mut(&A).unwrap().store.chunks_mut(BLOCK).enumerate() {
            block[..8].copy_from_slice(&(lba as u64).to_be_bytes());
        }
        let wanted = net.blocks(A, from as usize, 5000);
        let list = list(1, &[A], &[segment(0, 0, 5000, from, to)]);
        assert_eq!(copy(&mut net, &list).status, Status::Good);
        assert_eq!(net.blocks(A, to as usize, 5000), wanted, "{from} to {to}");
    }
}

#[test]
fn each_wrong_segment_is_told_when_its_turn_comes() {
    let aborted = |units: &[u8], wrong: Vec<u8>| {
        let mut net = Net::new();
        net.maps.get_mut(&MINE).unwrap().remove(&B);
        let list = list(1, units, &[segment(0, 0, 1, 0, 50), wrong]);
        let sense = sense(&copy(&mut net, &list));
        assert_eq!((sense.key, sense.command_specific), (SenseKey::CopyAborted, Some(1)));
        assert_eq!(net.blocks(A, 50, 1), net.blocks(A, 0, 1), "the first segment is done");
        (sense.additional, sense.specific)
    };
    let pointer = |in_segment, byte| SenseSpecific::SegmentPointer { in_segment, byte, bit: None };
    assert_eq!(aborted(&[A], segment(0, 1, 1, 0, 0)), (asc::UNREACHABLE_COPY_TARGET, pointer(true, 6)));
    assert_eq!(aborted(&[A], segment(0x800, 0, 1, 0, 0)), (asc::UNREACHABLE_COPY_TARGET, pointer(true, 4)));
    assert_eq!(aborted(&[A], segment(0, 0, 2, BLOCKS - 1, 0)), (asc::NO_ADDITIONAL_SENSE, pointer(true, 12)));
    assert_eq!(aborted(&[A], segment(0, 0, 2, 0, u64::MAX)), (asc::NO_ADDITIONAL_SENSE, pointer(true, 20)));
    // A unit that the host has not mapped, and one that does not exist, look alike.
    for stranger in [B, 0x77] {
        let found = aborted(&[A, stranger], segment(0, 1, 1, 0, 0));
        assert_eq!(found, (asc::COPY_TARGET_NOT_REACHABLE, pointer(false, 48)));
    }
}

#[test]
fn what_a_source_or_destination_answers_is_forwarded() {
    let mut net = Net::new();
    net.maps.get_mut(&MINE).unwrap().insert(B, true);
    let to_b = list(3, &[A, B], &[segment(0, 1, 1, 0, 0)]);
    let refused = sense(&copy(&mut net, &to_b));
    assert_eq!((refused.key, refused.additional), (SenseKey::CopyAborted, asc::THIRD_PARTY_DEVICE_FAILURE));
    let protected = Some((SenseKey::DataProtect, asc::WRITE_PROTECTED));
    let forwarded = Forwarded { by_source: false, status: Status::CheckCondition, sense: protected };
    assert_eq!(refused.forwarded, Some(forwarded));
    let details = bytes(net.ask(A, &cdb(0x84, 4, &[3], 2, 256), &[]));
    assert_eq!(details[56], Status::CheckCondition.code());
    assert_eq!(Sense::parse(&details[60..]), Some(refused));
    // RESERVATION CONFLICT of the destination, then of the source; reading under Write Exclusive is no conflict.
    net.maps.get_mut(&MINE).unwrap().insert(B, false);
    for (kind, to, from) in [
        (ReservationType::WriteExclusive, Err(false), Ok(())),
        (ReservationType::ExclusiveAccess, Err(false), Err(true)),
    ] {
        net.reserve(B, kind, OTHER);
        let from_b = list(3, &[A, B], &[segment(1, 0, 1, 0, 0)]);
        for (list, expected) in [(&to_b, to), (&from_b, from)] {
            let done = copy(&mut net, list);
            let found = match done.sense {
                None => Ok(()),
                Some(sense) => {
                    let forwarded = sense.forwarded.unwrap();
                    assert_eq!(forwarded.status, Status::ReservationConflict);
                    Err(forwarded.by_source)
                }
            };
            assert_eq!(found, expected, "{kind:?}");
        }
    }
    // Of the unit that got the command: the command itself conflicts.
    net.reserve(A, ReservationType::WriteExclusive, OTHER);
    assert_eq!(copy(&mut net, &to_b).status, Status::ReservationConflict);
}

#[test]
fn a_unit_that_is_unmapped_or_reserved_meanwhile_ends_the_copy() {
    for fence in [true, false] {
        let mut net = Net::new();
        net.holds = true;
        let id = net.send(A, &cdb(0x83, 0, &[], 2, 0), &[]);
        assert_eq!(net.ended[&id].status, Status::Good, "no list, no copy");
        let list = list(1, &[A, B], &[segment(0, 1, 6000, 0, 0)]);
        let id = net.send(A, &cdb(0x83, 0, &[], 2, list.len() as u32), &list);
        for _ in 0..3 {
            assert!(net.release_one());
        }
        assert_eq!(net.writes, 1);
        if fence {
            net.reserve(B, ReservationType::WriteExclusive, OTHER);
        } else {
            net.maps.get_mut(&MINE).unwrap().remove(&B);
        }
        net.release_all();
        let what = if fence { asc::THIRD_PARTY_DEVICE_FAILURE } else { asc::COPY_TARGET_NOT_REACHABLE };
        assert_eq!(sense(&net.ended[&id]).additional, what);
        assert_eq!(net.writes, 1, "nothing was written after that");
    }
}

#[test]
fn aborted_copies_end_once_their_command_has_ended() {
    for function in [
        TaskManagementFunction::AbortTaskSet,
        TaskManagementFunction::LogicalUnitReset,
        TaskManagementFunction::ItNexusReset,
    ] {
        let mut net = Net::new();
        net.holds = true;
        let list = list(1, &[A, B], &[segment(0, 1, 6000, 0, 0)]);
        let id = net.send(A, &cdb(0x83, 0, &[], 2, list.len() as u32), &list);
        net.release_one();
        let request = TaskManagementRequest { id: 77, nexus: &nexus(MINE), function };
        net.units.get_mut(&A).unwrap().server.handle_task_management(NOW, request);
        net.pump();
        assert!(net.functions.is_empty(), "{function:?} waits");
        assert_eq!(net.cancelled, 1);
        net.release_all();
        assert_eq!(net.functions.get(&77), Some(&TmfResponse::Complete), "{function:?}");
        assert!(!net.ended.contains_key(&id));
        let known = net.ask(A, &cdb(0x84, 0, &[1], 2, 12), &[]);
        assert_eq!(sense(&known), Sense::illegal_field_cdb(2, None));
        assert_eq!(net.units[&A].server.task_count() + net.units[&B].server.task_count(), 0);
    }
}

#[test]
fn preempt_and_abort_waits_for_a_copy_and_other_changes_do_not() {
    let mut net = Net::new();
    net.holds = true;
    let list = list(1, &[A, B], &[segment(0, 1, 6000, 0, 0)]);
    net.send(A, &cdb(0x83, 0, &[], 2, list.len() as u32), &list);
    let server = &mut net.units.get_mut(&A).unwrap().server;
    server.install_state(NOW, 1, LuState::default());
    assert!(server.reservations_drained(1), "its pieces are waited for where they are done");
    server.abort_tasks_of(NOW, &[nexus(MINE)]);
    server.install_state(NOW, 2, LuState::default());
    assert!(!server.reservations_drained(2));
    net.pump();
    net.release_all();
    assert!(net.units[&A].server.reservations_drained(2));
    assert_eq!(net.writes, 0);
}

#[test]
fn immediate_copies_go_on_in_the_background_until_they_end_or_are_aborted() {
    let mut net = Net::new();
    net.holds = true;
    let list = list(0, &[A, B], &[segment(0, 1, 6000, 0, 0)]);
    let list = lid4(&list, 0x0102_0304, true);
    let whole = cdb(0x83, 1, &[], 2, list.len() as u32);
    assert_eq!(net.ask(A, &whole, &list).status, Status::Good);
    let status = |net: &mut Net| bytes(net.ask(A, &cdb(0x84, 5, &[1, 2, 3, 4], 2, 64), &[]));
    assert_eq!(status(&mut net)[4..6], [0x01, 0x12]);
    // The list identifier is in use.
    assert_eq!(sense(&net.ask(A, &whole, &list)), Sense::illegal(asc::OPERATION_IN_PROGRESS));
    net.release_all();
    let told = status(&mut net);
    assert_eq!((told[5], told.len(), told[15]), (0x01, 32, 0));
    assert_eq!(told[16..24], (6000 * BLOCK as u64).to_be_bytes());
    net.holds = true;
    assert_eq!(net.ask(A, &whole, &list).status, Status::Good);
    let abort = net.send(A, &cdb(0x83, 0x1c, &[1, 2, 3, 4], 2, 0), &[]);
    assert!(!net.ended.contains_key(&abort), "it waits for what is under way");
    net.release_all();
    assert_eq!(net.ended[&abort].status, Status::Good);
    assert_eq!(status(&mut net)[5], 0x60);
    let unknown = net.ask(A, &cdb(0x83, 0x1c, &[9, 9, 9, 9], 2, 0), &[]);
    assert_eq!(sense(&unknown), Sense::illegal_field_cdb(2, None));
    // The loss of the nexus ends it too.
    net.holds = true;
    assert_eq!(net.ask(A, &whole, &list).status, Status::Good);
    net.units.get_mut(&A).unwrap().server.handle_nexus_loss(NOW, &nexus(MINE));
    let before = net.writes;
    net.pump();
    net.release_all();
    assert_eq!((net.writes, net.units[&A].server.task_count()), (before, 0));
}

#[test]
fn copies_are_bounded_in_number() {
    let mut net = Net::new();
    net.holds = true;
    for id in 0..=limits::COPIES_MAX {
        let list = list(id, &[A, B], &[segment(0, 1, 1, 0, 0)]);
        net.send(A, &cdb(0x83, 0, &[], 2, list.len() as u32), &list);
    }
    assert_eq!(net.ended.values().map(|end| end.status).collect::<Vec<_>>(), [Status::Busy]);
    net.release_all();
    assert_eq!(net.ended.len(), usize::from(limits::COPIES_MAX) + 1);
}

#[test]
fn no_copy_holds_data_and_asking_for_it_takes_nothing_away() {
    let mut net = Net::new();
    let list = lid4(&list(1, &[A, B], &[segment(0, 1, 4, 0, 10)]), 0x0102_0304, false);
    let done = net.ask(A, &cdb(0x83, 1, &[], 2, list.len() as u32), &list);
    assert_eq!(done.status, Status::Good);
    let data = bytes(net.ask(A, &cdb(0x84, 6, &[1, 2, 3, 4], 2, 64), &[]));
    assert_eq!((data.len(), data[3], data[5]), (36, 32, 0x01));
    assert_eq!(data[32..], [0; 4], "no held data");
    let status = bytes(net.ask(A, &cdb(0x84, 5, &[1, 2, 3, 4], 2, 64), &[]));
    assert_eq!(status[4..], data[4..32]);
    let unknown = net.ask(A, &cdb(0x84, 6, &[9, 9, 9, 9], 2, 64), &[]);
    assert_eq!(sense(&unknown), Sense::illegal_field_cdb(2, None));
}

#[test]
fn copies_beside_ordered_tasks_and_check_conditions_of_copies_disturb_no_one() {
    let mut net = Net::new();
    // An ORDERED copy within its own unit must not wait for itself.
    let list = list(1, &[A], &[segment(0, 0, 4, 0, 10)]);
    let cdb = cdb(0x83, 0, &[], 2, list.len() as u32);
    let request = CommandRequest {
        task: TaskId(500),
        nexus: &nexus(MINE),
        cdb: &cdb,
        attribute: TaskAttribute::Ordered,
        data_out_len: list.len() as u32,
        unit_attention: None,
        read_only: false,
    };
    net.units.get_mut(&A).unwrap().server.handle_command(NOW, request, DataOut::Ready(&list)).unwrap();
    net.pump();
    assert_eq!(net.ended[&500].status, Status::Good);
    assert_eq!(net.blocks(A, 10, 4), net.blocks(A, 0, 4));
}
