//! A node's disk with a cache that a power cut loses, and metadata writes that it tears.

use std::collections::BTreeMap;

use holdfast_replica::{
    activity_log::{self, ActivityLog},
    bitmap::{self, Bitmap},
    epoch::Epoch,
    ids::{ClusterId, NodeNumber, VolumeId},
    secondary::Part,
    span::{Shape, Span},
    superblock::{self, Superblock},
};

use crate::random::Random;

pub(crate) fn crc(so_far: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(so_far, bytes)
}

/// No host writes this.
const ROTTEN: u64 = u64::MAX;

pub(crate) const VOLUME: VolumeId = VolumeId([7; 16]);

/// See the module.
#[derive(Debug)]
pub(crate) struct Disk {
    node: NodeNumber,
    /// What a read sees.
    pub(crate) blocks: Vec<u64>,
    /// What was there, cached and durable, before it rotted.
    hidden: BTreeMap<u64, (u64, u64)>,
    /// What is there after a power cut, at least.
    durable: Vec<u64>,
    superblock: [Box<[u8; superblock::SLOT_LEN]>; 2],
    log: [Box<[u8; activity_log::SLOT_LEN]>; 2],
    bitmaps: BTreeMap<NodeNumber, BTreeMap<usize, Box<[u8; bitmap::PAGE_LEN]>>>,
}

impl Disk {
    pub(crate) fn new(node: NodeNumber, shape: Shape, log: ActivityLog) -> Disk {
        let first = Superblock {
            cluster: ClusterId([1; 16]),
            volume: VOLUME,
            node,
            block_size: 512,
            blocks: shape.blocks(),
            sequence: 1,
            promised: Epoch::ZERO,
        };
        let mut disk = Disk {
            node,
            blocks: vec![0; shape.blocks() as usize],
            hidden: BTreeMap::new(),
            durable: vec![0; shape.blocks() as usize],
            superblock: [Box::new([0; superblock::SLOT_LEN]), first.encode(crc)],
            log: [Box::new([0; activity_log::SLOT_LEN]), Box::new([0; activity_log::SLOT_LEN])],
            bitmaps: BTreeMap::new(),
        };
        let (slot, image) = log.clone().image(VOLUME, crc);
        disk.log[slot] = image;
        disk
    }

    pub(crate) fn open(&self, shape: Shape) -> (Epoch, ActivityLog, Vec<Bitmap>) {
        let superblock = self.superblock();
        let log = ActivityLog::decode([&self.log[0], &self.log[1]], VOLUME, crc).expect("activity log");
        let bitmaps = self.bitmaps.iter().map(|(node, pages)| {
            Bitmap::decode(*node, VOLUME, shape, |at| pages.get(&at).map(|p| &**p), crc)
        });
        (superblock.promised, log, bitmaps.collect())
    }

    fn superblock(&self) -> Superblock {
        Superblock::decode([&self.superblock[0], &self.superblock[1]], crc).expect("superblock")
    }

    pub(crate) fn write(&mut self, lba: u64, values: &[u64], durable: bool) {
        for (at, value) in values.iter().enumerate() {
            self.blocks[lba as usize + at] = *value;
            if durable {
                self.durable[lba as usize + at] = *value;
            }
        }
    }

    /// A block changes behind everybody's back. Its checksum tells.
    pub(crate) fn rot(&mut self, lba: u64) {
        let at = lba as usize;
        self.hidden.insert(lba, (self.blocks[at], self.durable[at]));
        (self.blocks[at], self.durable[at]) = (ROTTEN, ROTTEN);
    }

    /// What is still rotten is as it was before.
    pub(crate) fn mend(&mut self) {
        for (lba, (cached, durable)) in std::mem::take(&mut self.hidden) {
            let at = lba as usize;
            if self.blocks[at] == ROTTEN {
                self.blocks[at] = cached;
            }
            if self.durable[at] == ROTTEN {
                self.durable[at] = durable;
            }
        }
    }

    /// The blocks that are rotten.
    pub(crate) fn rotten(&self) -> impl Iterator<Item = u64> + '_ {
        (0..).zip(&self.blocks).filter(|(_, value)| **value == ROTTEN).map(|(lba, _)| lba)
    }

    /// The first block of these that cannot be read.
    pub(crate) fn lost(&self, span: Span) -> Option<u64> {
        self.rotten().find(|lba| (span.lba()..span.end()).contains(lba))
    }

    pub(crate) fn flush(&mut self) {
        self.durable.clone_from(&self.blocks);
    }

    pub(crate) fn persist(&mut self, parts: &[Part]) {
        for part in parts {
            self.persist_part(part, None);
        }
    }

    /// The power goes while these parts are being written: each is there, or not, or torn.
    pub(crate) fn tear(&mut self, parts: &[Part], random: &mut Random) {
        for part in parts {
            match random.below(3) {
                0 => self.persist_part(part, None),
                1 => self.persist_part(part, Some(random.below(4096) as usize)),
                _ => {}
            }
        }
    }

    /// Each cached block is on disk, or not.
    pub(crate) fn power_cut(&mut self, random: &mut Random) {
        for (cached, durable) in self.blocks.iter_mut().zip(&mut self.durable) {
            if random.below(3) == 0 {
                *durable = *cached;
            }
            *cached = *durable;
        }
    }

    fn persist_part(&mut self, part: &Part, torn_at: Option<usize>) {
        match part {
            Part::Promise(epoch) => {
                let next = self.superblock().promise(*epoch).expect("promises never go back");
                copy(&mut self.superblock[next.slot()][..], &next.encode(crc)[..], torn_at);
            }
            Part::Log(slot, image) => copy(&mut self.log[*slot][..], &image[..], torn_at),
            Part::Page(node, slot, image) => {
                assert_ne!(*node, self.node);
                let page = self.bitmaps.entry(*node).or_default().entry(*slot);
                copy(&mut page.or_insert_with(|| Box::new([0; bitmap::PAGE_LEN]))[..], &image[..], torn_at);
            }
            Part::DropBitmap(node) => {
                self.bitmaps.remove(node);
            }
        }
    }
}

/// A torn write changes the first part only.
fn copy(to: &mut [u8], from: &[u8], torn_at: Option<usize>) {
    let len = torn_at.unwrap_or(from.len()).min(from.len());
    to[..len].copy_from_slice(&from[..len]);
}
