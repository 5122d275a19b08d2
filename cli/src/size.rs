//! Sizes as people write them: bytes, or a number with a decimal (kB, MB ..) or binary (KiB, MiB ..) unit.

use std::{fmt, str::FromStr};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

const UNITS: [(&str, u64); 14] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("pib", 1 << 50),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    // A bare letter means the binary unit, as in qemu-img and lvcreate.
    ("k", 1 << 10),
    ("m", 1 << 20),
    ("g", 1 << 30),
    ("t", 1 << 40),
    ("b", 1),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a size: write bytes or a unit, such as 512MiB, 10GiB or 2TB");
        let lower = text.trim().to_ascii_lowercase();
        let (number, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, *factor)))
            .unwrap_or((&lower, 1));
        let number = number.trim_end();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |part: &str| part.chars().all(|c| c.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
            return Err(wrong());
        }
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let mut bytes = u128::from(whole) * u128::from(factor);
        if !fraction.is_empty() {
            let scale = 10_u128.pow(fraction.len() as u32);
            let part: u128 = fraction.parse().map_err(|_| wrong())?;
            let scaled = part * u128::from(factor);
            if !scaled.is_multiple_of(scale) {
                return Err(format!("'{text}' is not a whole number of bytes"));
            }
            bytes += scaled / scale;
        }
        u64::try_from(bytes).map(Size).map_err(|_| wrong())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, bytes) in
            [("PiB", 1_u64 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        {
            if self.0 >= bytes {
                // Exact sizes without a fraction: what was typed is what is shown.
                return if self.0.is_multiple_of(bytes) {
                    write!(f, "{}{unit}", self.0 / bytes)
                } else {
                    write!(f, "{:.1}{unit}", self.0 as f64 / bytes as f64)
                };
            }
        }
        write!(f, "{}B", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_written() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("10GiB", 10 << 30),
            ("10g", 10 << 30),
            ("1.5KiB", 1536),
            ("2TB", 2_000_000_000_000),
            ("500 MB", 500_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "G", "-1", "1.G.2", "ten", "10XB", "0.3b", "99999999999PiB", "1e3"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn shown_sizes_are_short() {
        assert_eq!(Size(10 << 30).to_string(), "10GiB");
        assert_eq!(Size(1536).to_string(), "1.5KiB");
        assert_eq!(Size(7).to_string(), "7B");
    }
}
