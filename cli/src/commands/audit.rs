//! `holdfast audit`.

use holdfast_proto::v1::{
    AuditRecord, ListAuditRequest, ListAuditResponse, audit_service_client::AuditServiceClient,
};

use super::PAGE_SIZE;
use crate::{
    arguments::{Audit, Client},
    connection::{connect, refusal},
    output::{or_dash, print, table, utc},
};

pub(crate) async fn run(client: &Client, verb: Audit) -> anyhow::Result<()> {
    let Audit::List { after, subject } = verb;
    let subject = subject.unwrap_or_default();
    let mut service = AuditServiceClient::new(connect(client).await?);
    let mut answer = ListAuditResponse::default();
    loop {
        let request = ListAuditRequest {
            after_index: after,
            subject: subject.clone(),
            page_size: PAGE_SIZE,
            page_token: std::mem::take(&mut answer.next_page_token),
        };
        let page = service.list_audit(request).await.map_err(refusal)?.into_inner();
        answer.records.extend(page.records);
        answer.next_page_token = page.next_page_token;
        answer.dropped_index = page.dropped_index;
        if answer.next_page_token.is_empty() {
            break;
        }
    }
    print(client.output, "ListAuditResponse", &answer, || {
        let rows = table(
            ["index", "time", "who", "action", "subject", "asked for", "outcome"],
            answer.records.iter().map(row),
        );
        if answer.dropped_index > after {
            return format!(
                "Some records up to index {} are not kept any more.\n{rows}",
                answer.dropped_index
            );
        }
        rows
    })
}

fn row(record: &AuditRecord) -> [String; 7] {
    let fields: Vec<_> =
        record.fields.iter().map(|field| format!("{}={}", field.name, field.value)).collect();
    let times = if record.times > 1 { format!(" ({} times)", record.times) } else { String::new() };
    let outcome = if record.reason.is_empty() {
        record.outcome.clone()
    } else {
        format!("{}: {}{times}", record.outcome, record.reason)
    };
    [
        record.index.to_string(),
        record.time.as_ref().map_or_else(|| "-".to_owned(), |time| utc(time.seconds)),
        or_dash(format!("{} {}", record.role, record.name).trim()),
        record.action.clone(),
        or_dash(&record.subject),
        or_dash(&fields.join("\n")),
        outcome,
    ]
}
