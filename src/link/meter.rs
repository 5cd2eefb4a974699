//! The estimator with a clock and a lock: what the share's wrapper and the sync engine tell.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vfs::share::measured::{Ended, Meter, Payload, Use};

use super::estimate::Estimator;
use super::{Figures, Reach};

/// Measures one link.
pub struct LinkMeter {
    began: Instant,
    estimator: Mutex<Estimator>,
}

impl Default for LinkMeter {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            estimator: Mutex::default(),
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

    /// When the far side last sent anything, as the share says.
    pub fn heard(&self, at: Option<Instant>) {
        if let Some(at) = at {
            let at = at.saturating_duration_since(self.began);
            self.estimator().heard(at);
        }
    }

    /// What is known of the link.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.estimator().figures(self.now())
    }

    /// Whether the far side answers.
    #[must_use]
    pub fn reach(&self) -> Reach {
        self.estimator().reach(self.now())
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
