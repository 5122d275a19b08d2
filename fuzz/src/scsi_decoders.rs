//! Decoders of CDBs and of parameter lists: any bytes, any block size.

use holdfast_scsi::cdb;
use holdfast_scsi::geometry::Geometry;
use holdfast_scsi::pr::out::PrOut;
use holdfast_scsi::sense::Sense;
use holdfast_scsi::transport_id::TransportId;

/// The target.
pub fn scsi_decoders(data: &[u8]) {
    let Some((&choice, rest)) = data.split_first() else { return };
    let block_size = if choice & 1 == 0 { 512 } else { 4096 };
    let blocks = if choice & 2 == 0 { 2048 } else { u64::from(u32::MAX) + 1000 };
    let Some(geometry) = Geometry::new(block_size, blocks) else { return };
    let (head, list) = rest.split_at(rest.len().min(usize::from(choice >> 2)));
    let _ = cdb::parse(head, &geometry);
    let _ = cdb::parse(rest, &geometry);
    if let Ok(request) = PrOut::parse(head, list) {
        let _ = format!("{request:?}");
    }
    if let Ok((id, used)) = TransportId::parse(rest) {
        assert!(used <= rest.len());
        assert_eq!(TransportId::parse(id.as_bytes()).map(|(again, _)| again), Ok(id));
    }
    let _ = Sense::parse(rest);
    let _ = cdb::parse_unmap_list(rest, &geometry).map(|extents| extents.count());
}
