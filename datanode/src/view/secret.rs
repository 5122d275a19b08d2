//! A secret in memory: never printed, wiped when dropped.

use std::{fmt, sync::Arc};

/// Bytes of a CHAP secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<Wiped>);

#[derive(PartialEq, Eq)]
struct Wiped(Vec<u8>);

impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the compiler from leaving out a write to memory that nobody reads again.
        std::hint::black_box(&self.0);
    }
}

impl Secret {
    /// Takes the bytes.
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(Arc::new(Wiped(bytes)))
    }

    /// The bytes, for computing a CHAP response.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}
