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

pub(super) const WCE: u8 = 0x04;
pub(super) const D_SENSE: u8 = 0x04;
pub(super) const SWP: u8 = 0x08;
/// Where those bits are: the byte of the page.
pub(super) const WCE_AT: usize = 2;
pub(super) const D_SENSE_AT: usize = 2;
pub(super) const SWP_AT: usize = 4;

impl PageId {
    /// All pages, ascending by code and subpage.
    pub(super) const ALL: [PageId; 5] = [
        PageId::ReadWriteErrorRecovery,
        PageId::Caching,
        PageId::Control,
        PageId::ControlExtension,
        PageId::InformationalExceptions,
    ];

    /// PAGE CODE.
    pub(super) const fn page(self) -> u8 {
        match self {
            PageId::ReadWriteErrorRecovery => 0x01,
            PageId::Caching => 0x08,
            PageId::Control | PageId::ControlExtension => 0x0a,
            PageId::InformationalExceptions => 0x1c,
        }
    }

    /// SUBPAGE CODE, 0 for a page without.
    pub(super) const fn subpage(self) -> u8 {
        match self {
            PageId::ControlExtension => 0x01,
            _ => 0x00,
        }
    }

    /// The page with these parameters in force.
    pub(super) const fn bytes(self, parameters: &ModeParameters) -> PageBytes {
        match self {
            // AWRE and ARRE: what a store can repair, it repairs.
            PageId::ReadWriteErrorRecovery => PageBytes::new([0x01, 0x0a, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            PageId::Caching => {
                let wce = if parameters.write_cache { WCE } else { 0 };
                PageBytes::new([0x08, 0x12, wce, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
            }
            PageId::Control => {
                let d_sense = if parameters.descriptor_sense { D_SENSE } else { 0 };
                let swp = if parameters.software_write_protect { SWP } else { 0 };
                // GLTSD; QUEUE ALGORITHM MODIFIER 1 (SIMPLE tasks may be reordered), QERR 00b; TAS=0; BUSY TIMEOUT
                // PERIOD unlimited.
                PageBytes::new([0x0a, 0x0a, 0x02 | d_sense, 0x10, swp, 0, 0, 0, 0xff, 0xff, 0, 0])
            }
            PageId::ControlExtension => {
                // IALUAE: implicit asymmetric access is on.
                let mut page = [0; 32];
                [page[0], page[1], page[3], page[4]] = [0x4a, 0x01, 0x1c, 0x01];
                PageBytes::new(page)
            }
            // DEXCPT: no informational exceptions are reported.
            PageId::InformationalExceptions => PageBytes::new([0x1c, 0x0a, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        }
    }

    /// The page with a 1 for every bit that MODE SELECT may change: those of the parameters that are true here.
    pub(super) fn changeable(self, changeable: &ModeParameters) -> PageBytes {
        let mut mask = self.bytes(&ModeParameters::NONE);
        let header = if self.subpage() == 0 { 2 } else { 4 };
        for byte in mask.bytes.iter_mut().skip(header) {
            *byte = 0;
        }
        match self {
            PageId::Caching => mask.bytes[WCE_AT] = if changeable.write_cache { WCE } else { 0 },
            PageId::Control => {
                mask.bytes[D_SENSE_AT] = if changeable.descriptor_sense { D_SENSE } else { 0 };
                mask.bytes[SWP_AT] = if changeable.software_write_protect { SWP } else { 0 };
            }
            PageId::ReadWriteErrorRecovery | PageId::ControlExtension | PageId::InformationalExceptions => {}
        }
        mask
    }
}
