//! What the cluster keeps of a logical unit beside its persistent reservations: its record, and what ends with a data node.
//!
//! Invariant: what hangs on an I_T nexus (RESERVE of SPC-2, PREVENT) ends in the same entry by which the nexus's node is known to be
//! gone: its lease ran out, it started anew, or it was removed. So nothing outlives its nexus because an owner died with it.

use std::collections::BTreeSet;

use holdfast_proto::state::{self as records, change};
use holdfast_scsi::{
    geometry::Geometry,
    lu_state::{
        Change, Context, IdentifyingInformation, Operation, OperationKind, OperationState, UnitState,
        UnixMillis,
    },
    mode::{InformationalExceptions, Interlock, ModeParameters, QueueError, ReportMethod, Thresholds},
    nexus::{Nexus, RelativePort},
    sense::asc,
};

use super::{
    StateMachine,
    convert::nexus_of,
    effects::{Audience, Effects, nexus_name},
    volume::Volume,
};

impl StateMachine {
    /// The nexuses of these ports are gone, with all that hangs on them.
    pub(super) fn end_nexuses_of(&mut self, ports: &[records::Port], effects: &mut Effects) {
        let gone: BTreeSet<u16> =
            ports.iter().filter_map(|port| u16::try_from(port.relative_port).ok()).collect();
        for volume in self.volumes.values_mut() {
            let lost: Vec<Nexus> =
                volume.lu.nexuses().filter(|nexus| gone.contains(&nexus.port.0)).copied().collect();
            let holder = volume.lu.unit.spc2_holder.filter(|holder| lost.contains(holder));
            let mut changed = false;
            for nexus in &lost {
                let Some(context) = volume.context(&[], 0) else { continue };
                let done = volume.lu.apply(&Change::NexusLost(nexus), &context);
                changed |= done.is_ok_and(|applied| applied.changed);
            }
            // A node that only lost its lease may still have the nexus: it hears of it.
            if let Some(holder) = &holder {
                effects.unit_attention(volume.id, asc::RESERVATIONS_RELEASED, Audience::Only(holder));
            }
            if changed {
                volume.reservation_version = effects.index;
                effects.change(change::Change::Reservation(volume.reservation_record()));
            }
        }
    }
}

impl Volume {
    /// What changes of the unit's state are judged by; `None` for a shape that no volume has.
    pub(super) fn context<'a>(&self, ports: &'a [RelativePort], now_unix_ms: u64) -> Option<Context<'a>> {
        let blocks = self.size_bytes.checked_div(u64::from(self.block_size))?;
        Some(Context {
            ports,
            geometry: Geometry::new(self.block_size, blocks)?,
            mode_default: ModeParameters::new(self.write_cache),
            now: UnixMillis(now_unix_ms),
        })
    }
}

/// The record; absent for a unit as it was when it was new.
pub(super) fn record(unit: &UnitState) -> Option<records::UnitState> {
    if *unit == UnitState::default() {
        return None;
    }
    Some(records::UnitState {
        spc2_holder: unit.spc2_holder.as_ref().map(nexus_name),
        mode: unit.mode.as_ref().map(mode_record),
        saved_mode: unit.saved_mode.as_ref().map(mode_record),
        preventing: unit.preventing.iter().map(nexus_name).collect(),
        identifying_device: unit.identifying.device.clone(),
        identifying_text: unit.identifying.text.clone(),
        timestamp_ahead_ms: unit.timestamp_ahead,
        operation: unit.operation.as_ref().map(operation_record),
    })
}

/// From its record; `None` for one that no unit has.
pub(super) fn from_record(record: Option<records::UnitState>) -> Option<UnitState> {
    let Some(record) = record else { return Some(UnitState::default()) };
    let nexus = |name: &records::NexusName| nexus_of(&name.transport_id, name.relative_port);
    let mode = |record: &Option<records::ModeParameters>| {
        record.as_ref().map(mode_of).map_or(Some(None), |m| m.map(Some))
    };
    Some(UnitState {
        spc2_holder: record.spc2_holder.as_ref().map(nexus).map_or(Some(None), |n| n.map(Some))?,
        mode: mode(&record.mode)?,
        saved_mode: mode(&record.saved_mode)?,
        preventing: record.preventing.iter().map(nexus).collect::<Option<_>>()?,
        identifying: IdentifyingInformation {
            device: record.identifying_device,
            text: record.identifying_text,
        },
        timestamp_ahead: record.timestamp_ahead_ms,
        operation: record.operation.map(operation_of).map_or(Some(None), |o| o.map(Some))?,
    })
}

fn operation_record(operation: &Operation) -> records::Operation {
    let (failed, may_exit_failure) = match operation.state {
        OperationState::Running { may_exit_failure } => (false, may_exit_failure),
        OperationState::Failed { may_exit_failure } => (true, may_exit_failure),
    };
    let record = records::Operation { failed, may_exit_failure, ..Default::default() };
    match &operation.kind {
        OperationKind::Format => records::Operation { kind: 1, ..record },
        OperationKind::BlockErase => records::Operation { kind: 2, ..record },
        OperationKind::Overwrite { pattern, passes, invert } => records::Operation {
            kind: 3,
            pattern: pattern.clone(),
            passes: u32::from(*passes),
            invert: *invert,
            ..record
        },
    }
}

fn operation_of(record: records::Operation) -> Option<Operation> {
    let kind = match record.kind {
        1 => OperationKind::Format,
        2 => OperationKind::BlockErase,
        3 if !record.pattern.is_empty() => OperationKind::Overwrite {
            pattern: record.pattern,
            passes: u8::try_from(record.passes).ok().filter(|passes| *passes != 0)?,
            invert: record.invert,
        },
        _ => return None,
    };
    let may_exit_failure = record.may_exit_failure;
    let state = match record.failed {
        false => OperationState::Running { may_exit_failure },
        true => OperationState::Failed { may_exit_failure },
    };
    Some(Operation { kind, state })
}

fn mode_record(mode: &ModeParameters) -> records::ModeParameters {
    records::ModeParameters {
        write_cache: mode.write_cache,
        software_write_protect: mode.software_write_protect,
        descriptor_sense: mode.descriptor_sense,
        task_set_per_nexus: mode.task_set_per_nexus,
        queue_error: mode.queue_error as u32,
        task_aborted_status: mode.task_aborted_status,
        interlock: mode.interlock as u32,
        exceptions_disabled: mode.exceptions.disabled,
        exceptions_test: mode.exceptions.test,
        exceptions_method: mode.exceptions.method as u32,
        threshold_single_initiator: mode.provisioning.single_initiator,
        threshold_available: mode.provisioning.available,
        threshold_used: mode.provisioning.used,
    }
}

fn mode_of(record: &records::ModeParameters) -> Option<ModeParameters> {
    let code = |code: u32| u8::try_from(code).ok();
    Some(ModeParameters {
        write_cache: record.write_cache,
        software_write_protect: record.software_write_protect,
        descriptor_sense: record.descriptor_sense,
        task_set_per_nexus: record.task_set_per_nexus,
        queue_error: QueueError::from_code(code(record.queue_error)?)?,
        task_aborted_status: record.task_aborted_status,
        interlock: Interlock::from_code(code(record.interlock)?)?,
        exceptions: InformationalExceptions {
            disabled: record.exceptions_disabled,
            test: record.exceptions_test,
            method: ReportMethod::from_code(code(record.exceptions_method)?)?,
        },
        provisioning: Thresholds {
            single_initiator: record.threshold_single_initiator,
            available: record.threshold_available,
            used: record.threshold_used,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_scsi::transport_id::TransportId;

    #[test]
    fn unit_state_reads_back_from_its_record() {
        let nexus = |n: u8| Nexus::new(TransportId::sas([n; 8]), RelativePort(u16::from(n)));
        let mode = ModeParameters {
            descriptor_sense: true,
            task_set_per_nexus: true,
            queue_error: QueueError::AbortOwn,
            task_aborted_status: true,
            interlock: Interlock::KeepAndEstablish,
            exceptions: InformationalExceptions {
                disabled: false,
                test: true,
                method: ReportMethod::OnRequest,
            },
            provisioning: Thresholds { single_initiator: true, available: Some(5), used: Some(0) },
            ..ModeParameters::new(true)
        };
        let unit = UnitState {
            spc2_holder: Some(nexus(1)),
            mode: Some(mode),
            saved_mode: Some(ModeParameters { software_write_protect: true, ..ModeParameters::new(false) }),
            preventing: vec![nexus(1), nexus(2)],
            identifying: IdentifyingInformation { device: vec![1, 2], text: b"db\0".to_vec() },
            timestamp_ahead: Some(-7),
            operation: Some(Operation {
                kind: OperationKind::Overwrite { pattern: vec![1, 2], passes: 3, invert: true },
                state: OperationState::Failed { may_exit_failure: true },
            }),
        };
        assert_eq!(from_record(record(&unit)), Some(unit));
        assert_eq!(record(&UnitState::default()), None);
        assert_eq!(from_record(None), Some(UnitState::default()));
    }

    #[test]
    fn record_of_no_unit_is_refused() {
        let wrong = records::ModeParameters { queue_error: 2, ..Default::default() };
        let record = records::UnitState { mode: Some(wrong), ..Default::default() };
        assert_eq!(from_record(Some(record)), None);
        let nobody = records::UnitState { preventing: vec![Default::default()], ..Default::default() };
        assert_eq!(from_record(Some(nobody)), None);
    }
}
