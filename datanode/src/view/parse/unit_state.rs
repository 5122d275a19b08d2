//! The record of a unit's state: registrations, the reservation, mode parameters, what is under way.
//!
//! Invariant: as in [`super`], nothing is skipped or guessed.

use holdfast_proto::state;
use holdfast_scsi::{
    lu_state::{IdentifyingInformation, LuState, Operation, OperationKind, OperationState, UnitState},
    mode::{InformationalExceptions, Interlock, ModeParameters, QueueError, ReportMethod, Thresholds},
    nexus::Nexus,
    pr::{Registrant, Reservation, ReservationType, state::Reservations},
};

use super::{Field, nexus, relative_port, transport_id};
use crate::view::ReservationView;

pub(super) fn reservation(record: &state::Reservation) -> Field<ReservationView> {
    let registrant = |r: &state::Registrant| -> Field<Registrant> {
        let nexus = Nexus::new(transport_id(&r.transport_id)?, relative_port(r.relative_port)?);
        Ok(Registrant { nexus, key: r.key, all_target_ports: r.all_target_ports })
    };
    let registrants = record.registrants.iter().map(registrant).collect::<Field<Vec<_>>>()?;
    let holder = match record.holder {
        -1 => None,
        at => {
            let at = usize::try_from(at).map_err(|_| "the holder is out of range")?;
            Some(registrants.get(at).ok_or("the holder is out of range")?.nexus)
        }
    };
    let held = match record.r#type {
        0 if holder.is_some() => return Err("a holder without a reservation".into()),
        0 => None,
        code => {
            let kind = u8::try_from(code).ok().and_then(ReservationType::from_code);
            let kind = kind.ok_or_else(|| format!("{code} is no reservation type"))?;
            Some(Reservation::from_parts(kind, holder).ok_or("holder and reservation type do not agree")?)
        }
    };
    let unit = unit_state(record.unit.as_ref())?;
    let state = Reservations::from_parts(record.generation, record.aptpl, registrants, held)
        .and_then(|reservations| LuState::from_parts(reservations, unit))
        .map_err(|why| format!("{why:?}"))?;
    Ok(ReservationView { version: record.version, state })
}

fn unit_state(record: Option<&state::UnitState>) -> Field<UnitState> {
    let Some(record) = record else { return Ok(UnitState::default()) };
    Ok(UnitState {
        spc2_holder: record.spc2_holder.as_ref().map(nexus).transpose()?,
        mode: record.mode.as_ref().map(mode_parameters).transpose()?,
        saved_mode: record.saved_mode.as_ref().map(mode_parameters).transpose()?,
        preventing: record.preventing.iter().map(nexus).collect::<Field<_>>()?,
        identifying: IdentifyingInformation {
            device: record.identifying_device.clone(),
            text: record.identifying_text.clone(),
        },
        timestamp_ahead: record.timestamp_ahead_ms,
        operation: record.operation.as_ref().map(operation).transpose()?,
    })
}

fn operation(record: &state::Operation) -> Field<Operation> {
    let kind = match record.kind {
        1 => OperationKind::Format,
        2 => OperationKind::BlockErase,
        3 if !record.pattern.is_empty() => OperationKind::Overwrite {
            pattern: record.pattern.clone(),
            passes: u8::try_from(record.passes).map_err(|_| "the passes are out of range")?,
            invert: record.invert,
        },
        other => return Err(format!("{other} is no operation")),
    };
    let may_exit_failure = record.may_exit_failure;
    let state = match record.failed {
        false => OperationState::Running { may_exit_failure },
        true => OperationState::Failed { may_exit_failure },
    };
    Ok(Operation { kind, state })
}

fn mode_parameters(record: &state::ModeParameters) -> Field<ModeParameters> {
    let code = |code: u32| u8::try_from(code).map_err(|_| format!("{code} is no mode parameter"));
    Ok(ModeParameters {
        write_cache: record.write_cache,
        software_write_protect: record.software_write_protect,
        descriptor_sense: record.descriptor_sense,
        task_set_per_nexus: record.task_set_per_nexus,
        queue_error: QueueError::from_code(code(record.queue_error)?).ok_or("QERR is out of range")?,
        task_aborted_status: record.task_aborted_status,
        interlock: Interlock::from_code(code(record.interlock)?).ok_or("UA_INTLCK_CTRL is out of range")?,
        exceptions: InformationalExceptions {
            disabled: record.exceptions_disabled,
            test: record.exceptions_test,
            method: ReportMethod::from_code(code(record.exceptions_method)?).ok_or("MRIE is out of range")?,
        },
        provisioning: Thresholds {
            single_initiator: record.threshold_single_initiator,
            available: record.threshold_available,
            used: record.threshold_used,
        },
    })
}
