//! One iSCSI connection: its socket, its protocol engine, and the session that it carries. A connection that has joined a session has
//! no engine of its own: that of the session's leading connection speaks for it.
//!
//! Invariants: all that the engine has ready leaves in as few vectored writes as fit; nothing is read that the engine does
//! not want; a connection that is ending sends what it still holds, for a bounded time, and is then closed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::num::NonZeroU16;

use holdfast_iscsi::{Connection, Instant, LinkId, SessionInfo, TaskManagementId, TaskTag};
use holdfast_scsi::nexus::Nexus;
use holdfast_scsi::port::NexusPort;
use mio::net::TcpStream;
use rustc_hash::{FxHashMap, FxHashSet};

use super::counters::Counters;
use super::functions::Group;
use super::inspection::Facts;
use super::limits::{READS_PER_TURN_MAX, SEGMENTS_PER_WRITE_MAX, WRITES_PER_TURN_MAX};
use super::router::{Bytes, ForwardToken};
use crate::view::{NodeNumber, VolumeId};

/// How long an ending connection may take to send its last bytes, in milliseconds.
pub(super) const CLOSING_MS_MAX: u64 = 2_000;

/// A socket, and what is known of its readiness.
pub(super) struct Wire {
    pub(super) socket: TcpStream,
    /// Readable, as far as known: edges are reported once.
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The end of the stream has been announced: a short read is not the last one.
    pub(super) peer_closed: bool,
}

/// A connection on its worker.
pub(super) struct Portal {
    /// None once a leading connection has left a session that goes on.
    pub(super) wire: Option<Wire>,
    pub(super) home: Home,
    /// Which of the node's portals it came in by.
    pub(super) portal: usize,
    /// Deadline under which it stands in the worker's list of timers, in boot-time milliseconds.
    pub(super) timer: Option<u64>,
    /// Ending: by when it is closed in any case.
    pub(super) closing_by: Option<u64>,
    pub(super) stage: Stage,
}

/// Where the engine of a connection is.
pub(super) enum Home {
    /// Here; it also speaks for these connections, which have joined its session.
    Own(Box<Connection<Bytes>>, HashMap<LinkId, u64>),
    /// With this leading connection, which knows this one by that name.
    Member(u64, LinkId),
}

/// How far a connection is.
pub(super) enum Stage {
    /// Logging in, or a discovery session, or over.
    NoSession,
    /// Logged in; an older session of the nexus has to end first.
    Waiting(Box<Waiting>),
    /// Logged in to join a session; an older connection of the same number has to end first.
    Joining(Box<Joining>),
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

/// A connection that is about to join a session.
pub(super) struct Joining {
    pub(super) cid: u16,
    pub(super) tsih: NonZeroU16,
    /// The leading connection.
    pub(super) leading: u64,
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
    /// What was agreed at its start.
    pub(super) facts: Facts,
    /// What it has done.
    pub(super) counters: Counters,
    /// Commands under way, by the engine's names.
    pub(super) by_tag: FxHashMap<TaskTag, ForwardToken>,
    /// What waits until it can be executed, oldest first.
    pub(super) held: VecDeque<ForwardToken>,
    /// Resets of several units under way.
    pub(super) resets: HashMap<TaskManagementId, Group>,
    /// Volumes that were given commands here.
    pub(super) local: FxHashSet<VolumeId>,
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

impl Wire {
    /// Feeds the engine from the socket. Drain the engine's events after it.
    pub(super) fn read(
        &mut self,
        engine: &mut Connection<Bytes>,
        link: LinkId,
        now: Instant,
        buffer: &mut [u8],
    ) -> Flow {
        for _ in 0..READS_PER_TURN_MAX {
            if !self.readable || !engine.wants_input_of(link) {
                break;
            }
            match self.socket.read(buffer) {
                Ok(0) => return Flow::Gone,
                Ok(n) => {
                    engine.handle_input_of(link, now, buffer.get(..n).unwrap_or_default());
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

    /// True if another turn would read more or write more.
    pub(super) fn wants_turn(&self, engine: &Connection<Bytes>, link: LinkId, closing: bool) -> bool {
        self.readable && !closing && engine.wants_input_of(link)
            || self.writable && engine.transmit_len_of(link) > 0
    }

    /// Sends what is ready.
    pub(super) fn write(&mut self, engine: &mut Connection<Bytes>, link: LinkId) -> Flow {
        for _ in 0..WRITES_PER_TURN_MAX {
            if !self.writable || engine.transmit_len_of(link) == 0 {
                break;
            }
            let mut slices = [IoSlice::new(&[]); SEGMENTS_PER_WRITE_MAX];
            let mut used = 0;
            for (slice, segment) in slices.iter_mut().zip(engine.segments_of(link)) {
                *slice = IoSlice::new(segment);
                used += 1;
            }
            match self.socket.write_vectored(slices.get(..used).unwrap_or_default()) {
                Ok(0) => return Flow::Gone,
                Ok(n) => engine.advance_of(link, n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Flow::Gone,
            }
        }
        Flow::Open
    }
}

impl Portal {
    /// The engine, if it is here: of a session, a login, or a discovery session, but not of a connection that has joined.
    pub(super) fn engine(&mut self) -> Option<&mut Connection<Bytes>> {
        match &mut self.home {
            Home::Own(engine, _) => Some(engine),
            Home::Member(..) => None,
        }
    }

    /// The next moment at which something is due, in boot-time milliseconds.
    pub(super) fn deadline(&self) -> Option<u64> {
        let waiting = match &self.stage {
            Stage::Waiting(waiting) => Some(waiting.by_ms),
            Stage::Joining(joining) => Some(joining.by_ms),
            Stage::NoSession | Stage::Session(_) => None,
        };
        let engine = match &self.home {
            Home::Own(engine, _) => engine.poll_timeout().map(|at| at.0),
            Home::Member(..) => None,
        };
        [waiting, engine, self.closing_by].into_iter().flatten().min()
    }

    pub(super) fn session(&mut self) -> Option<&mut Session> {
        match &mut self.stage {
            Stage::Session(session) => Some(session),
            Stage::NoSession | Stage::Waiting(_) | Stage::Joining(_) => None,
        }
    }
}
