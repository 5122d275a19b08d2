//! Logical units over a store that fails, or waits, on demand.

use std::io;
use std::sync::{Arc, Condvar, Mutex};

use holdfast_replica::epoch::Epoch;
use holdfast_replica::ids::{ClusterId, NodeNumber};
use holdfast_replica::superblock::Superblock;
use holdfast_scsi::alua::AluaState;
use holdfast_scsi::device_server::{LuConfig, PortGroup, TaskAttribute, TaskManagementFunction, Topology};
use holdfast_scsi::geometry::Geometry;
use holdfast_scsi::identity::{LuIdentity, LuProperties};
use holdfast_scsi::mode::ModeParameters;
use holdfast_scsi::nexus::{Nexus, RelativePort};
use holdfast_scsi::sense::{Sense, SenseKey, asc};
use holdfast_scsi::status::Status;
use holdfast_scsi::time::Instant;
use holdfast_scsi::transport_id::TransportId;

use super::*;
use crate::clock;
use crate::data_plane::mailbox::Inbox;
use crate::data_plane::router::{Bytes, CommandData, CommandFor, Reply};
use crate::store::replica::Replica;
use crate::store::{Durability, Run, Store, StoreError, Wait};
use crate::view::{ReservationView, Shared, VolumeId};
use crate::volume::Volume;

const EPOCH: Epoch = Epoch { generation: 0, number: 2 };
const BLOCKS: u64 = 4096;

/// What the store is to do.
#[derive(Debug, Default)]
struct Orders {
    no_space: bool,
    medium_error: bool,
    flush_fails: bool,
    /// I/O on the I/O threads waits while set.
    waits: bool,
    /// How many wait.
    waiting: usize,
    flushes: usize,
    durable_writes: usize,
}

#[derive(Debug, Default)]
struct Control {
    orders: Mutex<Orders>,
    changed: Condvar,
}

impl Control {
    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock().unwrap());
        self.changed.notify_all();
    }

    fn until_waiting(&self) {
        let mut orders = self.orders.lock().unwrap();
        while orders.waiting == 0 {
            orders = self.changed.wait(orders).unwrap();
        }
    }

    fn pass(&self) {
        let mut orders = self.orders.lock().unwrap();
        if orders.waits {
            orders.waiting += 1;
            self.changed.notify_all();
        }
        while orders.waits {
            orders = self.changed.wait(orders).unwrap();
        }
    }
}

/// Bytes in memory under orders.
#[derive(Debug)]
struct OrderedStore {
    bytes: Mutex<Vec<u8>>,
    control: Arc<Control>,
}

impl Store for OrderedStore {
    fn size(&self) -> u64 {
        BLOCKS * 512
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8], wait: Wait) -> Result<(), StoreError> {
        if wait == Wait::Never {
            return Err(StoreError::WouldBlock);
        }
        self.control.pass();
        if self.control.orders.lock().unwrap().medium_error {
            return Err(StoreError::Medium(io::Error::from_raw_os_error(5)));
        }
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..buffer.len()]);
        Ok(())
    }
    fn write_at(&self, offset: u64, data: &[u8], durability: Durability) -> Result<(), StoreError> {
        if durability == Durability::OnMedium {
            self.control.pass();
        }
        let mut orders = self.control.orders.lock().unwrap();
        if orders.no_space {
            return Err(StoreError::NoSpace);
        }
        orders.durable_writes += usize::from(durability == Durability::OnMedium);
        self.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn flush(&self) -> Result<(), StoreError> {
        self.control.pass();
        let mut orders = self.control.orders.lock().unwrap();
        orders.flushes += 1;
        if orders.flush_fails { Err(StoreError::Hardware(io::Error::from_raw_os_error(5))) } else { Ok(()) }
    }
    fn unmap(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.bytes.lock().unwrap()[offset as usize..][..len as usize].fill(0);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        self.unmap(offset, len)
    }
    fn allocation(&self, _offset: u64, len: u64, _runs_max: usize) -> Result<Vec<Run>, StoreError> {
        Ok(vec![Run { len, allocated: true }])
    }
    fn room(&self) -> Result<crate::store::Room, StoreError> {
        Ok(crate::store::Room { available_bytes: 1 << 40, used_bytes: self.size() })
    }

    fn grow(&self, _size: u64) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A unit, and the worker that asks it.
struct Bench {
    unit: Arc<LogicalUnit>,
    control: Arc<Control>,
    shared: Arc<Shared>,
    services: Services,
    /// What the agent is asked, and never answers by itself.
    _asked: agent::handle::Requests,
    inbox: Inbox,
    poll: mio::Poll,
    answers: Vec<Finished>,
    next: u64,
    execute_by: Instant,
}

impl Bench {
    fn new(write_cache: bool) -> Bench {
        let shared = Arc::new(Shared::default());
        shared.gate.extend(clock::now_ms() + 3_600_000);
        let control = Arc::new(Control::default());
        let id = VolumeId([1; 16]);
        let superblock = Superblock {
            cluster: ClusterId([1; 16]),
            volume: id,
            node: NodeNumber::new(1).unwrap(),
            block_size: 512,
            blocks: BLOCKS,
            sequence: 1,
            promised: EPOCH,
        };
        let bytes = Mutex::new(vec![0; BLOCKS as usize * 512]);
        let store = OrderedStore { bytes, control: Arc::clone(&control) };
        let replica = Replica::with_store(Box::new(store), superblock);
        let volume = Volume::new(id, Arc::clone(&shared));
        volume.open(EPOCH, Arc::new(replica));
        let poll = mio::Poll::new().unwrap();
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
        let (mailboxes, mut inboxes) = Mailboxes::new(vec![waker]);
        let (agent, asked) = agent::Handle::new();
        let config = LuConfig {
            properties: LuProperties {
                identity: LuIdentity { volume_uuid: id.0, revision: *b"0001" },
                geometry: Geometry::new(512, BLOCKS).unwrap(),
                physical_block_exponent: 0,
            },
            mode: ModeParameters::new(write_cache),
            read_only: false,
        };
        let unit = Arc::new(LogicalUnit::new(volume, config));
        let services = Services { io: IoThreads::start(2).unwrap(), mailboxes, agent };
        let group = PortGroup {
            id: 1,
            state: AluaState::ActiveOptimized,
            preferred: true,
            ports: vec![RelativePort(1)],
        };
        let topology = Topology {
            target_name: "iqn.2026-01.example:t".into(),
            groups: vec![group],
            ..Topology::default()
        };
        unit.install(&mut Driver::remote(&services), &ReservationView::default(), topology, &[]);
        Bench {
            unit,
            control,
            shared,
            services,
            _asked: asked,
            inbox: inboxes.remove(0),
            poll,
            answers: Vec::new(),
            next: 0,
            execute_by: Instant(u64::MAX),
        }
    }

    fn nexus() -> Nexus {
        Nexus::new(TransportId::sas([1; 8]), RelativePort(1))
    }

    fn requester(&mut self) -> Requester {
        self.next += 1;
        Requester { worker: 0, request: RequestName::Local(self.next) }
    }

    fn submit_under(&mut self, epoch: Epoch, cdb: &[u8], data: CommandData) -> TaskId {
        let by = self.requester();
        let data_out_len = match &data {
            CommandData::Ready(bytes) => bytes.len() as u32,
            CommandData::None => 0,
            CommandData::Awaited => 512,
        };
        let command = CommandFor {
            volume: self.unit.id(),
            epoch,
            nexus: Bench::nexus(),
            cdb: cdb.to_vec(),
            attribute: TaskAttribute::Simple,
            data_out_len,
            data,
            unit_attention: None,
            read_only: false,
            copy: None,
            execute_by: self.execute_by,
        };
        let mut driver = Driver { services: &self.services, local: Some((0, &mut self.answers)) };
        self.unit.command(&mut driver, by, &command)
    }

    fn submit(&mut self, cdb: &[u8], data: CommandData) -> TaskId {
        self.submit_under(EPOCH, cdb, data)
    }

    fn answer(&mut self) -> Answer {
        let mut events = mio::Events::with_capacity(1);
        loop {
            if !self.answers.is_empty() {
                return self.answers.remove(0).answer;
            }
            self.inbox.acknowledge();
            match self.inbox.next() {
                Some(Message::Finished(finished)) => return finished.answer,
                Some(_) => panic!("another message"),
                None => self.poll.poll(&mut events, None).unwrap(),
            }
        }
    }

    fn outcome(&mut self) -> Outcome {
        match self.answer() {
            Answer::Command(outcome) => outcome,
            Answer::Function(outcome) => panic!("{outcome:?}"),
        }
    }

    fn reply(&mut self) -> Reply {
        match self.outcome() {
            Outcome::Reply(reply) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn sense(&mut self) -> (SenseKey, holdfast_scsi::sense::AdditionalSense) {
        let Sense { key, additional, .. } = self.reply().sense.unwrap();
        (key, additional)
    }
}

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const WRITE_FUA: [u8; 10] = [0x2a, 8, 0, 0, 0, 0, 0, 0, 1, 0];
const SYNCHRONIZE: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn block(byte: u8) -> CommandData {
    CommandData::Ready(Bytes::new(vec![byte; 512]))
}

#[test]
fn write_is_durable_only_where_that_was_asked_for() {
    let mut cached = Bench::new(true);
    cached.submit(&WRITE, block(1));
    assert_eq!(cached.reply().status, Status::Good);
    assert_eq!(cached.control.orders.lock().unwrap().durable_writes, 0);
    cached.submit(&WRITE_FUA, block(2));
    assert_eq!(cached.reply().status, Status::Good);
    assert_eq!(cached.control.orders.lock().unwrap().durable_writes, 1);
    cached.submit(&SYNCHRONIZE, CommandData::None);
    assert_eq!(cached.reply().status, Status::Good);
    assert_eq!(cached.control.orders.lock().unwrap().flushes, 1);
    let mut through = Bench::new(false);
    through.submit(&WRITE, block(1));
    assert_eq!(through.reply().status, Status::Good);
    assert_eq!(through.control.orders.lock().unwrap().durable_writes, 1);
}

#[test]
fn failures_of_the_store_become_the_sense_of_the_standard() {
    let mut bench = Bench::new(true);
    bench.control.order(|o| o.no_space = true);
    bench.submit(&WRITE, block(1));
    assert_eq!(bench.sense(), (SenseKey::DataProtect, asc::SPACE_ALLOCATION_FAILED));
    bench.control.order(|o| o.medium_error = true);
    bench.submit(&READ, CommandData::None);
    assert_eq!(bench.sense().0, SenseKey::MediumError);
    bench.control.order(|o| o.flush_fails = true);
    bench.submit(&SYNCHRONIZE, CommandData::None);
    assert_eq!(bench.sense().0, SenseKey::HardwareError);
}

#[test]
fn command_of_another_epoch_is_not_executed() {
    let mut bench = Bench::new(true);
    for number in [1, 3] {
        bench.submit_under(Epoch { generation: 0, number }, &WRITE, block(9));
        assert!(matches!(bench.outcome(), Outcome::NotExecuted));
    }
    bench.submit(&READ, CommandData::None);
    assert_eq!(bench.reply().data.as_slice(), [0; 512]);
}

#[test]
fn without_a_lease_nothing_is_executed() {
    let mut bench = Bench::new(true);
    bench.shared.gate.close();
    bench.submit(&READ, CommandData::None);
    assert!(matches!(bench.outcome(), Outcome::NotExecuted));
}

#[test]
fn read_under_way_when_the_lease_lapses_is_not_answered() {
    let mut bench = Bench::new(true);
    bench.control.order(|o| o.waits = true);
    bench.submit(&READ, CommandData::None);
    bench.control.until_waiting();
    bench.shared.gate.close();
    bench.control.order(|o| o.waits = false);
    assert!(matches!(bench.outcome(), Outcome::NotExecuted));
}

#[test]
fn write_under_way_when_the_lease_lapses_is_unknown() {
    let mut bench = Bench::new(true);
    bench.control.order(|o| o.waits = true);
    bench.submit(&WRITE_FUA, block(3));
    bench.control.until_waiting();
    bench.shared.gate.close();
    bench.control.order(|o| o.waits = false);
    assert!(matches!(bench.outcome(), Outcome::Unknown));
}

#[test]
fn data_that_comes_after_the_lease_has_lapsed_is_not_written() {
    let mut bench = Bench::new(true);
    let task = bench.submit(&WRITE, CommandData::Awaited);
    bench.shared.gate.close();
    let mut driver = Driver { services: &bench.services, local: Some((0, &mut bench.answers)) };
    bench.unit.data_out(&mut driver, task, Bytes::new(vec![7; 512]));
    assert!(matches!(bench.outcome(), Outcome::NotExecuted));
    bench.shared.gate.extend(clock::now_ms() + 3_600_000);
    bench.submit(&READ, CommandData::None);
    assert_eq!(bench.reply().data.as_slice(), [0; 512]);
}

#[test]
fn write_that_is_too_old_changes_nothing() {
    let mut bench = Bench::new(true);
    bench.execute_by = Instant(clock::now_ms() - 1);
    bench.submit(&WRITE, block(7));
    assert!(matches!(bench.outcome(), Outcome::Unknown), "neither BUSY nor sent again");
    bench.execute_by = Instant(u64::MAX);
    let task = bench.submit(&WRITE, CommandData::Awaited);
    // Its time runs out while its data is on the way.
    bench.unit.lock().tasks.get_mut(&task).unwrap().execute_by = Instant(clock::now_ms() - 1);
    let mut driver = Driver { services: &bench.services, local: Some((0, &mut bench.answers)) };
    bench.unit.data_out(&mut driver, task, Bytes::new(vec![7; 512]));
    assert_eq!(bench.sense().0, SenseKey::AbortedCommand);
    bench.submit(&READ, CommandData::None);
    assert_eq!(bench.reply().data.as_slice(), [0; 512]);
}

#[test]
fn closed_unit_answers_every_task_for_what_is_known_of_it() {
    let mut bench = Bench::new(true);
    bench.control.order(|o| o.waits = true);
    bench.submit(&WRITE_FUA, block(3));
    bench.control.until_waiting();
    // Waits for the range that the write holds.
    bench.submit(&READ, CommandData::None);
    let mut driver = Driver { services: &bench.services, local: Some((0, &mut bench.answers)) };
    bench.unit.close(&mut driver, None);
    let outcomes = [bench.outcome(), bench.outcome()];
    assert_eq!(outcomes.iter().filter(|o| matches!(o, Outcome::Unknown)).count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(|o| matches!(o, Outcome::NotExecuted)).count(), 1, "{outcomes:?}");
    bench.control.order(|o| o.waits = false);
    bench.submit(&READ, CommandData::None);
    assert!(matches!(bench.outcome(), Outcome::NotExecuted));
}

#[test]
fn reset_waits_for_the_write_that_is_under_way() {
    let mut bench = Bench::new(true);
    bench.control.order(|o| o.waits = true);
    bench.submit(&WRITE_FUA, block(3));
    bench.control.until_waiting();
    let by = bench.requester();
    let nexus = Bench::nexus();
    let mut driver = Driver { services: &bench.services, local: Some((0, &mut bench.answers)) };
    bench.unit.task_management(&mut driver, by, EPOCH, &nexus, TaskManagementFunction::AbortTaskSet);
    assert!(
        bench.answers.iter().all(|f| matches!(f.answer, Answer::Command(_))),
        "not before the write has ended"
    );
    bench.control.order(|o| o.waits = false);
    let answers = [bench.answer(), bench.answer()];
    assert!(matches!(answers[0], Answer::Command(_)), "{answers:?}");
    assert!(matches!(answers[1], Answer::Function(LuFunctionOutcome::Complete)), "{answers:?}");
}

/// REGISTER of key 7.
fn register() -> (Vec<u8>, CommandData) {
    let mut list = vec![0; 24];
    list[15] = 7;
    (vec![0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], CommandData::Ready(Bytes::new(list)))
}

impl Bench {
    /// A PERSISTENT RESERVE OUT that is with the controllers.
    fn proposed(&mut self) -> TaskId {
        let (cdb, list) = register();
        let task = self.submit(&cdb, list);
        assert!(self.unit.lock().tasks.get(&task).unwrap().proposed);
        task
    }

    fn proposal_done(&mut self, task: TaskId, result: ProposalResult) {
        let mut driver = Driver { services: &self.services, local: Some((0, &mut self.answers)) };
        self.unit.proposal_done(&mut driver, task, result);
    }

    fn close(&mut self) {
        let mut driver = Driver { services: &self.services, local: Some((0, &mut self.answers)) };
        self.unit.close(&mut driver, None);
    }
}

fn committed(version: u64) -> ProposalResult {
    ProposalResult::Outcome { status: Status::Good, sense: None, version }
}

#[test]
fn what_the_cluster_agreed_on_is_answered_when_the_lease_is_back() {
    let mut bench = Bench::new(true);
    let task = bench.proposed();
    bench.shared.gate.close();
    // The unit knows its new state before it hears of the proposal.
    let view = ReservationView { version: 8, ..Default::default() };
    let topology =
        Topology { target_name: "iqn.2026-01.example:t".into(), groups: vec![], ..Topology::default() };
    let mut driver = Driver { services: &bench.services, local: Some((0, &mut bench.answers)) };
    bench.unit.install(&mut driver, &view, topology, &[]);
    bench.proposal_done(task, committed(8));
    assert!(bench.answers.is_empty(), "without a lease nothing is answered");
    bench.shared.gate.extend(clock::now_ms() + 3_600_000);
    let mut driver = Driver { services: &bench.services, local: Some((0, &mut bench.answers)) };
    bench.unit.tick(&mut driver);
    assert_eq!(bench.reply().status, Status::Good);
}

#[test]
fn unit_that_closes_answers_a_proposal_by_what_became_of_it() {
    for (result, executed) in [
        (committed(8), Some(true)),
        (ProposalResult::Unknown, Some(false)),
        (ProposalResult::StaleVersion, None),
        (ProposalResult::NotExecuted("no leader".into()), None),
        (ProposalResult::Outcome { status: Status::ReservationConflict, sense: None, version: 3 }, None),
    ] {
        let mut bench = Bench::new(true);
        let task = bench.proposed();
        bench.close();
        assert!(bench.answers.is_empty(), "its outcome is not known yet");
        bench.proposal_done(task, result);
        match (bench.outcome(), executed) {
            (Outcome::Reply(reply), Some(true)) => assert_eq!(reply.status, Status::Good),
            (Outcome::Unknown, Some(false)) | (Outcome::NotExecuted, None) => {}
            (other, _) => panic!("{other:?}"),
        }
        bench.proposal_done(task, committed(9));
        assert!(bench.answers.is_empty(), "once");
    }
}

#[test]
fn unit_that_closes_does_not_claim_a_mode_select_whose_cache_was_not_flushed() {
    let mut bench = Bench::new(true);
    let mut list = vec![0; 4 + 20];
    (list[4], list[5]) = (0x08, 0x12);
    let cdb = [0x15, 0x10, 0, 0, 24, 0];
    let task = bench.submit(&cdb, CommandData::Ready(Bytes::new(list)));
    assert!(bench.unit.lock().tasks.get(&task).unwrap().proposed);
    bench.close();
    bench.proposal_done(task, committed(8));
    assert!(matches!(bench.outcome(), Outcome::Unknown));
}
