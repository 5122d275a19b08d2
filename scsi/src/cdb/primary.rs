//! The commands of every device type (SPC-5 clause 6, and RESERVE and RELEASE of SPC-2).

use super::fields::RawCdb;
use super::{
    BufferMode, Command, IdentifyingKind, LogPage, ModeForm, ModeSense, PageControl, PrInAction, PrOutAction,
    ReportingOptions, SelectReport,
};
use crate::alua;
use crate::geometry::Geometry;
use crate::limits;
use crate::sense::Sense;

pub(crate) fn test_unit_ready(_: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    Ok(Command::TestUnitReady)
}

pub(crate) fn request_sense(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    Ok(Command::RequestSense { descriptor: raw.bit::<1, 0>(), allocation_length: raw.u8::<4>() })
}

pub(crate) fn inquiry(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let page = raw.u8::<2>();
    let vpd_page = match raw.bit::<1, 0>() {
        true => Some(page),
        false if page == 0 => None,
        false => return Err(Sense::illegal_field_cdb(2, None)),
    };
    Ok(Command::Inquiry { vpd_page, allocation_length: raw.u16::<3>() })
}

fn mode_sense(
    raw: &RawCdb,
    form: ModeForm,
    long_lba: bool,
    allocation_length: u16,
) -> Result<Command, Sense> {
    let control = match raw.u8::<2>() >> 6 {
        0b00 => PageControl::Current,
        0b01 => PageControl::Changeable,
        0b10 => PageControl::Default,
        _ => PageControl::Saved,
    };
    Ok(Command::ModeSense(ModeSense {
        form,
        control,
        page: raw.u8::<2>() & 0x3f,
        subpage: raw.u8::<3>(),
        block_descriptor: !raw.bit::<1, 3>(),
        long_lba,
        allocation_length,
    }))
}

pub(crate) fn mode_sense6(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    mode_sense(raw, ModeForm::Six, false, u16::from(raw.u8::<4>()))
}

pub(crate) fn mode_sense10(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    mode_sense(raw, ModeForm::Ten, raw.bit::<1, 4>(), raw.u16::<7>())
}

fn mode_select(raw: &RawCdb, form: ModeForm, parameter_list_length: u16) -> Result<Command, Sense> {
    // PF=0 would make the list vendor specific.
    if !raw.bit::<1, 4>() && parameter_list_length != 0 {
        return Err(Sense::illegal_field_cdb(1, Some(4)));
    }
    if u32::from(parameter_list_length) > limits::MODE_PARAMETER_LIST_MAX {
        return Err(Sense::parameter_list_length());
    }
    Ok(Command::ModeSelect { form, save: raw.bit::<1, 0>(), parameter_list_length })
}

pub(crate) fn mode_select6(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    mode_select(raw, ModeForm::Six, u16::from(raw.u8::<4>()))
}

pub(crate) fn mode_select10(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    mode_select(raw, ModeForm::Ten, raw.u16::<7>())
}

pub(crate) fn log_sense(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let (control, code, subpage) = (raw.u8::<2>() >> 6, raw.u8::<2>() & 0x3f, raw.u8::<3>());
    if !LogPage::ALL.iter().any(|page| page.code().0 == code) {
        return Err(Sense::illegal_field_cdb(2, Some(5)));
    }
    let page = LogPage::ALL.into_iter().find(|page| page.code() == (code, subpage));
    let page = page.ok_or(Sense::illegal_field_cdb(3, None))?;
    // PAGE CONTROL does not matter for lists of pages; of parameters only the current cumulative values exist.
    if code != 0 && control != 0b01 {
        return Err(Sense::illegal_field_cdb(2, Some(7)));
    }
    let pointer = raw.u16::<5>();
    if pointer > page.last_parameter() {
        return Err(Sense::illegal_field_cdb(5, None));
    }
    Ok(Command::LogSense { page, pointer, allocation_length: raw.u16::<7>() })
}

/// LOG SELECT (SPC-5 6.7). SP=1 is refused by the table: nothing can be saved.
pub(crate) fn log_select(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let (control, code, subpage) = (raw.u8::<2>() >> 6, raw.u8::<2>() & 0x3f, raw.u8::<3>());
    let parameter_list_length = raw.u16::<7>();
    let reset = raw.bit::<1, 1>();
    if parameter_list_length != 0 {
        // With a list the pages are named in the list, and PCR would contradict it.
        return match () {
            () if reset => Err(Sense::illegal_field_cdb(1, Some(1))),
            () if code != 0 => Err(Sense::illegal_field_cdb(2, Some(5))),
            () if subpage != 0 => Err(Sense::illegal_field_cdb(3, None)),
            () if u32::from(parameter_list_length) > limits::LOG_PARAMETER_LIST_MAX => {
                Err(Sense::parameter_list_length())
            }
            () => Ok(Command::LogSelect { reset_statistics: false, parameter_list_length }),
        };
    }
    const ALL: u8 = 0xff;
    if !LogPage::ALL.iter().any(|page| page.code().0 == code) {
        return Err(Sense::illegal_field_cdb(2, Some(5)));
    }
    let named = |page: LogPage| match (code, subpage) {
        (0, 0) => true,
        (code, ALL) => page.code().0 == code,
        code => page.code() == code,
    };
    if !LogPage::ALL.into_iter().any(named) {
        return Err(Sense::illegal_field_cdb(3, None));
    }
    // Without PCR: 11b puts cumulative values back to their defaults, 10b thresholds (there are none), and 0xb changes nothing.
    let reset_statistics = (reset || control == 0b11) && named(LogPage::GeneralStatistics);
    Ok(Command::LogSelect { reset_statistics, parameter_list_length })
}

pub(crate) fn receive_diagnostic_results(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    // PCV=0 asks for what the last SEND DIAGNOSTIC left: no page that leaves anything is supported.
    if !raw.bit::<1, 0>() {
        return Err(Sense::illegal_field_cdb(1, Some(0)));
    }
    if raw.u8::<2>() != 0 {
        return Err(Sense::illegal_field_cdb(2, None));
    }
    Ok(Command::ReceiveDiagnosticResults { allocation_length: raw.u16::<3>() })
}

pub(crate) fn report_luns(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let select = match raw.u8::<2>() {
        0x00 => SelectReport::Accessible,
        0x01 => SelectReport::WellKnown,
        0x02 => SelectReport::All,
        _ => return Err(Sense::illegal_field_cdb(2, None)),
    };
    let allocation_length = raw.u32::<6>();
    if allocation_length < 16 {
        return Err(Sense::illegal_field_cdb(6, None));
    }
    Ok(Command::ReportLuns { select, allocation_length })
}

pub(crate) fn report_target_port_groups(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let extended = match raw.u8::<1>() >> 5 {
        0b000 => false,
        0b001 => true,
        _ => return Err(Sense::illegal_field_cdb(1, Some(7))),
    };
    Ok(Command::ReportTargetPortGroups { extended, allocation_length: raw.u32::<6>() })
}

pub(crate) fn set_target_port_groups(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let parameter_list_length = raw.u32::<6>();
    let whole = match parameter_list_length {
        0 => true,
        len if len > limits::SET_TARGET_PORT_GROUPS_LIST_MAX => false,
        len => len >= alua::SET_HEADER_LEN as u32 && len.is_multiple_of(alua::SET_DESCRIPTOR_LEN as u32),
    };
    if !whole {
        return Err(Sense::parameter_list_length());
    }
    Ok(Command::SetTargetPortGroups { parameter_list_length })
}

pub(crate) fn report_supported_operation_codes(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let (opcode, action) = (raw.u8::<3>(), raw.u16::<4>());
    let options = match raw.u8::<2>() & 0b111 {
        0b000 => ReportingOptions::All,
        0b001 => ReportingOptions::Opcode(opcode),
        0b010 => ReportingOptions::ServiceAction(opcode, action),
        0b011 => ReportingOptions::Either(opcode, action),
        _ => return Err(Sense::illegal_field_cdb(2, Some(2))),
    };
    Ok(Command::ReportSupportedOperationCodes {
        options,
        timeouts: raw.bit::<2, 7>(),
        allocation_length: raw.u32::<6>(),
    })
}

pub(crate) fn report_supported_task_management_functions(
    raw: &RawCdb,
    _: &Geometry,
) -> Result<Command, Sense> {
    let allocation_length = raw.u32::<6>();
    if allocation_length < 4 {
        return Err(Sense::illegal_field_cdb(6, None));
    }
    Ok(Command::ReportSupportedTaskManagementFunctions { extended: raw.bit::<2, 7>(), allocation_length })
}

pub(crate) fn persistent_reserve_in(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let action = match raw.service_action() {
        0 => PrInAction::ReadKeys,
        1 => PrInAction::ReadReservation,
        2 => PrInAction::ReportCapabilities,
        3 => PrInAction::ReadFullStatus,
        _ => return Err(Sense::illegal_field_cdb(1, Some(4))),
    };
    Ok(Command::PersistentReserveIn { action, allocation_length: raw.u16::<7>() })
}

pub(crate) fn persistent_reserve_out(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let action = match raw.service_action() {
        0 => PrOutAction::Register,
        1 => PrOutAction::Reserve,
        2 => PrOutAction::Release,
        3 => PrOutAction::Clear,
        4 => PrOutAction::Preempt,
        5 => PrOutAction::PreemptAndAbort,
        6 => PrOutAction::RegisterAndIgnoreExistingKey,
        7 => PrOutAction::RegisterAndMove,
        8 => PrOutAction::ReplaceLostReservation,
        _ => return Err(Sense::illegal_field_cdb(1, Some(4))),
    };
    let parameter_list_length = raw.u32::<5>();
    if parameter_list_length > limits::PR_OUT_PARAMETER_LIST_MAX {
        return Err(Sense::parameter_list_length());
    }
    let scope_and_type = raw.u8::<2>();
    Ok(Command::PersistentReserveOut {
        action,
        scope: scope_and_type >> 4,
        kind: scope_and_type & 0x0f,
        parameter_list_length,
    })
}

pub(crate) fn reserve(_: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    Ok(Command::Reserve)
}

pub(crate) fn release(_: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    Ok(Command::Release)
}

/// The ten-byte forms add third-party reservations and long identifiers, and both point at fields of several bytes.
fn refuse_third_party(raw: &RawCdb) -> Result<(), Sense> {
    match () {
        () if raw.bit::<1, 4>() => Err(Sense::illegal_field_cdb(1, Some(4))),
        () if raw.bit::<1, 1>() => Err(Sense::illegal_field_cdb(1, Some(1))),
        () if raw.u8::<3>() != 0 => Err(Sense::illegal_field_cdb(3, None)),
        () if raw.u16::<7>() != 0 => Err(Sense::illegal_field_cdb(7, None)),
        () => Ok(()),
    }
}

pub(crate) fn reserve10(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    refuse_third_party(raw).map(|()| Command::Reserve)
}

pub(crate) fn release10(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    refuse_third_party(raw).map(|()| Command::Release)
}

pub(crate) fn send_diagnostic(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    // SELF-TEST CODE: only 000b. DEVOFFL and UNITOFFL permit effects that the self-test does not have: ignored.
    if raw.u8::<1>() >> 5 != 0 {
        return Err(Sense::illegal_field_cdb(1, Some(7)));
    }
    // PF only describes the parameter list, and a parameter list would ask for a diagnostic page: there is none.
    if raw.u16::<3>() != 0 {
        return Err(Sense::illegal_field_cdb(3, None));
    }
    Ok(Command::SendDiagnostic { self_test: raw.bit::<1, 2>() })
}

fn identifying_kind(raw: &RawCdb) -> Option<IdentifyingKind> {
    let kinds = [IdentifyingKind::Device, IdentifyingKind::Text, IdentifyingKind::Supported];
    kinds.into_iter().find(|kind| kind.code() == raw.u8::<10>() >> 1)
}

pub(crate) fn report_identifying_information(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let kind = identifying_kind(raw).ok_or(Sense::illegal_field_cdb(10, Some(7)))?;
    Ok(Command::ReportIdentifyingInformation { kind, allocation_length: raw.u32::<6>() })
}

pub(crate) fn set_identifying_information(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    let (kind, max) = match identifying_kind(raw) {
        Some(IdentifyingKind::Device) => (IdentifyingKind::Device, limits::IDENTIFYING_INFORMATION_MAX),
        Some(IdentifyingKind::Text) => (IdentifyingKind::Text, limits::IDENTIFYING_TEXT_MAX),
        Some(IdentifyingKind::Supported) | None => return Err(Sense::illegal_field_cdb(10, Some(7))),
    };
    let parameter_list_length = raw.u32::<6>();
    if parameter_list_length as usize > max {
        return Err(Sense::illegal_field_cdb(6, None));
    }
    Ok(Command::SetIdentifyingInformation { kind, parameter_list_length })
}

pub(crate) fn report_timestamp(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    Ok(Command::ReportTimestamp { allocation_length: raw.u32::<6>() })
}

pub(crate) fn set_timestamp(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    match raw.u32::<6>() {
        // Nothing to set: no error (SPC-5 4.3.5.5).
        parameter_list_length @ (0 | 12) => Ok(Command::SetTimestamp { parameter_list_length }),
        _ => Err(Sense::parameter_list_length()),
    }
}

fn read_buffer(raw: &RawCdb, allocation_length: u32) -> Result<Command, Sense> {
    let mode = match raw.u8::<1>() & 0x1f {
        0x03 => BufferMode::Descriptor,
        0x0a => BufferMode::EchoBuffer,
        0x0b => BufferMode::EchoBufferDescriptor,
        _ => return Err(Sense::illegal_field_cdb(1, Some(4))),
    };
    Ok(Command::ReadBuffer { mode, allocation_length })
}

pub(crate) fn read_buffer10(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    read_buffer(raw, raw.u32::<5>() & 0x00ff_ffff)
}

pub(crate) fn read_buffer16(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    read_buffer(raw, raw.u32::<10>())
}

pub(crate) fn write_buffer(raw: &RawCdb, _: &Geometry) -> Result<Command, Sense> {
    if raw.u8::<1>() & 0x1f != 0x0a {
        return Err(Sense::illegal_field_cdb(1, Some(4)));
    }
    let parameter_list_length = raw.u32::<5>() & 0x00ff_ffff;
    if parameter_list_length > limits::ECHO_BUFFER_LEN {
        return Err(Sense::illegal_field_cdb(6, None));
    }
    Ok(Command::WriteBuffer { parameter_list_length })
}
