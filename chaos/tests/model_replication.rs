//! Epochs, in-sync set, promotion and recovery of a replicated block, explored exhaustively for three nodes and a bounded number of
//! writes and changes of the configuration.
//!
//! One block stands for all: replication orders overlapping writes. Writes are numbered by when they began. Nodes stop and come back
//! with what is on disk. Messages are late or lost at will. Each rule can be broken, and each break must be found.

use stateright::{Checker, HasDiscoveries, Model, Property};

const NODES: usize = 3;
const WRITES_MAX: u8 = 2;
const EPOCHS_MAX: u8 = 3;

/// A rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    Nothing,
    /// The owner acknowledges once one other member has the write.
    AcknowledgeEarly,
    /// Promotion does not wait for the end of the old owner's lease.
    PromoteUnderLease,
    /// A node that is not in the in-sync set is promoted.
    PromoteAnyone,
    /// The owner goes on without a silent member before the controllers agreed.
    ShrinkAlone,
    /// A replica takes writes of lower epochs than it promised.
    TakeLowerEpochs,
    /// A replica takes writes of one epoch out of order, or twice.
    IgnoreSequence,
    /// A new owner serves before it has copied its version to the members.
    ServeUnrecovered,
    /// A learner is admitted without a copy.
    AdmitUncopied,
    /// A read does not wait for a write that some member still lacks, and the write may be undone.
    ReadUnfinished,
}

/// What a node believes while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Owner {
    epoch: u8,
    /// Members that have to have a write.
    set: u8,
    /// Members that have promised and hold the owner's version.
    recovered: u8,
    /// The write under way, and who has it.
    write: Option<(u8, u8)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Node {
    runs: bool,
    /// Its lease has not run out.
    leased: bool,
    /// On disk.
    promised: u8,
    data: u8,
    /// The last write taken under the epoch promised: the sequence of its connection.
    taken: u8,
    owner: Option<Owner>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    nodes: [Node; NODES],
    // What the controllers agreed.
    epoch: u8,
    owner: usize,
    in_sync: u8,
    /// Writes under way: (epoch, write, to).
    messages: Vec<(u8, u8, u8)>,
    begun: u8,
    acknowledged: u8,
    /// The newest value that a read returned.
    read: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Begin(usize),
    Deliver(usize),
    Acknowledge(usize),
    Read(usize),
    Stop(usize),
    Start(usize),
    LeaseEnds(usize),
    Promote(usize),
    Take(usize),
    Recover(usize, usize),
    Evict(usize, usize),
    Admit(usize, usize),
}

fn bit(node: usize) -> u8 {
    1 << node
}

fn members(set: u8) -> impl Iterator<Item = usize> {
    (0..NODES).filter(move |node| set & bit(*node) != 0)
}

struct Replication(Break);

impl Replication {
    /// A node that executes commands as owner.
    fn serves(&self, node: &Node) -> bool {
        node.runs
            && node.leased
            && node
                .owner
                .is_some_and(|owner| owner.set & !owner.recovered == 0 || self.0 == Break::ServeUnrecovered)
    }
}

impl Model for Replication {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let all = bit(NODES) - 1;
        let mut nodes: [Node; NODES] =
            std::array::from_fn(|_| Node { runs: true, leased: true, promised: 1, ..Node::default() });
        nodes[0].owner = Some(Owner { epoch: 1, set: all, recovered: all, write: None });
        let state = State {
            nodes,
            epoch: 1,
            owner: 0,
            in_sync: all,
            messages: Vec::new(),
            begun: 0,
            acknowledged: 0,
            read: 0,
        };
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (number, node) in state.nodes.iter().enumerate() {
            if node.runs {
                actions.push(Action::Stop(number));
            } else {
                actions.push(Action::Start(number));
            }
            if node.leased {
                actions.push(Action::LeaseEnds(number));
            }
            if state.epoch < EPOCHS_MAX {
                actions.push(Action::Promote(number));
            }
            actions.push(Action::Take(number));
            if node.owner.is_some() {
                actions.extend([Action::Begin(number), Action::Acknowledge(number), Action::Read(number)]);
                for other in (0..NODES).filter(|other| *other != number) {
                    actions.push(Action::Recover(number, other));
                    if state.epoch < EPOCHS_MAX {
                        actions.extend([Action::Evict(number, other), Action::Admit(number, other)]);
                    }
                }
            }
        }
        actions.extend((0..state.messages.len()).map(Action::Deliver));
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Begin(number) => {
                if !self.serves(&state.nodes[number]) || state.begun == WRITES_MAX {
                    return None;
                }
                let node = &mut next.nodes[number];
                let owner = node.owner.as_mut().filter(|owner| owner.write.is_none())?;
                next.begun += 1;
                owner.write = Some((next.begun, bit(number)));
                node.data = next.begun;
                let (epoch, write) = (owner.epoch, next.begun);
                let others = members(owner.set & !bit(number));
                next.messages.extend(others.map(|to| (epoch, write, to as u8)));
            }
            Action::Deliver(at) => {
                let (epoch, write, to) = next.messages.remove(at);
                let to = usize::from(to);
                let node = &mut next.nodes[to];
                if !node.runs || (epoch < node.promised && self.0 != Break::TakeLowerEpochs) {
                    return Some(next);
                }
                if epoch > node.promised {
                    node.taken = 0;
                }
                if write <= node.taken && self.0 != Break::IgnoreSequence {
                    return Some(next);
                }
                (node.promised, node.taken) = (node.promised.max(epoch), write);
                node.data = write;
                // Its answer: only the owner of that epoch counts it.
                for node in next.nodes.iter_mut().filter(|node| node.runs) {
                    if let Some(Owner { write: Some((under_way, have)), .. }) = &mut node.owner
                        && *under_way == write
                    {
                        *have |= bit(to);
                    }
                }
            }
            Action::Acknowledge(number) => {
                if !self.serves(&state.nodes[number]) {
                    return None;
                }
                let owner = next.nodes[number].owner.as_mut()?;
                let (write, have) = owner.write?;
                let enough = owner.set & !have == 0
                    || (self.0 == Break::AcknowledgeEarly && (owner.set & have).count_ones() >= 2);
                if !enough {
                    return None;
                }
                owner.write = None;
                next.acknowledged = next.acknowledged.max(write);
            }
            Action::Read(number) => {
                let node = &state.nodes[number];
                let waits = node.owner.is_some_and(|owner| owner.write.is_some());
                if !self.serves(node) || (waits && self.0 != Break::ReadUnfinished) || node.data <= state.read
                {
                    return None;
                }
                next.read = node.data;
            }
            Action::Stop(number) => {
                let node = &mut next.nodes[number];
                (node.runs, node.owner) = (false, None);
            }
            Action::Start(number) => next.nodes[number].runs = true,
            // Nodes get leases again at will, but never ownership with them.
            Action::LeaseEnds(number) => {
                let node = &mut next.nodes[number];
                (node.leased, node.owner) = (false, None);
            }
            Action::Promote(number) => {
                let old = &state.nodes[state.owner];
                let allowed = (state.in_sync & bit(number) != 0 || self.0 == Break::PromoteAnyone)
                    && (!old.leased || self.0 == Break::PromoteUnderLease)
                    && number != state.owner
                    && state.nodes[number].runs;
                if !allowed {
                    return None;
                }
                (next.epoch, next.owner) = (state.epoch + 1, number);
                next.in_sync |= bit(number);
                next.nodes[number].leased = true;
            }
            Action::Take(number) => {
                let node = &mut next.nodes[number];
                let known = node.owner.is_some_and(|owner| owner.epoch == state.epoch);
                if !node.runs
                    || !node.leased
                    || state.owner != number
                    || known
                    || node.promised >= state.epoch
                {
                    return None;
                }
                node.promised = state.epoch;
                node.owner = Some(Owner {
                    epoch: state.epoch,
                    set: state.in_sync,
                    recovered: bit(number),
                    write: None,
                });
            }
            Action::Recover(number, other) => {
                let data = state.nodes[number].data;
                let owner = next.nodes[number].owner.as_mut()?;
                let wanted = owner.set & !owner.recovered & bit(other) != 0;
                let (epoch, waits) = (owner.epoch, owner.write.is_some());
                let to = &state.nodes[other];
                if !wanted || waits || !state.nodes[number].runs || !to.runs || to.promised > epoch {
                    return None;
                }
                owner.recovered |= bit(other);
                let to = &mut next.nodes[other];
                (to.promised, to.taken, to.data) = (epoch, 0, data);
            }
            Action::Evict(number, other) => {
                let node = &mut next.nodes[number];
                let owner = node.owner.as_mut()?;
                if !node.runs || !node.leased || owner.set & bit(other) == 0 {
                    return None;
                }
                if self.0 == Break::ShrinkAlone {
                    owner.set &= !bit(other);
                    return Some(next);
                }
                if owner.epoch != state.epoch {
                    return None;
                }
                // Compare-and-set. Acknowledged again only after this commit.
                next.epoch += 1;
                next.in_sync &= !bit(other);
                (owner.epoch, owner.set) = (next.epoch, next.in_sync);
                node.promised = next.epoch;
                // The write under way goes to the others again under the new epoch.
                if let Some((write, have)) = owner.write {
                    let (epoch, rest) = (owner.epoch, owner.set & !have);
                    next.messages.extend(members(rest).map(|to| (epoch, write, to as u8)));
                }
            }
            Action::Admit(number, other) => {
                let data = state.nodes[number].data;
                let node = &mut next.nodes[number];
                let owner = node.owner.as_mut()?;
                let quiet = owner.write.is_none() && owner.set & !owner.recovered == 0;
                let allowed = node.runs
                    && node.leased
                    && quiet
                    && owner.epoch == state.epoch
                    && owner.set & bit(other) == 0
                    && state.nodes[other].runs
                    && state.nodes[other].promised <= state.epoch;
                if !allowed {
                    return None;
                }
                next.epoch += 1;
                next.in_sync |= bit(other);
                (owner.epoch, owner.set) = (next.epoch, next.in_sync);
                owner.recovered |= bit(other);
                node.promised = next.epoch;
                let learner = &mut next.nodes[other];
                (learner.promised, learner.taken) = (next.epoch, 0);
                if self.0 != Break::AdmitUncopied {
                    learner.data = data;
                }
            }
        }
        next.messages.sort_unstable();
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two owners serve in one instant", |model: &Self, state: &State| {
                state.nodes.iter().filter(|node| model.serves(node)).count() <= 1
            }),
            Property::always("every member has what was acknowledged", |_, state: &State| {
                members(state.in_sync).all(|member| state.nodes[member].data >= state.acknowledged)
            }),
            Property::always(
                "an owner that serves has what was acknowledged and what was read",
                |model: &Self, state: &State| {
                    let newest = state.acknowledged.max(state.read);
                    state.nodes.iter().all(|node| !model.serves(node) || node.data >= newest)
                },
            ),
            Property::always("members are alike when nothing is under way", |model: &Self, state: &State| {
                state.nodes.iter().filter(|node| model.serves(node)).all(|node| {
                    node.owner.is_none_or(|owner| {
                        owner.write.is_some()
                            || owner.epoch != state.epoch
                            || members(owner.set).all(|member| state.nodes[member].data == node.data)
                    })
                })
            }),
            Property::sometimes("a promoted node acknowledges", |model: &Self, state: &State| {
                state.acknowledged == WRITES_MAX
                    && state.owner != 0
                    && model.serves(&state.nodes[state.owner])
            }),
            Property::sometimes("a member left and came back", |_, state: &State| {
                state.in_sync == bit(NODES) - 1 && state.epoch > 2 && state.owner == 0
            }),
        ]
    }
}

#[test]
fn no_order_of_events_loses_an_acknowledged_write() {
    let checker = Replication(Break::Nothing).checker().spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.is_done());
}

#[test]
fn each_broken_rule_of_replication_is_found() {
    for broken in [
        Break::AcknowledgeEarly,
        Break::PromoteUnderLease,
        Break::PromoteAnyone,
        Break::ShrinkAlone,
        Break::TakeLowerEpochs,
        Break::IgnoreSequence,
        Break::ServeUnrecovered,
        Break::AdmitUncopied,
        Break::ReadUnfinished,
    ] {
        let checker =
            Replication(broken).checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let found: Vec<_> =
            checker.discoveries().into_keys().filter(|name| !name.starts_with("a ")).collect();
        assert!(!found.is_empty(), "{broken:?} was not found");
        println!("{broken:?}: {found:?}");
    }
}
