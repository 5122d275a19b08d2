//! LOG SENSE (SPC-5 6.8 and 7.3): the pages that tell what this unit really knows. Temperature, errors and the like belong
//! to the disks below, which a unit spans and hides. LOG SELECT can put the statistics back to zero; nothing can be set or saved.

use crate::cdb::LogPage;
use crate::reply::{Reply, ReplyWriter};
use crate::sense::AdditionalSense;

/// DS: no parameter is saved.
const DS: u8 = 0x80;
/// SPF: the header has a subpage code.
const SPF: u8 = 0x40;
/// Parameter control byte: not saved implicitly (TSD), a list in binary format.
const BINARY_LIST: u8 = 0x23;
/// MOST RECENT TEMPERATURE READING: not available.
const NO_TEMPERATURE: u8 = 0xff;

impl LogPage {
    /// Every page, in the order of the report.
    pub const ALL: [LogPage; 6] = [
        LogPage::SupportedPages,
        LogPage::SupportedSubpages,
        LogPage::LogicalBlockProvisioning,
        LogPage::Temperature,
        LogPage::GeneralStatistics,
        LogPage::InformationalExceptions,
    ];

    /// PAGE CODE and SUBPAGE CODE.
    pub const fn code(self) -> (u8, u8) {
        match self {
            LogPage::SupportedPages => (0x00, 0x00),
            LogPage::SupportedSubpages => (0x00, 0xff),
            LogPage::LogicalBlockProvisioning => (0x0c, 0x00),
            LogPage::Temperature => (0x0d, 0x00),
            LogPage::GeneralStatistics => (0x19, 0x00),
            LogPage::InformationalExceptions => (0x2f, 0x00),
        }
    }

    /// The largest parameter code of the page. A list of pages has none, and a pointer of 0000h asks for all of it.
    pub const fn last_parameter(self) -> u16 {
        match self {
            LogPage::SupportedPages | LogPage::SupportedSubpages => 0x0000,
            LogPage::Temperature | LogPage::InformationalExceptions => 0x0000,
            LogPage::LogicalBlockProvisioning => USED_RESOURCES,
            LogPage::GeneralStatistics => TIME_INTERVAL,
        }
    }
}

/// What the owner has counted since it became the owner, or since LOG SELECT put it back to zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Commands that read, in all.
    pub read_commands: u64,
    /// Commands that write, in all.
    pub write_commands: u64,
    /// Logical blocks that initiators sent and that were written.
    pub blocks_received: u64,
    /// Logical blocks that were read and sent.
    pub blocks_transmitted: u64,
    /// Time that reads took, summed up, in milliseconds.
    pub read_ms: u64,
    /// Time that writes took, summed up, in milliseconds.
    pub write_ms: u64,
}

/// What the pages tell of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFacts {
    /// The informational exception that there is.
    pub exception: Option<AdditionalSense>,
    /// Thin provisioning resources in threshold sets: available, used. `None`: not known.
    pub resources: Option<(u32, u32)>,
    /// What was counted.
    pub statistics: Statistics,
}

/// Parameter codes of the Logical Block Provisioning page.
const AVAILABLE_RESOURCES: u16 = 0x0001;
const USED_RESOURCES: u16 = 0x0002;
/// SCOPE: the count is of the whole pool, or of this unit alone.
const SCOPE_SHARED: u8 = 0x02;
const SCOPE_UNIT: u8 = 0x01;

/// Parameter codes of the General Statistics and Performance page (SPC-5 7.3.10).
const STATISTICS: u16 = 0x0001;
const TIME_INTERVAL: u16 = 0x0003;
/// Parameter control byte: not saved implicitly (TSD), an unbounded data counter.
const UNBOUNDED_COUNTER: u8 = 0x22;
/// TIME INTERVAL: the integer times ten to the power of minus the exponent, in seconds: a millisecond.
const TIME_INTERVAL_EXPONENT: u32 = 3;
const TIME_INTERVAL_INTEGER: u32 = 1;

/// One log page, from the parameter code `pointer` on.
pub fn log_sense(
    page: LogPage,
    pointer: u16,
    facts: &LogFacts,
    allocation_length: u32,
    out: &mut [u8],
) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    let (code, subpage) = page.code();
    match page {
        LogPage::SupportedPages => {
            w.put(&[code, 0, 0, 0]);
            for (code, subpage) in LogPage::ALL.map(LogPage::code) {
                if subpage == 0 {
                    w.put_u8(code);
                }
            }
        }
        LogPage::SupportedSubpages => {
            w.put(&[SPF | code, subpage, 0, 0]);
            for (code, subpage) in LogPage::ALL.map(LogPage::code) {
                w.put(&[code, subpage]);
            }
        }
        LogPage::InformationalExceptions => {
            w.put(&[DS | code, 0, 0, 0]);
            // The one parameter, 0000h; without an exception ADDITIONAL SENSE CODE and its qualifier are 0.
            let AdditionalSense { asc, ascq } = facts.exception.unwrap_or(AdditionalSense::new(0, 0));
            w.put(&[0, 0, BINARY_LIST, 4, asc, ascq, NO_TEMPERATURE, 0]);
        }
        LogPage::LogicalBlockProvisioning => {
            w.put(&[DS | code, 0, 0, 0]);
            if let Some((available, used)) = facts.resources {
                for (parameter, count, scope) in
                    [(AVAILABLE_RESOURCES, available, SCOPE_SHARED), (USED_RESOURCES, used, SCOPE_UNIT)]
                {
                    if parameter < pointer {
                        continue;
                    }
                    w.put_u16(parameter);
                    w.put(&[BINARY_LIST, 8]);
                    w.put_u32(count);
                    w.put(&[scope, 0, 0, 0]);
                }
            }
        }
        LogPage::GeneralStatistics => {
            w.put(&[DS | code, 0, 0, 0]);
            if pointer <= STATISTICS {
                let counted = &facts.statistics;
                w.put_u16(STATISTICS);
                w.put(&[UNBOUNDED_COUNTER, 64]);
                for counter in [
                    counted.read_commands,
                    counted.write_commands,
                    counted.blocks_received,
                    counted.blocks_transmitted,
                    counted.read_ms,
                    counted.write_ms,
                ] {
                    w.put_u64(counter);
                }
                // The two weighted sums are not kept.
                w.put_zeroes(16);
            }
            w.put_u16(TIME_INTERVAL);
            w.put(&[BINARY_LIST, 8]);
            w.put_u32(TIME_INTERVAL_EXPONENT);
            w.put_u32(TIME_INTERVAL_INTEGER);
        }
        LogPage::Temperature => {
            w.put(&[DS | code, 0, 0, 0]);
            // A unit that spans disks has no temperature of its own.
            w.put(&[0, 0, BINARY_LIST, 2, 0, NO_TEMPERATURE]);
        }
    }
    w.patch_len16(2, 4);
    w.finish()
}

/// RECEIVE DIAGNOSTIC RESULTS of page 00h, supported diagnostic pages: only itself.
pub fn supported_diagnostic_pages(allocation_length: u32, out: &mut [u8]) -> Reply {
    let mut w = ReplyWriter::new(out, allocation_length);
    w.put(&[0, 0, 0, 1, 0]);
    w.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::full_reply;
    use std::vec::Vec;

    fn page(page: LogPage) -> Vec<u8> {
        full_reply(|len, out| log_sense(page, 0, &LogFacts::default(), len, out))
    }

    #[test]
    fn supported_pages_lists_every_page_once() {
        assert_eq!(page(LogPage::SupportedPages), [0, 0, 0, 5, 0x00, 0x0c, 0x0d, 0x19, 0x2f]);
        assert_eq!(
            page(LogPage::SupportedSubpages),
            [0x40, 0xff, 0, 12, 0, 0, 0, 0xff, 0x0c, 0, 0x0d, 0, 0x19, 0, 0x2f, 0]
        );
    }

    #[test]
    fn informational_exceptions_tells_of_none_and_of_no_temperature() {
        let expected = [0xaf, 0, 0, 8, 0, 0, 0x23, 4, 0, 0, 0xff, 0];
        assert_eq!(page(LogPage::InformationalExceptions), expected);
    }

    #[test]
    fn facts_are_told_where_they_are_known() {
        let facts = LogFacts {
            exception: Some(AdditionalSense::new(0x5d, 0xff)),
            resources: Some((0x0102, 3)),
            ..LogFacts::default()
        };
        let told = |page| full_reply(|len, out| log_sense(page, 0, &facts, len, out));
        assert_eq!(told(LogPage::InformationalExceptions)[8..10], [0x5d, 0xff]);
        let resources = [0, 1, 0x23, 8, 0, 0, 1, 2, 2, 0, 0, 0, 0, 2, 0x23, 8, 0, 0, 0, 3, 1, 0, 0, 0];
        let expected = [[0x8c, 0, 0, 24].as_slice(), &resources].concat();
        assert_eq!(told(LogPage::LogicalBlockProvisioning), expected);
        let used_only =
            full_reply(|len, out| log_sense(LogPage::LogicalBlockProvisioning, 2, &facts, len, out));
        assert_eq!(used_only, [[0x8c, 0, 0, 12].as_slice(), &resources[12..]].concat());
        assert_eq!(page(LogPage::LogicalBlockProvisioning), [0x8c, 0, 0, 0]);
        assert_eq!(page(LogPage::Temperature), [0x8d, 0, 0, 6, 0, 0, 0x23, 2, 0, 0xff]);
    }

    #[test]
    fn statistics_count_in_milliseconds() {
        let statistics = Statistics {
            read_commands: 1,
            write_commands: 2,
            blocks_received: 3,
            blocks_transmitted: 4,
            read_ms: 5,
            write_ms: 6,
        };
        let facts = LogFacts { statistics, ..LogFacts::default() };
        let told =
            |from| full_reply(|len, out| log_sense(LogPage::GeneralStatistics, from, &facts, len, out));
        let interval = [0, 3, 0x23, 8, 0, 0, 0, 3, 0, 0, 0, 1];
        let all = told(0);
        assert_eq!(all[..8], [0x99, 0, 0, 80, 0, 1, 0x22, 64]);
        let counters: Vec<u8> = all[8..72].chunks(8).map(|counter| counter[7]).collect();
        assert_eq!(counters, [1, 2, 3, 4, 5, 6, 0, 0]);
        assert_eq!(all[72..], interval);
        assert_eq!(told(2)[4..], interval);
    }

    #[test]
    fn log_select_puts_back_what_it_names_and_nothing_can_be_saved() {
        use crate::cdb::{Command, parse};
        use crate::geometry::Geometry;
        use crate::sense::Sense;
        let unit = Geometry::new(512, 1000).unwrap();
        let select =
            |flags, page, subpage, len| parse(&[0x4c, flags, page, subpage, 0, 0, 0, 0, len, 0], &unit);
        let nothing = Ok(Command::LogSelect { reset_statistics: false, parameter_list_length: 0 });
        let reset = Ok(Command::LogSelect { reset_statistics: true, parameter_list_length: 0 });
        // PCR: of all pages, of this one, of all its subpages; the same without PCR by PC=11b.
        for (flags, page, subpage) in
            [(2, 0x00, 0), (2, 0x19, 0), (2, 0x59, 0xff), (0, 0xc0, 0), (0, 0xd9, 0), (0, 0xd9, 0xff)]
        {
            assert_eq!(select(flags, page, subpage, 0), reset, "{flags} {page:02x} {subpage:02x}");
        }
        // Another page; PC that changes nothing, or thresholds.
        for (flags, page, subpage) in
            [(2, 0x2f, 0), (2, 0x00, 0xff), (0, 0x19, 0), (0, 0x40, 0), (0, 0x99, 0)]
        {
            assert_eq!(select(flags, page, subpage, 0), nothing, "{flags} {page:02x} {subpage:02x}");
        }
        let field = |byte, bit| Err(Sense::illegal_field_cdb(byte, bit));
        assert_eq!(select(1, 0, 0, 0), field(1, Some(0)), "nothing can be saved");
        assert_eq!(select(2, 0x02, 0, 0), field(2, Some(5)), "no such page");
        assert_eq!(select(2, 0x19, 1, 0), field(3, None), "no such subpage");
        assert_eq!(select(2, 0, 0, 4), field(1, Some(1)), "PCR with a list");
        assert_eq!(select(0, 0x19, 0, 4), field(2, Some(5)), "the list names its pages");
        assert_eq!(select(0, 0, 1, 4), field(3, None));
        let list = Ok(Command::LogSelect { reset_statistics: false, parameter_list_length: 4 });
        assert_eq!(select(0, 0, 0, 4), list);
        let long = parse(&[0x4c, 0, 0, 0, 0, 0, 0, 2, 1, 0], &unit);
        assert_eq!(long, Err(Sense::parameter_list_length()));
    }

    #[test]
    fn what_does_not_exist_is_an_error_in_its_field() {
        use crate::cdb::{Command, parse};
        use crate::geometry::Geometry;
        use crate::sense::Sense;
        let unit = Geometry::new(512, 1000).unwrap();
        let ask = |set: &[(usize, u8)]| {
            let mut cdb = [0x4d, 0, 0x6f, 0, 0, 0, 0, 1, 0, 0];
            for (at, byte) in set {
                cdb[*at] = *byte;
            }
            parse(&cdb, &unit)
        };
        let found = |page| Ok(Command::LogSense { page, pointer: 0, allocation_length: 256 });
        assert_eq!(ask(&[]), found(LogPage::InformationalExceptions));
        assert_eq!(ask(&[(2, 0x00)]), found(LogPage::SupportedPages));
        assert_eq!(ask(&[(2, 0xc0), (3, 0xff)]), found(LogPage::SupportedSubpages));
        let field = |byte, bit| Err(Sense::illegal_field_cdb(byte, bit));
        assert_eq!(ask(&[(2, 0x4e)]), field(2, Some(5)), "no start-stop page");
        assert_eq!(ask(&[(3, 1)]), field(3, None));
        assert_eq!(ask(&[(2, 0x2f)]), field(2, Some(7)), "no thresholds");
        assert_eq!(ask(&[(2, 0xef)]), field(2, Some(7)), "no defaults");
        assert_eq!(ask(&[(6, 1)]), field(5, None), "no parameter behind 0000h");
        let used =
            Command::LogSense { page: LogPage::LogicalBlockProvisioning, pointer: 2, allocation_length: 256 };
        assert_eq!(ask(&[(2, 0x4c), (6, 2)]), Ok(used));
        assert_eq!(ask(&[(2, 0x4c), (6, 3)]), field(5, None), "no parameter behind 0002h");
        assert_eq!(ask(&[(1, 1)]), field(1, Some(0)), "nothing is saved");
        assert_eq!(ask(&[(1, 2)]), field(1, Some(1)), "PPC is obsolete");

        let results = |cdb: [u8; 6]| parse(&cdb, &unit);
        assert_eq!(
            results([0x1c, 1, 0, 1, 2, 0]),
            Ok(Command::ReceiveDiagnosticResults { allocation_length: 258 })
        );
        assert_eq!(results([0x1c, 0, 0, 0, 9, 0]), field(1, Some(0)));
        assert_eq!(results([0x1c, 1, 0x40, 0, 9, 0]), field(2, None));
    }

    #[test]
    fn diagnostic_pages_are_itself_only() {
        assert_eq!(full_reply(supported_diagnostic_pages), [0, 0, 0, 1, 0]);
    }
}
