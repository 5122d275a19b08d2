//! How far drains, moves and the spreading of ownership are, as jobs. Pure.
//!
//! Invariants: what a job says follows from the state and from what nodes said; a report of progress is made only when it says something
//! new, and every two seconds at most.

use holdfast_proto::state::{self as records, JobKind, JobState};
use holdfast_replica::ids::NodeNumber;

use super::{memory::Memory, plan::View};
use crate::state::{Body, StateMachine};

pub(super) fn proposals(view: &View<'_>, memory: &mut Memory) -> Vec<Body> {
    let mut all = Vec::new();
    for job in view.state.running_jobs() {
        all.extend(match job.kind() {
            JobKind::Drain => drain(view, memory, job),
            JobKind::Move => a_move(view, memory, job),
            JobKind::Rebalance if job.cancel_requested => {
                Some(Body::Rebalance(records::Rebalance { on: false, stopped: true, request: None }))
            }
            _ => None,
        });
    }
    all
}

fn end(job: &records::Job, state: JobState, message: &str) -> Option<Body> {
    Some(Body::EndJob(records::EndJob { id: job.id, state: state.into(), message: message.to_owned() }))
}

fn report(
    view: &View<'_>,
    memory: &mut Memory,
    job: &records::Job,
    done: u64,
    total: u64,
    message: &str,
) -> Option<Body> {
    let says_more = (job.done, job.total, job.message.as_str()) != (done, total, message);
    (says_more && memory.may_report(job.id, view.now))
        .then(|| Body::ReportJob(records::ReportJob { id: job.id, done, total, message: message.to_owned() }))
}

fn drain(view: &View<'_>, memory: &mut Memory, job: &records::Job) -> Option<Body> {
    let name = job.subject.strip_prefix("node/").unwrap_or_default();
    let Some(node) = view.state.node_by_name(name).filter(|node| node.draining) else {
        return end(job, JobState::Cancelled, "the node is not drained any more");
    };
    if job.cancel_requested {
        let cordon = records::CordonNode { name: name.to_owned(), cordoned: true, ..Default::default() };
        return Some(Body::CordonNode(cordon));
    }
    if view.state.is_drained(node) {
        let staying = view.state.staying(node);
        return match staying.split_first() {
            None => end(job, JobState::Done, "nothing is left on the node"),
            Some((first, others)) => {
                let more =
                    if others.is_empty() { String::new() } else { format!(" (and {} more)", others.len()) };
                end(job, JobState::Done, &format!("it {first}{more}"))
            }
        };
    }
    let left = view.state.left_on(node) as u64;
    let total = job.total.max(left);
    let owned = view.state.owned_by(node.number);
    let message = if owned > 0 {
        format!("hands over what it owns: {owned} left")
    } else {
        "its copies are moved".to_owned()
    };
    report(view, memory, job, total - left, total, &message)
}

fn a_move(view: &View<'_>, memory: &mut Memory, job: &records::Job) -> Option<Body> {
    let name = job.subject.strip_prefix("volume/").unwrap_or_default();
    let Some(volume) = view.state.volume_by_name(name).filter(|v| !v.deleting) else {
        return end(job, JobState::Failed, "the volume is deleted");
    };
    let Some((from, to)) = volume.moves.first() else {
        let state = if job.cancel_requested { JobState::Cancelled } else { JobState::Done };
        return end(job, state, "");
    };
    if job.cancel_requested {
        return Some(Body::DropReplica(records::DropReplica {
            request: None,
            volume: name.to_owned(),
            node: u32::from(to.get()),
            fewer: false,
        }))
        .filter(|_| !volume.is_in_sync(*to));
    }
    let owner = volume.owner_node().map_or(0, |owner| u32::from(owner.get()));
    let said = view.reports.of(volume.id, u32::from(to.get()), owner)?;
    let done = said.total_bytes.saturating_sub(said.remaining_bytes);
    let message = format!("{} to {}", called(view.state, *from), called(view.state, *to));
    report(view, memory, job, done, said.total_bytes, &message)
}

fn called(state: &StateMachine, node: NodeNumber) -> String {
    state.node_name(u32::from(node.get()))
}
