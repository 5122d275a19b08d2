//! One member: opens its store, starts Raft, makes the membership of a new cluster, stops cleanly.
//!
//! Invariants
//! * Only the lowest id of the bootstrap list makes the membership, only when its own store is empty, and only after all
//!   others of the list said that their stores are empty too, and which they are: a member that lost its disk never starts a
//!   second cluster, and is told from the one that it was.
//! * A cluster without its record gets it from whoever leads, as the first command.
//! * Starting again with the same arguments changes nothing.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use holdfast_pki::Identity;
use holdfast_proto::state as records;
use openraft::{
    async_runtime::WatchReceiver as _,
    errors::{Fatal, InitializeError, RaftError},
    storage::RaftLogStorage as _,
};
use tokio::task::JoinHandle;

use super::{
    Handle, RaftService, StoreError, leadership,
    log::LogStore,
    machine::MachineStore,
    membership::describe,
    network::Network,
    options::{self, Compaction},
    service::{Newcomer, StoreGuard},
    store::{Store, StoreIdentity},
    types::{Member, Raft, StoreId, TypeConfig},
};
use crate::state::{Body, Command};

/// What a member needs to know.
#[derive(Debug)]
pub struct MemberConfig {
    /// Its id in Raft; at least 1.
    pub id: u64,
    /// Where its store is.
    pub directory: PathBuf,
    /// Certificate and key; the cluster id and its name come from here.
    pub identity: Arc<Identity>,
    /// The members of a new cluster, by id; empty = this member waits until it is added to one.
    pub bootstrap: Vec<(u64, Member)>,
    /// iSCSI name of the cluster's one target; used once, by the first leader.
    pub target_iqn: String,
    /// How often the log is compacted.
    pub compaction: Compaction,
}

/// Why a member did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state on disk cannot be used.
    #[error("{path}: {source}")]
    State {
        /// The member's folder.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// Raft refused to start.
    #[error("Raft does not start: {0}")]
    Raft(String),
}

/// A running member.
pub struct RunningMember {
    handle: Handle,
    service: RaftService,
    tasks: Vec<JoinHandle<()>>,
}

impl RunningMember {
    /// Opens the store and starts Raft. Other members can be answered as soon as [`RunningMember::service`] is served.
    ///
    /// # Errors
    /// [`StartError`], each one line.
    pub async fn start(config: MemberConfig) -> Result<Self, StartError> {
        let cluster = config.identity.own().cluster;
        let store = Store::open(&config.directory, StoreIdentity { cluster: cluster.0, member: config.id })?;
        let state = |source: io::Error| StartError::State { path: config.directory.clone(), source };
        let mut log = LogStore::new(Arc::clone(&store)).map_err(state)?;
        let has_log = log.get_log_state().await.map_err(state)?.last_log_id.is_some();
        let (machine, shared) = MachineStore::open(store, &config.directory).map_err(state)?;
        let folder = machine.folder();
        let settings = options::config(cluster.to_string(), config.compaction)
            .map_err(|error| StartError::Raft(error.to_string()))?;
        let network = Network::new(Arc::clone(&config.identity));
        let raft = Raft::new(config.id, settings, network, log, machine)
            .await
            .map_err(|error: Fatal<TypeConfig>| StartError::Raft(error.to_string()))?;
        let leadership::Followed { leadership, leader, task: follower } = leadership::follow(&raft);
        let name = Arc::from(config.identity.own().name.as_str());
        let store = StoreGuard::new(shared.store_id());
        let changing = Arc::default();
        let handle = Handle { raft: raft.clone(), shared, leadership, leader, name, changing };
        let service = RaftService { raft, folder, newcomer: Newcomer::new(has_log), store };
        let learner = tokio::spawn(handle.clone().learn_of_removal(Arc::clone(&config.identity)));
        let founder = tokio::spawn(found(handle.clone(), config));
        Ok(Self { handle, service, tasks: vec![follower, learner, founder] })
    }

    /// For all other parts of the controller.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// For the gRPC listener.
    pub fn service(&self) -> RaftService {
        self.service.clone()
    }

    /// Waits until this member's Raft has stopped by itself, which only a failed storage or a defect does; returns why.
    pub async fn failed(&self) -> String {
        let mut metrics = self.handle.raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_watched().running_state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "Raft ended".to_owned();
            }
        }
    }

    /// Hands leadership to the member that is furthest, if this one leads and there is another, and waits (bounded) until a
    /// leader is there.
    pub async fn hand_over(&self) {
        let metrics = self.handle.metrics();
        if metrics.leader.as_ref().map(|leader| leader.id) != Some(metrics.own_id) {
            return;
        }
        let furthest = metrics
            .members
            .iter()
            .filter(|member| member.voter && member.id != metrics.own_id && member.matched_index.is_some())
            .max_by_key(|member| member.matched_index);
        let Some(successor) = furthest else { return };
        if let Err(error) = self.handle.raft.trigger().transfer_leader(successor.id).await {
            tracing::warn!(%error, "leadership is not handed over");
            return;
        }
        let own = metrics.own_id;
        let wait = self.handle.raft.wait(Some(options::TRANSFER_TIMEOUT));
        let taken = wait.metrics(
            |metrics| metrics.current_leader.is_some_and(|leader| leader != own),
            "leadership handed over",
        );
        match taken.await {
            Ok(_) => tracing::info!(successor = successor.id, "handed leadership over"),
            Err(error) => tracing::warn!(%error, "nobody took leadership over in time"),
        }
    }

    /// Stops Raft. Everything acknowledged is on disk; the store is free for another process when the last [`Handle`] and
    /// service of this member are gone too.
    pub async fn stop(self) {
        for task in &self.tasks {
            task.abort();
        }
        if let Err(error) = self.handle.raft.shutdown().await {
            tracing::error!(%error, "Raft did not stop cleanly");
        }
        for task in self.tasks {
            // Aborted just now.
            let _ = task.await;
        }
    }
}

/// Makes the membership if that is this member's part, and sees to the cluster's record.
async fn found(handle: Handle, config: MemberConfig) {
    let lowest = config.bootstrap.iter().map(|(id, _)| *id).min();
    if lowest == Some(config.id) {
        make_membership(&handle.raft, handle.store_id(), &config).await;
    }
    let mut leadership = handle.leadership();
    loop {
        let leads = leadership.borrow_and_update().am_leader;
        if leads && handle.ensure_linearizable().await.is_ok() {
            if handle.read(|machine| machine.cluster().is_some()) {
                return;
            }
            let body = Body::ClusterInit(records::ClusterInit {
                id: config.identity.own().cluster.0.to_vec(),
                target_iqn: config.target_iqn.clone(),
            });
            match handle.write(&Command::new(unix_ms(), body).by(handle.own_caller())).await {
                Ok(written) => match written.response {
                    Ok(_) => tracing::info!(target_iqn = config.target_iqn, "the cluster is founded"),
                    Err(refusal) => tracing::warn!(%refusal, "the cluster's record is there already"),
                },
                Err(error) => tracing::warn!(%error, "the cluster's record is not written yet"),
            }
            continue;
        }
        if leads {
            tokio::time::sleep(options::HEARTBEAT).await;
        } else if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Milliseconds since 1970; shown to people only.
pub(super) fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn make_membership(raft: &Raft, own: StoreId, config: &MemberConfig) {
    match raft.is_initialized().await {
        Ok(false) => {}
        Ok(true) => return,
        Err(error) => {
            tracing::error!(%error, "Raft has stopped before the membership was made");
            return;
        }
    }
    let mut members = std::collections::BTreeMap::new();
    // All of them, so that the membership knows the store of each.
    while members.len() < config.bootstrap.len() {
        for (id, member) in &config.bootstrap {
            if members.contains_key(id) {
                continue;
            }
            if *id == config.id {
                members.insert(*id, Member { store: own, ..member.clone() });
                continue;
            }
            match describe(&config.identity, member).await {
                Ok(said) if said.has_log => {
                    tracing::error!(
                        member = id,
                        "this member's store is empty, but member {id} has a log: the cluster exists. Not making a second one; \
                         waiting for its leader"
                    );
                    return;
                }
                Ok(said) if said.id != *id => {
                    tracing::error!(
                        "--bootstrap calls the member at {} {id}, and it says that it is {}",
                        member.address,
                        said.id
                    );
                }
                Ok(said) => {
                    if let Some(store) = StoreId::from_slice(&said.store_id) {
                        members.insert(*id, Member { store, ..member.clone() });
                    }
                }
                Err(error) => tracing::debug!(member = id, %error, "not reached yet"),
            }
        }
        if members.len() < config.bootstrap.len() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    match raft.initialize(members).await {
        Ok(()) => tracing::info!(members = config.bootstrap.len(), "made the membership"),
        // Its leader was quicker: the membership is there.
        Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
        Err(error) => tracing::error!(%error, "the membership cannot be made"),
    }
}
