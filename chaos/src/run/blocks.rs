//! Blocks that tell which write they hold, and whether they are whole.

/// Bytes of a block.
pub const BLOCK_LEN: usize = 512;

/// What a block holds that was written with `value`: every word depends on the value and on its place. Value 0 is a block of zeroes.
pub fn filled(value: u64) -> Vec<u8> {
    (0..BLOCK_LEN as u64 / 8).flat_map(|place| word(value, place).to_be_bytes()).collect()
}

fn word(value: u64, place: u64) -> u64 {
    if place == 0 || value == 0 { value } else { (value ^ place << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15) }
}

/// The value of a block; `None` when it is not what any single write leaves.
pub fn value_of(block: &[u8]) -> Option<u64> {
    let value = u64::from_be_bytes(block.get(..8)?.try_into().ok()?);
    (block == filled(value)).then_some(value)
}

/// Hex for the initiator.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 0xf)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_tells_its_value_and_a_torn_one_none() {
        let mut block = filled(77);
        assert_eq!(value_of(&block), Some(77));
        assert_eq!(value_of(&filled(0)), Some(0));
        assert_eq!(filled(0), vec![0; BLOCK_LEN]);
        block[256..].copy_from_slice(&filled(78)[256..]);
        assert_eq!(value_of(&block), None);
        assert_eq!(hex(&[0x0f, 0xa0]), "0fa0");
    }
}
