//! Epochs: the number of one configuration (owner and in-sync set) of a volume.
//!
//! Invariant: epochs are totally ordered, generation first. Only forced recovery raises the generation, because it may give
//! up writes of the generation before; every other change raises the number by one.

use core::fmt;

/// (recovery generation, number). Both only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// Counts forced recoveries.
    pub generation: u32,
    /// Counts configurations within the generation.
    pub number: u64,
}

impl Epoch {
    /// The lowest epoch; no configuration has it.
    pub const ZERO: Epoch = Epoch { generation: 0, number: 0 };
    /// The epoch of a new volume.
    pub const FIRST: Epoch = Epoch { generation: 0, number: 1 };

    /// The epoch of the next configuration; `None` when the numbers are used up.
    pub const fn next(self) -> Option<Epoch> {
        match self.number.checked_add(1) {
            Some(number) => Some(Epoch { generation: self.generation, number }),
            None => None,
        }
    }

    /// The first epoch of the next recovery generation; `None` when the generations are used up.
    pub const fn next_generation(self) -> Option<Epoch> {
        match self.generation.checked_add(1) {
            Some(generation) => Some(Epoch { generation, number: 1 }),
            None => None,
        }
    }
}

impl fmt::Display for Epoch {
    /// `generation.number`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_orders_before_number() {
        let late = Epoch { generation: 0, number: u64::MAX };
        let recovered = late.next_generation().unwrap();
        assert!(recovered > late);
        assert_eq!(late.next(), None);
        assert!(Epoch::FIRST.next().unwrap() > Epoch::FIRST && Epoch::FIRST > Epoch::ZERO);
    }
}
