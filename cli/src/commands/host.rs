//! `holdfast host`.

use std::path::Path;

use anyhow::Context;
use holdfast_proto::v1::{
    ChapUpdate, CreateHostRequest, DeleteHostRequest, GetHostPolicyRequest, GetHostRequest,
    Host as HostRecord, HostChange, HostPolicy, HostSpec, ListHostsRequest, ListHostsResponse, Mapping,
    SetHostPolicyRequest, UpdateHostRequest, WatchHostsRequest, host_change::Change,
    host_service_client::HostServiceClient,
};

use super::{PAGE_SIZE, follow};
use crate::{
    arguments::{Client, Format, Host},
    connection::{Access, connect, refusal, request_id},
    output::{facts, or_dash, print, print_line, table},
};

pub(crate) async fn run(client: &Client, verb: Host) -> anyhow::Result<()> {
    if let Host::List { watch: true, .. } = verb {
        return watch(client).await;
    }
    let mut service = HostServiceClient::new(connect(client).await?);
    let secret = |file: Option<&Path>| file.map_or_else(|| Ok(String::new()), read_secret);
    let one = match verb {
        Host::Create(create) => {
            let chap = create.chap;
            let request = CreateHostRequest {
                request_id: request_id(),
                name: create.name,
                chap_secret: secret(chap.chap_secret_file.as_deref())?,
                chap_target_secret: secret(chap.chap_target_secret_file.as_deref())?,
                spec: Some(HostSpec {
                    initiators: create.initiator,
                    chap_user: chap.chap_user.unwrap_or_default(),
                    chap_target_user: chap.chap_target_user.unwrap_or_default(),
                }),
            };
            service.create_host(request).await
        }
        Host::Update(update) => {
            let chap = update.chap;
            let change = (update.no_chap || chap.chap_user.is_some()).then_some(()).map(|()| {
                anyhow::Ok(ChapUpdate {
                    user: chap.chap_user.unwrap_or_default(),
                    target_user: chap.chap_target_user.unwrap_or_default(),
                    secret: secret(chap.chap_secret_file.as_deref())?,
                    target_secret: secret(chap.chap_target_secret_file.as_deref())?,
                })
            });
            let request = UpdateHostRequest {
                request_id: request_id(),
                name: update.name,
                add_initiators: update.add_initiator,
                remove_initiators: update.remove_initiator,
                chap: change.transpose()?,
            };
            service.update_host(request).await
        }
        Host::Wildcards { choice } => {
            let policy = match choice {
                None => service.get_host_policy(GetHostPolicyRequest {}).await,
                Some(choice) => {
                    let policy = HostPolicy { wildcard_initiators: choice == "allow" };
                    let request = SetHostPolicyRequest { request_id: request_id(), policy: Some(policy) };
                    service.set_host_policy(request).await
                }
            };
            let policy = policy.map_err(refusal)?.into_inner();
            return print(client.output, "HostPolicy", &policy, || {
                let what = if policy.wildcard_initiators { "allowed" } else { "forbidden" };
                facts([("wildcards", what.to_owned())])
            });
        }
        Host::List { initiator, .. } => {
            let initiator = initiator.unwrap_or_default();
            let mut answer = ListHostsResponse::default();
            loop {
                let request = ListHostsRequest {
                    page_size: PAGE_SIZE,
                    page_token: std::mem::take(&mut answer.next_page_token),
                    initiator: initiator.clone(),
                };
                let page = service.list_hosts(request).await.map_err(refusal)?.into_inner();
                answer.hosts.extend(page.hosts);
                answer.next_page_token = page.next_page_token;
                if answer.next_page_token.is_empty() {
                    break;
                }
            }
            return print(client.output, "ListHostsResponse", &answer, || rows(&answer.hosts));
        }
        Host::Show { name } => service.get_host(GetHostRequest { name }).await,
        Host::Delete { name } => {
            let request = DeleteHostRequest { request_id: request_id(), name: name.clone() };
            service.delete_host(request).await.map_err(refusal)?;
            println!("host {name} deleted");
            return Ok(());
        }
    };
    let host = one.map_err(refusal)?.into_inner();
    print(client.output, "Host", &host, || rows(std::slice::from_ref(&host)))
}

async fn watch(client: &Client) -> anyhow::Result<()> {
    let mut service = HostServiceClient::new(Access::find(client)?.connect_for_stream().await?);
    let stream = service.watch_hosts(WatchHostsRequest::default()).await.map_err(refusal)?.into_inner();
    let each = |step: HostChange| -> anyhow::Result<Option<()>> {
        let line = match &step.change {
            Some(Change::Changed(host)) => {
                let spec = host.spec.clone().unwrap_or_default();
                let luns: Vec<String> = luns(host);
                format!("{:<20} {}  {}", host.name, spec.initiators.join(","), or_dash(&luns.join(", ")))
            }
            Some(Change::Removed(name)) => format!("{name:<20} deleted"),
            Some(Change::Synced(_)) | None if client.output == Format::Table => return Ok(None),
            _ => String::new(),
        };
        print_line(client.output, "HostChange", &step, || line)?;
        Ok(None)
    };
    follow(stream, each).await.map(|_| ())
}

fn luns(host: &HostRecord) -> Vec<String> {
    let status = host.status.clone().unwrap_or_default();
    let lun = |map: &Mapping| {
        let group = if map.group.is_empty() { String::new() } else { format!(" (group {})", map.group) };
        format!("{}: {}{group}", map.lun, map.volume)
    };
    status.mappings.iter().map(lun).collect()
}

/// Editors end a file with a line end; it is not part of the secret.
fn read_secret(file: &Path) -> anyhow::Result<String> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("CHAP secret file {}", file.display()))?;
    Ok(text
        .strip_suffix('\n')
        .map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line))
        .to_owned())
}

fn rows(hosts: &[HostRecord]) -> String {
    table(
        ["host", "initiators", "chap", "luns"],
        hosts.iter().map(|host| {
            let spec = host.spec.clone().unwrap_or_default();
            let chap = match (spec.chap_user.is_empty(), spec.chap_target_user.is_empty()) {
                (true, _) => "-",
                (false, true) => "one-way",
                (false, false) => "mutual",
            };
            let luns = luns(host).join("\n");
            [host.name.clone(), spec.initiators.join("\n"), chap.to_owned(), or_dash(&luns)]
        }),
    )
}
