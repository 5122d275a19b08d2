//! A logical unit as the data node knows it: the reservation rules are the core's own.

use anyhow::{Context, Result};
use holdfast_kernel_core::encode::{self, Facts, Group};
use holdfast_scsi::{
    alua::AluaState,
    geometry::Geometry,
    identity::{LuIdentity, LuProperties},
    mode::ModeParameters,
    nexus::{Nexus, RelativePort},
    pr::{
        out::PrOut,
        state::{Applied, Refusal, Reservations},
    },
    sense::Sense,
    transport_id::TransportId,
};

/// What became of a PERSISTENT RESERVE OUT.
#[derive(Debug)]
pub(crate) enum PrOutcome {
    /// Done; what follows from it.
    Done(Applied),
    /// RESERVATION CONFLICT.
    Conflict,
    /// CHECK CONDITION.
    Check(Sense),
}

/// A unit and its state.
#[derive(Debug)]
pub(crate) struct Unit {
    volume: [u8; 16],
    geometry: Geometry,
    write_cache: bool,
    read_only: bool,
    version: u64,
    epoch: (u32, u64),
    ports: Vec<RelativePort>,
    reservations: Reservations,
}

impl Unit {
    /// A unit without reservations.
    pub(crate) fn new(volume: [u8; 16], blocks: u64, block_size: u32, flags: &[&str]) -> Result<Unit> {
        let epoch = flags.iter().find_map(|flag| flag.strip_prefix("epoch=")).unwrap_or("1");
        Ok(Unit {
            volume,
            geometry: Geometry::new(block_size, blocks).context("no such geometry")?,
            write_cache: flags.contains(&"wce"),
            read_only: flags.contains(&"ro"),
            version: 1,
            epoch: (1, epoch.parse()?),
            ports: Vec::new(),
            reservations: Reservations::default(),
        })
    }

    /// The ports of this node, all in one group.
    pub(crate) fn set_ports(&mut self, ports: &[RelativePort]) {
        self.ports = ports.to_vec();
    }

    /// Version of the reservation.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The image for the kernel.
    pub(crate) fn image(&self, barrier_passed: bool) -> Vec<u8> {
        let groups = [
            Group { id: 1, state: AluaState::ActiveOptimized, preferred: true, ports: self.ports.clone() },
            Group {
                id: 2,
                state: AluaState::ActiveNonOptimized,
                preferred: false,
                ports: vec![RelativePort(99)],
            },
        ];
        let mut mode = ModeParameters::new(false);
        mode.write_cache = self.write_cache;
        let facts = Facts {
            unit: LuProperties {
                identity: LuIdentity { volume_uuid: self.volume, revision: *b"0001" },
                geometry: self.geometry,
                physical_block_exponent: 3,
            },
            mode,
            read_only: self.read_only,
            version: self.version,
            barrier_passed,
            epoch: self.epoch,
            group: 1,
            target_name: "iqn.2026-01.example.holdfast:target",
            groups: &groups,
        };
        encode::image(&facts, &self.reservations.view())
    }

    /// Applies a PERSISTENT RESERVE OUT.
    pub(crate) fn reserve_out(
        &mut self,
        cdb: &[u8],
        list: &[u8],
        name: &[u8],
        port: u16,
    ) -> Result<PrOutcome> {
        let (initiator, _) = TransportId::parse(name).ok().context("not a TransportID")?;
        let nexus = Nexus::new(initiator, RelativePort(port));
        let request = match PrOut::parse(cdb, list) {
            Ok(request) => request,
            Err(sense) => return Ok(PrOutcome::Check(sense)),
        };
        Ok(match self.reservations.apply(&nexus, &request, &self.ports) {
            Ok(applied) => {
                self.version += u64::from(applied.changed);
                PrOutcome::Done(applied)
            }
            Err(Refusal::Conflict) => PrOutcome::Conflict,
            Err(Refusal::Sense(sense)) => PrOutcome::Check(sense),
        })
    }
}
