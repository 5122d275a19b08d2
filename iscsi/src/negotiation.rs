//! Negotiated session parameters.

/// What a session was agreed to work with. Lengths in bytes, times in seconds (RFC 7143 section 13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionParameters {
    /// CRC32C over headers.
    pub header_digest: bool,
    /// CRC32C over data segments.
    pub data_digest: bool,
    /// MaxRecvDataSegmentLength of the initiator: the longest data segment that we send.
    pub send_data_segment_length: u32,
    /// MaxRecvDataSegmentLength of ours.
    pub recv_data_segment_length: u32,
    /// MaxBurstLength
    pub max_burst_length: u32,
    /// FirstBurstLength
    pub first_burst_length: u32,
    /// InitialR2T: no unsolicited Data-Out PDUs.
    pub initial_r2t: bool,
    /// ImmediateData
    pub immediate_data: bool,
    /// MaxOutstandingR2T
    pub max_outstanding_r2t: u32,
    /// DefaultTime2Wait
    pub default_time_2_wait: u16,
    /// DefaultTime2Retain
    pub default_time_2_retain: u16,
}
