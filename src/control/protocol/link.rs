//! The link as it was measured, and why a drive is in its state.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Policy, State};
use crate::policy::Fact;
use crate::policy::cap::Cap;

/// One change of state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateChange {
    /// When.
    pub at: Timestamp,
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// The policy that led to it.
    pub policy: Policy,
    /// Why.
    pub reason: String,
}

/// A measured value with how far it can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// In the unit that its field names.
    pub value: f64,
    /// From 0, a guess, towards 1.
    pub confidence: f64,
    /// Seconds since it was measured.
    pub age_seconds: f64,
}

/// What a drive may use of its link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitStatus {
    /// To the share and the agent; none: no limit.
    pub up_bits_per_second: Option<u64>,
    /// From there; none: no limit.
    pub down_bits_per_second: Option<u64>,
    /// Who or what says so; empty: nobody limits it.
    pub by: String,
    /// Until when, where that is known.
    pub until: Option<Timestamp>,
    /// What is wrong with the rules for limits.
    pub rules_error: Option<String>,
}

impl LimitStatus {
    /// The rates.
    #[must_use]
    pub const fn cap(&self) -> Cap {
        Cap {
            up: self.up_bits_per_second,
            down: self.down_bits_per_second,
        }
    }
}

/// The link of a drive.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Whether the share answers.
    pub reachable: bool,
    /// Rate to the share.
    pub up_bits_per_second: Option<Measured>,
    /// Rate from the share.
    pub down_bits_per_second: Option<Measured>,
    /// Round trip of a small question.
    pub round_trip_ms: Option<Measured>,
    /// How much that varies.
    pub jitter_ms: Option<Measured>,
    /// Calls that failed, from 0 to 1.
    pub loss: Option<Measured>,
    /// Whether the connection is metered, where the system knows.
    pub metered: Option<bool>,
    /// Whether the machine is on battery, where the system knows.
    pub on_battery: Option<bool>,
    /// Names of the active connections, where the system knows.
    pub networks: Option<Vec<String>>,
    /// The last changes of state, the newest last.
    pub changes: Vec<StateChange>,
}

/// Why a drive is in its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The policy.
    pub policy: Policy,
    /// The state.
    pub state: State,
    /// When another policy comes back, and which.
    pub until: Option<(Timestamp, Policy)>,
    /// What the policy would have.
    pub wanted: State,
    /// Why.
    pub reason: String,
    /// The rule that decided: its line in the rules file.
    pub rule_line: Option<usize>,
    /// What was looked at.
    pub figures: Vec<Fact>,
    /// Why the state is not yet what the policy would have.
    pub held: Option<String>,
    /// What would change it.
    pub changes: Vec<String>,
    /// What is wrong with the rules file; the rules from before hold on.
    pub rules_error: Option<String>,
}
