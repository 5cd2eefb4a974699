//! The estimator with a clock and a lock: what the share's wrapper and the sync engine tell.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use vfs::share::measured::{Ended, Meter, Payload, Use};

use super::estimate::Estimator;
use super::{Figures, Reach};

/// Measures one link.
pub struct LinkMeter {
    began: Instant,
    estimator: Mutex<Estimator>,
    heard: OnceLock<Heard>,
}

/// When anything last came from the far side, as far as the transport knows.
pub type Heard = Box<dyn Fn() -> Option<Instant> + Send + Sync>;

impl Default for LinkMeter {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            estimator: Mutex::default(),
            heard: OnceLock::new(),
        }
    }
}

impl LinkMeter {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn estimator(&self) -> MutexGuard<'_, Estimator> {
        self.estimator
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of the link.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.estimator().figures(self.now())
    }

    /// From now on `heard` tells when anything came, be it a part of a long answer behind which a short
    /// one waits.
    pub fn listen(&self, heard: Heard) {
        let _ = self.heard.set(heard);
    }

    /// Whether the far side answers.
    #[must_use]
    pub fn reach(&self) -> Reach {
        let heard = self.heard.get().and_then(|heard| heard());
        let reach = self.estimator().reach(self.now());
        match heard {
            Some(at) => reach.heard(at.elapsed()),
            None => reach,
        }
    }
}

impl Meter for LinkMeter {
    // The time is taken under the lock: calls then come in the order of their times.
    fn begin(&self, with: Payload, how: Use) -> u64 {
        let mut estimator = self.estimator();
        estimator.begin(self.now(), with, how)
    }

    fn end(&self, call: u64, carried: Payload, how: Ended) {
        let mut estimator = self.estimator();
        estimator.end(self.now(), call, carried, how);
    }
}
