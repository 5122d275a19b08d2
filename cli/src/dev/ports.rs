//! Finds a range of free ports.

use std::net::TcpListener;

use anyhow::bail;

use super::layout::ADDRESS;

/// Below the range from which systems draw ports for outgoing connections, so that none of those can take one of ours.
const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;
const STEP: u16 = 50;

/// The first port of `count` free ones in a row. Two searches at one moment begin at different places.
pub(super) fn free_range(count: u16) -> anyhow::Result<u16> {
    let ranges = (LAST - FIRST) / STEP;
    let start = (std::process::id() % u32::from(ranges)) as u16;
    for at in 0..ranges {
        let base = FIRST + (start + at) % ranges * STEP;
        let free = |port| TcpListener::bind((ADDRESS, port)).is_ok();
        if (base..base + count).all(free) {
            return Ok(base);
        }
    }
    bail!("no {count} free ports in a row between {FIRST} and {LAST} on {ADDRESS}; choose with --port-base")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_stepped_over() -> anyhow::Result<()> {
        let base = free_range(3)?;
        let taken = TcpListener::bind((ADDRESS, base + 1))?;
        assert_ne!(free_range(3)?, base);
        drop(taken);
        Ok(())
    }
}
