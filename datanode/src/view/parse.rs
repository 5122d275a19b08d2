//! From the controller's records to a [`ClusterView`].
//!
//! Invariants: a field that is missing, out of range or contradicts another record is an error that names the record;
//! nothing is skipped or guessed. A batch (a snapshot, or one commit) is applied whole or not at all.

mod unit_state;
mod volume;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use holdfast_proto::state::{self, change::Change as Record};
use holdfast_scsi::{
    initiator::Initiator,
    lun::Lun,
    nexus::{Nexus, RelativePort},
    sense::AdditionalSense,
    transport_id::TransportId,
};

use self::{unit_state::reservation, volume::volume};
use super::{
    AbortTasks, BootId, ChapView, ClusterId, ClusterView, Epoch, HostView, Incarnation, MappingView,
    NodeNumber, NodeView, PortView, Secret, SharedMap, UnitAttentionEvent, VolumeId, VolumeView,
};

/// Opens a sealed secret for a context ("host/NAME/chap"); the text says why it could not.
pub type OpenSecret<'a> = &'a dyn Fn(&str, &[u8]) -> Result<Vec<u8>, String>;

/// Context under which the secret of a host is sealed.
pub(crate) fn chap_context(host: &str) -> String {
    format!("host/{host}/chap")
}

/// Context under which the secret that the target answers a host with is sealed.
pub(crate) fn chap_target_context(host: &str) -> String {
    format!("host/{host}/chap-target")
}

/// A record of the controller that makes no sense here. The node must not serve by it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{record} '{key}': {problem}")]
pub struct RecordError {
    /// Kind of the record: "volume", "node", ...
    pub record: &'static str,
    /// Which one.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Says what is wrong; the caller adds which record it is.
type Field<T> = Result<T, String>;

impl ClusterView {
    /// A view without records, for a snapshot to fill: `me` and `incarnation` come from the controller's welcome.
    pub fn empty(
        cluster_id: ClusterId,
        target_iqn: &str,
        me: NodeNumber,
        incarnation: Incarnation,
    ) -> ClusterView {
        ClusterView {
            index: 0,
            cluster_id,
            target_iqn: target_iqn.to_ascii_lowercase().into(),
            me,
            my_incarnation: incarnation,
            nodes: Arc::default(),
            pool_rooms: Arc::default(),
            volumes: SharedMap::default(),
            hosts: Arc::default(),
            host_by_initiator: Arc::default(),
            mappings: SharedMap::default(),
        }
    }

    /// The view after `changes`, as of log index `index`.
    ///
    /// # Errors
    /// The first record that does not parse, or that contradicts the others.
    pub fn with_changes(
        &self,
        index: u64,
        changes: &[state::Change],
        open: OpenSecret<'_>,
    ) -> Result<ClusterView, RecordError> {
        let mut next = ClusterView { index, ..self.clone() };
        let records = || changes.iter().map(|c| c.change.as_ref());
        if records().any(|record| record.is_none()) {
            return Err(error("change", "", "of a kind that this version does not know"));
        }
        for record in records().flatten() {
            next.set(record, open)?;
        }
        // Reservations hang on volumes, which may stand behind them in the batch.
        for record in records().flatten() {
            if let Record::Reservation(reservation) = record {
                next.set_reservation(reservation)?;
            }
        }
        next.check_references(records().flatten())?;
        Ok(next)
    }

    fn set(&mut self, record: &Record, open: OpenSecret<'_>) -> Result<(), RecordError> {
        match record {
            Record::Cluster(c) => self.check_cluster(c).map_err(|problem| error("cluster", "", problem))?,
            Record::Node(n) => {
                let node = node(n).map_err(|problem| error("node", &n.name, problem))?;
                let rooms = || n.pools.iter().map(|pool| (&pool.name, pool.free_bytes));
                let told = self.pool_rooms.get(&node.number);
                if told.is_none_or(|told| !rooms().eq(told.iter().map(|(name, free)| (name, *free)))) {
                    let rooms = rooms().map(|(name, free)| (name.clone(), free)).collect();
                    Arc::make_mut(&mut self.pool_rooms).insert(node.number, rooms);
                }
                // Most records of a node tell of its pools only: nothing is to be done for those.
                if self.nodes.get(&node.number).is_none_or(|old| **old != node) {
                    Arc::make_mut(&mut self.nodes).insert(node.number, Arc::new(node));
                }
            }
            Record::Volume(v) => {
                let old = VolumeId::from_slice(&v.id).and_then(|id| self.volumes.get(&id));
                let reservations = old.map(|old| Arc::clone(&old.reservations)).unwrap_or_default();
                let volume = volume(v, reservations).map_err(|problem| error("volume", &v.name, problem))?;
                self.volumes.insert(volume.id, Arc::new(volume));
            }
            // Reservations are taken afterwards; the rest is the controller's own.
            Record::Reservation(_)
            | Record::Request(_)
            | Record::Head(_)
            | Record::Job(_)
            | Record::RemovedJob(_)
            | Record::HostGroup(_)
            | Record::RemovedHostGroup(_) => {}
            Record::Host(h) => {
                let host = Arc::new(host(h, open).map_err(|problem| error("host", &h.name, problem))?);
                self.forget_initiators(&h.name);
                let by_initiator = Arc::make_mut(&mut self.host_by_initiator);
                for initiator in &host.initiators {
                    if let Some(other) = by_initiator.insert(initiator.clone(), Arc::clone(&host)) {
                        return Err(error(
                            "host",
                            &h.name,
                            format!("{initiator} belongs to host '{}' too", other.name),
                        ));
                    }
                }
                Arc::make_mut(&mut self.hosts).insert(host.name.clone(), host);
            }
            Record::Mapping(m) => {
                self.set_mapping(m).map_err(|problem| error("mapping", &m.host, problem))?
            }
            Record::RemovedNode(name) => {
                Arc::make_mut(&mut self.nodes).retain(|_, node| node.name != *name);
                let nodes = &self.nodes;
                Arc::make_mut(&mut self.pool_rooms).retain(|number, _| nodes.contains_key(number));
            }
            Record::RemovedVolume(id) => {
                let id =
                    VolumeId::from_slice(id).ok_or_else(|| error("volume", "", "its id is not 16 bytes"))?;
                self.volumes.remove(&id);
            }
            Record::RemovedHost(name) => {
                self.forget_initiators(name);
                Arc::make_mut(&mut self.hosts).remove(name);
            }
            Record::RemovedMapping(key) => {
                let id = VolumeId::from_slice(&key.volume_id)
                    .ok_or_else(|| error("mapping", &key.host, "its volume's id is not 16 bytes"))?;
                self.remove_mapping(&key.host, id);
            }
        }
        Ok(())
    }

    fn check_cluster(&self, cluster: &state::Cluster) -> Field<()> {
        if ClusterId::from_slice(&cluster.id) != Some(self.cluster_id) {
            return Err("its id is not that of the session".into());
        }
        if !cluster.target_iqn.eq_ignore_ascii_case(&self.target_iqn) {
            return Err("its target name is not that of the session".into());
        }
        Ok(())
    }

    fn forget_initiators(&mut self, host: &str) {
        if self.hosts.contains_key(host) {
            Arc::make_mut(&mut self.host_by_initiator).retain(|owner| owner.name != host);
        }
    }

    fn set_mapping(&mut self, record: &state::Mapping) -> Field<()> {
        let volume = volume_id(&record.volume_id)?;
        let lun = u16::try_from(record.lun)
            .ok()
            .filter(|lun| *lun <= Lun::NUMBER_MAX)
            .ok_or_else(|| format!("LUN {} is above {}", record.lun, Lun::NUMBER_MAX))?;
        self.remove_mapping(&record.host, volume);
        let mut of_host = self.mappings_of(&record.host).to_vec();
        match of_host.binary_search_by_key(&lun, |m| m.lun) {
            Ok(_) => Err(format!("LUN {lun} is given twice")),
            Err(at) => {
                of_host.insert(at, MappingView { lun, volume, read_only: record.read_only });
                self.mappings.insert(record.host.clone(), of_host.into());
                Ok(())
            }
        }
    }

    fn remove_mapping(&mut self, host: &str, volume: VolumeId) {
        let of_host = self.mappings_of(host);
        if of_host.iter().all(|m| m.volume != volume) {
            return;
        }
        let left: Arc<[MappingView]> = of_host.iter().filter(|m| m.volume != volume).copied().collect();
        if left.is_empty() {
            self.mappings.remove(host);
        } else {
            self.mappings.insert(host.to_owned(), left);
        }
    }

    fn set_reservation(&mut self, record: &state::Reservation) -> Result<(), RecordError> {
        let fail = |problem: String| error("reservation", &hex(&record.volume_id), problem);
        let id = volume_id(&record.volume_id).map_err(fail)?;
        let parsed = reservation(record).map_err(fail)?;
        let volume = self.volumes.get(&id).ok_or_else(|| fail("its volume does not exist".into()))?;
        if parsed.version < volume.reservations.version {
            return Err(fail(format!("version {} after {}", parsed.version, volume.reservations.version)));
        }
        let updated = VolumeView { reservations: Arc::new(parsed), ..VolumeView::clone(volume) };
        self.volumes.insert(id, Arc::new(updated));
        Ok(())
    }

    /// The view before held together: only what `records` touch can have torn it.
    fn check_references<'a>(&self, records: impl Iterator<Item = &'a Record>) -> Result<(), RecordError> {
        let (mut nodes, mut removed) = (false, false);
        let mut hosts = BTreeSet::new();
        for record in records {
            match record {
                Record::Node(_) => nodes = true,
                Record::Mapping(mapping) => drop(hosts.insert(mapping.host.as_str())),
                Record::RemovedHost(host) => drop(hosts.insert(host.as_str())),
                Record::RemovedVolume(_) => removed = true,
                _ => {}
            }
        }
        if nodes {
            self.check_ports()?;
        }
        if removed {
            // Rare, and any host may have mapped it.
            return self.mappings.keys().try_for_each(|host| self.check_mappings_of(host));
        }
        hosts.into_iter().try_for_each(|host| self.check_mappings_of(host))
    }

    fn check_ports(&self) -> Result<(), RecordError> {
        let mut ports = BTreeMap::new();
        for node in self.nodes.values() {
            for port in &node.ports {
                if let Some(other) = ports.insert(port.relative_port, &node.name) {
                    let problem = format!("relative port {} is node '{other}''s too", port.relative_port.0);
                    return Err(error("node", &node.name, problem));
                }
            }
        }
        Ok(())
    }

    fn check_mappings_of(&self, host: &str) -> Result<(), RecordError> {
        let mappings = self.mappings_of(host);
        if !mappings.is_empty() && !self.hosts.contains_key(host) {
            return Err(error("mapping", host, "its host does not exist"));
        }
        match mappings.iter().find(|m| !self.volumes.contains_key(&m.volume)) {
            Some(lost) => Err(error("mapping", host, format!("its volume {} does not exist", lost.volume))),
            None => Ok(()),
        }
    }
}

/// The events of one commit.
///
/// # Errors
/// The first event that does not parse.
pub(crate) fn unit_attentions(
    events: &[state::UnitAttentionEvent],
) -> Result<Vec<UnitAttentionEvent>, RecordError> {
    let parse = |e: &state::UnitAttentionEvent| {
        unit_attention(e)
            .map_err(|problem| error("unit attention", &format!("{}.{}", e.index, e.ordinal), problem))
    };
    events.iter().map(parse).collect()
}

/// The aborts of one commit.
///
/// # Errors
/// The first that does not parse.
pub(crate) fn abort_tasks(aborts: &[state::AbortTasks]) -> Result<Vec<AbortTasks>, RecordError> {
    let parse = |a: &state::AbortTasks| -> Field<AbortTasks> {
        let nexuses = a.nexuses.iter().map(nexus).collect::<Field<Vec<_>>>()?;
        Ok(AbortTasks { volume: volume_id(&a.volume_id)?, nexuses })
    };
    aborts.iter().map(|a| parse(a).map_err(|problem| error("abort", &hex(&a.volume_id), problem))).collect()
}

/// The node record of a welcome: our number and incarnation.
///
/// # Errors
/// When it is missing or does not parse.
pub(crate) fn welcome_node(record: Option<&state::Node>) -> Result<NodeView, RecordError> {
    let record = record.ok_or_else(|| error("node", "", "the welcome carries none"))?;
    node(record).map_err(|problem| error("node", &record.name, problem))
}

/// The nexus on the wire.
pub(crate) fn nexus_name(nexus: &Nexus) -> state::NexusName {
    state::NexusName {
        transport_id: nexus.initiator.as_bytes().to_vec(),
        relative_port: u32::from(nexus.port.0),
    }
}

/// The epoch on the wire.
pub(crate) fn epoch_record(epoch: Epoch) -> state::Epoch {
    state::Epoch { generation: epoch.generation, number: epoch.number }
}

fn error(record: &'static str, key: &str, problem: impl Into<String>) -> RecordError {
    RecordError { record, key: key.to_owned(), problem: problem.into() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn volume_id(bytes: &[u8]) -> Field<VolumeId> {
    VolumeId::from_slice(bytes).ok_or_else(|| "the volume's id is not 16 bytes".into())
}

fn node_number(number: u32) -> Field<NodeNumber> {
    NodeNumber::new(number).ok_or_else(|| format!("{number} is no node number"))
}

fn relative_port(number: u32) -> Field<RelativePort> {
    match u16::try_from(number) {
        Ok(number) if number != 0 => Ok(RelativePort(number)),
        _ => Err(format!("{number} is no relative target port")),
    }
}

fn socket_address(text: &str) -> Field<SocketAddr> {
    text.parse().map_err(|_| format!("'{text}' is not ADDRESS:PORT"))
}

fn nexus(record: &state::NexusName) -> Field<Nexus> {
    let port = relative_port(record.relative_port)?;
    Ok(Nexus::new(transport_id(&record.transport_id)?, port))
}

fn transport_id(bytes: &[u8]) -> Field<TransportId> {
    match TransportId::parse(bytes) {
        Ok((id, taken)) if taken == bytes.len() => Ok(id),
        Ok(_) => Err("bytes follow a TransportID".into()),
        Err(why) => Err(format!("TransportID: {why:?}")),
    }
}

fn node(record: &state::Node) -> Field<NodeView> {
    if record.name.is_empty() {
        return Err("it has no name".into());
    }
    let port = |p: &state::Port| -> Field<PortView> {
        Ok(PortView { relative_port: relative_port(p.relative_port)?, portal: socket_address(&p.portal)? })
    };
    Ok(NodeView {
        name: record.name.clone(),
        number: node_number(record.number)?,
        live: record.live,
        cordoned: record.cordoned,
        draining: record.draining,
        incarnation: Incarnation(record.incarnation),
        boot: BootId::from_slice(&record.boot_id).ok_or("its boot id is not 16 bytes")?,
        ports: record.ports.iter().map(port).collect::<Field<_>>()?,
        interconnect: socket_address(&record.interconnect)?,
    })
}

fn host(record: &state::Host, open: OpenSecret<'_>) -> Field<HostView> {
    if record.name.is_empty() {
        return Err("it has no name".into());
    }
    let parse = |name: &String| Initiator::parse(name).map_err(|error| format!("initiator '{name}' {error}"));
    let mut initiators = record.initiators.iter().map(parse).collect::<Field<Vec<_>>>()?;
    initiators.sort_unstable();
    initiators.dedup();
    let chap = record.chap.as_ref().map(|c| chap(&record.name, c, open)).transpose()?;
    Ok(HostView { name: record.name.clone(), initiators, chap })
}

fn chap(host: &str, record: &state::Chap, open: OpenSecret<'_>) -> Field<ChapView> {
    if record.user.is_empty() {
        // Without a name CHAP would let everyone in or nobody; neither was asked for.
        return Err("CHAP without a user".into());
    }
    let target = if record.target_user.is_empty() {
        None
    } else {
        let secret = open(&chap_target_context(host), &record.sealed_target_secret)?;
        Some((record.target_user.clone(), Secret::new(secret)))
    };
    let secret = Secret::new(open(&chap_context(host), &record.sealed_secret)?);
    Ok(ChapView { user: record.user.clone(), secret, target })
}

fn unit_attention(record: &state::UnitAttentionEvent) -> Field<UnitAttentionEvent> {
    let ordinal = u16::try_from(record.ordinal).map_err(|_| "its ordinal is out of range")?;
    if record.index == 0 || record.index >> 48 != 0 {
        return Err("its index is out of range".into());
    }
    let [asc, ascq] =
        u16::try_from(record.additional).map_err(|_| "ASC and ASCQ are out of range")?.to_be_bytes();
    let volume = if record.volume_id.is_empty() { None } else { Some(volume_id(&record.volume_id)?) };
    Ok(UnitAttentionEvent {
        id: (record.index << 16) | u64::from(ordinal),
        volume,
        additional: AdditionalSense::new(asc, ascq),
        only: record.only.as_ref().map(nexus).transpose()?,
        except: record.except.as_ref().map(nexus).transpose()?,
        host: (!record.host.is_empty()).then(|| record.host.clone()),
    })
}
