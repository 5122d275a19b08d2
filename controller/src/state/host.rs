//! Hosts and their LUN maps.
//!
//! Invariants: an initiator name belongs to one host; a LUN stands for one volume per host, and a volume has one LUN per
//! host; every change of a host's map tells that host's nexuses 3F/0E.

use std::collections::BTreeSet;

use holdfast_proto::state::{self as records, change};
use holdfast_replica::ids::VolumeId;
use holdfast_scsi::sense::asc;

use super::{
    Kind, Outcome, Refusal, StateMachine,
    effects::Effects,
    limits,
    names::{check_name, iscsi_name, printable},
    node::exhausted,
};

/// What a LUN of a host stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// The volume.
    pub volume: VolumeId,
    /// Writes through this LUN are refused.
    pub read_only: bool,
}

impl StateMachine {
    pub(super) fn create_host(
        &mut self,
        command: &records::CreateHost,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let asked = command.host.as_ref().ok_or_else(|| Refusal::invalid("spec", "is missing"))?;
        check_name("name", &asked.name)?;
        let host = records::Host {
            name: asked.name.clone(),
            initiators: initiators(&asked.initiators)?,
            chap: asked.chap.clone(),
        };
        if let Some(chap) = &host.chap {
            check_chap(chap)?;
        }
        if self.hosts.contains_key(&host.name) {
            return Err(Refusal::AlreadyExists { kind: Kind::Host, name: host.name });
        }
        if self.hosts.len() >= limits::HOSTS_MAX {
            return Err(exhausted("hosts", limits::HOSTS_MAX));
        }
        for initiator in &host.initiators {
            if let Some(other) = self.initiators.get(initiator) {
                return Err(Refusal::Precondition(format!(
                    "initiator {initiator} belongs to host {other}; an initiator belongs to one host only"
                )));
            }
        }
        for initiator in &host.initiators {
            self.initiators.insert(initiator.clone(), host.name.clone());
        }
        let message = format!("host {} was created with {}", host.name, host.initiators.join(", "));
        effects.event("host.created", format!("host/{}", host.name), message);
        effects.change(change::Change::Host(host.clone()));
        self.hosts.insert(host.name.clone(), host.clone());
        Ok(Outcome::Host(host))
    }

    pub(super) fn delete_host(
        &mut self,
        command: &records::DeleteHost,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let host = self
            .hosts
            .get(&command.name)
            .ok_or_else(|| Refusal::not_found(Kind::Host, &printable(&command.name)))?;
        if let Some((lun, mapped)) = self.mappings_of_host(&host.name).next() {
            return Err(Refusal::Precondition(format!(
                "volume {} is mapped to host {} as LUN {lun}; delete the mapping first",
                self.volume_name(mapped.volume),
                host.name
            )));
        }
        for initiator in &host.initiators {
            self.initiators.remove(initiator);
        }
        effects.event(
            "host.deleted",
            format!("host/{}", host.name),
            format!("host {} was deleted", host.name),
        );
        effects.change(change::Change::RemovedHost(host.name.clone()));
        self.hosts.remove(&command.name);
        Ok(Outcome::Done)
    }

    pub(super) fn create_mapping(
        &mut self,
        command: &records::CreateMapping,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let volume = self.live_volume(&command.volume)?;
        let host = self
            .hosts
            .get(&command.host)
            .ok_or_else(|| Refusal::not_found(Kind::Host, &printable(&command.host)))?;
        if let Some((lun, _)) = self.mappings_of_host(&host.name).find(|(_, m)| m.volume == volume.id) {
            return Err(Refusal::AlreadyExists {
                kind: Kind::Mapping,
                name: format!("of volume {} to host {} (LUN {lun})", volume.name, host.name),
            });
        }
        let map = self.mappings.get(&host.name);
        if map.is_some_and(|m| m.len() >= limits::MAPPINGS_PER_HOST_MAX) {
            return Err(exhausted("mappings of a host", limits::MAPPINGS_PER_HOST_MAX));
        }
        let taken = |lun: u32| map.and_then(|m| m.get(&lun));
        let lun = match command.lun {
            Some(lun) if lun > limits::LUN_MAX => {
                return Err(Refusal::invalid(
                    "lun",
                    format!("{lun} is not between 0 and {}", limits::LUN_MAX),
                ));
            }
            Some(lun) => {
                if let Some(mapped) = taken(lun) {
                    return Err(Refusal::Precondition(format!(
                        "LUN {lun} of host {} is volume {}; choose another or none",
                        host.name,
                        self.volume_name(mapped.volume)
                    )));
                }
                lun
            }
            None => (0..=limits::LUN_MAX)
                .find(|lun| taken(*lun).is_none())
                .ok_or_else(|| exhausted("LUNs of a host", limits::LUN_MAX as usize))?,
        };
        let record = records::Mapping {
            host: host.name.clone(),
            volume_id: volume.id.0.to_vec(),
            lun,
            read_only: command.read_only,
        };
        let mapped = Mapped { volume: volume.id, read_only: command.read_only };
        let message = format!("volume {} was mapped to host {} as LUN {lun}", volume.name, host.name);
        effects.event("mapping.created", format!("mapping/{}/{}", volume.name, host.name), message);
        effects.change(change::Change::Mapping(record.clone()));
        effects.unit_attention_for_host(&host.name, asc::REPORTED_LUNS_DATA_CHANGED);
        self.mappings.entry(record.host.clone()).or_default().insert(lun, mapped);
        Ok(Outcome::Mapping(record))
    }

    pub(super) fn delete_mapping(
        &mut self,
        command: &records::DeleteMapping,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let volume = self
            .volume_by_name(&command.volume)
            .ok_or_else(|| Refusal::not_found(Kind::Volume, &printable(&command.volume)))?;
        let host = self
            .hosts
            .get(&command.host)
            .ok_or_else(|| Refusal::not_found(Kind::Host, &printable(&command.host)))?;
        let Some((lun, _)) = self.mappings_of_host(&host.name).find(|(_, m)| m.volume == volume.id) else {
            return Err(Refusal::NotFound {
                kind: Kind::Mapping,
                name: format!("of volume {} to host {}", volume.name, host.name),
            });
        };
        let message =
            format!("volume {} is no longer mapped to host {} (was LUN {lun})", volume.name, host.name);
        effects.event("mapping.deleted", format!("mapping/{}/{}", volume.name, host.name), message);
        effects.change(change::Change::RemovedMapping(records::MappingKey {
            host: host.name.clone(),
            volume_id: volume.id.0.to_vec(),
        }));
        effects.unit_attention_for_host(&host.name, asc::REPORTED_LUNS_DATA_CHANGED);
        if let Some(map) = self.mappings.get_mut(&command.host) {
            map.remove(&lun);
            if map.is_empty() {
                self.mappings.remove(&command.host);
            }
        }
        Ok(Outcome::Done)
    }
}

/// The names in their normal form; each once, at least one.
fn initiators(asked: &[String]) -> Result<Vec<String>, Refusal> {
    const FIELD: &str = "spec.initiators";
    if asked.is_empty() {
        return Err(Refusal::invalid(FIELD, "at least one iSCSI name is needed"));
    }
    if asked.len() > limits::INITIATORS_PER_HOST_MAX {
        return Err(exhausted("initiators of a host", limits::INITIATORS_PER_HOST_MAX));
    }
    let mut seen = BTreeSet::new();
    let mut names = Vec::with_capacity(asked.len());
    for name in asked {
        let name = iscsi_name(FIELD, name)?;
        if !seen.insert(name.clone()) {
            return Err(Refusal::invalid(FIELD, format!("'{name}' is given twice")));
        }
        names.push(name);
    }
    Ok(names)
}

fn check_chap(chap: &records::Chap) -> Result<(), Refusal> {
    check_chap_user("spec.chap_user", &chap.user)?;
    let sealed = |field, secret: &[u8]| {
        if secret.is_empty() || secret.len() > limits::SEALED_SECRET_BYTES_MAX {
            return Err(Refusal::invalid(field, "is not a sealed secret"));
        }
        Ok(())
    };
    sealed("chap_secret", &chap.sealed_secret)?;
    if chap.target_user.is_empty() != chap.sealed_target_secret.is_empty() {
        let reason = "mutual CHAP needs a name and a secret of the target, or neither";
        return Err(Refusal::invalid("spec.chap_target_user", reason));
    }
    if !chap.target_user.is_empty() {
        check_chap_user("spec.chap_target_user", &chap.target_user)?;
        sealed("chap_target_secret", &chap.sealed_target_secret)?;
    }
    Ok(())
}

/// A CHAP name: 1..255 printable ASCII characters without spaces.
pub fn check_chap_user(field: &'static str, user: &str) -> Result<(), Refusal> {
    let good =
        (1..=limits::CHAP_USER_BYTES_MAX).contains(&user.len()) && user.bytes().all(|b| b.is_ascii_graphic());
    if good {
        Ok(())
    } else {
        Err(Refusal::invalid(
            field,
            format!("'{}' is not 1..255 printable ASCII characters without spaces", printable(user)),
        ))
    }
}
