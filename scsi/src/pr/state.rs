//! The reservation state of one logical unit, and the only function that changes it (SPC-5 5.14).
//!
//! The device server validates a PERSISTENT RESERVE OUT with [`Reservations::apply`] on a copy; the controller's state
//! machine commits it with the same function. Invariants, kept by construction and by [`Reservations::from_parts`]:
//! keys are never 0; a nexus is registered once; a reservation's holder is registered; without registrants there is no
//! reservation; a refused request changes nothing.

use alloc::vec::Vec;

use super::{Registrant, Reservation, ReservationType, View, out::PrOut};
use crate::{
    limits::PR_REGISTRANTS_MAX,
    nexus::{Nexus, RelativePort},
    sense::{AdditionalSense, Sense, asc},
    transport_id::TransportId,
};

/// Registrations and reservation of a logical unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservations {
    generation: u32,
    aptpl: bool,
    registrants: Vec<Registrant>,
    reservation: Option<Reservation>,
}

/// Why a PERSISTENT RESERVE OUT was refused. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// RESERVATION CONFLICT status.
    Conflict,
    /// CHECK CONDITION with this sense data.
    Sense(Sense),
}

/// What a PERSISTENT RESERVE OUT did. The status is GOOD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The state differs from before (if only by PRGENERATION) and must be agreed on in the cluster.
    pub changed: bool,
    /// Unit Attentions to establish.
    pub unit_attentions: Vec<(Nexus, AdditionalSense)>,
    /// Nexuses whose tasks PREEMPT AND ABORT aborts.
    pub abort_tasks_of: Vec<Nexus>,
    /// Some nexus may do less than before: GOOD waits until I/O submitted under older versions has completed.
    pub narrowed: bool,
}

/// Stored parts that make no valid state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidParts {
    /// More registrants than [`PR_REGISTRANTS_MAX`].
    TooManyRegistrants,
    /// A registrant with key 0.
    ZeroKey,
    /// A nexus registered twice.
    DuplicateRegistrant,
    /// A reservation whose holder is not registered, or without any registrant.
    HolderNotRegistered,
    /// State beside the reservations that cannot be ([`crate::lu_state`]).
    Unit,
}

impl Reservations {
    /// A state from its stored parts.
    pub fn from_parts(
        generation: u32,
        aptpl: bool,
        registrants: Vec<Registrant>,
        reservation: Option<Reservation>,
    ) -> Result<Reservations, InvalidParts> {
        if registrants.len() > PR_REGISTRANTS_MAX {
            return Err(InvalidParts::TooManyRegistrants);
        }
        if registrants.iter().any(|r| r.key == 0) {
            return Err(InvalidParts::ZeroKey);
        }
        let mut names: Vec<&Nexus> = registrants.iter().map(|r| &r.nexus).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
            return Err(InvalidParts::DuplicateRegistrant);
        }
        let held = |r: &Reservation| match r.holder() {
            Some(holder) => names.binary_search(&holder).is_ok(),
            None => !names.is_empty(),
        };
        if !reservation.as_ref().is_none_or(held) {
            return Err(InvalidParts::HolderNotRegistered);
        }
        Ok(Reservations { generation, aptpl, registrants, reservation })
    }

    /// The state to read.
    pub fn view(&self) -> View<'_> {
        View {
            generation: self.generation,
            aptpl: self.aptpl,
            registrants: &self.registrants,
            reservation: self.reservation.as_ref(),
        }
    }

    /// PRGENERATION.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Activate persist through power loss, as last asked for.
    pub fn aptpl(&self) -> bool {
        self.aptpl
    }

    /// Registrants in the order in which they registered.
    pub fn registrants(&self) -> &[Registrant] {
        &self.registrants
    }

    /// The reservation.
    pub fn reservation(&self) -> Option<&Reservation> {
        self.reservation.as_ref()
    }

    /// Applies a request that came through `nexus`. `ports` are all target ports of the cluster, for ALL_TG_PT and for
    /// the destination of REGISTER AND MOVE.
    pub fn apply(
        &mut self,
        nexus: &Nexus,
        request: &PrOut<'_>,
        ports: &[RelativePort],
    ) -> Result<Applied, Refusal> {
        let mut next = self.clone();
        let mut applied = match request {
            PrOut::Register { .. } => next.register(nexus, request, ports)?,
            PrOut::Reserve { key, kind } => next.reserve(nexus, *key, *kind)?,
            PrOut::Release { key, kind } => next.release(nexus, *key, *kind)?,
            PrOut::Clear { key } => next.clear(nexus, *key)?,
            PrOut::Preempt { key, victim, kind, abort } => {
                next.preempt(nexus, *key, *victim, *kind, *abort)?
            }
            PrOut::RegisterAndMove { .. } => next.register_and_move(nexus, request, ports)?,
        };
        applied.changed = next != *self;
        applied.narrowed = applied.changed && narrows(&self.view(), &next.view());
        *self = next;
        Ok(applied)
    }

    fn register(
        &mut self,
        nexus: &Nexus,
        request: &PrOut<'_>,
        ports: &[RelativePort],
    ) -> Result<Applied, Refusal> {
        let PrOut::Register { existing_key, new_key, aptpl, all_target_ports, initiator_ports } = *request
        else {
            return Ok(Applied::default());
        };
        let registered = self.key_of(nexus);
        // An unregistered nexus proves itself with key 0 (SPC-5 table "Register behaviors").
        if existing_key.is_some_and(|key| key != registered.unwrap_or(0)) {
            return Err(Refusal::Conflict);
        }
        if registered.is_none() && new_key == 0 {
            return Ok(Applied::default());
        }
        if registered.is_some() && initiator_ports.is_some() {
            return Err(Refusal::Sense(Sense::illegal(asc::INVALID_FIELD_IN_CDB)));
        }
        let mut targets: Vec<RelativePort> = Vec::from([nexus.port]);
        if all_target_ports {
            targets.extend(ports.iter().filter(|port| **port != nexus.port));
        }
        let own: Vec<Nexus> = targets.iter().map(|port| Nexus::new(nexus.initiator, *port)).collect();
        // ALL_TG_PT is as if the request had come through each port: a differing key on any of them conflicts.
        if existing_key.is_some_and(|key| own.iter().any(|n| self.key_of(n).is_some_and(|k| k != key))) {
            return Err(Refusal::Conflict);
        }
        self.advance(aptpl);
        if new_key == 0 {
            return Ok(self.unregister(&own, nexus));
        }
        for each in own {
            self.set_key(each, new_key, all_target_ports)?;
        }
        for initiator in initiator_ports.iter().flat_map(|list| list.iter()) {
            self.register_listed(initiator, &targets, new_key, all_target_ports)?;
        }
        Ok(Applied::default())
    }

    /// A port named by SPEC_I_PT. If it is registered already with another key its registration fails, and with it the
    /// whole command: no registration is made (SPC-5 6.16.3).
    fn register_listed(
        &mut self,
        initiator: TransportId,
        targets: &[RelativePort],
        key: u64,
        all_target_ports: bool,
    ) -> Result<(), Refusal> {
        for port in targets {
            let named = Nexus::new(initiator, *port);
            match self.key_of(&named) {
                Some(existing) if existing == key => {}
                Some(_) => return Err(Refusal::Sense(Sense::illegal_field_parameter(28, None))),
                None => self.set_key(named, key, all_target_ports)?,
            }
        }
        Ok(())
    }

    fn unregister(&mut self, gone: &[Nexus], issuer: &Nexus) -> Applied {
        self.registrants.retain(|r| !gone.contains(&r.nexus));
        let Some(reservation) = self.reservation else { return Applied::default() };
        let ends = match reservation.holder() {
            Some(holder) => gone.contains(holder),
            None => self.registrants.is_empty(),
        };
        if !ends {
            return Applied::default();
        }
        self.reservation = None;
        let told = if reservation.kind().admits_registrants() {
            self.tell_registrants_but(issuer, asc::RESERVATIONS_RELEASED)
        } else {
            Vec::new()
        };
        Applied { unit_attentions: told, ..Applied::default() }
    }

    fn reserve(&mut self, nexus: &Nexus, key: u64, kind: ReservationType) -> Result<Applied, Refusal> {
        self.prove(nexus, key)?;
        match &self.reservation {
            None => self.reservation = Some(Reservation::new(kind, *nexus)),
            Some(held) if held.kind() == kind && self.view().holds(nexus) => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(Applied::default())
    }

    fn release(
        &mut self,
        nexus: &Nexus,
        key: u64,
        kind: Option<ReservationType>,
    ) -> Result<Applied, Refusal> {
        self.prove(nexus, key)?;
        let Some(held) = self.reservation.filter(|_| self.view().holds(nexus)) else {
            return Ok(Applied::default());
        };
        if kind != Some(held.kind()) {
            return Err(Refusal::Sense(Sense::illegal(asc::INVALID_RELEASE_OF_PERSISTENT_RESERVATION)));
        }
        self.reservation = None;
        let told = if held.kind().admits_registrants() {
            self.tell_registrants_but(nexus, asc::RESERVATIONS_RELEASED)
        } else {
            Vec::new()
        };
        Ok(Applied { unit_attentions: told, ..Applied::default() })
    }

    fn clear(&mut self, nexus: &Nexus, key: u64) -> Result<Applied, Refusal> {
        self.prove(nexus, key)?;
        let told = self.tell_registrants_but(nexus, asc::RESERVATIONS_PREEMPTED);
        self.registrants.clear();
        self.reservation = None;
        self.generation = self.generation.wrapping_add(1);
        Ok(Applied { unit_attentions: told, ..Applied::default() })
    }

    fn preempt(
        &mut self,
        nexus: &Nexus,
        key: u64,
        victim: u64,
        kind: Option<ReservationType>,
        abort: bool,
    ) -> Result<Applied, Refusal> {
        self.prove(nexus, key)?;
        let takes_over = match &self.reservation {
            None => false,
            Some(held) => match held.holder() {
                Some(holder) => self.key_of(holder) == Some(victim),
                None => victim == 0,
            },
        };
        if takes_over {
            return self.take_over(nexus, victim, kind, abort);
        }
        if victim == 0 {
            return Err(Refusal::Sense(Sense::illegal_field_parameter(8, None)));
        }
        if !self.registrants.iter().any(|r| r.key == victim) {
            return Err(Refusal::Conflict);
        }
        // The issuer's own registration goes too if it has that key (SPC-5 5.14.11.4.4).
        let applied = self.expel(nexus, |r| r.key == victim, abort);
        if self.registrants.is_empty() {
            self.reservation = None;
        }
        Ok(applied)
    }

    /// PREEMPT of the reservation itself: `victim` is its holder's key, or 0 for all registrants.
    fn take_over(
        &mut self,
        nexus: &Nexus,
        victim: u64,
        kind: Option<ReservationType>,
        abort: bool,
    ) -> Result<Applied, Refusal> {
        let kind = kind.ok_or(Refusal::Sense(Sense::illegal_field_cdb(2, Some(7))))?;
        let before = self.reservation.map(|held| held.kind());
        let everyone = before.is_some_and(ReservationType::is_all_registrants);
        let mut applied = self.expel(nexus, |r| r.nexus != *nexus && (everyone || r.key == victim), abort);
        self.reservation = Some(Reservation::new(kind, *nexus));
        if before != Some(kind) {
            applied.unit_attentions.extend(self.tell_registrants_but(nexus, asc::RESERVATIONS_RELEASED));
        }
        Ok(applied)
    }

    /// Removes registrations and tells those who lost them; moves PRGENERATION.
    fn expel(&mut self, issuer: &Nexus, doomed: impl Fn(&Registrant) -> bool, abort: bool) -> Applied {
        let lost: Vec<Nexus> =
            self.registrants.iter().filter(|r| doomed(r) && r.nexus != *issuer).map(|r| r.nexus).collect();
        self.registrants.retain(|r| !doomed(r));
        self.generation = self.generation.wrapping_add(1);
        Applied {
            unit_attentions: lost.iter().map(|n| (*n, asc::REGISTRATIONS_PREEMPTED)).collect(),
            abort_tasks_of: if abort { lost } else { Vec::new() },
            ..Applied::default()
        }
    }

    fn register_and_move(
        &mut self,
        nexus: &Nexus,
        request: &PrOut<'_>,
        ports: &[RelativePort],
    ) -> Result<Applied, Refusal> {
        let PrOut::RegisterAndMove { key, new_key, unregister, aptpl, initiator, port } = *request else {
            return Ok(Applied::default());
        };
        self.prove(nexus, key)?;
        let held = self.reservation.filter(|r| r.holder() == Some(nexus)).ok_or(Refusal::Conflict)?;
        if !ports.contains(&port) {
            return Err(Refusal::Sense(Sense::illegal_field_parameter(18, None)));
        }
        let destination = Nexus::new(initiator, port);
        if destination == *nexus {
            return Err(Refusal::Sense(Sense::illegal_field_parameter(24, None)));
        }
        if unregister {
            self.registrants.retain(|r| r.nexus != *nexus);
        }
        self.set_key(destination, new_key, false)?;
        self.reservation = Some(Reservation::new(held.kind(), destination));
        self.advance(aptpl);
        Ok(Applied::default())
    }

    fn advance(&mut self, aptpl: bool) {
        self.generation = self.generation.wrapping_add(1);
        self.aptpl = aptpl;
    }

    fn key_of(&self, nexus: &Nexus) -> Option<u64> {
        self.registrants.iter().find(|r| r.nexus == *nexus).map(|r| r.key)
    }

    /// Everything but REGISTER is for registrants that know their own key.
    fn prove(&self, nexus: &Nexus, key: u64) -> Result<(), Refusal> {
        if self.key_of(nexus) == Some(key) { Ok(()) } else { Err(Refusal::Conflict) }
    }

    fn set_key(&mut self, nexus: Nexus, key: u64, all_target_ports: bool) -> Result<(), Refusal> {
        if let Some(existing) = self.registrants.iter_mut().find(|r| r.nexus == nexus) {
            existing.key = key;
            existing.all_target_ports = all_target_ports;
            return Ok(());
        }
        if self.registrants.len() >= PR_REGISTRANTS_MAX {
            return Err(Refusal::Sense(Sense::illegal(asc::INSUFFICIENT_REGISTRATION_RESOURCES)));
        }
        self.registrants.push(Registrant { nexus, key, all_target_ports });
        Ok(())
    }

    fn tell_registrants_but(&self, issuer: &Nexus, what: AdditionalSense) -> Vec<(Nexus, AdditionalSense)> {
        self.registrants.iter().filter(|r| r.nexus != *issuer).map(|r| (r.nexus, what)).collect()
    }
}

/// True if any nexus may read or write before and not after.
fn narrows(before: &View<'_>, after: &View<'_>) -> bool {
    let Some(_) = after.reservation else { return false };
    let less = |nexus: Option<&Nexus>| {
        let ((read, write), (still_read, still_write)) = (rights(before, nexus), rights(after, nexus));
        (read && !still_read) || (write && !still_write)
    };
    // Who is registered neither before nor after is a stranger; all strangers have the same rights.
    less(None) || before.registrants.iter().any(|r| less(Some(&r.nexus)))
}

/// May read, may write. `None` stands for any nexus that is not registered.
fn rights(view: &View<'_>, nexus: Option<&Nexus>) -> (bool, bool) {
    let Some(reservation) = view.reservation else { return (true, true) };
    let relation = nexus.map(|n| view.relation_of(n)).unwrap_or_default();
    let full = relation.holder || (relation.registered && reservation.kind().admits_registrants());
    (full || reservation.kind().is_write_exclusive(), full)
}

#[cfg(test)]
mod tests;
