//! An initiator that can do what a library never does: hold back the data of a WRITE, so that the command is slow for as long as a
//! test wants.
//!
//! Invariant: it goes by RFC 7143 in everything else; what it does not understand fails the test.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::TcpStream,
};

use anyhow::{Context, bail, ensure};
use holdfast_iscsi::{
    SessionParameters,
    initiator::{CommandRequest, Initiator, TargetPdu},
    pdu::{ReadyToTransfer, Stage},
};

use crate::patience::PATIENCE;

/// What is negotiated: all data is asked for. Lengths are RFC 7143's defaults.
const PARAMETERS: SessionParameters = SessionParameters {
    header_digest: false,
    data_digest: false,
    send_data_segment_length: 8192,
    recv_data_segment_length: 8192,
    max_burst_length: 262_144,
    first_burst_length: 65_536,
    initial_r2t: true,
    immediate_data: false,
    max_outstanding_r2t: 1,
    default_time_2_wait: 2,
    default_time_2_retain: 0,
    max_connections: 1,
    protocol_level: 1,
};

/// An initiator with one connection.
pub struct RawInitiator {
    socket: TcpStream,
    initiator: Initiator,
    pending: VecDeque<TargetPdu>,
}

/// A WRITE whose data the target asked for and has not got.
pub struct HeldWrite {
    r2t: ReadyToTransfer,
    data: Vec<u8>,
}

impl RawInitiator {
    /// Logs in over a connection.
    ///
    /// # Errors
    /// When the target refuses.
    pub fn login(socket: TcpStream, target: &str, name: &str, isid: u8) -> anyhow::Result<Self> {
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut initiator = Initiator::default();
        initiator.isid = [0x80, 0, 0, 0, 1, isid];
        let mut host = Self { socket, initiator, pending: VecDeque::new() };
        let keys = [
            ("InitiatorName", name),
            ("TargetName", target),
            ("SessionType", "Normal"),
            ("InitialR2T", "Yes"),
            ("ImmediateData", "No"),
            ("iSCSIProtocolLevel", "2"),
        ];
        let request = host.initiator.login(Stage::Operational, Some(Stage::FullFeature), &keys);
        host.socket.write_all(&request)?;
        match host.next()? {
            TargetPdu::Login(response) if response.status == 0 => Ok(host),
            other => bail!("login: {other:?}"),
        }
    }

    fn next(&mut self) -> anyhow::Result<TargetPdu> {
        let mut bytes = vec![0; 64 << 10];
        loop {
            if let Some(pdu) = self.pending.pop_front() {
                return Ok(pdu);
            }
            let count = self.socket.read(&mut bytes).context("no answer")?;
            ensure!(count > 0, "the target closed the connection");
            let received = self.initiator.receive(&bytes[..count]);
            let received = received.map_err(|fault| anyhow::anyhow!("the target's stream: {fault:?}"))?;
            self.pending.extend(received.into_iter().map(|received| received.pdu));
        }
    }

    fn submit(&mut self, lun: u8, cdb: &[u8], data: Option<&[u8]>) -> anyhow::Result<u32> {
        let request = CommandRequest {
            lun: [0, lun, 0, 0, 0, 0, 0, 0],
            cdb,
            read: false,
            data_out: data,
            expected_data_len: data.map_or(0, <[u8]>::len).try_into()?,
            immediate: false,
        };
        let (tag, bytes) = self.initiator.command(&PARAMETERS, &request);
        self.socket.write_all(&bytes)?;
        Ok(tag)
    }

    /// TEST UNIT READY until it is GOOD.
    ///
    /// # Errors
    /// When the Unit Attentions do not end.
    pub fn become_ready(&mut self, lun: u8) -> anyhow::Result<()> {
        for _ in 0..8 {
            if self.test_unit_ready(lun)? == 0 {
                return Ok(());
            }
        }
        bail!("never ready")
    }

    /// TEST UNIT READY; its status.
    ///
    /// # Errors
    /// When the session is gone, or something else was answered before (the status of an aborted command, say).
    pub fn test_unit_ready(&mut self, lun: u8) -> anyhow::Result<u8> {
        let tag = self.submit(lun, &[0; 6], None)?;
        match self.next()? {
            TargetPdu::ScsiResponse(response) if response.initiator_task_tag == tag => Ok(response.status),
            other => bail!("an answer to TEST UNIT READY alone was expected: {other:?}"),
        }
    }

    /// Runs a command with data to its end; its status. A CDB of more than 16 bytes goes with an additional header segment.
    ///
    /// # Errors
    /// When the session is gone, or something else is answered before.
    pub fn write(&mut self, lun: u8, cdb: &[u8], data: Vec<u8>) -> anyhow::Result<u8> {
        let tag = self.submit(lun, cdb, Some(&data))?;
        loop {
            match self.next()? {
                TargetPdu::ReadyToTransfer(r2t) if r2t.initiator_task_tag == tag => {
                    let segment = PARAMETERS.recv_data_segment_length as usize;
                    let bytes = self.initiator.solicited(&r2t, &data, segment);
                    self.socket.write_all(&bytes)?;
                }
                TargetPdu::ScsiResponse(response) if response.initiator_task_tag == tag => {
                    return Ok(response.status);
                }
                other => bail!("an answer to this command alone was expected: {other:?}"),
            }
        }
    }

    /// A task management function, on whatever task; its response code.
    ///
    /// # Errors
    /// When the session is gone, or something else is answered before.
    pub fn task_management(
        &mut self,
        function: u8,
        lun: u8,
        write: Option<&HeldWrite>,
    ) -> anyhow::Result<u8> {
        let referenced = write.map_or(u32::MAX, |write| write.r2t.initiator_task_tag);
        let (_, bytes) = self.initiator.task_management(function, [0, lun, 0, 0, 0, 0, 0, 0], referenced);
        self.socket.write_all(&bytes)?;
        match self.next()? {
            TargetPdu::TaskManagement(response) => Ok(response.response),
            other => bail!("an answer to a function expected: {other:?}"),
        }
    }

    /// PERSISTENT RESERVE OUT, which must be GOOD.
    ///
    /// # Errors
    /// When it is not.
    pub fn reserve_out(
        &mut self,
        lun: u8,
        action: u8,
        kind: u8,
        service_action_key: u64,
    ) -> anyhow::Result<()> {
        let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
        let mut list = vec![0; 24];
        list[8..16].copy_from_slice(&service_action_key.to_be_bytes());
        let status = self.write(lun, &cdb, list)?;
        ensure!(status == 0, "PERSISTENT RESERVE OUT: status {status:02x}");
        Ok(())
    }

    /// WRITE(10) of one block of zeroes; its status.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn write_of_one_block(&mut self, lun: u8, lba: u32) -> anyhow::Result<u8> {
        let mut cdb = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        cdb[2..6].copy_from_slice(&lba.to_be_bytes());
        self.write(lun, &cdb, vec![0; 512])
    }

    /// Begins WRITE(10) of blocks of 512 bytes, and returns once the LU's owner has it and waits for its data.
    ///
    /// # Errors
    /// When the target answers anything but R2T.
    pub fn begin_write(&mut self, lun: u8, lba: u32, data: Vec<u8>) -> anyhow::Result<HeldWrite> {
        let blocks = u16::try_from(data.len() / 512)?;
        let mut cdb = [0; 10];
        cdb[0] = 0x2a;
        cdb[2..6].copy_from_slice(&lba.to_be_bytes());
        cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
        let tag = self.submit(lun, &cdb, Some(&data))?;
        match self.next()? {
            TargetPdu::ReadyToTransfer(r2t) if r2t.initiator_task_tag == tag => {
                ensure!(r2t.desired_len as usize == data.len(), "R2T for {} bytes", r2t.desired_len);
                // The port asks for the data before the owner has the command. Commands reach it in order.
                ensure!(self.test_unit_ready(lun)? == 0, "not ready behind a write");
                Ok(HeldWrite { r2t, data })
            }
            other => bail!("R2T expected: {other:?}"),
        }
    }

    /// Sends the data that was held back.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn send_data(&mut self, write: &HeldWrite) -> anyhow::Result<()> {
        let bytes =
            self.initiator.solicited(&write.r2t, &write.data, PARAMETERS.recv_data_segment_length as usize);
        Ok(self.socket.write_all(&bytes)?)
    }

    /// Status of a WRITE whose data was sent.
    ///
    /// # Errors
    /// When the session is gone, or something else is answered.
    pub fn status(&mut self, write: &HeldWrite) -> anyhow::Result<u8> {
        match self.next()? {
            TargetPdu::ScsiResponse(response)
                if response.initiator_task_tag == write.r2t.initiator_task_tag =>
            {
                Ok(response.status)
            }
            other => bail!("a status expected: {other:?}"),
        }
    }
}
