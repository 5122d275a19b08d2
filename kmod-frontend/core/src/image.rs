//! The image of a logical unit: everything that the module needs to judge and to answer, as of one version.
//!
//! ```text
//! byte
//!    0  "HFLU"                       4
//!    4  version 1                    2
//!    6  flags                        2    1 read-only mapping or volume, 2 SWP, 4 WCE, 8 D_SENSE, 16 APTPL,
//!                                      32 the reservation's version has passed its barrier
//!    8  volume id                   16
//!   24  product revision             4    ASCII
//!   28  block size                   4    512 or 4096
//!   32  blocks                       8
//!   40  physical block exponent      1    0..=15
//!   41  asymmetric access state      1    of this node's group
//!   42  reservation type             1    0: none
//!   43  zero                         1
//!   44  PRGENERATION                 4
//!   48  version of the reservation   8    log index of its last change
//!   56  recovery generation          4    of the epoch
//!   60  holder                       4    index of the registrant; ffffffffh: none, or all registrants
//!   64  epoch number                 8
//!   72  registrants                  4
//!   76  target port groups           2
//!   78  group of this node           2
//!   80  target name, length          2    1..=223
//!   82  zeroes                       6
//!   88  target name
//!       groups:      id 2, access state 1, preferred 1, ports 2, zeroes 2, then 2 for each port
//!       registrants: relative port 2, TransportID's length 2, flags 1 (1: ALL_TG_PT), zeroes 3, key 8, TransportID
//! ```
//!
//! All numbers are big endian. Invariants: an [`Image`] holds valid values only; it is built once, read by many, and never
//! changed: a newer one takes its place.

use core::mem::MaybeUninit;

use holdfast_scsi::{
    alua::AluaState,
    geometry::Geometry,
    identity::{LuIdentity, LuProperties, PortContext},
    mode::ModeParameters,
    nexus::{Nexus, RelativePort},
    pr::{Registrant, Reservation, ReservationType, View},
    transport_id::TransportId,
};

use crate::{
    limits::{GROUP_PORTS_MAX, GROUPS_MAX, REGISTRANTS_MAX, TARGET_NAME_LEN_MAX},
    reader::Reader,
};

/// First bytes of an image.
pub const MAGIC: [u8; 4] = *b"HFLU";
/// Version of the layout.
pub const VERSION: u16 = 1;
/// HOLDER: there is no single one.
pub const NO_HOLDER: u32 = u32::MAX;

pub(crate) mod flag {
    pub(crate) const READ_ONLY: u16 = 1;
    pub(crate) const SOFTWARE_WRITE_PROTECT: u16 = 2;
    pub(crate) const WRITE_CACHE: u16 = 4;
    pub(crate) const DESCRIPTOR_SENSE: u16 = 8;
    pub(crate) const APTPL: u16 = 16;
    pub(crate) const BARRIER_PASSED: u16 = 32;
    pub(crate) const ALL: u16 = 63;
}

/// Why an image was refused. The data node is at fault in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Not an image, or of another version.
    Unknown,
    /// It ends early, or bytes are left over.
    Length,
    /// A value that no logical unit has.
    Value,
    /// More registrants, groups or ports than there may be.
    TooMany,
}

/// A target port group of the cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) id: u16,
    pub(crate) state: AluaState,
    pub(crate) preferred: bool,
    ports: [RelativePort; GROUP_PORTS_MAX],
    port_count: usize,
}

impl Group {
    pub(crate) fn ports(&self) -> &[RelativePort] {
        self.ports.get(..self.port_count).unwrap_or(&[])
    }
}

/// The part of fixed size.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    pub(crate) unit: LuProperties,
    pub(crate) access_state: AluaState,
    pub(crate) read_only: bool,
    pub(crate) mode: ModeParameters,
    reservation: Option<Reservation>,
    generation: u32,
    aptpl: bool,
    version: u64,
    pub(crate) barrier_passed: bool,
    epoch: (u32, u64),
    group: u16,
    target_name: [u8; TARGET_NAME_LEN_MAX],
    target_name_len: usize,
    groups: [Group; GROUPS_MAX],
    group_count: usize,
    registrants: u32,
}

/// A logical unit as of one version.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    pub(crate) head: &'a Head,
    registrants: &'a [Registrant],
}

impl<'a> Image<'a> {
    /// Puts both parts together again. `None` unless they belong together by their number.
    pub fn new(head: &'a Head, registrants: &'a [Registrant]) -> Option<Image<'a>> {
        (u32::try_from(registrants.len()) == Ok(head.registrants)).then_some(Image { head, registrants })
    }

    /// Log index of the last change of the reservation.
    pub fn version(&self) -> u64 {
        self.head.version
    }

    /// Recovery generation and number.
    pub fn epoch(&self) -> (u32, u64) {
        self.head.epoch
    }

    /// Capacity and block size.
    pub fn geometry(&self) -> Geometry {
        self.head.unit.geometry
    }

    /// The persistent reservation.
    pub fn view(&self) -> View<'a> {
        View {
            generation: self.head.generation,
            aptpl: self.head.aptpl,
            registrants: self.registrants,
            reservation: self.head.reservation.as_ref(),
        }
    }

    pub(crate) fn groups(&self) -> &'a [Group] {
        self.head.groups.get(..self.head.group_count).unwrap_or(&[])
    }

    /// The target port through which a nexus came; `None` for one that is in no group (yet).
    pub(crate) fn port(&self, relative_port: RelativePort) -> Option<PortContext<'a>> {
        let group = self.groups().iter().find(|group| group.ports().contains(&relative_port))?;
        let name = self.head.target_name.get(..self.head.target_name_len)?;
        Some(PortContext {
            relative_port,
            target_port_group: group.id,
            target_name: core::str::from_utf8(name).ok()?,
        })
    }
}

/// How many registrants an image claims to have, for the caller to make room.
///
/// # Errors
/// [`ImageError::Unknown`], [`ImageError::Length`], [`ImageError::TooMany`].
pub fn registrants(bytes: &[u8]) -> Result<u32, ImageError> {
    let mut reader = Reader(bytes);
    if reader.array() != Some(MAGIC) || reader.u16() != Some(VERSION) {
        return Err(ImageError::Unknown);
    }
    let count = reader.bytes(66).and_then(|_| reader.u32()).ok_or(ImageError::Length)?;
    if count > REGISTRANTS_MAX { Err(ImageError::TooMany) } else { Ok(count) }
}

/// Checks an image and lays it out in `head` and `registrants`, which must be as many as [`registrants`] says. On success
/// both are initialised.
///
/// # Errors
/// See [`ImageError`]; nothing may be read from `head` and `registrants` then.
pub fn build(
    bytes: &[u8],
    head: &mut MaybeUninit<Head>,
    registrants: &mut [MaybeUninit<Registrant>],
) -> Result<(), ImageError> {
    let count = self::registrants(bytes)?;
    if u32::try_from(registrants.len()) != Ok(count) {
        return Err(ImageError::Length);
    }
    let mut reader = Reader(bytes);
    let fixed = Fixed::read(&mut reader).ok_or(ImageError::Length)?;
    let head = head.write(fixed.head(count)?);
    let name = reader.bytes(usize::from(fixed.name_len)).ok_or(ImageError::Length)?;
    if !name.iter().all(u8::is_ascii_graphic) {
        return Err(ImageError::Value);
    }
    for (to, from) in head.target_name.iter_mut().zip(name) {
        *to = *from;
    }
    for slot in head.groups.iter_mut().take(head.group_count) {
        *slot = group(&mut reader)?;
    }
    // The holder is one of the registrants, and names itself by its place.
    let mut holder = None;
    for (index, slot) in registrants.iter_mut().enumerate() {
        let registrant = slot.write(registrant(&mut reader)?);
        if u32::try_from(index) == Ok(fixed.holder) {
            holder = Some(registrant.nexus);
        }
    }
    if !reader.0.is_empty() {
        return Err(ImageError::Length);
    }
    head.reservation = fixed.reservation(holder)?;
    if head.groups.iter().take(head.group_count).all(|group| group.id != head.group) {
        return Err(ImageError::Value);
    }
    Ok(())
}

struct Fixed {
    flags: u16,
    uuid: [u8; 16],
    revision: [u8; 4],
    block_size: u32,
    blocks: u64,
    exponent: u8,
    access_state: u8,
    kind: u8,
    generation: u32,
    version: u64,
    epoch: (u32, u64),
    holder: u32,
    groups: u16,
    group: u16,
    name_len: u16,
}

impl Fixed {
    fn read(r: &mut Reader<'_>) -> Option<Fixed> {
        r.bytes(6)?;
        let (flags, uuid, revision) = (r.u16()?, r.array()?, r.array()?);
        let (block_size, blocks) = (r.u32()?, r.u64()?);
        let (exponent, access_state, kind) = (r.u8()?, r.u8()?, r.u8()?);
        r.zeroes(1)?;
        let (generation, version, recovery, holder) = (r.u32()?, r.u64()?, r.u32()?, r.u32()?);
        let epoch = (recovery, r.u64()?);
        r.u32()?;
        let (groups, group, name_len) = (r.u16()?, r.u16()?, r.u16()?);
        r.zeroes(6)?;
        Some(Fixed {
            flags,
            uuid,
            revision,
            block_size,
            blocks,
            exponent,
            access_state,
            kind,
            generation,
            version,
            epoch,
            holder,
            groups,
            group,
            name_len,
        })
    }

    fn head(&self, registrants: u32) -> Result<Head, ImageError> {
        let has = |flag| self.flags & flag != 0;
        let geometry = Geometry::new(self.block_size, self.blocks).ok_or(ImageError::Value)?;
        let state = access_state(self.access_state)?;
        let name_len = usize::from(self.name_len);
        if self.flags & !flag::ALL != 0 || self.exponent > 15 || self.epoch == (0, 0) {
            return Err(ImageError::Value);
        }
        if !self.revision.iter().all(|c| c.is_ascii_graphic() || *c == b' ') {
            return Err(ImageError::Value);
        }
        if name_len == 0 || name_len > TARGET_NAME_LEN_MAX {
            return Err(ImageError::Value);
        }
        if usize::from(self.groups) > GROUPS_MAX {
            return Err(ImageError::TooMany);
        }
        let mut mode = ModeParameters::new(false);
        mode.write_cache = has(flag::WRITE_CACHE);
        mode.software_write_protect = has(flag::SOFTWARE_WRITE_PROTECT);
        mode.descriptor_sense = has(flag::DESCRIPTOR_SENSE);
        Ok(Head {
            unit: LuProperties {
                identity: LuIdentity { volume_uuid: self.uuid, revision: self.revision },
                geometry,
                physical_block_exponent: self.exponent,
            },
            access_state: state,
            read_only: has(flag::READ_ONLY),
            mode,
            reservation: None,
            generation: self.generation,
            aptpl: has(flag::APTPL),
            version: self.version,
            barrier_passed: has(flag::BARRIER_PASSED),
            epoch: self.epoch,
            group: self.group,
            target_name: [0; TARGET_NAME_LEN_MAX],
            target_name_len: name_len,
            groups: [NO_GROUP; GROUPS_MAX],
            group_count: usize::from(self.groups),
            registrants,
        })
    }

    fn reservation(&self, holder: Option<Nexus>) -> Result<Option<Reservation>, ImageError> {
        if self.kind == 0 {
            return if self.holder == NO_HOLDER { Ok(None) } else { Err(ImageError::Value) };
        }
        if self.holder != NO_HOLDER && holder.is_none() {
            return Err(ImageError::Value);
        }
        let kind = ReservationType::from_code(self.kind).ok_or(ImageError::Value)?;
        Reservation::from_parts(kind, holder).map(Some).ok_or(ImageError::Value)
    }
}

const NO_GROUP: Group = Group {
    id: 0,
    state: AluaState::Offline,
    preferred: false,
    ports: [RelativePort(0); GROUP_PORTS_MAX],
    port_count: 0,
};

fn access_state(code: u8) -> Result<AluaState, ImageError> {
    Ok(match code {
        0x0 => AluaState::ActiveOptimized,
        0x1 => AluaState::ActiveNonOptimized,
        0x2 => AluaState::Standby,
        0x3 => AluaState::Unavailable,
        0xe => AluaState::Offline,
        0xf => AluaState::Transitioning,
        _ => return Err(ImageError::Value),
    })
}

fn group(r: &mut Reader<'_>) -> Result<Group, ImageError> {
    let fields = |r: &mut Reader<'_>| Some((r.u16()?, r.u8()?, r.u8()?, r.u16()?, r.zeroes(2)?));
    let (id, state, preferred, ports, ()) = fields(r).ok_or(ImageError::Length)?;
    let mut group = Group { id, state: access_state(state)?, preferred: preferred == 1, ..NO_GROUP };
    if preferred > 1 {
        return Err(ImageError::Value);
    }
    if usize::from(ports) > GROUP_PORTS_MAX {
        return Err(ImageError::TooMany);
    }
    group.port_count = usize::from(ports);
    for slot in group.ports.iter_mut().take(usize::from(ports)) {
        *slot = RelativePort(r.u16().filter(|port| *port != 0).ok_or(ImageError::Value)?);
    }
    Ok(group)
}

fn registrant(r: &mut Reader<'_>) -> Result<Registrant, ImageError> {
    let fields = |r: &mut Reader<'_>| Some((r.u16()?, r.u16()?, r.u8()?, r.zeroes(3)?, r.u64()?));
    let (port, len, flags, (), key) = fields(r).ok_or(ImageError::Length)?;
    let bytes = r.bytes(usize::from(len)).ok_or(ImageError::Length)?;
    let (initiator, taken) = TransportId::parse(bytes).map_err(|_| ImageError::Value)?;
    if taken != bytes.len() || flags > 1 || key == 0 || port == 0 {
        return Err(ImageError::Value);
    }
    Ok(Registrant { nexus: Nexus::new(initiator, RelativePort(port)), key, all_target_ports: flags == 1 })
}

#[cfg(test)]
pub(crate) mod tests;
