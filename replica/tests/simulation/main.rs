//! The replication core under trouble: three nodes, a network that stalls and breaks, disks that lose and tear, crashes, and a
//! controller, all from one seed. First trouble, then healing; then every answer that a host got must fit one
//! history, and the replicas must be byte-identical.
//!
//! The second half plants one fault after another: a simulation that does not notice each of them proves nothing.

mod controller;
mod disk;
mod oracle;
mod random;
mod world;

use holdfast_replica::faults::{Fault, Faults};
use world::{Plan, World};

fn run(plan: Plan) -> Result<u64, String> {
    let mut world = World::new(plan);
    world.run()?;
    Ok(world.oracle.answered)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_seed_loses_a_write_or_serves_a_stale_read() {
    let (first, count) = match number("HOLDFAST_SIMULATION_SEED") {
        Some(seed) => (seed, 1),
        None => (1, number("HOLDFAST_SIMULATION_SEEDS").unwrap_or(400)),
    };
    let mut answered = 0;
    for seed in first..first + count {
        match run(Plan { seed, faults: Faults::NONE, promote_anyone: false }) {
            Ok(n) => answered += n,
            Err(why) => panic!(
                "seed {seed}: {why}\nreplay: HOLDFAST_SIMULATION_TRACE=1 HOLDFAST_SIMULATION_SEED={seed} \
                 cargo test -p holdfast-replica --test simulation no_seed -- --nocapture"
            ),
        }
    }
    println!("{count} seeds, {answered} answers");
    assert!(answered > count * 20, "the hosts were hardly ever answered: {answered}");
}

/// Seeds that it may take to notice a planted fault.
const SEEDS_MAX: u64 = 3_000;

fn finds(name: &str, faults: Faults, promote_anyone: bool) {
    for seed in 1..=SEEDS_MAX {
        if let Err(why) = run(Plan { seed, faults, promote_anyone }) {
            println!("{name}: found by seed {seed}: {why}");
            return;
        }
    }
    panic!("{name} was not found by {SEEDS_MAX} seeds");
}

macro_rules! planted {
    ($($test:ident: $fault:ident,)*) => {$(
        #[test]
        fn $test() {
            finds(stringify!($fault), Faults::plant(Fault::$fault), false);
        }
    )*};
}

planted! {
    finds_a_replica_without_activity_log: SkipActivityLog,
    finds_an_answer_before_all_have_the_write: AcknowledgeEarly,
    finds_an_eviction_that_is_not_committed: EvictWithoutCommit,
    finds_a_forgotten_dirty_chunk: ForgetDirtyChunk,
    finds_an_old_epoch_that_is_accepted: AcceptOldEpoch,
    finds_a_read_that_does_not_wait: ReadWithoutWaiting,
    finds_a_copy_over_a_newer_write: CopyWithoutLock,
    finds_a_forgotten_unflushed_extent: ForgetUnflushed,
    finds_a_flush_of_one_replica_only: FlushOwnReplicaOnly,
    finds_a_recovery_that_is_skipped: SkipRecovery,
    finds_an_answer_without_lease: IgnoreLease,
    finds_a_rejoining_replica_that_is_trusted: TrustRejoining,
}

#[test]
fn finds_the_promotion_of_a_replica_that_is_not_in_sync() {
    finds("promotion of a non-member", Faults::NONE, true);
}
