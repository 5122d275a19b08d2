//! NOP-Out, task management, logout, and what the target says unasked: pings and Asynchronous Messages
//! (RFC 7143 11.5, 11.6, 11.9, 11.14, 11.15, 11.18, 11.19).

use super::full_feature::{FullFeature, Outcome};
use super::link::{Ending, Links};
use crate::event::{
    CloseReason, Event, LinkId, SessionType, TaskManagement, TaskManagementFunction, TaskManagementId,
    TaskManagementResponse,
};
use crate::limits;
use crate::pdu::{
    AsyncEvent, AsyncMessage, LogoutReason, LogoutRequest, LogoutResponse, LogoutResult, NopIn, NopOut,
    TAG_NONE, TaskManagementRequest, TaskManagementResponsePdu,
};
use crate::session::{Held, Order};
use crate::time::Instant;
use alloc::vec::Vec;

/// Codes of functions (RFC 7143 11.5.1, RFC 7144) that name a task.
const ABORT_TASK: u8 = 1;
const QUERY_TASK: u8 = 9;

impl FullFeature {
    pub(super) fn nop_out<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, pdu: &NopOut, data: &[u8]) {
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
    pub(super) fn ping<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, now: Instant) {
        link.ping_sent = Some(now);
        let ping = NopIn {
            initiator_task_tag: TAG_NONE,
            target_transfer_tag: self.session.next_transfer_tag(),
            numbers: link.peek_stat_sn(self.window()),
        };
        link.transmit.push(ping.encode(), &[]);
    }

    /// An immediate function also covers commands with lesser numbers that are still under way on other connections, so it
    /// waits for them (RFC 7143 11.5); ABORT TASK and QUERY TASK may be about just the one that is missing.
    pub(super) fn task_management<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        pdu: &TaskManagementRequest,
    ) -> Outcome {
        let several = link.open().count() > 1;
        let of_one_task = matches!(pdu.function, ABORT_TASK | QUERY_TASK);
        if several && pdu.numbers.immediate && !of_one_task && self.is_early(pdu) {
            if self.early_functions.len() >= limits::TASK_MANAGEMENT_MAX {
                self.function_answer(link, pdu, TaskManagementResponse::Rejected);
            } else {
                self.early_functions.push((link.id, *pdu));
            }
            return Ok(());
        }
        self.begin_function(link, pdu)
    }

    fn is_early(&self, pdu: &TaskManagementRequest) -> bool {
        let ahead = pdu.numbers.cmd_sn.wrapping_sub(self.session.exp_cmd_sn());
        let room = self.session.max_cmd_sn().wrapping_sub(self.session.exp_cmd_sn()).wrapping_add(1);
        (1..=room).contains(&ahead)
    }

    /// Begins the functions that waited for what has come now.
    pub(super) fn due_functions<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>) -> Outcome {
        while let Some(at) = self.early_functions.iter().position(|(_, pdu)| !self.is_early(pdu)) {
            let (id, pdu) = self.early_functions.remove(at);
            if link.select(id) {
                self.begin_function(link, &pdu)?;
            }
        }
        Ok(())
    }

    fn begin_function<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        pdu: &TaskManagementRequest,
    ) -> Outcome {
        let sam_5 = self.parameters.protocol_level >= limits::PROTOCOL_LEVEL_SAM_5;
        let function = match pdu.function {
            ABORT_TASK => match self.abort_task(link, pdu)? {
                Some(function) => function,
                None => return Ok(()),
            },
            2 => TaskManagementFunction::AbortTaskSet,
            3 => TaskManagementFunction::ClearAca,
            4 => TaskManagementFunction::ClearTaskSet,
            5 => TaskManagementFunction::LogicalUnitReset,
            6 => TaskManagementFunction::TargetWarmReset,
            7 => TaskManagementFunction::TargetColdReset,
            8 => {
                let refused = TaskManagementResponsePdu::REASSIGN_NOT_SUPPORTED;
                self.function_response(link, pdu.initiator_task_tag, refused, [0; 3]);
                return Ok(());
            }
            QUERY_TASK if sam_5 => match self.query_task(link, pdu) {
                Some(function) => function,
                None => return Ok(()),
            },
            10 if sam_5 => TaskManagementFunction::QueryTaskSet,
            11 if sam_5 => TaskManagementFunction::ItNexusReset,
            12 if sam_5 => TaskManagementFunction::QueryAsynchronousEvent,
            _ => {
                self.function_answer(link, pdu, TaskManagementResponse::NotSupported);
                return Ok(());
            }
        };
        if self.functions.len() >= limits::TASK_MANAGEMENT_MAX {
            self.function_answer(link, pdu, TaskManagementResponse::Rejected);
            return Ok(());
        }
        let id = self.next_function_id();
        self.functions.insert(id, (link.id, pdu.initiator_task_tag));
        link.events.push_back(Event::TaskManagement(TaskManagement { id, function, lun: pdu.lun }));
        Ok(())
    }

    fn next_function_id(&mut self) -> TaskManagementId {
        self.next_function += 1;
        TaskManagementId(self.next_function)
    }

    /// The task to abort, if it is one that the shell knows; all else is answered here (RFC 7143 11.5.1).
    fn abort_task<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        pdu: &TaskManagementRequest,
    ) -> Result<Option<TaskManagementFunction>, CloseReason> {
        let found = self.session.by_initiator_tag(pdu.referenced_task_tag);
        let response = match found.map(|task| (task.tag, task.pending.is_some(), task.lun == pdu.lun)) {
            Some((tag, false, true)) => return Ok(Some(TaskManagementFunction::AbortTask(tag))),
            Some((tag, true, true)) => {
                self.session.void(tag);
                TaskManagementResponse::Complete
            }
            Some((_, _, false)) => TaskManagementResponse::TaskDoesNotExist,
            None => return self.abort_missing(link, pdu).map(|()| None),
        };
        self.function_answer(link, pdu, response);
        Ok(None)
    }

    /// The task asked after, if it is one that the shell knows; all else is answered here. One that waits for its turn is there:
    /// an initiator that hears otherwise might send it again. One that never came is not (RFC 7144: function complete).
    fn query_task<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        pdu: &TaskManagementRequest,
    ) -> Option<TaskManagementFunction> {
        let found = self.session.by_initiator_tag(pdu.referenced_task_tag);
        let response = match found.filter(|task| task.lun == pdu.lun) {
            Some(task) if task.pending.is_none() => return Some(TaskManagementFunction::QueryTask(task.tag)),
            Some(_) => TaskManagementResponse::Succeeded([0; 3]),
            None => TaskManagementResponse::Complete,
        };
        self.function_answer(link, pdu, response);
        None
    }

    /// A command that is missing from the numbering counts as aborted; should it still come, it is dropped.
    /// What waited for it is due then.
    fn abort_missing<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, pdu: &TaskManagementRequest) -> Outcome {
        let before = pdu.numbers.cmd_sn.wrapping_sub(pdu.ref_cmd_sn);
        let missing = matches!(self.session.order(pdu.ref_cmd_sn), Order::Due | Order::Early);
        if !missing || before == 0 || before >= 1 << 31 {
            self.function_answer(link, pdu, TaskManagementResponse::TaskDoesNotExist);
            return Ok(());
        }
        self.function_answer(link, pdu, TaskManagementResponse::Complete);
        self.in_order(link, pdu.ref_cmd_sn, Held::Void)
    }

    fn function_answer<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        pdu: &TaskManagementRequest,
        response: TaskManagementResponse,
    ) {
        self.function_response(link, pdu.initiator_task_tag, response.code(), response.additional());
    }

    fn function_response<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        initiator_task_tag: u32,
        response: u8,
        additional: [u8; 3],
    ) {
        let numbers = link.take_stat_sn(self.window());
        let pdu = TaskManagementResponsePdu { response, additional, initiator_task_tag, numbers };
        link.transmit.push(pdu.encode(), &[]);
    }

    pub(super) fn task_management_answer<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        id: TaskManagementId,
        response: TaskManagementResponse,
    ) {
        if let Some((id, initiator_task_tag)) = self.functions.remove(&id)
            && link.select(id)
            && link.is_open()
        {
            self.function_response(link, initiator_task_tag, response.code(), response.additional());
        }
    }

    pub(super) fn logout<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, pdu: &LogoutRequest) -> Outcome {
        let named = link.open().find(|link| link.cid == pdu.cid).map(|link| link.id);
        let last = link.open().count() == 1;
        let result = match (pdu.reason, named) {
            (LogoutReason::CloseSession, _) => LogoutResult::Closed,
            (LogoutReason::CloseConnection, Some(_)) if last => LogoutResult::Closed,
            (LogoutReason::CloseConnection, Some(leaving)) => {
                let answer = (link.id, pdu.initiator_task_tag);
                self.end_link(link, leaving, Some(answer));
                return Ok(());
            }
            (LogoutReason::CloseConnection, None) => LogoutResult::CidNotFound,
            (LogoutReason::RemoveForRecovery, _) => LogoutResult::RecoveryNotSupported,
        };
        self.logout_response(link, pdu.initiator_task_tag, result);
        if result == LogoutResult::Closed { Err(CloseReason::Logout) } else { Ok(()) }
    }

    fn logout_response<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        initiator_task_tag: u32,
        result: LogoutResult,
    ) {
        let response = LogoutResponse {
            result,
            initiator_task_tag,
            numbers: link.take_stat_sn(self.window()),
            time_2_wait: self.parameters.default_time_2_wait,
            time_2_retain: self.parameters.default_time_2_retain,
        };
        link.transmit.push(response.encode(), &[]);
    }

    /// Takes one connection out of the session: its tasks are aborted, and only when they have ended the logout is answered, so
    /// that no write of theirs lands after it.
    pub(super) fn end_link<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        leaving: LinkId,
        answer: Option<(LinkId, u32)>,
    ) {
        let Some(leaving) = link.get_mut(leaving) else { return };
        leaving.ending = Ending::Tasks(answer);
        let leaving = leaving.id;
        let (known, unknown) = self.session.tasks_of(leaving);
        unknown.into_iter().for_each(|tag| self.session.void(tag));
        for tag in known {
            let Some(task) = self.session.task(tag) else { continue };
            let (lun, function) = (task.lun, TaskManagementFunction::AbortTask(tag));
            // Not entered among the functions: nobody is answered.
            let id = self.next_function_id();
            link.events.push_back(Event::TaskManagement(TaskManagement { id, function, lun }));
        }
        self.task_gone(link, leaving);
    }

    /// A task of this connection has ended: if it was the last one of a connection that leaves, that one has left.
    pub(super) fn task_gone<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, leaving: LinkId) {
        let Some(Ending::Tasks(answer)) = link.get(leaving).map(|it| &it.ending) else { return };
        let answer = *answer;
        if self.session.has_tasks_of(leaving) {
            return;
        }
        if let Some((id, initiator_task_tag)) = answer
            && link.select(id)
        {
            self.logout_response(link, initiator_task_tag, LogoutResult::Closed);
        }
        if let Some(leaving) = link.get_mut(leaving) {
            leaving.ending = Ending::Done;
        }
        link.events.push_back(Event::LinkEnded(leaving));
    }

    /// Asks for a logout on the connection at hand.
    pub(super) fn request_logout<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>, now: Instant, seconds: u16) {
        let numbers = link.take_stat_sn(self.window());
        let message = AsyncMessage { event: AsyncEvent::RequestLogout { seconds }, numbers };
        link.transmit.push(message.encode(), &[]);
        link.logout_by = Some(now.after_ms(u64::from(seconds) * 1000));
    }

    /// Tells on every connection that the session is about to be dropped. At error recovery level 0 there is nothing to reassign
    /// afterwards, so that Time2Retain is 0.
    pub(super) fn tell_dropped<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>) {
        if self.session_type == SessionType::Discovery {
            return;
        }
        let time_2_wait = self.parameters.default_time_2_wait;
        let event = AsyncEvent::DropSession { time_2_wait, time_2_retain: 0 };
        let open: Vec<LinkId> = link.all().filter(|link| link.is_open()).map(|link| link.id).collect();
        for id in open {
            if link.select(id) {
                let numbers = link.take_stat_sn(self.window());
                link.transmit.push(AsyncMessage { event, numbers }.encode(), &[]);
            }
        }
    }

    /// When time demands what, of which connection.
    pub(super) fn deadline<B: AsRef<[u8]>>(&self, links: &Links<B>) -> Option<(Instant, LinkId, Due)> {
        let of_link = |link: &super::link::Link<B>| {
            let options = link.options();
            let silence = if self.session_type == SessionType::Discovery {
                Some((link.last_heard.after_ms(options.discovery_idle_timeout_ms), Due::Silent))
            } else {
                match link.ping_sent {
                    Some(sent) => Some((sent.after_ms(options.ping_timeout_ms), Due::Silent)),
                    None if options.ping_interval_ms == 0 => None,
                    None => Some((link.last_heard.after_ms(options.ping_interval_ms), Due::Ping)),
                }
            };
            let logout = link.logout_by.map(|by| (by, Due::LogoutOverdue));
            let next = silence.into_iter().chain(logout).min_by_key(|(at, _)| *at);
            next.map(|(at, due)| (at, link.id, due))
        };
        links.open().filter_map(of_link).min_by_key(|(at, ..)| *at)
    }
}

/// What time demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Ping,
    Silent,
    LogoutOverdue,
}
