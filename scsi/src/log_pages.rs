//! LOG SENSE (SPC-5 6.8 and 7.3): the pages that tell what this unit really knows. Temperature, errors and the like belong
//! to the disks below, which a unit spans and hides. Nothing here can be set or saved, so there is no LOG SELECT.

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
    pub const ALL: [LogPage; 5] = [
        LogPage::SupportedPages,
        LogPage::SupportedSubpages,
        LogPage::LogicalBlockProvisioning,
        LogPage::Temperature,
        LogPage::InformationalExceptions,
    ];

    /// PAGE CODE and SUBPAGE CODE.
    pub const fn code(self) -> (u8, u8) {
        match self {
            LogPage::SupportedPages => (0x00, 0x00),
            LogPage::SupportedSubpages => (0x00, 0xff),
            LogPage::LogicalBlockProvisioning => (0x0c, 0x00),
            LogPage::Temperature => (0x0d, 0x00),
            LogPage::InformationalExceptions => (0x2f, 0x00),
        }
    }
}

/// What the pages tell of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFacts {
    /// The informational exception that there is.
    pub exception: Option<AdditionalSense>,
    /// Thin provisioning resources in threshold sets: available, used. `None`: not known.
    pub resources: Option<(u32, u32)>,
}

/// Parameter codes of the Logical Block Provisioning page.
const AVAILABLE_RESOURCES: u16 = 0x0001;
const USED_RESOURCES: u16 = 0x0002;
/// SCOPE: the count is of the whole pool, or of this unit alone.
const SCOPE_SHARED: u8 = 0x02;
const SCOPE_UNIT: u8 = 0x01;

/// One log page.
pub fn log_sense(page: LogPage, facts: &LogFacts, allocation_length: u32, out: &mut [u8]) -> Reply {
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
                    w.put_u16(parameter);
                    w.put(&[BINARY_LIST, 8]);
                    w.put_u32(count);
                    w.put(&[scope, 0, 0, 0]);
                }
            }
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
        full_reply(|len, out| log_sense(page, &LogFacts::default(), len, out))
    }

    #[test]
    fn supported_pages_lists_every_page_once() {
        assert_eq!(page(LogPage::SupportedPages), [0, 0, 0, 4, 0x00, 0x0c, 0x0d, 0x2f]);
        assert_eq!(
            page(LogPage::SupportedSubpages),
            [0x40, 0xff, 0, 10, 0, 0, 0, 0xff, 0x0c, 0, 0x0d, 0, 0x2f, 0]
        );
    }

    #[test]
    fn informational_exceptions_tells_of_none_and_of_no_temperature() {
        let expected = [0xaf, 0, 0, 8, 0, 0, 0x23, 4, 0, 0, 0xff, 0];
        assert_eq!(page(LogPage::InformationalExceptions), expected);
    }

    #[test]
    fn facts_are_told_where_they_are_known() {
        let facts =
            LogFacts { exception: Some(AdditionalSense::new(0x5d, 0xff)), resources: Some((0x0102, 3)) };
        let told = |page| full_reply(|len, out| log_sense(page, &facts, len, out));
        assert_eq!(told(LogPage::InformationalExceptions)[8..10], [0x5d, 0xff]);
        let resources = [0, 1, 0x23, 8, 0, 0, 1, 2, 2, 0, 0, 0, 0, 2, 0x23, 8, 0, 0, 0, 3, 1, 0, 0, 0];
        let expected = [[0x8c, 0, 0, 24].as_slice(), &resources].concat();
        assert_eq!(told(LogPage::LogicalBlockProvisioning), expected);
        assert_eq!(page(LogPage::LogicalBlockProvisioning), [0x8c, 0, 0, 0]);
        assert_eq!(page(LogPage::Temperature), [0x8d, 0, 0, 6, 0, 0, 0x23, 2, 0, 0xff]);
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
        let found = |page| Ok(Command::LogSense { page, allocation_length: 256 });
        assert_eq!(ask(&[]), found(LogPage::InformationalExceptions));
        assert_eq!(ask(&[(2, 0x00)]), found(LogPage::SupportedPages));
        assert_eq!(ask(&[(2, 0xc0), (3, 0xff)]), found(LogPage::SupportedSubpages));
        let field = |byte, bit| Err(Sense::illegal_field_cdb(byte, bit));
        assert_eq!(ask(&[(2, 0x4e)]), field(2, Some(5)), "no start-stop page");
        assert_eq!(ask(&[(3, 1)]), field(3, None));
        assert_eq!(ask(&[(2, 0x2f)]), field(2, Some(7)), "no thresholds");
        assert_eq!(ask(&[(2, 0xef)]), field(2, Some(7)), "no defaults");
        assert_eq!(ask(&[(6, 1)]), field(5, None), "no parameter behind 0000h");
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
