//! One iSCSI connection: its socket, its protocol engine, and the session that it carries.
//!
//! Invariants: all that the engine has ready leaves in as few vectored writes as fit; nothing is read that the engine does
//! not want; a connection that is ending sends what it still holds, for a bounded time, and is then closed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, IoSlice, Read as _, Write as _};

use holdfast_iscsi::{Connection, Instant, SessionInfo, TaskManagementId, TaskTag};
use holdfast_scsi::nexus::Nexus;
use holdfast_scsi::port::NexusPort;
use mio::net::TcpStream;

use super::functions::Group;
use super::limits::{READS_PER_TURN_MAX, SEGMENTS_PER_WRITE_MAX, WRITES_PER_TURN_MAX};
use super::router::{Bytes, ForwardToken};
use crate::view::{NodeNumber, VolumeId};

/// How long an ending connection may take to send its last bytes, in milliseconds.
pub(super) const CLOSING_MS_MAX: u64 = 2_000;

/// A connection on its worker.
pub(super) struct Portal {
    pub(super) socket: TcpStream,
    pub(super) engine: Connection<Bytes>,
    /// Which of the node's portals it came in by.
    pub(super) portal: usize,
    /// Readable, as far as known: edges are reported once.
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The end of the stream has been announced: a short read is not the last one.
    pub(super) peer_closed: bool,
    /// Deadline under which it stands in the worker's list of timers, in boot-time milliseconds.
    pub(super) timer: Option<u64>,
    /// Ending: by when it is closed in any case.
    pub(super) closing_by: Option<u64>,
    pub(super) stage: Stage,
}

/// How far a connection is.
pub(super) enum Stage {
    /// Logging in, or a discovery session, or over.
    NoSession,
    /// Logged in; an older session of the nexus has to end first.
    Waiting(Box<Waiting>),
    /// A session that may send commands.
    Session(Box<Session>),
}

/// A session that is about to start.
pub(super) struct Waiting {
    pub(super) nexus: Nexus,
    pub(super) info: SessionInfo,
    /// By when it is refused, in boot-time milliseconds.
    pub(super) by_ms: u64,
}

/// A normal session: an I_T nexus.
pub(super) struct Session {
    pub(super) port: NexusPort<VolumeId>,
    /// The host that its initiator belongs to.
    pub(super) host: String,
    /// The initiator's name in lower case.
    pub(super) initiator: String,
    /// Commands under way, by the engine's names.
    pub(super) by_tag: HashMap<TaskTag, ForwardToken>,
    /// What waits until it can be executed, oldest first.
    pub(super) held: VecDeque<ForwardToken>,
    /// Target resets under way.
    pub(super) target_resets: HashMap<TaskManagementId, Group>,
    /// Volumes that were given commands here.
    pub(super) local: HashSet<VolumeId>,
    /// Nodes that were given commands.
    pub(super) remote: HashSet<NodeNumber>,
}

impl Session {
    pub(super) fn nexus(&self) -> Nexus {
        *self.port.nexus()
    }
}

/// What became of reading or writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// Go on.
    Open,
    /// The peer or the network has ended it.
    Gone,
}

impl Portal {
    /// Feeds the engine from the socket. Drain the engine's events after it.
    pub(super) fn read(&mut self, now: Instant, buffer: &mut [u8]) -> Flow {
        for _ in 0..READS_PER_TURN_MAX {
            if !self.readable || self.closing_by.is_some() || !self.engine.wants_input() {
                break;
            }
            match self.socket.read(buffer) {
                Ok(0) => return Flow::Gone,
                Ok(n) => {
                    self.engine.handle_input(now, buffer.get(..n).unwrap_or_default());
                    // A short read has emptied the socket; an edge tells of more.
                    if n < buffer.len() && !self.peer_closed {
                        self.readable = false;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Flow::Gone,
            }
        }
        Flow::Open
    }

    /// True if another turn would read more.
    pub(super) fn wants_turn(&self) -> bool {
        self.readable && self.closing_by.is_none() && self.engine.wants_input()
            || self.writable && self.engine.transmit_len() > 0
    }

    /// Sends what is ready.
    pub(super) fn write(&mut self) -> Flow {
        for _ in 0..WRITES_PER_TURN_MAX {
            if !self.writable || self.engine.transmit_len() == 0 {
                break;
            }
            let mut slices = [IoSlice::new(&[]); SEGMENTS_PER_WRITE_MAX];
            let mut used = 0;
            for (slice, segment) in slices.iter_mut().zip(self.engine.segments()) {
                *slice = IoSlice::new(segment);
                used += 1;
            }
            match self.socket.write_vectored(slices.get(..used).unwrap_or_default()) {
                Ok(0) => return Flow::Gone,
                Ok(n) => self.engine.advance(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Flow::Gone,
            }
        }
        Flow::Open
    }

    /// The next moment at which something is due, in boot-time milliseconds.
    pub(super) fn deadline(&self) -> Option<u64> {
        let waiting = match &self.stage {
            Stage::Waiting(waiting) => Some(waiting.by_ms),
            Stage::NoSession | Stage::Session(_) => None,
        };
        let engine = self.engine.poll_timeout().map(|at| at.0);
        [waiting, engine, self.closing_by].into_iter().flatten().min()
    }

    pub(super) fn session(&mut self) -> Option<&mut Session> {
        match &mut self.stage {
            Stage::Session(session) => Some(session),
            Stage::NoSession | Stage::Waiting(_) => None,
        }
    }
}
