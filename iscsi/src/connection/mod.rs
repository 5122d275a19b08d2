//! One iSCSI connection, target side: the engine's face.
use crate::config::PortalConfig;
use crate::event::*;
use crate::negotiation::SessionParameters;
use crate::time::Instant;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::marker::PhantomData;

/// One connection. `B` is the shell's buffer type for data-in.
pub struct Connection<B> {
    _config: Arc<PortalConfig>,
    _b: PhantomData<B>,
}

impl<B: AsRef<[u8]>> Connection<B> {
    /// A connection just accepted. `entropy` must be fresh and unpredictable: CHAP's challenge comes from it.
    #[must_use]
    pub fn new(config: Arc<PortalConfig>, _now: Instant, _entropy: [u8; 32]) -> Self {
        Self { _config: config, _b: PhantomData }
    }

    /// Takes bytes of the stream, split anywhere.
    pub fn handle_input(&mut self, _now: Instant, _bytes: &[u8]) {}

    /// Acts on time that passed.
    pub fn handle_timeout(&mut self, _now: Instant) {}

    /// When `handle_timeout` is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// The next event. Drain it after every other call.
    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// Whether the shell should read from the socket.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        true
    }

    /// Answers [`Event::Login`].
    pub fn login_answer(&mut self, _now: Instant, _answer: LoginAnswer) {}

    /// Answers [`Event::SessionStarting`].
    pub fn start_session(&mut self, _now: Instant, _start: SessionStart) {}

    /// Answers [`Event::SendTargets`].
    pub fn send_targets_answer(&mut self, _now: Instant, _targets: &[TargetRecord]) {}

    /// Ends a task with a response. A tag that is not in progress is ignored.
    pub fn complete(&mut self, _now: Instant, _tag: TaskTag, _outcome: ScsiOutcome<B>) {}

    /// Ends a task without a response (aborted).
    pub fn discard_task(&mut self, _now: Instant, _tag: TaskTag) {}

    /// Answers [`Event::TaskManagement`].
    pub fn task_management_answer(
        &mut self,
        _now: Instant,
        _id: TaskManagementId,
        _r: TaskManagementResponse,
    ) {
    }

    /// Asks the initiator to log out within `seconds` (Async Message, event 1); the connection is closed after that.
    pub fn request_logout(&mut self, _now: Instant, _seconds: u16) {}

    /// Ends the connection at once. [`Event::Closed`] follows.
    pub fn close(&mut self, _reason: CloseReason) {}

    /// The bytes to send, in order, as slices for one vectored write.
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        core::iter::empty()
    }

    /// How many bytes there are to send.
    #[must_use]
    pub fn transmit_len(&self) -> usize {
        0
    }

    /// Tells that the first `bytes` of [`Self::segments`] were sent.
    pub fn advance(&mut self, _bytes: usize) {}

    /// Gives back a buffer that came with an event, for reuse.
    pub fn recycle(&mut self, _buffer: Vec<u8>) {}

    /// What was agreed, in the full feature phase.
    #[must_use]
    pub fn parameters(&self) -> Option<&SessionParameters> {
        None
    }
}
