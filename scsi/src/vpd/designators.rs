//! The designators of the device identification page (SPC-5 7.7.6): of the logical unit, which are the same through
//! every port, and of the port.

use crate::identity::{ISCSI_NAME_LEN_MAX, LuProperties, PortContext, VENDOR, hex_digit};
use crate::reply::ReplyWriter;

/// PROTOCOL IDENTIFIER 5h: iSCSI.
const ISCSI: u8 = 0x50;

const BINARY: u8 = 1;
const ASCII: u8 = 2;
const UTF8: u8 = 3;

/// PIV=0 and ASSOCIATION 00b.
const OF_UNIT: u8 = 0x00;
/// PIV=1 and ASSOCIATION 01b.
const OF_PORT: u8 = 0x90;
/// PIV=1 and ASSOCIATION 10b.
const OF_DEVICE: u8 = 0xa0;

const T10_VENDOR_ID: u8 = 0x1;
const NAA: u8 = 0x3;
const RELATIVE_TARGET_PORT: u8 = 0x4;
const TARGET_PORT_GROUP: u8 = 0x5;
const SCSI_NAME_STRING: u8 = 0x8;
const UUID: u8 = 0xa;

/// Appends all designators.
pub(super) fn all(w: &mut ReplyWriter<'_>, unit: &LuProperties, port: &PortContext<'_>) {
    let identity = &unit.identity;
    // NAA first: the one that most hosts make their names from.
    descriptor(w, BINARY, OF_UNIT | NAA, &[&identity.naa()]);
    descriptor(w, ASCII, OF_UNIT | T10_VENDOR_ID, &[VENDOR.as_bytes(), &identity.serial()]);
    descriptor(w, BINARY, OF_UNIT | UUID, &[&[0x10, 0x00], &identity.volume_uuid]);
    let [high, low] = port.relative_port.0.to_be_bytes();
    descriptor(w, BINARY, OF_PORT | RELATIVE_TARGET_PORT, &[&[0, 0, high, low]]);
    let [high, low] = port.target_port_group.to_be_bytes();
    descriptor(w, BINARY, OF_PORT | TARGET_PORT_GROUP, &[&[0, 0, high, low]]);
    port_name(w, port.target_name, port.target_port_group);
    if port.target_name.len() <= ISCSI_NAME_LEN_MAX {
        name_string(w, OF_DEVICE, &[port.target_name.as_bytes()]);
    }
}

/// Separator and tag behind the name of the target device, in the name of an iSCSI target port.
const SEPARATOR: &[u8] = b",t,0x";
const TAG_LEN: usize = 4;

/// The name of a target port of this group (RFC 7143 3.4.2), as a descriptor.
pub(super) fn port_name(w: &mut ReplyWriter<'_>, target_name: &str, group: u16) {
    // Longer names do not exist in iSCSI, and their length would not fit the field.
    if target_name.len() <= ISCSI_NAME_LEN_MAX {
        let [high, low] = group.to_be_bytes();
        let tag = [high >> 4, high & 0x0f, low >> 4, low & 0x0f].map(hex_digit);
        name_string(w, OF_PORT, &[target_name.as_bytes(), SEPARATOR, &tag]);
    }
}

/// Length of that descriptor in bytes.
pub(super) fn port_name_len(target_name: &str) -> usize {
    if target_name.len() > ISCSI_NAME_LEN_MAX {
        return 0;
    }
    let name = target_name.len() + SEPARATOR.len() + TAG_LEN;
    // At least one zero byte, up to a multiple of four.
    4 + name + 4 - name % 4
}

/// A SCSI name string ends with a zero byte and is filled up to a multiple of four.
fn name_string(w: &mut ReplyWriter<'_>, association: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let padding: &[u8] = match len % 4 {
        0 => &[0; 4],
        1 => &[0; 3],
        2 => &[0; 2],
        _ => &[0; 1],
    };
    match *parts {
        [name] => descriptor(w, UTF8, association | SCSI_NAME_STRING, &[name, padding]),
        [name, separator, tag] => {
            descriptor(w, UTF8, association | SCSI_NAME_STRING, &[name, separator, tag, padding]);
        }
        _ => {}
    }
}

fn descriptor(w: &mut ReplyWriter<'_>, code_set: u8, kind: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let protocol = if kind & 0x80 != 0 { ISCSI } else { 0 };
    w.put(&[protocol | code_set, kind, 0, u8::try_from(len).unwrap_or(u8::MAX)]);
    for part in parts {
        w.put(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::tests::{UUID as UNIT_UUID, unit};
    use crate::nexus::RelativePort;
    use crate::reply::full_reply;
    use std::string::String;
    use std::vec::Vec;

    /// (code set, PIV and association, type, designator) of every descriptor.
    fn list(target_name: &str) -> Vec<(u8, u8, u8, Vec<u8>)> {
        let port = PortContext { relative_port: RelativePort(0x105), target_port_group: 0x2a, target_name };
        let data = full_reply(|len, out| {
            let mut w = ReplyWriter::new(out, len);
            all(&mut w, &unit(), &port);
            w.finish()
        });
        let mut rest = data.as_slice();
        let mut found = Vec::new();
        while let [first, second, 0, len, tail @ ..] = rest {
            let (designator, next) = tail.split_at(usize::from(*len));
            found.push((*first, second & 0xf0, second & 0x0f, designator.to_vec()));
            rest = next;
        }
        assert!(rest.is_empty());
        found
    }

    #[test]
    fn unit_and_port_are_named() {
        let name = b"iqn.2026-01.x:y";
        let mut port_name = b"iqn.2026-01.x:y,t,0x002a".to_vec();
        port_name.extend([0; 4]);
        let mut device_name = name.to_vec();
        device_name.push(0);
        let expected = [
            (1, 0x00, 3, unit().identity.naa().to_vec()),
            (2, 0x00, 1, [b"HOLDFAST".as_slice(), &unit().identity.serial()].concat()),
            (1, 0x00, 0xa, [[0x10, 0].as_slice(), &UNIT_UUID].concat()),
            (0x51, 0x90, 4, [0, 0, 1, 5].to_vec()),
            (0x51, 0x90, 5, [0, 0, 0, 0x2a].to_vec()),
            (0x53, 0x90, 8, port_name),
            (0x53, 0xa0, 8, device_name),
        ];
        assert_eq!(list("iqn.2026-01.x:y"), expected);
    }

    #[test]
    fn name_strings_end_with_a_zero_and_are_aligned_for_every_length() {
        for len in 1..=ISCSI_NAME_LEN_MAX {
            let names: Vec<_> =
                list(&"n".repeat(len)).into_iter().filter(|d| d.2 == SCSI_NAME_STRING).collect();
            assert_eq!(names.len(), 2);
            for (_, _, _, designator) in names {
                assert_eq!((designator.len() % 4, designator.last()), (0, Some(&0)));
                let text = String::from_utf8(designator).unwrap();
                assert!(text.trim_end_matches('\0').len() + 4 >= text.len());
            }
        }
    }

    #[test]
    fn unit_designators_do_not_depend_on_the_port() {
        let of_unit = |name| list(name).into_iter().filter(|d| d.1 == OF_UNIT).collect::<Vec<_>>();
        assert_eq!(of_unit("iqn.2026-01.x:y"), of_unit("iqn.2026-01.other:z"));
    }
}
