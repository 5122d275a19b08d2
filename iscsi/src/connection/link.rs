//! One connection of a session: receiver, transmit queue, status numbering, and what it is in the middle of; and all of them
//! together.
//!
//! Invariants: every PDU that takes a StatSN gets the next one of its connection, in the order of sending; whoever speaks for a
//! task or a function first selects the connection that it came on.

use super::full_feature::Incoming;
use super::text_exchange::TextExchange;
use crate::config::{PortalConfig, PortalOptions};
use crate::event::{Event, LinkId};
use crate::limits;
use crate::pdu::{Bhs, Numbers, Reject, RejectReason};
use crate::receive::Receiver;
use crate::time::Instant;
use crate::transmit::Transmit;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// One connection.
pub(super) struct Link<B> {
    pub(super) id: LinkId,
    /// The initiator's number for it.
    pub(super) cid: u16,
    pub(super) config: Arc<PortalConfig>,
    pub(super) receiver: Receiver,
    pub(super) transmit: Transmit<B>,
    pub(super) stat_sn: u32,
    /// MaxRecvDataSegmentLength of the initiator on it.
    pub(super) send_len: u32,
    pub(super) text: TextExchange,
    pub(super) last_heard: Instant,
    pub(super) ping_sent: Option<Instant>,
    pub(super) logout_by: Option<Instant>,
    pub(super) incoming: Incoming,
    pub(super) ending: Ending,
    /// Data of the PDU at hand, where it is small and not a task's.
    pub(super) scratch: Vec<u8>,
    spare: Vec<Vec<u8>>,
}

/// Whether a connection is on its way out of a session that goes on.
#[derive(Debug)]
pub(super) enum Ending {
    /// No.
    No,
    /// Its tasks are ending; then this logout, with this tag on that connection, is answered.
    Tasks(Option<(LinkId, u32)>),
    /// It only sends what it still holds.
    Done,
}

/// All connections of a session: the one at hand, which it stands for, and the others.
pub(super) struct Links<B> {
    current: Link<B>,
    others: Vec<Link<B>>,
    pub(super) events: VecDeque<Event>,
}

impl<B> core::ops::Deref for Links<B> {
    type Target = Link<B>;
    fn deref(&self) -> &Link<B> {
        &self.current
    }
}

impl<B> core::ops::DerefMut for Links<B> {
    fn deref_mut(&mut self) -> &mut Link<B> {
        &mut self.current
    }
}

impl<B: AsRef<[u8]>> Links<B> {
    pub(super) fn new(config: Arc<PortalConfig>) -> Self {
        Self { current: Link::new(config), others: Vec::new(), events: VecDeque::new() }
    }

    /// Makes this connection the one at hand; false if it is gone.
    pub(super) fn select(&mut self, id: LinkId) -> bool {
        if self.current.id == id {
            return true;
        }
        match self.others.iter_mut().find(|link| link.id == id) {
            Some(link) => {
                core::mem::swap(&mut self.current, link);
                true
            }
            None => false,
        }
    }

    pub(super) fn get(&self, id: LinkId) -> Option<&Link<B>> {
        self.all().find(|link| link.id == id)
    }

    pub(super) fn get_mut(&mut self, id: LinkId) -> Option<&mut Link<B>> {
        self.select(id).then_some(&mut self.current)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Link<B>> {
        core::iter::once(&self.current).chain(&self.others)
    }

    /// Those that requests may come on.
    pub(super) fn open(&self) -> impl Iterator<Item = &Link<B>> {
        self.all().filter(|link| matches!(link.ending, Ending::No))
    }

    /// Takes in the connection of another one that has logged in; its new name.
    pub(super) fn take_in(&mut self, joining: Links<B>) -> LinkId {
        let mut link = joining.current;
        let last = self.all().map(|link| link.id.0).max().unwrap_or_default();
        link.id = LinkId(last.wrapping_add(1));
        let id = link.id;
        self.others.push(link);
        id
    }

    /// Forgets a connection that has sent all that it had to. The one at hand stays, for there must be one.
    pub(super) fn forget(&mut self, id: LinkId) {
        if self.current.id == id
            && let Some(other) = self.others.pop()
        {
            self.current = other;
        }
        self.others.retain(|link| link.id != id);
    }
}

impl<B: AsRef<[u8]>> Link<B> {
    fn new(config: Arc<PortalConfig>) -> Self {
        let crc32c = config.options().crc32c;
        Self {
            id: LinkId::LEADING,
            cid: 0,
            config,
            receiver: Receiver::new(crc32c),
            transmit: Transmit::new(crc32c),
            stat_sn: 1,
            send_len: limits::LOGIN_DATA_SEGMENT_LEN_MAX as u32,
            text: TextExchange::Idle,
            last_heard: Instant(0),
            ping_sent: None,
            logout_by: None,
            incoming: Incoming::Nothing,
            ending: Ending::No,
            scratch: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Whether requests may come on it, and answers go.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.ending, Ending::Done)
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

    pub(super) fn bytes_held(&self) -> usize {
        let spare = self.spare.iter().map(Vec::capacity).sum::<usize>();
        spare + self.scratch.capacity() + self.text.bytes_held()
    }
}
