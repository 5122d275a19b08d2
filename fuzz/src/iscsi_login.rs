//! The login phase: any bytes, or login requests with any text. Nobody gets in who cannot prove a secret; memory and answers
//! are bounded. CHAP is real, its challenge the same each time.

use crate::portal::{Chap, INITIATOR, Portal, TARGET};
use holdfast_iscsi::chap::Algorithm;
use holdfast_iscsi::pdu::Stage;

/// The target.
pub fn iscsi_login(data: &[u8]) {
    let Some((&choice, mut rest)) = data.split_first() else { return };
    let mut portal = Portal { split: 1 + usize::from(choice >> 3), ..Portal::default() };
    if choice & 1 != 0 {
        let secret = |name: &str, secret: &str| (name.to_owned(), secret.to_owned());
        let mutual = (choice & 2 != 0).then(|| secret("array", "close-sesame-5678"));
        let weakest = Algorithm::Md5;
        portal.chap = Some(Chap { user: secret("alice", "open-sesame-1234"), mutual, weakest });
    }
    if choice & 4 != 0 {
        portal.give(rest);
    } else {
        // Records of a byte for the stages, a byte for the length, and text; the first is a good beginning.
        let keys = [("InitiatorName", INITIATOR), ("TargetName", TARGET), ("AuthMethod", "CHAP,None")];
        let first = portal.initiator.login(Stage::Security, None, &keys);
        portal.give(&first);
        while let [stages, len, text @ ..] = rest {
            let (text, behind) = text.split_at(text.len().min(usize::from(*len)));
            let mut header = portal.initiator.login_header(Stage::Security, None).encode();
            header.0[1] = *stages;
            let frame = portal.initiator.frame(header, &[], text);
            portal.give(&frame);
            rest = behind;
        }
    }
    assert!(portal.chap.is_none() || portal.session.is_none(), "logged in without a proof");
    assert!(portal.connection.bytes_held() < 128 * 1024);
    portal.sent();
}
