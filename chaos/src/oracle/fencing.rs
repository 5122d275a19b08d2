//! What a PREEMPT promises once it is GOOD: the preempted nexus writes no more, and is told.
//!
//! Histories here have one key per registration, each used once, so that a GOOD PREEMPT of a key means that its nexus was registered
//! with it.

/// A PREEMPT (AND ABORT) that was GOOD, and what lifts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preempt {
    /// The nexus that lost its registration.
    pub victim: u8,
    /// When the PREEMPT was sent.
    pub sent: u64,
    /// When GOOD was seen.
    pub good: u64,
    /// When the first request was sent that may let the victim write again (it registers, the reservation is released, and so on).
    pub lifted: Option<u64>,
}

/// A write of a nexus that was GOOD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptedWrite {
    /// Whose.
    pub nexus: u8,
    /// When it was sent.
    pub sent: u64,
    /// When GOOD was seen.
    pub good: u64,
}

/// A write that should have been refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfenced {
    /// The PREEMPT.
    pub preempt: Preempt,
    /// The write.
    pub write: AcceptedWrite,
}

/// Writes that were sent after a PREEMPT's GOOD, and GOOD themselves before anything could have lifted it.
pub fn unfenced(preempts: &[Preempt], writes: &[AcceptedWrite]) -> Vec<Unfenced> {
    let mut found = Vec::new();
    for preempt in preempts {
        let fenced = |write: &&AcceptedWrite| {
            write.nexus == preempt.victim
                && write.sent > preempt.good
                && preempt.lifted.is_none_or(|lifted| write.good < lifted)
        };
        found.extend(writes.iter().filter(fenced).map(|write| Unfenced { preempt: *preempt, write: *write }));
    }
    found
}

/// What a session was answered, in order; a session answers one command at a time here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// A Unit Attention that tells of the preemption: 2A/05, or one that stands for all (29/xx).
    Told,
    /// GOOD for a command that a pending Unit Attention would have stopped.
    Good,
}

/// An answer of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// When the command was sent.
    pub sent: u64,
    /// When it was answered.
    pub answered: u64,
    /// What.
    pub seen: Seen,
}

/// Preempts of which a session of the victim, alive since before, was never told although a command sent after GOOD was GOOD.
/// `session` holds the answers of one session, in order.
pub fn untold(preempts: &[Preempt], session: &[Answer]) -> Vec<Preempt> {
    let Some(born) = session.first().map(|answer| answer.sent) else { return Vec::new() };
    preempts
        .iter()
        .filter(|preempt| born < preempt.sent)
        .filter(|preempt| {
            let due =
                session.iter().position(|answer| answer.sent > preempt.good && answer.seen == Seen::Good);
            due.is_some_and(|due| {
                !session[..due]
                    .iter()
                    .any(|answer| answer.seen == Seen::Told && answer.answered > preempt.sent)
            })
        })
        .copied()
        .collect()
}

/// A node served commands of a unit as its owner in this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// The node.
    pub node: u8,
    /// First moment.
    pub from: u64,
    /// Last moment.
    pub to: u64,
}

/// Pairs of services of different nodes that share an instant.
pub fn two_owners(services: &[Service]) -> Vec<(Service, Service)> {
    let mut sorted = services.to_vec();
    sorted.sort_by_key(|service| (service.from, service.to));
    let mut found = Vec::new();
    // Of each node the service that reaches furthest so far.
    let mut reaching: Vec<Service> = Vec::new();
    for service in sorted {
        found.extend(
            reaching
                .iter()
                .filter(|other| other.node != service.node && other.to >= service.from)
                .map(|other| (*other, service)),
        );
        match reaching.iter_mut().find(|other| other.node == service.node) {
            Some(own) if own.to < service.to => *own = service,
            Some(_) => {}
            None => reaching.push(service),
        }
    }
    found
}
