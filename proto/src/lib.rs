//! The gRPC contracts of Holdfast as Rust types. The `.proto` files under `proto/proto/` are the text to read; this
//! crate only names their modules: [`v1`] (management), [`node`] (data node to controller), [`raft`] (member to member)
//! and [`state`] (durable records).
//!
//! Invariant: nothing here is written by hand beside the contracts, so both ends of a connection cannot drift apart.

#![allow(missing_docs, unreachable_pub, clippy::all)]

// The generated code refers to its siblings by the packages' nesting.
mod holdfast {
    pub mod v1 {
        tonic::include_proto!("holdfast.v1");
    }
    pub mod node {
        pub mod v1 {
            tonic::include_proto!("holdfast.node.v1");
        }
    }
    pub mod raft {
        pub mod v1 {
            tonic::include_proto!("holdfast.raft.v1");
        }
    }
    pub mod state {
        pub mod v1 {
            tonic::include_proto!("holdfast.state.v1");
        }
    }
}

pub use holdfast::{node::v1 as node, raft::v1 as raft, state::v1 as state, v1};

/// Descriptors of all contracts, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holdfast.bin"));
