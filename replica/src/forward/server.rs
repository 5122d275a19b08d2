//! The owner's side of a connection: commands in, outcomes out.
//!
//! Invariants: commands reach the shell in the order of their streams, and never when they are too old; each request of
//! the shell's is answered once, later answers go nowhere; what an answered command still sends is dropped.

use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};

use holdfast_scsi::nexus::Nexus;

use super::{
    Command, DataOut, FunctionOutcome, Instant, Link, Outcome, TaskManagement, Violation, data_out_bytes,
    message,
};
use crate::{
    frame::{Frame, FrameReader, Header, Kind, Outgoing},
    ids::VolumeId,
    limits::{
        CLOCK_INTERVAL_MS, COMMAND_AGE_MS_MAX, DATA_OUT_MAX, REQUESTS_MAX, SILENCE_MS_MAX, STREAMS_MAX,
    },
};

/// What the server tells its shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerEvent {
    /// Run this; answer by [`Server::answer`].
    Command {
        /// The peer's token.
        token: u64,
        /// What.
        command: Command<Vec<u8>>,
        /// Moment on this node's clock after which its I/O must not be submitted any more.
        execute_by: Instant,
    },
    /// All data of a command that came with [`DataOut::Awaited`].
    DataOut {
        /// The command.
        token: u64,
        /// Its bytes.
        data: Vec<u8>,
    },
    /// The port gives the command up, or its data will not come. Still answered.
    Abort {
        /// The command.
        token: u64,
    },
    /// Answer by [`Server::answer_task_management`].
    TaskManagement {
        /// The peer's token.
        token: u64,
        /// What to do.
        request: TaskManagement,
    },
    /// The nexus has ended: end its tasks, then [`Server::answer_nexus_loss`].
    NexusLoss {
        /// The peer's token.
        token: u64,
        /// Which.
        nexus: Nexus,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Command { data_out: u32, awaited: bool },
    TaskManagement,
    NexusLoss,
}

/// See the module.
#[derive(Debug)]
pub struct Server<B> {
    link: Link,
    reader: FrameReader,
    greeted: bool,
    requests: BTreeMap<u64, Request>,
    streams: BTreeMap<(Nexus, VolumeId), u64>,
    data_out: u64,
    transmit: VecDeque<Outgoing<B>>,
    events: VecDeque<ServerEvent>,
    heard: Instant,
    next_clock: Instant,
    lease_end: Instant,
}

impl<B: AsRef<[u8]>> Server<B> {
    /// A connection that has just been accepted.
    pub fn new(link: Link, now: Instant) -> Server<B> {
        Server {
            link,
            reader: FrameReader::new(link.crc32c),
            greeted: false,
            requests: BTreeMap::new(),
            streams: BTreeMap::new(),
            data_out: 0,
            transmit: VecDeque::new(),
            events: VecDeque::new(),
            heard: now,
            next_clock: now.plus_millis(CLOCK_INTERVAL_MS),
            lease_end: Instant(0),
        }
    }

    /// Until when this node holds a lease: the peer is told with the greeting and every clock token.
    pub fn set_lease(&mut self, end: Instant) {
        self.lease_end = end;
    }

    /// Where the next bytes from the peer belong. Never empty.
    pub fn space(&mut self) -> &mut [u8] {
        self.reader.space()
    }

    /// Takes the first `n` bytes of [`Server::space`].
    ///
    /// # Errors
    /// Close the connection; its nexuses are lost.
    pub fn advance(&mut self, now: Instant, n: usize) -> Result<(), Violation> {
        self.heard = now;
        match self.reader.advance(n)? {
            Some(frame) => self.handle_frame(now, frame),
            None => Ok(()),
        }
    }

    /// Acts on time that passed: hands out a clock token.
    ///
    /// # Errors
    /// [`Violation::Silence`]: close the connection.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Violation> {
        if now.millis_since(self.heard) >= SILENCE_MS_MAX {
            return Err(Violation::Silence);
        }
        if self.greeted && now >= self.next_clock {
            self.next_clock = now.plus_millis(CLOCK_INTERVAL_MS);
            self.send_clock(now, Kind::Clock);
        }
        Ok(())
    }

    /// When [`Server::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        let silence = self.heard.plus_millis(SILENCE_MS_MAX);
        if self.greeted { self.next_clock.min(silence) } else { silence }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ServerEvent> {
        self.events.pop_front()
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Outgoing<B>> {
        self.transmit.pop_front()
    }

    /// Answers a command.
    pub fn answer(&mut self, now: Instant, token: u64, outcome: Outcome<B>) {
        let Some(Request::Command { data_out, .. }) = self.requests.get(&token).copied() else { return };
        self.requests.remove(&token);
        self.data_out = self.data_out.saturating_sub(data_out_bytes(data_out));
        match outcome {
            Outcome::Reply(reply) => {
                let (header, meta) = message::reply(token, &reply);
                self.send(now, header, &meta, reply.data);
            }
            Outcome::Aborted => self.send(now, Header::new(Kind::Aborted, token), &[], None),
            Outcome::NotExecuted => self.send(now, Header::new(Kind::NotExecuted, token), &[], None),
            Outcome::Stale => self.send(now, Header::new(Kind::Stale, token), &[], None),
            Outcome::Unknown => self.send(now, Header::new(Kind::Unknown, token), &[], None),
        }
    }

    /// Answers a task management function.
    pub fn answer_task_management(&mut self, now: Instant, token: u64, outcome: FunctionOutcome) {
        if self.requests.get(&token) == Some(&Request::TaskManagement) {
            self.requests.remove(&token);
            let header = Header::new(Kind::TaskManagementDone, token);
            self.send(now, header, &message::function_done(outcome), None);
        }
    }

    /// Answers the loss of a nexus.
    pub fn answer_nexus_loss(&mut self, now: Instant, token: u64) {
        if self.requests.get(&token) == Some(&Request::NexusLoss) {
            self.requests.remove(&token);
            self.send(now, Header::new(Kind::NexusLossDone, token), &[], None);
        }
    }

    fn send_clock(&mut self, now: Instant, kind: Kind) {
        let header = Header { sequence: self.lease_end.millis_since(now), ..Header::new(kind, 0) };
        self.send(now, header, &[], None);
    }

    fn send(&mut self, now: Instant, header: Header, meta: &[u8], data: Option<B>) {
        // 0 means "no token"; every frame of the owner's carries one.
        let header = Header { clock: now.0.max(1), ..header };
        let frame = Outgoing::new(&header, meta, data, self.link.crc32c).or_else(|| {
            // More data than a frame carries cannot be a correct reply; the port must not take it for one.
            Outgoing::new(&Header { kind: Kind::Unknown, flags: 0, ..header }, &[], None, self.link.crc32c)
        });
        self.transmit.extend(frame);
    }

    fn handle_frame(&mut self, now: Instant, frame: Frame) -> Result<(), Violation> {
        let Header { kind, token, .. } = frame.header;
        if self.greeted == (kind == Kind::Hello) {
            return Err(Violation::Unexpected(kind));
        }
        let plain = frame.meta.is_empty() && frame.data.is_empty() && frame.header.flags == 0;
        match kind {
            Kind::Hello => {
                if !message::hello_is_for(&frame, &self.link).ok_or(Violation::Malformed(kind))? {
                    return Err(Violation::WrongPeer);
                }
                self.greeted = true;
                self.send_clock(now, Kind::Welcome);
            }
            Kind::Alive if plain => {}
            Kind::Command => self.handle_command(now, frame)?,
            Kind::DataOut if frame.meta.is_empty() => self.handle_data_out(token, frame.data)?,
            Kind::Abort if plain => {
                if matches!(self.requests.get(&token), Some(Request::Command { .. })) {
                    self.events.push_back(ServerEvent::Abort { token });
                }
            }
            Kind::TaskManagement => {
                let request = message::parse_task_management(&frame).ok_or(Violation::Malformed(kind))?;
                let expected = self.streams.get(&(request.nexus, request.volume)).copied().unwrap_or(0);
                let got = frame.header.sequence;
                if got != expected {
                    return Err(Violation::Sequence { expected, got });
                }
                self.insert(token, Request::TaskManagement)?;
                self.events.push_back(ServerEvent::TaskManagement { token, request });
            }
            Kind::NexusLoss => {
                let nexus = message::parse_nexus_loss(&frame).ok_or(Violation::Malformed(kind))?;
                self.streams.retain(|(of, _), _| *of != nexus);
                self.insert(token, Request::NexusLoss)?;
                self.events.push_back(ServerEvent::NexusLoss { token, nexus });
            }
            Kind::Alive | Kind::DataOut | Kind::Abort => return Err(Violation::Malformed(kind)),
            // What an owner sends, or belongs to the streams between owner and replica.
            _ => return Err(Violation::Unexpected(kind)),
        }
        Ok(())
    }

    fn handle_command(&mut self, now: Instant, frame: Frame) -> Result<(), Violation> {
        let Header { kind, token, sequence: got, .. } = frame.header;
        let (command, echo) = message::parse_command(frame).ok_or(Violation::Malformed(kind))?;
        let key = (command.nexus, command.volume);
        // What a copy manager sends comes one at a time and is in no stream of the port's.
        let in_stream = command.copy.is_none();
        let last = self.streams.get(&key).copied().unwrap_or(0);
        let expected = if in_stream { last.saturating_add(1) } else { 0 };
        if got != expected {
            return Err(Violation::Sequence { expected, got });
        }
        if echo.token == 0 || echo.token > now.0.max(1) {
            return Err(Violation::Clock);
        }
        if in_stream && !self.streams.contains_key(&key) && self.streams.len() >= STREAMS_MAX {
            return Err(Violation::TooMuch);
        }
        let data_out = command.data_out_len;
        self.data_out = self.data_out.saturating_add(data_out_bytes(data_out));
        if self.data_out > DATA_OUT_MAX {
            return Err(Violation::TooMuch);
        }
        let awaited = command.data == DataOut::Awaited;
        self.insert(token, Request::Command { data_out, awaited })?;
        if in_stream {
            self.streams.insert(key, got);
        }
        let age_ms = now.millis_since(Instant(echo.token)).saturating_add(echo.waited_ms);
        match COMMAND_AGE_MS_MAX.checked_sub(age_ms) {
            Some(left_ms) => {
                let execute_by = now.plus_millis(left_ms);
                self.events.push_back(ServerEvent::Command { token, command, execute_by });
            }
            None => self.answer(now, token, Outcome::Stale),
        }
        Ok(())
    }

    fn handle_data_out(&mut self, token: u64, data: Vec<u8>) -> Result<(), Violation> {
        match self.requests.get_mut(&token) {
            Some(Request::Command { data_out, awaited }) => {
                if !*awaited || u32::try_from(data.len()).map_or(true, |len| len > *data_out) {
                    return Err(Violation::Malformed(Kind::DataOut));
                }
                *awaited = false;
                self.events.push_back(ServerEvent::DataOut { token, data });
                Ok(())
            }
            // Answered before its data came.
            None => Ok(()),
            Some(_) => Err(Violation::Unexpected(Kind::DataOut)),
        }
    }

    fn insert(&mut self, token: u64, request: Request) -> Result<(), Violation> {
        // The loss of a nexus is never refused by the port's side, so there may be more of those.
        let bounded = request != Request::NexusLoss;
        if bounded && self.requests.len() >= REQUESTS_MAX + STREAMS_MAX {
            return Err(Violation::TooMuch);
        }
        match self.requests.insert(token, request) {
            None => Ok(()),
            Some(_) => Err(Violation::DuplicateToken(token)),
        }
    }
}
