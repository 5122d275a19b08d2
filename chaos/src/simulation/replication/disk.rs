//! A replica on a node's disk: blocks behind a cache that the power takes along, and bookkeeping whose writes it tears.
//!
//! Invariant: what was durable stays; what was only cached is there after a loss of power, or not, block by block.

use std::collections::BTreeMap;

use holdfast_datanode::view::{ClusterId, NodeNumber, VolumeId};
use holdfast_replica::{
    activity_log::{self, ActivityLog},
    bitmap::{self, Bitmap},
    epoch::Epoch,
    secondary::Part,
    span::Shape,
    superblock::{self, Superblock},
};

use crate::{random::Random, simulation::founding::CLUSTER};

/// Checksums.
pub(super) fn crc(so_far: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(so_far, bytes)
}

/// See the module.
#[derive(Debug)]
pub(in crate::simulation) struct Disk {
    volume: VolumeId,
    /// What a read sees.
    pub(super) blocks: Vec<u64>,
    durable: Vec<u64>,
    superblock: [Box<[u8; superblock::SLOT_LEN]>; 2],
    log: [Box<[u8; activity_log::SLOT_LEN]>; 2],
    bitmaps: BTreeMap<NodeNumber, BTreeMap<usize, Box<[u8; bitmap::PAGE_LEN]>>>,
}

impl Disk {
    pub(super) fn new(volume: VolumeId, node: NodeNumber, blocks: u64, mut log: ActivityLog) -> Self {
        let first = Superblock {
            cluster: ClusterId(CLUSTER),
            volume,
            node,
            block_size: 512,
            blocks,
            sequence: 1,
            promised: Epoch::ZERO,
        };
        let empty = || Box::new([0; activity_log::SLOT_LEN]);
        let mut disk = Self {
            volume,
            blocks: vec![0; blocks as usize],
            durable: vec![0; blocks as usize],
            superblock: [Box::new([0; superblock::SLOT_LEN]), first.encode(crc)],
            log: [empty(), empty()],
            bitmaps: BTreeMap::new(),
        };
        let (slot, image) = log.image(volume, crc);
        disk.log[slot] = image;
        disk
    }

    /// What a process finds.
    pub(super) fn open(&self, shape: Shape) -> Result<(Epoch, ActivityLog, Vec<Bitmap>), String> {
        let superblock = self.superblock()?;
        let log = ActivityLog::decode([&self.log[0], &self.log[1]], self.volume, crc)
            .unwrap_or_else(|_| ActivityLog::untrusted());
        let bitmaps = self.bitmaps.iter().map(|(node, pages)| {
            Bitmap::decode(*node, self.volume, shape, |at| pages.get(&at).map(|page| &**page), crc)
        });
        Ok((superblock.promised, log, bitmaps.collect()))
    }

    fn superblock(&self) -> Result<Superblock, String> {
        let slots = [&*self.superblock[0], &*self.superblock[1]];
        Superblock::decode(slots, crc).map_err(|error| format!("a superblock is lost: {error}"))
    }

    pub(super) fn write(&mut self, lba: u64, values: &[u64], durable: bool) {
        for (at, value) in (lba as usize..).zip(values) {
            self.blocks[at] = *value;
            if durable {
                self.durable[at] = *value;
            }
        }
    }

    pub(super) fn grow(&mut self, blocks: u64) {
        if blocks > self.blocks.len() as u64 {
            self.blocks.resize(blocks as usize, 0);
            self.durable.resize(blocks as usize, 0);
        }
    }

    pub(super) fn flush(&mut self) {
        self.durable.clone_from(&self.blocks);
    }

    pub(super) fn persist(&mut self, parts: &[Part]) -> Result<(), String> {
        parts.iter().try_for_each(|part| self.persist_part(part, None))
    }

    /// The process ends while these parts are being written: each is there, or not, or torn.
    pub(super) fn tear(&mut self, parts: &[Part], random: &mut Random) -> Result<(), String> {
        for part in parts {
            match random.below(3) {
                0 => self.persist_part(part, None)?,
                1 => self.persist_part(part, Some(random.below(4096) as usize))?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn lose_power(&mut self, random: &mut Random) {
        for (cached, durable) in self.blocks.iter_mut().zip(&mut self.durable) {
            if random.below(3) == 0 {
                *durable = *cached;
            }
            *cached = *durable;
        }
    }

    fn persist_part(&mut self, part: &Part, torn_at: Option<usize>) -> Result<(), String> {
        match part {
            Part::Promise(epoch) => {
                let next = self.superblock()?.promise(*epoch).ok_or("a promise went back")?;
                copy(&mut self.superblock[next.slot()][..], &next.encode(crc)[..], torn_at);
            }
            Part::Log(slot, image) => copy(&mut self.log[*slot][..], &image[..], torn_at),
            Part::Page(node, slot, image) => {
                let page = self.bitmaps.entry(*node).or_default().entry(*slot);
                copy(&mut page.or_insert_with(|| Box::new([0; bitmap::PAGE_LEN]))[..], &image[..], torn_at);
            }
            Part::DropBitmap(node) => {
                self.bitmaps.remove(node);
            }
        }
        Ok(())
    }
}

/// A torn write changes the first part only.
fn copy(to: &mut [u8], from: &[u8], torn_at: Option<usize>) {
    let len = torn_at.unwrap_or(from.len()).min(from.len());
    to[..len].copy_from_slice(&from[..len]);
}
