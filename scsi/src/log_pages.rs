//! LOG SENSE (SPC-5 6.8 and 7.3): the pages that tell what this unit really knows. Temperature, errors and the like belong
//! to the disks below, which a unit spans and hides. Nothing here can be set or saved, so there is no LOG SELECT.

use crate::cdb::LogPage;
use crate::reply::{Reply, ReplyWriter};

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
    pub const ALL: [LogPage; 3] =
        [LogPage::SupportedPages, LogPage::SupportedSubpages, LogPage::InformationalExceptions];

    /// PAGE CODE and SUBPAGE CODE.
    pub const fn code(self) -> (u8, u8) {
        match self {
            LogPage::SupportedPages => (0x00, 0x00),
            LogPage::SupportedSubpages => (0x00, 0xff),
            LogPage::InformationalExceptions => (0x2f, 0x00),
        }
    }
}

/// One log page.
pub fn log_sense(page: LogPage, allocation_length: u32, out: &mut [u8]) -> Reply {
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
            // The one parameter, 0000h: no exception (ADDITIONAL SENSE CODE and its qualifier are 0).
            w.put(&[0, 0, BINARY_LIST, 4, 0, 0, NO_TEMPERATURE, 0]);
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
        full_reply(|len, out| log_sense(page, len, out))
    }

    #[test]
    fn supported_pages_lists_every_page_once() {
        assert_eq!(page(LogPage::SupportedPages), [0, 0, 0, 2, 0x00, 0x2f]);
        assert_eq!(page(LogPage::SupportedSubpages), [0x40, 0xff, 0, 6, 0, 0, 0, 0xff, 0x2f, 0]);
    }

    #[test]
    fn informational_exceptions_tells_of_none_and_of_no_temperature() {
        let expected = [0xaf, 0, 0, 8, 0, 0, 0x23, 4, 0, 0, 0xff, 0];
        assert_eq!(page(LogPage::InformationalExceptions), expected);
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
        assert_eq!(ask(&[(2, 0x4d)]), field(2, Some(5)), "no temperature page");
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
