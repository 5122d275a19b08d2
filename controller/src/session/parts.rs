//! The state as data nodes get it: a snapshot in parts of bounded size, commits without what is not theirs.

use holdfast_proto::{node::SnapshotPart, state as records};
use prost::Message as _;

use crate::state::is_node_visible;

/// Encoded records of one part, in bytes, about: a part is closed once it has this many.
const PART_BYTES: usize = 256 * 1024;

/// The records of the state at `index`, in parts; at least one, the last one marked.
pub(super) fn snapshot(index: u64, changes: Vec<records::Change>) -> Vec<SnapshotPart> {
    let mut parts = Vec::new();
    let mut open = SnapshotPart { index, changes: Vec::new(), last: false };
    let mut bytes = 0;
    for change in changes {
        bytes += change.encoded_len();
        open.changes.push(change);
        if bytes >= PART_BYTES {
            let full = SnapshotPart { index, changes: Vec::new(), last: false };
            parts.push(std::mem::replace(&mut open, full));
            bytes = 0;
        }
    }
    open.last = true;
    parts.push(open);
    parts
}

/// What nodes see of a commit; `None` if nothing.
pub fn visible(commit: &records::Commit) -> Option<records::Commit> {
    let changes: Vec<_> = commit.changes.iter().filter(|change| is_node_visible(change)).cloned().collect();
    let nothing = changes.is_empty() && commit.unit_attentions.is_empty() && commit.aborts.is_empty();
    (!nothing).then(|| records::Commit {
        index: commit.index,
        changes,
        unit_attentions: commit.unit_attentions.clone(),
        aborts: commit.aborts.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::state::change::Change;

    fn host(n: usize, bytes: usize) -> records::Change {
        let host = records::Host { name: format!("{n}"), initiators: vec!["i".repeat(bytes)], chap: None };
        records::Change { change: Some(Change::Host(host)) }
    }

    #[test]
    fn parts_are_bounded_and_hold_everything_in_order() {
        let changes: Vec<_> = (0..100).map(|n| host(n, 10_000)).collect();
        let parts = snapshot(7, changes.clone());
        assert!(parts.len() > 1);
        assert!(parts.iter().all(|p| p.index == 7 && p.encoded_len() <= PART_BYTES + 11_000));
        assert_eq!(parts.iter().filter(|p| p.last).count(), 1);
        assert!(parts.last().unwrap().last);
        assert_eq!(parts.into_iter().flat_map(|p| p.changes).collect::<Vec<_>>(), changes);
    }

    #[test]
    fn empty_state_is_one_last_part() {
        assert_eq!(snapshot(1, Vec::new()), [SnapshotPart { index: 1, changes: Vec::new(), last: true }]);
    }

    #[test]
    fn nodes_see_nothing_of_what_controllers_keep_for_themselves() {
        let head = records::Change { change: Some(Change::Head(3)) };
        let mut commit = records::Commit { index: 3, changes: vec![head], ..Default::default() };
        assert_eq!(visible(&commit), None);
        commit.changes.push(host(1, 1));
        assert_eq!(visible(&commit).unwrap().changes, [host(1, 1)]);
        commit.changes.clear();
        commit.aborts.push(records::AbortTasks::default());
        assert!(visible(&commit).is_some());
    }
}
