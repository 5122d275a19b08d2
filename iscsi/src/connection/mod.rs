//! One iSCSI connection, target side, and the others of its session once they have joined it: the engine's face.
//!
//! A connection logs in on its own. One that joins a session is then taken in by the engine of that session's leading connection
//! ([`Connection::take_in`]), which speaks for all of them: commands are ordered and tasks are named in one place.
//!
//! Invariants: it only goes forward, from login through the full feature phase to its end; once ended it takes nothing
//! and says nothing more than what is queued; answers to what is no longer asked are ignored.

mod commands;
mod full_feature;
mod link;
mod login_phase;
mod requests;
mod text_exchange;

use crate::config::PortalConfig;
use crate::event::{
    CloseReason, Event, Join, LinkId, LoginAnswer, ScsiOutcome, SessionStart, TargetRecord, TaskManagementId,
    TaskManagementResponse, TaskTag,
};
use crate::limits;
use crate::login::status::LoginStatus;
use crate::login::{Login, Progress};
use crate::negotiation::SessionParameters;
use crate::receive::{Item, Unreadable};
use crate::session::Session;
use crate::time::Instant;
use crate::transmit::Digests;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use full_feature::FullFeature;
use link::{Ending, Links};
use login_phase::{LoginPhase, Next};
use requests::Due;

enum Phase {
    Login(Box<LoginPhase>),
    FullFeature(Box<FullFeature>),
    Closed,
}

/// One connection. `B` is the shell's buffer type for data-in.
pub struct Connection<B> {
    link: Links<B>,
    phase: Phase,
}

impl<B: AsRef<[u8]>> Connection<B> {
    /// A connection just accepted. `entropy` must be fresh and unpredictable: CHAP's challenge comes from it.
    #[must_use]
    pub fn new(config: Arc<PortalConfig>, now: Instant, entropy: [u8; 32]) -> Self {
        let deadline = now.after_ms(config.options().login_timeout_ms);
        let login = LoginPhase::new(Login::new(&entropy), deadline);
        Self { link: Links::new(config), phase: Phase::Login(Box::new(login)) }
    }

    /// Takes bytes of the stream, split anywhere. What they bring is in [`Self::poll_event`] and [`Self::segments`].
    pub fn handle_input(&mut self, now: Instant, bytes: &[u8]) {
        self.handle_input_of(LinkId::LEADING, now, bytes);
    }

    /// The same for any connection of the session.
    pub fn handle_input_of(&mut self, id: LinkId, now: Instant, bytes: &[u8]) {
        if !self.link.select(id) {
            return;
        }
        if let Phase::FullFeature(_) = &self.phase {
            self.link.last_heard = now;
            self.link.ping_sent = None;
        }
        let mut input = bytes;
        // What a request set in motion may have been on another connection.
        while !self.is_closed() && self.link.select(id) && matches!(self.link.ending, Ending::No) {
            let item = match self.link.receiver.next(&mut input) {
                Ok(Some(item)) => item,
                Ok(None) => return,
                Err(Unreadable::HeaderDigest) => return self.close(CloseReason::DigestError),
                Err(Unreadable::Violation(violation)) => {
                    return self.close(CloseReason::ProtocolError(violation));
                }
            };
            self.handle_item(now, item);
        }
    }

    fn handle_item(&mut self, now: Instant, item: Item<'_>) {
        let link = &mut self.link;
        let done = match (&mut self.phase, item) {
            (Phase::Closed, _) => Ok(Next::Stay),
            (Phase::Login(login), Item::Header) => login.header(link).map(|()| Next::Stay),
            (Phase::Login(_), Item::Data(bytes)) => {
                LoginPhase::data(link, bytes);
                Ok(Next::Stay)
            }
            (Phase::Login(login), Item::End { .. }) => login.end(link),
            (Phase::FullFeature(full), Item::Header) => full.header(link).map(|()| Next::Stay),
            (Phase::FullFeature(full), Item::Data(bytes)) => {
                full.data(link, bytes);
                Ok(Next::Stay)
            }
            (Phase::FullFeature(full), Item::End { intact }) => full.end(link, intact).map(|()| Next::Stay),
        };
        self.go_on(now, done);
    }

    fn go_on(&mut self, now: Instant, next: Result<Next, CloseReason>) {
        match next {
            Ok(Next::Stay) => {}
            Ok(Next::FullFeature(parameters)) => self.enter_full_feature(now, parameters),
            Err(reason) => self.close(reason),
        }
    }

    fn enter_full_feature(&mut self, now: Instant, parameters: SessionParameters) {
        let Phase::Login(phase) = &self.phase else { return };
        let (Some(leading), Some(identity)) = (phase.login.leading(), phase.login.identity()) else { return };
        let options = self.link.options();
        let session =
            Session::new(leading.numbers.cmd_sn, options.command_window, options.data_out_bytes_max);
        let full = FullFeature::new(session, parameters, identity);
        let digests = Digests { header: full.parameters.header_digest, data: full.parameters.data_digest };
        self.link.cid = identity.cid;
        self.link.send_len = full.parameters.send_data_segment_length;
        self.link.last_heard = now;
        self.link.transmit.digests = digests;
        self.link.receiver.digests = digests;
        self.link.receiver.data_len_max = full.parameters.recv_data_segment_length as usize;
        self.phase = Phase::FullFeature(Box::new(full));
    }

    fn login_progress(&mut self, now: Instant, progress: Option<Result<Progress, LoginStatus>>) {
        let (Phase::Login(phase), Some(progress)) = (&mut self.phase, progress) else { return };
        let next = phase.progress(&mut self.link, progress);
        self.go_on(now, next);
    }

    /// Answers [`Event::Login`].
    pub fn login_answer(&mut self, now: Instant, answer: LoginAnswer) {
        let Phase::Login(phase) = &mut self.phase else { return };
        let progress = phase.login.answer(self.link.config.options(), answer);
        self.login_progress(now, progress);
    }

    /// Answers [`Event::SessionStarting`].
    pub fn start_session(&mut self, now: Instant, start: SessionStart) {
        let Phase::Login(phase) = &mut self.phase else { return };
        if let SessionStart::Join { exp_cmd_sn, max_cmd_sn, .. } = start {
            phase.window = Some((exp_cmd_sn, max_cmd_sn));
        }
        let progress = phase.login.start(start);
        self.login_progress(now, progress);
    }

    /// Acts on time that passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.phase {
            Phase::Login(login) if login.deadline <= now => self.close(CloseReason::LoginTimeout),
            // Each turn answers one demand, or ends the session.
            Phase::FullFeature(full) => {
                while let Some((_, id, due)) = full.deadline(&self.link).filter(|(at, ..)| *at <= now) {
                    match due {
                        Due::Ping if self.link.select(id) => full.ping(&mut self.link, now),
                        Due::Ping => return,
                        Due::Silent => return self.close(CloseReason::Silent),
                        Due::LogoutOverdue => return self.drop_session(CloseReason::LogoutOverdue),
                    }
                }
            }
            Phase::Login(_) | Phase::Closed => {}
        }
    }

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Login(login) => Some(login.deadline),
            Phase::FullFeature(full) => full.deadline(&self.link).map(|(at, ..)| at),
            Phase::Closed => None,
        }
    }

    /// The next event. Drain it after every other call.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.link.events.pop_front()
    }

    /// Whether the shell should read from the socket: false while too much waits to be sent, and after the end.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.wants_input_of(LinkId::LEADING)
    }

    /// The same for any connection of the session.
    #[must_use]
    pub fn wants_input_of(&self, id: LinkId) -> bool {
        let ready = |link: &link::Link<B>| {
            matches!(link.ending, Ending::No) && link.transmit.len() < limits::TRANSMIT_QUEUE_BYTES_MAX
        };
        !self.is_closed() && self.link.get(id).is_some_and(ready)
    }

    /// Judges a login that wants to add the connection `cid` to this session. An older connection of that number ends first
    /// (connection reinstatement, RFC 7143 6.3.4): [`Join::Wait`], until [`Event::LinkEnded`] names it.
    pub fn join(&mut self, cid: u16) -> Join {
        let Phase::FullFeature(full) = &mut self.phase else { return Join::Ended };
        let (exp_cmd_sn, max_cmd_sn) = full.window();
        let same = self.link.all().find(|link| link.cid == cid && link.is_open()).map(|link| link.id);
        match same {
            Some(id) => {
                if self.link.open().any(|link| link.id == id) {
                    full.end_link(&mut self.link, id, None);
                }
                let ended = self.link.get(id).is_none_or(|link| !link.is_open());
                if ended { Join::Go { exp_cmd_sn, max_cmd_sn } } else { Join::Wait(id) }
            }
            None if self.link.open().count() >= full.parameters.max_connections as usize => Join::TooMany,
            None => Join::Go { exp_cmd_sn, max_cmd_sn },
        }
    }

    /// Takes in a connection that was started with [`SessionStart::Join`]; gives its name in this session, or nothing if either
    /// is not in the full feature phase.
    pub fn take_in(&mut self, joining: Connection<B>) -> Option<LinkId> {
        match (&self.phase, &joining.phase) {
            (Phase::FullFeature(_), Phase::FullFeature(_)) => Some(self.link.take_in(joining.link)),
            _ => None,
        }
    }

    /// Forgets a connection that has ended, once its socket is closed.
    pub fn forget_link(&mut self, id: LinkId) {
        if self.link.get(id).is_some_and(|link| !link.is_open()) {
            self.link.forget(id);
        }
    }

    /// Answers [`Event::SendTargets`].
    pub fn send_targets_answer(&mut self, targets: &[TargetRecord]) {
        if let Phase::FullFeature(full) = &mut self.phase {
            full.send_targets_answer(&mut self.link, targets);
        }
    }

    /// Ends a task with a response. A tag that is not in progress is ignored.
    pub fn complete(&mut self, tag: TaskTag, outcome: ScsiOutcome<B>) {
        if let Phase::FullFeature(full) = &mut self.phase {
            full.complete(&mut self.link, tag, outcome);
        }
    }

    /// Ends a task without a response (aborted). A tag that is not in progress is ignored.
    pub fn discard_task(&mut self, tag: TaskTag) {
        if let Phase::FullFeature(full) = &mut self.phase {
            full.discard(&mut self.link, tag);
        }
    }

    /// Answers [`Event::TaskManagement`].
    pub fn task_management_answer(&mut self, id: TaskManagementId, response: TaskManagementResponse) {
        if let Phase::FullFeature(full) = &mut self.phase {
            full.task_management_answer(&mut self.link, id, response);
        }
    }

    /// Asks the initiator to log out within `seconds` (Asynchronous Message, event 1); after that the connection is
    /// closed. For draining a node.
    pub fn request_logout(&mut self, now: Instant, seconds: u16) {
        if let Phase::FullFeature(full) = &mut self.phase {
            let open: Vec<LinkId> = self.link.open().map(|link| link.id).collect();
            for id in open {
                if self.link.select(id) {
                    full.request_logout(&mut self.link, now, seconds);
                }
            }
        }
    }

    /// Ends the session from our side: the initiator is told on each of its connections (Asynchronous Message, event 3) that it may come
    /// back after Time2Wait, and what is queued is still to be sent. [`Event::Closed`] follows. A discovery session, or a login
    /// that is under way, ends in silence.
    pub fn drop_session(&mut self, reason: CloseReason) {
        if let Phase::FullFeature(full) = &mut self.phase {
            full.tell_dropped(&mut self.link);
        }
        self.close(reason);
    }

    /// Ends the connection at once, in silence. [`Event::Closed`] follows. For session reinstatement, and for a socket
    /// that failed.
    pub fn close(&mut self, reason: CloseReason) {
        if !self.is_closed() {
            self.phase = Phase::Closed;
            self.link.events.push_back(Event::Closed(reason));
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// The bytes to send, in order, as slices for one vectored write; [`Self::advance`] after it.
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        self.segments_of(LinkId::LEADING)
    }

    /// The same for any connection of the session.
    pub fn segments_of(&self, id: LinkId) -> impl Iterator<Item = &[u8]> {
        self.link.get(id).into_iter().flat_map(|link| link.transmit.segments())
    }

    /// How many bytes there are to send.
    #[must_use]
    pub fn transmit_len(&self) -> usize {
        self.transmit_len_of(LinkId::LEADING)
    }

    /// The same for any connection of the session.
    #[must_use]
    pub fn transmit_len_of(&self, id: LinkId) -> usize {
        self.link.get(id).map_or(0, |link| link.transmit.len())
    }

    /// Tells that the first `bytes` of [`Self::segments`] were sent.
    pub fn advance(&mut self, bytes: usize) {
        self.advance_of(LinkId::LEADING, bytes);
    }

    /// The same for any connection of the session.
    pub fn advance_of(&mut self, id: LinkId, bytes: usize) {
        if let Some(link) = self.link.get_mut(id) {
            link.transmit.advance(bytes);
        }
    }

    /// Gives back a buffer that came with an event, for reuse.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.link.recycle(buffer);
    }

    /// What was agreed, in the full feature phase.
    #[must_use]
    pub fn parameters(&self) -> Option<&SessionParameters> {
        match &self.phase {
            Phase::FullFeature(full) => Some(&full.parameters),
            Phase::Login(_) | Phase::Closed => None,
        }
    }

    /// Bytes of the initiator's that are held here: parts of requests, data-out not yet handed on, spare buffers.
    /// Bounded by [`limits`] and the options; for watching and for tests.
    #[must_use]
    pub fn bytes_held(&self) -> usize {
        let phase = match &self.phase {
            Phase::Login(phase) => phase.login.bytes_held(),
            Phase::FullFeature(full) => full.session.bytes_held(),
            Phase::Closed => 0,
        };
        phase + self.link.all().map(link::Link::bytes_held).sum::<usize>()
    }
}
