//! REPORT SUPPORTED OPERATION CODES and REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-5 6.36 and 6.37).

use crate::cdb::ReportingOptions;
use crate::opcode::{self, Row};
use crate::reply::{Reply, ReplyWriter};
use crate::sense::Sense;

/// SUPPORT: supported as the standard says.
const SUPPORTED: u8 = 0b011;
/// SUPPORT: not supported.
const NOT_SUPPORTED: u8 = 0b001;
/// CTDP in the one-command format.
const CTDP_ONE: u8 = 0x80;
/// CTDP and SERVACTV in the all-commands format.
const CTDP_ALL: u8 = 0x02;
const SERVACTV: u8 = 0x01;

/// Which task management functions a transport brings, as the first two bytes of the parameter data say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskManagementFunctions {
    /// ATS, ATSS, CACAS, CTSS, LURS: ABORT TASK, ABORT TASK SET, CLEAR ACA, CLEAR TASK SET, LOGICAL UNIT RESET.
    Basic,
    /// Those, and QTS, QAES, QTSS, ITNRS: QUERY TASK, QUERY ASYNCHRONOUS EVENT, QUERY TASK SET, I_T NEXUS RESET.
    All,
}

impl TaskManagementFunctions {
    const fn bits(self) -> [u8; 2] {
        match self {
            TaskManagementFunctions::Basic => [0xf8, 0],
            TaskManagementFunctions::All => [0xfc, 0x07],
        }
    }
}

const SERVICE_ACTION_32_LOW_AT: usize = opcode::SERVICE_ACTION_32_AT + 1;

/// REPORT SUPPORTED OPERATION CODES.
///
/// # Errors
/// INVALID FIELD IN CDB if REPORTING OPTIONS does not fit the operation code: 001b for one with service actions, 010b
/// for one without.
pub fn supported_operation_codes(
    options: ReportingOptions,
    timeouts: bool,
    allocation_length: u32,
    out: &mut [u8],
) -> Result<Reply, Sense> {
    const WRONG_OPTION: Sense = Sense::illegal_field_cdb(2, Some(2));
    let mut w = ReplyWriter::new(out, allocation_length);
    let (opcode, action) = match options {
        ReportingOptions::All => {
            all(&mut w, timeouts);
            return Ok(w.finish());
        }
        ReportingOptions::Opcode(opcode) => (opcode, 0),
        ReportingOptions::ServiceAction(opcode, action) | ReportingOptions::Either(opcode, action) => {
            (opcode, action)
        }
    };
    let rows = opcode::rows(opcode);
    let has_actions = rows.first().map(|row| row.service_action.is_some());
    match (options, has_actions) {
        (ReportingOptions::Opcode(_), Some(true)) => return Err(WRONG_OPTION),
        (ReportingOptions::ServiceAction(..), Some(false)) => return Err(WRONG_OPTION),
        _ => {}
    }
    one(&mut w, rows.iter().find(|row| row.service_action.unwrap_or(0) == action), timeouts);
    Ok(w.finish())
}

fn all(w: &mut ReplyWriter<'_>, timeouts: bool) {
    w.put_zeroes(4);
    for row in opcode::TABLE {
        w.put(&[row.opcode, 0]);
        w.put_u16(row.service_action.unwrap_or(0));
        let servactv = if row.service_action.is_some() { SERVACTV } else { 0 };
        w.put(&[0, servactv | if timeouts { CTDP_ALL } else { 0 }]);
        w.put_u16(cdb_len(row));
        if timeouts {
            timeouts_descriptor(w, row);
        }
    }
    w.patch_len32(0, 4);
}

fn one(w: &mut ReplyWriter<'_>, row: Option<&Row>, timeouts: bool) {
    let Some(row) = row else {
        w.put(&[0, NOT_SUPPORTED, 0, 0]);
        return;
    };
    let variable = row.opcode == opcode::VARIABLE_LENGTH;
    w.put(&[0, SUPPORTED | if timeouts { CTDP_ONE } else { 0 }]);
    w.put_u16(cdb_len(row));
    for (at, usage) in row.usage.iter().enumerate() {
        let usage = &(usage | if at == row.control_at() { opcode::NACA } else { 0 });
        w.put_u8(match (at, row.service_action) {
            // The service action's field holds its value, not a mask.
            (opcode::SERVICE_ACTION_32_AT, Some(action)) if variable => action.to_be_bytes()[0],
            (SERVICE_ACTION_32_LOW_AT, Some(action)) if variable => action.to_be_bytes()[1],
            (1, Some(action)) if !variable => (usage & 0xe0) | (action.to_be_bytes()[1] & 0x1f),
            _ => *usage,
        });
    }
    if timeouts {
        timeouts_descriptor(w, row);
    }
}

fn cdb_len(row: &Row) -> u16 {
    u16::try_from(row.usage.len()).unwrap_or(u16::MAX)
}

/// Command timeouts descriptor. NOMINAL COMMAND PROCESSING TIMEOUT 0: no indication.
fn timeouts_descriptor(w: &mut ReplyWriter<'_>, row: &Row) {
    w.put_u16(0x0a);
    w.put_zeroes(2);
    w.put_u32(0);
    w.put_u32(row.timeout_s);
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: 4 bytes, or 16 in the extended form (without timeouts).
pub fn supported_task_management_functions(
    functions: TaskManagementFunctions,
    extended: bool,
    allocation_length: u32,
    out: &mut [u8],
) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    let [first, second] = functions.bits();
    w.put(&[first, second, 0, if extended { 0x0c } else { 0 }]);
    if extended {
        w.put_zeroes(12);
    }
    w.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cdb;
    use crate::geometry::Geometry;
    use crate::reply::full_reply;
    use crate::sense::asc;
    use std::vec::Vec;

    fn report(options: ReportingOptions, timeouts: bool) -> Vec<u8> {
        full_reply(|len, out| supported_operation_codes(options, timeouts, len, out).unwrap())
    }

    #[test]
    fn all_commands_lists_the_table() {
        let data = report(ReportingOptions::All, false);
        assert_eq!(data.len(), 4 + 8 * opcode::TABLE.len());
        assert_eq!(data[..4], ((data.len() - 4) as u32).to_be_bytes());
        for (descriptor, row) in data[4..].chunks(8).zip(opcode::TABLE) {
            let action = row.service_action.unwrap_or(0).to_be_bytes();
            let flags = u8::from(row.service_action.is_some());
            assert_eq!(descriptor, [row.opcode, 0, action[0], action[1], 0, flags, 0, row.usage.len() as u8]);
        }
    }

    #[test]
    fn timeouts_descriptors_come_when_asked_for() {
        let data = report(ReportingOptions::All, true);
        assert_eq!(data.len(), 4 + 20 * opcode::TABLE.len());
        for descriptor in data[4..].chunks(20) {
            assert_eq!(descriptor[5] & 0x02, 0x02);
            assert_eq!(descriptor[8..10], [0, 0x0a]);
        }
        let one = report(ReportingOptions::Opcode(0x28), true);
        assert_eq!(one.len(), 4 + 10 + 12);
        assert_eq!((one[1], &one[14..16]), (0x83, &[0, 0x0a][..]));
    }

    #[test]
    fn one_command_gives_its_usage_data() {
        let read10 = report(ReportingOptions::Opcode(0x28), false);
        assert_eq!(read10, [0, 3, 0, 10, 0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 4]);
        let rtpg = report(ReportingOptions::ServiceAction(0xa3, 0x0a), false);
        assert_eq!(rtpg[..6], [0, 3, 0, 12, 0xa3, 0xea]);
        let read32 = report(ReportingOptions::ServiceAction(0x7f, 9), false);
        assert_eq!(read32[..16], [0, 3, 0, 32, 0x7f, 4, 0, 0, 0, 0, 0, 0xff, 0, 9, 0x18, 0]);
        assert_eq!(read32[16..24], [0xff; 8]);
        assert_eq!(read32[24..], [0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(report(ReportingOptions::Either(0xa3, 0x0a), false), rtpg);
        assert_eq!(report(ReportingOptions::Either(0x28, 0), false), read10);
    }

    #[test]
    fn unsupported_commands_are_reported_as_such() {
        for options in [
            ReportingOptions::Opcode(0xff),
            ReportingOptions::ServiceAction(0xff, 1),
            ReportingOptions::ServiceAction(0xa3, 0x1f),
            ReportingOptions::ServiceAction(0xa3, 0x100),
            ReportingOptions::Either(0x28, 1),
            ReportingOptions::Either(0xa3, 0),
        ] {
            assert_eq!(report(options, true), [0, 1, 0, 0], "{options:?}");
        }
    }

    #[test]
    fn option_that_does_not_fit_the_command_is_an_invalid_field() {
        for options in [ReportingOptions::Opcode(0xa3), ReportingOptions::ServiceAction(0x28, 0)] {
            assert_eq!(
                supported_operation_codes(options, false, 100, &mut []),
                Err(Sense::illegal_field_cdb(2, Some(2)))
            );
        }
    }

    #[test]
    fn whatever_is_reported_as_unused_is_refused_or_ignored_and_whatever_is_supported_decodes() {
        let unit = Geometry::new(512, 1 << 33).unwrap();
        for row in opcode::TABLE {
            let mut bytes = std::vec![0; row.usage.len()];
            row.name_in(&mut bytes);
            match cdb::parse(&bytes, &unit) {
                Ok(_) => {}
                Err(sense) => {
                    let unsupported = sense.additional == asc::INVALID_COMMAND_OPERATION_CODE;
                    assert!(!unsupported, "{}", row.name);
                }
            }
            bytes[row.control_at()] = 0x01;
            assert_eq!(
                cdb::parse(&bytes, &unit),
                Err(Sense::illegal_field_cdb(row.control_at() as u16, Some(0))),
                "{}",
                row.name
            );
        }
    }

    #[test]
    fn task_management_functions_come_in_both_forms() {
        use TaskManagementFunctions::{All, Basic};
        let reply = |functions, extended| {
            full_reply(|len, out| supported_task_management_functions(functions, extended, len, out))
        };
        assert_eq!(reply(All, false), [0xfc, 0x07, 0, 0]);
        assert_eq!(reply(Basic, false), [0xf8, 0, 0, 0]);
        let long = reply(All, true);
        assert_eq!((&long[..4], long.len()), (&[0xfc, 0x07, 0, 0x0c][..], 16));
    }
}
