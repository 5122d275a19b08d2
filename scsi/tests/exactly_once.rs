//! Whatever happens, in whatever order: every task completes exactly once, every task management function is answered
//! exactly once, nothing is submitted for a nexus that is shut out, and no change of reservations is acknowledged before
//! older I/O has ended. The world asserts these at every step; here it is driven at random.

mod world;

use holdfast_scsi::{
    device_server::TaskManagementFunction,
    lun::Lun,
    task_set::{TaskAttribute, TaskId},
};
use proptest::prelude::*;
use world::{Pace, Quorum, World, cdbs};

#[derive(Clone, Debug)]
enum Step {
    Command { host: char, cdb: Vec<u8>, data: Vec<u8>, awaited: bool, attribute: u8, own_key: bool },
    Data(usize),
    IoEnds { fails: bool },
    ProposalEnds,
    Manage { host: char, function: u8, of: usize },
    Relogin(char),
    Store(bool),
    Controller(bool),
    Quorum(bool),
}

fn host() -> impl Strategy<Value = char> {
    prop_oneof![Just('A'), Just('B'), Just('C')]
}

fn command() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let (lba, blocks) = (0u32..12, 0u16..5);
    let key = 0u64..4;
    let kind = prop_oneof![Just(1u8), Just(3), Just(5), Just(6), Just(7), Just(8)];
    prop_oneof![
        (lba.clone(), blocks.clone()).prop_map(|(l, b)| (cdbs::ten(0x28, 0, l, b), Vec::new())),
        (lba.clone(), blocks.clone())
            .prop_map(|(l, b)| (cdbs::ten(0x2a, 0, l, b), cdbs::fill(1, usize::from(b)))),
        (lba.clone(), 1u16..4).prop_map(|(l, b)| (cdbs::ten(0x41, 8, l, b), cdbs::fill(0, 1))),
        (lba.clone(), 1u32..9).prop_map(|(l, b)| cdbs::unmap(u64::from(l), b)),
        (lba.clone(), any::<bool>()).prop_map(|(l, same)| {
            let compared = cdbs::fill(u8::from(same), 1);
            (cdbs::compare_and_write(u64::from(l), 1), [compared, cdbs::fill(1, 1)].concat())
        }),
        lba.clone().prop_map(|l| (cdbs::sixteen(0x8b, 0, u64::from(l), 1), cdbs::fill(2, 1))),
        lba.prop_map(|l| (cdbs::ten(0x2e, 2, l, 1), cdbs::fill(3, 1))),
        Just((cdbs::ten(0x35, 0, 0, 0), Vec::new())),
        Just((vec![0; 6], Vec::new())),
        Just((vec![0xff; 6], Vec::new())),
        Just((cdbs::pr_in(3), Vec::new())),
        Just((vec![0x16, 0, 0, 0, 0, 0], Vec::new())),
        Just((vec![0x17, 0, 0, 0, 0, 0], Vec::new())),
        any::<bool>().prop_map(cdbs::mode_select_swp),
        (0u8..8, kind, key.clone(), key).prop_map(|(a, t, k, v)| cdbs::pr_out(a, t, k, v, 0)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (host(), command(), any::<bool>(), 0u8..8, prop::bool::weighted(0.8)).prop_map(
            |(host, (cdb, data), awaited, attribute, own_key)| {
                Step::Command { host, cdb, data, awaited, attribute, own_key }
            }
        ),
        4 => (0usize..20).prop_map(Step::Data),
        6 => prop::bool::weighted(0.1).prop_map(|fails| Step::IoEnds { fails }),
        4 => Just(Step::ProposalEnds),
        2 => (host(), 0u8..7, 0usize..20).prop_map(|(host, function, of)| Step::Manage { host, function, of }),
        1 => host().prop_map(Step::Relogin),
        1 => any::<bool>().prop_map(Step::Store),
        1 => any::<bool>().prop_map(Step::Controller),
        1 => prop::bool::weighted(0.8).prop_map(Step::Quorum),
    ]
}

fn pace(holds: bool) -> Pace {
    if holds { Pace::Holds } else { Pace::Prompt }
}

/// The key with which a host is registered at first.
fn key_of(host: char) -> u8 {
    host as u8 - b'A' + 1
}

/// A world where everyone is registered and A has reserved, so that most requests mean something.
fn reserved_world(kind: u8) -> World {
    let mut world = World::new();
    let lun = Lun::from_number(0).unwrap();
    let registrations = ['A', 'B', 'C'].map(|host| (host, cdbs::pr_out(0, 0, 0, u64::from(key_of(host)), 0)));
    for (host, (cdb, data)) in registrations.into_iter().chain([('A', cdbs::pr_out(1, kind, 1, 0, 0))]) {
        world.send(host, lun, &cdb, data, false, TaskAttribute::Simple);
    }
    assert!(world.truth.reservations.reservation().is_some());
    world
}

fn pick(world: &World, at: usize) -> u64 {
    world.live_tasks().get(at).copied().unwrap_or(0)
}

fn take(world: &mut World, step: Step) {
    match step {
        Step::Command { host, cdb, mut data, awaited, attribute, own_key } => {
            if own_key && cdb[0] == 0x5f {
                data[7] = key_of(host);
            }
            let attribute = match attribute {
                0 => TaskAttribute::Ordered,
                1 => TaskAttribute::HeadOfQueue,
                2 => TaskAttribute::Aca,
                _ => TaskAttribute::Simple,
            };
            // Some of what fails establishes an ACA condition.
            let mut cdb = cdb;
            if attribute == TaskAttribute::Aca && cdb[0] == 0x28 {
                cdb[9] = 0x04;
            }
            world.send(host, Lun::from_number(0).unwrap(), &cdb, data, awaited, attribute);
        }
        Step::Data(at) => world.send_data(pick(world, at)),
        Step::IoEnds { fails } => _ = world.release_one_io(fails),
        Step::ProposalEnds => _ = world.release_one_proposal(),
        Step::Manage { host, function, of } => {
            let task = TaskId(pick(world, of));
            let function = match function {
                0 => TaskManagementFunction::AbortTask(task),
                1 => TaskManagementFunction::AbortTaskSet,
                2 => TaskManagementFunction::ClearTaskSet,
                3 => TaskManagementFunction::LogicalUnitReset,
                4 => TaskManagementFunction::QueryTask(task),
                5 => TaskManagementFunction::QueryTaskSet,
                _ => TaskManagementFunction::ClearAca,
            };
            world.manage(host, function);
        }
        Step::Relogin(host) => world.relogin(host),
        Step::Store(holds) => world.store_pace = pace(holds),
        Step::Controller(holds) => world.controller_pace = pace(holds),
        Step::Quorum(there) => world.quorum = if there { Quorum::There } else { Quorum::Lost },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn everything_ends_exactly_once(
        kind in prop_oneof![Just(1u8), Just(5), Just(6), Just(7)],
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut world = reserved_world(kind);
        for step in steps {
            take(&mut world, step);
        }
        // Everything outside answers in the end, all data comes, and nobody leaves an ACA condition behind.
        world.release_all();
        for _ in 0..80 {
            for task in world.live_tasks() {
                world.send_data(task);
            }
            for host in ['A', 'B', 'C'] {
                world.manage(host, TaskManagementFunction::ClearAca);
            }
            world.release_all();
        }
        prop_assert_eq!(world.live_tasks(), Vec::<u64>::new());
        prop_assert_eq!(world.server.task_count(), 0);
        prop_assert!(world.functions.values().all(Option::is_some));
        prop_assert_eq!(world.server.state().1, &world.truth);
    }
}
