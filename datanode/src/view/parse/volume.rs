//! A volume's record: what it is, who has it, and what is being made of it.
//!
//! Invariant: as in [`super`], nothing is skipped or guessed.

use std::sync::Arc;

use holdfast_proto::state;
use holdfast_scsi::geometry::Geometry;

use super::{Field, node_number, volume_id};
use crate::view::{
    BootId, Epoch, Incarnation, MakingView, Member, Owner, ReservationView, RestoringView, VolumeConfig,
    VolumeId, VolumeView,
};

pub(super) fn volume(record: &state::Volume, reservations: Arc<ReservationView>) -> Field<VolumeView> {
    let blocks = record.size_bytes.checked_div(u64::from(record.block_size)).unwrap_or(0);
    let geometry = Geometry::new(record.block_size, blocks)
        .filter(|g| g.bytes() == record.size_bytes)
        .ok_or_else(|| format!("{} bytes in blocks of {}", record.size_bytes, record.block_size))?;
    let physical_block_exponent = u8::try_from(record.physical_block_exponent)
        .ok()
        .filter(|exponent| *exponent <= 8)
        .ok_or_else(|| format!("physical block exponent {}", record.physical_block_exponent))?;
    Ok(VolumeView {
        id: VolumeId::from_slice(&record.id).ok_or("its id is not 16 bytes")?,
        name: record.name.clone(),
        geometry,
        physical_block_exponent,
        write_cache: record.write_cache,
        thin: record.thin,
        checksums: record.checksums,
        config: volume_config(record)?,
        absent: record.absent.iter().map(member).collect::<Field<_>>()?,
        removing: record.removing.iter().map(member).collect::<Field<_>>()?,
        hand_over_to: match record.hand_over_to {
            0 => None,
            number => Some(node_number(number)?),
        },
        owner_by_host: record.owner_by_host,
        deleting: record.deleting,
        is_copy: record.origin.is_some(),
        is_snapshot: record.origin.as_ref().is_some_and(|origin| origin.snapshot),
        making: making(record)?,
        restoring: restoring(record)?,
        restored: match record.restored.as_slice() {
            [] => None,
            id => Some(volume_id(id)?),
        },
        reservations,
    })
}

fn making(record: &state::Volume) -> Field<Option<MakingView>> {
    let Some(making) = &record.making else { return Ok(None) };
    let origin = record.origin.as_ref().ok_or("it is being made of nothing")?;
    steps(making, &origin.volume_id).map(Some)
}

fn restoring(record: &state::Volume) -> Field<Option<RestoringView>> {
    let Some(restoring) = &record.restoring else { return Ok(None) };
    let making = restoring.making.as_ref().ok_or("it is being restored in no way")?;
    Ok(Some(RestoringView {
        id: volume_id(&restoring.id)?,
        snapshot: volume_id(&restoring.snapshot_id)?,
        making: steps(making, &record.id)?,
    }))
}

fn steps(making: &state::Making, source: &[u8]) -> Field<MakingView> {
    Ok(MakingView {
        source: volume_id(source)?,
        source_epoch: Epoch { generation: making.source_generation, number: making.source_epoch },
        phase: making.phase(),
        taken: making.taken.iter().map(|n| node_number(*n)).collect::<Field<_>>()?,
    })
}

fn volume_config(record: &state::Volume) -> Field<VolumeConfig> {
    let epoch = record.epoch.as_ref().ok_or("it has no epoch")?;
    let owner = match record.owner {
        0 => None,
        number => {
            Some(Owner { node: node_number(number)?, incarnation: Incarnation(record.owner_incarnation) })
        }
    };
    let members = |records: &[state::ReplicaMember]| records.iter().map(member).collect::<Field<Vec<_>>>();
    VolumeConfig::from_parts(
        Epoch { generation: epoch.generation, number: epoch.number },
        owner,
        members(&record.in_sync)?,
        members(&record.learners)?,
        u8::try_from(record.min_in_sync).map_err(|_| "min_in_sync is out of range")?,
    )
    .map_err(|why| why.to_string())
}

fn member(record: &state::ReplicaMember) -> Field<Member> {
    Ok(Member {
        node: node_number(record.node)?,
        boot: BootId::from_slice(&record.boot_id).ok_or("a boot id is not 16 bytes")?,
        pool: record.pool.clone(),
    })
}
