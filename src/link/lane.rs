//! The rate in one direction.
//!
//! Transfers that overlap share the link, so what counts is the time in which any of them ran, not the
//! sum of their times. A transfer takes a fixed part (the round trip, the server's thinking) and a
//! part that grows with its bytes; only the second is the link's rate. The fixed part is the measured
//! round trip, or more where transfers of different sizes show that there is more.

/// Busy time after which a sample counts e times less, in seconds.
const MEMORY: f64 = 1.6;
/// A busy period is looked at after this long at the latest, in seconds.
const PERIOD: f64 = 1.0;
/// So far off is not noise but another link: a factor.
const STEP: f64 = 1.8;
/// So many samples in a row, and so much busy time in seconds, make it sure.
const STEP_SAMPLES: u32 = 3;
const STEP_BUSY: f64 = 0.25;

/// Rate of the transfers in one direction.
#[derive(Clone, Debug, Default)]
pub struct Lane {
    running: usize,
    /// Bytes of the running transfers.
    flying: u64,
    since: f64,
    /// Whether the period began with an idle link, so that its first transfer paid the round trip.
    from_idle: bool,
    bytes: u64,
    transfers: u32,
    /// Fastest that one transfer of the period went alone, in bytes a second.
    best: f64,
    mean: Mean,
    off: Option<(bool, u32, Mean)>,
    fit: Fit,
    measured: Option<f64>,
    /// When the rate was last found to be much higher than before.
    rose: Option<f64>,
    /// How many samples there were; for the confidence.
    samples: u32,
}

/// Mean of logarithms, by weight.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    log: f64,
    weight: f64,
    busy: f64,
}

impl Mean {
    fn add(&mut self, log: f64, weight: f64, busy: f64) {
        self.weight += weight;
        self.log += (log - self.log) * weight / self.weight;
        self.busy += busy;
    }
}

impl Lane {
    /// A transfer of so many bytes begins.
    pub fn begin(&mut self, now: f64, bytes: u64) {
        if self.running == 0 {
            self.open(now, true);
        }
        self.running += 1;
        self.flying = self.flying.saturating_add(bytes);
    }

    fn open(&mut self, now: f64, from_idle: bool) {
        self.since = now;
        self.from_idle = from_idle;
        (self.bytes, self.transfers, self.best) = (0, 0, 0.0);
    }

    /// It ended after having carried `carried` of the `asked` bytes. `alone`: no other call ran
    /// meanwhile. `round_trip` in seconds.
    pub fn end(
        &mut self,
        (began, now): (f64, f64),
        (asked, carried): (u64, u64),
        alone: bool,
        round_trip: f64,
    ) {
        self.running = self.running.saturating_sub(1);
        self.flying = self.flying.saturating_sub(asked);
        let took = (now - began).max(1e-6);
        if carried > 0 {
            self.bytes += carried;
            self.transfers += 1;
            if alone {
                self.fit.add(carried as f64, took);
            }
            let fixed = self.fixed(round_trip);
            if took - fixed > took / 2.0 {
                self.best = self.best.max(carried as f64 / (took - fixed));
            }
        }
        let busy = now - self.since;
        if self.running == 0 || busy >= PERIOD {
            self.settle(now, busy.max(1e-6), round_trip);
            if self.running > 0 {
                self.open(now, false);
            }
        }
    }

    /// The part of a transfer that does not grow with its bytes.
    fn fixed(&self, round_trip: f64) -> f64 {
        self.fit.fixed().unwrap_or(0.0).max(round_trip)
    }

    fn settle(&mut self, now: f64, busy: f64, round_trip: f64) {
        if self.bytes == 0 {
            return;
        }
        let fixed = if self.from_idle {
            self.fixed(round_trip)
        } else {
            0.0
        };
        let net = (busy - fixed).max(busy * 0.05);
        let mut rate = self.bytes as f64 / net;
        if self.transfers > 1 {
            rate = rate.max(self.best);
        }
        // Where the fixed part is most of the time, its error is most of the result.
        let part = net / busy;
        self.add(now, rate.max(1.0).ln(), busy * part * part, busy);
        self.measured = Some(now);
        self.samples = self.samples.saturating_add(1);
    }

    fn add(&mut self, now: f64, log: f64, weight: f64, busy: f64) {
        let forgets = (-busy / MEMORY).exp();
        let first = self.mean.weight == 0.0;
        let away = log - self.mean.log;
        if !first && away.abs() > STEP.ln() {
            let up = away > 0.0;
            let (_, n, mut mean) = self
                .off
                .take()
                .filter(|(was_up, ..)| *was_up == up)
                .unwrap_or((up, 0, Mean::default()));
            mean.add(log, weight, busy);
            if n + 1 >= STEP_SAMPLES && mean.busy >= STEP_BUSY {
                self.mean = mean;
                self.samples = n;
                if up {
                    self.rose = Some(now);
                }
                return;
            }
            self.off = Some((up, n + 1, mean));
        } else {
            self.off = None;
        }
        self.mean.weight *= forgets;
        self.mean.add(log, weight, busy);
    }

    /// Forgets what is under way: it began on a link that died.
    pub fn cut(&mut self, now: f64) {
        self.open(now, false);
        self.off = None;
    }

    /// When the rate was last found to be much higher than before.
    pub fn rose(&self) -> Option<f64> {
        self.rose
    }

    /// Bytes of the transfers under way.
    pub fn flying(&self) -> u64 {
        self.flying
    }

    /// As [`Lane::rate`], by ended transfers alone.
    pub fn known(&self) -> Option<(f64, f64, u32)> {
        self.measured
            .filter(|_| self.mean.weight > 0.0)
            .map(|at| (self.mean.log.exp(), at, self.samples))
    }

    /// Bytes a second, when that was measured, and how many samples it rests on. What is on its way for
    /// long is a bound already.
    pub fn rate(&self, now: f64, round_trip: f64) -> Option<(f64, f64, u32)> {
        let known = self.known();
        let busy = now - self.since;
        if self.running > 0 && busy > (4.0 * round_trip).max(2.0) {
            let most = (self.bytes + self.flying) as f64 / (busy - round_trip);
            match known {
                Some((rate, ..)) if rate <= most * 1.5 => {}
                _ if most > 0.0 => return Some((most, now, 1)),
                _ => {}
            }
        }
        known
    }
}

/// Least squares of time over bytes, of transfers that were alone.
#[derive(Clone, Copy, Debug, Default)]
struct Fit {
    n: f64,
    bytes: f64,
    time: f64,
    bytes2: f64,
    cross: f64,
    least: f64,
}

impl Fit {
    fn add(&mut self, bytes: f64, time: f64) {
        // By time, not by count, so that a slow link's few transfers soon outweigh a fast one's many.
        let keep = (-time / (2.0 * MEMORY)).exp();
        for sum in [
            &mut self.n,
            &mut self.bytes,
            &mut self.time,
            &mut self.bytes2,
            &mut self.cross,
        ] {
            *sum *= keep;
        }
        self.least = if self.n < 1.0 {
            time
        } else {
            self.least.min(time)
        };
        self.n += 1.0;
        self.bytes += bytes;
        self.time += time;
        self.bytes2 += bytes * bytes;
        self.cross += bytes * time;
    }

    /// The part that does not grow with the bytes, where the sizes differ enough to tell.
    fn fixed(&self) -> Option<f64> {
        if self.n < 4.0 {
            return None;
        }
        let (mean_b, mean_t) = (self.bytes / self.n, self.time / self.n);
        let spread = self.bytes2 / self.n - mean_b * mean_b;
        if spread < mean_b * mean_b / 4.0 {
            return None;
        }
        let slope = (self.cross / self.n - mean_b * mean_t) / spread;
        let fixed = mean_t - slope * mean_b;
        (slope > 0.0 && fixed > 0.0).then_some(fixed.min(self.least * 0.95))
    }
}
