//! The order of checks before a command runs (SAM-5 5.3.3 and 5.14, SPC-5 5.14 and 5.17), in one place:
//!
//! 1. Unit Attentions of the reset class
//! 2. asymmetric access state
//! 3. SPC-2 reservation, then persistent reservation
//! 4. all other Unit Attentions
//! 5. what is wrong with the CDB
//! 6. FORMAT UNIT or SANITIZE under way, or failed
//! 7. write protection
//!
//! (ACA comes before all of them, when a command enters the task set; ordering is the task set's.) Invariants: a reservation conflict never
//! consumes a Unit Attention; INQUIRY, REPORT LUNS and REQUEST SENSE are stopped by none of 1 to 4.
//!
//! A CDB with a wrong field conflicts as its command would. SAM-5 5.3.3: where several apply, BUSY, RESERVATION CONFLICT, ACA ACTIVE or
//! TASK SET FULL takes precedence over any other status, but for a CHECK CONDITION with a Unit Attention of the reset class. (SAM-2 5.3.2
//! said the same without the exception, which T10 added because nobody knew of a reservation before such a Unit Attention was told.)
//! One that names no command of this unit is in no table and never conflicts.

use crate::alua::AluaState;
use crate::cdb::Command;
use crate::pr::access::Access;
use crate::reply::{Reply, ReplyWriter};
use crate::sense::{Sense, SenseKey, asc};
use crate::status::Status;
use crate::ua::{UaClass, UnitAttention};

/// Why the medium cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteProtect {
    /// It can.
    None,
    /// The mapping or the volume is read-only: 07/27/00.
    ReadOnly,
    /// SWP in the Control mode page: 07/27/02.
    Software,
}

/// What is known when a command is about to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Head of the Unit Attention queue of the command's I_T nexus.
    pub unit_attention: Option<UnitAttention>,
    /// State of the target port group that the command came through.
    pub alua: AluaState,
    /// Verdict of `pr::access::check_spc2`, or `check_undecoded_spc2`.
    pub spc2_reservation: Access,
    /// Verdict of `pr::access::check` or `check_view`, or `check_undecoded`.
    pub persistent_reservation: Access,
    /// Write protection.
    pub write_protect: WriteProtect,
    /// FORMAT UNIT or SANITIZE stops the command, with this.
    pub not_ready: Option<Sense>,
}

/// Whether a command may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Proceed,
    /// It ends here, with this.
    Reply {
        /// CHECK CONDITION or RESERVATION CONFLICT.
        status: Status,
        /// Sense data, with CHECK CONDITION.
        sense: Option<Sense>,
        /// Id of the Unit Attention that `sense` reports; the port dequeues it now.
        unit_attention_reported: Option<u64>,
    },
}

impl Verdict {
    const CONFLICT: Verdict =
        Verdict::Reply { status: Status::ReservationConflict, sense: None, unit_attention_reported: None };

    const fn sense(sense: Sense) -> Verdict {
        Verdict::Reply { status: Status::CheckCondition, sense: Some(sense), unit_attention_reported: None }
    }

    const fn unit_attention(ua: UnitAttention) -> Verdict {
        Verdict::Reply {
            status: Status::CheckCondition,
            sense: Some(ua.sense()),
            unit_attention_reported: Some(ua.id),
        }
    }
}

/// INQUIRY, REPORT LUNS and REQUEST SENSE: never stopped by a Unit Attention, an access state or a reservation.
pub const fn is_exempt(opcode: u8) -> bool {
    matches!(opcode, 0x12 | 0xa0 | 0x03)
}

/// Goes through the checks in order. `opcode` is byte 0 of the CDB and `parsed` what `cdb::parse` made of it.
pub const fn check(opcode: u8, parsed: &Result<Command, Sense>, conditions: &Conditions) -> Verdict {
    let exempt = is_exempt(opcode);
    if let Some(ua) = conditions.unit_attention
        && !exempt
        && matches!(ua.class(), UaClass::Reset)
    {
        return Verdict::unit_attention(ua);
    }
    if !exempt {
        if let Ok(command) = parsed
            && let Some(sense) = refused_by_access_state(command, conditions.alua)
        {
            return Verdict::sense(sense);
        }
        if matches!(conditions.spc2_reservation, Access::Conflict)
            || matches!(conditions.persistent_reservation, Access::Conflict)
        {
            return Verdict::CONFLICT;
        }
    }
    if let Some(ua) = conditions.unit_attention
        && !exempt
    {
        return Verdict::unit_attention(ua);
    }
    match parsed {
        Err(sense) => Verdict::sense(*sense),
        Ok(_) if !exempt && conditions.not_ready.is_some() => match conditions.not_ready {
            Some(sense) => Verdict::sense(sense),
            None => Verdict::Proceed,
        },
        Ok(command) => match refused_by_write_protection(command, conditions.write_protect) {
            Some(sense) => Verdict::sense(sense),
            None => Verdict::Proceed,
        },
    }
}

/// The same access and protection checks again when a command's I/O is submitted, after it may have waited: without
/// Unit Attentions, which are reported once, on arrival.
pub const fn check_again(command: &Command, conditions: &Conditions) -> Verdict {
    let later = Conditions { unit_attention: None, ..*conditions };
    // The operation code only serves the exemptions, and no command that waits for I/O has one.
    check(0x00, &Ok(*command), &later)
}

/// SPC-5 5.17.2: what each access state admits.
const fn refused_by_access_state(command: &Command, state: AluaState) -> Option<Sense> {
    let tells_about_paths = matches!(command, Command::ReportTargetPortGroups { .. });
    // Both buffers are the echo buffer's.
    let unavailable = tells_about_paths
        || matches!(
            command,
            Command::SetTargetPortGroups { .. } | Command::ReadBuffer { .. } | Command::WriteBuffer { .. }
        );
    let standby = unavailable
        || matches!(
            command,
            Command::LogSense { .. }
                | Command::LogSelect { .. }
                | Command::ModeSense(_)
                | Command::ModeSelect { .. }
                | Command::ReceiveDiagnosticResults { .. }
                | Command::SendDiagnostic { .. }
                | Command::PersistentReserveIn { .. }
                | Command::PersistentReserveOut { .. }
        );
    let (admitted, additional) = match state {
        AluaState::ActiveOptimized | AluaState::ActiveNonOptimized => return None,
        AluaState::Standby => (standby, asc::ALUA_STANDBY),
        AluaState::Unavailable | AluaState::Offline => (unavailable, asc::ALUA_UNAVAILABLE),
        AluaState::Transitioning => (tells_about_paths, asc::ALUA_TRANSITION),
    };
    if admitted { None } else { Some(Sense::new(SenseKey::NotReady, additional)) }
}

const fn refused_by_write_protection(command: &Command, protect: WriteProtect) -> Option<Sense> {
    match protect {
        WriteProtect::None => None,
        _ if !command.writes_medium() => None,
        WriteProtect::ReadOnly => Some(Sense::new(SenseKey::DataProtect, asc::WRITE_PROTECTED)),
        WriteProtect::Software => Some(Sense::new(SenseKey::DataProtect, asc::SOFTWARE_WRITE_PROTECTED)),
    }
}

/// REQUEST SENSE: the pending Unit Attention as parameter data, with status GOOD, or `otherwise`. Returns the reply
/// and the id of the Unit Attention to dequeue. One whose additional sense code was cut off by the ALLOCATION LENGTH has
/// not been told and stays pending.
pub fn request_sense(
    unit_attention: Option<UnitAttention>,
    otherwise: &Sense,
    descriptor: bool,
    allocation_length: u8,
    out: &mut [u8],
) -> (Reply, Option<u64>) {
    let sense = unit_attention.map_or(*otherwise, |ua| ua.sense());
    let reply = sense_as_data(&sense, descriptor, allocation_length, out);
    let told_from = if sense.in_descriptor_format(descriptor) { 4 } else { 14 };
    let reported = unit_attention.filter(|_| reply.written >= told_from).map(|ua| ua.id);
    (reply, reported)
}

/// Any sense data as parameter data of REQUEST SENSE (LOGICAL UNIT NOT SUPPORTED for a LUN that is not mapped).
pub fn sense_as_data(sense: &Sense, descriptor: bool, allocation_length: u8, out: &mut [u8]) -> Reply {
    let mut data = [0; 64];
    let len = sense.write(descriptor, &mut data);
    let mut w = ReplyWriter::new(out, u32::from(allocation_length));
    w.put(data.get(..len).unwrap_or(&data));
    w.finish()
}

#[cfg(test)]
mod tests;
