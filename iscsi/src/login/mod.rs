//! Login.
pub mod status;
