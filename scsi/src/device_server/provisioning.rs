//! Soft thresholds of thin provisioning (SBC-4 4.7.3.8): 38/07 when the store's resources run short.
//!
//! Invariant: a threshold is told once each time that it is reached, and again if it could not be told.

use super::{DeviceServer, UaScope, UaWaiter};
use crate::{limits, sense::asc, time::Instant};

/// What the store that holds the unit has left, and what the unit uses of it, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreResources {
    /// May still be used.
    pub available_bytes: u64,
    /// The unit uses.
    pub used_bytes: u64,
}

/// Which thresholds are reached: available, used.
pub(super) type Reached = (bool, bool);

impl DeviceServer {
    /// What the store has left now.
    pub fn install_resources(&mut self, now: Instant, resources: StoreResources) {
        self.now = now;
        self.resources = Some(resources);
        self.look_at_thresholds();
        self.run();
    }

    /// In threshold sets, for the log page: available, used. `None` until the shell has said it.
    pub(super) fn resource_counts(&self) -> Option<(u32, u32)> {
        let resources = self.resources?;
        let set = u64::from(self.config.properties.geometry.block_size()) << limits::THRESHOLD_EXPONENT;
        let count = |bytes: u64, round_up: u64| {
            let sets = bytes.saturating_add(round_up).checked_div(set).unwrap_or(0);
            u32::try_from(sets).unwrap_or(u32::MAX)
        };
        Some((count(resources.available_bytes, 0), count(resources.used_bytes, set.saturating_sub(1))))
    }

    pub(super) fn look_at_thresholds(&mut self) {
        let Some((available, used)) = self.resource_counts() else { return };
        let wanted = self.mode.provisioning;
        let reached = (
            wanted.available.is_some_and(|threshold| available <= threshold),
            wanted.used.is_some_and(|threshold| used >= threshold),
        );
        let before = core::mem::replace(&mut self.thresholds_reached, reached);
        if (reached.0 && !before.0) || (reached.1 && !before.1) {
            // SITUA: one nexus that uses the unit will do.
            let one =
                self.tasks.values().next().map(|task| task.nexus).or(self.reported.keys().next().copied());
            let scope = match one {
                Some(nexus) if wanted.single_initiator => UaScope::Only(nexus),
                _ => UaScope::All,
            };
            self.establish(UaWaiter::Threshold, asc::THIN_PROVISIONING_THRESHOLD, scope);
        }
    }
}
