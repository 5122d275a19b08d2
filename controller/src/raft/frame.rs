//! openraft's messages in the frames of `raft.proto`.
//!
//! Invariant: a frame of another format, or with anything but exactly one message, is refused.

use holdfast_proto::raft::Frame;
use serde::{Serialize, de::DeserializeOwned};

/// postcard of openraft 0.10, entries of a membership and a command (1 was without stores, 2 had either).
pub(super) const FORMAT: u32 = 3;

/// A frame that is none of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("raft frame of format {0}; this version knows format {FORMAT}")]
    Format(u32),
    #[error("raft frame cannot be read: {0}")]
    Malformed(String),
    #[error("raft frame cannot be made: {0}")]
    Unencodable(String),
}

pub(super) fn pack(message: &impl Serialize) -> Result<Frame, FrameError> {
    Ok(Frame { format: FORMAT, payload: pack_bytes(message)? })
}

pub(super) fn pack_bytes(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    postcard::to_stdvec(message).map_err(|error| FrameError::Unencodable(error.to_string()))
}

pub(super) fn unpack<T: DeserializeOwned>(frame: &Frame) -> Result<T, FrameError> {
    unpack_bytes(frame.format, &frame.payload)
}

pub(super) fn unpack_bytes<T: DeserializeOwned>(format: u32, payload: &[u8]) -> Result<T, FrameError> {
    if format != FORMAT {
        return Err(FrameError::Format(format));
    }
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(FrameError::Malformed("bytes after its end".to_owned())),
        Err(error) => Err(FrameError::Malformed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_and_refuses_the_rest() {
        let frame = pack(&(7_u64, "x".to_owned())).unwrap();
        assert_eq!(unpack::<(u64, String)>(&frame), Ok((7, "x".to_owned())));
        let later = Frame { format: FORMAT + 1, ..frame.clone() };
        assert_eq!(unpack::<(u64, String)>(&later), Err(FrameError::Format(FORMAT + 1)));
        let mut longer = frame.clone();
        longer.payload.push(0);
        assert!(matches!(unpack::<(u64, String)>(&longer), Err(FrameError::Malformed(_))));
        let shorter = Frame { payload: frame.payload[..1].to_vec(), ..frame };
        assert!(matches!(unpack::<(u64, String)>(&shorter), Err(FrameError::Malformed(_))));
    }
}
