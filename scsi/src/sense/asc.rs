//! Additional sense codes by the names the standard gives them (SPC-5 annex F). Code that sends or looks for one uses
//! these, never the numbers.

/// ADDITIONAL SENSE CODE and its qualifier, written `2A/06`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AdditionalSense {
    /// ADDITIONAL SENSE CODE.
    pub asc: u8,
    /// ADDITIONAL SENSE CODE QUALIFIER.
    pub ascq: u8,
}

impl AdditionalSense {
    /// From the two bytes.
    pub const fn new(asc: u8, ascq: u8) -> AdditionalSense {
        AdditionalSense { asc, ascq }
    }
}

impl core::fmt::Display for AdditionalSense {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:02X}/{:02X}", self.asc, self.ascq)
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $asc:literal / $ascq:literal;)*) => {
        $($(#[$doc])* pub const $name: AdditionalSense = AdditionalSense::new($asc, $ascq);)*
        /// Every code above, for tests and for programs that print them.
        pub const ALL: &[(AdditionalSense, &str)] = &[$(($name, stringify!($name))),*];
    };
}

codes! {
    /// NO ADDITIONAL SENSE INFORMATION.
    NO_ADDITIONAL_SENSE = 0x00 / 0x00;
    /// LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE.
    NOT_READY_CAUSE_NOT_REPORTABLE = 0x04 / 0x00;
    /// LOGICAL UNIT IS IN PROCESS OF BECOMING READY.
    BECOMING_READY = 0x04 / 0x01;
    /// LOGICAL UNIT NOT READY, INITIALIZING COMMAND REQUIRED (after START STOP UNIT with START=0).
    INITIALIZING_COMMAND_REQUIRED = 0x04 / 0x02;
    /// LOGICAL UNIT NOT ACCESSIBLE, ASYMMETRIC ACCESS STATE TRANSITION.
    ALUA_TRANSITION = 0x04 / 0x0a;
    /// LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN STANDBY STATE.
    ALUA_STANDBY = 0x04 / 0x0b;
    /// LOGICAL UNIT NOT ACCESSIBLE, TARGET PORT IN UNAVAILABLE STATE.
    ALUA_UNAVAILABLE = 0x04 / 0x0c;
    /// LOGICAL UNIT COMMUNICATION FAILURE.
    COMMUNICATION_FAILURE = 0x08 / 0x00;
    /// WRITE ERROR.
    WRITE_ERROR = 0x0c / 0x00;
    /// INVALID FIELD IN COMMAND INFORMATION UNIT (a transport's own fields disagree with the CDB).
    INVALID_FIELD_IN_COMMAND_IU = 0x0e / 0x03;
    /// UNRECOVERED READ ERROR.
    UNRECOVERED_READ_ERROR = 0x11 / 0x00;
    /// PARAMETER LIST LENGTH ERROR.
    PARAMETER_LIST_LENGTH_ERROR = 0x1a / 0x00;
    /// MISCOMPARE DURING VERIFY OPERATION.
    MISCOMPARE_DURING_VERIFY = 0x1d / 0x00;
    /// INVALID COMMAND OPERATION CODE.
    INVALID_COMMAND_OPERATION_CODE = 0x20 / 0x00;
    /// LOGICAL BLOCK ADDRESS OUT OF RANGE.
    LBA_OUT_OF_RANGE = 0x21 / 0x00;
    /// INVALID FIELD IN CDB.
    INVALID_FIELD_IN_CDB = 0x24 / 0x00;
    /// LOGICAL UNIT NOT SUPPORTED.
    LOGICAL_UNIT_NOT_SUPPORTED = 0x25 / 0x00;
    /// INVALID FIELD IN PARAMETER LIST.
    INVALID_FIELD_IN_PARAMETER_LIST = 0x26 / 0x00;
    /// PARAMETER NOT SUPPORTED.
    PARAMETER_NOT_SUPPORTED = 0x26 / 0x01;
    /// PARAMETER VALUE INVALID.
    PARAMETER_VALUE_INVALID = 0x26 / 0x02;
    /// INVALID RELEASE OF PERSISTENT RESERVATION.
    INVALID_RELEASE_OF_PERSISTENT_RESERVATION = 0x26 / 0x04;
    /// WRITE PROTECTED.
    WRITE_PROTECTED = 0x27 / 0x00;
    /// LOGICAL UNIT SOFTWARE WRITE PROTECTED (the SWP bit).
    SOFTWARE_WRITE_PROTECTED = 0x27 / 0x02;
    /// SPACE ALLOCATION FAILED WRITE PROTECT.
    SPACE_ALLOCATION_FAILED = 0x27 / 0x07;
    /// POWER ON, RESET, OR BUS DEVICE RESET OCCURRED.
    POWER_ON_OR_RESET = 0x29 / 0x00;
    /// POWER ON OCCURRED.
    POWER_ON = 0x29 / 0x01;
    /// SCSI BUS RESET OCCURRED.
    BUS_RESET = 0x29 / 0x02;
    /// BUS DEVICE RESET FUNCTION OCCURRED (after LOGICAL UNIT RESET).
    BUS_DEVICE_RESET = 0x29 / 0x03;
    /// I_T NEXUS LOSS OCCURRED.
    I_T_NEXUS_LOSS = 0x29 / 0x07;
    /// MODE PARAMETERS CHANGED.
    MODE_PARAMETERS_CHANGED = 0x2a / 0x01;
    /// RESERVATIONS PREEMPTED.
    RESERVATIONS_PREEMPTED = 0x2a / 0x03;
    /// RESERVATIONS RELEASED.
    RESERVATIONS_RELEASED = 0x2a / 0x04;
    /// REGISTRATIONS PREEMPTED.
    REGISTRATIONS_PREEMPTED = 0x2a / 0x05;
    /// ASYMMETRIC ACCESS STATE CHANGED.
    ALUA_STATE_CHANGED = 0x2a / 0x06;
    /// CAPACITY DATA HAS CHANGED.
    CAPACITY_DATA_CHANGED = 0x2a / 0x09;
    /// COMMAND SEQUENCE ERROR.
    COMMAND_SEQUENCE_ERROR = 0x2c / 0x00;
    /// COMMANDS CLEARED BY ANOTHER INITIATOR.
    COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = 0x2f / 0x00;
    /// COMMANDS CLEARED BY POWER LOSS NOTIFICATION.
    COMMANDS_CLEARED_BY_POWER_LOSS = 0x2f / 0x01;
    /// THIN PROVISIONING SOFT THRESHOLD REACHED.
    THIN_PROVISIONING_THRESHOLD = 0x38 / 0x07;
    /// SAVING PARAMETERS NOT SUPPORTED.
    SAVING_PARAMETERS_NOT_SUPPORTED = 0x39 / 0x00;
    /// MICROCODE HAS BEEN CHANGED.
    MICROCODE_CHANGED = 0x3f / 0x01;
    /// INQUIRY DATA HAS CHANGED.
    INQUIRY_DATA_CHANGED = 0x3f / 0x03;
    /// REPORTED LUNS DATA HAS CHANGED.
    REPORTED_LUNS_DATA_CHANGED = 0x3f / 0x0e;
    /// INTERNAL TARGET FAILURE.
    INTERNAL_TARGET_FAILURE = 0x44 / 0x00;
    /// OVERLAPPED COMMANDS ATTEMPTED.
    OVERLAPPED_COMMANDS = 0x4e / 0x00;
    /// MEDIUM REMOVAL PREVENTED.
    MEDIUM_REMOVAL_PREVENTED = 0x53 / 0x02;
    /// INSUFFICIENT RESOURCES.
    INSUFFICIENT_RESOURCES = 0x55 / 0x03;
    /// INSUFFICIENT REGISTRATION RESOURCES.
    INSUFFICIENT_REGISTRATION_RESOURCES = 0x55 / 0x04;
}

/// The name of a code that this crate knows, as a program prints it.
pub fn name(additional: AdditionalSense) -> Option<&'static str> {
    ALL.iter().find(|(code, _)| *code == additional).map(|(_, name)| *name)
}
