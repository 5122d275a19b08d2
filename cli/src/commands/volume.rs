//! `holdfast volume`.

use holdfast_proto::v1::{
    AddReplicaRequest, CloneVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, GetVolumeRequest,
    ListVolumesRequest, ListVolumesResponse, MoveReplicaRequest, MoveVolumeRequest, RemoveReplicaRequest,
    Replica as ReplicaRecord, ReplicaPlace, ResizeVolumeRequest, Volume as VolumeRecord, VolumeOrigin,
    VolumeSpec, volume_service_client::VolumeServiceClient,
};

use super::{PAGE_SIZE, scrub};
use crate::{
    arguments::{Client, Format, Replica, Switch, Volume},
    connection::{Connection, connect, refusal, request_id},
    output::{facts, or_dash, print, table},
    size::Size,
};

pub(crate) async fn run(client: &Client, verb: Volume) -> anyhow::Result<()> {
    let mut service = VolumeServiceClient::new(connect(client).await?);
    let one = match verb {
        Volume::Create(create) => {
            let pools = create.pool.iter().cloned().map(Some).chain(std::iter::repeat(None));
            let mut places = create
                .node
                .iter()
                .zip(pools)
                .map(|(node, pool)| ReplicaPlace { node: node.clone(), pool: pool.unwrap_or_default() });
            let spec = VolumeSpec {
                size_bytes: create.size.0,
                block_size: create.block_size,
                replicas: create.replicas,
                write_cache: Some(create.write_cache == Switch::On),
                checksums: create.checksums,
                node: places.next().unwrap_or_default().node,
                pool: create.pool.first().cloned().unwrap_or_default(),
                others: places.collect(),
                volatile: create.volatile,
            };
            let request =
                CreateVolumeRequest { request_id: request_id(), name: create.name, spec: Some(spec) };
            service.create_volume(request).await
        }
        Volume::List => {
            let answer = list(&mut service).await?;
            return print(client.output, "ListVolumesResponse", &answer, || rows(&answer.volumes));
        }
        Volume::Show { name } => {
            let volume = service.get_volume(GetVolumeRequest { name }).await.map_err(refusal)?.into_inner();
            let checksums = volume.spec.as_ref().is_some_and(|spec| spec.checksums);
            // A program asks for it where it wants it; it is a question to the nodes.
            let result = match client.output {
                Format::Table if checksums => scrub::get(client, volume.name.clone())
                    .await
                    .map_or_else(|error| format!("not known: {error}"), |scrub| scrub::result(&scrub)),
                _ => String::new(),
            };
            return print(client.output, "Volume", &volume, || match result.as_str() {
                "" => details(&volume),
                result => format!("{}\n\nscrub  {result}", details(&volume).trim_end()),
            });
        }
        Volume::Scrub { name, show } => return scrub::run(client, name, show).await,
        Volume::Resize { name, size } => {
            service
                .resize_volume(ResizeVolumeRequest { request_id: request_id(), name, size_bytes: size.0 })
                .await
        }
        Volume::Replica(Replica::Add { volume, node, pool }) => {
            let (node, pool) = (node.unwrap_or_default(), pool.unwrap_or_default());
            service.add_replica(AddReplicaRequest { request_id: request_id(), volume, node, pool }).await
        }
        Volume::Replica(Replica::Remove { volume, node }) => {
            service.remove_replica(RemoveReplicaRequest { request_id: request_id(), volume, node }).await
        }
        Volume::Replica(Replica::Move { volume, from, to, pool }) => {
            let (to, pool) = (to.unwrap_or_default(), pool.unwrap_or_default());
            service
                .move_replica(MoveReplicaRequest { request_id: request_id(), volume, from, to, pool })
                .await
        }
        Volume::Move { name, node } => {
            service.move_volume(MoveVolumeRequest { request_id: request_id(), name, node }).await
        }
        Volume::Clone { snapshot, name } => {
            service.clone_volume(CloneVolumeRequest { request_id: request_id(), snapshot, name }).await
        }
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

/// All of them.
pub(super) async fn list(
    service: &mut VolumeServiceClient<Connection>,
) -> anyhow::Result<ListVolumesResponse> {
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
            return Ok(answer);
        }
    }
}

/// What a volume is a copy of, in words.
fn origin(origin: &VolumeOrigin) -> String {
    let what = if origin.snapshot { "snapshot" } else { "clone" };
    format!("{what} of {}", origin.volume)
}

pub(super) fn rows(volumes: &[VolumeRecord]) -> String {
    table(
        ["volume", "size", "block", "owner", "in sync", "epoch", "state", "mappings", "origin"],
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
                or_dash(&status.origin.as_ref().map(origin).unwrap_or_default()),
            ]
        }),
    )
}

pub(super) fn details(volume: &VolumeRecord) -> String {
    let spec = volume.spec.clone().unwrap_or_default();
    let status = volume.status.clone().unwrap_or_default();
    let head = facts([
        ("volume", volume.name.clone()),
        ("id", status.id),
        ("naa", status.naa),
        ("size", format!("{} ({} bytes)", Size(spec.size_bytes), spec.size_bytes)),
        ("block size", spec.block_size.to_string()),
        ("replicas", spec.replicas.to_string()),
        ("write cache", if spec.write_cache.unwrap_or(true) { "on" } else { "off" }.to_owned()),
        ("checksums", if spec.checksums { "on" } else { "off" }.to_owned()),
        ("kept", if spec.volatile { "no: volatile, lost when its nodes stop" } else { "yes" }.to_owned()),
        ("owner", or_dash(&status.owner)),
        ("epoch", format!("{}.{}", status.epoch_generation, status.epoch_number)),
        ("in sync", or_dash(&status.in_sync.join(", "))),
        ("state", status.state),
        ("hand over to", or_dash(&status.hand_over_to)),
        ("mappings", status.mappings.to_string()),
        ("origin", or_dash(&status.origin.as_ref().map(origin).unwrap_or_default())),
    ]);
    format!("{head}\n{}", replicas(&status.replicas, &status.owner))
}

fn replicas(replicas: &[ReplicaRecord], owner: &str) -> String {
    table(
        ["node", "pool", "copy", "now", "progress"],
        replicas.iter().map(|replica| {
            let copy = match replica.node == owner {
                true => format!("{}, owner", replica.state),
                false if replica.replaces.is_empty() => replica.state.clone(),
                false => format!("{}, for {}", replica.state, replica.replaces),
            };
            let now = match (replica.phase.as_str(), replica.node_live) {
                (_, false) => "node away",
                (phase, true) => phase,
            };
            [replica.node.clone(), replica.pool.clone(), copy, or_dash(now), progress(replica)]
        }),
    )
}

fn progress(replica: &ReplicaRecord) -> String {
    if replica.total_bytes == 0 {
        return or_dash("");
    }
    let done = replica.total_bytes.saturating_sub(replica.remaining_bytes);
    let left = match replica.estimated_seconds_left {
        Some(seconds) => format!(", {seconds} s left"),
        None => String::new(),
    };
    let rate = Size(replica.bytes_per_second);
    format!("{} of {}, {rate}/s{left}", Size(done), Size(replica.total_bytes))
}
