//! A token bucket: how many bytes may go now, and how long until some more may.
//!
//! It is pure: the time is given by the caller as a duration since any fixed moment, so tests need no clock. It promises that the bytes granted in
//! any window are at most `rate * window + burst`, exactly: levels are kept in bytes times nanoseconds, so nothing is lost or won by rounding.

use std::time::Duration;

const NANOS: u128 = 1_000_000_000;

/// A bucket of one direction.
#[derive(Debug, Clone)]
pub struct Bucket {
    rate: u64,
    burst: u64,
    /// Bytes times nanoseconds, at most `burst * NANOS`.
    level: u128,
    at: Duration,
}

impl Bucket {
    /// A full bucket of `rate` bytes a second that holds `burst` bytes, from `now` on. `None` where either is 0: nothing would ever go.
    #[must_use]
    pub fn new(rate: u64, burst: u64, now: Duration) -> Option<Self> {
        let level = u128::from(burst) * NANOS;
        (rate > 0 && burst > 0).then_some(Self {
            rate,
            burst,
            level,
            at: now,
        })
    }

    /// Up to `want` bytes at `now`, taken, once there are `least` (or the whole burst). Else the time after
    /// which there are. A time before the last one counts as the last one. To want 0 bytes takes
    /// nothing and never waits.
    pub fn take_at_least(&mut self, least: u64, want: u64, now: Duration) -> Result<u64, Duration> {
        self.fill(now);
        let granted = u64::try_from(self.level / NANOS)
            .unwrap_or(u64::MAX)
            .min(want);
        let least = least.min(want).min(self.burst);
        if granted >= least.max(1) || want == 0 {
            self.level -= u128::from(granted) * NANOS;
            return Ok(granted);
        }
        let missing = u128::from(least.max(1)) * NANOS - self.level;
        let nanos = missing.div_ceil(u128::from(self.rate));
        Err(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or(u64::MAX),
        ))
    }

    /// Another rate and burst from `now` on: what was earned until then was earned at the old rate, and no more than the new burst is kept.
    /// Answers false, and changes nothing, where either is 0.
    pub fn set(&mut self, rate: u64, burst: u64, now: Duration) -> bool {
        if rate == 0 || burst == 0 {
            return false;
        }
        self.fill(now);
        self.rate = rate;
        self.burst = burst;
        self.level = self.level.min(u128::from(burst) * NANOS);
        true
    }

    fn fill(&mut self, now: Duration) {
        let earned = now
            .saturating_sub(self.at)
            .as_nanos()
            .saturating_mul(u128::from(self.rate));
        self.level = self
            .level
            .saturating_add(earned)
            .min(u128::from(self.burst) * NANOS);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_window_is_within_rate_times_window_and_burst() {
        let mut seed = 7_u64;
        let mut next = |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for _ in 0..50 {
            let (rate, burst) = (1 + next(500_000), 1 + next(70_000));
            let mut bucket = Bucket::new(rate, burst, Duration::ZERO).unwrap();
            let (mut now, mut grants) = (Duration::ZERO, Vec::new());
            for _ in 0..200 {
                match bucket.take_at_least(1, 1 + next(100_000), now) {
                    Ok(bytes) => grants.push((now, bytes)),
                    Err(wait) => now += wait / u32::try_from(1 + next(3)).unwrap(),
                }
                now += Duration::from_nanos(next(3_000_000));
            }
            assert!(
                grants.len() > 20,
                "the bucket gave almost nothing: {}",
                grants.len()
            );
            for (first, (start, _)) in grants.iter().enumerate() {
                let mut sum = 0_u128;
                for (end, bytes) in &grants[first..] {
                    sum += u128::from(*bytes) * NANOS;
                    let most =
                        (*end - *start).as_nanos() * u128::from(rate) + u128::from(burst) * NANOS;
                    assert!(sum <= most, "{sum} of {most} at {rate} B/s with {burst}");
                }
            }
        }
    }

    #[test]
    fn after_the_wait_it_names_all_of_it_goes() {
        for rate in [1, 3, 7_777, 250_000] {
            let mut bucket = Bucket::new(rate, 4096, Duration::ZERO).unwrap();
            assert_eq!(bucket.take_at_least(4096, 4096, Duration::ZERO), Ok(4096));
            let wait = bucket
                .take_at_least(4096, 4096, Duration::ZERO)
                .unwrap_err();
            assert_eq!(bucket.clone().take_at_least(4096, 4096, wait), Ok(4096));
            let early = wait.saturating_sub(Duration::from_nanos(1));
            assert_ne!(bucket.take_at_least(4096, 4096, early), Ok(4096));
        }
    }

    #[test]
    fn another_rate_pays_only_for_its_own_time() {
        let mut bucket = Bucket::new(1000, 1000, Duration::ZERO).unwrap();
        assert_eq!(bucket.take_at_least(1, 1000, Duration::ZERO), Ok(1000));
        assert!(bucket.set(10, 1000, Duration::from_millis(500)));
        assert_eq!(
            bucket.take_at_least(1, 9999, Duration::from_millis(1500)),
            Ok(510)
        );
        assert!(!bucket.set(0, 1000, Duration::from_secs(2)));
        assert!(Bucket::new(0, 1, Duration::ZERO).is_none());
    }

    #[test]
    fn a_clock_that_goes_back_earns_nothing_twice() {
        let mut bucket = Bucket::new(1000, 1000, Duration::from_secs(5)).unwrap();
        assert_eq!(
            bucket.take_at_least(1, 1000, Duration::from_secs(5)),
            Ok(1000)
        );
        assert!(bucket.take_at_least(1, 1, Duration::from_secs(1)).is_err());
        assert!(bucket.take_at_least(1, 1, Duration::from_secs(5)).is_err());
    }
}
