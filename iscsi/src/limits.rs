//! Every bound of the engine, in one place. What a peer can make us hold is the product of numbers in this
//! file and in [`crate::PortalOptions`], which is itself checked against this file.

/// The iSCSIProtocolLevel that we offer: RFC 7144, "SCSI features update", with SAM-5's queries, I_T NEXUS RESET, command priority and
/// status qualifier.
pub const PROTOCOL_LEVEL_SAM_5: u8 = 2;

/// Bytes of the basic header segment (RFC 7143 11.2.1).
pub const BHS_LEN: usize = 48;

/// Bytes of one digest on the wire (RFC 7143 11.2.3).
pub const DIGEST_LEN: usize = 4;

/// The most that additional header segments may take: an extended CDB of 260 bytes (244 beyond the first 16, one
/// reserved byte, 3 bytes of header) and a bidirectional read length (8 bytes), each padded (RFC 7143 11.2.2).
pub const AHS_LEN_MAX: usize = 248 + 8;

/// The longest CDB: SPC-5 4.2.3, variable length, 7 + 1 + 252 bytes.
pub const CDB_LEN_MAX: usize = 260;

/// Data segment bytes of one login PDU: the default MaxRecvDataSegmentLength, which holds through login
/// (RFC 7143 13.12).
pub const LOGIN_DATA_SEGMENT_LEN_MAX: usize = 8192;

/// Bytes of one login request's text over all its PDUs joined by the C bit.
pub const LOGIN_TEXT_LEN_MAX: usize = 16 * 1024;

/// Login PDUs of one connection, before it is refused.
pub const LOGIN_PDUS_MAX: u32 = 32;

/// Keys in one login or text request.
pub const TEXT_KEYS_MAX: usize = 96;

/// Bytes of a key's name (RFC 7143 6.1).
pub const KEY_NAME_LEN_MAX: usize = 63;

/// Bytes of a value, other than large binary ones (RFC 7143 6.1).
pub const VALUE_LEN_MAX: usize = 255;

/// Bytes of an iSCSI name (RFC 7143 4.2.7.1).
pub const NAME_LEN_MAX: usize = 223;

/// Bytes of a text request's text over all its PDUs joined by the C bit, in the full feature phase.
pub const TEXT_REQUEST_LEN_MAX: usize = 4096;

/// Bytes of one whole SendTargets answer.
pub const TEXT_RESPONSE_LEN_MAX: usize = 1024 * 1024;

/// Bytes of a CHAP challenge, decoded (RFC 7143 12.1.3).
pub const CHAP_CHALLENGE_LEN_MAX: usize = 1024;

/// Bytes of the challenge that we send.
pub const CHAP_CHALLENGE_LEN: usize = 32;

/// Bytes of the least challenge that we answer in mutual CHAP: the least length that makes guessing hopeless.
pub const CHAP_CHALLENGE_LEN_MIN: usize = 16;

/// The least and the greatest MaxRecvDataSegmentLength, MaxBurstLength and FirstBurstLength (RFC 7143 13.12 to 13.14).
pub const SEGMENT_LEN_MIN: u32 = 512;
/// See [`SEGMENT_LEN_MIN`].
pub const SEGMENT_LEN_MAX: u32 = 0x00ff_ffff;

/// The most connections that a session may have.
pub const CONNECTIONS_PER_SESSION_MAX: u32 = 8;

/// The most commands that a session may have in progress besides immediate ones.
pub const COMMAND_WINDOW_MAX: u32 = 1024;

/// Immediate commands in progress at once; more are rejected (RFC 7143 4.2.2.1).
pub const IMMEDIATE_TASKS_MAX: usize = 8;

/// Task management functions in progress at once.
pub const TASK_MANAGEMENT_MAX: usize = 8;

/// R2Ts outstanding for one task, at most.
pub const OUTSTANDING_R2T_MAX: u32 = 16;

/// Bytes of requests other than SCSI commands that wait for an earlier CmdSN.
pub const HELD_REQUEST_BYTES_MAX: usize = 256 * 1024;

/// Bytes of ping data that a NOP-Out may carry.
pub const PING_LEN_MAX: usize = 64 * 1024;

/// Queued bytes to send above which no more input is wanted.
pub const TRANSMIT_QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Payloads up to this length are copied beside their header, so that small replies share one segment.
pub const COPY_LEN_MAX: usize = 512;

/// Bytes of sense data that fit a SCSI Response.
pub const SENSE_LEN_MAX: usize = 252;

/// Empty data-out buffers kept for reuse, and the capacity above which a buffer is not kept.
pub const SPARE_BUFFERS_MAX: usize = 16;
/// See [`SPARE_BUFFERS_MAX`].
pub const SPARE_BUFFER_LEN_MAX: usize = 1024 * 1024;
