//! What belongs to a session and not to one of its connections: command numbering, the task table, requests that
//! wait for their turn, and the memory that data-out may take (RFC 7143 4.2.2).
//!
//! Nothing here knows a connection, so that several can share a session.
//!
//! Invariants: MaxCmdSN never goes back and never lets in more than the window's commands; a request is handed on when its
//! CmdSN is due, once; a tag is never given twice; solicited data-out never exceeds its budget, and waits in order.

use crate::data_out::Transfer;
use crate::event::{Cdb, Command, LinkId, TaskTag};
use crate::limits;
use crate::pdu::TAG_NONE;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

/// A task in progress.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) tag: TaskTag,
    /// The connection that it came on, and is answered on (its allegiance, RFC 7143 4.2.2).
    pub(crate) link: LinkId,
    pub(crate) initiator_task_tag: u32,
    pub(crate) lun: [u8; 8],
    pub(crate) read: bool,
    pub(crate) write: bool,
    pub(crate) immediate: bool,
    pub(crate) expected_data_len: u32,
    pub(crate) bidirectional_read_len: u32,
    /// Until it was handed to the shell.
    pub(crate) pending: Option<PendingCommand>,
    /// Of a command that sends data.
    pub(crate) transfer: Option<Transfer>,
    /// Its share of the session's budget for solicited data.
    pub(crate) memory: Memory,
    /// Whether it takes a place in the window: handed on, and not immediate.
    pub(crate) counted: bool,
}

/// A task's share of the session's budget for solicited data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Nothing is solicited yet.
    Unasked,
    /// It waits for others to end.
    Waiting,
    /// So many bytes.
    Granted(u64),
}

/// What of a command is needed only to hand it on.
#[derive(Debug)]
pub(crate) struct PendingCommand {
    pub(crate) cdb: Cdb,
    pub(crate) attribute: crate::event::TaskAttribute,
    pub(crate) priority: u8,
}

impl Task {
    /// The command as the shell sees it, once.
    pub(crate) fn hand_on(&mut self, data: crate::event::DataState) -> Option<Command> {
        let PendingCommand { cdb, attribute, priority } = self.pending.take()?;
        Some(Command {
            tag: self.tag,
            initiator_task_tag: self.initiator_task_tag,
            lun: self.lun,
            cdb,
            attribute,
            priority,
            read: self.read,
            write: self.write,
            expected_data_len: self.expected_data_len,
            bidirectional_read_len: self.bidirectional_read_len,
            data_out_len: self.transfer.as_ref().map_or(0, Transfer::wanted),
            immediate: self.immediate,
            data,
        })
    }
}

/// What a CmdSN says about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// It is due.
    Due,
    /// Something before it is missing.
    Early,
    /// Outside the window, or there already: ignored in silence (RFC 7143 4.2.2.1).
    Ignored,
}

/// A request that came before its turn.
#[derive(Debug)]
pub(crate) enum Held<R> {
    Command(TaskTag),
    /// A request, and the bytes that it takes.
    Other(R, usize),
    /// Nothing is to be done, but the number is used.
    Void,
}

/// One session; `R` is a request other than a command.
#[derive(Debug)]
pub(crate) struct Session<R> {
    exp_cmd_sn: u32,
    window: u32,
    /// In boxes: the map moves its neighbours whenever one comes or goes.
    tasks: BTreeMap<TaskTag, Box<Task>>,
    by_initiator_tag: BTreeMap<u32, TaskTag>,
    held: BTreeMap<u32, Held<R>>,
    held_bytes: usize,
    immediate_tasks: usize,
    /// Handed-on commands in the numbering.
    numbered_tasks: u32,
    next_tag: u64,
    next_transfer_tag: u32,
    budget: u64,
    reserved: u64,
    waiting_for_memory: VecDeque<TaskTag>,
}

impl<R> Session<R> {
    pub(crate) fn new(cmd_sn: u32, window: u32, budget: u64) -> Self {
        Self {
            exp_cmd_sn: cmd_sn,
            window,
            tasks: BTreeMap::new(),
            by_initiator_tag: BTreeMap::new(),
            held: BTreeMap::new(),
            held_bytes: 0,
            immediate_tasks: 0,
            numbered_tasks: 0,
            next_tag: 0,
            next_transfer_tag: 0,
            budget,
            reserved: 0,
            waiting_for_memory: VecDeque::new(),
        }
    }

    pub(crate) fn exp_cmd_sn(&self) -> u32 {
        self.exp_cmd_sn
    }

    fn room(&self) -> u32 {
        self.window.saturating_sub(self.numbered_tasks)
    }

    pub(crate) fn max_cmd_sn(&self) -> u32 {
        self.exp_cmd_sn.wrapping_add(self.room()).wrapping_sub(1)
    }

    /// Judges the CmdSN of a request that is not immediate.
    pub(crate) fn order(&self, cmd_sn: u32) -> Order {
        let ahead = cmd_sn.wrapping_sub(self.exp_cmd_sn);
        if ahead >= self.room() || self.held.contains_key(&cmd_sn) {
            Order::Ignored
        } else if ahead == 0 {
            Order::Due
        } else {
            Order::Early
        }
    }

    /// The request that was due has come.
    pub(crate) fn passed(&mut self) {
        self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
    }

    /// Keeps an early request; false if that would be too much.
    pub(crate) fn hold(&mut self, cmd_sn: u32, held: Held<R>) -> bool {
        if let Held::Other(_, bytes) = &held {
            self.held_bytes += bytes;
        }
        self.held.insert(cmd_sn, held);
        self.held_bytes <= limits::HELD_REQUEST_BYTES_MAX
    }

    /// The request that is due now, if it came early; it then has passed.
    pub(crate) fn next_due(&mut self) -> Option<Held<R>> {
        let held = self.held.remove(&self.exp_cmd_sn)?;
        if let Held::Other(_, bytes) = &held {
            self.held_bytes -= bytes;
        }
        self.passed();
        Some(held)
    }

    /// Whether another immediate command may begin.
    pub(crate) fn admits_immediate(&self) -> bool {
        self.immediate_tasks < limits::IMMEDIATE_TASKS_MAX
    }

    pub(crate) fn tag_in_use(&self, initiator_task_tag: u32) -> bool {
        self.by_initiator_tag.contains_key(&initiator_task_tag)
    }

    pub(crate) fn next_tag(&mut self) -> TaskTag {
        self.next_tag += 1;
        TaskTag(self.next_tag)
    }

    /// A target transfer tag that is not the reserved one.
    pub(crate) fn next_transfer_tag(&mut self) -> u32 {
        self.next_transfer_tag = match self.next_transfer_tag.wrapping_add(1) {
            TAG_NONE => 0,
            tag => tag,
        };
        self.next_transfer_tag
    }

    /// Enters a task in the table.
    pub(crate) fn insert(&mut self, task: Task) {
        if task.immediate {
            self.immediate_tasks += 1;
        }
        self.by_initiator_tag.insert(task.initiator_task_tag, task.tag);
        self.tasks.insert(task.tag, Box::new(task));
    }

    /// A task's turn has come: one that is not immediate now takes the place in the window that its CmdSN left.
    pub(crate) fn count(&mut self, tag: TaskTag) {
        if let Some(task) = self.tasks.get_mut(&tag).filter(|task| !task.immediate && !task.counted) {
            task.counted = true;
            self.numbered_tasks += 1;
        }
    }

    /// Forgets an early command; its number stays used.
    pub(crate) fn void(&mut self, tag: TaskTag) {
        for held in self.held.values_mut() {
            if matches!(held, Held::Command(held) if *held == tag) {
                *held = Held::Void;
            }
        }
        self.remove(tag);
    }

    pub(crate) fn task(&mut self, tag: TaskTag) -> Option<&mut Task> {
        self.tasks.get_mut(&tag).map(Box::as_mut)
    }

    pub(crate) fn by_initiator_tag(&mut self, initiator_task_tag: u32) -> Option<&mut Task> {
        self.tasks.get_mut(self.by_initiator_tag.get(&initiator_task_tag)?).map(Box::as_mut)
    }

    /// Takes a task out of the table.
    pub(crate) fn remove(&mut self, tag: TaskTag) -> Option<Box<Task>> {
        let task = self.tasks.remove(&tag)?;
        self.by_initiator_tag.remove(&task.initiator_task_tag);
        if task.immediate {
            self.immediate_tasks = self.immediate_tasks.saturating_sub(1);
        }
        if task.counted {
            self.numbered_tasks = self.numbered_tasks.saturating_sub(1);
        }
        match task.memory {
            Memory::Unasked => {}
            Memory::Waiting => self.waiting_for_memory.retain(|waiting| *waiting != tag),
            Memory::Granted(bytes) => self.reserved = self.reserved.saturating_sub(bytes),
        }
        Some(task)
    }

    /// Whether a task may solicit: it has, or is given, memory for its whole data. If not it waits its turn;
    /// [`Self::next_with_memory`] tells when that has come.
    pub(crate) fn may_solicit(&mut self, tag: TaskTag) -> bool {
        match self.tasks.get(&tag).map(|task| task.memory) {
            Some(Memory::Granted(_)) => true,
            Some(Memory::Unasked) => {
                if self.waiting_for_memory.is_empty() && self.grant(tag) {
                    return true;
                }
                self.waiting_for_memory.push_back(tag);
                if let Some(task) = self.tasks.get_mut(&tag) {
                    task.memory = Memory::Waiting;
                }
                false
            }
            Some(Memory::Waiting) | None => false,
        }
    }

    /// The first waiting task, if there is memory for it now.
    pub(crate) fn next_with_memory(&mut self) -> Option<TaskTag> {
        let tag = *self.waiting_for_memory.front()?;
        if !self.grant(tag) {
            return None;
        }
        self.waiting_for_memory.pop_front()
    }

    fn grant(&mut self, tag: TaskTag) -> bool {
        let Some(task) = self.tasks.get_mut(&tag) else { return true };
        let Some(transfer) = &mut task.transfer else { return true };
        let wanted = u64::from(transfer.wanted());
        if self.reserved.saturating_add(wanted) > self.budget {
            return false;
        }
        self.reserved += wanted;
        task.memory = Memory::Granted(wanted);
        transfer.reserve(transfer.wanted());
        true
    }

    /// Tasks of one connection: those that the shell knows, and those that it does not.
    pub(crate) fn tasks_of(&self, link: LinkId) -> (Vec<TaskTag>, Vec<TaskTag>) {
        let of_link = self.tasks.values().filter(|task| task.link == link);
        let (known, unknown): (Vec<_>, Vec<_>) = of_link.partition(|task| task.pending.is_none());
        let tags = |tasks: Vec<&Box<Task>>| tasks.into_iter().map(|task| task.tag).collect();
        (tags(known), tags(unknown))
    }

    /// Whether a connection has tasks still.
    pub(crate) fn has_tasks_of(&self, link: LinkId) -> bool {
        self.tasks.values().any(|task| task.link == link)
    }

    /// Bytes held for data-out and early requests: what the limits bound.
    pub(crate) fn bytes_held(&self) -> usize {
        let transfers = self.tasks.values().filter_map(|task| task.transfer.as_ref());
        self.held_bytes + transfers.map(Transfer::bytes_held).sum::<usize>()
    }
}
