//! `holdfast snapshot`.

use anyhow::bail;
use holdfast_proto::v1::{
    CreateSnapshotRequest, DeleteVolumeRequest, GetVolumeRequest, ListVolumesResponse,
    RestoreSnapshotRequest, SnapshotOf, Volume, volume_service_client::VolumeServiceClient,
};

use super::volume::{details, list, rows};
use crate::{
    arguments::{Client, Snapshot},
    connection::{connect, refusal, request_id},
    output::print,
};

pub(crate) async fn run(client: &Client, verb: Snapshot) -> anyhow::Result<()> {
    let mut service = VolumeServiceClient::new(connect(client).await?);
    match verb {
        Snapshot::Create { snapshots } => {
            let snapshots = snapshots.into_iter().map(|(volume, name)| SnapshotOf { volume, name }).collect();
            let request = CreateSnapshotRequest { request_id: request_id(), snapshots };
            let made = service.create_snapshot(request).await.map_err(refusal)?.into_inner();
            print(client.output, "CreateSnapshotResponse", &made, || rows(&made.snapshots))
        }
        Snapshot::Restore { snapshots, while_in_use, dry_run } => {
            let snapshots = snapshots.into_iter().map(|(volume, name)| SnapshotOf { volume, name }).collect();
            let request = RestoreSnapshotRequest {
                request_id: if dry_run { String::new() } else { request_id() },
                snapshots,
                in_use: while_in_use,
                dry_run,
            };
            let done = service.restore_snapshot(request).await.map_err(refusal)?.into_inner();
            print(client.output, "RestoreSnapshotResponse", &done, || {
                let users = done.in_use_by.iter().map(|user| format!("in use by {user}\n"));
                format!("{}{}", users.collect::<String>(), rows(&done.volumes))
            })
        }
        Snapshot::List { volume } => {
            let mut answer = list(&mut service).await?;
            answer
                .volumes
                .retain(|found| source(found).is_some_and(|of| volume.as_ref().is_none_or(|v| v == of)));
            let answer = ListVolumesResponse { volumes: answer.volumes, ..Default::default() };
            print(client.output, "ListVolumesResponse", &answer, || rows(&answer.volumes))
        }
        Snapshot::Show { name } => {
            let shown = get(service.get_volume(GetVolumeRequest { name }).await)?;
            print(client.output, "Volume", &shown, || details(&shown))
        }
        Snapshot::Delete { name } => {
            get(service.get_volume(GetVolumeRequest { name: name.clone() }).await)?;
            let request = DeleteVolumeRequest { request_id: request_id(), name: name.clone() };
            service.delete_volume(request).await.map_err(refusal)?;
            println!("snapshot {name} deleted");
            Ok(())
        }
    }
}

/// Of what a snapshot is taken; none for other volumes.
fn source(volume: &Volume) -> Option<&str> {
    let origin = volume.status.as_ref()?.origin.as_ref()?;
    origin.snapshot.then_some(origin.volume.as_str())
}

fn get(answer: Result<tonic::Response<Volume>, tonic::Status>) -> anyhow::Result<Volume> {
    let volume = answer.map_err(refusal)?.into_inner();
    if source(&volume).is_none() {
        bail!("volume {} is no snapshot; see \"holdfast volume\"", volume.name);
    }
    Ok(volume)
}
