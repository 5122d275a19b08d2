//! Vital product data pages (SPC-5 7.7, SBC-4 6.6).
//!
//! Supported: 00h supported pages, 80h unit serial number, 83h device identification (in `designators`), 86h extended
//! INQUIRY data, 87h mode page policy, 88h SCSI ports, B0h block limits, B1h block device characteristics, B2h logical block
//! provisioning, B6h zoned block device characteristics. Invariant: what B0h reports comes from [`crate::limits`], which `cdb::parse` enforces.

mod designators;
mod third_party_copy;

#[cfg(feature = "alloc")]
pub(crate) use third_party_copy::GRANULARITY as COPY_GRANULARITY;

use crate::alua::TargetPortGroup;
use crate::identity::{LuProperties, PortContext};
use crate::limits;
use crate::reply::{Reply, ReplyWriter};
use crate::sense::Sense;

/// PAGE CODEs of the supported pages, ascending.
pub const PAGES: [u8; 11] = [0x00, 0x80, 0x83, 0x86, 0x87, 0x88, 0x8f, 0xb0, 0xb1, 0xb2, 0xb6];

/// PAGE LENGTH of the pages with 64 bytes.
const LEN_64: usize = 60;

/// Writes the page with this code. `groups` are those of the whole cluster, in the same order on every node.
///
/// # Errors
/// INVALID FIELD IN CDB, pointing at PAGE CODE, for a page that does not exist.
pub fn write<'a>(
    page: u8,
    unit: &LuProperties,
    port: &PortContext<'_>,
    groups: impl IntoIterator<Item = TargetPortGroup<'a>>,
    allocation_length: u16,
    out: &mut [u8],
) -> Result<Reply, Sense> {
    let mut w = ReplyWriter::new(out, u32::from(allocation_length));
    w.put(&[0x00, page, 0, 0]);
    let body: fn(&mut ReplyWriter<'_>, &LuProperties, &PortContext<'_>) = match page {
        0x00 => |w, _, _| w.put(&PAGES),
        0x80 => |w, unit, _| w.put(&unit.identity.serial()),
        0x83 => designators::all,
        0x86 => extended_inquiry,
        0x87 => mode_page_policy,
        0x88 => {
            scsi_ports(&mut w, port.target_name, groups);
            |_, _, _| {}
        }
        0x8f => third_party_copy::all,
        0xb0 => block_limits,
        0xb1 => block_device_characteristics,
        0xb2 => logical_block_provisioning,
        0xb6 => zoned_block_device_characteristics,
        _ => return Err(Sense::illegal_field_cdb(2, None)),
    };
    body(&mut w, unit, port);
    w.patch_len16(2, 4);
    Ok(w.finish())
}

/// Fills a page of 64 bytes up with zeroes.
fn fill(w: &mut ReplyWriter<'_>) {
    w.put_zeroes((4 + LEN_64).saturating_sub(w.len()));
}

fn extended_inquiry(w: &mut ReplyWriter<'_>, _: &LuProperties, _: &PortContext<'_>) {
    // HEADSUP, ORDSUP, SIMPSUP; then V_SUP: there may be a volatile cache.
    w.put(&[0, 0x07, 0x01]);
    w.put_zeroes(13 - w.len());
    w.put_u8(SENSE_LEN_WRITTEN_MAX);
    fill(w);
}

/// MAXIMUM SUPPORTED SENSE DATA LENGTH.
const SENSE_LEN_WRITTEN_MAX: u8 = 40;

fn mode_page_policy(w: &mut ReplyWriter<'_>, _: &LuProperties, _: &PortContext<'_>) {
    // All pages and subpages: shared by all I_T nexuses.
    w.put(&[0x3f, 0xff, 0x00, 0x00]);
}

/// SCSI ports (SPC-5 7.7.16): every target port of the cluster, through whichever of them it is asked for. There are no initiator ports.
fn scsi_ports<'a>(
    w: &mut ReplyWriter<'_>,
    target_name: &str,
    groups: impl IntoIterator<Item = TargetPortGroup<'a>>,
) {
    for group in groups {
        for port in group.ports {
            let len = designators::port_name_len(target_name);
            // PAGE LENGTH has 16 bits; only whole descriptors are listed.
            if w.len().saturating_add(12 + len) > 4 + usize::from(u16::MAX) {
                return;
            }
            w.put_u16(0);
            w.put_u16(port.0);
            // No initiator port.
            w.put_zeroes(2 + 2 + 2);
            w.put_u16(u16::try_from(len).unwrap_or(u16::MAX));
            designators::port_name(w, target_name, group.id);
        }
    }
}

fn block_limits(w: &mut ReplyWriter<'_>, unit: &LuProperties, _: &PortContext<'_>) {
    let block_size = unit.geometry.block_size();
    let physical = 1u16 << (unit.physical_block_exponent & 0x0f);
    w.put(&[0x01, limits::COMPARE_AND_WRITE_BLOCKS_MAX]); // WSNZ=1
    w.put_u16(physical);
    w.put_u32(limits::transfer_blocks_max(block_size));
    w.put_u32(limits::transfer_blocks_optimal(block_size));
    w.put_u32(limits::PREFETCH_BLOCKS_MAX);
    w.put_u32(limits::UNMAP_BLOCKS_MAX);
    w.put_u32(limits::UNMAP_DESCRIPTORS_MAX);
    w.put_u32(u32::from(physical).max(UNMAP_GRANULARITY_BYTES.checked_div(block_size).unwrap_or(1)));
    w.put_u32(UGAVALID);
    w.put_u64(u64::from(limits::WRITE_SAME_BLOCKS_MAX));
    w.put_u32(limits::atomic_blocks_max(block_size));
    // ATOMIC ALIGNMENT and ATOMIC TRANSFER LENGTH GRANULARITY: none is required.
    w.put_u64(0);
    w.put_u32(limits::transfer_blocks_max(block_size));
    w.put_u32(limits::atomic_blocks_max(block_size));
    fill(w);
}

/// What a store can deallocate: a page of 4 KiB.
const UNMAP_GRANULARITY_BYTES: u32 = 4096;
/// UNMAP GRANULARITY ALIGNMENT is valid, and 0.
const UGAVALID: u32 = 0x8000_0000;

fn block_device_characteristics(w: &mut ReplyWriter<'_>, _: &LuProperties, _: &PortContext<'_>) {
    // MEDIUM ROTATION RATE 0001h: does not rotate.
    w.put_u16(0x0001);
    // WABEREQ=01b: blocks that SANITIZE erased can be read without having been written. FUAB: FUA and SYNCHRONIZE CACHE as SBC-4 has
    // them; VBULS: VERIFY compares unmapped blocks as zeroes. ZONED=00b: not reported, for there are no zones.
    w.put(&[0, 0x40, 0x03]);
    fill(w);
}

fn logical_block_provisioning(w: &mut ReplyWriter<'_>, _: &LuProperties, _: &PortContext<'_>) {
    // THRESHOLD EXPONENT; LBPU, LBPWS, LBPWS10, LBPRZ=001b (deallocated blocks read as zeroes); thin provisioned.
    w.put(&[limits::THRESHOLD_EXPONENT, 0xe4, 0x02, 0x00]);
}

/// ZBC-2 6.5.2, for a device without zones: of device type 00h the page says that itself.
fn zoned_block_device_characteristics(w: &mut ReplyWriter<'_>, _: &LuProperties, _: &PortContext<'_>) {
    const NOT_REPORTED: u32 = 0xffff_ffff;
    // ZONED BLOCK DEVICE EXTENSION 0h: not reported. AAORB and URSWRZ: no such zones.
    w.put_zeroes(4);
    // OPTIMAL NUMBER OF OPEN, and OF NON-SEQUENTIALLY WRITTEN, SEQUENTIAL WRITE PREFERRED ZONES.
    w.put_u32(NOT_REPORTED);
    w.put_u32(NOT_REPORTED);
    // MAXIMUM NUMBER OF OPEN SEQUENTIAL WRITE REQUIRED ZONES: none is there. ZONE ALIGNMENT METHOD 0h: not reported.
    fill(w);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alua::AluaState;
    use crate::identity::tests::unit;
    use crate::nexus::RelativePort;
    use crate::reply::full_reply;
    use std::vec::Vec;

    const PORT: PortContext<'static> =
        PortContext { relative_port: RelativePort(5), target_port_group: 2, target_name: "iqn.2026-01.x:y" };

    fn groups() -> [TargetPortGroup<'static>; 2] {
        const ONE: &[RelativePort] = &[RelativePort(1), RelativePort(0x102)];
        const TWO: &[RelativePort] = &[RelativePort(5)];
        [
            TargetPortGroup { id: 1, state: AluaState::ActiveOptimized, preferred: true, ports: ONE },
            TargetPortGroup { id: 2, state: AluaState::ActiveNonOptimized, preferred: false, ports: TWO },
        ]
    }

    fn page(code: u8) -> Vec<u8> {
        full_reply(|len, out| write(code, &unit(), &PORT, groups(), len.min(0xffff) as u16, out).unwrap())
    }

    fn be32(data: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(data[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn every_listed_page_exists_in_ascending_order_and_no_other() {
        assert!(PAGES.is_sorted());
        assert_eq!(page(0x00), [[0, 0, 0, 11].as_slice(), &PAGES].concat());
        for code in 0..=255 {
            let known = write(code, &unit(), &PORT, groups(), 255, &mut [0; 255]).is_ok();
            assert_eq!(known, PAGES.contains(&code), "{code:02x}");
        }
        assert_eq!(
            write(0xc0, &unit(), &PORT, groups(), 255, &mut []),
            Err(Sense::illegal_field_cdb(2, None))
        );
    }

    #[test]
    fn header_of_every_page_has_its_code_and_length() {
        for code in PAGES {
            let data = page(code);
            assert_eq!(data[..2], [0, code]);
            assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])), data.len() - 4, "{code:02x}");
        }
    }

    #[test]
    fn serial_number_is_that_of_the_identity() {
        assert_eq!(page(0x80)[4..], unit().identity.serial());
    }

    #[test]
    fn scsi_ports_are_those_of_the_whole_cluster() {
        let mut expected = [0, 0x88, 0, 120].to_vec();
        for (port, name) in [(1, 1), (0x102, 1), (5, 2u8)] {
            let port: u16 = port;
            expected.extend([0, 0]);
            expected.extend(port.to_be_bytes());
            expected.extend([0, 0, 0, 0, 0, 0, 0, 32, 0x53, 0x98, 0, 28]);
            expected.extend(std::format!("iqn.2026-01.x:y,t,0x000{name}").bytes());
            expected.extend([0; 4]);
        }
        expected[3] = (expected.len() - 4) as u8;
        assert_eq!(page(0x88), expected);
        let other = PortContext { relative_port: RelativePort(1), target_port_group: 1, ..PORT };
        let through_other = full_reply(|len, out| {
            write(0x88, &unit(), &other, groups(), len.min(0xffff) as u16, out).unwrap()
        });
        assert_eq!(through_other, expected);
    }

    #[test]
    fn more_scsi_ports_than_fit_leave_whole_descriptors() {
        let ports: Vec<RelativePort> = (1..=1024).map(RelativePort).collect();
        let name = "n".repeat(223);
        let port = PortContext { target_name: &name, ..PORT };
        let group =
            TargetPortGroup { id: 1, state: AluaState::ActiveOptimized, preferred: true, ports: &ports };
        let mut out = std::vec![0; 70_000];
        let reply = write(0x88, &unit(), &port, [group], 0xffff, &mut out).unwrap();
        let each = 12 + 4 + 236;
        assert_eq!((reply.full - 4) % each, 0);
        assert!(reply.full - 4 <= 0xffff && reply.full - 4 + each > 0xffff);
        assert_eq!(usize::from(u16::from_be_bytes([out[2], out[3]])), reply.full - 4);
    }

    #[test]
    fn block_limits_are_the_limits_that_parse_enforces() {
        let data = page(0xb0);
        assert_eq!(data.len(), 64);
        assert_eq!(data[4..8], [0x01, limits::COMPARE_AND_WRITE_BLOCKS_MAX, 0, 8]);
        assert_eq!(be32(&data, 8), limits::transfer_blocks_max(512));
        assert_eq!(be32(&data, 12), limits::transfer_blocks_optimal(512));
        assert_eq!(be32(&data, 16), limits::PREFETCH_BLOCKS_MAX);
        assert_eq!(be32(&data, 20), limits::UNMAP_BLOCKS_MAX);
        assert_eq!(be32(&data, 24), limits::UNMAP_DESCRIPTORS_MAX);
        assert_eq!((be32(&data, 28), be32(&data, 32)), (8, 0x8000_0000));
        assert_eq!((be32(&data, 36), be32(&data, 40)), (0, limits::WRITE_SAME_BLOCKS_MAX));
        assert_eq!((be32(&data, 44), be32(&data, 48), be32(&data, 52)), (2048, 0, 0));
        assert_eq!((be32(&data, 56), be32(&data, 60)), (limits::transfer_blocks_max(512), 2048));
        assert_eq!(data.len(), 64);
    }

    #[test]
    fn other_pages_say_what_is_supported() {
        let extended = page(0x86);
        assert_eq!((extended.len(), &extended[4..7], extended[13]), (64, &[0, 7, 1][..], 40));
        assert_eq!(page(0x87)[4..], [0x3f, 0xff, 0, 0]);
        assert_eq!(page(0xb1)[4..9], [0, 1, 0, 0x40, 0x03]);
        assert_eq!(page(0xb2)[4..], [limits::THRESHOLD_EXPONENT, 0xe4, 2, 0]);
        let zones = page(0xb6);
        assert_eq!((zones.len(), &zones[4..8], &zones[8..16]), (64, &[0; 4][..], &[0xff; 8][..]));
        assert!(zones[16..].iter().all(|byte| *byte == 0));
    }
}
