//! Headers byte by byte, written down from the figures of RFC 7143 section 11, so that encoder and decoder cannot agree on
//! a mistake; and both undo each other.

use holdfast_iscsi::TaskAttribute;
use holdfast_iscsi::pdu::*;
use proptest::prelude::*;

fn bhs(hex: &str) -> Bhs {
    let digits: String = hex.split_whitespace().collect();
    let bytes: Vec<u8> =
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
    Bhs(bytes.try_into().expect("48 bytes"))
}

const NUMBERS: Numbers = Numbers { stat_sn: 0x0101_0101, exp_cmd_sn: 0x0202_0202, max_cmd_sn: 0x0303_0303 };

#[test]
fn headers_of_the_target() {
    let r2t = ReadyToTransfer {
        lun: [0, 5, 0, 0, 0, 0, 0, 0],
        initiator_task_tag: 0x11,
        target_transfer_tag: 0x22,
        numbers: NUMBERS,
        r2t_sn: 3,
        buffer_offset: 0x1000,
        desired_len: 0x2000,
    };
    let expected = "31800000 00000000 00050000 00000000 00000011 00000022 01010101 02020202 03030303 00000003 00001000 00002000";
    assert_eq!(r2t.encode(), bhs(expected));

    let data_in = DataIn {
        last: true,
        status: Some(DataInStatus { status: 0, residual: Residual::Underflow(8) }),
        initiator_task_tag: 0x11,
        numbers: NUMBERS,
        data_sn: 4,
        buffer_offset: 0x200,
    };
    let expected = "25830000 00000000 00000000 00000000 00000011 ffffffff 01010101 02020202 03030303 00000004 00000200 00000008";
    assert_eq!(data_in.encode(), bhs(expected));

    let response = ScsiResponse {
        status: 2,
        status_qualifier: 0x4002,
        initiator_task_tag: 0x11,
        numbers: NUMBERS,
        exp_data_sn: 5,
        residual: Residual::Overflow(6),
        bidirectional_residual: Residual::Underflow(7),
    };
    let expected = "218c0002 00000000 40020000 00000000 00000011 00000000 01010101 02020202 03030303 00000005 00000007 00000006";
    assert_eq!(response.encode(), bhs(expected));

    let function = TaskManagementResponsePdu {
        response: 5,
        additional: [0; 3],
        initiator_task_tag: 0x11,
        numbers: NUMBERS,
    };
    let expected = "22800500 00000000 00000000 00000000 00000011 00000000 01010101 02020202 03030303 00000000 00000000 00000000";
    assert_eq!(function.encode(), bhs(expected));

    let message = AsyncMessage { event: AsyncEvent::RequestLogout { seconds: 10 }, numbers: NUMBERS };
    let expected = "32800000 00000000 00000000 00000000 ffffffff 00000000 01010101 02020202 03030303 01000000 0000000a 00000000";
    assert_eq!(message.encode(), bhs(expected));

    let event = AsyncEvent::DropSession { time_2_wait: 2, time_2_retain: 3 };
    let message = AsyncMessage { event, numbers: NUMBERS };
    let expected = "32800000 00000000 00000000 00000000 ffffffff 00000000 01010101 02020202 03030303 03000000 00020003 00000000";
    assert_eq!(message.encode(), bhs(expected));

    let reject = Reject { reason: RejectReason::InvalidPduField, numbers: NUMBERS };
    let expected = "3f800900 00000000 00000000 00000000 ffffffff 00000000 01010101 02020202 03030303 00000000 00000000 00000000";
    assert_eq!(reject.encode(), bhs(expected));

    let login = LoginResponsePdu {
        current_stage: Stage::Operational,
        next_stage: Some(Stage::FullFeature),
        isid: [0x80, 1, 2, 3, 4, 5],
        tsih: 0x0607,
        initiator_task_tag: 0x11,
        numbers: NUMBERS,
        status: 0x0203,
    };
    let expected = "23870000 00000000 80010203 04050607 00000011 00000000 01010101 02020202 03030303 02030000 00000000 00000000";
    assert_eq!(login.encode(), bhs(expected));

    let text = TextResponse {
        last: false,
        more: true,
        initiator_task_tag: 0x11,
        target_transfer_tag: 0x22,
        numbers: NUMBERS,
    };
    let expected = "24400000 00000000 00000000 00000000 00000011 00000022 01010101 02020202 03030303 00000000 00000000 00000000";
    assert_eq!(text.encode(), bhs(expected));

    let logout = LogoutResponse {
        result: LogoutResult::RecoveryNotSupported,
        initiator_task_tag: 0x11,
        numbers: NUMBERS,
        time_2_wait: 2,
        time_2_retain: 3,
    };
    let expected = "26800200 00000000 00000000 00000000 00000011 00000000 01010101 02020202 03030303 00000000 00020003 00000000";
    assert_eq!(logout.encode(), bhs(expected));

    let nop = NopIn { initiator_task_tag: TAG_NONE, target_transfer_tag: 0x22, numbers: NUMBERS };
    let expected = "20800000 00000000 00000000 00000000 ffffffff 00000022 01010101 02020202 03030303 00000000 00000000 00000000";
    assert_eq!(nop.encode(), bhs(expected));
}

#[test]
fn headers_of_the_initiator() {
    let numbers = CommandNumbers { immediate: false, cmd_sn: 0x0404_0404, exp_stat_sn: 0x0505_0505 };
    let command = ScsiCommand {
        last: true,
        read: false,
        write: true,
        attribute: TaskAttribute::Ordered,
        priority: 0xb,
        lun: [0, 5, 0, 0, 0, 0, 0, 0],
        initiator_task_tag: 0x11,
        expected_data_len: 0x2000,
        numbers,
        cdb: [0x2a, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0],
    };
    let wire = bhs(
        "01a2b000 00000000 00050000 00000000 00000011 00002000 04040404 05050505 2a010203 04050607 08090000 00000000",
    );
    assert_eq!(ScsiCommand::decode(&wire), Ok(command));

    let wire = bhs(
        "42810000 00000000 00050000 00000000 00000011 00000022 04040404 05050505 06060606 00000000 00000000 00000000",
    );
    let function = TaskManagementRequest {
        function: 1,
        lun: [0, 5, 0, 0, 0, 0, 0, 0],
        initiator_task_tag: 0x11,
        referenced_task_tag: 0x22,
        ref_cmd_sn: 0x0606_0606,
        numbers: CommandNumbers { immediate: true, ..numbers },
    };
    assert_eq!(TaskManagementRequest::decode(&wire), function);

    let wire = bhs(
        "05800000 00000200 00050000 00000000 00000011 00000022 00000000 05050505 00000000 00000007 00001000 00000000",
    );
    let data_out = DataOut {
        last: true,
        lun: [0, 5, 0, 0, 0, 0, 0, 0],
        initiator_task_tag: 0x11,
        target_transfer_tag: 0x22,
        exp_stat_sn: 0x0505_0505,
        data_sn: 7,
        buffer_offset: 0x1000,
    };
    assert_eq!((DataOut::decode(&wire), wire.data_segment_len()), (data_out, 0x200));

    let wire = bhs(
        "06810000 00000000 00000000 00000000 00000011 00090000 04040404 05050505 00000000 00000000 00000000 00000000",
    );
    let logout =
        LogoutRequest { reason: LogoutReason::CloseConnection, initiator_task_tag: 0x11, cid: 9, numbers };
    assert_eq!(LogoutRequest::decode(&wire), Ok(logout));

    let wire = bhs(
        "43c10100 00000000 80010203 04050607 00000011 00090000 04040404 05050505 00000000 00000000 00000000 00000000",
    );
    let login = LoginRequestPdu::decode(&wire).unwrap();
    assert_eq!(
        (login.more, login.current_stage, login.next_stage),
        (true, Stage::Security, Some(Stage::Operational))
    );
    assert_eq!((login.version_max, login.version_min, login.isid), (1, 0, [0x80, 1, 2, 3, 4, 5]));
    assert_eq!((login.tsih, login.cid, login.initiator_task_tag), (0x0607, 9, 0x11));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoding_undoes_encoding(bytes in prop::collection::vec(any::<u8>(), 48)) {
        let any = Bhs(bytes.try_into().unwrap());
        // Whatever is understood of any header is said and understood again.
        if let Ok(pdu) = ScsiCommand::decode(&any) {
            prop_assert_eq!(ScsiCommand::decode(&pdu.encode()), Ok(pdu));
        }
        if let Ok(pdu) = LoginResponsePdu::decode(&any) {
            prop_assert_eq!(LoginResponsePdu::decode(&pdu.encode()), Ok(pdu));
        }
        if let Ok(pdu) = LogoutRequest::decode(&any) {
            prop_assert_eq!(LogoutRequest::decode(&pdu.encode()), Ok(pdu));
        }
        let pdu = DataIn::decode(&any);
        prop_assert_eq!(DataIn::decode(&pdu.encode()), pdu);
        let pdu = DataOut::decode(&any);
        prop_assert_eq!(DataOut::decode(&pdu.encode()), pdu);
        let pdu = ReadyToTransfer::decode(&any);
        prop_assert_eq!(ReadyToTransfer::decode(&pdu.encode()), pdu);
        let pdu = TaskManagementRequest::decode(&any);
        prop_assert_eq!(TaskManagementRequest::decode(&pdu.encode()), pdu);
        let pdu = TextRequest::decode(&any);
        prop_assert_eq!(TextRequest::decode(&pdu.encode()), pdu);
        let pdu = NopOut::decode(&any);
        prop_assert_eq!(NopOut::decode(&pdu.encode()), pdu);
    }
}
