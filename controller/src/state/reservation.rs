//! Where PERSISTENT RESERVE OUT and the other commands that change a unit's state commit, and where other Unit Attentions enter the
//! log.
//!
//! Invariants: the change is made by `holdfast_scsi::lu_state`, the same function that the owner validated with; a change is
//! carried out once per proposal id and only against the version that the proposer saw; one entry holds the new state, the Unit
//! Attentions it establishes and the nexuses whose tasks it aborts. A refusal for a stale epoch or version is final: both only
//! grow, so a proposal refused once cannot be carried out later.

use std::collections::VecDeque;

use holdfast_proto::state::{self as records, change};
use holdfast_replica::ids::{NodeNumber, VolumeId};
use holdfast_scsi::{
    cdb::{self, Command as ScsiCommand},
    lu_state::{Change, LuState},
    nexus::{Nexus, RelativePort},
    pr::{
        Registrant, Reservation, ReservationType,
        out::PrOut,
        state::{Refusal as PrRefusal, Reservations},
    },
    sense::{Sense, asc},
    status::Status,
    transport_id::TransportId,
    ua::UaScope,
};

use super::{
    CorruptState, Kind, Outcome, Refusal, StateMachine,
    audit::service_action,
    convert::{corrupt, epoch_of, nexus_of},
    effects::{Audience, Effects, nexus_name},
    limits, lu_state,
    names::printable,
    provenance::{Origin, Provenance},
    requests::Asker,
    volume::Volume,
};

/// Room for fixed-format sense data.
const SENSE_BYTES: usize = 64;

impl StateMachine {
    pub(super) fn propose_reservation(
        &mut self,
        command: &records::ProposeReservation,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        if command.proposal_id.len() != 16 {
            return Err(Refusal::invalid("proposal_id", "not 16 bytes"));
        }
        let ports = self.target_ports();
        let volume = self.volume_mut(&command.volume_id)?;
        // Before everything else: who asks again must hear what happened, whatever happened since.
        if let Some(known) = volume.outcomes.iter().find(|o| o.proposal_id == command.proposal_id) {
            return Ok(Outcome::Proposal(known.clone()));
        }
        check_owner(volume, command.epoch.as_ref(), command.proposer)?;
        if command.expected_version != volume.reservation_version {
            return Err(Refusal::StaleVersion {
                volume: volume.id,
                expected: command.expected_version,
                current: volume.reservation_version,
            });
        }
        let ended = [records::UnitEvent::OperationComplete, records::UnitEvent::OperationFailed];
        let nexus = match ended.iter().any(|event| *event as i32 == command.event) {
            // No nexus did it: any name serves.
            true => Nexus::new(TransportId::sas([0; 8]), RelativePort(0)),
            false => command
                .nexus
                .as_ref()
                .and_then(|n| nexus_of(&n.transport_id, n.relative_port))
                .filter(|n| ports.contains(&n.port))
                .ok_or_else(|| Refusal::invalid("nexus", "is no nexus of a port of this cluster"))?,
        };

        let change = match records::UnitEvent::try_from(command.event) {
            Ok(records::UnitEvent::Unspecified) => {
                Change::Command { nexus: &nexus, cdb: &command.cdb, parameter_list: &command.parameter_list }
            }
            Ok(records::UnitEvent::NexusLost) => Change::NexusLost(&nexus),
            Ok(records::UnitEvent::Reset) => Change::Reset,
            Ok(records::UnitEvent::OperationComplete) => Change::OperationEnded { failed: false },
            Ok(records::UnitEvent::OperationFailed) => Change::OperationEnded { failed: true },
            Err(_) => return Err(Refusal::invalid("event", "is none that this version knows")),
        };
        let context = volume
            .context(&ports, command.now_unix_ms)
            .ok_or_else(|| Refusal::Precondition(format!("volume {} has no shape", volume.name)))?;
        if let Change::Command { cdb, parameter_list, .. } = change
            && let Ok(ScsiCommand::SetTargetPortGroups { .. }) = cdb::parse(cdb, &context.geometry)
        {
            let id = volume.id;
            return Ok(self.propose_transition(command, id, &nexus, parameter_list, effects));
        }
        let reserved_before = (volume.lu.reservations.clone(), volume.lu.unit.spc2_holder);
        let applied = match volume.lu.apply(&change, &context) {
            Ok(applied) => applied,
            // Nothing happened: asked again, it is decided again.
            Err(refusal) => return Ok(Outcome::Proposal(refused(command, volume, refusal))),
        };
        if applied.changed {
            volume.reservation_version = effects.index;
            if reserved_before.0 != volume.lu.reservations {
                let origin = Origin {
                    index: effects.index,
                    time_unix_ms: effects.time_unix_ms(),
                    nexus: Some(nexus),
                    action: service_action(&command.cdb),
                };
                volume.provenance.follow(&reserved_before.0, &volume.lu.reservations, &origin);
            }
        }
        let outcome = records::ProposalOutcome {
            proposal_id: command.proposal_id.clone(),
            status: u32::from(Status::Good as u8),
            sense: Vec::new(),
            version: volume.reservation_version,
        };
        if applied.changed {
            volume.remember(&outcome);
            effects.change(change::Change::Reservation(volume.reservation_record()));
            let (kind, what) = if (&reserved_before.0, &reserved_before.1)
                == (&volume.lu.reservations, &volume.lu.unit.spc2_holder)
            {
                ("unit.changed", "mode parameters or information".to_owned())
            } else {
                ("reservation.changed", describe(&volume.lu))
            };
            let message = format!("{what} of volume {} by {nexus}", volume.name);
            effects.event(kind, format!("volume/{}", volume.name), message);
        }
        for (whom, additional) in &applied.unit_attentions {
            let audience = match whom {
                UaScope::All => Audience::Everyone,
                UaScope::Only(nexus) => Audience::Only(nexus),
                UaScope::AllExcept(nexus) => Audience::Except(nexus),
            };
            effects.unit_attention(volume.id, *additional, audience);
        }
        effects.abort(volume.id, &applied.abort_tasks_of);
        Ok(Outcome::Proposal(outcome))
    }

    /// True if a proposal that was refused as stale was certainly never carried out, whatever was asked before under its id: a change
    /// against `expected_version` has a higher one, and none of those is forgotten. It never will be, either.
    pub fn is_settled_as_refused(&self, volume: &[u8], expected_version: u64) -> bool {
        let volume = VolumeId::from_slice(volume).and_then(|id| self.volumes.get(&id));
        volume.is_some_and(|volume| expected_version >= volume.outcomes_forgotten)
    }

    /// SET TARGET PORT GROUPS. Committed means that the owner is asked to hand over; the view tells the owner what becomes of that.
    fn propose_transition(
        &mut self,
        command: &records::ProposeReservation,
        id: VolumeId,
        nexus: &Nexus,
        list: &[u8],
        effects: &mut Effects,
    ) -> Outcome {
        let (status, sense) = match self.set_target_port_groups(id, nexus, list, effects) {
            Ok(()) => (Status::Good, Vec::new()),
            // Nothing happened: asked again, it is decided again.
            Err(sense) => (Status::CheckCondition, fixed(&sense)),
        };
        let outcome = records::ProposalOutcome {
            proposal_id: command.proposal_id.clone(),
            status: u32::from(status as u8),
            sense,
            // Told only where the wish is installed.
            version: effects.index,
        };
        if let Some(volume) = self.volumes.get_mut(&id).filter(|_| status == Status::Good) {
            volume.remember(&outcome);
            effects.change(change::Change::Reservation(volume.reservation_record()));
        }
        Outcome::Proposal(outcome)
    }

    pub(super) fn establish_unit_attention(
        &mut self,
        command: &records::EstablishUnitAttention,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        if command.request_id.len() != 16 {
            return Err(Refusal::invalid("request_id", "not 16 bytes"));
        }
        // Known beside the requests of clients, whose ids have no such form.
        let id = command.request_id.iter().fold("unit-attention:".to_owned(), |id, b| format!("{id}{b:02x}"));
        let request = records::ClientRequest { id, digest: Vec::new() };
        if let Some(outcome) = self.requests.seen(Some(&request))? {
            return Ok(outcome);
        }
        let event = command.event.as_ref().ok_or_else(|| Refusal::invalid("event", "is missing"))?;
        let ports = self.target_ports();
        let volume = self.volume_mut(&event.volume_id)?;
        check_owner(volume, command.epoch.as_ref(), command.proposer)?;
        if event.additional == 0 || event.additional > 0xffff {
            return Err(Refusal::invalid("event.additional", "is not ASC << 8 | ASCQ"));
        }
        if !event.host.is_empty() {
            return Err(Refusal::invalid("event.host", "is for changes of a LUN map only"));
        }
        let name = |field, given: Option<&records::NexusName>| match given {
            None => Ok(None),
            Some(n) => nexus_of(&n.transport_id, n.relative_port)
                .filter(|n| ports.contains(&n.port))
                .map(|n| Some(nexus_name(&n)))
                .ok_or_else(|| Refusal::invalid(field, "is no nexus of a port of this cluster")),
        };
        effects.push(records::UnitAttentionEvent {
            volume_id: event.volume_id.clone(),
            additional: event.additional,
            only: name("event.only", event.only.as_ref())?,
            except: name("event.except", event.except.as_ref())?,
            ..Default::default()
        });
        let outcome = Outcome::Established(effects.index);
        self.requests.remember_of(Asker::Node, Some(&request), &outcome, effects);
        Ok(outcome)
    }

    /// What an administrator takes away is taken away as if its nexus had done it, so that everybody else is told what SPC-5 says;
    /// the nexus itself, which did not do it, is told too.
    pub(super) fn clear_reservation(
        &mut self,
        command: &records::ClearReservation,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let ports = self.target_ports();
        let id = self
            .volume_by_name(&command.volume)
            .map(|volume| volume.id)
            .ok_or_else(|| Refusal::not_found(Kind::Volume, &printable(&command.volume)))?;
        let volume = self.volume_mut(&id.0)?;
        let name = volume.name.clone();
        let chosen = match &command.nexus {
            None => volume.lu.reservations.registrants().first().map(|r| r.nexus).ok_or_else(|| {
                Refusal::Precondition(format!(
                    "nobody is registered with volume {name}: there is nothing to clear"
                ))
            })?,
            Some(nexus) => {
                let nexus = nexus_of(&nexus.transport_id, nexus.relative_port)
                    .ok_or_else(|| Refusal::invalid("initiator", "is no initiator port"))?;
                if !volume.lu.reservations.registrants().iter().any(|r| r.nexus == nexus) {
                    return Err(Refusal::Precondition(format!(
                        "{nexus} is not registered with volume {name}"
                    )));
                }
                nexus
            }
        };
        let key =
            volume.lu.reservations.registrants().iter().find(|r| r.nexus == chosen).map_or(0, |r| r.key);
        let (request, told, what) = match command.nexus {
            None => (PrOut::Clear { key }, asc::RESERVATIONS_PREEMPTED, "all registrations".to_owned()),
            Some(_) => {
                let request = PrOut::Register {
                    existing_key: Some(key),
                    new_key: 0,
                    aptpl: volume.lu.reservations.aptpl(),
                    all_target_ports: false,
                    initiator_ports: None,
                };
                (request, asc::REGISTRATIONS_PREEMPTED, format!("the registration of {chosen}"))
            }
        };
        let before = volume.lu.reservations.clone();
        let applied = volume.lu.reservations.apply(&chosen, &request, &ports).map_err(|refusal| {
            Refusal::Precondition(format!("{what} of volume {name} cannot be cleared: {refusal:?}"))
        })?;
        volume.reservation_version = effects.index;
        let origin = Origin {
            index: effects.index,
            time_unix_ms: effects.time_unix_ms(),
            nexus: None,
            action: format!("cleared by {}", effects.caller()),
        };
        volume.provenance.follow(&before, &volume.lu.reservations, &origin);
        effects.change(change::Change::Reservation(volume.reservation_record()));
        effects.event(
            "reservation.cleared",
            format!("volume/{name}"),
            format!("{what} of volume {name} was cleared"),
        );
        for (whom, additional) in &applied.unit_attentions {
            effects.unit_attention(id, *additional, Audience::Only(whom));
        }
        effects.unit_attention(id, told, Audience::Only(&chosen));
        Ok(Outcome::Established(effects.index))
    }

    pub(super) fn volume_mut(&mut self, id: &[u8]) -> Result<&mut Volume, Refusal> {
        let id = VolumeId::from_slice(id).ok_or_else(|| Refusal::invalid("volume_id", "not 16 bytes"))?;
        self.volumes.get_mut(&id).ok_or_else(|| Refusal::not_found(Kind::Volume, &id.to_string()))
    }
}

impl Volume {
    /// Keeps an outcome for who asks again.
    fn remember(&mut self, outcome: &records::ProposalOutcome) {
        while self.outcomes.len() >= limits::OUTCOMES_PER_VOLUME_KEPT {
            let forgotten = self.outcomes.pop_front();
            self.outcomes_forgotten = forgotten.map_or(self.outcomes_forgotten, |old| old.version);
        }
        self.outcomes.push_back(outcome.clone());
    }

    /// The durable record of the reservations.
    pub fn reservation_record(&self) -> records::Reservation {
        let reservations = &self.lu.reservations;
        let reservation = reservations.reservation();
        let holder = reservation.and_then(Reservation::holder);
        let position =
            holder.and_then(|holder| reservations.registrants().iter().position(|r| r.nexus == *holder));
        records::Reservation {
            volume_id: self.id.0.to_vec(),
            version: self.reservation_version,
            generation: reservations.generation(),
            aptpl: reservations.aptpl(),
            registrants: reservations
                .registrants()
                .iter()
                .map(|r| records::Registrant {
                    transport_id: r.nexus.initiator.as_bytes().to_vec(),
                    relative_port: u32::from(r.nexus.port.0),
                    key: r.key,
                    all_target_ports: r.all_target_ports,
                    origin: self.provenance.registrant(&r.nexus).map(Origin::record),
                })
                .collect(),
            r#type: reservation.map_or(0, |r| u32::from(r.kind().code())),
            holder: position.and_then(|at| i32::try_from(at).ok()).unwrap_or(-1),
            outcomes: self.outcomes.iter().cloned().collect(),
            outcomes_forgotten: self.outcomes_forgotten,
            unit: lu_state::record(&self.lu.unit),
            reserved: self.provenance.reservation().map(Origin::record),
            changed: self.provenance.last().map(Origin::record),
        }
    }

    /// Takes the reservations from their record.
    pub(super) fn restore_reservations(&mut self, record: records::Reservation) -> Result<(), CorruptState> {
        let wrong = |what: &str| corrupt(&format!("reservations of volume {}: {what}", self.id));
        let registrants = record
            .registrants
            .iter()
            .map(|r| {
                let nexus = nexus_of(&r.transport_id, r.relative_port)?;
                Some(Registrant { nexus, key: r.key, all_target_ports: r.all_target_ports })
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| wrong("a registrant"))?;
        let reservation = if record.r#type == 0 {
            None
        } else {
            let kind = u8::try_from(record.r#type).ok().and_then(ReservationType::from_code);
            let holder =
                usize::try_from(record.holder).ok().and_then(|at| registrants.get(at)).map(|r| r.nexus);
            let held = kind.and_then(|kind| Reservation::from_parts(kind, holder));
            Some(held.ok_or_else(|| wrong("type or holder"))?)
        };
        if record.outcomes.len() > limits::OUTCOMES_PER_VOLUME_KEPT {
            return Err(wrong("too many outcomes"));
        }
        let origins = registrants.iter().zip(&record.registrants);
        let origins = origins.map(|(r, stored)| (r.nexus, Origin::from_record(stored.origin.as_ref())));
        let origins: Vec<_> = origins.collect();
        self.provenance = Provenance::restore(origins, reservation.as_ref(), &record);
        let unit = lu_state::from_record(record.unit).ok_or_else(|| wrong("the unit's state"))?;
        self.lu = Reservations::from_parts(record.generation, record.aptpl, registrants, reservation)
            .and_then(|reservations| LuState::from_parts(reservations, unit))
            .map_err(|error| wrong(&format!("{error:?}")))?;
        self.reservation_version = record.version;
        self.outcomes = VecDeque::from(record.outcomes);
        self.outcomes_forgotten = record.outcomes_forgotten;
        Ok(())
    }
}

/// The proposer owns the volume in the epoch that it names.
fn check_owner(volume: &Volume, epoch: Option<&records::Epoch>, proposer: u32) -> Result<(), Refusal> {
    let (asked, current) = (epoch_of(epoch), volume.config.epoch());
    let owner = volume.config.owner().map(|o| o.node);
    if asked != current || owner.is_none() || owner != NodeNumber::new(proposer) {
        let owner = owner.map_or(0, |n| u32::from(n.get()));
        return Err(Refusal::StaleEpoch { volume: volume.id, asked, current, owner });
    }
    Ok(())
}

fn refused(
    command: &records::ProposeReservation,
    volume: &Volume,
    refusal: PrRefusal,
) -> records::ProposalOutcome {
    let (status, sense) = match refusal {
        PrRefusal::Conflict => (Status::ReservationConflict, Vec::new()),
        PrRefusal::Sense(sense) => (Status::CheckCondition, fixed(&sense)),
    };
    records::ProposalOutcome {
        proposal_id: command.proposal_id.clone(),
        status: u32::from(status as u8),
        sense,
        version: volume.reservation_version,
    }
}

fn fixed(sense: &Sense) -> Vec<u8> {
    let mut bytes = vec![0; SENSE_BYTES];
    let written = sense.write_fixed(&mut bytes);
    bytes.truncate(written);
    bytes
}

/// "write exclusive, 2 registrations", for events.
fn describe(lu: &LuState) -> String {
    if lu.unit.spc2_holder.is_some() {
        return "RESERVE".to_owned();
    }
    let reservations = &lu.reservations;
    let kind = reservations.reservation().map_or("no reservation", |r| type_name(r.kind()));
    let registrations = reservations.registrants().len();
    format!("{kind}, {registrations} registration{}", if registrations == 1 { "" } else { "s" })
}

/// A reservation type in words.
pub fn type_name(kind: ReservationType) -> &'static str {
    match kind {
        ReservationType::WriteExclusive => "write exclusive",
        ReservationType::ExclusiveAccess => "exclusive access",
        ReservationType::WriteExclusiveRegistrantsOnly => "write exclusive, registrants only",
        ReservationType::ExclusiveAccessRegistrantsOnly => "exclusive access, registrants only",
        ReservationType::WriteExclusiveAllRegistrants => "write exclusive, all registrants",
        ReservationType::ExclusiveAccessAllRegistrants => "exclusive access, all registrants",
    }
}
