//! How a host reaches the cluster: sessions through nodes, given up and made anew as a host's initiator and multipath layer do.
//!
//! Invariant: an answer is taken for "not executed" only where SCSI says so (BUSY, TASK SET FULL, Unit Attention); what may have
//! happened is never sent again as the same operation.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use holdfast_tests::{
    clock::boottime_ns,
    initiator::{Answer, Initiator},
    netns::Network,
};

/// A host gives a path up that has not answered for this long.
pub const PATH_PATIENCE_S: u64 = 6;
const PAUSE: Duration = Duration::from_millis(50);

/// What is common to all sessions of a run.
#[derive(Debug, Clone)]
pub struct Ways {
    /// The network.
    pub network: Network,
    /// Name of the target.
    pub target: String,
    /// Portals by node.
    pub portals: Vec<SocketAddr>,
    /// The run is over.
    pub stop: Arc<AtomicBool>,
}

/// What came of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// GOOD with data.
    Good(Vec<u8>),
    /// Certainly not executed: BUSY, TASK SET FULL, and ALUA states in which this port executes nothing just now (04/0A to 04/0C).
    Busy,
    /// A Unit Attention was told instead ("2a/05").
    Attention(String),
    /// RESERVATION CONFLICT.
    Conflict,
    /// COMPARE AND WRITE found something else.
    Miscompare,
    /// ILLEGAL REQUEST.
    Illegal,
    /// It may have been executed: ABORTED COMMAND, or the session is gone.
    Unknown,
    /// Another error, as status and sense.
    Failed(String),
}

impl Outcome {
    fn of(answer: &Answer) -> Self {
        match (answer.status, answer.sense.split_once('/')) {
            (0x00, _) => Self::Good(answer.data.clone()),
            (0x08 | 0x28, _) => Self::Busy,
            (0x18, _) => Self::Conflict,
            (0x40, _) => Self::Unknown,
            (0x02, Some(("2", "04/0a" | "04/0b" | "04/0c"))) => Self::Busy,
            (0x02, Some(("6", code))) => Self::Attention(code.to_owned()),
            (0x02, Some(("e", _))) => Self::Miscompare,
            (0x02, Some(("5", _))) => Self::Illegal,
            (0x02, Some(("b", _))) => Self::Unknown,
            (status, _) => Self::Failed(format!("status {status:02x} sense {}", answer.sense)),
        }
    }
}

/// An attempt in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// When it was sent.
    pub sent_ns: u64,
    /// When its outcome was seen.
    pub seen_ns: u64,
    /// The outcome.
    pub outcome: Outcome,
}

/// One initiator port with a path through each of some nodes, one of them in use.
pub struct Paths {
    ways: Ways,
    host: String,
    name: String,
    isid: u16,
    nodes: Vec<usize>,
    at: usize,
    session: Option<Initiator>,
    /// Sessions so far.
    pub sessions: u64,
}

impl Paths {
    /// Of machine `host`, as initiator `name` with `isid`, through `nodes` in this order of liking.
    pub fn new(ways: &Ways, host: &str, name: &str, isid: u16, nodes: Vec<usize>) -> Self {
        Self {
            ways: ways.clone(),
            host: host.to_owned(),
            name: name.to_owned(),
            isid,
            nodes,
            at: 0,
            session: None,
            sessions: 0,
        }
    }

    fn stopped(&self) -> bool {
        self.ways.stop.load(Ordering::Relaxed)
    }

    /// The session in use, made if need be; `None` when the run is over first.
    fn session(&mut self) -> Option<&mut Initiator> {
        while self.session.is_none() {
            if self.stopped() {
                return None;
            }
            let node = self.nodes[self.at % self.nodes.len()];
            let portal = self.ways.portals[node].to_string();
            let made = Initiator::login_with(
                |mut command| {
                    command.env("HOLDFAST_INITIATOR_PATIENCE_S", PATH_PATIENCE_S.to_string());
                    self.ways.network.spawn(&self.host, command)
                },
                &portal,
                &self.ways.target,
                &self.name,
                self.isid,
                None,
            );
            match made {
                Ok(session) => {
                    self.session = Some(session);
                    self.sessions += 1;
                }
                Err(_) => {
                    self.at += 1;
                    thread::sleep(PAUSE);
                }
            }
        }
        self.session.as_mut()
    }

    /// Sends one request line ("cdb LUN ...") once. `None` when the run is over before a path was found.
    pub fn attempt(&mut self, request: &str) -> Option<Attempt> {
        if self.stopped() {
            return None;
        }
        let session = self.session()?;
        let sent_ns = boottime_ns();
        let answer = session.send(request).and_then(|()| session.answer());
        let seen_ns = boottime_ns();
        let outcome = match answer {
            Ok(answer) => Outcome::of(&answer),
            Err(_) => {
                // This path is dead: the next one.
                if let Some(session) = self.session.take() {
                    session.abandon();
                }
                self.at += 1;
                Outcome::Unknown
            }
        };
        if outcome == Outcome::Busy {
            thread::sleep(PAUSE);
        }
        Some(Attempt { sent_ns, seen_ns, outcome })
    }
}
