//! `holdfast host`.

use std::path::Path;

use anyhow::Context;
use holdfast_proto::v1::{
    CreateHostRequest, DeleteHostRequest, GetHostRequest, Host as HostRecord, HostSpec, ListHostsRequest,
    ListHostsResponse, host_service_client::HostServiceClient,
};

use super::PAGE_SIZE;
use crate::{
    arguments::{Client, Host},
    connection::{connect, refusal, request_id},
    output::{or_dash, print, table},
};

pub(crate) async fn run(client: &Client, verb: Host) -> anyhow::Result<()> {
    let mut service = HostServiceClient::new(connect(client).await?);
    let one = match verb {
        Host::Create(create) => {
            let secret = |file: Option<&Path>| file.map_or_else(|| Ok(String::new()), read_secret);
            let request = CreateHostRequest {
                request_id: request_id(),
                name: create.name,
                chap_secret: secret(create.chap_secret_file.as_deref())?,
                chap_target_secret: secret(create.chap_target_secret_file.as_deref())?,
                spec: Some(HostSpec {
                    initiators: create.initiator,
                    chap_user: create.chap_user.unwrap_or_default(),
                    chap_target_user: create.chap_target_user.unwrap_or_default(),
                }),
            };
            service.create_host(request).await
        }
        Host::List => {
            let mut answer = ListHostsResponse::default();
            loop {
                let request = ListHostsRequest {
                    page_size: PAGE_SIZE,
                    page_token: std::mem::take(&mut answer.next_page_token),
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
            let status = host.status.clone().unwrap_or_default();
            let chap = match (spec.chap_user.is_empty(), spec.chap_target_user.is_empty()) {
                (true, _) => "-",
                (false, true) => "one-way",
                (false, false) => "mutual",
            };
            let luns: Vec<_> =
                status.mappings.iter().map(|map| format!("{}: {}", map.lun, map.volume)).collect();
            [host.name.clone(), spec.initiators.join("\n"), chap.to_owned(), or_dash(&luns.join("\n"))]
        }),
    )
}
