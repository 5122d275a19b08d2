//! The parts of a connection that outlive its phases: receiver, transmit queue, events, status numbering.
//!
//! Invariant: every PDU that takes a StatSN gets the next one, in the order of sending.

use crate::config::{PortalConfig, PortalOptions};
use crate::event::Event;
use crate::limits;
use crate::pdu::{Bhs, Numbers, Reject, RejectReason};
use crate::receive::Receiver;
use crate::transmit::Transmit;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// See the module.
pub(super) struct Link<B> {
    pub(super) config: Arc<PortalConfig>,
    pub(super) receiver: Receiver,
    pub(super) transmit: Transmit<B>,
    pub(super) events: VecDeque<Event>,
    pub(super) stat_sn: u32,
    /// Data of the PDU at hand, where it is small and not a task's.
    pub(super) scratch: Vec<u8>,
    spare: Vec<Vec<u8>>,
}

impl<B: AsRef<[u8]>> Link<B> {
    pub(super) fn new(config: Arc<PortalConfig>) -> Self {
        let crc32c = config.options().crc32c;
        Self {
            config,
            receiver: Receiver::new(crc32c),
            transmit: Transmit::new(crc32c),
            events: VecDeque::new(),
            stat_sn: 1,
            scratch: Vec::new(),
            spare: Vec::new(),
        }
    }

    pub(super) fn options(&self) -> &PortalOptions {
        self.config.options()
    }

    /// Numbers for a PDU that takes a StatSN.
    pub(super) fn take_stat_sn(&mut self, (exp_cmd_sn, max_cmd_sn): (u32, u32)) -> Numbers {
        let numbers = self.peek_stat_sn((exp_cmd_sn, max_cmd_sn));
        self.stat_sn = self.stat_sn.wrapping_add(1);
        numbers
    }

    /// Numbers for a PDU that only tells the next StatSN.
    pub(super) fn peek_stat_sn(&self, (exp_cmd_sn, max_cmd_sn): (u32, u32)) -> Numbers {
        Numbers { stat_sn: self.stat_sn, exp_cmd_sn, max_cmd_sn }
    }

    /// Refuses the PDU with this header.
    pub(super) fn reject(&mut self, bhs: &Bhs, reason: RejectReason, window: (u32, u32)) {
        let numbers = self.take_stat_sn(window);
        self.transmit.push(Reject { reason, numbers }.encode(), &bhs.0);
    }

    /// Adds to the scratch data up to `len_max` bytes; what is beyond is dropped.
    pub(super) fn gather(&mut self, bytes: &[u8], len_max: usize) {
        let room = len_max.saturating_sub(self.scratch.len()).min(bytes.len());
        self.scratch.extend_from_slice(bytes.get(..room).unwrap_or_default());
    }

    /// An empty buffer.
    pub(super) fn spare_buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    pub(super) fn recycle(&mut self, mut buffer: Vec<u8>) {
        let useful = (1..=limits::SPARE_BUFFER_LEN_MAX).contains(&buffer.capacity());
        if useful && self.spare.len() < limits::SPARE_BUFFERS_MAX {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    pub(super) fn spare_bytes(&self) -> usize {
        self.spare.iter().map(Vec::capacity).sum::<usize>() + self.scratch.capacity()
    }
}
