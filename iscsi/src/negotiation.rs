//! Operational keys (RFC 7143 section 13): one table with each key's kind, range, default and what both sides' wishes
//! result in.
//!
//! Invariants: a result is within the key's range and within what the portal allows; a key is agreed once; what was
//! not offered has its default.

use crate::config::{DigestPolicy, PortalOptions};
use crate::limits;
use alloc::string::{String, ToString};

/// What a session was agreed to work with. Lengths in bytes, times in seconds (RFC 7143 section 13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionParameters {
    /// CRC32C over headers.
    pub header_digest: bool,
    /// CRC32C over data segments.
    pub data_digest: bool,
    /// MaxRecvDataSegmentLength of the initiator: the longest data segment that we send.
    pub send_data_segment_length: u32,
    /// MaxRecvDataSegmentLength of ours.
    pub recv_data_segment_length: u32,
    /// MaxBurstLength
    pub max_burst_length: u32,
    /// FirstBurstLength, never above `max_burst_length`.
    pub first_burst_length: u32,
    /// InitialR2T: no unsolicited Data-Out PDUs.
    pub initial_r2t: bool,
    /// ImmediateData
    pub immediate_data: bool,
    /// MaxOutstandingR2T
    pub max_outstanding_r2t: u32,
    /// DefaultTime2Wait
    pub default_time_2_wait: u16,
    /// DefaultTime2Retain
    pub default_time_2_retain: u16,
    /// MaxConnections
    pub max_connections: u32,
    /// iSCSIProtocolLevel
    pub protocol_level: u8,
}

/// An operational key that has a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
enum Key {
    HeaderDigest,
    DataDigest,
    MaxConnections,
    InitialR2T,
    ImmediateData,
    MaxRecvDataSegmentLength,
    MaxBurstLength,
    FirstBurstLength,
    DefaultTime2Wait,
    DefaultTime2Retain,
    MaxOutstandingR2T,
    DataPduInOrder,
    DataSequenceInOrder,
    ErrorRecoveryLevel,
    TaskReporting,
    ProtocolLevel,
    RdmaExtensions,
}

const KEYS: usize = 17;

/// How two wishes become one.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// The lesser number.
    Minimum { low: u32, high: u32 },
    /// The greater number.
    Maximum { low: u32, high: u32 },
    /// Yes if both say so.
    And,
    /// Yes if either says so.
    Or,
    /// The first of the list that our policy allows; as a number, 1 is CRC32C.
    Digest,
    /// The first of the list; only the basic reporting is offered, and it needs no state.
    BasicTaskReporting,
    /// Told, not negotiated.
    Declared { low: u32, high: u32 },
}

const LENGTH: Rule = Rule::Minimum { low: 512, high: 0x00ff_ffff };

/// Key, name, rule, default (booleans and digests: 0 or 1).
#[rustfmt::skip]
const TABLE: [(Key, &str, Rule, u32); KEYS] = [
    (Key::HeaderDigest,             "HeaderDigest",             Rule::Digest,                                    0),
    (Key::DataDigest,               "DataDigest",               Rule::Digest,                                    0),
    (Key::MaxConnections,           "MaxConnections",           Rule::Minimum { low: 1, high: 65535 },           1),
    (Key::InitialR2T,               "InitialR2T",               Rule::Or,                                        1),
    (Key::ImmediateData,            "ImmediateData",            Rule::And,                                       1),
    (Key::MaxRecvDataSegmentLength, MAX_RECV_DATA_SEGMENT_LENGTH, Rule::Declared { low: 512, high: 0x00ff_ffff }, 8192),
    (Key::MaxBurstLength,           "MaxBurstLength",           LENGTH,                                     262_144),
    (Key::FirstBurstLength,         "FirstBurstLength",         LENGTH,                                      65_536),
    (Key::DefaultTime2Wait,         "DefaultTime2Wait",         Rule::Maximum { low: 0, high: 3600 },            2),
    (Key::DefaultTime2Retain,       "DefaultTime2Retain",       Rule::Minimum { low: 0, high: 3600 },           20),
    (Key::MaxOutstandingR2T,        "MaxOutstandingR2T",        Rule::Minimum { low: 1, high: 65535 },           1),
    (Key::DataPduInOrder,           "DataPDUInOrder",           Rule::Or,                                        1),
    (Key::DataSequenceInOrder,      "DataSequenceInOrder",      Rule::Or,                                        1),
    (Key::ErrorRecoveryLevel,       "ErrorRecoveryLevel",       Rule::Minimum { low: 0, high: 2 },               0),
    (Key::TaskReporting,            "TaskReporting",            Rule::BasicTaskReporting,                        0),
    (Key::ProtocolLevel,            "iSCSIProtocolLevel",       Rule::Minimum { low: 0, high: 31 },              1),
    (Key::RdmaExtensions,           "RDMAExtensions",           Rule::And,                                       0),
];

/// Keys with one fixed answer: markers are obsolete and must not be "NotUnderstood" (RFC 7143 13.25); the rest belongs to
/// the target or to the full feature phase.
const FIXED: [(&str, &str); 8] = [
    ("IFMarker", "No"),
    ("OFMarker", "No"),
    ("IFMarkInt", "Irrelevant"),
    ("OFMarkInt", "Irrelevant"),
    ("SendTargets", "Reject"),
    ("TargetAddress", "Reject"),
    ("TargetPortalGroupTag", "Reject"),
    ("TargetAlias", "Reject"),
];

/// The one key of the table that may be declared again in the full feature phase.
pub(crate) const MAX_RECV_DATA_SEGMENT_LENGTH: &str = "MaxRecvDataSegmentLength";

/// A data segment length within its range.
pub(crate) fn segment_length(value: &str) -> Option<u32> {
    let length = u32::try_from(crate::text::number(value)?).ok()?;
    (limits::SEGMENT_LEN_MIN..=limits::SEGMENT_LEN_MAX).contains(&length).then_some(length)
}

/// Whether a key means something to us, in whatever phase.
pub(crate) fn is_known(name: &str) -> bool {
    FIXED.iter().any(|(key, _)| *key == name) || TABLE.iter().any(|(_, key, ..)| *key == name)
}

/// What to say to an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// `key=value`
    Value(String),
    /// Nothing: it was a declaration.
    Nothing,
    /// The key was agreed before: an error of the initiator.
    Repeated,
}

impl Answer {
    fn fixed(value: &str) -> Self {
        Self::Value(value.to_string())
    }
}

/// Why a finished negotiation cannot be lived with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unacceptable {
    /// A digest that the portal requires was not agreed.
    DigestRequired,
    /// FirstBurstLength was agreed before a lesser MaxBurstLength.
    FirstBurstAboveMaxBurst,
}

/// One connection's negotiation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Negotiation {
    agreed: [Option<u32>; KEYS],
    /// The smallest MaxBurstLength that the text at hand offers, so that FirstBurstLength may stand before it.
    max_burst_offered: Option<u32>,
    /// The connection joins a session, whose keys are agreed already.
    joining: bool,
    /// It is of a discovery session.
    discovery: bool,
}

/// Keys of a connection; all others are its session's, and negotiated on the leading connection only (RFC 7143 13).
const OF_CONNECTION: [Key; 3] = [Key::HeaderDigest, Key::DataDigest, Key::MaxRecvDataSegmentLength];

/// Keys of which RFC 7143 section 13 and RFC 7145 6.3 say "Irrelevant when: SessionType=Discovery".
const IRRELEVANT_IN_DISCOVERY: [Key; 11] = [
    Key::MaxConnections,
    Key::InitialR2T,
    Key::ImmediateData,
    Key::MaxBurstLength,
    Key::FirstBurstLength,
    Key::MaxOutstandingR2T,
    Key::DataPduInOrder,
    Key::DataSequenceInOrder,
    Key::TaskReporting,
    Key::ProtocolLevel,
    Key::RdmaExtensions,
];

impl Negotiation {
    /// From here on keys that mean nothing in a discovery session are answered so.
    pub(crate) fn discover(&mut self) {
        self.discovery = true;
    }

    /// From here on only keys of the connection can be agreed.
    pub(crate) fn join(&mut self) {
        self.joining = true;
    }

    /// Looks ahead: tells what MaxBurstLength the same text offers.
    pub(crate) fn announce_max_burst(&mut self, value: &str) {
        self.max_burst_offered = crate::text::number(value).and_then(|n| u32::try_from(n).ok());
    }

    /// The answer to an offered key.
    pub(crate) fn offer(&mut self, options: &PortalOptions, name: &str, value: &str) -> Answer {
        if let Some((_, answer)) = FIXED.iter().find(|(key, _)| *key == name) {
            return Answer::fixed(answer);
        }
        let Some(&(key, _, rule, default)) = TABLE.iter().find(|(_, key, ..)| *key == name) else {
            return Answer::fixed("NotUnderstood");
        };
        if self.joining && !OF_CONNECTION.contains(&key) {
            return Answer::fixed("Reject");
        }
        let declared = matches!(rule, Rule::Declared { .. });
        if self.get(key).is_some() && !declared {
            return Answer::Repeated;
        }
        if self.discovery && IRRELEVANT_IN_DISCOVERY.contains(&key) {
            // Whatever was offered: that ends its negotiation (RFC 7143 6.2), and nothing depends on it.
            self.agree(key, default);
            return Answer::fixed("Irrelevant");
        }
        let Some((result, said)) = self.result(options, key, rule, value) else {
            return Answer::fixed("Reject");
        };
        self.agree(key, result);
        if declared { Answer::Nothing } else { Answer::Value(said) }
    }

    fn agree(&mut self, key: Key, result: u32) {
        if let Some(slot) = self.agreed.get_mut(key as usize) {
            *slot = Some(result);
        }
    }

    fn get(&self, key: Key) -> Option<u32> {
        self.agreed.get(key as usize).copied().flatten()
    }

    fn value(&self, key: Key) -> u32 {
        let default = TABLE.iter().find(|row| row.0 == key).map_or(0, |row| row.3);
        self.get(key).unwrap_or(default)
    }

    /// Our own wish for a key; digests have a policy instead.
    fn wish(&self, options: &PortalOptions, key: Key) -> u32 {
        match key {
            Key::MaxBurstLength => options.max_burst_length,
            Key::FirstBurstLength => {
                let max_burst = self.get(Key::MaxBurstLength).or(self.max_burst_offered);
                options.first_burst_length.min(max_burst.unwrap_or(u32::MAX))
            }
            Key::MaxRecvDataSegmentLength => options.max_recv_data_segment_length,
            Key::InitialR2T => options.initial_r2t.into(),
            Key::ImmediateData => options.immediate_data.into(),
            Key::MaxOutstandingR2T => options.max_outstanding_r2t,
            Key::DefaultTime2Wait => 2,
            Key::MaxConnections => options.max_connections,
            Key::DataPduInOrder | Key::DataSequenceInOrder => 1,
            Key::ProtocolLevel => limits::PROTOCOL_LEVEL_SAM_5.into(),
            // Level 0 keeps no tasks after a connection is gone, so there is nothing to retain.
            Key::DefaultTime2Retain | Key::ErrorRecoveryLevel | Key::TaskReporting | Key::RdmaExtensions => 0,
            Key::HeaderDigest | Key::DataDigest => 0,
        }
    }

    fn result(&self, options: &PortalOptions, key: Key, rule: Rule, value: &str) -> Option<(u32, String)> {
        let wish = self.wish(options, key);
        let numeric = |low: u32, high: u32| {
            let offered = u32::try_from(crate::text::number(value)?).ok()?;
            (low..=high).contains(&offered).then_some(offered)
        };
        let boolean = || match value {
            "Yes" => Some(1),
            "No" => Some(0),
            _ => None,
        };
        let yes_no = |result: u32| (result, String::from(if result == 1 { "Yes" } else { "No" }));
        match rule {
            Rule::Minimum { low, high } => {
                numeric(low, high).map(|n| n.min(wish)).map(|n| (n, n.to_string()))
            }
            Rule::Maximum { low, high } => {
                numeric(low, high).map(|n| n.max(wish)).map(|n| (n, n.to_string()))
            }
            Rule::Declared { low, high } => numeric(low, high).map(|n| (n, String::new())),
            Rule::And => boolean().map(|b: u32| yes_no(b & wish)),
            Rule::Or => boolean().map(|b: u32| yes_no(b | wish)),
            Rule::Digest => {
                let policy =
                    if key == Key::HeaderDigest { options.header_digest } else { options.data_digest };
                value.split(',').find_map(|choice| match (choice, policy) {
                    ("None", DigestPolicy::Allowed | DigestPolicy::Off) => Some((0, choice.to_string())),
                    ("CRC32C", DigestPolicy::Allowed | DigestPolicy::Required) => {
                        Some((1, choice.to_string()))
                    }
                    _ => None,
                })
            }
            Rule::BasicTaskReporting => {
                value.split(',').find(|choice| *choice == "RFC3720").map(|choice| (0, choice.to_string()))
            }
        }
    }

    /// The whole result.
    pub(crate) fn finish(&self, options: &PortalOptions) -> Result<SessionParameters, Unacceptable> {
        let yes = |key| self.value(key) == 1;
        let lacks = |policy, key| policy == DigestPolicy::Required && !yes(key);
        if lacks(options.header_digest, Key::HeaderDigest) || lacks(options.data_digest, Key::DataDigest) {
            return Err(Unacceptable::DigestRequired);
        }
        let max_burst_length = self.value(Key::MaxBurstLength);
        let first_burst_length = match self.get(Key::FirstBurstLength) {
            Some(agreed) if agreed > max_burst_length => return Err(Unacceptable::FirstBurstAboveMaxBurst),
            Some(agreed) => agreed,
            // A default above an agreed MaxBurstLength cannot be meant.
            None => self.value(Key::FirstBurstLength).min(max_burst_length),
        };
        Ok(SessionParameters {
            header_digest: yes(Key::HeaderDigest),
            data_digest: yes(Key::DataDigest),
            send_data_segment_length: self.value(Key::MaxRecvDataSegmentLength),
            recv_data_segment_length: options.max_recv_data_segment_length,
            max_burst_length,
            first_burst_length,
            initial_r2t: yes(Key::InitialR2T),
            immediate_data: yes(Key::ImmediateData),
            max_outstanding_r2t: self.value(Key::MaxOutstandingR2T),
            default_time_2_wait: self.value(Key::DefaultTime2Wait) as u16,
            default_time_2_retain: self.value(Key::DefaultTime2Retain) as u16,
            max_connections: self.value(Key::MaxConnections),
            protocol_level: self.value(Key::ProtocolLevel) as u8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(offers: &[(&str, &str)]) -> (alloc::vec::Vec<Answer>, Negotiation) {
        let options = PortalOptions::default();
        let mut negotiation = Negotiation::default();
        let answers = offers.iter().map(|(key, value)| negotiation.offer(&options, key, value)).collect();
        (answers, negotiation)
    }

    #[test]
    fn the_table_is_in_the_order_of_its_keys() {
        for (at, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, at);
        }
    }

    #[test]
    fn nothing_offered_gives_the_defaults_of_the_standard() {
        let found = Negotiation::default().finish(&PortalOptions::default()).unwrap();
        assert_eq!((found.max_burst_length, found.first_burst_length), (262_144, 65_536));
        assert_eq!((found.initial_r2t, found.immediate_data), (true, true));
        assert_eq!((found.send_data_segment_length, found.max_outstanding_r2t), (8192, 1));
        assert!(!found.header_digest && !found.data_digest);
    }

    #[test]
    fn a_key_is_agreed_once() {
        let (answers, _) = offer(&[("InitialR2T", "No"), ("InitialR2T", "No")]);
        assert_eq!(answers, [Answer::fixed("No"), Answer::Repeated]);
    }

    #[test]
    fn a_required_digest_is_not_waived() {
        let options = PortalOptions { header_digest: DigestPolicy::Required, ..PortalOptions::default() };
        let mut negotiation = Negotiation::default();
        assert_eq!(negotiation.finish(&options), Err(Unacceptable::DigestRequired));
        assert_eq!(negotiation.offer(&options, "HeaderDigest", "None"), Answer::fixed("Reject"));
        assert_eq!(negotiation.offer(&options, "HeaderDigest", "None,CRC32C"), Answer::fixed("CRC32C"));
        assert!(negotiation.finish(&options).unwrap().header_digest);
    }

    #[test]
    fn first_burst_is_never_above_max_burst() {
        let (_, negotiation) = offer(&[("MaxBurstLength", "4096")]);
        assert_eq!(negotiation.finish(&PortalOptions::default()).unwrap().first_burst_length, 4096);
        let (answers, _) = offer(&[("MaxBurstLength", "4096"), ("FirstBurstLength", "65536")]);
        assert_eq!(answers, [Answer::fixed("4096"), Answer::fixed("4096")]);
        let (_, negotiation) = offer(&[("FirstBurstLength", "65536"), ("MaxBurstLength", "4096")]);
        assert_eq!(negotiation.finish(&PortalOptions::default()), Err(Unacceptable::FirstBurstAboveMaxBurst));
    }
}
