//! `holdfast map`.

use holdfast_proto::v1::{
    CreateMappingRequest, DeleteMappingRequest, ListMappingsRequest, ListMappingsResponse, Mapping,
    mapping_service_client::MappingServiceClient,
};

use super::PAGE_SIZE;
use crate::{
    arguments::{Client, Map},
    connection::{connect, refusal, request_id},
    output::{print, table},
};

pub(crate) async fn run(client: &Client, verb: Map) -> anyhow::Result<()> {
    let mut service = MappingServiceClient::new(connect(client).await?);
    match verb {
        Map::Create { volume, host, lun, read_only } => {
            let request = CreateMappingRequest { request_id: request_id(), volume, host, lun, read_only };
            let mapping = service.create_mapping(request).await.map_err(refusal)?.into_inner();
            print(client.output, "Mapping", &mapping, || rows(std::slice::from_ref(&mapping)))
        }
        Map::List { volume, host } => {
            let (volume, host) = (volume.unwrap_or_default(), host.unwrap_or_default());
            let mut answer = ListMappingsResponse::default();
            loop {
                let request = ListMappingsRequest {
                    volume: volume.clone(),
                    host: host.clone(),
                    page_size: PAGE_SIZE,
                    page_token: std::mem::take(&mut answer.next_page_token),
                };
                let page = service.list_mappings(request).await.map_err(refusal)?.into_inner();
                answer.mappings.extend(page.mappings);
                answer.next_page_token = page.next_page_token;
                if answer.next_page_token.is_empty() {
                    break;
                }
            }
            print(client.output, "ListMappingsResponse", &answer, || rows(&answer.mappings))
        }
        Map::Delete { volume, host } => {
            let request =
                DeleteMappingRequest { request_id: request_id(), volume: volume.clone(), host: host.clone() };
            service.delete_mapping(request).await.map_err(refusal)?;
            println!("volume {volume} is no longer mapped to host {host}");
            Ok(())
        }
    }
}

fn rows(mappings: &[Mapping]) -> String {
    table(
        ["volume", "host", "lun", "access"],
        mappings.iter().map(|map| {
            let access = if map.read_only { "read-only" } else { "read-write" };
            [map.volume.clone(), map.host.clone(), map.lun.to_string(), access.to_owned()]
        }),
    )
}
