//! The port's side of a connection: commands out, outcomes in.
//!
//! Invariants: a request is answered by exactly one event, whatever the peer or the network does; a request that
//! [`Client::poll_transmit`] has not handed out when the connection is lost was definitely not executed.

use alloc::{
    collections::{BTreeMap, VecDeque},
    vec::Vec,
};

use holdfast_scsi::{nexus::Nexus, status::Status};

use super::{
    Command, DataOut, FunctionOutcome, Instant, Link, Neighbour, Outcome, Reply, TaskManagement, Violation,
    clock::ClockTokens, data_out_bytes, message,
};
use crate::{
    frame::{Frame, FrameReader, Header, Kind, Outgoing},
    ids::VolumeId,
    limits::{COMMAND_AGE_MS_MAX, DATA_OUT_MAX, REQUESTS_MAX, SILENCE_MS_MAX, STREAMS_MAX},
};

/// What the client tells its shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientEvent {
    /// A command has ended.
    Outcome {
        /// Of the command.
        token: u64,
        /// How.
        outcome: Outcome<Vec<u8>>,
    },
    /// A task management function has ended.
    TaskManagementDone {
        /// Of the function.
        token: u64,
        /// How.
        outcome: FunctionOutcome,
    },
    /// The owner has ended the nexus's tasks, or will do so because the connection is lost.
    NexusLossDone {
        /// Of the notice.
        token: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Command { data_out: u64 },
    TaskManagement,
    NexusLoss,
}

/// What waits for the greeting.
#[derive(Debug)]
enum Work<B> {
    Command { arrived: Instant, token: u64, command: Command<B> },
    Data { token: u64, data: B },
    Abort { token: u64 },
    TaskManagement { token: u64, request: TaskManagement },
    NexusLoss { token: u64, nexus: Nexus },
}

/// See the module.
#[derive(Debug)]
pub struct Client<B> {
    link: Link,
    reader: FrameReader,
    welcomed: bool,
    tokens: ClockTokens,
    /// Unanswered requests; true once handed out for sending.
    requests: BTreeMap<u64, (Request, bool)>,
    streams: BTreeMap<(Nexus, VolumeId), u64>,
    data_out: u64,
    waiting: VecDeque<Work<B>>,
    transmit: VecDeque<(u64, Outgoing<B>)>,
    events: VecDeque<ClientEvent>,
    heard: Instant,
    peers_lease_end: Instant,
    lost: bool,
}

impl<B: AsRef<[u8]>> Client<B> {
    /// A client whose connection is yet to be made. `now` starts the wait for the greeting anew at
    /// [`Client::connected`].
    pub fn new(link: Link, now: Instant) -> Client<B> {
        Client {
            link,
            reader: FrameReader::new(link.crc32c),
            welcomed: false,
            tokens: ClockTokens::default(),
            requests: BTreeMap::new(),
            streams: BTreeMap::new(),
            data_out: 0,
            waiting: VecDeque::new(),
            transmit: VecDeque::new(),
            events: VecDeque::new(),
            heard: now,
            peers_lease_end: Instant(0),
            lost: false,
        }
    }

    /// The connection is up: greets.
    pub fn connected(&mut self, now: Instant) {
        self.heard = now;
        let meta = message::hello(&self.link);
        self.send(Header::new(Kind::Hello, 0), &meta, None);
    }

    /// Sends a command that arrived at its port at `arrived`.
    pub fn forward(&mut self, now: Instant, token: u64, arrived: Instant, command: Command<B>) {
        let data_out = data_out_bytes(command.data_out_len);
        let outcome = if self.lost || self.requests.contains_key(&token) {
            Some(Outcome::NotExecuted)
        } else if now.millis_since(arrived) > COMMAND_AGE_MS_MAX {
            Some(Outcome::Stale)
        } else if self.requests.len() >= REQUESTS_MAX
            || self.data_out.saturating_add(data_out) > DATA_OUT_MAX
            || (self.streams.len() >= STREAMS_MAX
                && command.copy.is_none()
                && !self.streams.contains_key(&(command.nexus, command.volume)))
        {
            let status = Status::TaskSetFull;
            let nothing = Reply {
                status,
                sense: None,
                descriptor_sense: false,
                data: None,
                transfer_len: 0,
                unit_attention_reported: None,
            };
            Some(Outcome::Reply(nothing))
        } else {
            None
        };
        if let Some(outcome) = outcome {
            self.events.push_back(ClientEvent::Outcome { token, outcome });
            return;
        }
        self.data_out = self.data_out.saturating_add(data_out);
        self.requests.insert(token, (Request::Command { data_out }, false));
        self.work(Work::Command { arrived, token, command });
    }

    /// The data of a command that was forwarded with [`DataOut::Awaited`].
    pub fn forward_data(&mut self, token: u64, data: B) {
        if self.requests.contains_key(&token) {
            self.work(Work::Data { token, data });
        }
    }

    /// Gives a command up; it still gets its event.
    pub fn forward_abort(&mut self, token: u64) {
        if self.requests.contains_key(&token) {
            self.work(Work::Abort { token });
        }
    }

    /// Sends a task management function behind the commands of its stream.
    pub fn forward_task_management(&mut self, token: u64, request: TaskManagement) {
        if self.lost || self.requests.len() >= REQUESTS_MAX || self.requests.contains_key(&token) {
            let outcome = FunctionOutcome::NotExecuted;
            self.events.push_back(ClientEvent::TaskManagementDone { token, outcome });
            return;
        }
        self.requests.insert(token, (Request::TaskManagement, false));
        self.work(Work::TaskManagement { token, request });
    }

    /// Tells the owner that a nexus has ended. Never refused: it is what ends the nexus's tasks there.
    pub fn forward_nexus_loss(&mut self, token: u64, nexus: Nexus) {
        if self.lost || self.requests.contains_key(&token) {
            self.events.push_back(ClientEvent::NexusLossDone { token });
            return;
        }
        self.requests.insert(token, (Request::NexusLoss, false));
        self.work(Work::NexusLoss { token, nexus });
    }

    /// Where the next bytes from the peer belong. Never empty.
    pub fn space(&mut self) -> &mut [u8] {
        self.reader.space()
    }

    /// Takes the first `n` bytes of [`Client::space`].
    ///
    /// # Errors
    /// Close the connection and call [`Client::connection_lost`].
    pub fn advance(&mut self, now: Instant, n: usize) -> Result<(), Violation> {
        self.heard = now;
        match self.reader.advance(n)? {
            Some(frame) => self.handle_frame(now, frame),
            None => Ok(()),
        }
    }

    /// Acts on time that passed.
    ///
    /// # Errors
    /// [`Violation::Silence`]: close the connection.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), Violation> {
        if now.millis_since(self.heard) >= SILENCE_MS_MAX { Err(Violation::Silence) } else { Ok(()) }
    }

    /// When [`Client::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Instant {
        self.heard.plus_millis(SILENCE_MS_MAX)
    }

    /// The connection is gone (or never came up): every request gets its event. Make a new client for the next one.
    pub fn connection_lost(&mut self) {
        self.lost = true;
        self.waiting.clear();
        self.transmit.clear();
        self.streams.clear();
        self.data_out = 0;
        for (token, (request, sent)) in core::mem::take(&mut self.requests) {
            self.events.push_back(match (request, sent) {
                (Request::Command { .. }, true) => ClientEvent::Outcome { token, outcome: Outcome::Unknown },
                (Request::Command { .. }, false) => {
                    ClientEvent::Outcome { token, outcome: Outcome::NotExecuted }
                }
                (Request::TaskManagement, true) => {
                    ClientEvent::TaskManagementDone { token, outcome: FunctionOutcome::Unknown }
                }
                (Request::TaskManagement, false) => {
                    ClientEvent::TaskManagementDone { token, outcome: FunctionOutcome::NotExecuted }
                }
                (Request::NexusLoss, _) => ClientEvent::NexusLossDone { token },
            });
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// The next frame to send. From now on its request counts as sent.
    pub fn poll_transmit(&mut self) -> Option<Outgoing<B>> {
        let (token, frame) = self.transmit.pop_front()?;
        if let Some((_, sent)) = self.requests.get_mut(&token) {
            *sent = true;
        }
        Some(frame)
    }

    /// Requests without an answer.
    pub fn outstanding(&self) -> usize {
        self.requests.len()
    }

    /// What the peer has told of itself; `None` before it has greeted.
    pub fn neighbour(&self) -> Option<Neighbour> {
        self.is_open().then_some(Neighbour { heard: self.heard, lease_end: self.peers_lease_end })
    }

    /// True once the peer has greeted.
    pub fn is_open(&self) -> bool {
        self.welcomed && !self.lost
    }

    fn work(&mut self, work: Work<B>) {
        if self.welcomed {
            self.carry_out(work);
        } else {
            self.waiting.push_back(work);
        }
    }

    fn carry_out(&mut self, work: Work<B>) {
        match work {
            Work::Command { arrived, token, command } => self.send_command(arrived, token, command),
            Work::Data { token, data } => self.send(Header::new(Kind::DataOut, token), &[], Some(data)),
            Work::Abort { token } => self.send(Header::new(Kind::Abort, token), &[], None),
            Work::TaskManagement { token, request } => {
                let last = self.streams.get(&(request.nexus, request.volume)).copied().unwrap_or(0);
                let (header, meta) = message::task_management(token, last, &request);
                self.send(header, &meta, None);
            }
            Work::NexusLoss { token, nexus } => {
                self.streams.retain(|(of, _), _| *of != nexus);
                self.send(Header::new(Kind::NexusLoss, token), &message::nexus_loss(&nexus), None);
            }
        }
    }

    fn send_command(&mut self, arrived: Instant, token: u64, command: Command<B>) {
        let key = (command.nexus, command.volume);
        let in_stream = command.copy.is_none();
        let last = self.streams.get(&key).copied().unwrap_or(0);
        let sequence = if in_stream { last.saturating_add(1) } else { 0 };
        let frame = self.tokens.echo(arrived).and_then(|echo| {
            let (header, meta) = message::command(token, sequence, echo, &command)?;
            let data = match command.data {
                DataOut::Ready(data) => Some(data),
                DataOut::None | DataOut::Awaited => None,
            };
            Outgoing::new(&header, &meta, data, self.link.crc32c)
        });
        match frame {
            Some(frame) => {
                if in_stream {
                    self.streams.insert(key, sequence);
                }
                self.transmit.push_back((token, frame));
            }
            // Longer than a frame may be: it never leaves this node.
            None => self.end_command(token, Outcome::NotExecuted),
        }
    }

    fn send(&mut self, header: Header, meta: &[u8], data: Option<B>) {
        let token = header.token;
        if let Some(frame) = Outgoing::new(&header, meta, data, self.link.crc32c) {
            self.transmit.push_back((token, frame));
        } else {
            // Data longer than any command may move: the owner must not wait for it.
            let abort = Outgoing::new(&Header::new(Kind::Abort, token), &[], None, self.link.crc32c);
            self.transmit.extend(abort.map(|frame| (token, frame)));
        }
    }

    fn handle_frame(&mut self, now: Instant, frame: Frame) -> Result<(), Violation> {
        let Header { kind, token, clock, sequence, .. } = frame.header;
        if self.welcomed == (kind == Kind::Welcome) {
            return Err(Violation::Unexpected(kind));
        }
        if clock != 0 {
            self.tokens.receive(now, clock);
        }
        if matches!(kind, Kind::Welcome | Kind::Clock) {
            // 0: it has none, and must not seem to have got one just now.
            self.peers_lease_end = if sequence == 0 { Instant(0) } else { now.plus_millis(sequence) };
        }
        let plain = |frame: &Frame| frame.meta.is_empty() && frame.data.is_empty() && frame.header.flags == 0;
        match kind {
            Kind::Welcome if clock != 0 && plain(&frame) => {
                self.welcomed = true;
                for work in core::mem::take(&mut self.waiting) {
                    self.carry_out(work);
                }
            }
            Kind::Clock if clock != 0 && plain(&frame) => self.send(Header::new(Kind::Alive, 0), &[], None),
            Kind::Reply => {
                let reply = message::parse_reply(frame).ok_or(Violation::Malformed(kind))?;
                self.expect_command(token, kind)?;
                self.end_command(token, Outcome::Reply(reply));
            }
            Kind::Aborted | Kind::NotExecuted | Kind::Stale | Kind::Unknown if plain(&frame) => {
                self.expect_command(token, kind)?;
                let outcome = match kind {
                    Kind::Aborted => Outcome::Aborted,
                    Kind::NotExecuted => Outcome::NotExecuted,
                    Kind::Stale => Outcome::Stale,
                    _ => Outcome::Unknown,
                };
                self.end_command(token, outcome);
            }
            Kind::TaskManagementDone => {
                let outcome = message::parse_function_done(&frame).ok_or(Violation::Malformed(kind))?;
                self.expect(token, Request::TaskManagement, kind)?;
                self.events.push_back(ClientEvent::TaskManagementDone { token, outcome });
            }
            Kind::NexusLossDone if plain(&frame) => {
                self.expect(token, Request::NexusLoss, kind)?;
                self.events.push_back(ClientEvent::NexusLossDone { token });
            }
            Kind::Welcome
            | Kind::Clock
            | Kind::Aborted
            | Kind::NotExecuted
            | Kind::Stale
            | Kind::Unknown
            | Kind::NexusLossDone => return Err(Violation::Malformed(kind)),
            // What a port sends, or belongs to the streams between owner and replica.
            _ => return Err(Violation::Unexpected(kind)),
        }
        Ok(())
    }

    /// An answer must be to a request that was sent.
    fn expect_command(&self, token: u64, kind: Kind) -> Result<(), Violation> {
        match self.requests.get(&token) {
            Some((Request::Command { .. }, true)) => Ok(()),
            _ => Err(Violation::Unexpected(kind)),
        }
    }

    fn expect(&mut self, token: u64, request: Request, kind: Kind) -> Result<(), Violation> {
        if self.requests.get(&token) != Some(&(request, true)) {
            return Err(Violation::Unexpected(kind));
        }
        self.requests.remove(&token);
        Ok(())
    }

    fn end_command(&mut self, token: u64, outcome: Outcome<Vec<u8>>) {
        if let Some((Request::Command { data_out }, _)) = self.requests.remove(&token) {
            self.data_out = self.data_out.saturating_sub(data_out);
            if data_out > 0 {
                // Its data, if that still waits to be sent, would reach nobody.
                self.transmit.retain(|(of, _)| *of != token);
            }
        }
        self.events.push_back(ClientEvent::Outcome { token, outcome });
    }
}
