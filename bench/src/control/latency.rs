//! Latencies of one kind of operation.

use std::time::{Duration, Instant};

use serde::Serialize;

/// What was measured of one kind of operation.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Latency {
    /// Operations that were done.
    pub count: usize,
    /// Half of them took no longer, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 took no longer, in microseconds.
    pub p99_us: f64,
    /// The longest, in microseconds.
    pub max_us: f64,
    /// Done in a second, all callers together.
    pub per_second: f64,
}

/// Gathers them.
#[derive(Debug, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// One more.
    pub fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    /// Those of all callers.
    pub fn of(all: Vec<Samples>) -> Samples {
        Samples(all.into_iter().flat_map(|samples| samples.0).collect())
    }

    /// What they come to, all done within `elapsed`.
    pub fn summary(mut self, elapsed: Duration) -> Latency {
        self.0.sort_unstable();
        let us = |took: &Duration| took.as_secs_f64() * 1e6;
        let at = |part: usize| self.0.get(self.0.len().saturating_sub(1) * part / 100).map_or(0.0, us);
        Latency {
            count: self.0.len(),
            p50_us: at(50),
            p99_us: at(99),
            max_us: self.0.last().map_or(0.0, us),
            per_second: self.0.len() as f64 / elapsed.as_secs_f64().max(1e-9),
        }
    }
}

/// Times one operation that succeeds.
pub async fn timed<T, E>(
    samples: &mut Samples,
    operation: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let begun = Instant::now();
    let done = operation.await?;
    samples.push(begun.elapsed());
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_samples() {
        let mut samples = Samples::default();
        (1..=101).rev().for_each(|ms| samples.push(Duration::from_millis(ms)));
        let seen = samples.summary(Duration::from_secs(1));
        assert_eq!((seen.count, seen.p50_us, seen.p99_us, seen.max_us), (101, 51e3, 100e3, 101e3));
        assert!((seen.per_second - 101.0).abs() < 1e-6);
        assert_eq!(Samples::default().summary(Duration::ZERO).count, 0);
    }
}
