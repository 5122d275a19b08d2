//! The agent's thread: one session after another, with whichever member leads.
//!
//! Invariants: the end of a session neither closes the gate nor the view (a lease runs on); a renewal leaves every
//! `renew_interval_ms`; a leader that grants nothing for half a lease is left for another.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use holdfast_pki::{Identity, PkiError, Role};
use holdfast_proto::{
    node::{
        Applied, FromNode, Hello, MakingReport, PoolReport, ReplicaRemoved, ReplicaReport, ReplicaState,
        from_node, node_agent_client::NodeAgentClient,
    },
    state,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};

use super::{
    Installer, changes,
    endpoints::Endpoints,
    handle::{Handle, Request, Requests},
    heartbeat::Heartbeats,
    proposals::{self, LEADER, Road},
    session::{Core, Facts, SessionError, from},
};
use crate::{
    clock,
    view::{BootId, ClusterId, Shared, VolumeId, VolumeView},
};

/// Until the connection stands, TLS included: the kernel of a stopped process still takes connections.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Until commits are followed.
const OPEN_MAX: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(1);
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(3);
/// Messages to the controller that wait to be sent.
const OUTGOING_MAX: usize = 1024;
/// Largest message of the controller, in bytes.
const MESSAGE_MAX: usize = 16 * 1024 * 1024;

/// What the agent needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's name, as in its certificate.
    pub name: String,
    /// Kernel boot id.
    pub boot: BootId,
    /// Drawn at random at process start.
    pub process_id: [u8; 16],
    /// "address:port" of each controller; not empty.
    pub controllers: Vec<String>,
    /// Portals, in a stable order.
    pub portals: Vec<SocketAddr>,
    /// Where forwarded commands are taken.
    pub interconnect: SocketAddr,
    /// Pools at the start; later ones come by [`Handle::report_pools`].
    pub pools: Vec<state::Pool>,
}

/// Why the agent has ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentEnd {
    /// It was told to.
    #[error("the agent was stopped")]
    Stopped,
    /// Another process has started under this node's name; this one must not go on.
    #[error("another process serves as node '{0}' now")]
    NameTaken(String),
    /// Its certificate cannot be used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The controller refuses this node for good.
    #[error("the controller refuses this node: {0}")]
    Refused(String),
    /// The runtime could not be made.
    #[error("the agent's runtime: {0}")]
    Runtime(#[from] io::Error),
}

/// The running agent.
#[derive(Debug)]
pub struct Agent {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    /// A handle for the data plane, and the requests that [`Agent::start`] serves.
    pub fn channel() -> (Handle, AgentRequests) {
        let (handle, requests) = Handle::new();
        (handle, AgentRequests(requests))
    }

    /// Starts the thread. `ended` is called from it, once, when it ends.
    ///
    /// # Errors
    /// The identity has no cluster key or no usable certificate; the thread cannot be made.
    pub fn start(
        options: Options,
        identity: &Identity,
        requests: AgentRequests,
        shared: Arc<Shared>,
        heartbeats: Heartbeats,
        installer: Arc<dyn Installer>,
        ended: impl FnOnce(AgentEnd) + Send + 'static,
    ) -> Result<Agent, AgentEnd> {
        let key = identity.sealing_key().cloned().ok_or_else(|| {
            PkiError::NotAnIdentity("a data node needs the cluster key (secret.key)".to_owned())
        })?;
        let identity = identity.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let facts = Facts {
            cluster: ClusterId(identity.own().cluster.0),
            name: options.name.clone(),
            hello: Hello {
                replicates: true,
                name: options.name.clone(),
                boot_id: options.boot.0.to_vec(),
                process_id: options.process_id.to_vec(),
                portals: options.portals.iter().map(ToString::to_string).collect(),
                interconnect: options.interconnect.to_string(),
                pools: Vec::new(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                applied_index: 0,
            },
            key,
        };
        let (leader, leader_seen) = watch::channel(None);
        let (installed, installed_seen) = watch::channel(0);
        let road = Road { shared: Arc::clone(&shared), leader: leader_seen, installed: installed_seen };
        let mut run = Run {
            core: Core::new(facts, Arc::clone(&shared), installer),
            shared,
            heartbeats,
            requests: requests.0,
            pools: options.pools,
            removed: BTreeSet::new(),
            making: BTreeMap::new(),
            replicas: BTreeMap::new(),
            leader,
            installed,
            road,
        };
        let mut endpoints = Endpoints::new(options.controllers);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("agent".into()).spawn(move || {
            let end = runtime.block_on(async {
                tokio::select! {
                    end = run.forever(&mut endpoints, &identity) => end,
                    _ = stopped => AgentEnd::Stopped,
                }
            });
            ended(end);
        })?;
        Ok(Agent { stop: Some(stop), thread: Some(thread) })
    }

    /// Ends the session and the thread. The lease is left to run out: another node may take over only then.
    pub fn stop(mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its own message.
            let _ = thread.join();
        }
    }
}

/// What handles have asked, until the agent starts.
pub struct AgentRequests(Requests);

impl std::fmt::Debug for AgentRequests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AgentRequests")
    }
}

struct Run {
    core: Core,
    shared: Arc<Shared>,
    heartbeats: Heartbeats,
    requests: Requests,
    pools: Vec<state::Pool>,
    /// Replicas that are gone, until the controller has forgotten them too.
    removed: BTreeSet<VolumeId>,
    /// The last step of each volume that is being made.
    making: BTreeMap<VolumeId, (state::MakingStep, String)>,
    /// The last word on each replica (volume, node), for the next session.
    replicas: BTreeMap<(Vec<u8>, u32), ReplicaState>,
    leader: watch::Sender<Option<Channel>>,
    installed: watch::Sender<u64>,
    road: Road,
}

/// Why a session ended.
enum SessionEnd {
    Status(Status),
    Session(SessionError),
    Quiet(&'static str),
}

impl Run {
    async fn forever(&mut self, endpoints: &mut Endpoints, identity: &Identity) -> AgentEnd {
        loop {
            let (address, pause) = endpoints.next();
            self.serve_handles_for(pause).await;
            let end = match connect(&address, identity).await {
                Ok(channel) => self.session(&address, channel, endpoints).await,
                Err(reason) => {
                    tracing::debug!(%address, %reason, "controller not reached");
                    endpoints.failed();
                    continue;
                }
            };
            self.leader.send_replace(None);
            match end {
                SessionEnd::Status(status) => {
                    if let Some(leader) = status.metadata().get(LEADER).and_then(|value| value.to_str().ok())
                    {
                        endpoints.hint(leader.to_owned());
                        continue;
                    }
                    if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated) {
                        return AgentEnd::Refused(status.message().to_owned());
                    }
                    if status.code() == Code::InvalidArgument {
                        tracing::error!(%address, reason = status.message(), "the controller refuses the session");
                    } else {
                        tracing::info!(%address, code = ?status.code(), reason = status.message(), "session ended");
                    }
                }
                SessionEnd::Session(SessionError::NameTaken(name)) => return AgentEnd::NameTaken(name),
                SessionEnd::Session(error) => tracing::error!(%address, %error, "session ended"),
                SessionEnd::Quiet(reason) => {
                    tracing::info!(%address, reason, "session ended");
                    // It is paused or cut off: there is no time to lose with it.
                    endpoints.silent(&address);
                }
            }
            endpoints.failed();
        }
    }

    fn leader_heard(&self) {
        self.shared.leader_heard_ms.store(clock::now_ms(), Ordering::Release);
    }

    /// Serves the handles while nobody is there to talk to.
    async fn serve_handles_for(&mut self, pause: Duration) {
        let until = time::Instant::now() + pause;
        loop {
            tokio::select! {
                biased;
                Some(request) = next_request(&mut self.requests) => {
                    self.take(request);
                }
                () = time::sleep_until(until) => return,
            }
        }
    }

    /// Handles a request; returns what the controller is to be told.
    fn take(&mut self, request: Request) -> Option<FromNode> {
        match request {
            Request::ProposeReservation(proposal, reply) => {
                tokio::spawn(proposals::propose_reservation(self.road.clone(), proposal, reply));
                None
            }
            Request::EstablishUnitAttention(wanted, reply) => {
                tokio::spawn(proposals::establish_unit_attention(self.road.clone(), wanted, reply));
                None
            }
            Request::AwaitBarrier(index, reply) => {
                tokio::spawn(proposals::await_barrier(self.road.clone(), index, reply));
                None
            }
            Request::ChangeConfiguration(wanted, reply) => {
                tokio::spawn(changes::change_configuration(self.road.clone(), wanted, reply));
                None
            }
            Request::ReplicaReport(replicas) => {
                for replica in &replicas {
                    self.replicas.insert((replica.volume_id.clone(), replica.node), replica.clone());
                }
                Some(from(from_node::Message::Replicas(ReplicaReport { replicas })))
            }
            Request::Installed(index) => {
                if !self.core.installed(index) {
                    return None;
                }
                self.installed.send_replace(index);
                Some(from(from_node::Message::Applied(Applied { applied_index: index })))
            }
            Request::Inspected(inspection) => Some(from(from_node::Message::Inspection(inspection))),
            Request::Pools(pools) => {
                self.pools.clone_from(&pools);
                Some(from(from_node::Message::Pools(PoolReport { pools })))
            }
            Request::Making(volume, step, message) => {
                self.making.insert(volume, (step, message.clone()));
                Some(making(volume, step, message))
            }
            Request::ReplicaRemoved(volume) => {
                self.removed.insert(volume);
                Some(replica_removed(volume))
            }
        }
    }

    /// What has to be said again in each session.
    fn repeat_reports(&mut self) -> Vec<FromNode> {
        if let Some(view) = self.shared.view.load_full() {
            self.removed.retain(|id| view.volumes.contains_key(id));
            let is_restore = |id: &VolumeId| {
                let restoring = |v: &Arc<VolumeView>| v.restoring.as_ref().is_some_and(|r| r.id == *id);
                view.volumes.values().any(restoring)
            };
            self.making.retain(|id, _| match view.volumes.get(id) {
                Some(volume) => volume.making.is_some(),
                None => is_restore(id),
            });
        }
        let mut said: Vec<FromNode> = self.removed.iter().map(|id| replica_removed(*id)).collect();
        said.extend(self.making.iter().map(|(id, (step, message))| making(*id, *step, message.clone())));
        if let Some(view) = self.shared.view.load_full() {
            let known = |id: &[u8]| VolumeId::from_slice(id).is_some_and(|id| view.volumes.contains_key(&id));
            self.replicas.retain(|(id, _), _| known(id));
        }
        if !self.replicas.is_empty() {
            let replicas = self.replicas.values().cloned().collect();
            said.push(from(from_node::Message::Replicas(ReplicaReport { replicas })));
        }
        said
    }

    async fn session(&mut self, address: &str, channel: Channel, endpoints: &mut Endpoints) -> SessionEnd {
        let (outgoing, outgoing_received) = mpsc::channel(OUTGOING_MAX);
        let hello = self.core.begin(self.pools.clone());
        // An empty channel of this size takes the first message.
        let _ = outgoing.try_send(hello);
        let mut client = NodeAgentClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX);
        let opening = client.session(ReceiverStream::new(outgoing_received));
        let mut incoming = match time::timeout(OPEN_MAX, opening).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return SessionEnd::Status(status),
            Err(_) => return SessionEnd::Quiet("it did not answer the greeting"),
        };
        let mut deadline = time::Instant::now() + OPEN_MAX;
        let mut renewals: Option<time::Interval> = None;
        loop {
            let to_send = tokio::select! {
                biased;
                () = time::sleep_until(deadline) => return SessionEnd::Quiet("it has granted nothing for too long"),
                () = tick(&mut renewals) => {
                    // The lease is counted from here: read before the message can be on its way.
                    let now_ms = clock::now_ms();
                    Some(self.core.renew(now_ms, self.heartbeats.stalled_ms(now_ms)))
                }
                Some(request) = next_request(&mut self.requests) => self.take(request),
                message = incoming.message() => {
                    let granted = match message {
                        Ok(Some(message)) => {
                            self.leader_heard();
                            match self.core.handle(message) {
                                Ok(granted) => granted,
                                Err(error) => return SessionEnd::Session(error),
                            }
                        }
                        Ok(None) => return SessionEnd::Quiet("the controller ended it"),
                        Err(status) => return SessionEnd::Status(status),
                    };
                    if let Some(timing) = self.core.timing() {
                        let interval = Duration::from_millis(u64::from(timing.renew_interval_ms));
                        let patience = Duration::from_millis(u64::from(timing.lease_ms / 2)).max(interval * 3);
                        if renewals.is_none() {
                            tracing::info!(%address, "following the controller");
                            endpoints.succeeded(address);
                            self.leader.send_replace(Some(channel.clone()));
                            let mut every = time::interval(interval);
                            every.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
                            renewals = Some(every);
                            deadline = time::Instant::now() + patience;
                            for report in self.repeat_reports() {
                                if outgoing.try_send(report).is_err() {
                                    return SessionEnd::Quiet("it does not take messages");
                                }
                            }
                        }
                        if granted {
                            deadline = time::Instant::now() + patience;
                        }
                    }
                    None
                }
            };
            if let Some(message) = to_send
                && outgoing.try_send(message).is_err()
            {
                return SessionEnd::Quiet("it does not take messages");
            }
        }
    }
}

fn making(volume: VolumeId, step: state::MakingStep, message: String) -> FromNode {
    let volume_id = volume.0.to_vec();
    from(from_node::Message::Making(MakingReport { volume_id, step: step.into(), message }))
}

fn replica_removed(volume: VolumeId) -> FromNode {
    from(from_node::Message::ReplicaRemoved(ReplicaRemoved { volume_id: volume.0.to_vec() }))
}

async fn tick(interval: &mut Option<time::Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// The next request of any handle. Reports first: they open the gate and let others go on.
async fn next_request(requests: &mut Requests) -> Option<Request> {
    tokio::select! {
        biased;
        Some(report) = requests.reports.recv() => Some(report),
        Some(request) = requests.requests.recv() => Some(request),
        // All handles are gone: nothing will ever come.
        else => std::future::pending().await,
    }
}

async fn connect(address: &str, identity: &Identity) -> Result<Channel, String> {
    let (endpoint, connector) =
        identity.endpoint(address, Role::Controller, None).map_err(|error| error.to_string())?;
    let endpoint = endpoint
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_MAX)
        .keep_alive_while_idle(true);
    // The endpoint's own time-out is for TCP alone.
    match time::timeout(CONNECT_MAX, endpoint.connect_with_connector(connector)).await {
        Ok(connected) => connected.map_err(|error| error.to_string()),
        Err(_) => Err("no answer to the greeting of TLS".to_owned()),
    }
}
