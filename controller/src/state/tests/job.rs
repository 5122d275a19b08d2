//! Rules of jobs.

use holdfast_proto::state::{self as records, JobKind, JobState, change};

use super::build::*;
use crate::state::{Body, Outcome, Refusal, StateMachine, is_node_visible, job::estimated_ms_left, limits};

fn begin(kind: JobKind, subject: &str) -> Body {
    Body::BeginJob(records::BeginJob {
        kind: kind.into(),
        subject: subject.to_owned(),
        total: 100,
        ..Default::default()
    })
}

fn report(id: u64, done: u64) -> Body {
    Body::ReportJob(records::ReportJob { id, done, total: 100, message: String::new() })
}

fn end(id: u64, state: JobState) -> Body {
    Body::EndJob(records::EndJob { id, state: state.into(), message: "so".to_owned() })
}

fn cancel(id: u64) -> Body {
    Body::CancelJob(records::CancelJob { request: None, id })
}

fn id_of(cluster: &mut Cluster, body: Body) -> u64 {
    match cluster.ask(body) {
        Ok(Outcome::Job(job)) => job.id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn progress_is_reported_until_the_job_ends() {
    let mut cluster = Cluster::new();
    let id = id_of(&mut cluster, begin(JobKind::ReSync, "volume/db1"));
    assert!(matches!(cluster.refused(begin(JobKind::ReSync, "volume/db1")), Refusal::Precondition(_)));
    let other = id_of(&mut cluster, begin(JobKind::Move, "volume/db1"));
    assert_eq!(other, id + 1);
    let before = cluster.state.job(id).unwrap().clone();
    assert_eq!(estimated_ms_left(&before), None);
    cluster.index += 9;
    let applied = cluster.done(report(id, 25));
    assert!(!applied.commit.changes.iter().any(is_node_visible));
    let job = cluster.state.job(id).unwrap();
    let elapsed_ms = job.updated_unix_ms - job.began_unix_ms;
    assert_eq!(estimated_ms_left(job), Some(3 * elapsed_ms));
    // Told again, it is no change.
    assert!(cluster.done(report(id, 25)).commit.changes.is_empty());
    assert!(matches!(cluster.refused(report(id, 101)), Refusal::Invalid { field: "done", .. }));
    assert!(matches!(cluster.refused(end(id, JobState::Running)), Refusal::Invalid { field: "state", .. }));
    cluster.done(end(id, JobState::Done));
    let job = cluster.state.job(id).unwrap().clone();
    assert_eq!((job.done, job.state(), job.message.as_str()), (100, JobState::Done, "so"));
    for late in [report(id, 30), end(id, JobState::Failed), cancel(id)] {
        let text = cluster.refused(late).to_string();
        assert_eq!(text, format!("job {id} has ended already: it is done"));
    }
    assert!(matches!(cluster.refused(report(99, 1)), Refusal::NotFound { .. }));
    id_of(&mut cluster, begin(JobKind::ReSync, "volume/db1"));
}

#[test]
fn only_what_can_stop_halfway_is_cancelled() {
    let mut cluster = Cluster::new();
    let id = id_of(&mut cluster, begin(JobKind::Move, "volume/db1"));
    let Ok(Outcome::Job(job)) = cluster.ask(cancel(id)) else { panic!() };
    assert!(job.cancel_requested && job.state() == JobState::Running);
    cluster.done(end(id, JobState::Cancelled));
    let id = id_of(&mut cluster, begin(JobKind::ReSync, "volume/db1"));
    assert!(cluster.refused(cancel(id)).to_string().contains("cannot be cancelled"));
    assert!(matches!(cluster.refused(begin(JobKind::Move, "db1")), Refusal::Invalid { .. }));
    assert!(matches!(cluster.refused(begin(JobKind::Unspecified, "a/b")), Refusal::Invalid { .. }));
}

#[test]
fn deletion_of_a_volume_is_a_job() {
    let mut cluster = Cluster::new();
    cluster.done(create_volume(1, "db1"));
    cluster.done(delete_volume("db1"));
    let job = cluster.state.running_job(JobKind::DeleteVolume, "volume/db1").unwrap().clone();
    assert_eq!((job.done, job.total), (0, 1));
    // Asked for again, it is the same one.
    cluster.done(delete_volume("db1"));
    assert_eq!(cluster.state.jobs().count(), 1);
    cluster.done(removed(1, 1));
    let job = cluster.state.job(job.id).unwrap();
    assert_eq!((job.done, job.state()), (1, JobState::Done));
    assert!(cluster.state.volume_by_name("db1").is_none());
}

#[test]
fn the_youngest_of_the_ended_jobs_are_kept_and_all_that_run() {
    let mut cluster = Cluster::new();
    let running = id_of(&mut cluster, begin(JobKind::Drain, "node/node-1"));
    let mut removed = Vec::new();
    for _ in 0..limits::JOBS_ENDED_KEPT + 3 {
        let id = id_of(&mut cluster, begin(JobKind::Move, "volume/db1"));
        let changes = cluster.done(end(id, JobState::Done)).commit.changes;
        removed.extend(changes.into_iter().filter_map(|change| match change.change {
            Some(change::Change::RemovedJob(id)) => Some(id),
            _ => None,
        }));
    }
    assert_eq!(removed, [2, 3, 4]);
    assert_eq!(cluster.state.jobs().count(), limits::JOBS_ENDED_KEPT + 1);
    assert!(cluster.state.job(running).is_some());
    assert_eq!(StateMachine::from_changes(cluster.state.to_changes()), Ok(cluster.state));
}
