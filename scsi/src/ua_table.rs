//! Every condition that raises a Unit Attention here: who is told, and what takes it back. `docs/unit-attentions.md` shows
//! this table, and a test compares the two and looks for the test that each row names.
//!
//! Invariant: what raises a Unit Attention has its row. Common to all: told once to every I_T nexus that it is for, and
//! only to those that existed when it happened; reported in the order of events, reset class first; it ends with its
//! nexus, whose next one begins with 29/00.

use crate::sense::{AdditionalSense, asc};

/// One condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What is reported.
    pub additional: AdditionalSense,
    /// What happened.
    pub when: &'static str,
    /// Which I_T nexuses are told.
    pub told: &'static str,
    /// What removes it besides the end of the nexus.
    pub cleared_by: &'static str,
    /// Where a test shows it: a file of the repository, then what stands there.
    pub shown_in: (&'static str, &'static str),
}

const REPORT: &str = "its report";

const fn row(
    additional: AdditionalSense,
    when: &'static str,
    told: &'static str,
    shown_in: (&'static str, &'static str),
) -> Condition {
    Condition { additional, when, told, cleared_by: REPORT, shown_in }
}

/// The conditions, by code.
pub const TABLE: &[Condition] = &[
    row(
        asc::MEDIUM_MAY_HAVE_CHANGED,
        "the volume was put back to what a snapshot has",
        "every nexus of the unit",
        ("controller/src/state/tests/restoring.rs", "UA 28/00"),
    ),
    row(
        asc::POWER_ON_OR_RESET,
        "a login, or a LUN that is newly mapped: the nexus is new to the unit",
        "that nexus, for each such unit",
        ("scsi/tests/scenarios/absent_luns.txt", "A: TUR lun=5 -> UA 29/00"),
    ),
    row(
        asc::POWER_ON_OR_RESET,
        "events may have been missed: the node fell behind the stream of the controllers",
        "every nexus of that node, for every unit",
        (
            "datanode/src/agent/tests/session.rs",
            "assert!(node.workers.installs.lock().last().unwrap().events_lost)",
        ),
    ),
    row(
        asc::POWER_ON_OR_RESET,
        "one more condition than the queue of a nexus and unit holds: it stands for all of them",
        "that nexus, for that unit",
        ("scsi/src/ua.rs", "Raised::Collapsed"),
    ),
    row(
        asc::POWER_ON,
        "all in-sync copies lost their page caches: acknowledged writes may be gone (write cache on)",
        "every nexus of the unit",
        ("controller/src/state/tests/rules.rs", "lost_page_cache_is_told_to_every_nexus"),
    ),
    row(
        asc::BUS_DEVICE_RESET,
        "LOGICAL UNIT RESET, TARGET WARM RESET",
        "every nexus of the unit, the sender's too",
        ("scsi/tests/scenarios/lun_reset.txt", "UA 29/03"),
    ),
    row(
        asc::I_T_NEXUS_LOSS,
        "I_T NEXUS RESET",
        "that nexus, for each of its units",
        ("scsi/tests/scenarios/i_t_nexus_reset.txt", "A: TUR -> UA 29/07"),
    ),
    row(
        asc::MODE_PARAMETERS_CHANGED,
        "MODE SELECT changed a value",
        "every nexus of the unit but the sender's",
        ("scsi/tests/scenarios/read_only_mapping.txt", "C: TUR -> UA 2A/01"),
    ),
    row(
        asc::MODE_PARAMETERS_CHANGED,
        "a mapping became read-only, or writable again",
        "every nexus of that host, for that unit",
        ("scsi/tests/scenarios/read_only_mapping.txt", "A: TUR -> UA 2A/01"),
    ),
    row(
        asc::LOG_PARAMETERS_CHANGED,
        "LOG SELECT put the statistics back to zero",
        "every nexus of the unit but the sender's",
        ("scsi/tests/scenarios/log_select.txt", "B: TUR -> UA 2A/02"),
    ),
    row(
        asc::RESERVATIONS_PREEMPTED,
        "PERSISTENT RESERVE OUT, CLEAR",
        "every registrant but the sender",
        ("scsi/tests/scenarios/pr_clear.txt", "UA 2A/03"),
    ),
    row(
        asc::RESERVATIONS_RELEASED,
        "RELEASE, or the holder of a registrants-only type unregistered",
        "every registrant but the sender, for the registrants-only and all-registrants types",
        ("scsi/tests/scenarios/pr_release_tells_registrants.txt", "B: TUR -> UA 2A/04"),
    ),
    row(
        asc::RESERVATIONS_RELEASED,
        "PREEMPT or PREEMPT AND ABORT changed the type of the reservation",
        "every registrant that stays, but the sender",
        ("scsi/tests/scenarios/pr_preempt_type_change.txt", "C: TUR -> UA 2A/04"),
    ),
    row(
        asc::RESERVATIONS_RELEASED,
        "the node of the holder of an SPC-2 reservation lost its lease: the reservation ended",
        "that nexus, if it is still there",
        (
            "controller/src/state/tests/lu_state.rs",
            "what_hangs_on_a_nexus_ends_with_its_node_and_the_holder_is_told",
        ),
    ),
    row(
        asc::REGISTRATIONS_PREEMPTED,
        "PREEMPT or PREEMPT AND ABORT removed the registration",
        "every nexus that lost it",
        ("scsi/tests/scenarios/pr_preempt.txt", "UA 2A/05"),
    ),
    row(
        asc::ALUA_STATE_CHANGED,
        "another node became the owner: its port group is the optimized one now",
        "every nexus of the unit",
        ("scsi/tests/scenarios/cluster_events.txt", "B: TUR -> UA 2A/06"),
    ),
    row(
        asc::ALUA_STATE_CHANGED,
        "SET TARGET PORT GROUPS made another node the owner",
        "every nexus of the unit but the sender's",
        (
            "controller/src/state/tests/transition.rs",
            "the_owner_is_asked_to_hand_over_and_all_others_are_told_when_it_has",
        ),
    ),
    row(
        asc::IMPLICIT_ALUA_TRANSITION_FAILED,
        "a move to another node that an administrator or the cluster asked for was given up",
        "every nexus of the unit",
        (
            "controller/src/state/tests/transition.rs",
            "a_transition_that_is_given_up_is_told_to_everyone_unless_a_host_waits_for_it",
        ),
    ),
    row(
        asc::CAPACITY_DATA_CHANGED,
        "the volume grew",
        "every nexus of the unit",
        ("controller/src/state/tests/rules.rs", "volume_grows_and_tells_everyone"),
    ),
    row(
        asc::TIMESTAMP_CHANGED,
        "SET TIMESTAMP",
        "every nexus of the unit but the sender's",
        ("scsi/tests/scenarios/information.txt", "B: TUR -> UA 2A/10"),
    ),
    Condition {
        cleared_by: "REQUEST SENSE",
        ..row(
            asc::PREVIOUS_BUSY_STATUS,
            "a command ended with BUSY while UA_INTLCK_CTRL is 11b",
            "its nexus",
            ("scsi/src/device_server/mod.rs", "Some(asc::PREVIOUS_BUSY_STATUS)"),
        )
    },
    Condition {
        cleared_by: "REQUEST SENSE",
        ..row(
            asc::PREVIOUS_TASK_SET_FULL_STATUS,
            "a command ended with TASK SET FULL while UA_INTLCK_CTRL is 11b",
            "its nexus",
            ("scsi/src/device_server/mod.rs", "Some(asc::PREVIOUS_TASK_SET_FULL_STATUS)"),
        )
    },
    Condition {
        cleared_by: "REQUEST SENSE",
        ..row(
            asc::PREVIOUS_RESERVATION_CONFLICT_STATUS,
            "a command ended with RESERVATION CONFLICT while UA_INTLCK_CTRL is 11b",
            "its nexus",
            ("scsi/tests/scenarios/unit_attention_interlock.txt", "B: TUR -> UA 2C/0B"),
        )
    },
    row(
        asc::COMMANDS_CLEARED_BY_ANOTHER_INITIATOR,
        "CLEAR TASK SET, with TAS=0",
        "every nexus but the sender's that had a task",
        ("scsi/tests/scenarios/clear_task_set.txt", "UA 2F/00"),
    ),
    row(
        asc::COMMANDS_CLEARED_BY_ANOTHER_INITIATOR,
        "a CHECK CONDITION of another nexus aborted tasks, with QERR=01b and TAS=0",
        "every other nexus that had one",
        ("scsi/tests/scenarios/queue_error_management.txt", "B: TUR -> UA 2F/00"),
    ),
    row(
        asc::THIN_PROVISIONING_THRESHOLD,
        "a soft threshold of the Logical Block Provisioning mode page was reached",
        "every nexus of the unit; one of them with SITUA=1",
        ("scsi/tests/scenarios/provisioning_threshold.txt", "A: TUR -> UA 38/07"),
    ),
    row(
        asc::INQUIRY_DATA_CHANGED,
        "the cluster gained or lost a target port (VPD page 88h): a data node was added or removed, or has other portals",
        "every nexus, for every unit",
        ("controller/src/state/tests/rules.rs", "every_host_hears_that_there_are_other_target_ports"),
    ),
    row(
        asc::DEVICE_IDENTIFIER_CHANGED,
        "SET IDENTIFYING INFORMATION changed it",
        "every nexus of the unit but the sender's",
        ("scsi/tests/scenarios/information.txt", "B: TUR -> UA 3F/05"),
    ),
    Condition {
        cleared_by: "its report, or REPORT LUNS through any LUN of the nexus: on all of them",
        ..row(
            asc::REPORTED_LUNS_DATA_CHANGED,
            "the map of the host gained or lost a LUN",
            "every nexus of that host, for every unit",
            ("scsi/tests/scenarios/report_luns_clears.txt", "REPORT-LUNS"),
        )
    },
    row(
        asc::FAILURE_PREDICTION_FALSE,
        "MODE SELECT set TEST, with DEXCPT=0 and MRIE=2h",
        "every nexus of the unit, the sender's too",
        ("scsi/tests/scenarios/informational_exceptions.txt", "A: TUR -> UA 5D/FF"),
    ),
];
