//! One iSCSI session of the multipath host: login, commands, answers. Blocking until it is handed to the host, then not.
//!
//! Invariants: numbering is the engine's; a command's data is kept until its answer, so that an R2T can be served; what the
//! target says that is not understood ends the session, as it would a host's.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use holdfast_iscsi::{
    SessionParameters,
    initiator::{CommandRequest, Initiator, TargetPdu},
    pdu::{Stage, TAG_NONE},
};
use holdfast_tests::netns::spawner::{Namespace, Spawner};

use super::alua::{self, Access};

/// A node that does not take a connection within this is tried again.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// A login, and each command that finds out about a new path, is given up after this.
const LOGIN_MAX: Duration = Duration::from_secs(3);
/// Unit Attentions that a new nexus may find, at most.
const ATTENTIONS_MAX: usize = 8;

/// What is negotiated; lengths are RFC 7143's defaults, and one block fits into the command.
const PARAMETERS: SessionParameters = SessionParameters {
    header_digest: false,
    data_digest: false,
    send_data_segment_length: 8192,
    recv_data_segment_length: 8192,
    max_burst_length: 262_144,
    first_burst_length: 65_536,
    initial_r2t: true,
    immediate_data: true,
    max_outstanding_r2t: 1,
    default_time_2_wait: 2,
    default_time_2_retain: 0,
    max_connections: 1,
    protocol_level: 1,
};

/// Sense key, additional sense code and its qualifier.
pub(super) type SenseCode = (u8, u8, u8);

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) tag: u32,
    pub(super) status: u8,
    pub(super) sense: SenseCode,
    pub(super) data: Vec<u8>,
}

/// What came in.
#[derive(Debug)]
pub(super) enum Heard {
    Answer(Answer),
    /// A ping was answered, or something that needs nothing from the host.
    Life,
    /// The target wants the session to end.
    Leave,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) socket: TcpStream,
    engine: Initiator,
    outgoing: Vec<u8>,
    writes: HashMap<u32, Vec<u8>>,
    reads: HashMap<u32, Vec<u8>>,
    buffer: Vec<u8>,
    early: Vec<Heard>,
}

/// Where a path goes and as whom.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) portal: SocketAddr,
    pub(super) target: String,
    pub(super) initiator: String,
    pub(super) isid: u8,
    pub(super) units: u16,
    pub(super) namespace: Namespace,
}

/// What a new path knows of itself.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) session: Session,
    /// Number of its target port group.
    pub(super) group: u16,
    /// Each unit's groups.
    pub(super) groups: Vec<Vec<(u16, Access)>>,
}

impl Session {
    /// Logs in and finds out what a host wants to know of a path: that each unit is there, its port group, the groups' states.
    pub(super) fn discover(way: &Way, spawner: &Spawner) -> anyhow::Result<Found> {
        let portal = way.portal;
        let socket =
            spawner.inside(&way.namespace, move || TcpStream::connect_timeout(&portal, CONNECT_MAX))??;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(LOGIN_MAX))?;
        let mut engine = Initiator::default();
        engine.isid = [0x80, 0, 0, 0, 2, way.isid];
        let mut session = Session {
            socket,
            engine,
            outgoing: Vec::new(),
            writes: HashMap::new(),
            reads: HashMap::new(),
            buffer: vec![0; 64 << 10],
            early: Vec::new(),
        };
        session.login(way)?;
        let mut groups = Vec::new();
        for unit in 0..way.units {
            session.alone(unit, &alua::TEST_UNIT_READY, 0)?;
            groups.push(alua::groups(&session.alone(
                unit,
                &alua::report_target_port_groups(),
                alua::LEN,
            )?)?);
        }
        let group = alua::own_group(&session.alone(0, &alua::device_identification(), alua::LEN)?)?;
        session.socket.set_nonblocking(true)?;
        Ok(Found { session, group, groups })
    }

    fn login(&mut self, way: &Way) -> anyhow::Result<()> {
        let keys = [
            ("InitiatorName", way.initiator.as_str()),
            ("TargetName", &way.target),
            ("SessionType", "Normal"),
            ("InitialR2T", "Yes"),
            ("ImmediateData", "Yes"),
            ("iSCSIProtocolLevel", "2"),
        ];
        let request = self.engine.login(Stage::Operational, Some(Stage::FullFeature), &keys);
        self.socket.write_all(&request)?;
        let count = self.socket.read(&mut self.buffer)?;
        ensure!(count > 0, "the target closed the connection");
        let bytes = self.buffer[..count].to_vec();
        match self.engine.receive(&bytes).map_err(fault)?.as_slice() {
            [only] => match &only.pdu {
                TargetPdu::Login(response) if response.status == 0 => Ok(()),
                other => bail!("login: {other:?}"),
            },
            other => bail!("login: {} PDUs", other.len()),
        }
    }

    /// Runs a command to its end, through Unit Attentions.
    fn alone(&mut self, unit: u16, cdb: &[u8], len: u32) -> anyhow::Result<Vec<u8>> {
        for _ in 0..ATTENTIONS_MAX {
            let tag = self.submit(unit, cdb, None, len);
            self.socket.write_all(&std::mem::take(&mut self.outgoing))?;
            let answer = loop {
                if let Some(at) =
                    self.early.iter().position(|heard| matches!(heard, Heard::Answer(a) if a.tag == tag))
                {
                    let Heard::Answer(answer) = self.early.swap_remove(at) else { continue };
                    break answer;
                }
                self.receive()?;
                // Answers to pings.
                self.socket.write_all(&std::mem::take(&mut self.outgoing))?;
            };
            match (answer.status, answer.sense.0) {
                (0, _) => return Ok(answer.data),
                (2, 6) => {}
                _ => bail!("command {:#04x}: {answer:x?}", cdb[0]),
            }
        }
        bail!("more Unit Attentions than a new nexus can have")
    }

    /// Queues a command; its tag.
    pub(super) fn submit(&mut self, unit: u16, cdb: &[u8], data: Option<&[u8]>, read_len: u32) -> u32 {
        let [high, low] = unit.to_be_bytes();
        let request = CommandRequest {
            lun: [high, low, 0, 0, 0, 0, 0, 0],
            cdb,
            read: read_len > 0,
            data_out: data,
            expected_data_len: data.map_or(read_len, |data| data.len() as u32),
            immediate: false,
        };
        let (tag, bytes) = self.engine.command(&PARAMETERS, &request);
        self.outgoing.extend_from_slice(&bytes);
        match data {
            Some(data) => {
                self.writes.insert(tag, data.to_vec());
            }
            None => {
                self.reads.insert(tag, Vec::new());
            }
        }
        tag
    }

    /// Whether the target's command window takes one more.
    pub(super) fn window_open(&self) -> bool {
        self.engine.max_cmd_sn().wrapping_sub(self.engine.cmd_sn) < 1 << 31
    }

    /// Queues a ping.
    pub(super) fn ping(&mut self) {
        let (_, bytes) = self.engine.ping(true, &[]);
        self.outgoing.extend_from_slice(&bytes);
    }

    /// Sends what is queued, as far as the socket takes it.
    pub(super) fn send(&mut self) -> anyhow::Result<()> {
        while !self.outgoing.is_empty() {
            match self.socket.write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("sending"),
            }
        }
        Ok(())
    }

    /// Takes everything that has come.
    pub(super) fn hear(&mut self) -> anyhow::Result<Vec<Heard>> {
        loop {
            match self.receive() {
                Ok(()) => {}
                Err(error)
                    if error
                        .downcast_ref::<std::io::Error>()
                        .is_some_and(|error| error.kind() == ErrorKind::WouldBlock) =>
                {
                    return Ok(std::mem::take(&mut self.early));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads once.
    fn receive(&mut self) -> anyhow::Result<()> {
        let count = self.socket.read(&mut self.buffer)?;
        ensure!(count > 0, "the target closed the connection");
        for received in self.engine.receive(&self.buffer[..count]).map_err(fault)? {
            let heard = match received.pdu {
                TargetPdu::ScsiResponse(response) => {
                    let tag = response.initiator_task_tag;
                    self.writes.remove(&tag);
                    let data = self.reads.remove(&tag).unwrap_or_default();
                    let sense = alua::sense(&received.data);
                    Heard::Answer(Answer { tag, status: response.status, sense, data })
                }
                TargetPdu::DataIn(data_in) => {
                    let tag = data_in.initiator_task_tag;
                    let data = self.reads.get_mut(&tag).context("data of no command")?;
                    ensure!(data.len() == data_in.buffer_offset as usize, "data out of order");
                    data.extend_from_slice(&received.data);
                    let Some(status) = data_in.status else { continue };
                    let data = self.reads.remove(&tag).unwrap_or_default();
                    Heard::Answer(Answer { tag, status: status.status, sense: (0, 0, 0), data })
                }
                TargetPdu::ReadyToTransfer(r2t) => {
                    let data = self.writes.get(&r2t.initiator_task_tag).context("R2T of no command")?;
                    let segment = PARAMETERS.recv_data_segment_length as usize;
                    let bytes = self.engine.solicited(&r2t, data, segment);
                    self.outgoing.extend_from_slice(&bytes);
                    Heard::Life
                }
                TargetPdu::NopIn(nop) => {
                    if nop.target_transfer_tag != TAG_NONE {
                        let bytes = self.engine.pong(nop.target_transfer_tag);
                        self.outgoing.extend_from_slice(&bytes);
                    }
                    Heard::Life
                }
                // A logout is requested, or the connection ends: either way another path is to be used.
                TargetPdu::Async(_) => Heard::Leave,
                other => bail!("not expected: {other:?}"),
            };
            self.early.push(heard);
        }
        Ok(())
    }
}

fn fault(fault: holdfast_iscsi::initiator::Fault) -> anyhow::Error {
    anyhow::anyhow!("the target's stream: {fault:?}")
}
