//! The messages of `/dev/holdfast`, as `module/hf_protocol.h` lays them out: machine byte order, one message a read or write.

use anyhow::{Context, Result, ensure};

const MAGIC: u32 = 0x434b_4648;
const VERSION: u16 = 1;
const HEADER_LEN: usize = 40;

/// Kinds of messages.
pub(crate) mod kind {
    #![allow(missing_docs)]
    pub(crate) const HELLO: u16 = 1;
    pub(crate) const INSTALL: u16 = 2;
    pub(crate) const LEASE: u16 = 3;
    pub(crate) const SERVE: u16 = 4;
    pub(crate) const ATTENTION: u16 = 5;
    pub(crate) const VERDICT: u16 = 6;
    pub(crate) const PORT: u16 = 7;
    pub(crate) const COMMAND: u16 = 64;
    pub(crate) const DRAINED: u16 = 65;
}

/// A message to the kernel.
pub(crate) fn message(kind: u16, id: u64, volume: [u8; 16], body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(HEADER_LEN + body.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(HEADER_LEN + body.len());
    out.extend(MAGIC.to_ne_bytes());
    out.extend(VERSION.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(len.to_ne_bytes());
    out.extend([0; 4]);
    out.extend(id.to_ne_bytes());
    out.extend(volume);
    out.extend(body);
    out
}

/// HFK_PORT's body.
pub(crate) fn port(fabric: &str, wwn: &str, tag: u16, relative_port: u16) -> Vec<u8> {
    let mut out = vec![0; 16 + 224];
    for (at, text) in [(0, fabric), (16, wwn)] {
        out[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    out.extend(tag.to_ne_bytes());
    out.extend(relative_port.to_ne_bytes());
    out.extend([0; 4]);
    out
}

/// HFK_ATTENTION's body. `scope`: 0 all, 1 only this nexus, 2 all but this one.
pub(crate) fn attention(event: u64, additional: u16, scope: u16, nexus: Option<(&[u8], u16)>) -> Vec<u8> {
    let (name, port) = nexus.unwrap_or((&[], 0));
    let mut out = event.to_ne_bytes().to_vec();
    out.extend(additional.to_ne_bytes());
    out.extend(scope.to_ne_bytes());
    out.extend(port.to_ne_bytes());
    out.extend((name.len() as u16).to_ne_bytes());
    out.extend(name);
    out
}

/// HFK_VERDICT's body.
pub(crate) fn verdict(status: u8, sense: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = vec![status, sense.len() as u8, 0, 0];
    out.extend((data.len() as u32).to_ne_bytes());
    let mut padded = [0; 64];
    padded[..sense.len()].copy_from_slice(sense);
    out.extend(padded);
    out.extend(data);
    out
}

/// A message from the kernel.
#[derive(Debug)]
pub(crate) struct FromKernel<'a> {
    /// One of [`kind`].
    pub(crate) kind: u16,
    /// Names a command.
    pub(crate) id: u64,
    /// The unit's.
    pub(crate) volume: [u8; 16],
    /// The rest.
    pub(crate) body: &'a [u8],
}

/// Splits a message from the kernel.
pub(crate) fn parse(bytes: &[u8]) -> Result<FromKernel<'_>> {
    let (header, body) = bytes.split_at_checked(HEADER_LEN).context("shorter than its header")?;
    let u16_at = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    ensure!(header[..4] == MAGIC.to_ne_bytes() && u16_at(4) == VERSION, "not a message of this version");
    ensure!(header[8..12] == (bytes.len() as u32).to_ne_bytes(), "of another length than it says");
    Ok(FromKernel {
        kind: u16_at(6),
        id: u64::from_ne_bytes(header[16..24].try_into()?),
        volume: header[24..40].try_into()?,
        body,
    })
}

/// HFK_COMMAND's body.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    /// The CDB.
    pub(crate) cdb: &'a [u8],
    /// Relative target port.
    pub(crate) relative_port: u16,
    /// TransportID of the initiator port.
    pub(crate) transport_id: &'a [u8],
    /// Data-Out.
    pub(crate) data_out: &'a [u8],
}

/// Splits the body of HFK_COMMAND.
pub(crate) fn command(body: &[u8]) -> Result<Command<'_>> {
    let (fixed, rest) = body.split_at_checked(48).context("command shorter than its fixed part")?;
    let u16_at = |at: usize| usize::from(u16::from_ne_bytes([fixed[at], fixed[at + 1]]));
    let (transport_id, data_out) = rest.split_at_checked(u16_at(36)).context("TransportID cut off")?;
    ensure!(fixed[44..48] == (data_out.len() as u32).to_ne_bytes(), "Data-Out of another length");
    Ok(Command {
        cdb: fixed.get(..u16_at(32)).context("CDB too long")?,
        relative_port: u16_at(34) as u16,
        transport_id,
        data_out,
    })
}
