//! Every iSCSI PDU decoder on any header, and the decoder of additional headers on any bytes. What an encoder made of a decoded
//! request must decode to the same.

use holdfast_iscsi::pdu::{
    AdditionalHeaders, AsyncMessage, Bhs, DataIn, DataOut, LoginRequestPdu, LoginResponsePdu, LogoutRequest,
    LogoutResponse, NopIn, NopOut, ReadyToTransfer, Reject, ScsiCommand, ScsiResponse, TaskManagementRequest,
    TaskManagementResponsePdu, TextRequest, TextResponse,
};

/// The target.
pub fn iscsi_decoders(data: &[u8]) {
    if let Ok(additional) = AdditionalHeaders::decode(data) {
        assert!(additional.extended_cdb.len() <= 244, "a CDB has at most 260 bytes");
    }
    let Some((header, _)) = data.split_first_chunk::<48>() else { return };
    let bhs = Bhs(*header);
    if let Ok(command) = ScsiCommand::decode(&bhs) {
        assert_eq!(ScsiCommand::decode(&command.encode()).as_ref(), Ok(&command));
    }
    // A login is sent for immediate delivery, always.
    if let Ok(login) = LoginRequestPdu::decode(&bhs)
        && login.numbers.immediate
    {
        assert_eq!(LoginRequestPdu::decode(&login.encode()).as_ref(), Ok(&login));
    }
    if let Ok(logout) = LogoutRequest::decode(&bhs) {
        assert_eq!(LogoutRequest::decode(&logout.encode()).as_ref(), Ok(&logout));
    }
    let out = DataOut::decode(&bhs);
    assert_eq!(DataOut::decode(&out.encode()), out);
    let function = TaskManagementRequest::decode(&bhs);
    assert_eq!(TaskManagementRequest::decode(&function.encode()), function);
    let text = TextRequest::decode(&bhs);
    assert_eq!(TextRequest::decode(&text.encode()), text);
    let nop = NopOut::decode(&bhs);
    assert_eq!(NopOut::decode(&nop.encode()), nop);
    // What targets send, for the sake of the initiators in the tests.
    let _ = (DataIn::decode(&bhs), ReadyToTransfer::decode(&bhs), NopIn::decode(&bhs));
    let _ = (TextResponse::decode(&bhs), TaskManagementResponsePdu::decode(&bhs));
    let _ = (Reject::decode(&bhs), AsyncMessage::decode(&bhs), LogoutResponse::decode(&bhs));
    let _ = (ScsiResponse::decode(&bhs), LoginResponsePdu::decode(&bhs));
}
