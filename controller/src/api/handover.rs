//! May a volume be handed over? A pure question to the state.
//!
//! Invariant: ownership goes only to a member of the in-sync set (design 6.14); with one copy there is no other, and the reason
//! says so.

use holdfast_proto::state as records;

use crate::state::StateMachine;

/// What is in the way of moving the volume to `node`; `None` when that node owns it already.
pub(super) fn in_the_way_of_move(
    state: &StateMachine,
    volume: &records::Volume,
    node: &records::Node,
) -> Option<String> {
    if volume.owner == node.number {
        return None;
    }
    let name_of = |number: u32| state.nodes().find(|n| n.number == number).map_or("?", |n| n.name.as_str());
    let members: Vec<_> = volume.in_sync.iter().map(|member| name_of(member.node)).collect();
    Some(format!(
        "volume {} is not moved: node {} has no in-sync copy of it (in sync: {})",
        volume.name,
        node.name,
        if members.is_empty() { "none".to_owned() } else { members.join(", ") }
    ))
}
