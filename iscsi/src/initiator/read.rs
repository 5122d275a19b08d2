//! Reading what the target sends.

use super::Initiator;
use crate::pdu::{
    AsyncMessage, Bhs, DataIn, InvalidField, LoginResponsePdu, LogoutResponse, NopIn, Numbers,
    ReadyToTransfer, Reject, ScsiResponse, TAG_NONE, TaskManagementResponsePdu, TextResponse, opcode,
};
use crate::receive::Item;
use alloc::string::String;
use alloc::vec::Vec;

/// A PDU from the target.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TargetPdu {
    NopIn(NopIn),
    ScsiResponse(ScsiResponse),
    TaskManagement(TaskManagementResponsePdu),
    Login(LoginResponsePdu),
    Text(TextResponse),
    DataIn(DataIn),
    Logout(LogoutResponse),
    ReadyToTransfer(ReadyToTransfer),
    Async(AsyncMessage),
    Reject(Reject),
}

/// A PDU from the target with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The header, as sent.
    pub bhs: Bhs,
    /// The header, read.
    pub pdu: TargetPdu,
    /// The data segment.
    pub data: Vec<u8>,
}

impl Received {
    /// The data segment as `key=value` strings.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let strings = self.data.split(|&byte| byte == 0).filter(|string| !string.is_empty());
        strings.map(|string| String::from_utf8_lossy(string).into_owned()).collect()
    }
}

/// What is wrong with the target's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A header or data digest.
    Digest,
    /// A code without meaning.
    Field(&'static str),
    /// A StatSN out of order.
    StatSn,
}

impl From<InvalidField> for Fault {
    fn from(field: InvalidField) -> Self {
        Self::Field(field.0)
    }
}

impl Initiator {
    /// Reads all whole PDUs of `bytes`; a last part is kept.
    ///
    /// # Errors
    /// [`Fault`]: the target misbehaves.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<Vec<Received>, Fault> {
        let mut received = Vec::new();
        while let Some(item) = self.receiver.next(&mut bytes).map_err(|_| Fault::Digest)? {
            match item {
                Item::Header => self.data.clear(),
                Item::Data(data) => self.data.extend_from_slice(data),
                Item::End { intact: false } => return Err(Fault::Digest),
                Item::End { intact: true } => {
                    let bhs = self.receiver.bhs();
                    let pdu = self.read(&bhs)?;
                    received.push(Received { bhs, pdu, data: core::mem::take(&mut self.data) });
                }
            }
        }
        Ok(received)
    }

    fn read(&mut self, bhs: &Bhs) -> Result<TargetPdu, Fault> {
        let (pdu, numbers, takes_stat_sn) = match bhs.opcode() {
            opcode::NOP_IN => {
                let pdu = NopIn::decode(bhs);
                (TargetPdu::NopIn(pdu), pdu.numbers, pdu.initiator_task_tag != TAG_NONE)
            }
            opcode::SCSI_RESPONSE => {
                let pdu = ScsiResponse::decode(bhs)?;
                (TargetPdu::ScsiResponse(pdu), pdu.numbers, true)
            }
            opcode::TASK_MANAGEMENT_RESPONSE => {
                let pdu = TaskManagementResponsePdu::decode(bhs);
                (TargetPdu::TaskManagement(pdu), pdu.numbers, true)
            }
            opcode::LOGIN_RESPONSE => {
                let pdu = LoginResponsePdu::decode(bhs)?;
                if self.exp_stat_sn == 0 {
                    self.exp_stat_sn = pdu.numbers.stat_sn;
                }
                (TargetPdu::Login(pdu), pdu.numbers, true)
            }
            opcode::TEXT_RESPONSE => {
                let pdu = TextResponse::decode(bhs);
                (TargetPdu::Text(pdu), pdu.numbers, true)
            }
            opcode::DATA_IN => {
                let pdu = DataIn::decode(bhs);
                (TargetPdu::DataIn(pdu), pdu.numbers, pdu.status.is_some())
            }
            opcode::LOGOUT_RESPONSE => {
                let pdu = LogoutResponse::decode(bhs)?;
                (TargetPdu::Logout(pdu), pdu.numbers, true)
            }
            opcode::READY_TO_TRANSFER => {
                let pdu = ReadyToTransfer::decode(bhs);
                (TargetPdu::ReadyToTransfer(pdu), pdu.numbers, false)
            }
            opcode::ASYNC_MESSAGE => {
                let pdu = AsyncMessage::decode(bhs)?;
                (TargetPdu::Async(pdu), pdu.numbers, true)
            }
            opcode::REJECT => {
                let pdu = Reject::decode(bhs)?;
                (TargetPdu::Reject(pdu), pdu.numbers, true)
            }
            _ => return Err(Fault::Field("Opcode")),
        };
        self.note(numbers, takes_stat_sn)?;
        Ok(pdu)
    }

    fn note(&mut self, numbers: Numbers, takes_stat_sn: bool) -> Result<(), Fault> {
        // A Data-In without status carries no StatSN; ours tells the next one, so it must hold for every PDU.
        if numbers.stat_sn != self.exp_stat_sn {
            return Err(Fault::StatSn);
        }
        if takes_stat_sn {
            self.exp_stat_sn = self.exp_stat_sn.wrapping_add(1);
        }
        if numbers.max_cmd_sn.wrapping_sub(self.max_cmd_sn) < 1 << 31 {
            self.max_cmd_sn = numbers.max_cmd_sn;
        }
        Ok(())
    }
}
