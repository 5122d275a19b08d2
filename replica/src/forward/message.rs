//! The fixed parts ("meta") of frames. All numbers are big endian.
//!
//! ```text
//! Hello           cluster id (16), from node (2), to node (2)
//! Command         waited ms (8), volume (16), nexus, attribute (1), data-out length (4),
//!                 Unit Attention id (8), ASC (1), ASCQ (1), CDB length (2), CDB; of a copy manager also its role (1):
//!                 0 part of a copy, 1 read by the ROD token (512) that follows, 2 deletion of it
//! TaskManagement  volume (16), nexus, function (1), token of ABORT TASK or QUERY TASK (8)
//! NexusLoss       nexus
//! Reply           status (1), id of the Unit Attention reported (8), transfer length (4), sense length (1), sense in
//!                 descriptor format
//! nexus           relative port (2), TransportID length (2), TransportID
//! ```
//!
//! Invariants: every byte of a meta is accounted for; a field that is out of range, or a flag that is not known, makes
//! the whole frame malformed.

use alloc::vec::Vec;

use holdfast_scsi::{
    copy::token::RodToken,
    device_server::CopyRole,
    nexus::{Nexus, RelativePort},
    sense::{AdditionalSense, Sense},
    status::Status,
    task_set::TaskAttribute,
    transport_id::TransportId,
    ua::UnitAttention,
};

use super::{Command, DataOut, Function, FunctionOutcome, Link, Reply, TaskManagement, clock::Echo};
use crate::{
    frame::{Frame, Header, Kind},
    ids::{ClusterId, NodeNumber, VolumeId},
    limits::CDB_LEN_MAX,
};

const FLAG_AWAITED: u16 = 1;
const FLAG_READ_ONLY: u16 = 2;
const FLAG_UNIT_ATTENTION: u16 = 4;
const FLAG_DATA: u16 = 8;
/// A copy manager sends it: its role follows the CDB.
const FLAG_COPY: u16 = 32;
/// Of a reply: the sense data goes on in descriptor format.
const FLAG_DESCRIPTOR_SENSE: u16 = 16;

pub(super) fn hello(link: &Link) -> Vec<u8> {
    let mut out = Vec::from(link.cluster.0);
    out.extend_from_slice(&link.me.get().to_be_bytes());
    out.extend_from_slice(&link.peer.get().to_be_bytes());
    out
}

/// True if the greeting comes from the link's peer and is meant for this node.
pub(super) fn hello_is_for(frame: &Frame, link: &Link) -> Option<bool> {
    let mut input = Input(&frame.meta);
    let cluster = ClusterId(input.array()?);
    let (from, to) = (input.node()?, input.node()?);
    input.end()?;
    Some(cluster == link.cluster && from == link.peer && to == link.me)
}

/// Header and meta of a command; its data travels beside them.
pub(super) fn command<B>(
    token: u64,
    sequence: u64,
    echo: Echo,
    command: &Command<B>,
) -> Option<(Header, Vec<u8>)> {
    let mut flags = 0;
    match &command.data {
        DataOut::None => {}
        DataOut::Ready(_) => flags |= FLAG_DATA,
        DataOut::Awaited => flags |= FLAG_AWAITED,
    }
    if command.read_only {
        flags |= FLAG_READ_ONLY;
    }
    let ua = command.unit_attention;
    if ua.is_some() {
        flags |= FLAG_UNIT_ATTENTION;
    }
    let ua = ua.unwrap_or(UnitAttention { id: 0, additional: AdditionalSense::new(0, 0) });
    let cdb_len = u16::try_from(command.cdb.len()).ok().filter(|len| usize::from(*len) <= CDB_LEN_MAX)?;
    let mut out = Vec::with_capacity(64 + command.nexus.initiator.as_bytes().len() + command.cdb.len());
    out.extend_from_slice(&echo.waited_ms.to_be_bytes());
    out.extend_from_slice(&command.volume.0);
    put_nexus(&mut out, &command.nexus);
    out.push(attribute_code(command.attribute));
    out.extend_from_slice(&command.data_out_len.to_be_bytes());
    out.extend_from_slice(&ua.id.to_be_bytes());
    out.extend_from_slice(&[ua.additional.asc, ua.additional.ascq]);
    out.extend_from_slice(&cdb_len.to_be_bytes());
    out.extend_from_slice(&command.cdb);
    if let Some(role) = &command.copy {
        flags |= FLAG_COPY;
        match role {
            CopyRole::Plain => out.push(0),
            CopyRole::Token(token) => {
                out.push(1);
                out.extend_from_slice(token.0.as_slice());
            }
            CopyRole::DeleteToken(token) => {
                out.push(2);
                out.extend_from_slice(token.0.as_slice());
            }
        }
    }
    let header = Header {
        flags,
        epoch: command.epoch,
        sequence,
        clock: echo.token,
        ..Header::new(Kind::Command, token)
    };
    Some((header, out))
}

/// The command of a frame, and what it says about its age.
pub(super) fn parse_command(frame: Frame) -> Option<(Command<Vec<u8>>, Echo)> {
    let Frame { header, meta, data } = frame;
    let mut input = Input(&meta);
    let waited_ms = input.u64()?;
    let volume = VolumeId(input.array()?);
    let nexus = input.nexus()?;
    let attribute = attribute_of(input.u8()?)?;
    let data_out_len = input.u32()?;
    let (ua_id, [asc, ascq]) = (input.u64()?, input.array()?);
    let cdb_len = usize::from(input.u16()?);
    let cdb = input.take(cdb_len).filter(|cdb| !cdb.is_empty() && cdb.len() <= CDB_LEN_MAX)?.to_vec();
    let flag = |flag| header.flags & flag != 0;
    let copy = match flag(FLAG_COPY).then(|| input.u8()) {
        None => None,
        Some(Some(0)) => Some(CopyRole::Plain),
        Some(Some(1)) => Some(CopyRole::Token(RodToken::from_bytes(&input.array()?))),
        Some(Some(2)) => Some(CopyRole::DeleteToken(RodToken::from_bytes(&input.array()?))),
        Some(_) => return None,
    };
    input.end()?;
    let data = match (flag(FLAG_DATA), flag(FLAG_AWAITED)) {
        (true, false) if data.len() <= usize::try_from(data_out_len).ok()? => DataOut::Ready(data),
        (false, true) if data.is_empty() => DataOut::Awaited,
        (false, false) if data.is_empty() => DataOut::None,
        _ => return None,
    };
    if header.flags & !(FLAG_DATA | FLAG_AWAITED | FLAG_READ_ONLY | FLAG_UNIT_ATTENTION | FLAG_COPY) != 0 {
        return None;
    }
    let unit_attention = flag(FLAG_UNIT_ATTENTION)
        .then_some(UnitAttention { id: ua_id, additional: AdditionalSense::new(asc, ascq) });
    let read_only = flag(FLAG_READ_ONLY);
    let epoch = header.epoch;
    let command =
        Command { volume, epoch, nexus, cdb, attribute, data_out_len, data, unit_attention, read_only, copy };
    Some((command, Echo { token: header.clock, waited_ms }))
}

pub(super) fn task_management(token: u64, sequence: u64, request: &TaskManagement) -> (Header, Vec<u8>) {
    let (code, referenced) = match request.function {
        Function::AbortTask(token) => (1, token),
        Function::AbortTaskSet => (2, 0),
        Function::ClearTaskSet => (3, 0),
        Function::LogicalUnitReset => (4, 0),
        Function::ClearAca => (5, 0),
        Function::ItNexusReset => (6, 0),
        Function::QueryTask(token) => (7, token),
        Function::QueryTaskSet => (8, 0),
    };
    let mut out = Vec::from(request.volume.0);
    put_nexus(&mut out, &request.nexus);
    out.push(code);
    out.extend_from_slice(&u64::to_be_bytes(referenced));
    (Header { epoch: request.epoch, sequence, ..Header::new(Kind::TaskManagement, token) }, out)
}

pub(super) fn parse_task_management(frame: &Frame) -> Option<TaskManagement> {
    let mut input = Input(&frame.meta);
    let volume = VolumeId(input.array()?);
    let nexus = input.nexus()?;
    let function = match (input.u8()?, input.u64()?) {
        (1, token) => Function::AbortTask(token),
        (2, 0) => Function::AbortTaskSet,
        (3, 0) => Function::ClearTaskSet,
        (4, 0) => Function::LogicalUnitReset,
        (5, 0) => Function::ClearAca,
        (6, 0) => Function::ItNexusReset,
        (7, token) => Function::QueryTask(token),
        (8, 0) => Function::QueryTaskSet,
        _ => return None,
    };
    input.end()?;
    Some(TaskManagement { volume, epoch: frame.header.epoch, nexus, function })
}

pub(super) fn nexus_loss(nexus: &Nexus) -> Vec<u8> {
    let mut out = Vec::new();
    put_nexus(&mut out, nexus);
    out
}

pub(super) fn parse_nexus_loss(frame: &Frame) -> Option<Nexus> {
    let mut input = Input(&frame.meta);
    let nexus = input.nexus()?;
    input.end()?;
    Some(nexus)
}

pub(super) fn reply<B>(token: u64, reply: &Reply<B>) -> (Header, Vec<u8>) {
    let mut flags = 0;
    if reply.data.is_some() {
        flags |= FLAG_DATA;
    }
    if reply.unit_attention_reported.is_some() {
        flags |= FLAG_UNIT_ATTENTION;
    }
    if reply.descriptor_sense {
        flags |= FLAG_DESCRIPTOR_SENSE;
    }
    let mut sense = [0; 64];
    let sense_len = reply.sense.map_or(0, |s| s.write_descriptor(&mut sense)).min(sense.len());
    let mut out = Vec::from([reply.status.code()]);
    out.extend_from_slice(&reply.unit_attention_reported.unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&reply.transfer_len.to_be_bytes());
    out.push(sense_len as u8);
    out.extend_from_slice(sense.get(..sense_len).unwrap_or_default());
    (Header { flags, ..Header::new(Kind::Reply, token) }, out)
}

pub(super) fn parse_reply(frame: Frame) -> Option<Reply<Vec<u8>>> {
    let mut input = Input(&frame.meta);
    let status = Status::from_code(input.u8()?)?;
    let ua_id = input.u64()?;
    let transfer_len = input.u32()?;
    let sense_len = usize::from(input.u8()?);
    let sense = match input.take(sense_len)? {
        [] => None,
        bytes => Some(Sense::parse(bytes)?),
    };
    input.end()?;
    let flags = frame.header.flags;
    let known = FLAG_DATA | FLAG_UNIT_ATTENTION | FLAG_DESCRIPTOR_SENSE;
    if flags & !known != 0 || (flags & FLAG_DATA == 0 && !frame.data.is_empty()) {
        return None;
    }
    let data = (flags & FLAG_DATA != 0).then_some(frame.data);
    let unit_attention_reported = (flags & FLAG_UNIT_ATTENTION != 0).then_some(ua_id);
    let descriptor_sense = flags & FLAG_DESCRIPTOR_SENSE != 0;
    Some(Reply { status, sense, descriptor_sense, data, transfer_len, unit_attention_reported })
}

pub(super) fn function_done(outcome: FunctionOutcome) -> [u8; 1] {
    [match outcome {
        FunctionOutcome::Complete => 0,
        FunctionOutcome::Rejected => 1,
        FunctionOutcome::TaskDoesNotExist => 2,
        FunctionOutcome::NotSupported => 5,
        FunctionOutcome::NotExecuted => 3,
        FunctionOutcome::Unknown => 4,
        FunctionOutcome::Succeeded => 6,
    }]
}

pub(super) fn parse_function_done(frame: &Frame) -> Option<FunctionOutcome> {
    Some(match frame.meta.as_slice() {
        [0] => FunctionOutcome::Complete,
        [1] => FunctionOutcome::Rejected,
        [2] => FunctionOutcome::TaskDoesNotExist,
        [5] => FunctionOutcome::NotSupported,
        [3] => FunctionOutcome::NotExecuted,
        [4] => FunctionOutcome::Unknown,
        [6] => FunctionOutcome::Succeeded,
        _ => return None,
    })
}

fn attribute_code(attribute: TaskAttribute) -> u8 {
    match attribute {
        TaskAttribute::Simple => 0,
        TaskAttribute::Ordered => 1,
        TaskAttribute::HeadOfQueue => 2,
        TaskAttribute::Aca => 3,
    }
}

fn attribute_of(code: u8) -> Option<TaskAttribute> {
    Some(match code {
        0 => TaskAttribute::Simple,
        1 => TaskAttribute::Ordered,
        2 => TaskAttribute::HeadOfQueue,
        3 => TaskAttribute::Aca,
        _ => return None,
    })
}

fn put_nexus(out: &mut Vec<u8>, nexus: &Nexus) {
    let id = nexus.initiator.as_bytes();
    out.extend_from_slice(&nexus.port.0.to_be_bytes());
    // A TransportID has at most 248 bytes.
    out.extend_from_slice(&(id.len() as u16).to_be_bytes());
    out.extend_from_slice(id);
}

/// What is left of a meta.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk().copied()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn node(&mut self) -> Option<NodeNumber> {
        NodeNumber::new(u32::from(self.u16()?))
    }

    fn nexus(&mut self) -> Option<Nexus> {
        let port = RelativePort(self.u16()?);
        let len = usize::from(self.u16()?);
        let bytes = self.take(len)?;
        let (initiator, taken) = TransportId::parse(bytes).ok()?;
        (taken == bytes.len() && port.0 != 0).then(|| Nexus::new(initiator, port))
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}
