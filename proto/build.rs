//! Makes Rust of the contracts with a compiler written in Rust, so that no `protoc` has to be installed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

const CONTRACTS: [&str; 8] = [
    "holdfast/state/v1/state.proto",
    "holdfast/node/v1/node.proto",
    "holdfast/raft/v1/raft.proto",
    "holdfast/v1/holdfast.proto",
    "holdfast/v1/host.proto",
    "holdfast/v1/job.proto",
    "holdfast/v1/reservation.proto",
    "holdfast/v1/scrub.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(CONTRACTS, ["proto"])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    // For gRPC reflection.
    fs::write(out.join("holdfast.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
