//! Status codes (SAM-5 5.3.1).

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// Completed without error.
    Good = 0x00,
    /// Sense data tells why.
    CheckCondition = 0x02,
    /// PRE-FETCH: the whole range fits into the cache.
    ConditionMet = 0x04,
    /// Try again later; nothing was done.
    Busy = 0x08,
    /// Refused by a reservation (SPC-2 or persistent).
    ReservationConflict = 0x18,
    /// No room for another task of this I_T nexus.
    TaskSetFull = 0x28,
    /// An ACA condition exists, and the command does not have the ACA attribute.
    AcaActive = 0x30,
    /// Aborted by another I_T nexus, with TAS=1.
    TaskAborted = 0x40,
}

impl Status {
    /// The code on the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The status with this code, if there is one.
    pub const fn from_code(code: u8) -> Option<Status> {
        Some(match code {
            0x00 => Status::Good,
            0x02 => Status::CheckCondition,
            0x04 => Status::ConditionMet,
            0x08 => Status::Busy,
            0x18 => Status::ReservationConflict,
            0x28 => Status::TaskSetFull,
            0x30 => Status::AcaActive,
            0x40 => Status::TaskAborted,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn every_code_reads_back_as_its_status() {
        let known: std::vec::Vec<Status> = (0..=u8::MAX).filter_map(Status::from_code).collect();
        assert_eq!(known.len(), 8);
        assert!(known.iter().all(|s| Status::from_code(s.code()) == Some(*s)));
    }
}
