//! REPORT SUPPORTED OPERATION CODES says exactly what works: every operation code and service action that there can be is asked for
//! and sent, to a whole device server.

use holdfast_scsi::{
    alua::AluaState,
    device_server::{
        Action, CommandRequest, Completion, DataIn, DataOut, DeviceServer, LuConfig, PortGroup, Response,
        TaskAttribute, TaskId, Topology,
    },
    geometry::Geometry,
    identity::{LuIdentity, LuProperties},
    mode::ModeParameters,
    nexus::{Nexus, RelativePort},
    sense::{Sense, SenseSpecific, asc},
    status::Status,
    time::Instant,
    transport_id::TransportId,
};

const VARIABLE_LENGTH: u8 = 0x7f;
/// The port answers it before any device server.
const REPORT_LUNS: u8 = 0xa0;

fn server() -> DeviceServer {
    let properties = LuProperties {
        identity: LuIdentity { volume_uuid: [1; 16], revision: *b"0001" },
        geometry: Geometry::new(512, 2048).unwrap(),
        physical_block_exponent: 3,
    };
    let mode = ModeParameters::new(true);
    let mut server = DeviceServer::new(LuConfig { properties, mode, read_only: false });
    let ports = vec![RelativePort(1)];
    let group = PortGroup { id: 1, state: AluaState::ActiveOptimized, preferred: true, ports };
    server.install_topology(Topology {
        target_name: "iqn.2026-01.x:t".into(),
        groups: vec![group],
        ..Topology::default()
    });
    server
}

/// The answer, or `None` where the command has begun something outside.
fn send(cdb: &[u8]) -> Option<Completion> {
    let mut server = server();
    let request = CommandRequest {
        task: TaskId(1),
        nexus: &Nexus::new(TransportId::sas([1; 8]), RelativePort(1)),
        cdb,
        attribute: TaskAttribute::Simple,
        data_out_len: 0,
        unit_attention: None,
        read_only: false,
    };
    server.handle_command(Instant(1), request, DataOut::None).unwrap();
    match server.poll_action().expect("nothing came of it") {
        Action::Complete { response: Response::Completed(completion), .. } => Some(completion),
        Action::Complete { .. } => panic!("aborted"),
        _ => None,
    }
}

/// REPORTING OPTIONS, with RCTD=1.
fn report(option: u8, opcode: u8, action: u16) -> Result<Vec<u8>, Sense> {
    let [high, low] = action.to_be_bytes();
    let cdb = [0xa3, 0x0c, 0x80 | option, opcode, high, low, 0, 0, 0x40, 0, 0, 0];
    let completion = send(&cdb).unwrap();
    match (completion.status, completion.data_in, completion.sense) {
        (Status::Good, DataIn::Bytes(data), _) => Ok(data),
        (Status::CheckCondition, _, Some(sense)) => Err(sense),
        other => panic!("{other:?}"),
    }
}

/// SUPPORT of one command, with its CDB usage data.
fn support(option: u8, opcode: u8, action: u16) -> Option<Vec<u8>> {
    let data = report(option, opcode, action).unwrap();
    match data[1] & 0x07 {
        0b001 => {
            assert_eq!(data.len(), 4);
            None
        }
        0b011 => {
            let len = usize::from(u16::from_be_bytes([data[2], data[3]]));
            assert_eq!(data[1] & 0x80, 0x80, "timeouts were asked for");
            let recommended = u32::from_be_bytes(data[4 + len + 8..].try_into().unwrap());
            assert!(recommended > 0);
            Some(data[4..4 + len].to_vec())
        }
        other => panic!("SUPPORT {other:03b}"),
    }
}

/// The unit says that it does not know the command.
fn is_unknown(opcode: u8, completion: Option<Completion>) -> bool {
    let Some(sense) = completion.and_then(|completion| completion.sense) else { return false };
    if sense.additional == asc::INVALID_COMMAND_OPERATION_CODE {
        return true;
    }
    let field = if opcode == VARIABLE_LENGTH { (8, None) } else { (1, Some(4)) };
    match sense.specific {
        SenseSpecific::FieldPointer { in_cdb: true, byte, bit } => (byte, bit) == field,
        _ => false,
    }
}

fn cdb(opcode: u8, action: u16) -> Vec<u8> {
    let mut cdb = vec![0; 32];
    cdb[0] = opcode;
    if opcode == VARIABLE_LENGTH {
        cdb[7] = 0x18;
        cdb[8..10].copy_from_slice(&action.to_be_bytes());
    } else {
        cdb[1] = action as u8;
    }
    cdb
}

#[test]
fn what_is_reported_works_and_nothing_else() {
    let all = report(0, 0, 0).unwrap();
    let listed: Vec<(u8, Option<u16>, usize)> = all[4..]
        .chunks(20)
        .map(|descriptor| {
            let action = u16::from_be_bytes([descriptor[2], descriptor[3]]);
            let len = usize::from(u16::from_be_bytes([descriptor[6], descriptor[7]]));
            (descriptor[0], (descriptor[5] & 1 == 1).then_some(action), len)
        })
        .collect();
    let mut found = Vec::new();
    for opcode in 0..=255u8 {
        let wrong_option = Sense::illegal_field_cdb(2, Some(2));
        let has_actions = report(0b001, opcode, 0) == Err(wrong_option);
        if !has_actions {
            let supported = support(0b001, opcode, 0);
            assert_eq!(support(0b011, opcode, 0), supported);
            let answer = send(&cdb(opcode, 0));
            // Byte 1 of these has no service action to point at.
            let unknown = answer.is_some_and(|answer| {
                answer.sense == Some(Sense::illegal(asc::INVALID_COMMAND_OPERATION_CODE))
            });
            assert_eq!(unknown && opcode != REPORT_LUNS, supported.is_none(), "{opcode:02x}");
            let with_action = report(0b010, opcode, 0);
            if let Some(usage) = supported {
                assert_eq!(with_action, Err(wrong_option), "{opcode:02x}");
                found.push((opcode, None, usage.len()));
            }
            continue;
        }
        for action in 0..=0xffu16 {
            let supported = support(0b010, opcode, action);
            assert_eq!(support(0b011, opcode, action), supported);
            // Five bits hold a service action, but for CDBs of variable length.
            if action < 0x20 || opcode == VARIABLE_LENGTH {
                let unknown = is_unknown(opcode, send(&cdb(opcode, action)));
                // REPLACE LOST RESERVATION is refused at its service action while nothing was lost (SPC-5 5.14.11.5).
                let nothing_was_lost = (opcode, action) == (0x5f, 0x08);
                assert_eq!(unknown && !nothing_was_lost, supported.is_none(), "{opcode:02x}/{action:02x}");
            } else {
                assert_eq!(supported, None, "{opcode:02x}/{action:02x}");
            }
            if let Some(usage) = supported {
                found.push((opcode, Some(action), usage.len()));
            }
        }
    }
    assert_eq!(found, listed);
    assert!(found.len() > 70);
}

/// A bit that is reported as evaluated is: set, it is taken or refused for its value. A bit that is not reported is refused where it
/// stands, or ignored as obsolete. So no initiator is told of an option that is ignored.
#[test]
fn usage_data_names_the_bits_that_are_evaluated() {
    let all = report(0, 0, 0).unwrap();
    for descriptor in all[4..].chunks(20) {
        let (opcode, action) = (descriptor[0], u16::from_be_bytes([descriptor[2], descriptor[3]]));
        let usage = support(0b011, opcode, action).unwrap();
        let plain = cdb(opcode, action);
        let action_at: &[usize] = match (opcode, descriptor[5] & 1) {
            (VARIABLE_LENGTH, _) => &[8, 9],
            (_, 1) => &[1],
            _ => &[],
        };
        for (at, evaluated) in usage.iter().enumerate().skip(1) {
            for bit in 0..8u8 {
                let names_the_command = action_at.contains(&at) && (opcode == VARIABLE_LENGTH || bit < 5);
                if evaluated & (1 << bit) != 0 || names_the_command || opcode == REPORT_LUNS {
                    continue;
                }
                let mut changed = plain.clone();
                changed[at] |= 1 << bit;
                let (before, after) = (send(&plain), send(&changed));
                if before == after {
                    continue;
                }
                let sense = after.and_then(|completion| completion.sense);
                let pointed = match sense.map(|sense| sense.specific) {
                    Some(SenseSpecific::FieldPointer { in_cdb: true, byte, .. }) => usize::from(byte),
                    other => panic!("{opcode:02x}/{action:02x}: byte {at} bit {bit} is evaluated: {other:?}"),
                };
                // A field of several bytes is pointed at where it begins.
                assert!(
                    (at.saturating_sub(7)..=at).contains(&pointed),
                    "{opcode:02x}/{action:02x}: {at} {bit}"
                );
            }
        }
    }
}
