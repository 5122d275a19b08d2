//! Rules that a test may break on purpose, to show that the simulation notices. Without the feature `planted-faults`
//! none can be: [`Faults::has`] is then always false and costs nothing.

/// One rule broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fault {
    /// A replica applies writes without recording their extents.
    SkipActivityLog,
    /// The owner acknowledges when its own replica has the write.
    AcknowledgeEarly,
    /// The owner goes on without a silent member before that is committed.
    EvictWithoutCommit,
    /// A replica does not note what an absent one misses.
    ForgetDirtyChunk,
    /// A replica takes frames of epochs below its promise.
    AcceptOldEpoch,
    /// A read does not wait for the writes in flight.
    ReadWithoutWaiting,
    /// A re-synchronisation copies without locking the range.
    CopyWithoutLock,
    /// A cached write is not recorded as unflushed.
    ForgetUnflushed,
    /// The owner answers a flush when its own replica is flushed.
    FlushOwnReplicaOnly,
    /// A new owner does not copy the extents that were active.
    SkipRecovery,
    /// The owner answers after its lease has ended.
    IgnoreLease,
    /// What a rejoining replica had in its own log is not overwritten.
    TrustRejoining,
}

/// The rules that are broken.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    #[cfg(feature = "planted-faults")]
    planted: u32,
}

impl Faults {
    /// Every rule holds.
    pub const NONE: Faults = Faults {
        #[cfg(feature = "planted-faults")]
        planted: 0,
    };

    /// Breaks one rule.
    #[cfg(feature = "planted-faults")]
    pub const fn plant(fault: Fault) -> Faults {
        Faults { planted: 1 << fault as u32 }
    }

    /// True if the rule is broken.
    #[cfg(feature = "planted-faults")]
    pub const fn has(self, fault: Fault) -> bool {
        self.planted & (1 << fault as u32) != 0
    }

    /// True if the rule is broken.
    #[cfg(not(feature = "planted-faults"))]
    pub const fn has(self, _: Fault) -> bool {
        false
    }
}
