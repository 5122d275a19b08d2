//! What the cluster keeps of one logical unit beside its data, and the only function that changes it.
//!
//! Persistent reservations, the SPC-2 reservation, mode parameters (current and saved), who prevents the removal of the
//! medium, identifying information and the timestamp: one state with one version, so that no two of them can disagree.
//! The device server validates a command with [`LuState::apply`] on a copy; the controller's state machine commits it with
//! the same function and the same bytes. Invariants: a refused change changes nothing; whatever hangs on an I_T nexus ends
//! with it ([`Change::NexusLost`]); a unit is never reserved by SPC-2 while anyone is registered.
//!
//! | Looking for | Module |
//! |---|---|
//! | PERSISTENT RESERVE OUT | [`crate::pr::state`] |
//! | MODE SELECT's parameter list | [`crate::mode`] |
//! | identifying information, the timestamp | `information` |

mod information;
mod operation;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

pub(crate) use operation::is_immediate;
pub use operation::{Operation, OperationKind, OperationState};

pub use information::{IdentifyingInformation, UnixMillis, report_identifying_information, report_timestamp};

use crate::{
    cdb::{self, Command},
    geometry::Geometry,
    limits,
    mode::{self, ModeParameters, ReportMethod},
    nexus::{Nexus, RelativePort},
    pr::{
        access::{self, Access},
        out::PrOut,
        state::{InvalidParts, Refusal, Reservations},
    },
    sense::{AdditionalSense, Sense, asc},
    ua::UaScope,
};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LuState {
    /// Registrations and persistent reservation.
    pub reservations: Reservations,
    /// Everything else.
    pub unit: UnitState,
}

/// What the cluster keeps of a unit beside its persistent reservations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitState {
    /// Holder of the SPC-2 reservation.
    pub spc2_holder: Option<Nexus>,
    /// Current mode parameters; `None`: the saved ones.
    pub mode: Option<ModeParameters>,
    /// Saved mode parameters; `None`: those of a new unit.
    pub saved_mode: Option<ModeParameters>,
    /// I_T nexuses that prevent the removal of the medium, in rising order.
    pub preventing: Vec<Nexus>,
    /// REPORT IDENTIFYING INFORMATION.
    pub identifying: IdentifyingInformation,
    /// How far the timestamp is ahead of the cluster's clock, in milliseconds; `None`: it is that clock.
    pub timestamp_ahead: Option<i64>,
    /// FORMAT UNIT or SANITIZE.
    pub operation: Option<Operation>,
}

/// What changes the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// A command that came through a nexus.
    Command {
        /// The nexus.
        nexus: &'a Nexus,
        /// Its CDB, whole.
        cdb: &'a [u8],
        /// Its parameter list, whole.
        parameter_list: &'a [u8],
    },
    /// A nexus is gone.
    NexusLost(&'a Nexus),
    /// LOGICAL UNIT RESET.
    Reset,
    /// The operation under way has ended.
    OperationEnded {
        /// Not well.
        failed: bool,
    },
}

/// What a change is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// All target ports of the cluster.
    pub ports: &'a [RelativePort],
    /// Block size and capacity.
    pub geometry: Geometry,
    /// Mode parameters of the unit when it was new.
    pub mode_default: ModeParameters,
    /// The proposer's clock, in milliseconds since 1970 (UTC). Decides nothing but the timestamp.
    pub now: UnixMillis,
}

/// What a change did. The status is GOOD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The state differs from before and must be agreed on in the cluster.
    pub changed: bool,
    /// Unit Attentions to establish.
    pub unit_attentions: Vec<(UaScope, AdditionalSense)>,
    /// Nexuses whose tasks are aborted.
    pub abort_tasks_of: Vec<Nexus>,
    /// Some nexus may do less than before: GOOD waits until I/O submitted under older versions has completed.
    pub narrowed: bool,
}

impl From<Reservations> for LuState {
    fn from(reservations: Reservations) -> LuState {
        LuState { reservations, unit: UnitState::default() }
    }
}

impl LuState {
    /// A state from its stored parts.
    ///
    /// # Errors
    /// What does not hold the invariants.
    pub fn from_parts(reservations: Reservations, unit: UnitState) -> Result<LuState, InvalidParts> {
        let rising = unit.preventing.is_sorted_by(|a, b| a < b);
        let exclusive = unit.spc2_holder.is_none() || reservations.registrants().is_empty();
        if !rising || unit.preventing.len() > limits::PREVENTING_MAX || !exclusive || !unit.identifying.fits()
        {
            return Err(InvalidParts::Unit);
        }
        Ok(LuState { reservations, unit })
    }

    /// Mode parameters in force; `default` are those of the new unit.
    pub fn mode(&self, default: ModeParameters) -> ModeParameters {
        self.unit.mode.unwrap_or_else(|| self.saved_mode(default))
    }

    /// Mode parameters after a reset.
    pub fn saved_mode(&self, default: ModeParameters) -> ModeParameters {
        self.unit.saved_mode.unwrap_or(default)
    }

    /// True if something of the state hangs on this nexus and ends with it.
    pub fn hangs_on(&self, nexus: &Nexus) -> bool {
        self.unit.spc2_holder.as_ref() == Some(nexus) || self.unit.preventing.binary_search(nexus).is_ok()
    }

    /// The nexuses that something of the state hangs on.
    pub fn nexuses(&self) -> impl Iterator<Item = &Nexus> {
        self.unit.spc2_holder.iter().chain(&self.unit.preventing)
    }

    /// The power of the whole cluster was lost: what is not kept over it ends.
    pub fn lose_power(&mut self) {
        if !self.reservations.aptpl() {
            self.reservations = Reservations::default();
        }
        self.unit.reset();
        self.unit.timestamp_ahead = None;
    }

    /// Applies a change.
    ///
    /// # Errors
    /// Why it is refused. Nothing changed.
    pub fn apply(&mut self, change: &Change<'_>, context: &Context<'_>) -> Result<Applied, Refusal> {
        let mut next = self.clone();
        let mut applied = match *change {
            Change::Command { nexus, cdb, parameter_list } => {
                next.apply_command(nexus, cdb, parameter_list, context)?
            }
            Change::NexusLost(nexus) => {
                next.unit.lose(nexus);
                Applied::default()
            }
            Change::Reset => {
                next.unit.reset();
                Applied::default()
            }
            Change::OperationEnded { failed } => {
                next.unit.end_operation(failed);
                Applied::default()
            }
        };
        let protects = |state: &LuState| state.mode(context.mode_default).software_write_protect;
        applied.changed = next != *self;
        applied.narrowed |= applied.changed
            && ((protects(&next) && !protects(self))
                || (next.unit.spc2_holder.is_some() && next.unit.spc2_holder != self.unit.spc2_holder));
        *self = next;
        Ok(applied)
    }

    fn apply_command(
        &mut self,
        nexus: &Nexus,
        cdb: &[u8],
        list: &[u8],
        context: &Context<'_>,
    ) -> Result<Applied, Refusal> {
        let whole = |len: u32| {
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            list.get(..len).ok_or(Refusal::Sense(Sense::parameter_list_length()))
        };
        match cdb::parse(cdb, &context.geometry).map_err(Refusal::Sense)? {
            Command::PersistentReserveOut { .. } => {
                if self.unit.spc2_holder.is_some() {
                    return Err(Refusal::Conflict);
                }
                let request = PrOut::parse(cdb, list).map_err(Refusal::Sense)?;
                let done = self.reservations.apply(nexus, &request, context.ports)?;
                let only = |(nexus, what)| (UaScope::Only(nexus), what);
                Ok(Applied {
                    changed: done.changed,
                    unit_attentions: done.unit_attentions.into_iter().map(only).collect(),
                    abort_tasks_of: done.abort_tasks_of,
                    narrowed: done.narrowed,
                })
            }
            command @ (Command::Reserve | Command::Release) => {
                match access::check_compatible(&self.reservations.view(), nexus) {
                    Some(Access::Conflict) => return Err(Refusal::Conflict),
                    Some(Access::Allowed) => return Ok(Applied::default()),
                    None => {}
                }
                if command == Command::Reserve {
                    if self.unit.spc2_holder.is_some_and(|holder| holder != *nexus) {
                        return Err(Refusal::Conflict);
                    }
                    self.unit.spc2_holder = Some(*nexus);
                    return Ok(Applied::default());
                }
                // Without effect, but GOOD, for all but the holder (SPC-2 7.21.2).
                self.unit.spc2_holder = self.unit.spc2_holder.filter(|holder| holder != nexus);
                Ok(Applied::default())
            }
            Command::PreventAllowMediumRemoval { prevent } => {
                self.unit.prevent(nexus, prevent).map_err(Refusal::Sense)?;
                Ok(Applied::default())
            }
            Command::ModeSelect { form, save, parameter_list_length } => {
                let before = self.mode(context.mode_default);
                let list = whole(u32::from(parameter_list_length))?;
                let selected =
                    mode::parse_select(form, list, &before, &context.geometry).map_err(Refusal::Sense)?;
                self.unit.mode = Some(selected);
                if save && !list.is_empty() {
                    self.unit.saved_mode = Some(selected);
                }
                if selected == before {
                    // Nothing but what is saved may have changed: of that nobody is told.
                    self.unit.mode =
                        Some(selected).filter(|mode| *mode != self.saved_mode(context.mode_default));
                    return Ok(Applied::default());
                }
                let mut applied = told_to_others(nexus, asc::MODE_PARAMETERS_CHANGED);
                let exceptions = &selected.exceptions;
                if let Some(exception) = exceptions.exception().filter(|_| *exceptions != before.exceptions)
                    && exceptions.method == ReportMethod::UnitAttention
                {
                    applied.unit_attentions.push((UaScope::All, exception));
                }
                Ok(applied)
            }
            Command::SetIdentifyingInformation { kind, parameter_list_length } => {
                let changed = self.unit.identifying.set(kind, whole(parameter_list_length)?);
                match changed.map_err(Refusal::Sense)? {
                    true => Ok(told_to_others(nexus, asc::DEVICE_IDENTIFIER_CHANGED)),
                    false => Ok(Applied::default()),
                }
            }
            command @ (Command::FormatUnit { .. } | Command::Sanitize { .. }) => {
                self.begin_operation(&command, list).map_err(Refusal::Sense)?;
                // Nothing that was submitted before may land in a medium that is done.
                Ok(Applied { narrowed: true, ..Applied::default() })
            }
            Command::SetTimestamp { parameter_list_length: 0 } => Ok(Applied::default()),
            Command::SetTimestamp { parameter_list_length } => {
                let set = information::timestamp_of(whole(parameter_list_length)?).map_err(Refusal::Sense)?;
                self.unit.timestamp_ahead = Some(set.0.wrapping_sub(context.now.0).cast_signed());
                Ok(told_to_others(nexus, asc::TIMESTAMP_CHANGED))
            }
            _ => Err(Refusal::Sense(Sense::illegal(asc::INVALID_COMMAND_OPERATION_CODE))),
        }
    }
}

impl LuState {
    fn begin_operation(&mut self, command: &Command, list: &[u8]) -> Result<(), Sense> {
        let begun = Operation::of(command, list)?;
        match (&self.unit.operation, begun) {
            (Some(running), _) if running.is_running() => return Err(running.sense(0)),
            (_, Some(begun)) => self.unit.operation = Some(begun),
            (None, None) => {}
            (Some(Operation { state: OperationState::Failed { may_exit_failure: true }, .. }), None) => {
                self.unit.operation = None;
            }
            // Only another SANITIZE helps.
            (Some(failed), None) => return Err(failed.sense(0)),
        }
        Ok(())
    }
}

fn told_to_others(nexus: &Nexus, what: AdditionalSense) -> Applied {
    Applied { unit_attentions: Vec::from([(UaScope::AllExcept(*nexus), what)]), ..Applied::default() }
}

impl UnitState {
    fn lose(&mut self, nexus: &Nexus) {
        self.spc2_holder = self.spc2_holder.filter(|holder| holder != nexus);
        self.preventing.retain(|preventing| preventing != nexus);
    }

    /// What a reset ends (SAM-5 6.3.3): reservations of SPC-2, PREVENT, and mode parameters that were not saved.
    fn reset(&mut self) {
        self.spc2_holder = None;
        self.preventing.clear();
        self.mode = None;
    }

    fn end_operation(&mut self, failed: bool) {
        let Some(operation) = &mut self.operation else { return };
        match operation.state {
            OperationState::Running { may_exit_failure } if failed => {
                operation.state = OperationState::Failed { may_exit_failure };
            }
            OperationState::Running { .. } => self.operation = None,
            OperationState::Failed { .. } => {}
        }
    }

    fn prevent(&mut self, nexus: &Nexus, prevent: bool) -> Result<(), Sense> {
        match (self.preventing.binary_search(nexus), prevent) {
            (Ok(at), false) => _ = self.preventing.remove(at),
            (Err(at), true) if self.preventing.len() < limits::PREVENTING_MAX => {
                self.preventing.insert(at, *nexus);
            }
            (Err(_), true) => return Err(Sense::illegal(asc::INSUFFICIENT_RESOURCES)),
            (Ok(_), true) | (Err(_), false) => {}
        }
        Ok(())
    }
}
