//! The full feature phase: which PDU goes where, in CmdSN order.
//!
//! Invariants: nothing is answered before its turn; a format error ends the session (RFC 7143 7.6), a PDU out of place
//! is rejected (7.9).

use super::link::Links;
use crate::event::{CloseReason, LinkId, SessionType, TaskManagementId, TaskTag, Violation};
use crate::limits;
use crate::negotiation::SessionParameters;
use crate::pdu::{
    Bhs, CommandNumbers, LogoutRequest, NopOut, RejectReason, TaskManagementRequest, TextRequest, opcode,
};
use crate::session::{Held, Order, Session};
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::vec::Vec;

/// The PDU at hand, after its header.
#[derive(Debug)]
pub(super) enum Incoming {
    /// Its data, if any, is of no use.
    Nothing,
    /// A command; its data is the task's.
    Command { tag: TaskTag, cmd_sn: u32 },
    /// Data of a task, to be taken or lost.
    DataOut { tag: TaskTag, take: bool },
    /// Another request; its data is gathered, up to so many bytes.
    Request { request: Request, immediate: bool, cmd_sn: u32, data_len_max: usize },
}

/// A request other than a command.
#[derive(Debug)]
pub(super) enum Request {
    Nop(NopOut, Vec<u8>),
    TaskManagement(TaskManagementRequest),
    Text(Bhs, TextRequest, Vec<u8>),
    Logout(LogoutRequest),
}

/// A normal or a discovery session's full feature phase, on all of its connections.
pub(super) struct FullFeature {
    pub(super) session: Session<(LinkId, Request)>,
    pub(super) parameters: SessionParameters,
    pub(super) session_type: SessionType,
    pub(super) target_name: Option<String>,
    /// Functions under way: the connection that each came on, and its tag.
    pub(super) functions: BTreeMap<TaskManagementId, (LinkId, u32)>,
    pub(super) next_function: u64,
    /// Immediate functions that wait for commands with lesser numbers, on whatever connection these come.
    pub(super) early_functions: Vec<(LinkId, TaskManagementRequest)>,
    /// Connections whose question after targets is with the shell, in its order.
    pub(super) asked_by: VecDeque<LinkId>,
}

/// What made the connection go on, or why it must end.
pub(super) type Outcome = Result<(), CloseReason>;

pub(super) fn violation(field: &'static str) -> CloseReason {
    CloseReason::ProtocolError(Violation::Header(field))
}

impl FullFeature {
    pub(super) fn new(
        session: Session<(LinkId, Request)>,
        parameters: SessionParameters,
        login: &crate::event::LoginRequest,
    ) -> Self {
        Self {
            session,
            parameters,
            session_type: login.session_type,
            target_name: login.target_name.clone(),
            functions: BTreeMap::new(),
            next_function: 0,
            early_functions: Vec::new(),
            asked_by: VecDeque::new(),
        }
    }

    pub(super) fn window(&self) -> (u32, u32) {
        (self.session.exp_cmd_sn(), self.session.max_cmd_sn())
    }

    pub(super) fn header<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>) -> Outcome {
        let bhs = link.receiver.bhs();
        link.scratch.clear();
        if bhs.additional_headers_len() > 0 && bhs.opcode() != opcode::SCSI_COMMAND {
            return Err(CloseReason::ProtocolError(Violation::AdditionalHeader));
        }
        link.incoming = self.incoming_of(link, &bhs)?;
        Ok(())
    }

    fn incoming_of<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        bhs: &Bhs,
    ) -> Result<Incoming, CloseReason> {
        let discovery = self.session_type == SessionType::Discovery;
        let (request, data_len_max) = match bhs.opcode() {
            opcode::SCSI_COMMAND if !discovery => return self.command_header(link, bhs),
            opcode::DATA_OUT if !discovery => return self.data_out_header(link, bhs),
            opcode::TASK_MANAGEMENT_REQUEST if !discovery => {
                (Request::TaskManagement(TaskManagementRequest::decode(bhs)), 0)
            }
            opcode::NOP_OUT => {
                let most = limits::PING_LEN_MAX.min(link.send_len as usize);
                (Request::Nop(NopOut::decode(bhs), Vec::new()), most)
            }
            opcode::TEXT_REQUEST => {
                // One byte more, so that a text that is too long is seen to be.
                let most = limits::TEXT_REQUEST_LEN_MAX + 1;
                (Request::Text(*bhs, TextRequest::decode(bhs), Vec::new()), most)
            }
            opcode::LOGOUT_REQUEST => match LogoutRequest::decode(bhs) {
                Ok(request) => (Request::Logout(request), 0),
                Err(error) => return Err(violation(error.0)),
            },
            opcode::SNACK_REQUEST => return Ok(self.reject(link, bhs, RejectReason::SnackReject)),
            opcode::LOGIN_REQUEST | opcode::DATA_OUT => {
                return Ok(self.reject(link, bhs, RejectReason::ProtocolError));
            }
            opcode::SCSI_COMMAND | opcode::TASK_MANAGEMENT_REQUEST => {
                // Refused, but its number is used.
                let numbers = CommandNumbers::of(bhs);
                if !numbers.immediate {
                    self.in_order(link, numbers.cmd_sn, Held::Void)?;
                }
                return Ok(self.reject(link, bhs, RejectReason::ProtocolError));
            }
            _ => return Ok(self.reject(link, bhs, RejectReason::CommandNotSupported)),
        };
        let numbers = CommandNumbers::of(bhs);
        if !numbers.immediate && self.session.order(numbers.cmd_sn) == Order::Ignored {
            return Ok(Incoming::Nothing);
        }
        Ok(Incoming::Request { request, immediate: numbers.immediate, cmd_sn: numbers.cmd_sn, data_len_max })
    }

    /// Rejects the PDU with this header; what follows of it is dropped.
    pub(super) fn reject<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        bhs: &Bhs,
        reason: RejectReason,
    ) -> Incoming {
        link.reject(bhs, reason, self.window());
        Incoming::Nothing
    }

    pub(super) fn data<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, bytes: &[u8]) {
        match link.incoming {
            Incoming::Nothing | Incoming::DataOut { take: false, .. } => {}
            Incoming::Command { tag, .. } | Incoming::DataOut { tag, take: true } => {
                if let Some(transfer) = self.session.task(tag).and_then(|task| task.transfer.as_mut()) {
                    transfer.take(bytes);
                }
            }
            Incoming::Request { data_len_max, .. } => link.gather(bytes, data_len_max),
        }
    }

    pub(super) fn end<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, intact: bool) -> Outcome {
        let incoming = core::mem::replace(&mut link.incoming, Incoming::Nothing);
        if !intact && !matches!(incoming, Incoming::Nothing) {
            let bhs = link.receiver.bhs();
            self.reject(link, &bhs, RejectReason::DataDigestError);
            // Data can be asked for again in vain at this level, but its task can fail alone; a lost request leaves a
            // gap in the numbering that only a new session closes.
            if !matches!(incoming, Incoming::DataOut { .. }) {
                return Err(CloseReason::DigestError);
            }
        }
        match incoming {
            Incoming::Nothing => Ok(()),
            Incoming::DataOut { tag, .. } => {
                self.data_out_end(link, tag, intact);
                Ok(())
            }
            Incoming::Command { tag, cmd_sn } => {
                let immediate = self.session.task(tag).is_none_or(|task| task.immediate);
                if immediate {
                    self.hand_on(link, tag);
                    return Ok(());
                }
                self.in_order(link, cmd_sn, Held::Command(tag))
            }
            Incoming::Request { mut request, immediate, cmd_sn, .. } => {
                let mut bytes = core::mem::size_of::<Request>();
                if let Request::Nop(_, data) | Request::Text(_, _, data) = &mut request {
                    *data = core::mem::take(&mut link.scratch);
                    bytes += data.capacity();
                }
                if immediate {
                    return self.request(link, request);
                }
                let id = link.id;
                self.in_order(link, cmd_sn, Held::Other((id, request), bytes))
            }
        }
    }

    /// Does what is due, or keeps it until it is.
    pub(super) fn in_order<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        cmd_sn: u32,
        held: Held<(LinkId, Request)>,
    ) -> Outcome {
        match self.session.order(cmd_sn) {
            Order::Ignored => Ok(()),
            Order::Early => {
                if self.session.hold(cmd_sn, held) {
                    Ok(())
                } else {
                    Err(CloseReason::ProtocolError(Violation::TooMuchHeld))
                }
            }
            Order::Due => {
                self.session.passed();
                self.turn(link, held)?;
                while let Some(held) = self.session.next_due() {
                    self.turn(link, held)?;
                }
                self.due_functions(link)
            }
        }
    }

    fn turn<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, held: Held<(LinkId, Request)>) -> Outcome {
        match held {
            Held::Command(tag) => {
                self.hand_on(link, tag);
                Ok(())
            }
            // What came on a connection that has left since is void.
            Held::Other((id, request), _) if link.select(id) => self.request(link, request),
            Held::Other(..) => Ok(()),
            Held::Void => Ok(()),
        }
    }

    fn request<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, request: Request) -> Outcome {
        match request {
            Request::Nop(pdu, data) => {
                self.nop_out(link, &pdu, &data);
                link.scratch = data;
                Ok(())
            }
            Request::TaskManagement(pdu) => self.task_management(link, &pdu),
            Request::Text(bhs, pdu, data) => {
                self.text_request(link, &bhs, &pdu, &data);
                link.scratch = data;
                Ok(())
            }
            Request::Logout(pdu) => self.logout(link, &pdu),
        }
    }
}
