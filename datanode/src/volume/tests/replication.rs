//! What replicated volumes promise, while disks do as they are told.

use holdfast_replica::span::{Shape, Span};

use super::bench::*;
use crate::agent::WantedChange;
use crate::volume::jobs::{HostFailure, Step};

#[test]
fn write_is_on_every_copy_when_it_is_answered() {
    let mut bench = Bench::new(3);
    bench.until_served();
    bench.write(100, 16, 5);
    for machine in bench.machines.values() {
        assert_eq!(machine.disk.look().cache[100 * 512..116 * 512], [5; 16 * 512]);
    }
    assert_eq!(bench.read(115), 5);
    let unmapped =
        Step::Zeroes { span: Span::new(104, 4).unwrap(), unmap: true, block_size: 512, durable: true };
    bench.run(unmapped);
    assert_eq!((bench.read(103), bench.read(104), bench.read(108)), (5, 0, 5));
    bench.assert_identical();
}

#[test]
fn copy_that_falls_silent_is_evicted_and_gets_only_what_it_missed() {
    let mut bench = Bench::new(2);
    bench.until_served();
    bench.write(0, 1024, 1);
    bench.flush();
    bench.cut_off.push(node(2));
    // Not answered before the controller has let the owner go on without the other.
    bench.write(5000, 8, 2);
    assert_eq!(bench.config.in_sync().len(), 1);
    bench.write(5000, 8, 3);
    bench.cut_off.clear();
    let before = std::mem::take(&mut bench.machines[&node(2)].disk.look().written);
    assert!(before > 0);
    bench.add_learner(2);
    bench.until_in_sync(2);
    let copied = bench.machines[&node(2)].disk.look().written;
    assert!((4096..=5 * 1024 * 1024).contains(&copied), "{copied} bytes were copied");
    bench.assert_identical();
    assert_eq!(bench.read(5007), 3);
}

#[test]
fn nothing_that_was_answered_is_lost_with_the_owner() {
    let mut bench = Bench::new(3);
    bench.until_served();
    for n in 0..64 {
        bench.write(n * 300, 10, n as u8 + 1);
    }
    // Under way: may be there afterwards, or not, but the same everywhere.
    let _unknown = bench.begin(vec![write(20_000, 64, 99)]);
    bench.kill(1);
    bench.give_to(2);
    bench.until_served();
    bench.until("the eviction of the dead one", |b| b.config.in_sync().len() == 2);
    for n in 0..64 {
        assert_eq!(bench.read(n * 300), n as u8 + 1);
    }
    let doubtful = bench.read(20_000);
    assert!([0, 99].contains(&doubtful));
    bench.assert_identical();
    // And back again.
    bench.start(1);
    bench.add_learner(1);
    bench.until_in_sync(3);
    bench.write(20_000, 64, 7);
    bench.kill(2);
    bench.give_to(1);
    bench.until_served();
    assert_eq!(bench.read(20_001), 7);
    assert_eq!(bench.read(300), 2);
    bench.until("the eviction of the dead one", |b| b.config.in_sync().len() == 2);
    bench.assert_identical();
}

#[test]
fn planned_hand_over_refuses_nothing_but_new_requests() {
    let mut bench = Bench::new(2);
    bench.until_served();
    let pending: Vec<_> = (0..20).map(|n| bench.begin(vec![write(n * 50, 1, n as u8 + 1)])).collect();
    bench.engine(1).wish_hand_over(Some(node(2)));
    bench.until("the new owner", |b| b.config.owner().unwrap().node == node(2));
    for done in pending {
        let result = bench.end(&done);
        assert!(matches!(failed(&result), None | Some(HostFailure::NotExecuted)), "{result:?}");
    }
    bench.until_served();
    assert!(bench.asked.iter().any(|a| matches!(a.change, WantedChange::HandOver { leave: false, .. })));
    bench.write(0, 1, 77);
    bench.assert_identical();
}

#[test]
fn flushed_writes_survive_the_power_of_the_whole_cluster() {
    let mut bench = Bench::new(2);
    bench.until_served();
    bench.write(10, 4, 1);
    bench.flush();
    bench.write(10, 1, 2);
    bench.write(9000, 1, 3);
    bench.lose_power(1);
    bench.lose_power(2);
    bench.start(1);
    bench.start(2);
    bench.give_to(2);
    bench.until_served();
    assert_eq!(bench.read(11), 1);
    // Not flushed: gone or there, but one answer for ever.
    let (a, b) = (bench.read(10), bench.read(9000));
    assert!([1, 2].contains(&a) && [0, 3].contains(&b));
    bench.until("the eviction of the other, which has lost its cache too", |b| b.config.in_sync().len() == 1);
    bench.add_learner(1);
    bench.until_in_sync(2);
    bench.assert_identical();
    assert_eq!((bench.read(10), bench.read(9000)), (a, b));
}

#[test]
fn copy_with_another_boot_gets_what_was_not_flushed() {
    let mut bench = Bench::new(2);
    bench.until_served();
    bench.write(10, 4, 1);
    bench.lose_power(2);
    bench.start(2);
    bench.until("the eviction of the rebooted one", |b| b.config.in_sync().len() == 1);
    bench.add_learner(2);
    bench.until_in_sync(2);
    assert_eq!(bench.machines[&node(2)].disk.look().cache[10 * 512], 1);
    bench.assert_identical();
}

#[test]
fn new_copy_gets_everything() {
    let mut bench = Bench::new(1);
    bench.until_served();
    bench.write(0, 2048, 9);
    bench.write(30_000, 100, 8);
    bench.start(3);
    bench.add_learner(3);
    // Hosts go on meanwhile.
    for n in 0..50 {
        bench.write(n * 400, 3, n as u8 + 1);
    }
    bench.until_in_sync(2);
    bench.assert_identical();
    bench.kill(1);
    bench.give_to(3);
    bench.until_served();
    assert_eq!((bench.read(30_099), bench.read(400 * 49)), (8, 50));
}

#[test]
fn larger_volume_is_written_behind_its_old_end_on_every_copy() {
    let mut bench = Bench::new(2);
    bench.until_served();
    bench.write(BLOCKS - 1, 1, 4);
    let larger = Shape::new(2 * BLOCKS, 512).unwrap();
    bench.shape = larger;
    for n in [1, 2] {
        use crate::store::Store as _;
        bench.machines[&node(n)].disk.grow(2 * BLOCKS * 512).unwrap();
    }
    bench.engine(1).grow(larger);
    // The other copy has not heard of it yet: it keeps the write until it has.
    let done = bench.begin(vec![write(BLOCKS + 5, 2, 6)]);
    for _ in 0..20 {
        bench.turn();
    }
    assert!(done.try_recv().is_err());
    bench.engine(2).grow(larger);
    let result = bench.end(&done);
    assert_eq!(failed(&result), None);
    assert_eq!(bench.config.in_sync().len(), 2);
    bench.assert_identical();
}

#[test]
fn long_requests_are_split() {
    let mut bench = Bench::new(2);
    bench.until_served();
    let pattern = crate::data_plane::router::Bytes::new(vec![3; 8 * 512]);
    let span = Span::new(7, 1000).unwrap();
    bench.run(Step::Repeat { span, pattern, block_size: 512, durable: false });
    assert_eq!((bench.read(6), bench.read(7), bench.read(1006), bench.read(1007)), (0, 3, 3, 0));
    bench.run(Step::Zeroes { span: bench_whole(), unmap: false, block_size: 512, durable: true });
    assert_eq!(bench.read(500), 0);
    bench.assert_identical();
}

fn bench_whole() -> Span {
    Span::new(0, BLOCKS).unwrap()
}
