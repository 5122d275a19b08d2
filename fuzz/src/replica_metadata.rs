//! What a replica's disk may hold after whatever happened to it: superblock, activity log and bitmap, each whole but for some bytes, or
//! any bytes at all, with a checksum that every slot has. What is read is written again so that it is read as the same.

use holdfast_replica::activity_log::{self, ActivityLog};
use holdfast_replica::bitmap::{self, Bitmap};
use holdfast_replica::epoch::Epoch;
use holdfast_replica::ids::{ClusterId, NodeNumber, VolumeId};
use holdfast_replica::span::Shape;
use holdfast_replica::superblock::{self, Superblock};

const VOLUME: VolumeId = VolumeId([2; 16]);

fn checksum(_: u32, _: &[u8]) -> u32 {
    0
}

fn node(number: u32) -> NodeNumber {
    NodeNumber::new(number).unwrap()
}

/// The slot with other bytes: where (two bytes), and what.
fn patched<const N: usize>(mut slot: Box<[u8; N]>, patches: &[u8]) -> Box<[u8; N]> {
    for &[high, low, byte] in patches.as_chunks::<3>().0 {
        slot[usize::from(u16::from_be_bytes([high, low])) % N] = byte;
    }
    slot
}

fn superblock(first: &[u8], second: &[u8], blank: bool) {
    let whole = Superblock {
        cluster: ClusterId([1; 16]),
        volume: VOLUME,
        node: node(1),
        block_size: 512,
        blocks: 2048,
        sequence: 3,
        promised: Epoch { generation: 0, number: 5 },
    };
    let base = || if blank { Box::new([0; superblock::SLOT_LEN]) } else { whole.encode(checksum) };
    let slots = [patched(base(), first), patched(base(), second)];
    if let Ok(read) = Superblock::decode([&slots[0], &slots[1]], checksum) {
        let written = read.encode(checksum);
        assert_eq!(Superblock::decode([&written, &written], checksum).as_ref(), Ok(&read));
        if let Some(larger) = read.resize(read.blocks.saturating_add(1)) {
            assert!(larger.sequence > read.sequence);
        }
        let _ = read.promise(Epoch { generation: 0, number: 6 });
    }
}

fn activity_log(first: &[u8], second: &[u8], blank: bool) {
    let mut whole = ActivityLog::new(vec![node(1), node(2)]);
    let _ = whole.record(&[1, 5, 9], 1);
    let mut base =
        || if blank { Box::new([0; activity_log::SLOT_LEN]) } else { whole.image(VOLUME, checksum).1 };
    let slots = [patched(base(), first), patched(base(), second)];
    if let Ok(mut read) = ActivityLog::decode([&slots[0], &slots[1]], VOLUME, checksum) {
        let entries: Vec<_> = read.entries().collect();
        let (_, written) = read.image(VOLUME, checksum);
        let again = ActivityLog::decode([&written, &written], VOLUME, checksum).unwrap();
        assert!(again.entries().eq(entries), "entries are lost or made up");
        assert_eq!(again.in_sync(), read.in_sync());
        assert_eq!(again.is_untrusted(), read.is_untrusted());
    }
}

fn bitmap(first: &[u8], second: &[u8], blank: bool, blocks: u64) {
    let shape = Shape::new(blocks, 512).expect("a small volume");
    let mut whole = Bitmap::new(node(1), shape, false, 1);
    let image = whole.images(VOLUME, checksum).into_iter().next().map(|(_, image)| image);
    let base = || image.clone().filter(|_| !blank).unwrap_or_else(|| Box::new([0; bitmap::PAGE_LEN]));
    let slots = [patched(base(), first), patched(base(), second)];
    let mut read = Bitmap::decode(node(1), VOLUME, shape, |at| slots.get(at).map(|s| &**s), checksum);
    let dirty: Vec<u64> = read.dirty_chunks().collect();
    assert_eq!(dirty.len() as u64, read.dirty_count());
    assert!(dirty.iter().all(|chunk| *chunk < shape.chunks()), "a chunk beyond the end");
    assert!(dirty.iter().all(|chunk| read.is_dirty(*chunk)));
    // What is written anew reads alike, but for what had never been there: that counts as dirty.
    let images = read.images(VOLUME, checksum);
    let find = |at: usize| images.iter().find(|(slot, _)| *slot == at).map(|(_, image)| &**image);
    let again =
        Bitmap::decode(node(1), VOLUME, shape, |at| find(at).or(slots.get(at).map(|s| &**s)), checksum);
    assert!(dirty.iter().all(|chunk| again.is_dirty(*chunk)), "a dirty chunk is clean now");
}

/// The target.
pub fn replica_metadata(data: &[u8]) {
    let Some((&[choice, cut], rest)) = data.split_first_chunk::<2>() else { return };
    let (first, second) = rest.split_at(rest.len().min(usize::from(cut) * 3));
    let blank = choice & 0x80 != 0;
    match choice % 3 {
        0 => superblock(first, second, blank),
        1 => activity_log(first, second, blank),
        _ => bitmap(first, second, blank, u64::from(choice) << 13 | 1),
    }
}
