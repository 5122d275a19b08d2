//! Which units a host that asks for a copy can reach: those that it has mapped, named as its device identification pages name
//! them. Any other is unknown, whether it exists or not.

use holdfast_scsi::copy::Designator;
use holdfast_scsi::device_server::CopyUnit;
use holdfast_scsi::identity::LuIdentity;
use holdfast_scsi::nexus::Nexus;

use super::table::REVISION;
use crate::view::{ClusterView, Shared};

/// The units that these designators name for the host of a nexus, one for each.
pub(super) fn units(shared: &Shared, nexus: &Nexus, designators: &[Designator]) -> Vec<Option<CopyUnit>> {
    let view = shared.view.load();
    let unit = |designator: &Designator| view.as_deref().and_then(|view| unit(view, nexus, designator));
    designators.iter().map(unit).collect()
}

fn unit(view: &ClusterView, nexus: &Nexus, designator: &Designator) -> Option<CopyUnit> {
    let host = view.host_by_initiator.find(&nexus.initiator)?;
    view.mappings_of(&host.name).iter().find_map(|mapping| {
        let identity = LuIdentity { volume_uuid: mapping.volume.0, revision: REVISION };
        let volume = view.volumes.get(&mapping.volume).filter(|volume| !volume.deleting)?;
        designator.names(&identity).then(|| CopyUnit {
            unit: mapping.volume.0,
            block_size: volume.geometry.block_size(),
            blocks: volume.geometry.blocks(),
        })
    })
}
