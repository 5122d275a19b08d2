//! `holdfast map`.

use std::io::Read as _;

use anyhow::Context;
use holdfast_proto::v1::{
    ApplyMappingsRequest, ApplyMappingsResponse, CreateMappingRequest, DeleteMappingRequest,
    ListMappingsRequest, ListMappingsResponse, Mapping, mapping_service_client::MappingServiceClient,
};

use super::{
    PAGE_SIZE,
    map_file::{Edits, export},
};
use crate::{
    arguments::{Client, Map, MapApply},
    connection::{Connection, connect, refusal, request_id},
    output::{or_dash, print, table},
};

pub(crate) async fn run(client: &Client, verb: Map) -> anyhow::Result<()> {
    if let Map::Apply(wish) = verb {
        return apply(client, wish).await;
    }
    let mut service = MappingServiceClient::new(connect(client).await?);
    match verb {
        Map::Create { volume, target, lun, read_only } => {
            let request = CreateMappingRequest {
                request_id: request_id(),
                volume,
                host: target.host.unwrap_or_default(),
                lun,
                read_only,
                group: target.group.unwrap_or_default(),
            };
            let mapping = service.create_mapping(request).await.map_err(refusal)?.into_inner();
            print(client.output, "Mapping", &mapping, || rows(std::slice::from_ref(&mapping)))
        }
        Map::List { volume, host } => {
            let request = ListMappingsRequest {
                volume: volume.unwrap_or_default(),
                host: host.unwrap_or_default(),
                ..Default::default()
            };
            let answer = list(&mut service, request).await?;
            print(client.output, "ListMappingsResponse", &answer, || rows(&answer.mappings))
        }
        Map::Delete { volume, target } => {
            let (host, group) = (target.host.unwrap_or_default(), target.group.unwrap_or_default());
            let whom = if group.is_empty() { format!("host {host}") } else { format!("host group {group}") };
            let request =
                DeleteMappingRequest { request_id: request_id(), volume: volume.clone(), host, group };
            service.delete_mapping(request).await.map_err(refusal)?;
            println!("volume {volume} is no longer mapped to {whom}");
            Ok(())
        }
        Map::Export { host } => {
            let request =
                ListMappingsRequest { host: host.unwrap_or_default(), as_made: true, ..Default::default() };
            print!("{}", export(&list(&mut service, request).await?.mappings)?);
            Ok(())
        }
        Map::Apply(_) => Ok(()),
    }
}

async fn list(
    service: &mut MappingServiceClient<Connection>,
    mut request: ListMappingsRequest,
) -> anyhow::Result<ListMappingsResponse> {
    request.page_size = PAGE_SIZE;
    let mut answer = ListMappingsResponse::default();
    loop {
        let page = service.list_mappings(request.clone()).await.map_err(refusal)?.into_inner();
        answer.mappings.extend(page.mappings);
        if page.next_page_token.is_empty() {
            return Ok(answer);
        }
        request.page_token = page.next_page_token;
    }
}

async fn apply(client: &Client, wish: MapApply) -> anyhow::Result<()> {
    let name = wish.file.display().to_string();
    let text = if name == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        text
    } else {
        std::fs::read_to_string(&wish.file).with_context(|| name.clone())?
    };
    let edits = Edits::read(&name, &text)?;
    let mut service = MappingServiceClient::new(connect(client).await?);
    let request = ApplyMappingsRequest {
        request_id: request_id(),
        edits: edits.edits.clone(),
        prune: wish.prune,
        dry_run: wish.dry_run,
    };
    let answer = service.apply_mappings(request).await.map_err(|status| edits.refusal(&status))?.into_inner();
    print(client.output, "ApplyMappingsResponse", &answer, || differences(&answer, wish.dry_run))
}

fn access(mapping: &Mapping) -> String {
    let access = if mapping.read_only { ", read-only" } else { "" };
    format!("LUN {}{access}", mapping.lun)
}

/// "+", "-" and "~" lines, and a sum.
fn differences(answer: &ApplyMappingsResponse, dry_run: bool) -> String {
    let mut text = String::new();
    for difference in &answer.differences {
        let (sign, mapping, what) = match (&difference.before, &difference.after) {
            (None, Some(after)) => ("+", after, access(after)),
            (Some(before), None) => ("-", before, access(before)),
            (Some(before), Some(after)) => ("~", after, format!("{} -> {}", access(before), access(after))),
            (None, None) => continue,
        };
        let whom = if mapping.group.is_empty() { &mapping.host } else { &format!("group {}", mapping.group) };
        text.push_str(&format!("{sign} {} to {whom}: {what}\n", mapping.volume));
    }
    let (created, changed, removed) = (answer.created, answer.changed, answer.removed);
    let would = if dry_run { "would be " } else { "" };
    text + &format!("{created} {would}created, {changed} {would}changed, {removed} {would}removed")
}

fn rows(mappings: &[Mapping]) -> String {
    table(
        ["volume", "host", "group", "lun", "access"],
        mappings.iter().map(|map| {
            let access = if map.read_only { "read-only" } else { "read-write" };
            [
                map.volume.clone(),
                or_dash(&map.host),
                or_dash(&map.group),
                map.lun.to_string(),
                access.to_owned(),
            ]
        }),
    )
}
