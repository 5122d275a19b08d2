//! One entry of the replicated log, as bytes and as a checked message.
//!
//! Invariant: what [`Command::decode`] accepts has a body; whether that body may be carried out is decided inside
//! [`StateMachine::apply`](super::StateMachine::apply) and nowhere else.

use holdfast_proto::state::{Caller, LogCommand, log_command};
use prost::Message;

pub use log_command::Command as Body;

use super::limits;

/// A command of the replicated log.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// Wall clock of the proposer, milliseconds since 1970 (UTC). Only shown in events; decides nothing.
    pub time_unix_ms: u64,
    /// Who asks, from the verified certificate. For the audit and for events; decides nothing.
    pub caller: Caller,
    /// What is asked for.
    pub body: Body,
}

/// Bytes that are no command of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not the record that it should be: corruption.
    #[error("the log entry is no command record: {0}")]
    Malformed(String),
    /// A later version wrote a command that this one does not know.
    #[error("the log entry holds a command of a later version")]
    Unknown,
}

impl Command {
    /// A command as of `time_unix_ms`, of nobody in particular.
    pub fn new(time_unix_ms: u64, body: Body) -> Command {
        Command { time_unix_ms, caller: Caller::default(), body }
    }

    /// The same, asked for by `caller`.
    pub fn by(self, caller: Caller) -> Command {
        Command { caller, ..self }
    }

    fn record(&self) -> LogCommand {
        LogCommand {
            time_unix_ms: self.time_unix_ms,
            caller: Some(self.caller.clone()),
            command: Some(self.body.clone()),
        }
    }

    /// The durable form.
    pub fn encode(&self) -> Vec<u8> {
        self.record().encode_to_vec()
    }

    /// Reads the durable form.
    pub fn decode(bytes: &[u8]) -> Result<Command, DecodeError> {
        let record = LogCommand::decode(bytes).map_err(|e| DecodeError::Malformed(e.to_string()))?;
        let body = record.command.ok_or(DecodeError::Unknown)?;
        Ok(Command { time_unix_ms: record.time_unix_ms, caller: record.caller.unwrap_or_default(), body })
    }

    /// True if the entry is small enough to be proposed.
    pub fn fits(&self) -> bool {
        self.record().encoded_len() <= limits::COMMAND_BYTES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_proto::state::NodeLost;

    #[test]
    fn a_command_reads_back() {
        let command = Command::new(7, Body::NodeLost(NodeLost { number: 1, incarnation: 2, lease_term: 3 }));
        let command = command.by(Caller { role: "admin".to_owned(), name: "alice".to_owned() });
        assert_eq!(Command::decode(&command.encode()), Ok(command));
    }

    #[test]
    fn bytes_without_a_body_are_of_a_later_version_and_garbage_is_corruption() {
        assert_eq!(Command::decode(&[]), Err(DecodeError::Unknown));
        assert!(matches!(Command::decode(&[0xff; 9]), Err(DecodeError::Malformed(_))));
    }
}
