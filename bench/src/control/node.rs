//! A data node as the controllers see it: a session that renews its lease, installs every commit at once, and proposes.
//!
//! Invariant: it reports an index as installed only after it has taken the commit, so that a barrier waits for each of them as it
//! would for a real node.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use holdfast_proto::{
    node::{
        Applied, FromNode, Hello, ProposeReservationRequest, Renew, ToNode, from_node,
        node_agent_client::NodeAgentClient, to_node,
    },
    state::{Change, Commit, Epoch, NexusName, Pool, change},
};
use holdfast_scsi::transport_id::TransportId;
use parking_lot::Mutex;
use tokio::{sync::mpsc, sync::watch, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::controllers::LIMIT;

/// PERSISTENT RESERVE OUT, REGISTER AND IGNORE EXISTING KEY, parameter list of 24 bytes.
const CDB: [u8; 10] = [0x5f, 0x06, 0, 0, 0, 0, 0, 0, 24, 0];

/// Space of a simulated pool: room for every volume.
const POOL_BYTES: u64 = 1 << 50;
/// Largest message of the controller.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A volume as the node was told of it.
#[derive(Debug, Clone)]
struct Seen {
    name: String,
    owner: u32,
    epoch: Option<Epoch>,
}

/// What the node was told.
#[derive(Default)]
struct Picture {
    number: u32,
    relative_port: u32,
    volumes: HashMap<Vec<u8>, Seen>,
    /// Volumes that this node owns, by name.
    owned: BTreeMap<String, Vec<u8>>,
    versions: HashMap<Vec<u8>, u64>,
    applied: u64,
    commits: u64,
    records: u64,
    bytes: u64,
}

/// The node.
pub struct Node {
    /// Of its name: "node-1" and up.
    pub at: u8,
    picture: Arc<Mutex<Picture>>,
    /// Moves with every commit.
    changed: watch::Sender<u64>,
    session: Option<(NodeAgentClient<Channel>, JoinHandle<anyhow::Result<()>>)>,
    proposals: u64,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.die();
    }
}

impl Node {
    /// "node-`at`", which has not joined yet.
    pub fn new(at: u8) -> Node {
        Node { at, picture: Arc::default(), changed: watch::Sender::new(0), session: None, proposals: 0 }
    }

    /// Joins, or goes on where its last session ended, over a connection to the leader, and waits for a lease.
    ///
    /// # Errors
    /// The controller refuses.
    pub async fn join(&mut self, channel: Channel) -> anyhow::Result<()> {
        self.die();
        let at = self.at;
        let mut agent = NodeAgentClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (up, stream) = mpsc::channel(1024);
        let hello = Hello {
            name: format!("node-{at}"),
            boot_id: vec![at; 16],
            process_id: vec![at; 16],
            portals: vec![format!("127.0.1.{at}:3260")],
            interconnect: format!("127.0.1.{at}:3270"),
            pools: vec![Pool {
                name: "default".to_owned(),
                capacity_bytes: POOL_BYTES,
                free_bytes: POOL_BYTES,
                kind: 0,
            }],
            version: "bench".to_owned(),
            applied_index: self.picture.lock().applied,
            replicates: true,
        };
        up.send(FromNode { message: Some(from_node::Message::Hello(hello)) }).await?;
        let mut down = agent.session(ReceiverStream::new(stream)).await?.into_inner();
        let Some(to_node::Message::Welcome(welcome)) = next(&mut down).await? else { bail!("no welcome") };
        let own = welcome.node.context("a welcome without a node")?;
        {
            let mut picture = self.picture.lock();
            picture.number = own.number;
            picture.relative_port = own.ports.first().map_or(1, |port| port.relative_port);
        }
        let (grants, mut granted) = watch::channel(0);
        let session = Session {
            up,
            down,
            picture: Arc::clone(&self.picture),
            changed: self.changed.clone(),
            grants,
            every: Duration::from_millis(u64::from(welcome.renew_interval_ms)),
        };
        self.session = Some((agent, tokio::spawn(session.run())));
        let lease = granted.wait_for(|granted| *granted > 0);
        tokio::time::timeout(LIMIT, lease)
            .await
            .context("no lease in time")?
            .context("the session ended before a lease came")?;
        Ok(())
    }

    /// Ends without a word, as kill -9 does.
    pub fn die(&mut self) {
        if let Some((_, task)) = self.session.take() {
            task.abort();
        }
    }

    /// Number that the cluster gave it.
    pub fn number(&self) -> u32 {
        self.picture.lock().number
    }

    /// Names of the volumes that it owns, as far as it was told.
    pub fn owned(&self) -> Vec<String> {
        self.picture.lock().owned.keys().cloned().collect()
    }

    /// Commits, records and bytes that it was sent so far.
    pub fn received(&self) -> (u64, u64, u64) {
        let picture = self.picture.lock();
        (picture.commits, picture.records, picture.bytes)
    }

    /// Waits until it was told so.
    ///
    /// # Errors
    /// It is not, in time.
    pub async fn sees(&self, what: &str, is: impl Fn(&Self) -> bool) -> anyhow::Result<()> {
        let mut changed = self.changed.subscribe();
        let seen = async {
            while !is(self) {
                changed.changed().await?;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(LIMIT, seen)
            .await
            .with_context(|| format!("node-{} does not see {what}", self.at))?
    }

    /// Volumes that there are, as far as it was told.
    pub fn volumes(&self) -> usize {
        self.picture.lock().volumes.len()
    }

    /// Volumes that node `number` owns, as far as this one was told.
    pub fn owned_by(&self, number: u32) -> usize {
        self.picture.lock().volumes.values().filter(|volume| volume.owner == number).count()
    }

    /// One PERSISTENT RESERVE OUT that changes the registration of a nexus of this node: committed by a quorum, installed by every
    /// node that holds a lease.
    ///
    /// # Errors
    /// Anything but GOOD.
    pub async fn reserve_out(&mut self, volume: &str) -> anyhow::Result<()> {
        let (agent, _) = self.session.as_mut().context("it has no session")?;
        self.proposals += 1;
        let nexus = TransportId::iscsi("iqn.2026-11.example:bench", [self.at; 6])
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let mut parameter_list = vec![0; 24];
        parameter_list[8..16].copy_from_slice(&self.proposals.to_be_bytes());
        let mut proposal_id = vec![self.at; 16];
        proposal_id[8..].copy_from_slice(&self.proposals.to_be_bytes());
        let (id, request) = {
            let picture = self.picture.lock();
            let id = picture.owned.get(volume).context("not the owner")?.clone();
            let epoch = picture.volumes.get(&id).and_then(|seen| seen.epoch);
            let request = ProposeReservationRequest {
                proposal_id,
                volume_id: id.clone(),
                epoch,
                expected_version: picture.versions.get(&id).copied().unwrap_or(0),
                nexus: Some(NexusName {
                    transport_id: nexus.as_bytes().to_vec(),
                    relative_port: picture.relative_port,
                }),
                cdb: CDB.to_vec(),
                parameter_list,
                ..ProposeReservationRequest::default()
            };
            (id, request)
        };
        let expected = request.expected_version;
        let answer = agent.propose_reservation(request).await?.into_inner();
        let outcome = answer.outcome.context("no outcome")?;
        if outcome.status != 0 || outcome.version <= expected {
            bail!("PR OUT was answered {outcome:?}");
        }
        // The barrier has waited for this node too, unless its lease had run out.
        let installed = |node: &Self| node.picture.lock().versions.get(&id).copied() >= Some(outcome.version);
        if !installed(self) {
            self.sees("its own change", installed).await?;
        }
        Ok(())
    }

    /// Whether its session still goes on.
    pub fn is_connected(&self) -> bool {
        self.session.as_ref().is_some_and(|(_, task)| !task.is_finished())
    }
}

async fn next(down: &mut Streaming<ToNode>) -> anyhow::Result<Option<to_node::Message>> {
    Ok(down.message().await?.and_then(|message| message.message))
}

struct Session {
    up: mpsc::Sender<FromNode>,
    down: Streaming<ToNode>,
    picture: Arc<Mutex<Picture>>,
    changed: watch::Sender<u64>,
    grants: watch::Sender<u64>,
    every: Duration,
}

impl Session {
    async fn run(mut self) -> anyhow::Result<()> {
        let mut renewals = 0;
        let mut due = tokio::time::interval(self.every);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut whole = Vec::new();
        loop {
            tokio::select! {
                _ = due.tick() => {
                    renewals += 1;
                    let applied_index = self.picture.lock().applied;
                    let renew = Renew { sequence: renewals, applied_index, data_path_stalled_ms: 0 };
                    self.up.send(FromNode { message: Some(from_node::Message::Renew(renew)) }).await?;
                }
                message = next(&mut self.down) => match message? {
                    None => bail!("the session ended"),
                    Some(message) => self.take(message, &mut whole).await?,
                }
            }
        }
    }

    async fn take(&mut self, message: to_node::Message, whole: &mut Vec<Change>) -> anyhow::Result<()> {
        match message {
            to_node::Message::Snapshot(part) => {
                whole.extend(part.changes);
                if part.last {
                    let changes = std::mem::take(whole);
                    self.install(&Commit { index: part.index, changes, ..Commit::default() }, true);
                    self.report(part.index).await?;
                }
            }
            to_node::Message::Commit(commit) => {
                self.install(&commit, false);
                self.report(commit.index).await?;
            }
            to_node::Message::Lease(grant) => {
                self.grants.send_replace(grant.sequence);
            }
            // It has no sessions of hosts: no answer says so too.
            to_node::Message::Inspect(_) => {}
            to_node::Message::Welcome(_) => bail!("a second welcome"),
        }
        Ok(())
    }

    async fn report(&mut self, index: u64) -> anyhow::Result<()> {
        let applied = Applied { applied_index: index };
        Ok(self.up.send(FromNode { message: Some(from_node::Message::Applied(applied)) }).await?)
    }

    fn install(&self, commit: &Commit, whole: bool) {
        let mut picture = self.picture.lock();
        let picture = &mut *picture;
        if whole {
            picture.volumes.clear();
            picture.owned.clear();
        } else {
            picture.commits += 1;
            picture.records += commit.changes.len() as u64;
            picture.bytes += prost::Message::encoded_len(commit) as u64;
        }
        for change in &commit.changes {
            match &change.change {
                Some(change::Change::Volume(volume)) => {
                    if volume.owner == picture.number {
                        picture.owned.insert(volume.name.clone(), volume.id.clone());
                    } else {
                        picture.owned.remove(&volume.name);
                    }
                    let seen = Seen { name: volume.name.clone(), owner: volume.owner, epoch: volume.epoch };
                    picture.volumes.insert(volume.id.clone(), seen);
                }
                Some(change::Change::RemovedVolume(id)) => {
                    if let Some(seen) = picture.volumes.remove(id) {
                        picture.owned.remove(&seen.name);
                    }
                    picture.versions.remove(id);
                }
                Some(change::Change::Reservation(reservation)) => {
                    picture.versions.insert(reservation.volume_id.clone(), reservation.version);
                }
                _ => {}
            }
        }
        picture.applied = commit.index;
        self.changed.send_replace(commit.index);
    }
}

/// Milliseconds since `begun`.
pub fn ms_since(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}
