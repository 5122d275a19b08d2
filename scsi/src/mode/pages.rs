//! The bytes of every mode page, and which of their bits may be changed.

use super::ModeParameters;

/// The supported pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageId {
    /// 01h Read-Write Error Recovery (SBC-4 6.5.8).
    ReadWriteErrorRecovery,
    /// 08h Caching (SBC-4 6.5.6).
    Caching,
    /// 0Ah Control (SPC-5 7.5.10).
    Control,
    /// 0Ah/01h Control Extension (SPC-5 7.5.11).
    ControlExtension,
    /// 1Ch Informational Exceptions Control (SBC-4 6.5.7).
    InformationalExceptions,
    /// 1Ch/02h Logical Block Provisioning (SBC-4 6.5.9).
    LogicalBlockProvisioning,
}

/// A page of up to 32 bytes, with its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageBytes {
    bytes: [u8; 32],
    len: usize,
}

impl PageBytes {
    const fn new<const N: usize>(page: [u8; N]) -> PageBytes {
        const { assert!(N <= 32) };
        let mut bytes = [0; 32];
        let mut at = 0;
        while at < N {
            bytes[at] = page[at];
            at += 1;
        }
        PageBytes { bytes, len: N }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

/// PS: the page can be saved.
const PS: u8 = 0x80;
/// A field: the byte of the page where it stands, and its bits.
pub(super) type Field = (usize, u8);
pub(super) const WCE: Field = (2, 0x04);
/// Of TST only the values 000b and 001b are known.
pub(super) const TST: Field = (2, 0x20);
pub(super) const D_SENSE: Field = (2, 0x04);
pub(super) const QERR: Field = (3, 0x06);
pub(super) const UA_INTLCK: Field = (4, 0x30);
pub(super) const SWP: Field = (4, 0x08);
pub(super) const TAS: Field = (5, 0x40);
pub(super) const DEXCPT: Field = (2, 0x08);
pub(super) const TEST: Field = (2, 0x04);
pub(super) const MRIE: Field = (3, 0x0f);
pub(super) const SITUA: Field = (4, 0x01);
/// ENABLED of the two threshold descriptors, and where their THRESHOLD COUNT begins.
pub(super) const AVAILABLE_ENABLED: Field = (16, 0x80);
pub(super) const AVAILABLE_COUNT_AT: usize = 20;
pub(super) const USED_ENABLED: Field = (24, 0x80);
pub(super) const USED_COUNT_AT: usize = 28;
/// THRESHOLD RESOURCE.
const AVAILABLE: u8 = 0x01;
const USED: u8 = 0x02;
/// THRESHOLD ARMING: when the count rises.
const ARMED_INCREASING: u8 = 0x01;

const fn bit(set: bool, field: Field) -> u8 {
    if set { field.1 } else { 0 }
}

impl PageId {
    /// All pages, ascending by code and subpage.
    pub(super) const ALL: [PageId; 6] = [
        PageId::ReadWriteErrorRecovery,
        PageId::Caching,
        PageId::Control,
        PageId::ControlExtension,
        PageId::InformationalExceptions,
        PageId::LogicalBlockProvisioning,
    ];

    /// PAGE CODE.
    pub(super) const fn page(self) -> u8 {
        match self {
            PageId::ReadWriteErrorRecovery => 0x01,
            PageId::Caching => 0x08,
            PageId::Control | PageId::ControlExtension => 0x0a,
            PageId::InformationalExceptions | PageId::LogicalBlockProvisioning => 0x1c,
        }
    }

    /// SUBPAGE CODE, 0 for a page without.
    pub(super) const fn subpage(self) -> u8 {
        match self {
            PageId::ControlExtension => 0x01,
            PageId::LogicalBlockProvisioning => 0x02,
            _ => 0x00,
        }
    }

    /// The page with these parameters in force.
    pub(super) const fn bytes(self, parameters: &ModeParameters) -> PageBytes {
        match self {
            // AWRE and ARRE: what a store can repair, it repairs.
            PageId::ReadWriteErrorRecovery => {
                PageBytes::new([PS | 0x01, 0x0a, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            }
            PageId::Caching => {
                let wce = bit(parameters.write_cache, WCE);
                PageBytes::new([PS | 0x08, 0x12, wce, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            }
            PageId::Control => {
                let flags =
                    bit(parameters.task_set_per_nexus, TST) | bit(parameters.descriptor_sense, D_SENSE);
                let protect = bit(parameters.software_write_protect, SWP);
                // GLTSD; QUEUE ALGORITHM MODIFIER 1 (SIMPLE tasks may be reordered); BUSY TIMEOUT PERIOD unlimited.
                PageBytes::new([
                    PS | 0x0a,
                    0x0a,
                    0x02 | flags,
                    0x10 | (parameters.queue_error as u8) << 1,
                    (parameters.interlock as u8) << 4 | protect,
                    bit(parameters.task_aborted_status, TAS),
                    0,
                    0,
                    0xff,
                    0xff,
                    0,
                    0,
                ])
            }
            PageId::ControlExtension => {
                // TCMOS (the timestamp comes from outside), SCSIP (but SET TIMESTAMP overrides it), IALUAE (implicit
                // asymmetric access is on).
                let mut page = [0; 32];
                [page[0], page[1], page[3], page[4]] = [PS | 0x4a, 0x01, 0x1c, 0x07];
                PageBytes::new(page)
            }
            PageId::InformationalExceptions => {
                let exceptions = &parameters.exceptions;
                let flags = bit(exceptions.disabled, DEXCPT) | bit(exceptions.test, TEST);
                PageBytes::new([PS | 0x1c, 0x0a, flags, exceptions.method as u8, 0, 0, 0, 0, 0, 0, 0, 0])
            }
            PageId::LogicalBlockProvisioning => {
                let thresholds = &parameters.provisioning;
                let mut page = [0; 32];
                [page[0], page[1], page[3]] = [PS | 0x5c, 0x02, 28];
                page[4] = bit(thresholds.single_initiator, SITUA);
                let [a, b, c, d] = count(thresholds.available);
                [page[16], page[17]] = [bit(thresholds.available.is_some(), AVAILABLE_ENABLED), AVAILABLE];
                [page[20], page[21], page[22], page[23]] = [a, b, c, d];
                let [a, b, c, d] = count(thresholds.used);
                let enabled = bit(thresholds.used.is_some(), USED_ENABLED);
                [page[24], page[25]] = [enabled | ARMED_INCREASING, USED];
                [page[28], page[29], page[30], page[31]] = [a, b, c, d];
                PageBytes::new(page)
            }
        }
    }

    /// The page with a 1 for every bit that MODE SELECT may change.
    pub(super) const fn changeable(self) -> PageBytes {
        let mut mask = self.bytes(&ModeParameters::new(false));
        let header = if self.subpage() == 0 { 2 } else { 4 };
        let mut at = header;
        while at < mask.bytes.len() {
            mask.bytes[at] = 0;
            at += 1;
        }
        let fields: &[Field] = match self {
            PageId::Caching => &[WCE],
            PageId::Control => &[TST, D_SENSE, QERR, UA_INTLCK, SWP, TAS],
            PageId::InformationalExceptions => &[DEXCPT, TEST, MRIE],
            PageId::LogicalBlockProvisioning => &[
                SITUA,
                AVAILABLE_ENABLED,
                (20, 0xff),
                (21, 0xff),
                (22, 0xff),
                (23, 0xff),
                USED_ENABLED,
                (28, 0xff),
                (29, 0xff),
                (30, 0xff),
                (31, 0xff),
            ],
            PageId::ReadWriteErrorRecovery | PageId::ControlExtension => &[],
        };
        let mut next = 0;
        while next < fields.len() {
            let (at, bits) = fields[next];
            mask.bytes[at % 32] |= bits;
            next += 1;
        }
        mask
    }
}

const fn count(threshold: Option<u32>) -> [u8; 4] {
    match threshold {
        Some(count) => count.to_be_bytes(),
        None => [0; 4],
    }
}
