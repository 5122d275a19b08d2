//! From the controller's records to a [`ClusterView`].
//!
//! Invariants: a field that is missing, out of range or contradicts another record is an error that names the record;
//! nothing is skipped or guessed. A batch (a snapshot, or one commit) is applied whole or not at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use holdfast_proto::state::{self, change::Change as Record};
use holdfast_scsi::{
    geometry::Geometry,
    initiator::Initiator,
    lu_state::{IdentifyingInformation, LuState, Operation, OperationKind, OperationState, UnitState},
    lun::Lun,
    mode::{InformationalExceptions, Interlock, ModeParameters, QueueError, ReportMethod, Thresholds},
    nexus::{Nexus, RelativePort},
    pr::{Registrant, Reservation, ReservationType, state::Reservations},
    sense::AdditionalSense,
    transport_id::TransportId,
};

use super::{
    AbortTasks, BootId, ChapView, ClusterId, ClusterView, Epoch, HostView, Incarnation, MakingView,
    MappingView, Member, NodeNumber, NodeView, Owner, PortView, ReservationView, RestoringView, Secret,
    SharedMap, UnitAttentionEvent, VolumeConfig, VolumeId, VolumeView,
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

fn volume(record: &state::Volume, reservations: Arc<ReservationView>) -> Field<VolumeView> {
    let blocks = record.size_bytes.checked_div(u64::from(record.block_size)).unwrap_or(0);
    let geometry = Geometry::new(record.block_size, blocks)
        .filter(|g| g.bytes() == record.size_bytes)
        .ok_or_else(|| format!("{} bytes in blocks of {}", record.size_bytes, record.block_size))?;
    let physical_block_exponent = u8::try_from(record.physical_block_exponent)
        .ok()
        .filter(|exponent| *exponent <= 8)
        .ok_or_else(|| format!("physical block exponent {}", record.physical_block_exponent))?;
    Ok(VolumeView {
        id: VolumeId::from_slice(&record.id).ok_or("its id is not 16 bytes")?,
        name: record.name.clone(),
        geometry,
        physical_block_exponent,
        write_cache: record.write_cache,
        thin: record.thin,
        checksums: record.checksums,
        config: volume_config(record)?,
        absent: record.absent.iter().map(member).collect::<Field<_>>()?,
        removing: record.removing.iter().map(member).collect::<Field<_>>()?,
        hand_over_to: match record.hand_over_to {
            0 => None,
            number => Some(node_number(number)?),
        },
        owner_by_host: record.owner_by_host,
        deleting: record.deleting,
        is_copy: record.origin.is_some(),
        is_snapshot: record.origin.as_ref().is_some_and(|origin| origin.snapshot),
        making: making(record)?,
        restoring: restoring(record)?,
        restored: match record.restored.as_slice() {
            [] => None,
            id => Some(volume_id(id)?),
        },
        reservations,
    })
}

fn making(record: &state::Volume) -> Field<Option<MakingView>> {
    let Some(making) = &record.making else { return Ok(None) };
    let origin = record.origin.as_ref().ok_or("it is being made of nothing")?;
    steps(making, &origin.volume_id).map(Some)
}

fn restoring(record: &state::Volume) -> Field<Option<RestoringView>> {
    let Some(restoring) = &record.restoring else { return Ok(None) };
    let making = restoring.making.as_ref().ok_or("it is being restored in no way")?;
    Ok(Some(RestoringView {
        id: volume_id(&restoring.id)?,
        snapshot: volume_id(&restoring.snapshot_id)?,
        making: steps(making, &record.id)?,
    }))
}

fn steps(making: &state::Making, source: &[u8]) -> Field<MakingView> {
    Ok(MakingView {
        source: volume_id(source)?,
        source_epoch: Epoch { generation: making.source_generation, number: making.source_epoch },
        phase: making.phase(),
        taken: making.taken.iter().map(|n| node_number(*n)).collect::<Field<_>>()?,
    })
}

fn volume_config(record: &state::Volume) -> Field<VolumeConfig> {
    let epoch = record.epoch.as_ref().ok_or("it has no epoch")?;
    let owner = match record.owner {
        0 => None,
        number => {
            Some(Owner { node: node_number(number)?, incarnation: Incarnation(record.owner_incarnation) })
        }
    };
    let members = |records: &[state::ReplicaMember]| records.iter().map(member).collect::<Field<Vec<_>>>();
    VolumeConfig::from_parts(
        Epoch { generation: epoch.generation, number: epoch.number },
        owner,
        members(&record.in_sync)?,
        members(&record.learners)?,
        u8::try_from(record.min_in_sync).map_err(|_| "min_in_sync is out of range")?,
    )
    .map_err(|why| why.to_string())
}

fn member(record: &state::ReplicaMember) -> Field<Member> {
    Ok(Member {
        node: node_number(record.node)?,
        boot: BootId::from_slice(&record.boot_id).ok_or("a boot id is not 16 bytes")?,
        pool: record.pool.clone(),
    })
}

fn reservation(record: &state::Reservation) -> Field<ReservationView> {
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
