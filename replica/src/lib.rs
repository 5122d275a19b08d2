//! The rules of replicated volumes and of forwarded commands, without I/O, clock, threads or random numbers.
//!
//! Invariants of the whole crate: what comes from a peer or from a disk is parsed once into types that hold valid values
//! only; every bound is a constant in [`limits`]; checksums are computed by the CRC32C function that the caller hands in,
//! so that each shell uses the fastest one of its machine.
//!
//! | Looking for | Module |
//! |---|---|
//! | who is who: cluster, volume, node, boot | [`ids`] |
//! | the number of an ownership and in-sync configuration | [`epoch`] |
//! | how that configuration may change | [`config`] |
//! | how long a node may serve | [`gate`] |
//! | the header of a replica on disk | [`superblock`] |
//! | the header of a frame between data nodes | [`frame`] |
//! | commands forwarded to the owner | [`forward`] |
//! | runs of blocks, extents, chunks | [`span`] |
//! | frames between an owner and its replicas | [`replication`] |
//! | the owner: writes, members, recovery, re-synchronisation | [`primary`] |
//! | one replica | [`secondary`] |
//! | locks on runs of blocks | [`ranges`] |
//! | the extents that a replica may differ in, on disk | [`activity_log`] |
//! | the chunks that an absent replica lacks, on disk | [`bitmap`] |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod activity_log;
pub mod bitmap;
pub mod config;
pub mod epoch;
pub mod faults;
pub mod forward;
pub mod frame;
pub mod gate;
pub mod ids;
pub mod limits;
pub mod primary;
pub mod ranges;
pub mod replication;
pub mod secondary;
pub mod span;
pub mod superblock;

/// CRC32C (Castagnoli) of `bytes`, continued from the checksum of what came before (0 at the start).
pub type Crc32c = fn(u32, &[u8]) -> u32;
