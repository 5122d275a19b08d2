//! Text requests in the full feature phase (RFC 7143 11.10, 11.11): SendTargets, in pieces where it does not fit one PDU.
//!
//! Invariants: one exchange at a time; a request's text is bounded by [`limits::TEXT_REQUEST_LEN_MAX`]; no response is longer
//! than the initiator's MaxRecvDataSegmentLength.

use super::full_feature::FullFeature;
use super::link::Links;
use crate::discovery;
use crate::event::{Event, TargetRecord};
use crate::limits;
use crate::login;
use crate::negotiation;
use crate::pdu::{Bhs, RejectReason, TAG_NONE, TextRequest, TextResponse};
use crate::text;
use alloc::vec::Vec;

/// Where an exchange stands.
#[derive(Debug)]
pub(super) enum TextExchange {
    /// None is under way.
    Idle,
    /// More of the request is to come, under this tag.
    Gathering { initiator_task_tag: u32, target_transfer_tag: u32, text: Vec<u8> },
    /// The shell was asked; the answers to the other keys so far.
    Asked { initiator_task_tag: u32, last: bool, reply: Vec<u8> },
    /// The answer goes out in pieces.
    Sending { initiator_task_tag: u32, target_transfer_tag: u32, text: Vec<u8>, sent: usize },
}

impl TextExchange {
    pub(super) fn bytes_held(&self) -> usize {
        match self {
            Self::Idle => 0,
            Self::Gathering { text, .. } | Self::Sending { text, .. } => text.capacity(),
            Self::Asked { reply, .. } => reply.capacity(),
        }
    }
}

impl FullFeature {
    pub(super) fn text_request<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        bhs: &Bhs,
        pdu: &TextRequest,
        data: &[u8],
    ) {
        let tags = (pdu.initiator_task_tag, pdu.target_transfer_tag);
        let mut gathered = match core::mem::replace(&mut link.text, TextExchange::Idle) {
            // The shell's answer would find no question.
            asked @ TextExchange::Asked { .. } => {
                link.text = asked;
                self.reject(link, bhs, RejectReason::TaskInProgress);
                return;
            }
            TextExchange::Sending { initiator_task_tag, target_transfer_tag, text, sent }
                if tags == (initiator_task_tag, target_transfer_tag) && data.is_empty() =>
            {
                self.send_text(link, initiator_task_tag, text, sent, true);
                return;
            }
            TextExchange::Gathering { initiator_task_tag, target_transfer_tag, text }
                if tags == (initiator_task_tag, target_transfer_tag) =>
            {
                text
            }
            // A request without a tag starts anew, whatever was before.
            _ if pdu.target_transfer_tag == TAG_NONE => Vec::new(),
            _ => {
                self.reject(link, bhs, RejectReason::InvalidPduField);
                return;
            }
        };
        if gathered.len() + data.len() > limits::TEXT_REQUEST_LEN_MAX || (pdu.more && pdu.last) {
            self.reject(link, bhs, RejectReason::ProtocolError);
            return;
        }
        gathered.extend_from_slice(data);
        if pdu.more {
            self.ask_for_more(link, pdu.initiator_task_tag, &[], gathered);
            return;
        }
        self.whole_text(link, bhs, pdu, &gathered);
    }

    fn whole_text<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        bhs: &Bhs,
        pdu: &TextRequest,
        gathered: &[u8],
    ) {
        let Ok(pairs) = text::pairs(gathered) else {
            self.reject(link, bhs, RejectReason::ProtocolError);
            return;
        };
        let (mut reply, mut question) = (Vec::new(), None);
        for pair in &pairs {
            match pair.key {
                "SendTargets" => {
                    question = discovery::asked(pair.value, self.session_type, self.target_name.as_deref());
                    if question.is_none() {
                        text::push(&mut reply, pair.key, "Reject");
                    }
                }
                "InitiatorAlias" => {}
                // A declaration, which may come again at any time (RFC 7143 13.12): nothing is answered.
                negotiation::MAX_RECV_DATA_SEGMENT_LENGTH => match negotiation::segment_length(pair.value) {
                    Some(length) => link.send_len = length,
                    None => text::push(&mut reply, pair.key, "Reject"),
                },
                key if negotiation::is_known(key) || login::is_known(key) => {
                    text::push(&mut reply, key, "Reject")
                }
                key => text::push(&mut reply, key, "NotUnderstood"),
            }
        }
        match question {
            Some(question) => {
                let initiator_task_tag = pdu.initiator_task_tag;
                link.text = TextExchange::Asked { initiator_task_tag, last: pdu.last, reply };
                self.asked_by.push_back(link.id);
                link.events.push_back(Event::SendTargets(question));
            }
            None => self.send_text(link, pdu.initiator_task_tag, reply, 0, pdu.last),
        }
    }

    pub(super) fn send_targets_answer<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        targets: &[TargetRecord],
    ) {
        let Some(asker) = self.asked_by.pop_front() else { return };
        if !link.select(asker) {
            return;
        }
        match core::mem::replace(&mut link.text, TextExchange::Idle) {
            TextExchange::Asked { initiator_task_tag, last, mut reply } => {
                discovery::answer(targets, &mut reply);
                self.send_text(link, initiator_task_tag, reply, 0, last);
            }
            other => link.text = other,
        }
    }

    /// Sends the next piece of a text, and more of it when asked to go on.
    fn send_text<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        initiator_task_tag: u32,
        text: Vec<u8>,
        sent: usize,
        last: bool,
    ) {
        let rest = text.get(sent..).unwrap_or_default();
        let most = link.send_len as usize;
        let Some((piece, _)) = rest.split_at_checked(most).filter(|(_, rest)| !rest.is_empty()) else {
            if last {
                self.respond_text(link, initiator_task_tag, (true, false), TAG_NONE, rest);
            } else {
                self.ask_for_more(link, initiator_task_tag, rest, Vec::new());
            }
            return;
        };
        let target_transfer_tag = self.session.next_transfer_tag();
        self.respond_text(link, initiator_task_tag, (false, true), target_transfer_tag, piece);
        let sent = sent + piece.len();
        link.text = TextExchange::Sending { initiator_task_tag, target_transfer_tag, text, sent };
    }

    /// Answers with `data`, and lets the initiator go on with its request.
    fn ask_for_more<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        initiator_task_tag: u32,
        data: &[u8],
        text: Vec<u8>,
    ) {
        let target_transfer_tag = self.session.next_transfer_tag();
        self.respond_text(link, initiator_task_tag, (false, false), target_transfer_tag, data);
        link.text = TextExchange::Gathering { initiator_task_tag, target_transfer_tag, text };
    }

    fn respond_text<B: AsRef<[u8]>>(
        &mut self,
        link: &mut Links<B>,
        initiator_task_tag: u32,
        (last, more): (bool, bool),
        target_transfer_tag: u32,
        data: &[u8],
    ) {
        let numbers = link.take_stat_sn(self.window());
        let pdu = TextResponse { last, more, initiator_task_tag, target_transfer_tag, numbers };
        link.transmit.push(pdu.encode(), data);
    }
}
