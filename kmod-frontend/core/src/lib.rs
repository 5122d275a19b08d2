//! The kernel front end's side of the SCSI core: what the C module asks before it moves a block.
//!
//! The data node sends the module an *image* of each logical unit: identity, shape, mode parameters, target port groups and
//! the whole persistent reservation, as of one version. [`image`] checks it and lays it out flat; [`command`] answers
//! a CDB against it with the functions of `holdfast_scsi`, or says that the data node has to. [`ffi`] is the C side.
//!
//! Invariants: nothing here allocates, panics, sleeps, locks or keeps state; an image that does not check is refused as a
//! whole; a command that this version does not know goes to the data node, never past the checks.
#![no_std]
#![deny(unsafe_code)]

#[cfg(feature = "encode")]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod command;
#[cfg(feature = "encode")]
pub mod encode;
pub mod ffi;
pub mod image;
pub mod limits;
mod reader;
