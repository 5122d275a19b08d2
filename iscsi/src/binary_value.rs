//! Binary values in texts: `0x` and hexadecimal digits, or `0b` and base64 (RFC 7143 6.1).
//!
//! Invariant: a value longer than its bound is refused before anything is decoded, so no peer makes us write past or
//! allocate beyond it.

use alloc::vec::Vec;

/// Decodes a value of `len_min` to `len_max` bytes. Strict: whole bytes, and base64 with its padding and without stray bits.
#[must_use]
pub(crate) fn decode(value: &str, len_min: usize, len_max: usize) -> Option<Vec<u8>> {
    let bytes = value.as_bytes();
    let decoded = match bytes {
        [b'0', b'x' | b'X', digits @ ..] if digits.len() <= len_max.checked_mul(2)? => hexadecimal(digits)?,
        [b'0', b'b' | b'B', digits @ ..] if digits.len() <= len_max.div_ceil(3).checked_mul(4)? => {
            base64(digits)?
        }
        _ => return None,
    };
    (len_min..=len_max).contains(&decoded.len()).then_some(decoded)
}

/// Encodes as `0x...`, which every initiator understands.
pub(crate) fn encode(bytes: &[u8], out: &mut alloc::string::String) {
    out.push_str("0x");
    for nibble in bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]) {
        out.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
    }
}

fn hexadecimal(digits: &[u8]) -> Option<Vec<u8>> {
    let nibble = |digit: u8| char::from(digit).to_digit(16);
    digits
        .chunks(2)
        .map(|pair| match pair {
            &[high, low] => Some((nibble(high)? << 4 | nibble(low)?) as u8),
            _ => None,
        })
        .collect()
}

fn base64(digits: &[u8]) -> Option<Vec<u8>> {
    if !digits.len().is_multiple_of(4) {
        return None;
    }
    let padding = digits.iter().rev().take_while(|&&digit| digit == b'=').count();
    if padding > 2 {
        return None;
    }
    let (mut bits, mut held) = (0u32, 0u32);
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3);
    for &digit in digits.get(..digits.len() - padding)? {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    (bits == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;
    use alloc::string::String;

    #[test]
    fn both_encodings_are_read() {
        assert_eq!(decode("0x00fFa5", 0, 3).unwrap(), [0, 255, 0xa5]);
        assert_eq!(decode("0bAP+l", 0, 3).unwrap(), [0, 255, 0xa5]);
        assert_eq!(decode("0BZg==", 0, 3).unwrap(), b"f");
        assert_eq!(decode("0bZm8=", 0, 3).unwrap(), b"fo");
        assert_eq!(decode("0bZm9vYg==", 0, 4).unwrap(), b"foob");
    }

    #[test]
    fn sloppy_or_long_values_are_refused() {
        let long = format!("0x{}", "00".repeat(17));
        for bad in [
            "",
            "0",
            "0x0",
            "0xg0",
            "00ff",
            "0bZg",
            "0bZg=",
            "0bZh==",
            "0b====",
            "0bZ===",
            "0bZg==Zg==",
            "0x 0",
            &long,
        ] {
            assert_eq!(decode(bad, 0, 16), None, "{bad}");
        }
        assert_eq!(decode("0x00", 2, 16), None);
        assert_eq!(decode("0bAAAAAAAAAAAAAAAAAAAAAAA=", 0, 16), None);
    }

    #[test]
    fn encoding_is_read_back() {
        let mut text = String::new();
        encode(&[0, 1, 0xfe, 0x7f], &mut text);
        assert_eq!(text, "0x0001fe7f");
        assert_eq!(decode(&text, 4, 4).unwrap(), [0, 1, 0xfe, 0x7f]);
    }
}
