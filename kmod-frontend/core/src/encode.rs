//! Writes images: the data node's side of [`crate::image`]. User space only.

use alloc::vec::Vec;

use holdfast_scsi::{
    alua::AluaState, identity::LuProperties, mode::ModeParameters, nexus::RelativePort, pr::View,
};

use crate::image::{MAGIC, NO_HOLDER, VERSION, flag};

/// A target port group.
#[derive(Clone, Debug)]
pub struct Group {
    /// Number.
    pub id: u16,
    /// Access state for this unit.
    pub state: AluaState,
    /// PREF.
    pub preferred: bool,
    /// Its ports.
    pub ports: Vec<RelativePort>,
}

/// What an image says besides the reservation.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Names and shape.
    pub unit: LuProperties,
    /// Mode parameters in force.
    pub mode: ModeParameters,
    /// The mapping or the volume is read-only.
    pub read_only: bool,
    /// Log index of the reservation's last change.
    pub version: u64,
    /// Every path shows this version.
    pub barrier_passed: bool,
    /// Recovery generation and number.
    pub epoch: (u32, u64),
    /// Group of the node that the image is for; one of `groups`.
    pub group: u16,
    /// iSCSI name of the target device.
    pub target_name: &'a str,
    /// Target port groups, by number.
    pub groups: &'a [Group],
}

/// The bytes of an image. The kernel checks them again: lengths that do not fit their fields make one that it refuses.
pub fn image(facts: &Facts<'_>, view: &View<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    let set = |on: bool, bit: u16| if on { bit } else { 0 };
    let flags = set(facts.read_only, flag::READ_ONLY)
        | set(facts.mode.software_write_protect, flag::SOFTWARE_WRITE_PROTECT)
        | set(facts.mode.write_cache, flag::WRITE_CACHE)
        | set(facts.mode.descriptor_sense, flag::DESCRIPTOR_SENSE)
        | set(view.aptpl, flag::APTPL)
        | set(facts.barrier_passed, flag::BARRIER_PASSED);
    let own_state = facts.groups.iter().find(|group| group.id == facts.group).map(|group| group.state);
    let holder = view
        .reservation
        .and_then(|reservation| reservation.holder())
        .and_then(|holder| view.registrants.iter().position(|r| r.nexus == *holder));
    let length16 = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    let length32 = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
    let unit = &facts.unit;

    out.extend(MAGIC);
    out.extend(VERSION.to_be_bytes());
    out.extend(flags.to_be_bytes());
    out.extend(unit.identity.volume_uuid);
    out.extend(unit.identity.revision);
    out.extend(unit.geometry.block_size().to_be_bytes());
    out.extend(unit.geometry.blocks().to_be_bytes());
    out.push(unit.physical_block_exponent);
    out.push(own_state.unwrap_or(AluaState::Offline) as u8);
    out.push(view.reservation.map_or(0, |reservation| reservation.kind().code()));
    out.push(0);
    out.extend(view.generation.to_be_bytes());
    out.extend(facts.version.to_be_bytes());
    out.extend(facts.epoch.0.to_be_bytes());
    out.extend(holder.map_or(NO_HOLDER.to_be_bytes(), length32));
    out.extend(facts.epoch.1.to_be_bytes());
    out.extend(length32(view.registrants.len()));
    out.extend(length16(facts.groups.len()));
    out.extend(facts.group.to_be_bytes());
    out.extend(length16(facts.target_name.len()));
    out.extend([0; 6]);
    out.extend(facts.target_name.as_bytes());
    for group in facts.groups {
        out.extend(group.id.to_be_bytes());
        out.push(group.state as u8);
        out.push(u8::from(group.preferred));
        out.extend(length16(group.ports.len()));
        out.extend([0; 2]);
        for port in &group.ports {
            out.extend(port.0.to_be_bytes());
        }
    }
    for registrant in view.registrants {
        let name = registrant.nexus.initiator.as_bytes();
        out.extend(registrant.nexus.port.0.to_be_bytes());
        out.extend(length16(name.len()));
        out.push(u8::from(registrant.all_target_ports));
        out.extend([0; 3]);
        out.extend(registrant.key.to_be_bytes());
        out.extend(name);
    }
    out
}
