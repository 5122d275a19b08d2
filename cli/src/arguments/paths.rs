//! The grammar of reservations, sessions and Unit Attentions.

use std::str::FromStr;

use clap::{ArgGroup, Args, Subcommand};

#[derive(Subcommand)]
pub(crate) enum Reservation {
    /// Show registrants, holder, type and generation of a volume, and what is so on every path.
    Show {
        /// The volume.
        volume: String,
    },
    /// Would a command of a host conflict? On which path, because of whom, since when.
    Explain {
        /// The volume.
        volume: String,
        /// The host.
        #[arg(long)]
        host: String,
        /// "read", "write", or an operation code ("0x2a").
        #[arg(long)]
        opcode: Opcode,
        /// SERVICE ACTION, for commands that have one.
        #[arg(long, value_parser = parse_byte)]
        service_action: Option<u8>,
    },
    /// Take away a registration whose initiator port does not come back, or all of them with the reservation.
    #[command(group(ArgGroup::new("which").required(true).args(["initiator", "all"])))]
    Clear {
        /// The volume.
        volume: String,
        /// Initiator port as `reservation show` prints it ("iqn...,i,0x...").
        #[arg(long, requires = "rtpi")]
        initiator: Option<String>,
        /// Its target port (RTPI).
        #[arg(long, requires = "initiator", value_parser = clap::value_parser!(u16).range(1..))]
        rtpi: Option<u16>,
        /// All registrations, and the reservation.
        #[arg(long)]
        all: bool,
    },
}

/// OPERATION CODE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opcode(pub(crate) u8);

impl FromStr for Opcode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "read" => Ok(Opcode(0x88)),
            "write" => Ok(Opcode(0x8a)),
            "unmap" => Ok(Opcode(0x42)),
            "test-unit-ready" => Ok(Opcode(0x00)),
            other => parse_byte(other)
                .map(Opcode)
                .map_err(|_| "read, write, unmap, test-unit-ready, or a number 0 to 255 (0x2a)".to_owned()),
        }
    }
}

fn parse_byte(text: &str) -> Result<u8, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u8::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "a number 0 to 255, decimal or 0x...".to_owned())
}

/// Which sessions.
#[derive(Args, Default)]
pub(crate) struct SessionFilter {
    /// Only of this host.
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Only at this node.
    #[arg(long)]
    pub(crate) node: Option<String>,
    /// Only those that see this volume.
    #[arg(long)]
    pub(crate) volume: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum Session {
    /// List the sessions; the data nodes are asked now.
    List(SessionFilter),
    /// Show the sessions of an initiator with their negotiated keys and LUNs.
    Show {
        /// Its name, or its initiator port ("iqn...,i,0x...").
        initiator: String,
        /// Only through this target port (RTPI).
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        rtpi: Option<u16>,
    },
    /// End one. Its initiator may log in again.
    End {
        /// Initiator port as `session list` prints it ("iqn...,i,0x...").
        initiator: String,
        /// Its target port (RTPI).
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        rtpi: u16,
    },
}

#[derive(Subcommand)]
pub(crate) enum UnitAttention {
    /// List what is pending, by session and LUN; the data nodes are asked now.
    List(SessionFilter),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operation_codes_have_names_and_numbers() {
        for (text, code) in [("write", 0x8a), ("READ", 0x88), ("0x2a", 0x2a), ("42", 42), ("0x2A", 0x2a)] {
            assert_eq!(text.parse(), Ok(Opcode(code)), "{text}");
        }
        for text in ["", "wrote", "256", "0x100", "-1"] {
            assert!(text.parse::<Opcode>().is_err(), "{text}");
        }
    }
}
