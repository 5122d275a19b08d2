//! Login Request and Login Response (RFC 7143 11.12, 11.13).

use super::{Bhs, CONTINUE, CommandNumbers, InvalidField, Numbers, opcode};

const TRANSIT: u8 = 0x80;

/// A stage of a connection's life (CSG and NSG).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// 0: SecurityNegotiation
    Security,
    /// 1: LoginOperationalNegotiation
    Operational,
    /// 3: FullFeaturePhase
    FullFeature,
}

impl Stage {
    fn decode(code: u8) -> Option<Self> {
        match code & 3 {
            0 => Some(Self::Security),
            1 => Some(Self::Operational),
            3 => Some(Self::FullFeature),
            _ => None,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Security => 0,
            Self::Operational => 1,
            Self::FullFeature => 3,
        }
    }
}

fn flags(current: Stage, next: Option<Stage>, more: bool) -> u8 {
    let transit = next.map_or(0, |next| TRANSIT | next.code());
    transit | current.code() << 2 | if more { CONTINUE } else { 0 }
}

fn stages(bhs: &Bhs) -> Result<(Stage, Option<Stage>), InvalidField> {
    let current = Stage::decode(bhs.flags() >> 2).ok_or(InvalidField("CSG"))?;
    if bhs.flags() & TRANSIT == 0 {
        return Ok((current, None));
    }
    let next = Stage::decode(bhs.flags()).ok_or(InvalidField("NSG"))?;
    Ok((current, Some(next)))
}

fn isid(bhs: &Bhs) -> [u8; 6] {
    let b = &bhs.0;
    [b[8], b[9], b[10], b[11], b[12], b[13]]
}

fn set_isid(bhs: &mut Bhs, isid: [u8; 6]) {
    let [a, b, c, d, e, f] = isid;
    bhs.set_lun([a, b, c, d, e, f, 0, 0]);
}

/// Login Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRequestPdu {
    /// The C bit: the text goes on in the next PDU.
    pub more: bool,
    /// CSG
    pub current_stage: Stage,
    /// NSG, present exactly with the T bit.
    pub next_stage: Option<Stage>,
    /// Highest version spoken.
    pub version_max: u8,
    /// Lowest version spoken.
    pub version_min: u8,
    /// The initiator's part of the session id.
    pub isid: [u8; 6],
    /// The target's part, 0 for a new session.
    pub tsih: u16,
    /// Tag of the whole login.
    pub initiator_task_tag: u32,
    /// Connection id.
    pub cid: u16,
    /// Numbering; always immediate.
    pub numbers: CommandNumbers,
}

impl LoginRequestPdu {
    /// From a header.
    ///
    /// # Errors
    /// A reserved stage.
    pub fn decode(bhs: &Bhs) -> Result<Self, InvalidField> {
        let (current_stage, next_stage) = stages(bhs)?;
        Ok(Self {
            more: bhs.flags() & CONTINUE != 0,
            current_stage,
            next_stage,
            version_max: bhs.0[2],
            version_min: bhs.0[3],
            isid: isid(bhs),
            tsih: bhs.half::<14>(),
            initiator_task_tag: bhs.word::<16>(),
            cid: bhs.half::<20>(),
            numbers: CommandNumbers::of(bhs),
        })
    }

    /// As a header.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let flags = flags(self.current_stage, self.next_stage, self.more);
        let mut bhs = Bhs::request(opcode::LOGIN_REQUEST, true, flags);
        bhs.0[2] = self.version_max;
        bhs.0[3] = self.version_min;
        set_isid(&mut bhs, self.isid);
        bhs.set_half::<14>(self.tsih);
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_half::<20>(self.cid);
        self.numbers.write(&mut bhs);
        bhs
    }
}

/// Login Response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginResponsePdu {
    /// CSG
    pub current_stage: Stage,
    /// NSG, present exactly with the T bit.
    pub next_stage: Option<Stage>,
    /// As in the request.
    pub isid: [u8; 6],
    /// The target's part of the session id, set in the last response.
    pub tsih: u16,
    /// Tag of the whole login.
    pub initiator_task_tag: u32,
    /// Sequence numbers.
    pub numbers: Numbers,
    /// Status class and detail; 0 for success.
    pub status: u16,
}

impl LoginResponsePdu {
    /// As a header; versions are 0, the only ones there are.
    #[must_use]
    pub fn encode(&self) -> Bhs {
        let mut bhs = Bhs::new(opcode::LOGIN_RESPONSE, flags(self.current_stage, self.next_stage, false));
        set_isid(&mut bhs, self.isid);
        bhs.set_half::<14>(self.tsih);
        bhs.set_word::<16>(self.initiator_task_tag);
        bhs.set_numbers(self.numbers);
        bhs.set_half::<36>(self.status);
        bhs
    }

    /// From a header.
    ///
    /// # Errors
    /// A reserved stage.
    pub fn decode(bhs: &Bhs) -> Result<Self, InvalidField> {
        let (current_stage, next_stage) = stages(bhs)?;
        Ok(Self {
            current_stage,
            next_stage,
            isid: isid(bhs),
            tsih: bhs.half::<14>(),
            initiator_task_tag: bhs.word::<16>(),
            numbers: bhs.numbers(),
            status: bhs.half::<36>(),
        })
    }
}
