//! One I_T nexus at its target port: the host's LUN map and the Unit Attentions pending for each logical unit.
//!
//! The port answers REPORT LUNS and everything addressed to a LUN that is not mapped; all else goes to the unit's owner,
//! together with the head of the queue. Invariants: a Unit Attention leaves its queue only when the owner says that it
//! was reported ([`NexusPort::reported`]), by REPORT LUNS (`3F/0E`), or with its LUN; a host sees no unit that is not
//! mapped to it, but it can always enumerate.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use crate::{
    cdb::{self, Command, SelectReport},
    checks,
    device_server::Completion,
    geometry::Geometry,
    inquiry,
    lun::Lun,
    nexus::Nexus,
    report_luns,
    sense::{AdditionalSense, Sense, SenseKey, asc},
    ua::{UaQueue, UnitAttention},
};

/// Where a LUN leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedUnit<V> {
    /// The volume, as the shell names it.
    pub volume: V,
    /// The host may not write.
    pub read_only: bool,
}

/// A host's LUN map.
pub type LunMap<V> = BTreeMap<u16, MappedUnit<V>>;

/// What to do with a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route<V> {
    /// Send this answer; nobody else need know of it.
    Answer(Completion),
    /// Hand it to the owner of the volume.
    Forward {
        /// The volume.
        volume: V,
        /// The host may not write.
        read_only: bool,
        /// The Unit Attention to report, if the order of checks gets to it.
        unit_attention: Option<UnitAttention>,
    },
}

#[derive(Clone, Debug)]
struct Unit<V> {
    mapped: MappedUnit<V>,
    unit_attentions: UaQueue,
}

/// An I_T nexus.
#[derive(Clone, Debug)]
pub struct NexusPort<V> {
    nexus: Nexus,
    units: BTreeMap<u16, Unit<V>>,
    last_id: u64,
}

/// REPORT LUNS, INQUIRY and REQUEST SENSE decode alike for any unit.
const ANY_GEOMETRY: Option<Geometry> = Geometry::new(512, 1);

impl<V: Clone + Eq> NexusPort<V> {
    /// A nexus that has just come into being, with its map. Every unit reports `29/00` first: whatever the initiator
    /// believed about it may be out of date.
    ///
    /// Its Unit Attentions have numbers above `ids_after`, which must differ from session to session of the nexus: an owner that has
    /// not heard of the end of one must not take the `29/00` of the next for what it has reported already.
    pub fn new(nexus: Nexus, map: LunMap<V>, ids_after: u64) -> NexusPort<V> {
        let mut port = NexusPort { nexus, units: BTreeMap::new(), last_id: ids_after };
        for (lun, mapped) in map {
            port.add(lun, mapped);
        }
        port
    }

    /// Which nexus.
    pub fn nexus(&self) -> &Nexus {
        &self.nexus
    }

    /// The map.
    pub fn map(&self) -> impl Iterator<Item = (u16, &MappedUnit<V>)> {
        self.units.iter().map(|(lun, unit)| (*lun, &unit.mapped))
    }

    /// What a LUN leads to.
    pub fn mapped(&self, lun: &Lun) -> Option<&MappedUnit<V>> {
        self.units.get(&lun.number()?).map(|unit| &unit.mapped)
    }

    /// Unit Attentions pending for a LUN, next first.
    pub fn pending(&self, lun: u16) -> Vec<UnitAttention> {
        self.units.get(&lun).map(|unit| unit.unit_attentions.iter().collect()).unwrap_or_default()
    }

    /// QUERY ASYNCHRONOUS EVENT (SAM-5 7.9): the additional response information if a Unit Attention is pending for the LUN
    /// (FUNCTION SUCCEEDED), `None` if none is (FUNCTION COMPLETE). It stays pending.
    pub fn query_asynchronous_event(&self, lun: &Lun) -> Option<[u8; 3]> {
        let queue = &self.units.get(&lun.number()?)?.unit_attentions;
        let AdditionalSense { asc, ascq } = queue.head()?.additional;
        // UADE DEPTH: one condition, or more.
        let depth = if queue.len() == 1 { 0b01 } else { 0b10 };
        Some([depth << 4 | SenseKey::UnitAttention as u8, asc, ascq])
    }

    /// Decides who answers a command.
    pub fn classify(&mut self, lun: &Lun, cdb: &[u8]) -> Route<V> {
        if cdb.first() == Some(&REPORT_LUNS) {
            return Route::Answer(self.report_luns(cdb));
        }
        match lun.number().and_then(|number| self.units.get(&number)) {
            Some(unit) => Route::Forward {
                volume: unit.mapped.volume.clone(),
                read_only: unit.mapped.read_only,
                unit_attention: unit.unit_attentions.head(),
            },
            None => Route::Answer(absent(cdb)),
        }
    }

    /// The owner reported the Unit Attention with this id for this LUN.
    pub fn reported(&mut self, lun: &Lun, id: u64) {
        if let Some(unit) = lun.number().and_then(|number| self.units.get_mut(&number)) {
            unit.unit_attentions.dequeue(id);
        }
    }

    /// A command that carried the Unit Attention with this id ended without the owner's word for the host. The owner may count it
    /// as reported, and would never report that number again: it gets a new one. A host may so be told twice, never not at all.
    pub fn not_told(&mut self, lun: &Lun, id: u64) {
        let new_id = self.next_id();
        if let Some(unit) = lun.number().and_then(|number| self.units.get_mut(&number)) {
            unit.unit_attentions.renumber(id, new_id);
        }
    }

    /// Queues a Unit Attention on every LUN that leads to this volume.
    pub fn raise(&mut self, volume: &V, additional: AdditionalSense) {
        let id = self.next_id();
        for unit in self.units.values_mut().filter(|unit| unit.mapped.volume == *volume) {
            unit.unit_attentions.raise(id, additional);
        }
    }

    /// Queues a Unit Attention on every LUN.
    pub fn raise_everywhere(&mut self, additional: AdditionalSense) {
        let id = self.next_id();
        for unit in self.units.values_mut() {
            unit.unit_attentions.raise(id, additional);
        }
    }

    /// Replaces the map. LUNs that lead where they led keep their queues. A unit that came or went raises `3F/0E` on
    /// every LUN, another write protection `2A/01` on its own.
    pub fn install_map(&mut self, map: LunMap<V>) {
        let before = self.units.len();
        self.units.retain(|lun, unit| map.get(lun).is_some_and(|new| new.volume == unit.mapped.volume));
        let mut changed = self.units.len() != before;
        for (lun, mapped) in map {
            let id = self.next_id();
            match self.units.get_mut(&lun) {
                Some(unit) => {
                    if unit.mapped.read_only != mapped.read_only {
                        unit.unit_attentions.raise(id, asc::MODE_PARAMETERS_CHANGED);
                    }
                    unit.mapped = mapped;
                }
                None => {
                    self.add(lun, mapped);
                    changed = true;
                }
            }
        }
        if changed {
            self.raise_everywhere(asc::REPORTED_LUNS_DATA_CHANGED);
        }
    }

    fn add(&mut self, lun: u16, mapped: MappedUnit<V>) {
        let mut unit_attentions = UaQueue::new();
        unit_attentions.raise(self.next_id(), asc::POWER_ON_OR_RESET);
        self.units.insert(lun, Unit { mapped, unit_attentions });
    }

    fn report_luns(&mut self, cdb: &[u8]) -> Completion {
        let (select, allocation_length) = match parse(cdb) {
            Ok(Command::ReportLuns { select, allocation_length }) => (select, allocation_length),
            Ok(_) => return Completion::check(Sense::illegal(asc::INVALID_COMMAND_OPERATION_CODE)),
            Err(sense) => return Completion::check(sense),
        };
        let luns = self.units.keys().filter_map(|number| Lun::from_number(*number));
        let mut data = vec![0; 8 + 8 * self.units.len()];
        let reply = report_luns::report_luns(select, luns, allocation_length, &mut data);
        data.truncate(reply.written);
        if select != SelectReport::WellKnown {
            // The list tells of every change so far, on whichever LUN it was asked for.
            for unit in self.units.values_mut() {
                unit.unit_attentions.clear_reported_luns_changed();
            }
        }
        Completion::bytes(data)
    }

    fn next_id(&mut self) -> u64 {
        self.last_id = self.last_id.saturating_add(1);
        self.last_id
    }
}

const REPORT_LUNS: u8 = 0xa0;

fn parse(cdb: &[u8]) -> Result<Command, Sense> {
    let geometry = ANY_GEOMETRY.ok_or(Sense::illegal(asc::INTERNAL_TARGET_FAILURE))?;
    cdb::parse(cdb, &geometry)
}

/// The answers of a LUN that leads nowhere (SPC-5 6.7.2, 6.39; SAM-5 4.7.2).
fn absent(cdb: &[u8]) -> Completion {
    const NOT_SUPPORTED: Sense = Sense::illegal(asc::LOGICAL_UNIT_NOT_SUPPORTED);
    let mut data = vec![0; 256];
    let written = match parse(cdb) {
        Ok(Command::Inquiry { vpd_page, allocation_length }) => {
            match inquiry::absent(vpd_page, allocation_length, &mut data) {
                Ok(reply) => reply.written,
                Err(sense) => return Completion::check(sense),
            }
        }
        Ok(Command::RequestSense { descriptor, allocation_length }) => {
            checks::sense_as_data(&NOT_SUPPORTED, descriptor, allocation_length, &mut data).written
        }
        _ => return Completion::check(NOT_SUPPORTED),
    };
    data.truncate(written);
    Completion::bytes(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device_server::DataIn, nexus::RelativePort, status::Status, transport_id::TransportId};

    fn map(entries: &[(u16, char, bool)]) -> LunMap<char> {
        entries
            .iter()
            .map(|(lun, volume, read_only)| (*lun, MappedUnit { volume: *volume, read_only: *read_only }))
            .collect()
    }

    fn port(entries: &[(u16, char, bool)]) -> NexusPort<char> {
        NexusPort::new(Nexus::new(TransportId::sas([1; 8]), RelativePort(1)), map(entries), 0)
    }

    fn lun(number: u16) -> Lun {
        Lun::from_number(number).unwrap()
    }

    fn codes(port: &NexusPort<char>, lun: u16) -> Vec<AdditionalSense> {
        port.pending(lun).iter().map(|ua| ua.additional).collect()
    }

    fn data(route: Route<char>) -> Vec<u8> {
        match route {
            Route::Answer(Completion { status: Status::Good, data_in: DataIn::Bytes(bytes), .. }) => bytes,
            other => panic!("{other:?}"),
        }
    }

    const TUR: [u8; 6] = [0; 6];
    const REPORT: [u8; 12] = [0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];

    /// Reports and drops everything pending.
    fn quiet(port: &mut NexusPort<char>, number: u16) {
        for ua in port.pending(number) {
            port.reported(&lun(number), ua.id);
        }
    }

    #[test]
    fn asynchronous_event_is_told_and_stays() {
        let mut port = port(&[(0, 'a', false)]);
        assert_eq!(port.query_asynchronous_event(&lun(0)), Some([0x16, 0x29, 0]));
        port.raise(&'a', asc::CAPACITY_DATA_CHANGED);
        assert_eq!(port.query_asynchronous_event(&lun(0)), Some([0x26, 0x29, 0]));
        quiet(&mut port, 0);
        assert_eq!(port.query_asynchronous_event(&lun(0)), None);
        assert_eq!(port.query_asynchronous_event(&lun(7)), None);
    }

    #[test]
    fn mapped_luns_are_forwarded_with_the_head_of_their_queue() {
        let mut port = port(&[(0, 'a', false), (5, 'b', true)]);
        let Route::Forward { volume, read_only, unit_attention: Some(head) } = port.classify(&lun(5), &TUR)
        else {
            panic!("answered")
        };
        assert_eq!((volume, read_only, head.additional), ('b', true, asc::POWER_ON_OR_RESET));
        port.reported(&lun(5), head.id);
        assert!(codes(&port, 5).is_empty());
        assert_eq!(codes(&port, 0), [asc::POWER_ON_OR_RESET]);
    }

    #[test]
    fn what_the_host_may_not_have_been_told_gets_a_new_number() {
        let mut port = port(&[(0, 'a', false)]);
        let head = port.pending(0)[0];
        port.not_told(&lun(0), head.id);
        let [again] = port.pending(0)[..] else { panic!("lost or doubled") };
        assert!(again.id > head.id && again.additional == head.additional);
        // The report of the number before, which comes late, is of no account.
        port.reported(&lun(0), head.id);
        assert_eq!(port.pending(0), [again]);
        port.not_told(&lun(0), head.id);
        assert_eq!(port.pending(0), [again]);
    }

    #[test]
    fn absent_lun_0_still_enumerates() {
        let mut port = port(&[(7, 'a', false)]);
        assert_eq!(data(port.classify(&lun(0), &REPORT))[8..], lun(7).to_bytes());
        let inquiry = data(port.classify(&lun(0), &[0x12, 0, 0, 0, 36, 0]));
        assert_eq!((inquiry[0], inquiry.len()), (0x7f, 36));
        let sense = Sense::parse(&data(port.classify(&lun(0), &[3, 0, 0, 0, 252, 0]))).unwrap();
        assert_eq!(
            (sense.key, sense.additional),
            (SenseKey::IllegalRequest, asc::LOGICAL_UNIT_NOT_SUPPORTED)
        );
        let refused = Completion::check(Sense::illegal(asc::LOGICAL_UNIT_NOT_SUPPORTED));
        assert_eq!(port.classify(&lun(0), &TUR), Route::Answer(refused.clone()));
        assert_eq!(port.classify(&Lun::from_bytes([1, 7, 0, 0, 0, 0, 0, 0]), &TUR), Route::Answer(refused));
    }

    #[test]
    fn map_changes_raise_3f_0e_everywhere_until_report_luns() {
        let mut port = port(&[(0, 'a', false), (1, 'b', false)]);
        quiet(&mut port, 0);
        quiet(&mut port, 1);
        port.install_map(map(&[(0, 'a', false), (1, 'b', false)]));
        assert!(codes(&port, 0).is_empty(), "nothing changed");
        port.install_map(map(&[(0, 'a', false), (2, 'c', false)]));
        assert_eq!(codes(&port, 0), [asc::REPORTED_LUNS_DATA_CHANGED]);
        assert_eq!(codes(&port, 2), [asc::POWER_ON_OR_RESET, asc::REPORTED_LUNS_DATA_CHANGED]);
        port.classify(&lun(0), &[0xa0, 0, 9, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(
            codes(&port, 0),
            [asc::REPORTED_LUNS_DATA_CHANGED],
            "a refused REPORT LUNS clears nothing"
        );
        port.classify(&lun(2), &REPORT);
        assert!(codes(&port, 0).is_empty());
        assert_eq!(codes(&port, 2), [asc::POWER_ON_OR_RESET]);
    }

    #[test]
    fn lun_that_leads_elsewhere_forgets_its_queue() {
        let mut port = port(&[(0, 'a', false)]);
        port.raise(&'a', asc::CAPACITY_DATA_CHANGED);
        port.install_map(map(&[(0, 'b', false)]));
        assert_eq!(codes(&port, 0), [asc::POWER_ON_OR_RESET, asc::REPORTED_LUNS_DATA_CHANGED]);
    }

    #[test]
    fn other_write_protection_raises_2a_01() {
        let mut port = port(&[(0, 'a', false)]);
        quiet(&mut port, 0);
        port.install_map(map(&[(0, 'a', true)]));
        assert_eq!(codes(&port, 0), [asc::MODE_PARAMETERS_CHANGED]);
        assert_eq!(port.mapped(&lun(0)), Some(&MappedUnit { volume: 'a', read_only: true }));
    }

    #[test]
    fn raising_reaches_every_lun_of_the_volume_only() {
        let mut port = port(&[(0, 'a', false), (1, 'b', false)]);
        quiet(&mut port, 0);
        quiet(&mut port, 1);
        port.raise(&'b', asc::RESERVATIONS_RELEASED);
        assert_eq!((codes(&port, 0), codes(&port, 1)), (Vec::new(), Vec::from([asc::RESERVATIONS_RELEASED])));
    }
}
