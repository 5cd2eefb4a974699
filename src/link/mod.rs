//! The link: what lies between us and the share, measured by what passes over it anyway.
//!
//! [`meter`] hears of every call to the share (through `vfs::share::measured`) and of every transfer
//! to an agent, and hands them to [`estimate`], which is arithmetic on times alone. [`hints`] is what
//! the system knows. What to do about all this is `crate::policy`'s affair.

pub mod estimate;
pub mod hints;
mod lane;
pub mod meter;
#[cfg(test)]
mod simulated;

use std::time::Duration;

pub use hints::{Hints, NetworkHints};
pub use meter::LinkMeter;

/// One measured value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// In the unit of its place in [`Figures`].
    pub value: f64,
    /// From 0, a guess, towards 1: how much of the recent traffic it rests on.
    pub confidence: f64,
    /// Time since it was last measured.
    pub age: Duration,
}

/// What is known of the link. `None`: nothing yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Rate to the share, in bits a second.
    pub up: Option<Figure>,
    /// Rate from the share, in bits a second.
    pub down: Option<Figure>,
    /// Round trip of a small question, in milliseconds.
    pub round_trip: Option<Figure>,
    /// Mean difference of two such questions after one another, in milliseconds.
    pub jitter: Option<Figure>,
    /// Share of the calls that failed or fell silent, from 0 to 1.
    pub loss: Option<Figure>,
}

/// Whether the far side answers, as far as the calls tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Calls that failed since the last answer.
    pub failures: u32,
    /// Time since the first of them.
    pub failing_for: Option<Duration>,
    /// How long calls wait while nothing at all is heard of the far side, beyond the time that the link
    /// may be busy with them.
    pub silent_for: Option<Duration>,
    /// Time since the last answer.
    pub answered: Option<Duration>,
    /// Time since a call last began or ended: without one the link is idle.
    pub used: Option<Duration>,
}

/// A link that is silent for so long is dead.
const SILENT: Duration = Duration::from_secs(3);
/// One failure may be an accident; what fails for so long is none.
const FAILING: Duration = Duration::from_millis(1500);
/// One that is silent for so long is asked.
const DOUBTFUL: Duration = Duration::from_secs(1);

impl Reach {
    /// Whether there is a link.
    #[must_use]
    pub fn is_up(&self) -> bool {
        let failing = self.failing_for.is_some_and(|t| t >= FAILING);
        let silent = self.silent_for.is_some_and(|t| t >= SILENT);
        !(self.failures >= 2 || (self.failures > 0 && failing) || silent)
    }

    /// Whether it is time to ask: something failed, or waits longer than it should.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.failures > 0 || self.silent_for.is_some_and(|t| t >= DOUBTFUL)
    }
}
