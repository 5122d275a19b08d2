//! How threads speak to a worker: a queue and a wake-up.
//!
//! Invariants: messages of one sender arrive in order; a worker that waits is woken, one that is awake costs its senders
//! no system call; messages to a worker that has ended are dropped, which frees what they hold.

use std::any::Any;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use holdfast_scsi::device_server::TaskId;
use holdfast_scsi::nexus::Nexus;

use super::copies::Errand;
use super::inspection::Inspecting;
use super::installation::Installation;
use super::members::Visitor;
use crate::lu::{Finished, LogicalUnit, LuAnswer};

/// What a worker can be told.
pub(crate) enum Message {
    /// A socket that the acceptor took in, and on which portal.
    Accepted(TcpStream, usize),
    /// A connection that joins a session of this worker's.
    Join(Box<Visitor>),
    /// A command or function that this worker asked a logical unit for has ended.
    Finished(Finished),
    /// The agent's answer to a logical unit.
    LuAnswer(LuAnswer),
    /// Send a command of a copy to its unit.
    Copy(Box<Errand>),
    /// The command that this copy has under way is not wanted any more.
    CancelCopy(Arc<LogicalUnit>, TaskId),
    /// A new view.
    Install(Arc<Installation>),
    /// Tell of the sessions here, or end one.
    Inspect(Arc<Inspecting>),
    /// Some logical unit has begun to serve: try held commands again.
    Retry,
    /// End this connection's session: its nexus logs in anew elsewhere. Tell `waiting` when it has ended.
    EndSession { connection: u64, nexus: Nexus, waiting: SessionAddress },
    /// The older session of the nexus has ended; `connection` may start its own.
    SessionEnded { connection: u64, nexus: Nexus },
    /// For the interconnect.
    Interconnect(Box<dyn Any + Send>),
    /// Begin nothing new, end what is under way.
    Drain,
    /// End the loop.
    Stop,
}

/// Where a session lives: the worker and its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionAddress {
    pub(crate) worker: usize,
    pub(crate) connection: u64,
}

struct Slot {
    sender: mpsc::Sender<Message>,
    waker: mio::Waker,
    /// The worker has been told to look, and has not looked yet.
    signalled: AtomicBool,
    /// Connections that it has or is being given.
    connections: AtomicUsize,
}

/// The mailboxes of all workers. Cheap to clone.
#[derive(Clone)]
pub struct Mailboxes {
    slots: Arc<[Slot]>,
}

impl std::fmt::Debug for Mailboxes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mailboxes({})", self.slots.len())
    }
}

/// A worker's end.
pub(crate) struct Inbox {
    index: usize,
    receiver: mpsc::Receiver<Message>,
    mailboxes: Mailboxes,
}

impl Mailboxes {
    /// One for each waker.
    pub(crate) fn new(wakers: Vec<mio::Waker>) -> (Mailboxes, Vec<Inbox>) {
        let mut receivers = Vec::new();
        let slot = |waker| {
            let (sender, receiver) = mpsc::channel();
            receivers.push(receiver);
            Slot { sender, waker, signalled: AtomicBool::new(false), connections: AtomicUsize::new(0) }
        };
        let slots = wakers.into_iter().map(slot).collect();
        let mailboxes = Mailboxes { slots };
        let inbox = |(index, receiver)| Inbox { index, receiver, mailboxes: mailboxes.clone() };
        let inboxes = receivers.into_iter().enumerate().map(inbox).collect();
        (mailboxes, inboxes)
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.slots.len()
    }

    /// Hands something to the interconnect object of a worker, which gets it by `handle_message`.
    pub fn post_interconnect(&self, worker: usize, message: Box<dyn Any + Send>) {
        self.post(worker, Message::Interconnect(message));
    }

    pub(crate) fn post(&self, worker: usize, message: Message) {
        let Some(slot) = self.slots.get(worker) else { return };
        // An error means that the worker has ended, and with it all that could be told.
        if slot.sender.send(message).is_ok() && !slot.signalled.swap(true, Ordering::AcqRel) {
            let _ = slot.waker.wake();
        }
    }

    pub(crate) fn post_all(&self, mut message: impl FnMut() -> Message) {
        for worker in 0..self.slots.len() {
            self.post(worker, message());
        }
    }

    /// Counts a new connection to the worker that has the fewest, unless there are too many in all.
    pub(crate) fn place_connection(&self, connections_max: usize) -> Option<usize> {
        let count = |slot: &Slot| slot.connections.load(Ordering::Relaxed);
        if self.slots.iter().map(count).sum::<usize>() >= connections_max {
            return None;
        }
        let (worker, slot) = self.slots.iter().enumerate().min_by_key(|(_, slot)| count(slot))?;
        slot.connections.fetch_add(1, Ordering::Relaxed);
        Some(worker)
    }

    /// A connection goes from one worker to another.
    pub(crate) fn connection_moves(&self, from: usize, to: usize) {
        self.connection_gone(from);
        if let Some(slot) = self.slots.get(to) {
            slot.connections.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A connection of this worker is gone.
    pub(crate) fn connection_gone(&self, worker: usize) {
        if let Some(slot) = self.slots.get(worker) {
            slot.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Inbox {
    /// The worker begins to look: whoever posts from now on wakes it again.
    pub(crate) fn acknowledge(&self) {
        if let Some(slot) = self.mailboxes.slots.get(self.index) {
            slot.signalled.store(false, Ordering::Release);
        }
    }

    /// Asks to be woken although nothing new was posted: messages were left for the next turn.
    pub(crate) fn wake_again(&self) {
        if let Some(slot) = self.mailboxes.slots.get(self.index) {
            let _ = slot.waker.wake();
        }
    }

    pub(crate) fn next(&self) -> Option<Message> {
        self.receiver.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_where_fewest_are_and_no_further_than_the_bound() {
        let polls: Vec<_> = (0..2).map(|_| mio::Poll::new().unwrap()).collect();
        let wakers = polls.iter().map(|p| mio::Waker::new(p.registry(), mio::Token(0)).unwrap()).collect();
        let (mailboxes, _inboxes) = Mailboxes::new(wakers);
        assert_eq!(mailboxes.place_connection(3), Some(0));
        assert_eq!(mailboxes.place_connection(3), Some(1));
        assert_eq!(mailboxes.place_connection(3), Some(0));
        assert_eq!(mailboxes.place_connection(3), None);
        mailboxes.connection_gone(0);
        assert_eq!(mailboxes.place_connection(3), Some(0));
    }

    #[test]
    fn message_posted_after_the_acknowledgement_wakes_again() {
        let mut poll = mio::Poll::new().unwrap();
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
        let (mailboxes, inboxes) = Mailboxes::new(vec![waker]);
        let mut events = mio::Events::with_capacity(4);
        for _ in 0..3 {
            mailboxes.post(0, Message::Retry);
            mailboxes.post(0, Message::Retry);
            poll.poll(&mut events, None).unwrap();
            assert_eq!(events.iter().count(), 1);
            inboxes[0].acknowledge();
            assert_eq!(std::iter::from_fn(|| inboxes[0].next()).count(), 2);
        }
    }
}
