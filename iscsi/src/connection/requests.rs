//! NOP-Out, task management, logout, and what the target says unasked: pings and Asynchronous Messages
//! (RFC 7143 11.5, 11.6, 11.9, 11.14, 11.15, 11.18, 11.19).

use super::full_feature::{FullFeature, Outcome};
use super::link::Link;
use crate::event::{
    CloseReason, Event, TaskManagement, TaskManagementFunction, TaskManagementId, TaskManagementResponse,
};
use crate::limits;
use crate::pdu::{
    AsyncEvent, AsyncMessage, LogoutReason, LogoutRequest, LogoutResponse, LogoutResult, NopIn, NopOut,
    TAG_NONE, TaskManagementRequest, TaskManagementResponsePdu,
};
use crate::session::{Held, Order};
use crate::time::Instant;

impl FullFeature {
    pub(super) fn nop_out<B: AsRef<[u8]>>(&mut self, link: &mut Link<B>, pdu: &NopOut, data: &[u8]) {
        // Without a tag it answers a ping, which its mere arrival has done.
        if pdu.initiator_task_tag == TAG_NONE {
            return;
        }
        let answer = NopIn {
            initiator_task_tag: pdu.initiator_task_tag,
            target_transfer_tag: TAG_NONE,
            numbers: link.take_stat_sn(self.window()),
        };
        link.transmit.push(answer.encode(), data);
    }

    /// Asks the initiator for a sign of life.
    pub(super) fn ping<B: AsRef<[u8]>>(&mut self, link: &mut Link<B>, now: Instant) {
        self.ping_sent = Some(now);
        let ping = NopIn {
            initiator_task_tag: TAG_NONE,
            target_transfer_tag: self.session.next_transfer_tag(),
            numbers: link.peek_stat_sn(self.window()),
        };
        link.transmit.push(ping.encode(), &[]);
    }

    pub(super) fn task_management<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Link<B>,
        pdu: &TaskManagementRequest,
    ) {
        let function = match pdu.function {
            1 => match self.abort_task(link, pdu) {
                Some(function) => function,
                None => return,
            },
            2 => TaskManagementFunction::AbortTaskSet,
            3 => TaskManagementFunction::ClearAca,
            4 => TaskManagementFunction::ClearTaskSet,
            5 => TaskManagementFunction::LogicalUnitReset,
            6 => TaskManagementFunction::TargetWarmReset,
            7 => TaskManagementFunction::TargetColdReset,
            8 => {
                self.function_answer(link, pdu, TaskManagementResponsePdu::REASSIGN_NOT_SUPPORTED);
                return;
            }
            _ => {
                self.function_answer(link, pdu, TaskManagementResponse::NotSupported.code());
                return;
            }
        };
        if self.functions.len() >= limits::TASK_MANAGEMENT_MAX {
            self.function_answer(link, pdu, TaskManagementResponse::Rejected.code());
            return;
        }
        self.next_function += 1;
        let id = TaskManagementId(self.next_function);
        self.functions.insert(id, pdu.initiator_task_tag);
        link.events.push_back(Event::TaskManagement(TaskManagement { id, function, lun: pdu.lun }));
    }

    /// The task to abort, if it is one that the shell knows; all else is answered here (RFC 7143 11.5.1).
    fn abort_task<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Link<B>,
        pdu: &TaskManagementRequest,
    ) -> Option<TaskManagementFunction> {
        let found = self.session.by_initiator_tag(pdu.referenced_task_tag);
        let response = match found.map(|task| (task.tag, task.pending.is_some(), task.lun == pdu.lun)) {
            Some((tag, false, true)) => return Some(TaskManagementFunction::AbortTask(tag)),
            Some((tag, true, true)) => {
                self.session.void(tag);
                TaskManagementResponse::Complete
            }
            Some((_, _, false)) => TaskManagementResponse::TaskDoesNotExist,
            None => self.abort_missing(pdu),
        };
        self.function_answer(link, pdu, response.code());
        None
    }

    /// A command that is missing from the numbering counts as aborted; should it still come, it is dropped.
    fn abort_missing(&mut self, pdu: &TaskManagementRequest) -> TaskManagementResponse {
        let before = pdu.numbers.cmd_sn.wrapping_sub(pdu.ref_cmd_sn);
        let missing = matches!(self.session.order(pdu.ref_cmd_sn), Order::Due | Order::Early);
        if !missing || before == 0 || before >= 1 << 31 {
            return TaskManagementResponse::TaskDoesNotExist;
        }
        self.session.hold(pdu.ref_cmd_sn, Held::Void);
        TaskManagementResponse::Complete
    }

    fn function_answer<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Link<B>,
        pdu: &TaskManagementRequest,
        response: u8,
    ) {
        self.function_response(link, pdu.initiator_task_tag, response);
    }

    fn function_response<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Link<B>,
        initiator_task_tag: u32,
        response: u8,
    ) {
        let numbers = link.take_stat_sn(self.window());
        let pdu = TaskManagementResponsePdu { response, initiator_task_tag, numbers };
        link.transmit.push(pdu.encode(), &[]);
    }

    pub(super) fn task_management_answer<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Link<B>,
        id: TaskManagementId,
        response: TaskManagementResponse,
    ) {
        if let Some(initiator_task_tag) = self.functions.remove(&id) {
            self.function_response(link, initiator_task_tag, response.code());
        }
    }

    pub(super) fn logout<B: AsRef<[u8]>>(&mut self, link: &mut Link<B>, pdu: &LogoutRequest) -> Outcome {
        let result = match pdu.reason {
            LogoutReason::CloseSession => LogoutResult::Closed,
            LogoutReason::CloseConnection if pdu.cid == self.cid => LogoutResult::Closed,
            LogoutReason::CloseConnection => LogoutResult::CidNotFound,
            LogoutReason::RemoveForRecovery => LogoutResult::RecoveryNotSupported,
        };
        let response = LogoutResponse {
            result,
            initiator_task_tag: pdu.initiator_task_tag,
            numbers: link.take_stat_sn(self.window()),
            time_2_wait: self.parameters.default_time_2_wait,
            time_2_retain: self.parameters.default_time_2_retain,
        };
        link.transmit.push(response.encode(), &[]);
        if result == LogoutResult::Closed { Err(CloseReason::Logout) } else { Ok(()) }
    }

    pub(super) fn request_logout<B: AsRef<[u8]>>(&mut self, link: &mut Link<B>, now: Instant, seconds: u16) {
        let numbers = link.take_stat_sn(self.window());
        let message = AsyncMessage { event: AsyncEvent::RequestLogout { seconds }, numbers };
        link.transmit.push(message.encode(), &[]);
        self.logout_by = Some(now.after_ms(u64::from(seconds) * 1000));
    }

    /// When and what time demands.
    pub(super) fn deadline<B: AsRef<[u8]>>(&self, link: &Link<B>) -> Option<(Instant, Due)> {
        let options = link.options();
        let silence = if self.session_type == crate::event::SessionType::Discovery {
            Some((self.last_heard.after_ms(options.discovery_idle_timeout_ms), Due::Silent))
        } else {
            match self.ping_sent {
                Some(sent) => Some((sent.after_ms(options.ping_timeout_ms), Due::Silent)),
                None if options.ping_interval_ms == 0 => None,
                None => Some((self.last_heard.after_ms(options.ping_interval_ms), Due::Ping)),
            }
        };
        let logout = self.logout_by.map(|by| (by, Due::LogoutOverdue));
        silence.into_iter().chain(logout).min_by_key(|(at, _)| *at)
    }
}

/// What time demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Ping,
    Silent,
    LogoutOverdue,
}
