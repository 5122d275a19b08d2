//! `holdfast volume`.

use holdfast_proto::v1::{
    CreateVolumeRequest, DeleteVolumeRequest, GetVolumeRequest, ListVolumesRequest, ListVolumesResponse,
    MoveVolumeRequest, ResizeVolumeRequest, Volume as VolumeRecord, VolumeSpec,
    volume_service_client::VolumeServiceClient,
};

use super::PAGE_SIZE;
use crate::{
    arguments::{Client, Switch, Volume},
    connection::{connect, refusal, request_id},
    output::{facts, or_dash, print, table},
    size::Size,
};

pub(crate) async fn run(client: &Client, verb: Volume) -> anyhow::Result<()> {
    let mut service = VolumeServiceClient::new(connect(client).await?);
    let one = match verb {
        Volume::Create(create) => {
            let spec = VolumeSpec {
                size_bytes: create.size.0,
                block_size: create.block_size,
                replicas: create.replicas,
                write_cache: Some(create.write_cache == Switch::On),
                node: create.node.unwrap_or_default(),
                pool: create.pool.unwrap_or_default(),
            };
            let request =
                CreateVolumeRequest { request_id: request_id(), name: create.name, spec: Some(spec) };
            service.create_volume(request).await
        }
        Volume::List => {
            let mut answer = ListVolumesResponse::default();
            loop {
                let request = ListVolumesRequest {
                    page_size: PAGE_SIZE,
                    page_token: std::mem::take(&mut answer.next_page_token),
                };
                let page = service.list_volumes(request).await.map_err(refusal)?.into_inner();
                answer.volumes.extend(page.volumes);
                answer.next_page_token = page.next_page_token;
                if answer.next_page_token.is_empty() {
                    break;
                }
            }
            return print(client.output, "ListVolumesResponse", &answer, || rows(&answer.volumes));
        }
        Volume::Show { name } => service.get_volume(GetVolumeRequest { name }).await,
        Volume::Resize { name, size } => {
            service
                .resize_volume(ResizeVolumeRequest { request_id: request_id(), name, size_bytes: size.0 })
                .await
        }
        Volume::Move { name, node } => service.move_volume(MoveVolumeRequest { name, node }).await,
        Volume::Delete { name } => {
            let request = DeleteVolumeRequest { request_id: request_id(), name: name.clone() };
            service.delete_volume(request).await.map_err(refusal)?;
            println!("volume {name} deleted");
            return Ok(());
        }
    };
    let volume = one.map_err(refusal)?.into_inner();
    print(client.output, "Volume", &volume, || details(&volume))
}

fn rows(volumes: &[VolumeRecord]) -> String {
    table(
        ["volume", "size", "block", "owner", "in sync", "epoch", "state", "mappings"],
        volumes.iter().map(|volume| {
            let spec = volume.spec.clone().unwrap_or_default();
            let status = volume.status.clone().unwrap_or_default();
            [
                volume.name.clone(),
                Size(spec.size_bytes).to_string(),
                spec.block_size.to_string(),
                or_dash(&status.owner),
                or_dash(&status.in_sync.join(",")),
                format!("{}.{}", status.epoch_generation, status.epoch_number),
                status.state,
                status.mappings.to_string(),
            ]
        }),
    )
}

fn details(volume: &VolumeRecord) -> String {
    let spec = volume.spec.clone().unwrap_or_default();
    let status = volume.status.clone().unwrap_or_default();
    facts([
        ("volume", volume.name.clone()),
        ("id", status.id),
        ("naa", status.naa),
        ("size", format!("{} ({} bytes)", Size(spec.size_bytes), spec.size_bytes)),
        ("block size", spec.block_size.to_string()),
        ("replicas", spec.replicas.to_string()),
        ("write cache", if spec.write_cache.unwrap_or(true) { "on" } else { "off" }.to_owned()),
        ("owner", or_dash(&status.owner)),
        ("epoch", format!("{}.{}", status.epoch_generation, status.epoch_number)),
        ("in sync", or_dash(&status.in_sync.join(", "))),
        ("state", status.state),
        ("mappings", status.mappings.to_string()),
    ])
}
