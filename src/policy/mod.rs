//! Which state a drive should be in, and why. Pure: out of the time, the link's figures, the system's
//! hints and what was before comes a decision; equal inputs give equal decisions, and nothing here asks
//! a clock, a file or the network.
//!
//! [`auto`] judges by the link, [`rules`] by the user's own rules (docs/RULES.md); [`engine`] adds what
//! keeps a drive from changing with every gust: hysteresis, a minimum stay, and what was asked by hand.

pub mod auto;
pub mod cap;
pub mod engine;
pub mod rules;
#[cfg(test)]
pub(crate) mod tests;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::control::{Policy, State};
use crate::link::{Figure, Figures, Hints};

/// What is seen at one moment.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Time since any fixed moment; never goes back.
    pub at: Duration,
    /// Minute of the local day, from 0 to 1439.
    pub minute: u16,
    /// The link's figures.
    pub figures: Figures,
    /// Whether there is a link: the share answers.
    pub reachable: bool,
    /// What the system says.
    pub hints: Hints,
}

/// A figure that rests on less is a guess, and decides nothing.
const SURE: f64 = 0.05;

impl Seen {
    /// The worse of both rates, in bits a second, as far as known.
    #[must_use]
    pub fn rate(&self) -> Option<f64> {
        let sides = [self.up(), self.down()];
        sides.into_iter().flatten().min_by(f64::total_cmp)
    }

    /// Rate to the share, in bits a second.
    #[must_use]
    pub fn up(&self) -> Option<f64> {
        sure(self.figures.up)
    }

    /// Rate from the share, in bits a second.
    #[must_use]
    pub fn down(&self) -> Option<f64> {
        sure(self.figures.down)
    }

    /// Round trip, in milliseconds.
    #[must_use]
    pub fn round_trip(&self) -> Option<f64> {
        sure(self.figures.round_trip)
    }

    /// Jitter, in milliseconds.
    #[must_use]
    pub fn jitter(&self) -> Option<f64> {
        sure(self.figures.jitter)
    }

    /// Loss, from 0 to 1.
    #[must_use]
    pub fn loss(&self) -> Option<f64> {
        sure(self.figures.loss)
    }
}

fn sure(figure: Option<Figure>) -> Option<f64> {
    figure.filter(|f| f.confidence >= SURE).map(|f| f.value)
}

/// Something that was looked at for a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// The condition, as in "rate < 4 Mbit/s".
    pub condition: String,
    /// What is the case, as in "37 Mbit/s".
    pub now: String,
    /// Whether the condition holds; none where that is not known.
    pub holds: Option<bool>,
}

/// What a policy would have, before hysteresis over time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The state.
    pub state: State,
    /// Why, in a sentence without a full stop.
    pub reason: String,
    /// The rule that decided: its line in the rules file.
    pub rule: Option<usize>,
    /// What was looked at.
    pub facts: Vec<Fact>,
    /// What would change it, in sentences.
    pub changes: Vec<String>,
    /// Offline because it was asked for, and not for want of a link.
    pub by_choice: bool,
}

/// A rate for people.
#[must_use]
pub fn show_rate(bits: f64) -> String {
    let (value, unit) = if bits >= 1e9 {
        (bits / 1e9, "Gbit/s")
    } else if bits >= 1e6 {
        (bits / 1e6, "Mbit/s")
    } else {
        (bits / 1e3, "kbit/s")
    };
    format!("{} {unit}", short(value))
}

/// A time in milliseconds for people.
#[must_use]
pub fn show_ms(ms: f64) -> String {
    format!("{} ms", short(ms))
}

/// Two places below ten, none above a hundred.
fn short(value: f64) -> String {
    let places = if value >= 99.95 {
        0
    } else if value >= 9.995 {
        1
    } else {
        2
    };
    let text = format!("{value:.places$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn or_unknown(value: Option<f64>, show: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| "not known".to_owned(), show)
}
