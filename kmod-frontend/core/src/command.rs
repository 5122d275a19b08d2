//! What becomes of a command: answered here, block I/O for the module, or the data node's to decide.
//!
//! Invariants: the order of checks is that of `holdfast_scsi::checks`, called once on arrival and once before a block is
//! written; a command that is not named here goes to the data node whole, which checks it again; nothing is answered GOOD that
//! the cluster would have to agree on.

use holdfast_scsi::{
    alua::{self, ChangedBy, TargetPortGroup},
    capacity,
    cdb::{self, Command, VerifyCheck, WriteSameSource},
    checks::{self, Conditions, Verdict, WriteProtect},
    geometry::Extent,
    inquiry,
    mode::{self, ModeState},
    nexus::Nexus,
    pr::{Relation, access, report},
    reply::Reply,
    rsoc,
    sense::{Sense, SenseKey, asc},
    status::Status,
    ua::UnitAttention,
    vpd,
};

use crate::image::Image;

/// Who asks, and what is pending for it.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    /// The I_T nexus.
    pub nexus: &'a Nexus,
    /// How it stands to the reservation of this very image: see [`relation`]. Found once for each image and nexus, not for
    /// each command.
    pub relation: Relation,
    /// Head of its Unit Attention queue for this unit.
    pub unit_attention: Option<UnitAttention>,
}

/// What the module has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Complete with this status; `sense` with CHECK CONDITION. The Unit Attention with the id was told.
    Status {
        /// Status code.
        status: Status,
        /// Sense data.
        sense: Option<Sense>,
        /// To be dequeued.
        reported: Option<u64>,
    },
    /// Complete with GOOD and the parameter data that was written.
    Data {
        /// Bytes written.
        len: usize,
        /// To be dequeued.
        reported: Option<u64>,
    },
    /// The parameter data is longer than the buffer: ask again with room for so many bytes.
    MoreRoom(usize),
    /// Read the blocks.
    Read(Extent),
    /// Write the blocks; `durable`: they are on stable storage before GOOD.
    Write {
        /// Which.
        extent: Extent,
        /// FUA, or there is no write cache.
        durable: bool,
    },
    /// Make everything written so far durable.
    Flush,
    /// Write zeroes, deallocating where that reads as zeroes.
    Zeroes(Extent),
    /// Only the data node can answer.
    Ask,
}

impl Answer {
    const GOOD: Answer = Answer::Status { status: Status::Good, sense: None, reported: None };

    const fn check(sense: Sense) -> Answer {
        Answer::Status { status: Status::CheckCondition, sense: Some(sense), reported: None }
    }
}

/// How a nexus stands to the image's reservation. Costs a walk over the registrants.
pub fn relation(image: &Image<'_>, nexus: &Nexus) -> Relation {
    image.view().relation_of(nexus)
}

fn conditions(image: &Image<'_>, asker: &Asker<'_>, command: Option<&Command>, cdb: &[u8]) -> Conditions {
    let view = image.view();
    let persistent_reservation = match (command, view.reservation) {
        // RESERVE and RELEASE look at registrations too.
        (Some(command @ (Command::Reserve | Command::Release)), _) => {
            access::check_view(command, &view, asker.nexus)
        }
        (Some(command), reservation) => access::check(command, reservation.map(|r| r.kind()), asker.relation),
        (None, _) => access::check_undecoded(cdb, &view, asker.nexus),
    };
    Conditions {
        unit_attention: asker.unit_attention,
        alua: image.head.access_state,
        // SPC-2 reservations live at the data node: a unit that has one is not served here.
        spc2_reservation: access::Access::Allowed,
        persistent_reservation,
        write_protect: if image.head.read_only {
            WriteProtect::ReadOnly
        } else if image.head.mode.software_write_protect {
            WriteProtect::Software
        } else {
            WriteProtect::None
        },
        // A unit under FORMAT UNIT or SANITIZE is not served here.
        not_ready: None,
    }
}

/// Judges a CDB and, where it only asks for information, answers it into `out`.
pub fn execute(image: &Image<'_>, asker: &Asker<'_>, cdb: &[u8], out: &mut [u8]) -> Answer {
    let Some(opcode) = cdb.first().copied() else {
        return Answer::check(Sense::illegal(asc::INVALID_COMMAND_OPERATION_CODE));
    };
    let parsed = cdb::parse(cdb, &image.geometry());
    match checks::check(opcode, &parsed, &conditions(image, asker, parsed.as_ref().ok(), cdb)) {
        Verdict::Reply { status, sense, unit_attention_reported } => {
            Answer::Status { status, sense, reported: unit_attention_reported }
        }
        Verdict::Proceed => match parsed {
            Ok(command) => run(image, asker, &command, out),
            Err(sense) => Answer::check(sense),
        },
    }
}

fn run(image: &Image<'_>, asker: &Asker<'_>, command: &Command, out: &mut [u8]) -> Answer {
    let head = image.head;
    let unit = &head.unit;
    let room = out.len();
    let reply = match *command {
        Command::TestUnitReady => return Answer::GOOD,
        Command::Read { extent, .. } => return block(extent, Answer::Read(extent)),
        Command::Write { extent, fua, .. } => {
            return block(extent, Answer::Write { extent, durable: fua || !head.mode.write_cache });
        }
        Command::Verify { extent, check: VerifyCheck::Medium, .. } => {
            return block(extent, Answer::Read(extent));
        }
        Command::SynchronizeCache { .. } => return Answer::Flush,
        Command::WriteSame { extent, unmap: true, source: WriteSameSource::Zeroes } => {
            return block(extent, Answer::Zeroes(extent));
        }
        Command::RequestSense { descriptor, allocation_length } => {
            let (reply, reported) =
                checks::request_sense(asker.unit_attention, &Sense::NONE, descriptor, allocation_length, out);
            return data(&reply, u32::from(allocation_length), room, reported);
        }
        Command::Inquiry { vpd_page: None, allocation_length } => {
            Ok((inquiry::standard(&unit.identity, allocation_length, out), u32::from(allocation_length)))
        }
        Command::Inquiry { vpd_page: Some(page), allocation_length } => {
            // Designators of a port that is not known yet must not differ from what they will be.
            let Some(port) = image.port(asker.nexus.port) else {
                return Answer::Status { status: Status::Busy, sense: None, reported: None };
            };
            vpd::write(page, unit, &port, groups(image), allocation_length, out)
                .map(|reply| (reply, u32::from(allocation_length)))
        }
        Command::ModeSense(request) => {
            let state = ModeState {
                current: head.mode,
                saved: head.mode,
                default: head.mode,
                read_only: head.read_only,
                geometry: unit.geometry,
            };
            mode::sense(&request, &state, out).map(|reply| (reply, u32::from(request.allocation_length)))
        }
        Command::ReadCapacity10 => Ok((capacity::read_capacity10(&unit.geometry, out), 8)),
        Command::ReadCapacity16 { allocation_length } => {
            Ok((capacity::read_capacity16(unit, allocation_length, out), allocation_length))
        }
        Command::ReportTargetPortGroups { extended, allocation_length } => {
            // An image says nothing of what changed the states.
            let (groups, by) = (groups(image), ChangedBy::Implicit);
            let reply = alua::report_target_port_groups(groups, by, extended, allocation_length, out);
            Ok((reply, allocation_length))
        }
        Command::ReportSupportedOperationCodes { options, timeouts, allocation_length } => {
            rsoc::supported_operation_codes(options, timeouts, allocation_length, out)
                .map(|reply| (reply, allocation_length))
        }
        Command::ReportSupportedTaskManagementFunctions { extended, allocation_length } => Ok((
            rsoc::supported_task_management_functions(
                rsoc::TaskManagementFunctions::Basic,
                extended,
                allocation_length,
                out,
            ),
            allocation_length,
        )),
        // What is shown must hold on every path already.
        Command::PersistentReserveIn { action, allocation_length } if head.barrier_passed => Ok((
            report::persistent_reserve_in(action, &image.view(), allocation_length, out),
            u32::from(allocation_length),
        )),
        _ => return Answer::Ask,
    };
    match reply {
        Ok((reply, allocation_length)) => data(&reply, allocation_length, room, None),
        Err(sense) => Answer::check(sense),
    }
}

fn groups<'a>(image: &Image<'a>) -> impl Iterator<Item = TargetPortGroup<'a>> {
    image.groups().iter().map(|group| TargetPortGroup {
        id: group.id,
        state: group.state,
        preferred: group.preferred,
        ports: group.ports(),
    })
}

fn block(extent: Extent, answer: Answer) -> Answer {
    if extent.is_empty() { Answer::GOOD } else { answer }
}

fn data(reply: &Reply, allocation_length: u32, room: usize, reported: Option<u64>) -> Answer {
    let whole = reply.full.min(usize::try_from(allocation_length).unwrap_or(usize::MAX));
    if whole > room { Answer::MoreRoom(whole) } else { Answer::Data { len: reply.written, reported } }
}

/// For the module's own failures: an I/O error of the store.
pub fn io_error(write: bool) -> Sense {
    let additional = if write { asc::WRITE_ERROR } else { asc::UNRECOVERED_READ_ERROR };
    Sense::new(SenseKey::MediumError, additional)
}

#[cfg(test)]
mod tests;
