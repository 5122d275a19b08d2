//! Disks that fail, fill up, lose their replica or are damaged.

use super::bench::*;
use crate::agent::WantedChange;
use crate::volume::jobs::{HostFailure, HostResult, Step};
use holdfast_replica::span::Span;

#[test]
fn failing_disk_of_a_replica_costs_the_replica_not_the_write() {
    for no_space in [true, false] {
        let mut bench = Bench::new(2);
        bench.until_served();
        bench.write(0, 8, 1);
        {
            let mut platter = bench.machines[&node(2)].disk.look();
            (platter.no_space, platter.write_error) = (no_space, !no_space);
        }
        bench.write(0, 8, 2);
        assert_eq!(bench.config.in_sync().len(), 1);
        assert_eq!(bench.read(7), 2);
        // The disk is well again: the process starts anew, and the copy catches up.
        {
            let mut platter = bench.machines[&node(2)].disk.look();
            (platter.no_space, platter.write_error) = (false, false);
        }
        bench.kill(2);
        bench.start(2);
        bench.add_learner(2);
        bench.until_in_sync(2);
        bench.assert_identical();
    }
}

#[test]
fn failing_disk_of_the_owner_hands_the_volume_over_and_leaves() {
    let broken: [fn(&mut super::disk::Platter); 3] =
        [|p| p.no_space = true, |p| p.write_error = true, |p| p.flush_error = true];
    for (at, break_it) in broken.into_iter().enumerate() {
        let mut bench = Bench::new(2);
        bench.until_served();
        bench.write(0, 8, 1);
        break_it(&mut bench.machines[&node(1)].disk.look());
        let step = if at == 2 { Step::Flush } else { write(0, 8, 2) };
        let result = bench.run(step);
        assert!(
            matches!(failed(&result), Some(HostFailure::Unknown | HostFailure::NotExecuted)),
            "{result:?}"
        );
        bench.until("the hand-over", |b| b.config.owner().unwrap().node == node(2));
        assert_eq!(bench.config.in_sync().len(), 1);
        assert!(bench.asked.iter().any(|a| matches!(a.change, WantedChange::HandOver { leave: true, .. })));
        bench.until_served();
        let value = bench.read(0);
        assert!([1, 2].contains(&value) && bench.read(7) == value);
        // It comes back and gets what it may differ in.
        *bench.machines[&node(1)].disk.look() = {
            let platter = bench.machines[&node(1)].disk.look();
            super::disk::Platter {
                medium: platter.medium.clone(),
                cache: platter.cache.clone(),
                ..Default::default()
            }
        };
        bench.kill(1);
        bench.start(1);
        bench.add_learner(1);
        bench.until_in_sync(2);
        bench.assert_identical();
    }
}

#[test]
fn unreadable_blocks_are_read_from_the_other_copy() {
    let mut bench = Bench::new(2);
    bench.until_served();
    bench.write(0, 8, 1);
    bench.machines[&node(1)].disk.look().read_error = true;
    let result = bench.run(Step::Read(Span::new(0, 1).unwrap()));
    assert_eq!(failed(&result), Some(HostFailure::NotExecuted), "to be sent again to the new owner");
    bench.until("the hand-over", |b| b.config.owner().unwrap().node == node(2));
    bench.until_served();
    assert_eq!(bench.read(0), 1);
}

#[test]
fn full_disk_under_the_only_copy_is_told_and_passes() {
    let mut bench = Bench::new(2);
    bench.until_served();
    bench.kill(2);
    bench.write(0, 8, 1);
    bench.machines[&node(1)].disk.look().no_space = true;
    let result = bench.run(write(0, 8, 2));
    assert_eq!(failed(&result), Some(HostFailure::NoSpace));
    assert_eq!(bench.read(0), 1);
    bench.machines[&node(1)].disk.look().no_space = false;
    bench.write(0, 8, 3);
    bench.start(2);
    bench.add_learner(2);
    bench.until_in_sync(2);
    bench.assert_identical();
}

#[test]
fn failed_disk_under_the_only_copy_takes_the_volume_out_of_service() {
    let mut bench = Bench::new(2);
    bench.until_served();
    bench.kill(2);
    bench.write(0, 8, 1);
    bench.machines[&node(1)].disk.look().write_error = true;
    let result = bench.run(write(0, 8, 2));
    assert_eq!(failed(&result), Some(HostFailure::Unknown));
    bench.until("the end of service", |b| b.engine(1).is_out_of_service());
    let result = bench.run(Step::Read(Span::new(0, 1).unwrap()));
    assert_eq!(failed(&result), Some(HostFailure::Hardware));
}

#[test]
fn copy_whose_log_is_damaged_is_copied_as_a_whole() {
    let mut bench = Bench::new(2);
    bench.until_served();
    bench.write(0, 2048, 1);
    bench.flush();
    bench.kill(2);
    bench.damage_log(2);
    bench.start(2);
    bench.until("its eviction", |b| b.config.in_sync().len() == 1);
    bench.machines[&node(2)].disk.look().written = 0;
    bench.add_learner(2);
    bench.until_in_sync(2);
    assert!(bench.machines[&node(2)].disk.look().written >= 2048 * 512);
    bench.assert_identical();
}

#[test]
fn empty_copy_in_the_place_of_one_that_had_data_is_not_believed() {
    let mut bench = Bench::new(2);
    bench.until_served();
    bench.write(0, 2048, 1);
    bench.flush();
    bench.kill(2);
    bench.lose_replica(2);
    // As the one of a new volume, which the record's epoch still allows.
    bench.start(2);
    bench.until("its eviction", |b| b.config.in_sync().len() == 1);
    bench.add_learner(2);
    bench.until_in_sync(2);
    bench.assert_identical();
    assert_eq!(bench.machines[&node(2)].disk.look().cache[0], 1);
}

#[test]
fn owner_without_a_lease_answers_nothing() {
    let mut bench = Bench::new(2);
    bench.until_served();
    let done = bench.begin(vec![write(0, 8, 2)]);
    bench.machines[&node(1)].process.as_ref().unwrap().close_gate();
    for _ in 0..50 {
        bench.turn();
    }
    assert!(done.try_recv().is_err());
    let result = bench.begin(vec![Step::Flush]).recv().unwrap();
    assert!(matches!(result, HostResult::Failed(HostFailure::NotExecuted)));
    bench.give_to(2);
    let result = bench.end(&done);
    assert_eq!(failed(&result), Some(HostFailure::Unknown));
    bench.until_served();
    bench.assert_identical();
}
