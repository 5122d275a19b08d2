//! What a portal offers and allows: plain [`PortalOptions`] checked once into a [`PortalConfig`].
//!
//! Invariant: a `PortalConfig` only holds values inside [`crate::limits`] that go together, so nothing behind it
//! checks them again.

use crate::limits;
use alloc::string::String;
use core::fmt;

/// CRC32C over more bytes: takes the value so far (0 at the start) and gives the value after `bytes`.
pub type Crc32c = fn(u32, &[u8]) -> u32;

/// Whether a digest is used in the full feature phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestPolicy {
    /// The initiator's wish is followed.
    Allowed,
    /// CRC32C or no session.
    Required,
    /// Never.
    Off,
}

/// What the owner of a portal may choose. Lengths in bytes, times in milliseconds.
#[derive(Clone, Debug)]
pub struct PortalOptions {
    /// Longest data segment that we accept: 512 to 2^24 - 1.
    pub max_recv_data_segment_length: u32,
    /// Longest solicited sequence or Data-In sequence: 512 to 2^24 - 1.
    pub max_burst_length: u32,
    /// Most unsolicited data of one command: 512 to `max_burst_length`.
    pub first_burst_length: u32,
    /// True forbids unsolicited Data-Out PDUs.
    pub initial_r2t: bool,
    /// Whether data may ride in the command PDU.
    pub immediate_data: bool,
    /// R2Ts in flight per task: 1 to [`limits::OUTSTANDING_R2T_MAX`].
    pub max_outstanding_r2t: u32,
    /// Connections of one session: 1 to [`limits::CONNECTIONS_PER_SESSION_MAX`].
    pub max_connections: u32,
    /// Commands in progress: 1 to [`limits::COMMAND_WINDOW_MAX`].
    pub command_window: u32,
    /// Header digest.
    pub header_digest: DigestPolicy,
    /// Data digest.
    pub data_digest: DigestPolicy,
    /// Most data-out bytes taken for one task; what a command expects beyond it is never solicited.
    pub data_out_len_max: u32,
    /// Solicited data-out bytes of all tasks of a session together, at least `data_out_len_max`. R2Ts wait for it.
    pub data_out_bytes_max: u64,
    /// From connection to the full feature phase.
    pub login_timeout_ms: u64,
    /// Silence of the initiator after which it is pinged. 0: never.
    pub ping_interval_ms: u64,
    /// Silence after a ping after which the connection is given up.
    pub ping_timeout_ms: u64,
    /// A discovery session that is silent this long is closed.
    pub discovery_idle_timeout_ms: u64,
    /// Sent as TargetAlias where it is not empty.
    pub target_alias: String,
    /// The CRC32C to use; [`crate::digest::crc32c`] is a portable one.
    pub crc32c: Crc32c,
}

impl Default for PortalOptions {
    fn default() -> Self {
        Self {
            max_recv_data_segment_length: 256 * 1024,
            max_burst_length: 1024 * 1024,
            first_burst_length: 64 * 1024,
            initial_r2t: false,
            immediate_data: true,
            max_outstanding_r2t: 4,
            max_connections: 4,
            command_window: 128,
            header_digest: DigestPolicy::Allowed,
            data_digest: DigestPolicy::Allowed,
            data_out_len_max: 16 * 1024 * 1024,
            data_out_bytes_max: 64 * 1024 * 1024,
            login_timeout_ms: 15_000,
            ping_interval_ms: 30_000,
            ping_timeout_ms: 30_000,
            discovery_idle_timeout_ms: 60_000,
            target_alias: String::new(),
            crc32c: crate::digest::crc32c,
        }
    }
}

/// An option of [`PortalOptions`] outside its bounds: the caller's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidOption {
    /// The option's name.
    pub option: &'static str,
    /// What it must be.
    pub must_be: &'static str,
}

impl fmt::Display for InvalidOption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} must be {}", self.option, self.must_be)
    }
}

impl core::error::Error for InvalidOption {}

/// Checked [`PortalOptions`].
#[derive(Clone, Debug)]
pub struct PortalConfig(PortalOptions);

impl PortalConfig {
    /// Checks the options.
    ///
    /// # Errors
    /// The first option that is out of bounds.
    pub fn new(options: PortalOptions) -> Result<Self, InvalidOption> {
        let segment = limits::SEGMENT_LEN_MIN..=limits::SEGMENT_LEN_MAX;
        let o = &options;
        let checks: &[(bool, &'static str, &'static str)] = &[
            (
                segment.contains(&o.max_recv_data_segment_length),
                "max_recv_data_segment_length",
                "512 to 16777215",
            ),
            (segment.contains(&o.max_burst_length), "max_burst_length", "512 to 16777215"),
            (
                (limits::SEGMENT_LEN_MIN..=o.max_burst_length).contains(&o.first_burst_length),
                "first_burst_length",
                "512 to max_burst_length",
            ),
            (
                (1..=limits::OUTSTANDING_R2T_MAX).contains(&o.max_outstanding_r2t),
                "max_outstanding_r2t",
                "1 to 16",
            ),
            (
                (1..=limits::CONNECTIONS_PER_SESSION_MAX).contains(&o.max_connections),
                "max_connections",
                "1 to 8",
            ),
            ((1..=limits::COMMAND_WINDOW_MAX).contains(&o.command_window), "command_window", "1 to 1024"),
            (o.data_out_len_max >= o.first_burst_length, "data_out_len_max", "at least first_burst_length"),
            (
                o.data_out_bytes_max >= u64::from(o.data_out_len_max),
                "data_out_bytes_max",
                "at least data_out_len_max",
            ),
            (o.login_timeout_ms > 0, "login_timeout_ms", "more than 0"),
            (o.ping_timeout_ms > 0, "ping_timeout_ms", "more than 0"),
            (o.discovery_idle_timeout_ms > 0, "discovery_idle_timeout_ms", "more than 0"),
            (
                o.target_alias.len() <= limits::VALUE_LEN_MAX && !o.target_alias.contains('\0'),
                "target_alias",
                "at most 255 bytes without NUL",
            ),
        ];
        match checks.iter().find(|(good, ..)| !good) {
            Some(&(_, option, must_be)) => Err(InvalidOption { option, must_be }),
            None => Ok(Self(options)),
        }
    }

    /// The options, all within bounds.
    #[must_use]
    pub fn options(&self) -> &PortalOptions {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert!(PortalConfig::new(PortalOptions::default()).is_ok());
    }

    #[test]
    fn first_burst_above_max_burst_is_refused() {
        let options = PortalOptions {
            first_burst_length: 8192,
            max_burst_length: 4096,
            data_out_len_max: 8192,
            ..PortalOptions::default()
        };
        assert_eq!(PortalConfig::new(options).unwrap_err().option, "first_burst_length");
    }
}
