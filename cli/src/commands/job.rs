//! `holdfast job`.

use anyhow::bail;
use holdfast_proto::v1::{
    CancelJobRequest, GetJobRequest, Job as JobRecord, JobStatus, ListJobsRequest, ListJobsResponse,
    WatchJobsRequest, job_change::Change, job_service_client::JobServiceClient,
};

use super::{PAGE_SIZE, follow};
use crate::{
    arguments::{Client, Format, Job},
    connection::{Access, connect, refusal, request_id},
    output::{facts, or_dash, print, print_line, table, utc},
    size::Size,
};

pub(crate) async fn run(client: &Client, verb: Job) -> anyhow::Result<()> {
    let one = match verb {
        Job::List { kind, subject, watch: true, .. } => {
            return watch(client, kind.unwrap_or_default(), subject.unwrap_or_default()).await;
        }
        Job::List { kind, subject, state, .. } => {
            let request = ListJobsRequest {
                kind: kind.unwrap_or_default(),
                subject: subject.unwrap_or_default(),
                state: state.unwrap_or_default(),
                page_size: PAGE_SIZE,
                page_token: String::new(),
            };
            let answer = list(client, request).await?;
            return print(client.output, "ListJobsResponse", &answer, || rows(&answer.jobs));
        }
        Job::Wait { id } => return wait(client, id).await,
        Job::Show { id } => JobServiceClient::new(connect(client).await?).get_job(GetJobRequest { id }).await,
        Job::Cancel { id } => {
            let request = CancelJobRequest { request_id: request_id(), id };
            JobServiceClient::new(connect(client).await?).cancel_job(request).await
        }
    };
    let job = one.map_err(refusal)?.into_inner();
    print(client.output, "Job", &job, || details(&job))
}

async fn list(client: &Client, mut request: ListJobsRequest) -> anyhow::Result<ListJobsResponse> {
    let mut service = JobServiceClient::new(connect(client).await?);
    let mut answer = ListJobsResponse::default();
    loop {
        let page = service.list_jobs(request.clone()).await.map_err(refusal)?.into_inner();
        answer.jobs.extend(page.jobs);
        if page.next_page_token.is_empty() {
            return Ok(answer);
        }
        request.page_token = page.next_page_token;
    }
}

async fn changes(
    client: &Client,
    kind: String,
    subject: String,
) -> anyhow::Result<tonic::Streaming<holdfast_proto::v1::JobChange>> {
    let mut service = JobServiceClient::new(Access::find(client)?.connect_for_stream().await?);
    Ok(service
        .watch_jobs(WatchJobsRequest { kind, subject, after_revision: 0 })
        .await
        .map_err(refusal)?
        .into_inner())
}

async fn watch(client: &Client, kind: String, subject: String) -> anyhow::Result<()> {
    let stream = changes(client, kind, subject).await?;
    let each = |step: holdfast_proto::v1::JobChange| -> anyhow::Result<Option<()>> {
        let line = match &step.change {
            Some(Change::Changed(job)) => line(job),
            Some(Change::Removed(_) | Change::Synced(_)) | None if client.output == Format::Table => {
                return Ok(None);
            }
            _ => String::new(),
        };
        print_line(client.output, "JobChange", &step, || line)?;
        Ok(None)
    };
    follow(stream, each).await.map(|_| ())
}

/// Waits for the end of a job.
async fn wait(client: &Client, id: u64) -> anyhow::Result<()> {
    // One that is not there at all is told now.
    let mut service = JobServiceClient::new(connect(client).await?);
    service.get_job(GetJobRequest { id }).await.map_err(refusal)?;
    let stream = changes(client, String::new(), String::new()).await?;
    let ended = follow(stream, |step| {
        Ok(match step.change {
            Some(Change::Changed(job)) if job.id == id && state(&job) != "running" => Some(job),
            Some(Change::Removed(name)) if name == id.to_string() => bail!("job {id} is not kept any more"),
            _ => None,
        })
    });
    let Some(job) = ended.await? else { return Ok(()) };
    print(client.output, "Job", &job, || details(&job))?;
    match state(&job).as_str() {
        "done" => Ok(()),
        other => bail!("job {id} is {other}: {}", job.status.unwrap_or_default().message),
    }
}

fn state(job: &JobRecord) -> String {
    job.status.as_ref().map_or_else(String::new, |status| status.state.clone())
}

fn progress(status: &JobStatus) -> String {
    let amount = |n: u64| if status.unit == "bytes" { Size(n).to_string() } else { n.to_string() };
    if status.total == 0 {
        return format!("{} {}", amount(status.done), status.unit);
    }
    let percent = u128::from(status.done) * 100 / u128::from(status.total);
    let unit = if status.unit == "bytes" { "" } else { &format!(" {}", status.unit) };
    format!("{percent}% ({} of {}{unit})", amount(status.done), amount(status.total))
}

fn left(status: &JobStatus) -> String {
    match status.estimated_ms_left {
        None => "-".to_owned(),
        Some(ms) if ms < 60_000 => format!("{} s", ms.div_ceil(1000)),
        Some(ms) => format!("{} min", ms.div_ceil(60_000)),
    }
}

fn cells(job: &JobRecord) -> [String; 7] {
    let (spec, status) = (job.spec.clone().unwrap_or_default(), job.status.clone().unwrap_or_default());
    let ending = spec.cancel_requested && status.state == "running";
    [
        job.id.to_string(),
        spec.kind,
        spec.subject,
        if ending { "ending".to_owned() } else { status.state.clone() },
        progress(&status),
        left(&status),
        or_dash(&status.message),
    ]
}

fn line(job: &JobRecord) -> String {
    let [id, kind, subject, state, progress, left, message] = cells(job);
    format!("{id:>6}  {kind:<14} {subject:<24} {state:<10} {progress:<28} {left:<8} {message}")
}

fn rows(jobs: &[JobRecord]) -> String {
    table(["job", "kind", "subject", "state", "progress", "left", "message"], jobs.iter().map(cells))
}

fn details(job: &JobRecord) -> String {
    let (spec, status) = (job.spec.clone().unwrap_or_default(), job.status.clone().unwrap_or_default());
    let moment =
        |time: Option<&prost_types::Timestamp>| time.map_or_else(|| "-".to_owned(), |time| utc(time.seconds));
    let [id, kind, subject, state, progress, left, message] = cells(job);
    facts([
        ("job", id),
        ("kind", kind),
        ("subject", subject),
        ("state", state),
        ("progress", progress),
        ("left", left),
        ("message", message),
        ("begun by", or_dash(&spec.begun_by)),
        ("began", moment(status.began.as_ref())),
        ("updated", moment(status.updated.as_ref())),
        ("ended", moment(status.ended.as_ref())),
    ])
}
