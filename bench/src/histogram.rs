//! Latencies in logarithmic steps with 64 parts each: percentiles within 1.6 %, no allocation per sample.

const PARTS: usize = 64;
const STEPS: usize = 40;

/// Counts by duration in nanoseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { counts: vec![0; PARTS * STEPS], total: 0 }
    }
}

fn slot(ns: u64) -> usize {
    let step = ns.max(PARTS as u64).ilog2() as usize - PARTS.ilog2() as usize;
    let part = (ns >> step) as usize;
    // Below the first step `part` is the value itself; above, it lies in PARTS..2*PARTS.
    (step * PARTS + part).min(PARTS * STEPS - 1)
}

fn value(slot: usize) -> u64 {
    let step = (slot / PARTS).saturating_sub(1);
    ((slot - step * PARTS) as u64) << step
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, ns: u64) {
        if let Some(count) = self.counts.get_mut(slot(ns)) {
            *count += 1;
            self.total += 1;
        }
    }

    /// How many.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The least duration in nanoseconds that `part` (0 to 1) of all do not exceed; 0 without any.
    pub fn percentile(&self, part: f64) -> u64 {
        let wanted = (self.total as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (slot, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return value(slot);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_lies_within_a_sixty_fourth_of_what_was_counted() {
        for ns in (0..2000).chain((2000..50_000_000).step_by(997)) {
            let found = value(slot(ns));
            assert!(found <= ns && ns - found <= ns / 64, "{ns} became {found}");
        }
    }

    #[test]
    fn percentiles_of_a_thousand() {
        let mut histogram = Histogram::default();
        (1..=1000).for_each(|n| histogram.add(n * 1000));
        for (part, exact) in [(0.5, 500_000.0), (0.99, 990_000.0), (0.999, 999_000.0)] {
            let found = histogram.percentile(part) as f64;
            assert!((found - exact).abs() / exact < 0.02, "{part}: {found}");
        }
        assert_eq!(Histogram::default().percentile(0.5), 0);
    }
}
