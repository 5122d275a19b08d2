//! Who may run what while a reservation exists: SPC-4 table 65, SBC-4 table 13 and SPC-2 table 10 ("Commands that are allowed in the
//! presence of various reservations"), one row for each command and, where it matters, each service action or field.
//!
//! Invariants: the tables name every command (a new one does not compile before it has its row); whatever a row does
//! not admit is a conflict. PERSISTENT RESERVE OUT is admitted here because each of its service actions carries its own
//! rule, which `pr::state` applies to every request, as part of the change itself.

use super::{Relation, ReservationType, View};
use crate::{
    cdb::{Command, CopyCommand},
    nexus::Nexus,
    opcode,
};

/// Verdict of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No reservation stands in the way.
    Allowed,
    /// RESERVATION CONFLICT.
    Conflict,
}

/// What a command needs of its I_T nexus, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Nothing: allowed in every column.
    Nothing,
    /// Allowed also to those without rights as long as the reservation excludes writers only.
    Reading,
    /// The rights of the holder, or of a registrant where the type admits registrants.
    Full,
}

const fn need(command: &Command) -> Need {
    match command {
        Command::TestUnitReady
        | Command::RequestSense { .. }
        | Command::Inquiry { .. }
        | Command::ReportLuns { .. }
        | Command::LogSense { .. }
        | Command::ReadCapacity10
        | Command::ReadCapacity16 { .. }
        | Command::ReportTargetPortGroups { .. }
        | Command::ReportIdentifyingInformation { .. }
        | Command::ReportTimestamp { .. }
        | Command::PersistentReserveIn { .. }
        | Command::PersistentReserveOut { .. }
        | Command::StartStopUnit { start: true, .. }
        | Command::PreventAllowMediumRemoval { prevent: false } => Need::Nothing,
        // What tells of copies is for whoever began them, fenced meanwhile or not.
        Command::Copy(copy) if copy.tells_only() => Need::Nothing,

        Command::Read { .. }
        | Command::Verify { .. }
        | Command::PreFetch { .. }
        | Command::GetLbaStatus { .. }
        | Command::ReadBuffer { .. }
        | Command::ModeSense(_)
        | Command::ReceiveDiagnosticResults { .. }
        | Command::ReportSupportedOperationCodes { .. }
        | Command::ReportSupportedTaskManagementFunctions { .. }
        | Command::Copy(CopyCommand::PopulateToken { .. }) => Need::Reading,

        Command::Write { .. }
        | Command::FormatUnit { .. }
        | Command::Sanitize { .. }
        | Command::WriteBuffer { .. }
        | Command::WriteAndVerify { .. }
        | Command::WriteSame { .. }
        | Command::CompareAndWrite { .. }
        | Command::OrWrite { .. }
        | Command::WriteAtomic { .. }
        | Command::Unmap { .. }
        | Command::SynchronizeCache { .. }
        | Command::ModeSelect { .. }
        | Command::LogSelect { .. }
        | Command::SetIdentifyingInformation { .. }
        | Command::SetTimestamp { .. }
        | Command::SetTargetPortGroups { .. }
        | Command::SendDiagnostic { .. }
        | Command::StartStopUnit { start: false, .. }
        | Command::PreventAllowMediumRemoval { prevent: true }
        | Command::Reserve
        | Command::Release
        | Command::Copy(_) => Need::Full,
    }
}

/// What a command needs whose CDB has a wrong field, by its operation code and service action. The fields decide nothing then, so a
/// command that needs more with some of them needs the most.
const fn need_of_row(opcode: u8, service_action: Option<u16>) -> Need {
    match (opcode, service_action) {
        (0x00 | 0x03 | 0x12 | 0x25 | 0x4d | 0x5e | 0x5f | 0x84 | 0xa0, _)
        | (0x9e, Some(0x10))
        | (0xa3, Some(0x05 | 0x0a | 0x0f)) => Need::Nothing,
        (
            0x08 | 0x28 | 0x88 | 0xa8 | 0x2f | 0x8f | 0xaf | 0x34 | 0x90 | 0x1a | 0x5a | 0x1c | 0x3c | 0x9b,
            _,
        )
        | (0x7f, Some(0x09 | 0x0a))
        | (0x83, Some(0x10))
        | (0x9e, Some(0x12))
        | (0xa3, Some(0x0c | 0x0d)) => Need::Reading,
        _ => Need::Full,
    }
}

/// Checks a command of a nexus that stands so to a persistent reservation of this type.
pub const fn check(command: &Command, reservation: Option<ReservationType>, relation: Relation) -> Access {
    admits(need(command), reservation, relation)
}

/// The rights of the holder.
const fn has_rights(kind: ReservationType, relation: Relation) -> bool {
    relation.holder || (relation.registered && kind.admits_registrants())
}

const fn admits(need: Need, reservation: Option<ReservationType>, relation: Relation) -> Access {
    let Some(kind) = reservation else { return Access::Allowed };
    let full = has_rights(kind, relation);
    match need {
        Need::Nothing => Access::Allowed,
        Need::Reading if full || kind.is_write_exclusive() => Access::Allowed,
        Need::Full if full => Access::Allowed,
        Need::Reading | Need::Full => Access::Conflict,
    }
}

/// RESERVE and RELEASE of SPC-2 while persistent reservations are in use; `None` while nobody is registered, so that they do what they
/// are for.
///
/// Whoever has the rights of the persistent reservation anyhow is answered GOOD, without effect; for everyone else, and as long
/// as there are only registrations, the two methods exclude each other (compatible reservation handling, CRH=1: SPC-4
/// 5.13.3, SPC-2 5.5.1).
pub fn check_compatible(view: &View<'_>, nexus: &Nexus) -> Option<Access> {
    if view.registrants.is_empty() {
        return None;
    }
    let rights = view.reservation.is_some_and(|held| has_rights(held.kind(), view.relation_of(nexus)));
    Some(if rights { Access::Allowed } else { Access::Conflict })
}

/// Checks a command that came through `nexus` against a whole reservation state.
pub fn check_view(command: &Command, view: &View<'_>, nexus: &Nexus) -> Access {
    check_related(command, view, nexus, || view.relation_of(nexus))
}

/// As [`check_view`], for a caller that remembers how the nexus stands to this very state: finding out takes the longer the more
/// registrants there are. `relation` is asked only where it matters.
pub fn check_related(
    command: &Command,
    view: &View<'_>,
    nexus: &Nexus,
    relation: impl FnOnce() -> Relation,
) -> Access {
    if matches!(command, Command::Reserve | Command::Release)
        && let Some(access) = check_compatible(view, nexus)
    {
        return access;
    }
    match view.reservation {
        None => Access::Allowed,
        Some(reservation) => check(command, Some(reservation.kind()), relation()),
    }
}

/// Checks a CDB that does not decode. RESERVATION CONFLICT comes before a CHECK CONDITION for a wrong field (SAM-5 5.3.3); what is no
/// command of this unit at all is in no table, and never conflicts.
pub fn check_undecoded(cdb: &[u8], view: &View<'_>, nexus: &Nexus) -> Access {
    let Some(row) = opcode::row_of(cdb) else { return Access::Allowed };
    if matches!(row.opcode, 0x16 | 0x17 | 0x56 | 0x57)
        && let Some(access) = check_compatible(view, nexus)
    {
        return access;
    }
    match view.reservation {
        None => Access::Allowed,
        Some(reservation) => {
            let need = need_of_row(row.opcode, row.service_action);
            admits(need, Some(reservation.kind()), view.relation_of(nexus))
        }
    }
}

/// Checks a CDB that does not decode while the unit is reserved by RESERVE of SPC-2.
pub fn check_undecoded_spc2(cdb: &[u8], holder: bool) -> Access {
    let Some(row) = opcode::row_of(cdb) else { return Access::Allowed };
    let allowed = match row.opcode {
        0x5e | 0x5f => false,
        // RECEIVE COPY RESULTS: SPC-2 is stricter than SPC-4.
        0x84 => holder,
        0x17 | 0x57 => true,
        0x00 => holder,
        opcode => holder || matches!(need_of_row(opcode, row.service_action), Need::Nothing),
    };
    if allowed { Access::Allowed } else { Access::Conflict }
}

/// Checks a command while the unit is reserved by RESERVE of SPC-2; `holder` says whether its nexus is the one.
///
/// PERSISTENT RESERVE IN and OUT conflict for the holder too (SPC-2 5.5.1). RELEASE by others is GOOD without effect.
pub const fn check_spc2(command: &Command, holder: bool) -> Access {
    let allowed = match command {
        Command::PersistentReserveIn { .. } | Command::PersistentReserveOut { .. } => false,
        Command::RequestSense { .. }
        | Command::Inquiry { .. }
        | Command::ReportLuns { .. }
        | Command::LogSense { .. }
        | Command::ReadCapacity10
        | Command::ReadCapacity16 { .. }
        | Command::ReportTargetPortGroups { .. }
        | Command::ReportIdentifyingInformation { .. }
        | Command::ReportTimestamp { .. }
        | Command::StartStopUnit { start: true, .. }
        | Command::PreventAllowMediumRemoval { prevent: false }
        | Command::Release => true,
        Command::TestUnitReady
        | Command::Read { .. }
        | Command::Verify { .. }
        | Command::PreFetch { .. }
        | Command::GetLbaStatus { .. }
        | Command::ReadBuffer { .. }
        | Command::WriteBuffer { .. }
        | Command::FormatUnit { .. }
        | Command::Sanitize { .. }
        | Command::ModeSense(_)
        | Command::ReceiveDiagnosticResults { .. }
        | Command::ReportSupportedOperationCodes { .. }
        | Command::ReportSupportedTaskManagementFunctions { .. }
        | Command::Write { .. }
        | Command::WriteAndVerify { .. }
        | Command::WriteSame { .. }
        | Command::CompareAndWrite { .. }
        | Command::OrWrite { .. }
        | Command::WriteAtomic { .. }
        | Command::Unmap { .. }
        | Command::SynchronizeCache { .. }
        | Command::ModeSelect { .. }
        | Command::LogSelect { .. }
        | Command::SetIdentifyingInformation { .. }
        | Command::SetTimestamp { .. }
        | Command::SetTargetPortGroups { .. }
        | Command::SendDiagnostic { .. }
        | Command::StartStopUnit { start: false, .. }
        | Command::PreventAllowMediumRemoval { prevent: true }
        | Command::Copy(_)
        | Command::Reserve => holder,
    };
    if allowed { Access::Allowed } else { Access::Conflict }
}

#[cfg(test)]
mod tests;
