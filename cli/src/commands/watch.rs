//! `holdfast watch`: what there is of a kind, then every change, until interrupted. A watch that a controller ended goes on at the
//! next one from the last revision that was shown.

use std::time::Duration;

use anyhow::bail;
use holdfast_proto::v1;
use tonic::{Code, Status, Streaming};

use crate::{
    arguments::{Client, Watch, Watched},
    connection::{Access, Connection, refusal},
    output::{or_dash, print_line},
    size::Size,
};

/// Pause before a watch goes on at another controller.
const PAUSE: Duration = Duration::from_millis(200);

/// A message of a watch.
trait Step: prost::Message + Default {
    /// Its name in the contract.
    const NAME: &'static str;

    /// All up to here has been seen with it; 0 = not yet.
    fn revision(&self) -> u64;

    /// For people; `None` = nothing to say.
    fn line(&self) -> Option<String>;
}

fn line(what: &str, name: &str, more: &str) -> Option<String> {
    Some(format!("{what:<8} {name:<28} {more}").trim_end().to_owned())
}

/// Beginning with what `--after` takes; "-" while what there is is still being told.
fn step(revision: u64, what: &str, name: &str, more: &str) -> Option<String> {
    let revision = if revision == 0 { "-".to_owned() } else { revision.to_string() };
    line(&revision, &format!("{what:<4} {name}"), more)
}

macro_rules! steps {
    ($($message:ident $change:ident: $row:ident => $text:expr;)*) => { $(
        impl Step for v1::$message {
            const NAME: &'static str = stringify!($message);

            fn revision(&self) -> u64 {
                self.revision
            }

            fn line(&self) -> Option<String> {
                use v1::$change::Change;
                let text: fn(&v1::$row) -> (String, String) = $text;
                match self.change.as_ref()? {
                    Change::Changed(row) => {
                        let (name, more) = text(row);
                        step(self.revision, "is", &name, &more)
                    }
                    Change::Removed(name) => step(self.revision, "gone", name, ""),
                    Change::Synced(_) => None,
                }
            }
        }
    )* };
}

steps! {
    NodeChange node_change: Node => |node| {
        let (spec, status) = (node.spec.unwrap_or_default(), node.status.clone().unwrap_or_default());
        let live = if status.live { "live" } else { "away" };
        let drain = if spec.draining { ", draining" } else if spec.cordoned { ", cordoned" } else { "" };
        let owned = format!("owns {} volumes, holds {} copies", status.volumes_owned, status.replicas);
        (node.name.clone(), format!("{live}{drain}, {owned}"))
    };
    VolumeChange volume_change: Volume => |volume| {
        let status = volume.status.clone().unwrap_or_default();
        let (owner, in_sync) = (or_dash(&status.owner), or_dash(&status.in_sync.join(",")));
        let size = Size(volume.spec.as_ref().map_or(0, |spec| spec.size_bytes));
        (volume.name.clone(), format!("{size}, {}, owner {owner}, in sync {in_sync}", status.state))
    };
    HostChange host_change: Host => |host| {
        let (spec, status) = (host.spec.clone().unwrap_or_default(), host.status.clone().unwrap_or_default());
        let more = format!("{}  {} LUNs", spec.initiators.join(","), status.mappings.len());
        (host.name.clone(), more)
    };
    HostGroupChange host_group_change: HostGroup => |group| {
        let (spec, status) = (group.spec.clone().unwrap_or_default(), group.status.clone().unwrap_or_default());
        (group.name.clone(), format!("{}  {} LUNs", spec.hosts.join(","), status.mappings.len()))
    };
    MappingChange mapping_change: Mapping => |map| {
        let access = if map.read_only { ", read-only" } else { "" };
        (format!("{}/{}", map.host, map.volume), format!("LUN {}{access}", map.lun))
    };
    ReservationChange reservation_change: Reservation => |reservation| {
        let registrations = reservation.registrations.len();
        let more = format!("{}, {registrations} registrations, generation {}", reservation.r#type, reservation.generation);
        (reservation.volume.clone(), more)
    };
    JobChange job_change: Job => |job| {
        let (spec, status) = (job.spec.clone().unwrap_or_default(), job.status.clone().unwrap_or_default());
        let progress = format!("{} of {} {}", status.done, status.total, status.unit);
        (job.id.to_string(), format!("{} {}: {}, {progress}", spec.kind, spec.subject, status.state))
    };
}

impl Step for v1::AuditRecord {
    const NAME: &'static str = "AuditRecord";

    fn revision(&self) -> u64 {
        // Further records of the same entry may follow.
        self.index.saturating_sub(1)
    }

    fn line(&self) -> Option<String> {
        let who = format!("{} {}", self.role, self.name);
        line(&self.outcome, &self.subject, &format!("{} by {who} {}", self.action, self.reason))
    }
}

impl Step for v1::Event {
    const NAME: &'static str = "Event";

    fn revision(&self) -> u64 {
        self.index.saturating_sub(1)
    }

    fn line(&self) -> Option<String> {
        line(&self.index.to_string(), &self.subject, &self.message)
    }
}

pub(crate) async fn run(client: &Client, verb: Watch) -> anyhow::Result<()> {
    use v1::{
        audit_service_client::AuditServiceClient as Audit,
        event_service_client::EventServiceClient as Events,
        host_group_service_client::HostGroupServiceClient as Groups,
        host_service_client::HostServiceClient as Hosts, job_service_client::JobServiceClient as Jobs,
        mapping_service_client::MappingServiceClient as Maps,
        node_service_client::NodeServiceClient as Nodes,
        reservation_service_client::ReservationServiceClient as Reservations,
        volume_service_client::VolumeServiceClient as Volumes,
    };
    let after = verb.after;
    let (host, volume) = (verb.host.unwrap_or_default(), verb.volume.unwrap_or_default());
    match verb.noun {
        Watched::Nodes => {
            watch(client, after, async |connection, after_revision| {
                Nodes::new(connection).watch_nodes(v1::WatchNodesRequest { after_revision }).await
            })
            .await
        }
        Watched::Volumes => {
            watch(client, after, async |connection, after_revision| {
                Volumes::new(connection).watch_volumes(v1::WatchVolumesRequest { after_revision }).await
            })
            .await
        }
        Watched::Hosts => {
            watch(client, after, async |connection, after_revision| {
                Hosts::new(connection).watch_hosts(v1::WatchHostsRequest { after_revision }).await
            })
            .await
        }
        Watched::HostGroups => {
            watch(client, after, async |connection, after_revision| {
                Groups::new(connection).watch_host_groups(v1::WatchHostGroupsRequest { after_revision }).await
            })
            .await
        }
        Watched::Mappings => {
            watch(client, after, async |connection, after_revision| {
                let (host, volume) = (host.clone(), volume.clone());
                let request = v1::WatchMappingsRequest { host, volume, after_revision };
                Maps::new(connection).watch_mappings(request).await
            })
            .await
        }
        Watched::Reservations => {
            watch(client, after, async |connection, after_revision| {
                let request = v1::WatchReservationsRequest { volume: volume.clone(), after_revision };
                Reservations::new(connection).watch_reservations(request).await
            })
            .await
        }
        Watched::Jobs => {
            watch(client, after, async |connection, after_revision| {
                let request = v1::WatchJobsRequest { after_revision, ..Default::default() };
                Jobs::new(connection).watch_jobs(request).await
            })
            .await
        }
        Watched::Events => {
            watch(client, after, async |connection, after_index| {
                Events::new(connection).watch_events(v1::WatchEventsRequest { after_index }).await
            })
            .await
        }
        Watched::Audit => {
            watch(client, after, async |connection, after_index| {
                let request = v1::WatchAuditRequest { after_index, ..Default::default() };
                Audit::new(connection).watch_audit(request).await
            })
            .await
        }
    }
}

async fn watch<S: Step>(
    client: &Client,
    mut after: u64,
    open: impl AsyncFn(Connection, u64) -> Result<tonic::Response<Streaming<S>>, Status>,
) -> anyhow::Result<()> {
    loop {
        let connection = Access::find(client)?.connect_for_stream().await?;
        let mut stream = open(connection, after).await.map_err(refusal)?.into_inner();
        let ended = loop {
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(step)) => {
                        after = after.max(step.revision());
                        let line = step.line();
                        if line.is_some() || client.output != crate::arguments::Format::Table {
                            print_line(client.output, S::NAME, &step, || line.unwrap_or_default())?;
                        }
                    }
                    Ok(None) => break None,
                    Err(status) => break Some(status),
                },
                interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
            }
        };
        match ended {
            // The controller ceased to lead, or is gone.
            None => {}
            Some(status)
                if matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
                ) => {}
            Some(status) => bail!("{}", status.message()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
