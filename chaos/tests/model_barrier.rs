//! The barrier of a reservation change, leases and a change of the controllers' leader, explored exhaustively for two nodes.
//!
//! Time is counted in ticks that every clock makes alike; a lease lasts [`LEASE`] ticks from the *sending* of its renewal. Messages are lost
//! or late at will. The rules that the model has can be broken one by one, and each break must be found.

use stateright::{Checker, HasDiscoveries, Model, Property};

const NODES: usize = 2;
/// Ticks of a lease.
const LEASE: u8 = 2;
/// Ticks after which a renewal that is still under way brings nothing any more.
const AGE_MAX: u8 = LEASE;

/// A rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    Nothing,
    /// GOOD without waiting for anybody.
    SkipBarrier,
    /// The node counts its lease from when the grant came.
    CountFromReceipt,
    /// A new leader takes every lease that it did not grant for expired.
    NoGrace,
    /// A node serves under a grant before it has applied the grant's index.
    ServeBeforeIndex,
    /// A node confirms before it has installed.
    ConfirmEarly,
}

/// A renewal under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Renewal {
    /// Ticks since it was sent.
    age: u8,
    /// The grant: whether its index is that of the change.
    granted: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Node {
    /// Ticks left of the lease under the old index.
    old_left: u8,
    /// Ticks left of the lease under the index of the change.
    new_left: u8,
    /// The change is installed.
    installed: bool,
    renewal: Option<Renewal>,
    /// What the leader knows: ticks until a lease under the old index has surely run out.
    leader_left: u8,
    /// What the leader knows: the change is installed.
    confirmed: bool,
}

impl Node {
    fn serves_old(&self, broken: Break) -> bool {
        let under_new = broken == Break::ServeBeforeIndex && self.new_left > 0;
        !self.installed && (self.old_left > 0 || under_new)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    nodes: [Node; NODES],
    committed: bool,
    good: bool,
    leader_changed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Tick,
    SendRenewal(usize),
    Grant(usize),
    TakeGrant(usize),
    LoseRenewal(usize),
    Commit,
    Install(usize),
    Confirm(usize),
    ChangeLeader,
    Good,
}

struct Barrier(Break);

impl Model for Barrier {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let nodes = std::array::from_fn(|_| Node { old_left: LEASE, leader_left: LEASE, ..Node::default() });
        vec![State { nodes, committed: false, good: false, leader_changed: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Tick);
        if !state.committed {
            actions.push(Action::Commit);
        }
        if !state.leader_changed {
            actions.push(Action::ChangeLeader);
        }
        if state.committed && !state.good {
            actions.push(Action::Good);
        }
        for (number, node) in state.nodes.iter().enumerate() {
            match node.renewal {
                None => actions.push(Action::SendRenewal(number)),
                Some(renewal) => {
                    actions.push(if renewal.granted.is_some() {
                        Action::TakeGrant(number)
                    } else {
                        Action::Grant(number)
                    });
                    actions.push(Action::LoseRenewal(number));
                }
            }
            if state.committed && !node.installed {
                actions.push(Action::Install(number));
            }
            let may_confirm = node.installed || self.0 == Break::ConfirmEarly;
            if state.committed && may_confirm && !node.confirmed {
                actions.push(Action::Confirm(number));
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Tick => {
                for node in &mut next.nodes {
                    node.old_left = node.old_left.saturating_sub(1);
                    node.new_left = node.new_left.saturating_sub(1);
                    node.leader_left = node.leader_left.saturating_sub(1);
                    node.renewal = node.renewal.and_then(|mut renewal| {
                        renewal.age += 1;
                        (renewal.age < AGE_MAX).then_some(renewal)
                    });
                }
            }
            Action::SendRenewal(number) => {
                next.nodes[number].renewal = Some(Renewal { age: 0, granted: None });
            }
            Action::Grant(number) => {
                let node = &mut next.nodes[number];
                node.renewal.as_mut()?.granted = Some(state.committed);
                if !state.committed {
                    // Later than the node can count: it began when the renewal was sent.
                    node.leader_left = LEASE;
                }
            }
            Action::TakeGrant(number) => {
                let node = &mut next.nodes[number];
                let renewal = node.renewal.take()?;
                let age = if self.0 == Break::CountFromReceipt { 0 } else { renewal.age };
                let left = LEASE.saturating_sub(age);
                if renewal.granted? {
                    node.new_left = node.new_left.max(left);
                } else {
                    node.old_left = node.old_left.max(left);
                }
            }
            Action::LoseRenewal(number) => next.nodes[number].renewal = None,
            Action::Commit => next.committed = true,
            Action::Install(number) => next.nodes[number].installed = true,
            Action::Confirm(number) => next.nodes[number].confirmed = true,
            Action::ChangeLeader => {
                next.leader_changed = true;
                for node in &mut next.nodes {
                    // It knows of no grant and no confirmation. What the old one has not answered it never will.
                    node.leader_left = if self.0 == Break::NoGrace { 0 } else { LEASE };
                    node.confirmed = false;
                    node.renewal = node.renewal.filter(|renewal| renewal.granted.is_some());
                }
            }
            Action::Good => {
                let passed =
                    |node: &Node| node.confirmed || node.leader_left == 0 || self.0 == Break::SkipBarrier;
                if !state.nodes.iter().all(passed) {
                    return None;
                }
                next.good = true;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "after GOOD nobody serves under the old reservations",
                |model: &Self, state: &State| {
                    !state.good || !state.nodes.iter().any(|node| node.serves_old(model.0))
                },
            ),
            Property::sometimes("GOOD although a node never heard", |_, state: &State| {
                state.good && state.nodes.iter().any(|node| !node.installed)
            }),
            Property::sometimes("GOOD after a change of leader, every node serving", |_, state: &State| {
                state.good
                    && state.leader_changed
                    && state.nodes.iter().all(|node| node.installed && node.new_left > 0)
            }),
        ]
    }
}

const SAFETY: &str = "after GOOD nobody serves under the old reservations";

#[test]
fn no_order_of_events_breaks_the_barrier() {
    let checker = Barrier(Break::Nothing).checker().spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.is_done());
}

#[test]
fn each_broken_rule_of_the_barrier_is_found() {
    for broken in [
        Break::SkipBarrier,
        Break::CountFromReceipt,
        Break::NoGrace,
        Break::ServeBeforeIndex,
        Break::ConfirmEarly,
    ] {
        let checker = Barrier(broken).checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let path = checker.discovery(SAFETY);
        assert!(path.is_some(), "{broken:?} was not found");
    }
}
