//! The device server of one unit with the ports of three hosts, a store and a controller: any CDBs, data, resets and
//! logins. The world asserts that every task ends once, and every function.

use crate::world::{Pace, World};
use arbitrary::{Arbitrary, Unstructured};
use holdfast_scsi::device_server::TaskManagementFunction;
use holdfast_scsi::lun::Lun;
use holdfast_scsi::task_set::{TaskAttribute, TaskId};

#[derive(Arbitrary, Debug)]
enum Step {
    Command {
        host: u8,
        lun: bool,
        cdb: [u8; 16],
        long: bool,
        data: Vec<u8>,
        blocks: u8,
        awaited: bool,
        order: u8,
    },
    Data {
        task: u8,
    },
    Manage {
        host: u8,
        function: u8,
        task: u8,
    },
    Relogin {
        host: u8,
    },
    Pace {
        store: bool,
        controller: bool,
    },
    OneIo {
        fail: bool,
    },
    OneProposal,
}

fn host(choice: u8) -> char {
    ['A', 'B', 'C'][usize::from(choice % 3)]
}

/// The target.
pub fn device_server(data: &[u8]) {
    let Ok(steps) = Vec::<Step>::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let mut world = World::new();
    for step in steps.into_iter().take(100) {
        let live = world.live_tasks();
        let task = |choice: u8| live.get(usize::from(choice) % live.len().max(1)).copied();
        match step {
            Step::Command { host: who, lun, cdb, long, mut data, blocks, awaited, order } => {
                let attribute = match order % 5 {
                    0 | 1 => TaskAttribute::Simple,
                    2 => TaskAttribute::Ordered,
                    3 => TaskAttribute::HeadOfQueue,
                    _ => TaskAttribute::Aca,
                };
                if long {
                    data.resize(usize::from(blocks % 20) * 512, 7);
                }
                let lun = Lun::from_number(u16::from(lun)).unwrap();
                world.send(host(who), lun, &cdb, data, awaited, attribute);
            }
            Step::Data { task: choice } => {
                if let Some(id) = task(choice) {
                    world.send_data(id);
                }
            }
            Step::Manage { host: who, function, task: choice } => {
                let function = match function % 8 {
                    0 => TaskManagementFunction::AbortTask(TaskId(task(choice).unwrap_or(u64::MAX))),
                    1 => TaskManagementFunction::AbortTaskSet,
                    2 => TaskManagementFunction::ClearTaskSet,
                    3 => TaskManagementFunction::LogicalUnitReset,
                    4 => TaskManagementFunction::ItNexusReset,
                    5 => TaskManagementFunction::QueryTask(TaskId(task(choice).unwrap_or(u64::MAX))),
                    6 => TaskManagementFunction::QueryTaskSet,
                    _ => TaskManagementFunction::ClearAca,
                };
                world.manage(host(who), function);
            }
            Step::Relogin { host: who } => world.relogin(host(who)),
            Step::Pace { store, controller } => {
                let pace = |holds| if holds { Pace::Holds } else { Pace::Prompt };
                (world.store_pace, world.controller_pace) = (pace(store), pace(controller));
            }
            Step::OneIo { fail } => {
                world.release_one_io(fail);
            }
            Step::OneProposal => {
                world.release_one_proposal();
            }
        }
    }
}
