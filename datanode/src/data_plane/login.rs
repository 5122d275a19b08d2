//! Who may log in, and the life of a session: start, reinstatement of an older one of the same nexus, end.
//!
//! Invariants: an initiator that belongs to no host gets no further than its first request (0202h), also for discovery; a
//! session starts only after the older one of its nexus has ended at every owner that knew it; a nexus is born with 29/00
//! pending on every LUN and hears only of events of views installed after its birth; who is sent to another node belongs to a
//! host and has passed the authentication that it demands, and the other node serves as far as this one knows.

use holdfast_iscsi::chap::{Algorithm, ChapCredentials, Secret};
use holdfast_iscsi::{
    Admission, LoginAnswer, LoginRequest, LoginStatus, PortalRecord, SendTargets, SessionInfo, SessionStart,
    SessionType, TargetRecord,
};
use holdfast_scsi::nexus::{Nexus, RelativePort};
use holdfast_scsi::port::{LunMap, MappedUnit, NexusPort};
use holdfast_scsi::time::Instant;
use holdfast_scsi::transport_id::TransportId;

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::atomic::Ordering;

use super::inspection::Facts;
use super::limits::{LOGIN_HOLD_MS_MAX, REINSTATEMENT_MS_MAX};
use super::mailbox::{Message, SessionAddress};
use super::portal::{Session, Stage, Waiting};
use super::router::ForwardToken;
use super::sessions::Entry;
use super::worker::{Worker, iscsi};
use crate::lu::Driver;
use crate::view::{ChapView, ClusterView, HostView, VolumeId};

/// A session that has ended here, while owners are being told.
pub(super) struct Ending {
    address: SessionAddress,
    /// Notices that were not confirmed yet.
    missing: usize,
    /// Connections that wait for the nexus.
    waiting: Vec<SessionAddress>,
}

/// What a host sees, as its ports keep it.
pub(super) fn lun_map(view: &ClusterView, host: &str) -> LunMap<VolumeId> {
    let entry =
        |m: &crate::view::MappingView| (m.lun, MappedUnit { volume: m.volume, read_only: m.read_only });
    view.mappings_of(host).iter().map(entry).collect()
}

/// A login that waits until this node may serve.
pub(super) struct HeldLogin {
    connection: u64,
    request: LoginRequest,
    /// By when it is refused, in boot-time milliseconds.
    by_ms: u64,
}

impl Worker {
    pub(super) fn login(&mut self, now: Instant, connection: u64, request: LoginRequest) {
        if self.serving_view(now).is_none() && self.drain.is_none() {
            let by_ms = now.0.saturating_add(LOGIN_HOLD_MS_MAX);
            return self.held_logins.push(HeldLogin { connection, request, by_ms });
        }
        self.answer_login(now, connection, &request);
    }

    /// Answers the logins that wait, once this node may serve or they have waited long enough.
    pub(super) fn retry_logins(&mut self, now: Instant) {
        if self.held_logins.is_empty() {
            return;
        }
        // One that stops will not serve again, and one that is cut off not soon.
        let cut_off = self.shared.cut_off.load(Ordering::Acquire);
        let settled = self.serving_view(now).is_some() || self.drain.is_some() || cut_off;
        for held in std::mem::take(&mut self.held_logins) {
            if settled || held.by_ms <= now.0 {
                self.answer_login(now, held.connection, &held.request);
                self.pump(now, held.connection);
            } else if self.connections.contains_key(&held.connection) {
                self.held_logins.push(held);
            }
        }
    }

    pub(super) fn is_held_login(&self, connection: u64) -> bool {
        self.held_logins.iter().any(|held| held.connection == connection)
    }

    fn answer_login(&mut self, now: Instant, connection: u64, request: &LoginRequest) {
        let answer = match self.elsewhere(now, connection, request) {
            Some((address, admission)) => {
                let address = address.to_string();
                tracing::info!(
                    initiator = request.initiator_name,
                    address,
                    "login to be sent to another node"
                );
                admission.map(|admission| Admission { moved_to: Some(address), ..admission })
            }
            None => self.admit(now, request),
        };
        let answer = match answer {
            Ok(admission) => LoginAnswer::Accept(admission),
            Err(status) => {
                tracing::info!(initiator = request.initiator_name, ?status, "login refused");
                LoginAnswer::Refuse(status)
            }
        };
        if let Some(engine) = self.engine(connection) {
            engine.login_answer(iscsi(now), answer);
        }
    }

    /// Where to send an initiator that begins a session here, because this node does not serve now (it stops, or has no lease)
    /// or is being drained, and what it must pass before it is told. Nowhere, if no other node is better off. Discovery and
    /// further connections of a session are never sent away: the former is answered by any node, the latter belong to this one.
    fn elsewhere(
        &self,
        now: Instant,
        connection: u64,
        request: &LoginRequest,
    ) -> Option<(SocketAddr, Result<Admission, LoginStatus>)> {
        let view = self.view.as_deref()?;
        let leaving = view.my_node().is_some_and(|me| me.draining);
        let normal = request.session_type == SessionType::Normal && request.tsih == 0;
        if !normal || (self.serving_view(now).is_some() && !leaving) {
            return None;
        }
        let target = request.target_name.as_ref()?;
        let host = view.host_of(&request.initiator_name)?;
        if !target.eq_ignore_ascii_case(&view.target_iqn) {
            return None;
        }
        let here = self.connections.get(&connection).and_then(|p| self.portals.get(p.portal))?;
        let others = view
            .nodes
            .values()
            .filter(|node| node.number != view.me && node.live && !node.draining && !node.cordoned);
        let mut portals: Vec<SocketAddr> =
            others.flat_map(|node| &node.ports).map(|port| port.portal).collect();
        // An initiator that came by one kind of address may not have the other, nor a port on the way to it.
        portals.retain(|portal| portal.is_ipv4() == here.is_ipv4() && !portal.ip().is_unspecified());
        portals.sort_unstable();
        // Spread by name and ISID, and the same each time.
        let bytes = request.initiator_name.bytes().chain(request.isid);
        let sum = bytes.fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let portal = portals.get(sum.checked_rem(portals.len())?).copied()?;
        // What this node knows of the host may be old where it has no lease: another secret than now lets nobody in anywhere.
        Some((portal, admission(view, host)))
    }

    fn admit(&self, now: Instant, request: &LoginRequest) -> Result<Admission, LoginStatus> {
        let view = self.serving_view(now).ok_or(LoginStatus::ServiceUnavailable)?;
        if request.tsih != 0 && request.session_type == SessionType::Discovery {
            // A discovery session is one connection.
            return Err(LoginStatus::SessionDoesNotExist);
        }
        let host = view.host_of(&request.initiator_name).ok_or(LoginStatus::AuthorizationFailure)?;
        if let Some(target) = &request.target_name
            && !target.eq_ignore_ascii_case(&view.target_iqn)
        {
            return Err(LoginStatus::NotFound);
        }
        admission(view, host)
    }

    /// The view, while this node may answer by it.
    pub(super) fn serving_view(&self, now: Instant) -> Option<&ClusterView> {
        self.view.as_deref().filter(|_| self.shared.gate.open(now.0) && self.drain.is_none())
    }

    pub(super) fn send_targets(&mut self, connection: u64, request: &SendTargets) {
        let targets = match &self.view {
            Some(view) if matches_target(view, request) => {
                // A node that is about to be stopped is not shown while another one serves.
                let lasting = view.nodes.values().any(|node| node.live && !node.draining);
                let live = view
                    .nodes
                    .values()
                    .filter(|node| (node.live || node.number == view.me) && !(lasting && node.draining));
                let portals = live.flat_map(|node| {
                    let group = node.number.get();
                    node.ports.iter().map(move |p| PortalRecord { address: p.portal.to_string(), group })
                });
                vec![TargetRecord { name: view.target_iqn.to_string(), portals: portals.collect() }]
            }
            _ => Vec::new(),
        };
        if let Some(engine) = self.engine(connection) {
            engine.send_targets_answer(&targets);
        }
    }

    pub(super) fn session_starting(&mut self, now: Instant, connection: u64, info: SessionInfo) {
        if info.login.session_type == SessionType::Discovery {
            // Discovery sessions have no nexus and are never reinstated.
            return self.answer_start(now, connection, SessionStart::Go(NonZeroU16::MIN));
        }
        let Some(portal) = self.connections.get_mut(&connection) else { return };
        let nexus =
            self.portals.get(portal.portal).copied().zip(self.view.as_ref()).and_then(|(address, view)| {
                let port = view.my_node()?.ports.iter().find(|p| p.portal == address)?.relative_port;
                nexus(&info.login, port)
            });
        let Some(nexus) = nexus else {
            let refusal = SessionStart::Refuse(LoginStatus::ServiceUnavailable);
            return self.answer_start(now, connection, refusal);
        };
        if let Some(tsih) = NonZeroU16::new(info.login.tsih) {
            return self.joining(now, connection, &nexus, tsih, info.login.cid);
        }
        let by_ms = now.0.saturating_add(REINSTATEMENT_MS_MAX);
        portal.stage = Stage::Waiting(Box::new(Waiting { nexus, info, by_ms }));
        self.try_start(now, connection, None);
    }

    /// Starts the session that waits on `connection`, or has the one ended that still has its nexus. With `ended` only if
    /// that is the nexus it waits for.
    pub(super) fn try_start(&mut self, now: Instant, connection: u64, ended: Option<Nexus>) {
        let address = self.address(connection);
        let Some(portal) = self.connections.get_mut(&connection) else { return };
        let Stage::Waiting(waiting) = &portal.stage else { return };
        let nexus = waiting.nexus;
        if ended.is_some_and(|ended| ended != nexus) {
            return;
        }
        match self.sessions.enter(nexus, address) {
            Entry::Occupied(other) => {
                let message = Message::EndSession { connection: other.connection, nexus, waiting: address };
                self.services.mailboxes.post(other.worker, message);
                self.touch(connection);
                return;
            }
            Entry::Full => {
                portal.stage = Stage::NoSession;
                self.answer_start(now, connection, SessionStart::Refuse(LoginStatus::OutOfResources));
            }
            Entry::Entered(tsih) => {
                let name = waiting.info.login.initiator_name.to_ascii_lowercase();
                let host = self.view.as_ref().and_then(|view| Some((view, view.host_of(&name)?)));
                // Half of the numbers are left for what is raised later.
                let ids_after = getrandom::u64().map(|drawn| drawn >> 1);
                match (host, ids_after) {
                    (Some((view, host)), Ok(ids_after)) => {
                        let session = Session {
                            port: NexusPort::new(nexus, lun_map(view, &host.name), ids_after),
                            host: host.name.clone(),
                            initiator: name,
                            facts: Facts::new(&waiting.info, tsih),
                            counters: Default::default(),
                            by_tag: Default::default(),
                            held: Default::default(),
                            resets: Default::default(),
                            local: Default::default(),
                            remote: Default::default(),
                        };
                        tracing::info!(%nexus, host = host.name, "session started");
                        portal.stage = Stage::Session(Box::new(session));
                        self.answer_start(now, connection, SessionStart::Go(tsih));
                    }
                    (Some(_), Err(error)) => {
                        tracing::error!(%error, "no random numbers: a session was refused");
                        self.sessions.leave(&nexus, address);
                        portal.stage = Stage::NoSession;
                        let refusal = SessionStart::Refuse(LoginStatus::OutOfResources);
                        self.answer_start(now, connection, refusal);
                    }
                    (None, _) => {
                        // The host was removed while the initiator authenticated.
                        self.sessions.leave(&nexus, address);
                        portal.stage = Stage::NoSession;
                        let refusal = SessionStart::Refuse(LoginStatus::AuthorizationFailure);
                        self.answer_start(now, connection, refusal);
                    }
                }
            }
        }
        self.pump(now, connection);
    }

    /// The older session did not end in time.
    pub(super) fn refuse_start(&mut self, now: Instant, connection: u64) {
        if let Some(portal) = self.connections.get_mut(&connection) {
            portal.stage = Stage::NoSession;
        }
        self.answer_start(now, connection, SessionStart::Refuse(LoginStatus::ServiceUnavailable));
    }

    pub(super) fn answer_start(&mut self, now: Instant, connection: u64, start: SessionStart) {
        if let Some(engine) = self.engine(connection) {
            engine.start_session(iscsi(now), start);
        }
    }

    /// Another connection needs the nexus of this one.
    pub(super) fn end_for(&mut self, now: Instant, connection: u64, wanted: Nexus, waiting: SessionAddress) {
        let nexus = self.connections.get_mut(&connection).and_then(|p| p.session().map(|s| s.nexus()));
        if let Some(nexus) = nexus
            && nexus == wanted
        {
            tracing::info!(%nexus, "session reinstated by a newer login");
            // Its initiator has given it up: nothing more is sent on it.
            self.drop_session(now, connection);
            match self.endings.get_mut(&nexus) {
                Some(ending) => ending.waiting.push(waiting),
                None => self.tell_ended(nexus, waiting),
            }
            return;
        }
        let address = self.address(connection);
        match self.endings.values_mut().find(|ending| ending.address == address) {
            Some(ending) => ending.waiting.push(waiting),
            // It has left already: the waiting one finds the place free.
            None => self.services.mailboxes.post(
                waiting.worker,
                Message::SessionEnded { connection: waiting.connection, nexus: wanted },
            ),
        }
    }

    /// Ends the session of a connection: its tasks end here and at every owner, then its nexus is free.
    pub(super) fn end_session(&mut self, now: Instant, connection: u64, reason: &str) {
        let address = self.address(connection);
        let Some(portal) = self.connections.get_mut(&connection) else { return };
        let Stage::Session(mut session) = std::mem::replace(&mut portal.stage, Stage::NoSession) else {
            return;
        };
        let nexus = session.nexus();
        tracing::info!(%nexus, reason, "session ended");
        self.holding.remove(&connection);
        for token in session.by_tag.values().chain(&session.held) {
            self.requests.remove(token);
        }
        self.requests.retain(|_, request| request.connection != connection);
        // An owner that never had a command of it may have inherited something that hangs on it.
        if let Some(view) = &self.view {
            for volume in view.volumes.values().filter(|volume| volume.reservations.state.hangs_on(&nexus)) {
                match volume.config.owner().map(|owner| owner.node) {
                    Some(node) if node == view.me => _ = session.local.insert(volume.id),
                    Some(node) => _ = session.remote.insert(node),
                    None => {}
                }
            }
        }
        let mut driver = Driver { services: &self.services, local: Some((self.index, &mut self.answers)) };
        for volume in &session.local {
            if let Some(unit) = self.table.get(*volume) {
                unit.nexus_loss(&mut driver, &nexus);
            }
        }
        let missing = session.remote.len();
        self.endings.insert(nexus, Ending { address, missing, waiting: Vec::new() });
        for node in session.remote {
            let token = self.token();
            self.ending_tokens.insert(token, nexus);
            self.interconnect.forward_nexus_loss(now, node, token, nexus);
        }
        if missing == 0 {
            self.ended(nexus);
        }
    }

    /// An owner has confirmed the end of a nexus.
    pub(super) fn nexus_loss_done(&mut self, token: ForwardToken) {
        let Some(nexus) = self.ending_tokens.remove(&token) else { return };
        let Some(ending) = self.endings.get_mut(&nexus) else { return };
        ending.missing = ending.missing.saturating_sub(1);
        if ending.missing == 0 {
            self.ended(nexus);
        }
    }

    fn ended(&mut self, nexus: Nexus) {
        let Some(ending) = self.endings.remove(&nexus) else { return };
        self.sessions.leave(&nexus, ending.address);
        for waiting in ending.waiting {
            self.tell_ended(nexus, waiting);
        }
    }

    fn tell_ended(&self, nexus: Nexus, waiting: SessionAddress) {
        let message = Message::SessionEnded { connection: waiting.connection, nexus };
        self.services.mailboxes.post(waiting.worker, message);
    }
}

fn matches_target(view: &ClusterView, request: &SendTargets) -> bool {
    match request {
        SendTargets::All => true,
        SendTargets::Named(name) => name.eq_ignore_ascii_case(&view.target_iqn),
    }
}

fn nexus(login: &LoginRequest, port: RelativePort) -> Option<Nexus> {
    Some(Nexus::new(TransportId::iscsi(&login.initiator_name, login.isid).ok()?, port))
}

/// With what an initiator of this host begins.
fn admission(view: &ClusterView, host: &HostView) -> Result<Admission, LoginStatus> {
    let chap = host.chap.as_ref().map(|chap| credentials(host, chap)).transpose()?;
    Ok(Admission { chap, target_portal_group_tag: view.me.get(), moved_to: None })
}

fn credentials(host: &HostView, chap: &ChapView) -> Result<Box<ChapCredentials>, LoginStatus> {
    let secret =
        |name: &String, secret: &crate::view::Secret| Secret::new(name.clone(), secret.as_bytes().to_vec());
    let target = chap.target.as_ref().map(|(name, s)| secret(name, s));
    // The strongest algorithm that both know is taken; MD5 is for initiators that know no other.
    ChapCredentials::new(secret(&chap.user, &chap.secret), target, Algorithm::Md5).map(Box::new).map_err(
        |error| {
            tracing::error!(host = host.name, ?error, "the host's CHAP credentials cannot be used");
            LoginStatus::TargetError
        },
    )
}
