//! A small world round a real `DeviceServer` and real `NexusPort`s: a store of bytes, a controller that applies
//! proposals with the real `Reservations`, and hosts. It checks, whatever is done to it, that every task completes
//! exactly once and every task management function is answered exactly once.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod cdbs;

use std::collections::{BTreeMap, VecDeque};

use holdfast_scsi::{
    alua::{self, AluaState, Wanted},
    cdb::{self, WriteSameSource},
    device_server::*,
    geometry::{Extent, Geometry},
    identity::{LuIdentity, LuProperties},
    lba_status::{LbaStatus, Provisioning},
    lu_state::{Change, Context, LuState, UnixMillis},
    lun::Lun,
    mode::ModeParameters,
    nexus::{Nexus, RelativePort},
    port::{LunMap, MappedUnit, NexusPort, Route},
    pr::{
        access::{self, Access},
        state::Refusal,
    },
    sense::AdditionalSense,
    status::Status,
    task_set::{TaskAttribute, TaskId},
    time::Instant,
    transport_id::TransportId,
};

pub(crate) const BLOCK: usize = 512;
pub(crate) const BLOCKS: u64 = 2048;
/// The volume behind the device server; other volumes have none.
pub(crate) const VOLUME: char = 'v';

/// Whether something outside answers at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    Prompt,
    Holds,
}

/// What the controller does with proposals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quorum {
    There,
    /// It answers that nothing was proposed.
    Lost,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) port: NexusPort<char>,
}

#[derive(Debug)]
struct Live {
    host: char,
    lun: Lun,
    cdb: Vec<u8>,
    data_out: Vec<u8>,
    read: Vec<u8>,
}

/// How a task ended, with the data that the initiator got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) response: Response,
    pub(crate) data_in: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) server: DeviceServer,
    pub(crate) hosts: BTreeMap<char, Host>,
    pub(crate) truth: LuState,
    pub(crate) version: u64,
    pub(crate) store: Vec<u8>,
    pub(crate) store_pace: Pace,
    pub(crate) controller_pace: Pace,
    pub(crate) quorum: Quorum,
    /// The other node has an in-sync copy.
    pub(crate) in_sync: bool,
    topology: Topology,
    pub(crate) ended: BTreeMap<u64, Ended>,
    pub(crate) functions: BTreeMap<u64, Option<TmfResponse>>,
    pub(crate) drained: Vec<u64>,
    live: BTreeMap<u64, Live>,
    /// I/O at the store, with the reservation version installed when it was submitted.
    held_io: VecDeque<(u64, Action)>,
    /// Versions of committed changes, by proposing task, that took access away or aborted tasks.
    narrowing: BTreeMap<u64, u64>,
    held_proposals: VecDeque<Action>,
    /// Taken from the device server, not done yet.
    todo: VecDeque<(u64, Action)>,
    next_id: u64,
    now: u64,
}

fn nexus(name: char) -> Nexus {
    let port = if name == 'B' { 2 } else { 1 };
    let id = TransportId::iscsi(&format!("iqn.2026-01.test:{name}"), [name as u8; 6]).unwrap();
    Nexus::new(id, RelativePort(port))
}

pub(crate) fn usual_map() -> LunMap<char> {
    [(0, VOLUME), (1, 'w')].map(|(lun, volume)| (lun, MappedUnit { volume, read_only: false })).into()
}

impl World {
    /// Hosts A, B and C; B through the other node. Nothing pending.
    pub(crate) fn new() -> World {
        let identity = LuIdentity { volume_uuid: [0x5a; 16], revision: *b"0001" };
        let geometry = Geometry::new(BLOCK as u32, BLOCKS).unwrap();
        let mode = ModeParameters::new(true);
        let properties = LuProperties { identity, geometry, physical_block_exponent: 3 };
        let mut server = DeviceServer::new(LuConfig { properties, mode, read_only: false });
        let group = |id, state| PortGroup { id, state, preferred: false, ports: vec![RelativePort(id)] };
        server.install_clock(Instant(0), UnixMillis(1_000_000));
        let topology = Topology {
            target_name: "iqn.2026-01.test:target".into(),
            groups: vec![group(1, AluaState::ActiveOptimized), group(2, AluaState::ActiveNonOptimized)],
            ..Topology::default()
        };
        server.install_topology(topology.clone());
        let mut world = World {
            server,
            hosts: BTreeMap::new(),
            truth: LuState::default(),
            version: 0,
            store: vec![0; BLOCK * BLOCKS as usize],
            store_pace: Pace::Prompt,
            controller_pace: Pace::Prompt,
            quorum: Quorum::There,
            in_sync: true,
            topology,
            ended: BTreeMap::new(),
            functions: BTreeMap::new(),
            drained: Vec::new(),
            live: BTreeMap::new(),
            held_io: VecDeque::new(),
            narrowing: BTreeMap::new(),
            held_proposals: VecDeque::new(),
            todo: VecDeque::new(),
            next_id: 0,
            now: 0,
        };
        for name in ['A', 'B', 'C'] {
            world.hosts.insert(name, Host { port: NexusPort::new(nexus(name), usual_map(), 0) });
            for lun in [0, 1] {
                world.forget_unit_attentions(name, lun);
            }
        }
        world
    }

    pub(crate) fn nexus(&self, host: char) -> Nexus {
        *self.hosts[&host].port.nexus()
    }

    pub(crate) fn host_of(&self, nexus: &Nexus) -> char {
        self.hosts.iter().find(|(_, h)| h.port.nexus() == nexus).map_or('?', |(name, _)| *name)
    }

    pub(crate) fn forget_unit_attentions(&mut self, host: char, lun: u16) {
        let port = &mut self.hosts.get_mut(&host).unwrap().port;
        for ua in port.pending(lun) {
            port.reported(&Lun::from_number(lun).unwrap(), ua.id);
        }
    }

    pub(crate) fn raise(&mut self, additional: AdditionalSense, scope: UaScope) {
        for host in self.hosts.values_mut() {
            let is_meant = match &scope {
                UaScope::All => true,
                UaScope::Only(n) => host.port.nexus() == n,
                UaScope::AllExcept(n) => host.port.nexus() != n,
            };
            if is_meant {
                host.port.raise(&VOLUME, additional);
            }
        }
    }

    /// Sends a command; `data` is its Data-Out, which comes later if `awaited`. Returns its number.
    pub(crate) fn send(
        &mut self,
        host: char,
        lun: Lun,
        cdb: &[u8],
        data: Vec<u8>,
        awaited: bool,
        attribute: TaskAttribute,
    ) -> u64 {
        let id = self.fresh_id();
        let (route, nexus) = {
            let port = &mut self.hosts.get_mut(&host).unwrap().port;
            (port.classify(&lun, cdb), *port.nexus())
        };
        let (read_only, unit_attention) = match route {
            Route::Answer(completion) => {
                self.end_unrouted(id, completion);
                return id;
            }
            Route::Forward { volume, .. } if volume != VOLUME => {
                self.end_unrouted(id, Completion::good());
                return id;
            }
            Route::Forward { read_only, unit_attention, .. } => (read_only, unit_attention),
        };
        let data_out_len = data.len() as u32;
        self.live.insert(id, Live { host, lun, cdb: cdb.to_vec(), data_out: data.clone(), read: Vec::new() });
        let request = CommandRequest {
            task: TaskId(id),
            nexus: &nexus,
            cdb,
            attribute,
            data_out_len,
            unit_attention,
            read_only,
        };
        let data = match (data.is_empty(), awaited) {
            (true, _) => DataOut::None,
            (false, true) => DataOut::Awaited,
            (false, false) => DataOut::Ready(&data),
        };
        let now = self.tick();
        self.server.handle_command(now, request, data).unwrap();
        self.pump();
        id
    }

    pub(crate) fn send_data(&mut self, id: u64) {
        let now = self.tick();
        if let Some(live) = self.live.get(&id) {
            self.server.handle_data_out(now, TaskId(id), &live.data_out.clone());
        }
        self.pump();
    }

    pub(crate) fn manage(&mut self, host: char, function: TaskManagementFunction) -> u64 {
        let id = self.fresh_id();
        self.functions.insert(id, None);
        let nexus = self.nexus(host);
        let now = self.tick();
        self.server.handle_task_management(now, TaskManagementRequest { id, nexus: &nexus, function });
        self.pump();
        id
    }

    /// The session ends and comes back.
    pub(crate) fn relogin(&mut self, host: char) {
        let nexus = self.nexus(host);
        let now = self.tick();
        self.server.handle_nexus_loss(now, &nexus);
        self.relogin_unheard(host);
    }

    /// The same, and the owner does not hear of the end.
    pub(crate) fn relogin_unheard(&mut self, host: char) {
        let nexus = self.nexus(host);
        let map = self.hosts[&host].port.map().map(|(lun, unit)| (lun, *unit)).collect();
        let ids_after = self.fresh_id() << 32;
        self.hosts.insert(host, Host { port: NexusPort::new(nexus, map, ids_after) });
        self.pump();
    }

    /// The store has this many threshold sets left.
    pub(crate) fn store_has(&mut self, sets: u64) {
        let set = (BLOCK as u64) << holdfast_scsi::limits::THRESHOLD_EXPONENT;
        let now = self.tick();
        let resources = StoreResources { available_bytes: sets * set, used_bytes: set };
        self.server.install_resources(now, resources);
        self.pump();
    }

    pub(crate) fn pass_second(&mut self) {
        self.now += 1000;
        let now = self.tick();
        self.server.handle_tick(now);
        self.pump();
    }

    /// Lets the oldest held I/O end; false without any.
    pub(crate) fn release_one_io(&mut self, fail: bool) -> bool {
        let Some((_, action)) = self.held_io.pop_front() else { return false };
        self.perform(action, fail);
        self.pump();
        true
    }

    /// Lets the oldest held proposal reach the controller; false without any.
    pub(crate) fn release_one_proposal(&mut self) -> bool {
        let Some(action) = self.held_proposals.pop_front() else { return false };
        self.decide(action);
        self.pump();
        true
    }

    /// Lets everything that is held go on until nothing is.
    pub(crate) fn release_all(&mut self) {
        self.store_pace = Pace::Prompt;
        self.controller_pace = Pace::Prompt;
        while self.release_one_io(false) || self.release_one_proposal() {}
    }

    pub(crate) fn held_io(&self) -> usize {
        self.held_io.len()
    }

    pub(crate) fn live_tasks(&self) -> Vec<u64> {
        self.live.keys().copied().collect()
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn tick(&mut self) -> Instant {
        self.now += 1;
        Instant(self.now)
    }

    fn end_unrouted(&mut self, id: u64, completion: Completion) {
        let data_in = bytes_of(&completion, &[]);
        self.ended.insert(id, Ended { response: Response::Completed(completion), data_in });
    }

    fn pump(&mut self) {
        self.collect();
        while let Some((version, action)) = self.todo.pop_front() {
            self.act(version, action);
            self.collect();
        }
    }

    /// Takes what the last event led to before the next event happens, so that the state is the one it was decided in.
    fn collect(&mut self) {
        let version = self.server.state().0;
        while let Some(action) = self.server.poll_action() {
            if is_io(&action) {
                self.assert_may_run(&action);
            }
            self.todo.push_back((version, action));
        }
    }

    fn act(&mut self, version: u64, action: Action) {
        match action {
            Action::Complete { task, response } => self.completed(task.0, response),
            Action::TaskManagementDone { id, response } => {
                let slot = self.functions.get_mut(&id).expect("a function nobody asked for");
                assert!(slot.replace(response).is_none(), "function {id} answered twice");
            }
            Action::ReservationsDrained { version } => {
                assert!(self.server.reservations_drained(version));
                self.drained.push(version);
            }
            io if is_io(&io) => match self.store_pace {
                Pace::Prompt => self.perform(io, false),
                Pace::Holds => self.held_io.push_back((version, io)),
            },
            proposal => match self.controller_pace {
                Pace::Prompt => self.decide(proposal),
                Pace::Holds => self.held_proposals.push_back(proposal),
            },
        }
    }

    /// No I/O is submitted for a nexus that the installed reservations shut out.
    fn assert_may_run(&self, io: &Action) {
        if task_of(io) == OWN_WORK {
            assert!(self.server.state().1.unit.operation.is_some());
            return;
        }
        let live = &self.live[&task_of(io).0];
        let (_, installed) = self.server.state();
        let command = cdb::parse(&live.cdb, &self.server.config().properties.geometry).unwrap();
        let nexus = self.nexus(live.host);
        assert_eq!(
            access::check_view(&command, &installed.reservations.view(), &nexus),
            Access::Allowed,
            "{io:?}"
        );
    }

    fn completed(&mut self, id: u64, response: Response) {
        let live = self.live.remove(&id).unwrap_or_else(|| panic!("task {id} ended twice, or never lived"));
        if let Some(version) = self.narrowing.remove(&id) {
            let mut at_the_store = self.held_io.iter().chain(&self.todo).filter(|(_, action)| is_io(action));
            let older = at_the_store.find(|(submitted, _)| *submitted < version);
            assert!(older.is_none(), "GOOD for version {version} before {older:?} has ended");
        }
        let under_way = self.held_io.iter().chain(&self.todo).any(|(_, io)| io_task(io) == Some(TaskId(id)));
        assert!(!under_way, "task {id} ended before its I/O");
        let mut data_in = Vec::new();
        if let Response::Completed(completion) = &response {
            if let Some(ua) = completion.unit_attention_reported {
                self.hosts.get_mut(&live.host).unwrap().port.reported(&live.lun, ua);
            }
            data_in = bytes_of(completion, &live.read);
        }
        self.ended.insert(id, Ended { response, data_in });
    }

    /// The controller: one state, changed by the same function as the device server validates with.
    fn decide(&mut self, action: Action) {
        let now = self.tick();
        match action {
            Action::ProposeChange { task, cdb, parameter_list, .. } if cdb[..2] == [0xa4, 0x0a] => {
                let outcome = self.begin_transition(&parameter_list);
                self.server.handle_proposal(now, task, outcome);
            }
            Action::ProposeChange { task, nexus, expected_version, cdb, parameter_list } => {
                let change = Change::Command { nexus: &nexus, cdb: &cdb, parameter_list: &parameter_list };
                let outcome = self.commit(Some(task.0), expected_version, &change);
                self.server.handle_proposal(now, task, outcome);
            }
            Action::ProposeEvent { id, event, expected_version } => {
                let outcome = self.commit(None, expected_version, &event.change());
                self.server.handle_event_proposal(now, id, outcome);
            }
            Action::AwaitBarrier { version } => self.server.handle_barrier(now, version),
            Action::EstablishUnitAttention { id, additional, scope } => {
                let there = self.quorum == Quorum::There;
                if there {
                    self.raise(additional, *scope);
                }
                self.server.handle_unit_attention(now, id, there);
            }
            other => panic!("not for the controller: {other:?}"),
        }
    }

    /// The controller's part of SET TARGET PORT GROUPS: the owner is to hand over.
    fn begin_transition(&mut self, list: &[u8]) -> ProposalOutcome {
        if self.quorum == Quorum::Lost {
            return ProposalOutcome::NotProposed;
        }
        let groups = self.topology.groups.iter().map(|group| (group.id, group.state));
        match alua::wanted(list, groups) {
            Ok(Wanted::Optimized(to)) if self.in_sync => {
                self.topology.moving_to = Some(to);
                self.server.install_topology(self.topology.clone());
                ProposalOutcome::Committed { version: self.version }
            }
            Ok(_) => ProposalOutcome::Refused(alua::SET_FAILED),
            Err(sense) => ProposalOutcome::Refused(sense),
        }
    }

    /// The owner has handed over, or was told not to. Here the same device server stands for the new owner's.
    pub(crate) fn end_transition(&mut self, made: bool) {
        let Some(to) = self.topology.moving_to.take() else { panic!("nothing is moving") };
        if made {
            for group in &mut self.topology.groups {
                group.state = match group.id == to {
                    true => AluaState::ActiveOptimized,
                    false => AluaState::ActiveNonOptimized,
                };
            }
        }
        let answered = self.server.made_transition(&self.topology);
        assert!(made || answered.is_empty());
        for (id, completion) in answered {
            assert_eq!((completion.status, completion.transfer_len % 4), (Status::Good, 0));
            assert!(self.live.contains_key(&id.0));
        }
        self.server.install_topology(self.topology.clone());
        self.pump();
    }

    fn commit(&mut self, task: Option<u64>, expected: u64, change: &Change<'_>) -> ProposalOutcome {
        if self.quorum == Quorum::Lost {
            return ProposalOutcome::NotProposed;
        }
        if expected != self.version {
            return ProposalOutcome::VersionChanged;
        }
        let context = Context {
            ports: &[RelativePort(1), RelativePort(2)],
            geometry: self.server.config().properties.geometry,
            mode_default: self.server.config().mode,
            now: UnixMillis(1_000_000 + self.now),
        };
        match self.truth.apply(change, &context) {
            Err(Refusal::Conflict) => ProposalOutcome::Conflict,
            Err(Refusal::Sense(sense)) => ProposalOutcome::Refused(sense),
            Ok(applied) => {
                self.version += 1;
                let (version, now) = (self.version, Instant(self.now));
                if let Some(task) = task.filter(|_| applied.narrowed || !applied.abort_tasks_of.is_empty()) {
                    self.narrowing.insert(task, version);
                }
                for (told, what) in applied.unit_attentions {
                    self.raise(what, told);
                }
                self.server.abort_tasks_of(now, &applied.abort_tasks_of);
                self.collect();
                self.server.install_state(now, version, self.truth.clone());
                ProposalOutcome::Committed { version }
            }
        }
    }

    /// The store: does what an I/O action asks for, or fails it.
    fn perform(&mut self, action: Action, fail: bool) {
        let now = self.tick();
        let task = task_of(&action);
        if fail {
            return self.server.handle_io(now, task, IoDone::Failed(IoFailure::Hardware));
        }
        let mut own = Live {
            host: '-',
            lun: Lun::from_number(0).unwrap(),
            cdb: Vec::new(),
            data_out: Vec::new(),
            read: Vec::new(),
        };
        let live = match task {
            OWN_WORK => &mut own,
            task => self.live.get_mut(&task.0).expect("I/O of a task that has ended"),
        };
        match action {
            Action::Read { extent, .. } => {
                live.read = self.store[range(extent)].to_vec();
                self.server.handle_io(now, task, IoDone::Read(&live.read.clone()));
            }
            Action::QueryAllocation { extent, .. } => {
                let status = LbaStatus { extent, provisioning: Provisioning::Mapped };
                self.server.handle_io(now, task, IoDone::Allocation(&[status]));
            }
            Action::Write { extent, data_offset, .. } => {
                let at = data_offset as usize;
                let len = extent.blocks as usize * BLOCK;
                self.store[range(extent)].copy_from_slice(&live.data_out[at..at + len]);
                self.server.handle_io(now, task, IoDone::Done);
            }
            Action::WriteAtomic { extent, .. } => {
                self.store[range(extent)].copy_from_slice(&live.data_out[..extent.blocks as usize * BLOCK]);
                self.server.handle_io(now, task, IoDone::Done);
            }
            Action::WriteBytes { extent, data, .. } => {
                self.store[range(extent)].copy_from_slice(&data);
                self.server.handle_io(now, task, IoDone::Done);
            }
            Action::WriteSame { extent, source, .. } => {
                let block = match source {
                    WriteSameSource::Zeroes => vec![0; BLOCK],
                    WriteSameSource::DataOutBlock => live.data_out[..BLOCK].to_vec(),
                };
                self.store[range(extent)].chunks_mut(BLOCK).for_each(|b| b.copy_from_slice(&block));
                self.server.handle_io(now, task, IoDone::Done);
            }
            Action::Unmap { extents, .. } => {
                extents.into_iter().for_each(|extent| self.store[range(extent)].fill(0));
                self.server.handle_io(now, task, IoDone::Done);
            }
            Action::Flush { .. } => self.server.handle_io(now, task, IoDone::Done),
            other => panic!("not for the store: {other:?}"),
        }
    }
}

fn io_task(action: &Action) -> Option<TaskId> {
    match action {
        Action::Read { task, .. }
        | Action::Write { task, .. }
        | Action::WriteBytes { task, .. }
        | Action::WriteAtomic { task, .. }
        | Action::WriteSame { task, .. }
        | Action::Unmap { task, .. }
        | Action::Flush { task, .. }
        | Action::QueryAllocation { task, .. } => Some(*task),
        _ => None,
    }
}

fn is_io(action: &Action) -> bool {
    io_task(action).is_some()
}

fn task_of(io: &Action) -> TaskId {
    io_task(io).unwrap_or_else(|| panic!("not I/O: {io:?}"))
}

fn range(extent: Extent) -> std::ops::Range<usize> {
    extent.lba as usize * BLOCK..extent.end() as usize * BLOCK
}

fn bytes_of(completion: &Completion, read: &[u8]) -> Vec<u8> {
    match &completion.data_in {
        DataIn::None => Vec::new(),
        DataIn::Bytes(bytes) => bytes.clone(),
        DataIn::FromRead { offset, len } => read[*offset as usize..][..*len as usize].to_vec(),
    }
}
