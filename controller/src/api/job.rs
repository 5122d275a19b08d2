//! JobService.

use std::sync::Arc;

use holdfast_proto::{
    state::{self as records, JobKind, JobState},
    v1::{
        CancelJobRequest, GetJobRequest, Job, JobChange, JobSpec, JobStatus, ListJobsRequest,
        ListJobsResponse, WatchJobsRequest, job_change::Change, job_service_server::JobService,
    },
};
use tonic::{Request, Response, Status};

use super::{
    Api, called,
    nouns::Jobs,
    page::page,
    request::client_request,
    status, unexpected,
    watch::{Step, Watch},
};
use crate::state::{
    Body, Kind, Outcome, Refusal, StateMachine,
    audit::timestamp,
    job::{KINDS, estimated_ms_left, kind_name, state_name, unit},
    names::printable,
};

/// Jobs that are asked for.
pub(super) struct Filter {
    kind: Option<JobKind>,
    subject: String,
    state: Option<JobState>,
}

impl Filter {
    fn new(kind: &str, subject: String, state: &str) -> Result<Filter, Refusal> {
        let wrong = |field, text: &str, all: &[&str]| Refusal::Invalid {
            field,
            reason: format!("'{}' is none of {}", printable(text), all.join(", ")),
        };
        let kinds = KINDS.map(kind_name);
        let kind = match kind {
            "" => None,
            text => Some(
                KINDS
                    .into_iter()
                    .find(|kind| kind_name(*kind) == text)
                    .ok_or_else(|| wrong("kind", text, &kinds))?,
            ),
        };
        let states = [JobState::Running, JobState::Done, JobState::Failed, JobState::Cancelled];
        let state = match state {
            "" => None,
            text => Some(
                states
                    .into_iter()
                    .find(|state| state_name(*state) == text)
                    .ok_or_else(|| wrong("state", text, &states.map(state_name)))?,
            ),
        };
        Ok(Filter { kind, subject, state })
    }

    pub(super) fn wants(&self, job: &records::Job) -> bool {
        self.kind.is_none_or(|kind| kind == job.kind())
            && self.state.is_none_or(|state| state == job.state())
            && (self.subject.is_empty()
                || self.subject == job.subject
                || (self.subject.ends_with('/') && job.subject.starts_with(&self.subject)))
    }

    pub(super) fn jobs<'a>(&'a self, state: &'a StateMachine) -> impl Iterator<Item = &'a records::Job> {
        state.jobs().filter(|job| self.wants(job))
    }
}

pub(super) fn view(job: &records::Job) -> Job {
    let moment = |unix_ms: u64| (unix_ms != 0).then(|| timestamp(unix_ms));
    Job {
        id: job.id,
        spec: Some(JobSpec {
            kind: kind_name(job.kind()).to_owned(),
            subject: job.subject.clone(),
            begun_by: job.begun_by.clone(),
            cancel_requested: job.cancel_requested,
        }),
        status: Some(JobStatus {
            state: state_name(job.state()).to_owned(),
            done: job.done,
            total: job.total,
            unit: unit(job.kind()).to_owned(),
            message: job.message.clone(),
            began: moment(job.began_unix_ms),
            updated: moment(job.updated_unix_ms),
            ended: moment(job.ended_unix_ms),
            estimated_ms_left: estimated_ms_left(job),
        }),
    }
}

fn change(revision: u64, step: Step<Job>) -> JobChange {
    let change = match step {
        Step::Changed(job) => Change::Changed(job),
        Step::Removed(name) => Change::Removed(name),
        Step::Synced => Change::Synced(true),
    };
    JobChange { change: Some(change), revision }
}

#[tonic::async_trait]
impl JobService for Api {
    type WatchJobsStream = Watch<JobChange>;

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        let id = request.into_inner().id;
        let found = self.read(|state| state.job(id).map(view)).await?;
        let missing = || Refusal::NotFound { kind: Kind::Job, name: id.to_string() };
        found.map(Response::new).ok_or_else(|| status::refused(&missing()))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let request = request.into_inner();
        let filter = Filter::new(&request.kind, request.subject, &request.state)
            .map_err(|refusal| status::refused(&refusal))?;
        // The key falls as the id grows: the newest is first.
        let key = |id: u64| format!("{:020}", u64::MAX - id);
        let rows =
            self.read(|state| filter.jobs(state).map(|job| (key(job.id), view(job))).collect()).await?;
        let (jobs, next_page_token) = page(rows, request.page_size, &request.page_token)?;
        Ok(Response::new(ListJobsResponse { jobs, next_page_token }))
    }

    async fn watch_jobs(
        &self,
        request: Request<WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let request = request.into_inner();
        let filter =
            Filter::new(&request.kind, request.subject, "").map_err(|refusal| status::refused(&refusal))?;
        self.watch(Jobs(Arc::new(filter)), request.after_revision, change).await.map(Response::new)
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<Job>, Status> {
        let (call, mut request) = called(request)?;
        let id = std::mem::take(&mut request.request_id);
        let client = client_request(id, "CancelJob", &request);
        let body = Body::CancelJob(records::CancelJob { request: client, id: request.id });
        match self.write(&call, body).await? {
            Outcome::Job(job) => Ok(Response::new(view(&job))),
            other => Err(unexpected(&other)),
        }
    }
}
