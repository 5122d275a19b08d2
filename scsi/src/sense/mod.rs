//! Sense data: why a command did not end with GOOD (SPC-5 4.4).
//!
//! [`Sense`] is the meaning; [`Sense::write`] puts it on the wire in fixed (70h) or descriptor (72h) format and
//! [`Sense::parse`] reads either back. Invariant: `parse(write(x)) == x` for everything that the format can carry
//! (fixed format has 32 bits of INFORMATION and COMMAND-SPECIFIC INFORMATION; larger values are left out, VALID=0).

pub mod asc;
mod wire;

pub use asc::AdditionalSense;

use crate::status::Status;

/// Sense key (SPC-5 table 48).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SenseKey {
    /// Nothing to report.
    NoSense = 0x0,
    /// Done, with recovery by the device.
    RecoveredError = 0x1,
    /// The logical unit cannot be accessed.
    NotReady = 0x2,
    /// A flaw in the medium.
    MediumError = 0x3,
    /// A failure that the device server could not recover from.
    HardwareError = 0x4,
    /// The request is wrong.
    IllegalRequest = 0x5,
    /// A Unit Attention condition.
    UnitAttention = 0x6,
    /// Write protection, or no space left.
    DataProtect = 0x7,
    /// Blank medium.
    BlankCheck = 0x8,
    /// Vendor specific.
    VendorSpecific = 0x9,
    /// EXTENDED COPY failed.
    CopyAborted = 0xa,
    /// The device server aborted the command; trying again may help.
    AbortedCommand = 0xb,
    /// Data left in a buffer at the end of the medium.
    VolumeOverflow = 0xd,
    /// The data did not match.
    Miscompare = 0xe,
    /// Command completed sense.
    Completed = 0xf,
}

impl SenseKey {
    /// The key with this code, if there is one.
    pub const fn from_code(code: u8) -> Option<SenseKey> {
        Some(match code {
            0x0 => SenseKey::NoSense,
            0x1 => SenseKey::RecoveredError,
            0x2 => SenseKey::NotReady,
            0x3 => SenseKey::MediumError,
            0x4 => SenseKey::HardwareError,
            0x5 => SenseKey::IllegalRequest,
            0x6 => SenseKey::UnitAttention,
            0x7 => SenseKey::DataProtect,
            0x8 => SenseKey::BlankCheck,
            0x9 => SenseKey::VendorSpecific,
            0xa => SenseKey::CopyAborted,
            0xb => SenseKey::AbortedCommand,
            0xd => SenseKey::VolumeOverflow,
            0xe => SenseKey::Miscompare,
            0xf => SenseKey::Completed,
            _ => return None,
        })
    }
}

/// Sense-key specific information (SPC-5 4.4.2.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SenseSpecific {
    /// None (SKSV=0).
    #[default]
    None,
    /// Which field is wrong. Only with ILLEGAL REQUEST.
    FieldPointer {
        /// True: in the CDB. False: in the parameter list.
        in_cdb: bool,
        /// First byte of the field.
        byte: u16,
        /// Most significant bit of the field in that byte, 0..=7; `None` when the whole byte is meant.
        bit: Option<u8>,
    },
    /// How far a long operation is, in 65536ths. Only with NO SENSE and NOT READY.
    Progress(u16),
    /// Retries made. Only with HARDWARE ERROR, MEDIUM ERROR and RECOVERED ERROR.
    Retries(u16),
    /// Segment pointer: which field of a copy's parameter list is wrong. Only with COPY ABORTED.
    SegmentPointer {
        /// SD. True: `byte` counts from the start of the segment descriptor. False: from the start of the list.
        in_segment: bool,
        /// First byte of the field.
        byte: u16,
        /// Most significant bit of the field in that byte, 0..=7; `None` when the whole byte is meant.
        bit: Option<u8>,
    },
}

/// What a copy source or destination answered, which ended a copy (SPC-5 4.4.2.9). Only with COPY ABORTED.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Forwarded {
    /// The copy source answered so; otherwise the copy destination.
    pub by_source: bool,
    /// Its status.
    pub status: Status,
    /// Sense key and additional sense code that came with it.
    pub sense: Option<(SenseKey, AdditionalSense)>,
}

/// Sense data, independent of its format on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sense {
    /// Sense key.
    pub key: SenseKey,
    /// Additional sense code and qualifier.
    pub additional: AdditionalSense,
    /// INFORMATION field: for most commands the LBA, for a miscompare the byte offset.
    pub information: Option<u64>,
    /// COMMAND-SPECIFIC INFORMATION field.
    pub command_specific: Option<u64>,
    /// Sense-key specific information.
    pub specific: SenseSpecific,
    /// What a copy source or destination answered.
    pub forwarded: Option<Forwarded>,
}

impl Sense {
    /// NO SENSE, 00/00: what REQUEST SENSE returns when nothing is pending.
    pub const NONE: Sense = Sense::new(SenseKey::NoSense, asc::NO_ADDITIONAL_SENSE);

    /// A key and an additional sense code, with nothing more.
    pub const fn new(key: SenseKey, additional: AdditionalSense) -> Sense {
        Sense {
            key,
            additional,
            information: None,
            command_specific: None,
            specific: SenseSpecific::None,
            forwarded: None,
        }
    }

    /// ILLEGAL REQUEST with `additional`.
    pub const fn illegal(additional: AdditionalSense) -> Sense {
        Sense::new(SenseKey::IllegalRequest, additional)
    }

    /// INVALID FIELD IN CDB, 05/24/00, pointing at the field that begins at `byte`, `bit` being its most significant
    /// bit there (`None` for a field of whole bytes).
    pub const fn illegal_field_cdb(byte: u16, bit: Option<u8>) -> Sense {
        Sense::illegal(asc::INVALID_FIELD_IN_CDB).with_field_pointer(true, byte, bit)
    }

    /// INVALID FIELD IN PARAMETER LIST, 05/26/00, pointing at the field.
    pub const fn illegal_field_parameter(byte: u16, bit: Option<u8>) -> Sense {
        Sense::illegal(asc::INVALID_FIELD_IN_PARAMETER_LIST).with_field_pointer(false, byte, bit)
    }

    /// PARAMETER LIST LENGTH ERROR, 05/1A/00.
    pub const fn parameter_list_length() -> Sense {
        Sense::illegal(asc::PARAMETER_LIST_LENGTH_ERROR)
    }

    /// LOGICAL BLOCK ADDRESS OUT OF RANGE, 05/21/00, with the first LBA that does not exist as INFORMATION.
    pub const fn lba_out_of_range(lba: u64) -> Sense {
        Sense::illegal(asc::LBA_OUT_OF_RANGE).with_information(lba)
    }

    /// UNIT ATTENTION with `additional`.
    pub const fn unit_attention(additional: AdditionalSense) -> Sense {
        Sense::new(SenseKey::UnitAttention, additional)
    }

    /// MISCOMPARE DURING VERIFY OPERATION, 0E/1D/00; `offset` is that of the first differing byte in the Data-Out
    /// buffer (SBC-4 5.3).
    pub const fn miscompare(offset: u64) -> Sense {
        Sense::new(SenseKey::Miscompare, asc::MISCOMPARE_DURING_VERIFY).with_information(offset)
    }

    /// COPY ABORTED with `additional`, in the segment with this number: it is the COMMAND-SPECIFIC INFORMATION.
    pub const fn copy_aborted(additional: AdditionalSense, segment: u16) -> Sense {
        let mut sense = Sense::new(SenseKey::CopyAborted, additional);
        sense.command_specific = Some(segment as u64);
        sense
    }

    /// The same with a segment pointer.
    #[must_use]
    pub const fn with_segment_pointer(mut self, in_segment: bool, byte: u16, bit: Option<u8>) -> Sense {
        let bit = match bit {
            Some(bit) => Some(bit & 7),
            None => None,
        };
        self.specific = SenseSpecific::SegmentPointer { in_segment, byte, bit };
        self
    }

    /// The same with what a copy source or destination answered.
    #[must_use]
    pub const fn with_forwarded(mut self, forwarded: Forwarded) -> Sense {
        self.forwarded = Some(forwarded);
        self
    }

    /// The same with a field pointer.
    #[must_use]
    pub const fn with_field_pointer(mut self, in_cdb: bool, byte: u16, bit: Option<u8>) -> Sense {
        let bit = match bit {
            Some(bit) => Some(bit & 7),
            None => None,
        };
        self.specific = SenseSpecific::FieldPointer { in_cdb, byte, bit };
        self
    }

    /// The same with an INFORMATION field.
    #[must_use]
    pub const fn with_information(mut self, information: u64) -> Sense {
        self.information = Some(information);
        self
    }

    /// The same with a progress indication in 65536ths.
    #[must_use]
    pub const fn with_progress(mut self, progress: u16) -> Sense {
        self.specific = SenseSpecific::Progress(progress);
        self
    }
}

#[cfg(test)]
mod tests;
