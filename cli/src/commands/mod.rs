//! One module per noun: each turns a verb into a call and its answer into what a person or a program reads.

pub(crate) mod audit;
pub(crate) mod cluster;
pub(crate) mod controller;
pub(crate) mod event;
pub(crate) mod host;
pub(crate) mod map;
pub(crate) mod node;
pub(crate) mod reservation;
pub(crate) mod volume;

/// Rows of a listing are fetched in pages of this many.
pub(crate) const PAGE_SIZE: u32 = 500;
