//! What is done and timed, step by step, on one cluster that grows.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use holdfast_pki::Role;
use holdfast_proto::v1::{
    ApplyMappingsRequest, CreateHostRequest, CreateMappingRequest, CreateVolumeRequest, DeleteMappingRequest,
    HostSpec, ListHostsRequest, ListVolumesRequest, MappingEdit, VolumeSpec,
    host_service_client::HostServiceClient, mapping_service_client::MappingServiceClient,
    volume_service_client::VolumeServiceClient,
};
use tonic::transport::Channel;

use super::{
    controllers::{Controllers, LIMIT, MEMBERS},
    latency::{Samples, timed},
    node::{Node, ms_since},
    report::{LeaderFailover, OwnerFailover, Restart, Size},
};

/// Callers at a time where many call.
const CALLERS: u32 = 16;
/// Callers at a time that make volumes and hosts.
const MAKERS: usize = 64;
/// Changes of one request that changes many.
const EDITS_MAX: u32 = 1000;
/// A call that a dead leader would have answered is given up after this.
const ATTEMPT: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(1);

/// The cluster, and what is in it.
pub struct Bench {
    /// Its controllers.
    pub controllers: Controllers,
    /// Its data nodes.
    pub nodes: Vec<Node>,
    admin: Channel,
    budget: Duration,
    hosts: u32,
    volumes: u32,
    /// Request ids are used once.
    requests: Arc<AtomicU64>,
}

fn volume(n: u32) -> String {
    format!("volume-{n}")
}

fn host(n: u32) -> String {
    format!("host-{n}")
}

impl Bench {
    /// Three controllers and so many nodes.
    ///
    /// # Errors
    /// They do not come up.
    pub async fn start(program: &Path, folder: &Path, nodes: u8, budget: Duration) -> anyhow::Result<Bench> {
        let controllers = Controllers::start(program, folder).await?;
        let leader = controllers.leader().await?;
        let admin = controllers.admin(leader)?;
        let nodes = (1..=nodes).map(Node::new).collect();
        let requests = Arc::default();
        let mut bench = Bench { controllers, nodes, admin, budget, hosts: 0, volumes: 0, requests };
        bench.join_nodes(leader).await?;
        Ok(bench)
    }

    /// All nodes begin a session with the leader, at once.
    async fn join_nodes(&mut self, leader: usize) -> anyhow::Result<()> {
        let controllers = &self.controllers;
        let joins = self.nodes.iter_mut().map(|node| async move {
            let identity = controllers.identity(Role::Node, &format!("node-{}", node.at))?;
            node.join(controllers.channel(leader, &identity)?).await
        });
        futures::future::try_join_all(joins).await.map(drop)
    }

    fn request_id(&self) -> String {
        format!("bench-{}", self.requests.fetch_add(1, Ordering::Relaxed))
    }

    /// Hosts with one initiator each.
    ///
    /// # Errors
    /// One is refused.
    pub async fn make_hosts(&mut self, hosts: u32) -> anyhow::Result<()> {
        let this = &*self;
        stream::iter(0..hosts)
            .map(|n| async move {
                let initiators = vec![format!("iqn.2026-11.example:{n}")];
                let request = CreateHostRequest {
                    request_id: this.request_id(),
                    name: host(n),
                    spec: Some(HostSpec { initiators, ..HostSpec::default() }),
                    ..CreateHostRequest::default()
                };
                HostServiceClient::new(this.admin.clone()).create_host(request).await
            })
            .buffer_unordered(MAKERS)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        self.hosts = hosts;
        Ok(())
    }

    /// Makes volumes of two copies until there are so many, the owners in turn, and maps each new one to a host. Gives how many were
    /// made in a second.
    ///
    /// # Errors
    /// One is refused.
    pub async fn make_volumes(&mut self, volumes: u32) -> anyhow::Result<f64> {
        let (first, count) = (self.volumes, self.nodes.len() as u32);
        let this = &*self;
        let begun = Instant::now();
        stream::iter(first..volumes)
            .map(|n| async move {
                let spec = VolumeSpec {
                    size_bytes: 1 << 20,
                    replicas: 2,
                    node: format!("node-{}", n % count + 1),
                    ..VolumeSpec::default()
                };
                let request =
                    CreateVolumeRequest { request_id: this.request_id(), name: volume(n), spec: Some(spec) };
                VolumeServiceClient::new(this.admin.clone()).create_volume(request).await
            })
            .buffer_unordered(MAKERS)
            .try_for_each(|_| async { Ok(()) })
            .await?;
        let took = begun.elapsed();
        self.volumes = volumes;
        let edits: Vec<MappingEdit> = (first..volumes)
            .map(|n| MappingEdit { volume: volume(n), host: host(n % self.hosts), ..MappingEdit::default() })
            .collect();
        for edits in edits.chunks(EDITS_MAX as usize) {
            self.apply_mappings(edits.to_vec()).await?;
        }
        for node in &self.nodes {
            let all = |node: &Node| node.volumes() == volumes as usize;
            node.sees("every volume", all).await?;
        }
        Ok(f64::from(volumes - first) / took.as_secs_f64().max(1e-9))
    }

    async fn apply_mappings(&self, edits: Vec<MappingEdit>) -> anyhow::Result<()> {
        let request =
            ApplyMappingsRequest { request_id: self.request_id(), edits, ..ApplyMappingsRequest::default() };
        MappingServiceClient::new(self.admin.clone())
            .max_decoding_message_size(64 << 20)
            .apply_mappings(request)
            .await?;
        Ok(())
    }

    /// PR OUT: one after the other through one node, then one caller for each node that owns a volume.
    ///
    /// # Errors
    /// Anything but GOOD.
    pub async fn reserve(&mut self, size: &mut Size) -> anyhow::Result<()> {
        let budget = self.budget;
        let mut owners: Vec<(&mut Node, String)> = Vec::new();
        for node in &mut self.nodes {
            if let Some(own) = node.owned().into_iter().next() {
                owners.push((node, own));
            }
        }
        let (node, own) = owners.first_mut().context("no node owns a volume")?;
        let before = node.received();
        let (mut samples, begun) = (Samples::default(), Instant::now());
        while begun.elapsed() < budget {
            timed(&mut samples, node.reserve_out(own)).await?;
        }
        let after = node.received();
        let commits = (after.0 - before.0).max(1) as f64;
        size.records_per_commit = (after.1 - before.1) as f64 / commits;
        size.bytes_per_commit = (after.2 - before.2) as f64 / commits;
        size.reserve_out = samples.summary(begun.elapsed());
        let begun = Instant::now();
        let callers = owners.into_iter().map(|(node, own)| async move {
            let mut samples = Samples::default();
            while begun.elapsed() < budget {
                timed(&mut samples, node.reserve_out(&own)).await?;
            }
            anyhow::Ok(samples)
        });
        let all = futures::future::try_join_all(callers).await?;
        size.reserve_out_callers = all.len();
        size.reserve_out_all = Samples::of(all).summary(begun.elapsed());
        Ok(())
    }

    /// A mapping made and removed again, in turn: by one caller, then by several, each with volumes and hosts of its own.
    ///
    /// # Errors
    /// One is refused.
    pub async fn map(&mut self, size: &mut Size) -> anyhow::Result<()> {
        let this = &*self;
        let caller = |own: u32, callers: u32| async move {
            let mut client = MappingServiceClient::new(this.admin.clone());
            let (mut samples, begun, mut n) = (Samples::default(), Instant::now(), own);
            while begun.elapsed() < this.budget {
                // It is mapped to host n already.
                let (volume, host) = (volume(n % this.volumes), host((n % this.volumes + 1) % this.hosts));
                let create = CreateMappingRequest {
                    request_id: this.request_id(),
                    volume: volume.clone(),
                    host: host.clone(),
                    ..CreateMappingRequest::default()
                };
                timed(&mut samples, client.create_mapping(create)).await?;
                let request_id = this.request_id();
                let delete =
                    DeleteMappingRequest { request_id, volume, host, ..DeleteMappingRequest::default() };
                timed(&mut samples, client.delete_mapping(delete)).await?;
                n += callers;
            }
            anyhow::Ok(samples)
        };
        let begun = Instant::now();
        size.map_change = caller(0, 1).await?.summary(begun.elapsed());
        // So many volumes that no two callers ever have the same.
        let callers = (1..=CALLERS).rev().find(|n| this.volumes.is_multiple_of(*n)).unwrap_or(1);
        let begun = Instant::now();
        let all = futures::future::try_join_all((0..callers).map(|own| caller(own, callers))).await?;
        size.map_change_callers = all.len();
        size.map_change_all = Samples::of(all).summary(begun.elapsed());
        Ok(())
    }

    /// Many mappings in one entry: made and removed again.
    ///
    /// # Errors
    /// They are refused.
    pub async fn map_many(&mut self, size: &mut Size) -> anyhow::Result<()> {
        let count = self.volumes.min(EDITS_MAX);
        let edits = |remove: bool| {
            let edit = |n: u32| MappingEdit {
                volume: volume(n),
                host: host((n + 1) % self.hosts),
                remove,
                ..MappingEdit::default()
            };
            (0..count).map(edit).collect::<Vec<_>>()
        };
        let (mut samples, begun) = (Samples::default(), Instant::now());
        while begun.elapsed() < self.budget / 4 {
            timed(&mut samples, self.apply_mappings(edits(false))).await?;
            timed(&mut samples, self.apply_mappings(edits(true))).await?;
        }
        size.map_many = samples.summary(begun.elapsed());
        size.map_many_edits = count;
        Ok(())
    }

    /// The node that owns most volumes stops without a word: until the first and the last of its volumes have another owner, as another
    /// node is told.
    ///
    /// # Errors
    /// They do not get one.
    pub async fn lose_node(&mut self) -> anyhow::Result<OwnerFailover> {
        let at = (1..self.nodes.len()).max_by_key(|at| self.nodes[*at].owned().len()).context("two nodes")?;
        let number = self.nodes[at].number();
        let volumes = self.nodes[0].owned_by(number);
        ensure!(volumes > 0, "no node but the first owns a volume");
        let begun = Instant::now();
        self.nodes[at].die();
        let observer = &self.nodes[0];
        observer.sees("the first new owner", |node| node.owned_by(number) < volumes).await?;
        let first_ms = ms_since(begun);
        observer.sees("every new owner", |node| node.owned_by(number) == 0).await?;
        let last_ms = ms_since(begun);
        let leader = self.controllers.leader().await?;
        let name = format!("node-{}", self.nodes[at].at);
        let identity = self.controllers.identity(Role::Node, &name)?;
        let channel = self.controllers.channel(leader, &identity)?;
        self.nodes[at].join(channel).await?;
        Ok(OwnerFailover { volumes, first_ms, last_ms })
    }

    /// SIGKILL of the leader: until the next commit, and until a PR OUT is GOOD again with every node back.
    ///
    /// # Errors
    /// Nothing commits any more.
    pub async fn lose_leader(&mut self, round: u32) -> anyhow::Result<LeaderFailover> {
        let leader = self.controllers.leader().await?;
        let mut clients = Vec::new();
        for id in (1..=MEMBERS).filter(|id| *id != leader) {
            let mut client = HostServiceClient::new(self.controllers.admin(id)?);
            // Connected before it is needed.
            client.list_hosts(ListHostsRequest { page_size: 1, ..Default::default() }).await?;
            clients.push(client);
        }
        self.controllers.kill(leader);
        let killed = Instant::now();
        let name = format!("failover-{}-{round}", self.volumes);
        let request = CreateHostRequest {
            // The same each time: made once, however often it is asked for.
            request_id: name.clone(),
            name: name.clone(),
            spec: Some(HostSpec {
                initiators: vec![format!("iqn.2026-11.example:{name}")],
                ..HostSpec::default()
            }),
            ..CreateHostRequest::default()
        };
        'committed: loop {
            for client in &mut clients {
                let call = client.create_host(request.clone());
                if let Ok(Ok(_)) = tokio::time::timeout(ATTEMPT, call).await {
                    break 'committed;
                }
            }
            ensure!(killed.elapsed() < LIMIT, "nothing commits after the leader was killed");
            tokio::time::sleep(PAUSE).await;
        }
        let commit_ms = ms_since(killed);
        let new = self.controllers.leader().await?;
        self.admin = self.controllers.admin(new)?;
        self.join_nodes(new).await?;
        let node = self.nodes.iter_mut().find(|node| !node.owned().is_empty()).context("an owner")?;
        let own = node.owned().into_iter().next().context("a volume")?;
        node.reserve_out(&own).await?;
        let reserve_out_ms = ms_since(killed);
        self.controllers.spawn(leader)?;
        self.controllers.caught_up(leader).await?;
        Ok(LeaderFailover { commit_ms, reserve_out_ms })
    }

    /// SIGKILL of all controllers, and their start: until a read is answered that a quorum has confirmed.
    ///
    /// # Errors
    /// They do not come back with what they had.
    pub async fn restart(&mut self) -> anyhow::Result<Restart> {
        for id in 1..=MEMBERS {
            self.controllers.kill(id);
        }
        let begun = Instant::now();
        for id in 1..=MEMBERS {
            self.controllers.spawn(id)?;
        }
        self.controllers.serving().await?;
        let all_ms = ms_since(begun);
        let admin = self.controllers.admin(self.controllers.leader().await?)?;
        let kept = volumes_of(&admin).await?;
        ensure!(
            kept == self.volumes as usize,
            "{kept} volumes after the restart instead of {}",
            self.volumes
        );
        // One that does not lead, alone.
        let leader = self.controllers.leader().await?;
        let other = (1..=MEMBERS).find(|id| *id != leader).context("a member that does not lead")?;
        self.controllers.kill(other);
        let begun = Instant::now();
        self.controllers.spawn(other)?;
        self.controllers.caught_up(other).await?;
        let one_ms = ms_since(begun);
        self.controllers.stop()?;
        Ok(Restart { all_ms, one_ms })
    }
}

async fn volumes_of(admin: &Channel) -> anyhow::Result<usize> {
    let (mut count, mut page_token) = (0, String::new());
    loop {
        let request = ListVolumesRequest { page_size: 1000, page_token };
        let mut client = VolumeServiceClient::new(admin.clone()).max_decoding_message_size(64 << 20);
        let page = client.list_volumes(request).await?.into_inner();
        count += page.volumes.len();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(count);
        }
    }
}
