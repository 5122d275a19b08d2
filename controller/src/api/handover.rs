//! May a volume be handed over? A pure question to the state.
//!
//! Invariant: ownership goes only to a member of the in-sync set (design 6.14); the reason names those that there are.

use holdfast_proto::state as records;
use holdfast_replica::ids::NodeNumber;

use crate::state::{StateMachine, Volume};

/// What is in the way of moving the volume to `node`; `None` when that node owns it already, or may.
pub(super) fn in_the_way_of_move(
    state: &StateMachine,
    volume: &Volume,
    node: &records::Node,
) -> Option<String> {
    let number = NodeNumber::new(node.number)?;
    if volume.owner_node() == Some(number) {
        return None;
    }
    let reason = if volume.is_in_sync(number) {
        state.may_take(volume, volume.config.epoch(), number).err()?
    } else {
        let members = volume.config.in_sync().iter().map(|m| state.node_name(u32::from(m.node.get())));
        let members: Vec<String> = members.collect();
        format!("node {} has no in-sync copy of it (in sync: {})", node.name, members.join(", "))
    };
    Some(format!("volume {} is not moved: {reason}", volume.name))
}
