//! CDBs and parameter lists, as an initiator makes them.

use holdfast_scsi::transport_id::TransportId;

use super::BLOCK;

pub(crate) fn ten(opcode: u8, flags: u8, lba: u32, blocks: u16) -> Vec<u8> {
    let (l, b) = (lba.to_be_bytes(), blocks.to_be_bytes());
    vec![opcode, flags, l[0], l[1], l[2], l[3], 0, b[0], b[1], 0]
}

pub(crate) fn sixteen(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend(lba.to_be_bytes());
    cdb.extend(blocks.to_be_bytes());
    cdb.extend([0, 0]);
    cdb
}

pub(crate) fn thirty_two(action: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![0; 32];
    [cdb[0], cdb[7], cdb[9]] = [0x7f, 0x18, action];
    cdb[12..20].copy_from_slice(&lba.to_be_bytes());
    cdb[28..].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

pub(crate) fn compare_and_write(lba: u64, blocks: u8) -> Vec<u8> {
    let mut cdb = sixteen(0x89, 0, lba, 0);
    cdb[13] = blocks;
    cdb
}

pub(crate) fn fill(byte: u8, blocks: usize) -> Vec<u8> {
    vec![byte; BLOCK * blocks]
}

pub(crate) fn unmap(lba: u64, blocks: u32) -> (Vec<u8>, Vec<u8>) {
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(lba.to_be_bytes());
    list.extend(blocks.to_be_bytes());
    list.extend([0; 4]);
    (ten(0x42, 0, 0, list.len() as u16), list)
}

pub(crate) fn mode_select_swp(on: bool) -> (Vec<u8>, Vec<u8>) {
    mode_select_control(false, [0x02, 0x10, if on { 0x08 } else { 0 }, 0])
}

/// MODE SELECT of the Control mode page with these bytes 2 to 5.
pub(crate) fn mode_select_control(save: bool, fields: [u8; 4]) -> (Vec<u8>, Vec<u8>) {
    let mut list = vec![0, 0, 0, 0, 0x0a, 0x0a];
    list.extend(fields);
    list.extend([0, 0, 0xff, 0xff, 0, 0]);
    (vec![0x15, 0x10 | u8::from(save), 0, 0, list.len() as u8, 0], list)
}

/// MODE SELECT of the Caching mode page.
pub(crate) fn mode_select_write_cache(on: bool) -> (Vec<u8>, Vec<u8>) {
    let mut list = vec![0, 0, 0, 0, 0x08, 0x12, if on { 0x04 } else { 0 }];
    list.extend([0; 17]);
    (vec![0x15, 0x10, 0, 0, list.len() as u8, 0], list)
}

pub(crate) fn pr_in(action: u8) -> Vec<u8> {
    vec![0x5e, action, 0, 0, 0, 0, 0, 0x10, 0, 0]
}

pub(crate) fn pr_out(action: u8, kind: u8, key: u64, action_key: u64, flags: u8) -> (Vec<u8>, Vec<u8>) {
    let mut list = key.to_be_bytes().to_vec();
    list.extend(action_key.to_be_bytes());
    list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
    pr_out_with(action, kind, list)
}

pub(crate) fn pr_out_with(action: u8, kind: u8, list: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let l = (list.len() as u32).to_be_bytes();
    (vec![0x5f, action, kind, 0, 0, l[0], l[1], l[2], l[3], 0], list)
}

pub(crate) fn register_and_move(
    key: u64,
    new_key: u64,
    unregister: bool,
    to: &TransportId,
    port: u16,
) -> (Vec<u8>, Vec<u8>) {
    let mut list = key.to_be_bytes().to_vec();
    list.extend(new_key.to_be_bytes());
    list.extend([0, if unregister { 2 } else { 0 }]);
    list.extend(port.to_be_bytes());
    list.extend((to.as_bytes().len() as u32).to_be_bytes());
    list.extend(to.as_bytes());
    pr_out_with(7, 0, list)
}

pub(crate) fn register_others(new_key: u64, others: &[TransportId]) -> (Vec<u8>, Vec<u8>) {
    let ids: Vec<u8> = others.iter().flat_map(|id| id.as_bytes().to_vec()).collect();
    let (_, mut list) = pr_out(0, 0, 0, new_key, 0x08);
    list.extend((ids.len() as u32).to_be_bytes());
    list.extend(ids);
    pr_out_with(0, 0, list)
}

/// MODE SELECT of the Logical Block Provisioning page: a threshold of available resources.
pub(crate) fn mode_select_threshold(sets: u32) -> (Vec<u8>, Vec<u8>) {
    let mut list = vec![0, 0, 0, 0, 0x5c, 0x02, 0, 28];
    list.extend([0; 12]);
    list.extend([0x80, 0x01, 0, 0]);
    list.extend(sets.to_be_bytes());
    list.extend([0x01, 0x02, 0, 0, 0, 0, 0, 0]);
    (vec![0x15, 0x10, 0, 0, list.len() as u8, 0], list)
}

/// MODE SELECT of the Informational Exceptions page: a test, reported so.
pub(crate) fn mode_select_exceptions(method: u8) -> (Vec<u8>, Vec<u8>) {
    let list = vec![0, 0, 0, 0, 0x1c, 0x0a, 0x04, method, 0, 0, 0, 0, 0, 0, 0, 0];
    (vec![0x15, 0x10, 0, 0, list.len() as u8, 0], list)
}
