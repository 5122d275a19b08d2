//! The C side, called as C calls it.

use std::{vec, vec::Vec};

use super::*;
use crate::{
    encode,
    image::tests::{facts, groups, registrant},
};
use holdfast_scsi::pr::View;

#[test]
fn a_command_goes_through_the_c_side() {
    let list = [registrant(1, 0xa)];
    let view = View { generation: 1, aptpl: false, registrants: &list, reservation: None };
    let message = encode::image(&facts(&groups()), &view);
    // SAFETY: live memory of the stated lengths, aligned by its type, used by this thread alone.
    unsafe {
        let size = hf_core_image_size(message.as_ptr(), message.len());
        let mut memory: Vec<u64> = vec![0; size.div_ceil(8)];
        let at = memory.as_mut_ptr().cast::<u8>();
        assert_eq!(hf_core_image_build(message.as_ptr(), message.len(), at, size - 1), 1);
        assert_eq!(hf_core_image_build(message.as_ptr(), message.len(), at, size), 0);
        let mut facts = core::mem::MaybeUninit::uninit();
        assert_eq!(hf_core_image_facts(at, message.as_ptr(), message.len(), facts.as_mut_ptr()), 0);
        let facts = facts.assume_init();
        assert_eq!((facts.version, facts.blocks, facts.registrants), (9, 2048, 1));

        let mut queue = UaQueue::new();
        hf_core_ua_raise(&mut queue, 1, 0x2900);
        let nexus = registrant(1, 1).nexus;
        assert_eq!(hf_core_relation(at, 1, &nexus), 1);
        let cdb = [0x28, 0, 0, 0, 0, 5, 0, 0, 2, 0];
        let mut out = [0; 64];
        let mut command = HfCommand {
            cdb: cdb.as_ptr(),
            cdb_len: 10,
            relation: 1,
            nexus: &nexus,
            attentions: &mut queue,
            out: out.as_mut_ptr(),
            out_len: 64,
            answer: 99,
            status: 0,
            sense_len: 0,
            flags: 0,
            reserved: 0,
            len: 0,
            lba: 0,
            sense: [0; SENSE_LEN_MAX],
        };
        hf_core_execute(at, 1, &mut command);
        assert_eq!((command.answer, command.status, command.sense[12]), (ANSWER_STATUS, 2, 0x29));
        assert_eq!(hf_core_ua_len(&queue), 0);
        hf_core_execute(at, 1, &mut command);
        assert_eq!((command.answer, command.lba, command.len), (ANSWER_READ, 5, 2));
    }
}

#[test]
fn names_of_each_protocol_make_a_nexus_and_others_do_not() {
    let mut memory = core::mem::MaybeUninit::uninit();
    let mut make = |protocol, name: &[u8], isid: Option<[u8; 6]>, port| {
        let isid = isid.as_ref().map_or(core::ptr::null(), |isid| isid.as_ptr());
        // SAFETY: as above.
        unsafe { hf_core_nexus(memory.as_mut_ptr(), protocol, name.as_ptr(), name.len(), isid, port) }
    };
    assert_eq!(make(PROTOCOL_FC, &[1; 8], None, 1), 0);
    assert_eq!(make(PROTOCOL_SRP, &[1; 16], None, 1), 0);
    assert_eq!(make(PROTOCOL_SAS, &[1; 8], None, 1), 0);
    assert_eq!(make(PROTOCOL_ISCSI, b"iqn.2026-01.example:host", Some([1; 6]), 1), 0);
    assert_eq!(make(PROTOCOL_FC, &[1; 7], None, 1), 1);
    assert_eq!(make(PROTOCOL_ISCSI, b"iqn.2026-01.example:host", None, 1), 1);
    assert_eq!(make(PROTOCOL_ISCSI, b"", Some([1; 6]), 1), 1);
    assert_eq!(make(PROTOCOL_SAS, &[1; 8], None, 0), 1);
    assert_eq!(make(9, &[1; 8], None, 1), 1);
}
