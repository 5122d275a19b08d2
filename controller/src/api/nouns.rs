//! The kinds of resources that can be watched: what a commit means to each, and how each is shown.
//!
//! Invariant: whatever a row shows is named by [`Noun::touched`] of the changes that can alter it, or by [`Noun::is_moving`].

use std::{collections::BTreeMap, sync::Arc};

use holdfast_proto::{
    state::change::Change as Kind,
    v1::{Host, HostGroup, Job, Mapping, Node, Reservation, Volume},
};

use super::{
    Api, group, host,
    job::{self, Filter},
    mapping::mapping_of_host,
    reservation, volume_view,
    watch::{Noun, Touch, VolumeNames},
};

/// Jobs that the filter lets through, by number.
#[derive(Clone)]
pub(super) struct Jobs(pub(super) Arc<Filter>);

impl Noun for Jobs {
    type Row = Job;

    fn touched(&self, change: &Kind, _: VolumeNames<'_>) -> Option<Touch> {
        Some(match change {
            Kind::Job(job) => Touch::One(job.id.to_string()),
            Kind::RemovedJob(id) => Touch::One(id.to_string()),
            _ => Touch::Nothing,
        })
    }

    fn rows(&self, api: &Api) -> BTreeMap<String, Job> {
        api.raft.read(|state| self.0.jobs(state).map(|job| (job.id.to_string(), job::view(job))).collect())
    }

    fn row(&self, api: &Api, name: &str) -> Option<Job> {
        let id = name.parse().ok()?;
        api.raft.read(|state| state.job(id).filter(|job| self.0.wants(job)).map(job::view))
    }
}

/// All hosts.
#[derive(Clone)]
pub(super) struct Hosts;

impl Noun for Hosts {
    type Row = Host;

    fn touched(&self, change: &Kind, _: VolumeNames<'_>) -> Option<Touch> {
        Some(match change {
            Kind::Host(host) => Touch::One(host.name.clone()),
            Kind::RemovedHost(name) => Touch::One(name.clone()),
            Kind::Mapping(mapping) => Touch::One(mapping.host.clone()),
            Kind::RemovedMapping(key) => Touch::One(key.host.clone()),
            Kind::HostGroup(_) | Kind::RemovedHostGroup(_) => Touch::All,
            _ => Touch::Nothing,
        })
    }

    fn rows(&self, api: &Api) -> BTreeMap<String, Host> {
        api.raft.read(|state| state.hosts().map(|h| (h.name.clone(), host::view(state, h))).collect())
    }

    fn row(&self, api: &Api, name: &str) -> Option<Host> {
        api.raft.read(|state| state.host(name).map(|found| host::view(state, found)))
    }
}

/// All host groups.
#[derive(Clone)]
pub(super) struct HostGroups;

impl Noun for HostGroups {
    type Row = HostGroup;

    fn touched(&self, change: &Kind, _: VolumeNames<'_>) -> Option<Touch> {
        Some(match change {
            Kind::HostGroup(group) => Touch::One(group.name.clone()),
            Kind::RemovedHostGroup(name) => Touch::One(name.clone()),
            _ => Touch::Nothing,
        })
    }

    fn rows(&self, api: &Api) -> BTreeMap<String, HostGroup> {
        let view = |state: &_, (name, found): (&str, &_)| (name.to_owned(), group::view(state, name, found));
        api.raft.read(|state| state.host_groups().map(|found| view(state, found)).collect())
    }

    fn row(&self, api: &Api, name: &str) -> Option<HostGroup> {
        api.raft.read(|state| state.host_group(name).map(|found| group::view(state, name, found)))
    }
}

/// What hosts see, by "HOST/VOLUME".
#[derive(Clone)]
pub(super) struct Mappings {
    /// Only of this host; empty = all.
    pub(super) host: String,
    /// Only of this volume; empty = all.
    pub(super) volume: String,
}

impl Mappings {
    fn wants(&self, mapping: &Mapping) -> bool {
        (self.host.is_empty() || self.host == mapping.host)
            && (self.volume.is_empty() || self.volume == mapping.volume)
    }
}

impl Noun for Mappings {
    type Row = Mapping;

    fn touched(&self, change: &Kind, volume: VolumeNames<'_>) -> Option<Touch> {
        let one = |host: &str, id: &[u8]| Some(Touch::One(format!("{host}/{}", volume(id)?)));
        match change {
            Kind::Mapping(mapping) => one(&mapping.host, &mapping.volume_id),
            Kind::RemovedMapping(key) => one(&key.host, &key.volume_id),
            // A group gives its hosts what they had, or takes it over.
            Kind::HostGroup(_) | Kind::RemovedHostGroup(_) => Some(Touch::All),
            _ => Some(Touch::Nothing),
        }
    }

    fn rows(&self, api: &Api) -> BTreeMap<String, Mapping> {
        api.raft.read(|state| {
            let all = state.mappings().map(|(host, lun, mapped)| mapping_of_host(state, host, lun, mapped));
            all.filter(|m| self.wants(m)).map(|m| (format!("{}/{}", m.host, m.volume), m)).collect()
        })
    }

    fn row(&self, api: &Api, name: &str) -> Option<Mapping> {
        let (host, volume) = name.split_once('/')?;
        api.raft.read(|state| {
            let id = state.volume_by_name(volume)?.id;
            let (lun, mapped) = state.mappings_of_host(host).find(|(_, mapped)| mapped.volume == id)?;
            Some(mapping_of_host(state, host, lun, mapped)).filter(|mapping| self.wants(mapping))
        })
    }
}

/// All volumes.
#[derive(Clone)]
pub(super) struct Volumes;

impl Noun for Volumes {
    type Row = Volume;

    fn touched(&self, change: &Kind, volume: VolumeNames<'_>) -> Option<Touch> {
        Some(match change {
            Kind::Volume(volume) => Touch::One(volume.name.clone()),
            Kind::RemovedVolume(id) => Touch::One(volume(id)?),
            Kind::Mapping(mapping) => Touch::One(volume(&mapping.volume_id)?),
            Kind::RemovedMapping(key) => Touch::One(volume(&key.volume_id)?),
            // Which copies answer, and why a volume is offline.
            Kind::Node(_) | Kind::RemovedNode(_) => Touch::All,
            _ => Touch::Nothing,
        })
    }

    fn rows(&self, api: &Api) -> BTreeMap<String, Volume> {
        api.leases.read_reports(|reports| {
            api.raft.read(|state| {
                let row = |volume: &crate::state::Volume| {
                    (volume.name.clone(), volume_view::view(state, reports, &volume.record()))
                };
                state.volumes().map(row).collect()
            })
        })
    }

    fn row(&self, api: &Api, name: &str) -> Option<Volume> {
        api.leases.read_reports(|reports| {
            api.raft.read(|state| {
                let volume = state.volume_by_name(name)?;
                Some(volume_view::view(state, reports, &volume.record()))
            })
        })
    }

    /// Progress comes with no commit.
    fn is_moving(row: &Volume) -> bool {
        let status = row.status.as_ref();
        status.is_some_and(|status| {
            status.state != "online" || status.replicas.iter().any(|r| r.total_bytes > 0)
        })
    }
}

/// All data nodes; what changes all the time is left out of their status.
#[derive(Clone)]
pub(super) struct Nodes;

impl Noun for Nodes {
    type Row = Node;

    fn touched(&self, change: &Kind, _: VolumeNames<'_>) -> Option<Touch> {
        Some(match change {
            Kind::Node(node) => Touch::One(node.name.clone()),
            Kind::RemovedNode(name) => Touch::One(name.clone()),
            // What it owns and holds, and why something stays on it.
            Kind::Volume(_) | Kind::RemovedVolume(_) => Touch::All,
            _ => Touch::Nothing,
        })
    }

    fn rows(&self, api: &Api) -> BTreeMap<String, Node> {
        api.raft.read(|state| state.nodes().map(|n| (n.name.clone(), api.node_view(state, n))).collect())
    }

    fn row(&self, api: &Api, name: &str) -> Option<Node> {
        api.raft.read(|state| state.node_by_name(name).map(|node| api.node_view(state, node)))
    }
}

/// Persistent reservations of volumes that ever had a change of them, by volume.
#[derive(Clone)]
pub(super) struct Reservations {
    /// Only of this volume; empty = all.
    pub(super) volume: String,
}

impl Reservations {
    fn wants(&self, volume: &crate::state::Volume) -> bool {
        volume.reservation_version != 0 && (self.volume.is_empty() || self.volume == volume.name)
    }
}

impl Noun for Reservations {
    type Row = Reservation;

    fn touched(&self, change: &Kind, volume: VolumeNames<'_>) -> Option<Touch> {
        Some(match change {
            Kind::Reservation(reservation) => Touch::One(volume(&reservation.volume_id)?),
            Kind::RemovedVolume(id) => Touch::One(volume(id)?),
            // Whose an initiator is, and on which node a port.
            Kind::Host(_) | Kind::RemovedHost(_) | Kind::Node(_) | Kind::RemovedNode(_) => Touch::All,
            _ => Touch::Nothing,
        })
    }

    fn rows(&self, api: &Api) -> BTreeMap<String, Reservation> {
        api.raft.read(|state| {
            let wanted = state.volumes().filter(|volume| self.wants(volume));
            wanted.map(|volume| (volume.name.clone(), reservation::view(state, volume))).collect()
        })
    }

    fn row(&self, api: &Api, name: &str) -> Option<Reservation> {
        api.raft.read(|state| {
            let volume = state.volume_by_name(name).filter(|volume| self.wants(volume))?;
            Some(reservation::view(state, volume))
        })
    }
}
