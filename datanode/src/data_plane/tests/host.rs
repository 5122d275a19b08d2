//! A host with one iSCSI connection over a real socket, one request at a time.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use holdfast_iscsi::SessionParameters;
use holdfast_iscsi::initiator::{CommandRequest, Initiator, TargetPdu, keys_text};
use holdfast_iscsi::pdu::{DataInStatus, LogoutReason, LogoutRequest, ReadyToTransfer, Stage};
use holdfast_scsi::sense::{AdditionalSense, Sense};

use super::standalone::TARGET;

/// After this long without a byte the target is taken to hang, and the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A host.
pub(super) struct Host {
    socket: TcpStream,
    initiator: Initiator,
    tsih: u16,
    /// PDUs read but not looked at.
    pending: std::collections::VecDeque<(TargetPdu, Vec<u8>)>,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) status: u8,
    pub(super) sense: Option<Sense>,
    pub(super) data: Vec<u8>,
}

impl Ended {
    pub(super) fn additional(&self) -> Option<AdditionalSense> {
        self.sense.map(|sense| sense.additional)
    }
}

/// The connection was closed by the target.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closed;

impl Host {
    /// Logs in; the error is the login status.
    pub(super) fn log_in(portal: SocketAddr, name: &str, isid: u8) -> Result<Host, u16> {
        Host::connect(portal, name, isid, 0, 1, Initiator::default().cmd_sn)
    }

    /// Joins the session of `leading` as connection `cid`; the error is the login status.
    pub(super) fn join(leading: &Host, portal: SocketAddr, name: &str, cid: u16) -> Result<Host, u16> {
        Host::connect(portal, name, leading.initiator.isid[5], leading.tsih, cid, leading.initiator.cmd_sn)
    }

    fn connect(
        portal: SocketAddr,
        name: &str,
        isid: u8,
        tsih: u16,
        cid: u16,
        cmd_sn: u32,
    ) -> Result<Host, u16> {
        let socket = TcpStream::connect(portal).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut initiator = Initiator::default();
        initiator.isid = [0x80, 0, 0, 0, 0, isid];
        initiator.cmd_sn = cmd_sn;
        let mut host = Host { socket, initiator, tsih, pending: Default::default() };
        let mut keys = vec![("InitiatorName", name), ("TargetName", TARGET), ("SessionType", "Normal")];
        if tsih == 0 {
            keys.extend([("InitialR2T", "Yes"), ("MaxConnections", "3"), ("iSCSIProtocolLevel", "2")]);
        }
        let mut header = host.initiator.login_header(Stage::Operational, Some(Stage::FullFeature));
        (header.tsih, header.cid) = (tsih, cid);
        let request = host.initiator.frame(header.encode(), &[], &keys_text(&keys));
        host.send(&request);
        match host.next() {
            Ok((TargetPdu::Login(response), _)) if response.status == 0 => {
                host.tsih = response.tsih;
                Ok(host)
            }
            Ok((TargetPdu::Login(response), _)) => Err(response.status),
            other => panic!("{other:?}"),
        }
    }

    /// Logs out the connection with this number; the response code.
    pub(super) fn log_out(&mut self, cid: u16) -> u8 {
        let initiator_task_tag = self.initiator.take_tag();
        let numbers = self.initiator.numbers(true);
        let reason = LogoutReason::CloseConnection;
        let header = LogoutRequest { reason, initiator_task_tag, cid, numbers };
        let bytes = self.initiator.frame(header.encode(), &[], &[]);
        self.send(&bytes);
        match self.next().unwrap() {
            (TargetPdu::Logout(response), _) => response.encode().0[2],
            other => panic!("{other:?}"),
        }
    }

    /// CmdSN of the next request: connections of one session share it.
    pub(super) fn cmd_sn(&mut self) -> &mut u32 {
        &mut self.initiator.cmd_sn
    }

    /// Tag of the next request: connections of one session share those too.
    pub(super) fn use_tags_from(&mut self, tag: u32) {
        self.initiator.next_tag = tag;
    }

    /// The next PDU, which is not an answer to a command.
    pub(super) fn unasked(&mut self) -> TargetPdu {
        self.next().unwrap().0
    }

    /// Sends a command without waiting for its end; its tag.
    pub(super) fn submit(&mut self, lun: u8, cdb: &[u8], data_out: Option<&[u8]>, data_in_len: u32) -> u32 {
        let request = CommandRequest {
            lun: [0, lun, 0, 0, 0, 0, 0, 0],
            cdb,
            read: data_in_len > 0,
            data_out,
            expected_data_len: data_out.map_or(data_in_len, |data| data.len() as u32),
            immediate: false,
        };
        let (tag, bytes) = self.initiator.command(&parameters(), &request);
        self.send(&bytes);
        tag
    }

    /// Runs a command to its end.
    pub(super) fn command(
        &mut self,
        lun: u8,
        cdb: &[u8],
        data_out: Option<&[u8]>,
        data_in_len: u32,
    ) -> Ended {
        let tag = self.submit(lun, cdb, data_out, data_in_len);
        self.finish(tag, data_out.unwrap_or_default()).unwrap()
    }

    /// Waits for the end of a command, sending what is solicited.
    pub(super) fn finish(&mut self, tag: u32, data_out: &[u8]) -> Result<Ended, Closed> {
        let mut data = Vec::new();
        loop {
            let (pdu, segment) = self.next()?;
            match pdu {
                TargetPdu::ReadyToTransfer(r2t) if r2t.initiator_task_tag == tag => {
                    let bytes = self.initiator.solicited(&r2t, data_out, 8192);
                    self.send(&bytes);
                }
                TargetPdu::DataIn(part) if part.initiator_task_tag == tag => {
                    data.extend(segment);
                    if let Some(DataInStatus { status, .. }) = part.status {
                        return Ok(Ended { status, sense: None, data });
                    }
                }
                TargetPdu::ScsiResponse(response) if response.initiator_task_tag == tag => {
                    let sense = segment.get(2..).and_then(Sense::parse);
                    return Ok(Ended { status: response.status, sense, data });
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Sends a task management function and waits for its response code.
    pub(super) fn task_management(&mut self, function: u8, lun: u8, referenced: u32) -> u8 {
        self.ask(function, lun, referenced).0
    }

    /// The same, with the additional response information.
    pub(super) fn ask(&mut self, function: u8, lun: u8, referenced: u32) -> (u8, [u8; 3]) {
        let (_, bytes) = self.initiator.task_management(function, [0, lun, 0, 0, 0, 0, 0, 0], referenced);
        self.send(&bytes);
        match self.next().unwrap() {
            (TargetPdu::TaskManagement(response), _) => (response.response, response.additional),
            other => panic!("{other:?}"),
        }
    }

    /// Sends what was solicited.
    pub(super) fn send_solicited(&mut self, r2t: &ReadyToTransfer, data_out: &[u8]) {
        let bytes = self.initiator.solicited(r2t, data_out, 8192);
        self.send(&bytes);
    }

    /// TEST UNIT READY until no Unit Attention is left; those that were reported.
    pub(super) fn settle(&mut self, lun: u8) -> Vec<AdditionalSense> {
        let mut reported = Vec::new();
        loop {
            match self.command(lun, &[0; 6], None, 0) {
                Ended { status: 0, .. } => return reported,
                Ended { sense: Some(sense), .. } => reported.push(sense.additional),
                other => panic!("{other:?}"),
            }
        }
    }

    pub(super) fn write(&mut self, lun: u8, lba: u32, data: &[u8]) -> Ended {
        let blocks = (data.len() / 512) as u16;
        let [a, b, c, d] = lba.to_be_bytes();
        let [e, f] = blocks.to_be_bytes();
        self.command(lun, &[0x2a, 0, a, b, c, d, 0, e, f, 0], Some(data), 0)
    }

    pub(super) fn read(&mut self, lun: u8, lba: u32, blocks: u16) -> Ended {
        let [a, b, c, d] = lba.to_be_bytes();
        let [e, f] = blocks.to_be_bytes();
        self.command(lun, &[0x28, 0, a, b, c, d, 0, e, f, 0], None, u32::from(blocks) * 512)
    }

    /// PERSISTENT RESERVE OUT.
    pub(super) fn reserve_out(&mut self, lun: u8, action: u8, kind: u8, key: u64, action_key: u64) -> Ended {
        let mut list = [0; 24];
        list[..8].copy_from_slice(&key.to_be_bytes());
        list[8..16].copy_from_slice(&action_key.to_be_bytes());
        self.command(lun, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], Some(&list), 0)
    }

    /// Waits until the target has closed the connection.
    pub(super) fn wait_closed(&mut self) {
        while self.next().is_ok() {}
    }

    fn send(&mut self, bytes: &[u8]) {
        // A target that has closed shows when the answer is read.
        let _ = self.socket.write_all(bytes);
    }

    fn next(&mut self) -> Result<(TargetPdu, Vec<u8>), Closed> {
        let mut buffer = [0; 65536];
        loop {
            if let Some(pdu) = self.pending.pop_front() {
                return Ok(pdu);
            }
            let n = match self.socket.read(&mut buffer) {
                Ok(0) => return Err(Closed),
                Ok(n) => n,
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Err(Closed),
                Err(e) => panic!("the target is silent: {e}"),
            };
            let received = self.initiator.receive(&buffer[..n]).unwrap();
            self.pending.extend(received.into_iter().map(|r| (r.pdu, r.data)));
        }
    }
}

/// The least of what every session has.
fn parameters() -> SessionParameters {
    SessionParameters {
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
    }
}
