//! `holdfast host-group`.

use holdfast_proto::v1::{
    CreateHostGroupRequest, DeleteHostGroupRequest, GetHostGroupRequest, HostGroup as GroupRecord,
    HostGroupSpec, ListHostGroupsRequest, ListHostGroupsResponse, UpdateHostGroupRequest,
    host_group_service_client::HostGroupServiceClient,
};

use super::PAGE_SIZE;
use crate::{
    arguments::{Client, HostGroup},
    connection::{connect, refusal, request_id},
    output::{or_dash, print, table},
};

pub(crate) async fn run(client: &Client, verb: HostGroup) -> anyhow::Result<()> {
    let mut service = HostGroupServiceClient::new(connect(client).await?);
    let one = match verb {
        HostGroup::Create { name, host } => {
            let spec = Some(HostGroupSpec { hosts: host });
            service.create_host_group(CreateHostGroupRequest { request_id: request_id(), name, spec }).await
        }
        HostGroup::Update { name, add_host, remove_host } => {
            let request = UpdateHostGroupRequest {
                request_id: request_id(),
                name,
                add_hosts: add_host,
                remove_hosts: remove_host,
            };
            service.update_host_group(request).await
        }
        HostGroup::Show { name } => service.get_host_group(GetHostGroupRequest { name }).await,
        HostGroup::List => {
            let mut answer = ListHostGroupsResponse::default();
            loop {
                let request = ListHostGroupsRequest {
                    page_size: PAGE_SIZE,
                    page_token: std::mem::take(&mut answer.next_page_token),
                };
                let page = service.list_host_groups(request).await.map_err(refusal)?.into_inner();
                answer.groups.extend(page.groups);
                answer.next_page_token = page.next_page_token;
                if answer.next_page_token.is_empty() {
                    break;
                }
            }
            return print(client.output, "ListHostGroupsResponse", &answer, || rows(&answer.groups));
        }
        HostGroup::Delete { name } => {
            let request = DeleteHostGroupRequest { request_id: request_id(), name: name.clone() };
            service.delete_host_group(request).await.map_err(refusal)?;
            println!("host group {name} deleted");
            return Ok(());
        }
    };
    let group = one.map_err(refusal)?.into_inner();
    print(client.output, "HostGroup", &group, || rows(std::slice::from_ref(&group)))
}

fn rows(groups: &[GroupRecord]) -> String {
    table(
        ["host group", "hosts", "luns"],
        groups.iter().map(|group| {
            let hosts = group.spec.clone().unwrap_or_default().hosts.join("\n");
            let mappings = group.status.clone().unwrap_or_default().mappings;
            let luns: Vec<_> = mappings.iter().map(|map| format!("{}: {}", map.lun, map.volume)).collect();
            [group.name.clone(), or_dash(&hosts), or_dash(&luns.join("\n"))]
        }),
    )
}
