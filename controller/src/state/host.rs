//! Hosts: named sets of initiators.
//!
//! Invariants: an initiator name belongs to one host, and so does a wildcard; which of them an initiator port that comes belongs
//! to is told by [`InitiatorTable`](holdfast_scsi::initiator::InitiatorTable), here and on data nodes; wildcards exist only
//! while the cluster allows them; a host has at least one initiator.

use std::collections::BTreeSet;

use holdfast_proto::state::{self as records, change};
use holdfast_scsi::initiator::Initiator;

use super::{
    Kind, Outcome, Refusal, StateMachine,
    effects::Effects,
    limits,
    names::{check_name, initiator, printable},
    node::exhausted,
};

impl StateMachine {
    pub(super) fn create_host(
        &mut self,
        command: &records::CreateHost,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        const FIELD: &str = "spec.initiators";
        let asked = command.host.as_ref().ok_or_else(|| Refusal::invalid("spec", "is missing"))?;
        check_name("name", &asked.name)?;
        let initiators = initiators(FIELD, &asked.initiators)?;
        let host = records::Host {
            name: asked.name.clone(),
            initiators: initiators.iter().map(Initiator::to_string).collect(),
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
        check_count(&initiators)?;
        self.check_free(FIELD, &initiators, None)?;
        for initiator in initiators {
            self.initiators.insert(initiator, host.name.clone());
        }
        let message = format!("host {} was created with {}", host.name, host.initiators.join(", "));
        effects.event("host.created", format!("host/{}", host.name), message);
        effects.change(change::Change::Host(host.clone()));
        self.hosts.insert(host.name.clone(), host.clone());
        Ok(Outcome::Host(host))
    }

    fn known_host(&self, name: &str) -> Result<&records::Host, Refusal> {
        self.hosts.get(name).ok_or_else(|| Refusal::not_found(Kind::Host, &printable(name)))
    }

    pub(super) fn update_host(
        &mut self,
        command: &records::UpdateHost,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let host = self.known_host(&command.name)?;
        let added = initiators("add_initiators", &command.add_initiators)?;
        let removed = initiators("remove_initiators", &command.remove_initiators)?;
        let own = |initiator: &Initiator| self.initiators.get(initiator) == Some(&host.name);
        if let Some(strange) = removed.iter().find(|initiator| !own(initiator)) {
            let reason = format!("host {} has no initiator {strange}", host.name);
            return Err(Refusal::invalid("remove_initiators", reason));
        }
        if let Some(both) = added.iter().find(|initiator| removed.contains(initiator)) {
            return Err(Refusal::invalid("add_initiators", format!("{both} is to be removed as well")));
        }
        self.check_free("add_initiators", &added, Some(&host.name))?;
        let mut updated = host.clone();
        let removed_names: BTreeSet<String> = removed.iter().map(Initiator::to_string).collect();
        updated.initiators.retain(|name| !removed_names.contains(name));
        for name in added.iter().map(Initiator::to_string) {
            if !updated.initiators.contains(&name) {
                updated.initiators.push(name);
            }
        }
        check_count(&updated.initiators)?;
        match (&command.chap, command.clear_chap) {
            (Some(_), true) => {
                return Err(Refusal::invalid("clear_chap", "CHAP cannot be set and cleared in one request"));
            }
            (Some(chap), false) => {
                check_chap(chap)?;
                updated.chap = Some(chap.clone());
            }
            (None, true) => updated.chap = None,
            (None, false) => {}
        }
        if updated != *host {
            let chap = if updated.chap == host.chap { "" } else { ", other CHAP" };
            let message =
                format!("host {} was changed: {} initiators{chap}", host.name, updated.initiators.len());
            for initiator in &removed {
                self.initiators.remove(initiator);
            }
            for initiator in added {
                self.initiators.insert(initiator, updated.name.clone());
            }
            effects.event("host.changed", format!("host/{}", updated.name), message);
            effects.change(change::Change::Host(updated.clone()));
            self.hosts.insert(updated.name.clone(), updated.clone());
        }
        Ok(Outcome::Host(updated))
    }

    pub(super) fn delete_host(
        &mut self,
        command: &records::DeleteHost,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        let host = self.known_host(&command.name)?;
        if let Some(group) = self.groups_of(&host.name).next() {
            return Err(Refusal::Precondition(format!(
                "host {} is in host group {group}; remove it from the group first",
                host.name
            )));
        }
        if let Some((lun, mapped)) = self.mappings_of_host(&host.name).next() {
            return Err(Refusal::Precondition(format!(
                "volume {} is mapped to host {} as LUN {lun}; delete the mapping first",
                self.volume_name(mapped.volume),
                host.name
            )));
        }
        let name = host.name.clone();
        self.initiators.retain(|owner| *owner != name);
        effects.event("host.deleted", format!("host/{name}"), format!("host {name} was deleted"));
        effects.change(change::Change::RemovedHost(name));
        self.hosts.remove(&command.name);
        Ok(Outcome::Done)
    }

    pub(super) fn set_wildcard_initiators(
        &mut self,
        command: &records::SetWildcardInitiators,
        effects: &mut Effects,
    ) -> Result<Outcome, Refusal> {
        if !command.allowed {
            let wildcards = |host: &&records::Host| host.initiators.iter().any(|name| name.ends_with('*'));
            let with: Vec<&str> =
                self.hosts.values().filter(wildcards).map(|host| host.name.as_str()).collect();
            if let Some((first, others)) = with.split_first() {
                let more =
                    if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
                return Err(Refusal::Precondition(format!(
                    "host {first}{more} has wildcards; give it names of initiators instead first"
                )));
            }
        }
        let cluster = self.cluster.as_mut().ok_or(Refusal::NotInitialised)?;
        if cluster.wildcard_initiators != command.allowed {
            cluster.wildcard_initiators = command.allowed;
            let what = if command.allowed { "may have wildcards" } else { "may have no wildcards any more" };
            effects.event("host-policy.changed", "cluster".to_owned(), format!("hosts {what}"));
            effects.change(change::Change::Cluster(cluster.clone()));
        }
        Ok(Outcome::Done)
    }

    /// Nobody has them but `own`, and wildcards are allowed.
    fn check_free(
        &self,
        field: &'static str,
        initiators: &[Initiator],
        own: Option<&str>,
    ) -> Result<(), Refusal> {
        let allowed = self.cluster.as_ref().is_some_and(|cluster| cluster.wildcard_initiators);
        for initiator in initiators {
            if initiator.is_wildcard() && !allowed {
                let reason = format!(
                    "'{initiator}' is a wildcard, which lets in initiators that nobody named; this cluster does not allow them ('holdfast host \
                     wildcards allow' changes that)"
                );
                return Err(Refusal::invalid(field, reason));
            }
            if let Some(other) = self.initiators.get(initiator).filter(|other| Some(other.as_str()) != own) {
                return Err(Refusal::Precondition(format!(
                    "initiator {initiator} belongs to host {other}; an initiator belongs to one host only"
                )));
            }
        }
        Ok(())
    }
}

/// The names in their normal form, each once.
fn initiators(field: &'static str, asked: &[String]) -> Result<Vec<Initiator>, Refusal> {
    if asked.len() > limits::INITIATORS_PER_HOST_MAX {
        return Err(exhausted("initiators of a host", limits::INITIATORS_PER_HOST_MAX));
    }
    let mut seen = BTreeSet::new();
    for name in asked {
        let initiator = initiator(field, name)?;
        if let Some(twice) = seen.replace(initiator) {
            return Err(Refusal::invalid(field, format!("'{twice}' is given twice")));
        }
    }
    // As they were given.
    asked.iter().map(|name| initiator(field, name)).collect()
}

fn check_count<T>(initiators: &[T]) -> Result<(), Refusal> {
    match initiators.len() {
        0 => Err(Refusal::invalid("spec.initiators", "at least one initiator is needed")),
        count if count > limits::INITIATORS_PER_HOST_MAX => {
            Err(exhausted("initiators of a host", limits::INITIATORS_PER_HOST_MAX))
        }
        _ => Ok(()),
    }
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
