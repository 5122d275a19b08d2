//! Login PDUs of a connection: takes them to [`Login`] and its answers to the wire.

use super::link::Links;
use crate::event::{CloseReason, Violation};
use crate::limits;
use crate::login::status::{LoginStatus, TARGET_MOVED_TEMPORARILY};
use crate::login::{Login, Progress, Reply};
use crate::negotiation::SessionParameters;
use crate::pdu::{Bhs, LoginRequestPdu, LoginResponsePdu, Numbers, Stage, opcode};
use crate::text;
use crate::time::Instant;

/// Makes MaxCmdSN less than ExpCmdSN - 1, so that the initiator ignores both (RFC 7143 4.2.2.1): a connection that joins a
/// session does not know that session's numbers before it has joined.
const UNKNOWN_WINDOW: u32 = 0_u32.wrapping_sub(1);

/// The login phase of a connection.
pub(super) struct LoginPhase {
    pub(super) login: Login,
    /// When patience ends.
    pub(super) deadline: Instant,
    /// Numbering of the session that is joined, once it is known.
    pub(super) window: Option<(u32, u32)>,
    pdu: Option<LoginRequestPdu>,
}

/// What the connection does next.
pub(super) enum Next {
    Stay,
    FullFeature(SessionParameters),
}

impl LoginPhase {
    pub(super) fn new(login: Login, deadline: Instant) -> Self {
        Self { login, deadline, window: None, pdu: None }
    }

    pub(super) fn header<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>) -> Result<(), CloseReason> {
        let bhs = link.receiver.bhs();
        if bhs.opcode() != opcode::LOGIN_REQUEST {
            return Err(CloseReason::ProtocolError(Violation::NotALogin));
        }
        if self.login.waits_for_shell() {
            return Err(CloseReason::ProtocolError(Violation::Pipelined));
        }
        link.scratch.clear();
        match LoginRequestPdu::decode(&bhs) {
            Ok(pdu) if bhs.additional_headers_len() == 0 && bhs.immediate() => self.pdu = Some(pdu),
            _ => return Err(self.refuse(link, LoginStatus::InitiatorError)),
        }
        Ok(())
    }

    pub(super) fn data<B: AsRef<[u8]>>(link: &mut Links<B>, bytes: &[u8]) {
        link.gather(bytes, limits::LOGIN_DATA_SEGMENT_LEN_MAX);
    }

    pub(super) fn end<B: AsRef<[u8]>>(&mut self, link: &mut Links<B>) -> Result<Next, CloseReason> {
        let Some(pdu) = self.pdu.take() else { return Ok(Next::Stay) };
        let progress = self.login.request(link.config.options(), &pdu, &link.scratch);
        self.progress(link, progress)
    }

    pub(super) fn progress<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        progress: Result<Progress, LoginStatus>,
    ) -> Result<Next, CloseReason> {
        match progress {
            Ok(Progress::Reply(reply)) => {
                self.send(link, &reply);
                Ok(Next::Stay)
            }
            Ok(Progress::Ask(event)) => {
                link.events.push_back(event);
                Ok(Next::Stay)
            }
            Ok(Progress::Finished(reply, parameters)) => {
                self.send(link, &reply);
                Ok(Next::FullFeature(parameters))
            }
            Ok(Progress::Moved { address, mut text }) => {
                // Without a group tag (RFC 7143 13.8): the address is where to ask, not what to find there.
                text::push(&mut text, "TargetAddress", &address);
                self.end_with(link, TARGET_MOVED_TEMPORARILY, &text);
                Err(CloseReason::Redirected)
            }
            Err(status) => Err(self.refuse(link, status)),
        }
    }

    fn numbers<B: AsRef<[u8]>>(&self, link: &mut Links<B>) -> Numbers {
        let (cmd_sn, tsih) = self.login.leading().map_or((0, 0), |pdu| (pdu.numbers.cmd_sn, pdu.tsih));
        let window = if tsih == 0 { link.options().command_window } else { UNKNOWN_WINDOW };
        let window = self.window.unwrap_or((cmd_sn, cmd_sn.wrapping_add(window).wrapping_sub(1)));
        link.take_stat_sn(window)
    }

    fn send<B: AsRef<[u8]>>(&self, link: &mut Links<B>, reply: &Reply) {
        let Some(leading) = self.login.leading() else { return };
        let response = LoginResponsePdu {
            current_stage: reply.current_stage,
            next_stage: reply.next_stage,
            isid: leading.isid,
            tsih: reply.tsih,
            initiator_task_tag: leading.initiator_task_tag,
            numbers: self.numbers(link),
            status: 0,
        };
        link.transmit.push(response.encode(), &reply.text);
    }

    fn refuse<B: AsRef<[u8]>>(&self, link: &mut Links<B>, status: LoginStatus) -> CloseReason {
        self.end_with(link, status.code(), &[]);
        CloseReason::LoginRefused(status)
    }

    /// The last response of a login that goes no further.
    fn end_with<B: AsRef<[u8]>>(&self, link: &mut Links<B>, status: u16, text: &[u8]) {
        let bhs: Bhs = link.receiver.bhs();
        let current_stage = self.login.leading().map_or(Stage::Security, |_| self.login.stage());
        let mut response = LoginResponsePdu {
            current_stage,
            next_stage: None,
            isid: [0; 6],
            tsih: 0,
            initiator_task_tag: bhs.initiator_task_tag(),
            numbers: self.numbers(link),
            status,
        };
        if let Some(leading) = self.login.leading() {
            response.isid = leading.isid;
            response.tsih = leading.tsih;
        }
        link.transmit.push(response.encode(), text);
    }
}
