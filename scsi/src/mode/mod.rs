//! Mode parameters: MODE SENSE here, the pages' bytes in `pages`, MODE SELECT in `select`.
//!
//! One set of parameters serves all I_T nexuses (VPD 87h says so). Invariant: MODE SELECT can change nothing but what
//! PAGE CONTROL 01b reports as changeable, because both go by the same masks.

mod pages;
mod select;

pub use select::parse_select;

use crate::cdb::{ModeForm, ModeSense, PageControl};
use crate::geometry::Geometry;
use crate::reply::{Reply, ReplyWriter};
use crate::sense::{AdditionalSense, Sense, asc};
use pages::PageId;

/// What MODE SELECT can change. The cluster keeps current and saved values ([`crate::lu_state`] in user space).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModeParameters {
    /// WCE: a write may be acknowledged before it is on stable storage.
    pub write_cache: bool,
    /// SWP: writes are refused with 07/27/02.
    pub software_write_protect: bool,
    /// D_SENSE: sense data in descriptor format.
    pub descriptor_sense: bool,
    /// TST=001b: each I_T nexus has a task set of its own.
    pub task_set_per_nexus: bool,
    /// QERR.
    pub queue_error: QueueError,
    /// TAS: a task that another I_T nexus aborted ends with TASK ABORTED instead of in silence.
    pub task_aborted_status: bool,
    /// UA_INTLCK_CTRL.
    pub interlock: Interlock,
    /// The Informational Exceptions Control page.
    pub exceptions: InformationalExceptions,
    /// The Logical Block Provisioning page.
    pub provisioning: Thresholds,
}

/// QERR: what a CHECK CONDITION does to the other tasks of the task set (SPC-5 7.5.10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum QueueError {
    /// 00b: nothing.
    #[default]
    Continue = 0b00,
    /// 01b: all of them are aborted.
    AbortAll = 0b01,
    /// 11b: those of the same I_T nexus are aborted.
    AbortOwn = 0b11,
}

impl QueueError {
    /// The value with this code.
    pub const fn from_code(code: u8) -> Option<QueueError> {
        Some(match code {
            0b00 => QueueError::Continue,
            0b01 => QueueError::AbortAll,
            0b11 => QueueError::AbortOwn,
            _ => return None,
        })
    }
}

/// UA_INTLCK_CTRL: how a Unit Attention leaves its queue (SPC-5 7.5.10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Interlock {
    /// 00b: by any report.
    #[default]
    None = 0b00,
    /// 10b: by REQUEST SENSE only.
    Keep = 0b10,
    /// 11b: by REQUEST SENSE only, and BUSY, TASK SET FULL and RESERVATION CONFLICT establish one.
    KeepAndEstablish = 0b11,
}

impl Interlock {
    /// The value with this code.
    pub const fn from_code(code: u8) -> Option<Interlock> {
        Some(match code {
            0b00 => Interlock::None,
            0b10 => Interlock::Keep,
            0b11 => Interlock::KeepAndEstablish,
            _ => return None,
        })
    }
}

/// How informational exceptions are reported (SBC-4 6.5.7). The only one there is comes from TEST.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InformationalExceptions {
    /// DEXCPT: none are reported.
    pub disabled: bool,
    /// TEST: there is one, a false failure prediction.
    pub test: bool,
    /// MRIE.
    pub method: ReportMethod,
}

/// MRIE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ReportMethod {
    /// 0h: only the log page tells of it.
    #[default]
    None = 0x0,
    /// 2h: a Unit Attention.
    UnitAttention = 0x2,
    /// 6h: REQUEST SENSE tells of it.
    OnRequest = 0x6,
}

impl ReportMethod {
    /// The value with this code.
    pub const fn from_code(code: u8) -> Option<ReportMethod> {
        Some(match code {
            0x0 => ReportMethod::None,
            0x2 => ReportMethod::UnitAttention,
            0x6 => ReportMethod::OnRequest,
            _ => return None,
        })
    }
}

impl InformationalExceptions {
    /// None are reported.
    pub const OFF: InformationalExceptions =
        InformationalExceptions { disabled: true, test: false, method: ReportMethod::None };

    /// What is to be reported now.
    pub const fn exception(&self) -> Option<AdditionalSense> {
        if self.test && !self.disabled { Some(asc::FAILURE_PREDICTION_FALSE) } else { None }
    }
}

/// Soft thresholds of thin provisioning (SBC-4 6.5.9), in threshold sets of `1 << `[`crate::limits::THRESHOLD_EXPONENT`]
/// logical blocks. `None`: not enabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Thresholds {
    /// SITUA: a Unit Attention for one I_T nexus instead of all.
    pub single_initiator: bool,
    /// Reached when no more than this is available.
    pub available: Option<u32>,
    /// Reached when at least this is used.
    pub used: Option<u32>,
}

impl ModeParameters {
    /// What a new unit has.
    pub const fn new(write_cache: bool) -> ModeParameters {
        ModeParameters {
            write_cache,
            software_write_protect: false,
            descriptor_sense: false,
            task_set_per_nexus: false,
            queue_error: QueueError::Continue,
            task_aborted_status: false,
            interlock: Interlock::None,
            exceptions: InformationalExceptions::OFF,
            provisioning: Thresholds { single_initiator: false, available: None, used: None },
        }
    }
}

/// What MODE SENSE reports of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeState {
    /// In force now.
    pub current: ModeParameters,
    /// In force after a reset.
    pub saved: ModeParameters,
    /// In force after creation.
    pub default: ModeParameters,
    /// The mapping or the volume is read-only. (SWP need not be repeated here.)
    pub read_only: bool,
    /// For the block descriptor.
    pub geometry: Geometry,
}

/// DEVICE-SPECIFIC PARAMETER of block devices: WP and DPOFUA.
const WP: u8 = 0x80;
const DPOFUA: u8 = 0x10;
/// LONGLBA in the header of the ten-byte form.
const LONGLBA: u8 = 0x01;

/// PAGE CODE 3Fh: all pages.
const ALL_PAGES: u8 = 0x3f;
/// SUBPAGE CODE FFh: all subpages.
const ALL_SUBPAGES: u8 = 0xff;

/// MODE SENSE (6) and (10).
///
/// # Errors
/// INVALID FIELD IN CDB, pointing at PAGE CODE or SUBPAGE CODE, for a page that does not exist.
pub fn sense(request: &ModeSense, state: &ModeState, out: &mut [u8]) -> Result<Reply, Sense> {
    let ids = PageId::ALL.iter().filter(|id| wanted(id, request));
    if ids.clone().next().is_none() {
        let page_exists = request.page == ALL_PAGES || PageId::ALL.iter().any(|id| id.page() == request.page);
        return Err(match page_exists {
            true => Sense::illegal_field_cdb(3, None),
            false => Sense::illegal_field_cdb(2, Some(5)),
        });
    }
    let mut w = ReplyWriter::new(out, u32::from(request.allocation_length));
    let protected = state.read_only || state.current.software_write_protect;
    let device_specific = DPOFUA | if protected { WP } else { 0 };
    let descriptor_len = match (request.block_descriptor, request.long_lba) {
        (false, _) => 0,
        (true, false) => 8,
        (true, true) => 16,
    };
    match request.form {
        ModeForm::Six => w.put(&[0, 0, device_specific, descriptor_len]),
        ModeForm::Ten => {
            let long = if descriptor_len == 16 { LONGLBA } else { 0 };
            w.put(&[0, 0, 0, device_specific, long, 0, 0, descriptor_len]);
        }
    }
    match descriptor_len {
        8 => w.put(&short_block_descriptor(&state.geometry)),
        16 => w.put(&long_block_descriptor(&state.geometry)),
        _ => {}
    }
    for id in ids {
        match request.control {
            PageControl::Current => w.put(id.bytes(&state.current).as_slice()),
            PageControl::Default => w.put(id.bytes(&state.default).as_slice()),
            PageControl::Saved => w.put(id.bytes(&state.saved).as_slice()),
            PageControl::Changeable => w.put(id.changeable().as_slice()),
        }
    }
    match request.form {
        ModeForm::Six => {
            let len = u8::try_from(w.len().saturating_sub(1)).unwrap_or(u8::MAX);
            w.patch(0, &[len]);
        }
        ModeForm::Ten => w.patch_len16(0, 2),
    }
    Ok(w.finish())
}

/// SPC-5 table 434: which pages a PAGE CODE and SUBPAGE CODE ask for.
fn wanted(id: &PageId, request: &ModeSense) -> bool {
    let page = request.page == ALL_PAGES || request.page == id.page();
    let subpage = match request.subpage {
        ALL_SUBPAGES => true,
        subpage if request.page == ALL_PAGES => subpage == 0 && id.subpage() == 0,
        subpage => subpage == id.subpage(),
    };
    page && subpage
}

/// General block descriptor: NUMBER OF LOGICAL BLOCKS is FFFFFFFFh if it does not fit.
fn short_block_descriptor(geometry: &Geometry) -> [u8; 8] {
    let [a, b, c, d] = u32::try_from(geometry.blocks()).unwrap_or(u32::MAX).to_be_bytes();
    let [_, x, y, z] = geometry.block_size().to_be_bytes();
    [a, b, c, d, 0, x, y, z]
}

fn long_block_descriptor(geometry: &Geometry) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h] = geometry.blocks().to_be_bytes();
    let [w, x, y, z] = geometry.block_size().to_be_bytes();
    [a, b, c, d, e, f, g, h, 0, 0, 0, 0, w, x, y, z]
}

#[cfg(test)]
mod tests;
