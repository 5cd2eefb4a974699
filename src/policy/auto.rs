//! The policy `auto`: online over a good link, cached over a poor one, offline without one.
//!
//! Between "good enough to go online" and "too poor to stay" lies a gap, so that a link near the border
//! does not move the drive. What is not known is no reason against the link.

use super::{Fact, Seen, State, Verdict, or_unknown, show_ms, show_rate};

/// Where the borders are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Borders {
    /// Bits a second: below the first, online is left; from the second on it is entered.
    pub rate: (f64, f64),
    /// Milliseconds of round trip: above the first, online is left; up to the second it is entered.
    pub round_trip: (f64, f64),
    /// Loss, likewise.
    pub loss: (f64, f64),
    /// So many losses of the link within a minute: it is not to be relied on.
    pub outages: usize,
}

impl Default for Borders {
    fn default() -> Self {
        Self {
            rate: (4e6, 8e6),
            round_trip: (100.0, 60.0),
            loss: (0.05, 0.02),
            outages: 3,
        }
    }
}

/// What `auto` would have. `online`: the drive is online now. `outages`: losses of the link within the
/// last minute. `rate`: the rate, if it is recent enough to count.
#[must_use]
pub fn judge(
    borders: &Borders,
    online: bool,
    outages: usize,
    rate: Option<f64>,
    seen: &Seen,
) -> Verdict {
    if !seen.reachable {
        return no_link();
    }
    let side = |pair: (f64, f64)| if online { pair.0 } else { pair.1 };
    let (least, longest, most) = (
        side(borders.rate),
        side(borders.round_trip),
        side(borders.loss),
    );
    let percent = |loss: f64| format!("{:.1} %", loss * 100.0);
    let facts = vec![
        Fact {
            condition: format!("rate < {}", show_rate(least)),
            now: or_unknown(rate, show_rate),
            holds: rate.map(|r| r < least),
        },
        Fact {
            condition: format!("round trip > {}", show_ms(longest)),
            now: or_unknown(seen.round_trip(), show_ms),
            holds: seen.round_trip().map(|t| t > longest),
        },
        Fact {
            condition: format!("loss > {}", percent(most)),
            now: or_unknown(seen.loss(), percent),
            holds: seen.loss().map(|l| l > most),
        },
        Fact {
            condition: format!(
                "the link was lost {} times within a minute",
                borders.outages
            ),
            now: format!("{outages} times"),
            holds: Some(outages >= borders.outages),
        },
        Fact {
            condition: "metered".to_owned(),
            now: match seen.hints.metered {
                Some(true) => "metered",
                Some(false) => "not metered",
                None => "not known",
            }
            .to_owned(),
            holds: seen.hints.metered,
        },
    ];
    let against: Vec<&Fact> = facts.iter().filter(|f| f.holds == Some(true)).collect();
    let (state, reason, changes) = if against.is_empty() {
        let rate = or_unknown(rate, show_rate);
        let trip = or_unknown(seen.round_trip(), show_ms);
        let changes = facts
            .iter()
            .map(|f| format!("cached when: {}", f.condition));
        let reason = format!("the link is good: rate {rate}, round trip {trip}");
        (State::Online, reason, changes.collect::<Vec<_>>())
    } else {
        let said: Vec<_> = against
            .iter()
            .map(|f| format!("{} (now {})", f.condition, f.now))
            .collect();
        let changes = vec![format!(
            "online when none of these holds any more: {}",
            said.join("; ")
        )];
        let reason = format!("the link is poor: {}", said.join("; "));
        (State::Cached, reason, changes)
    };
    let mut changes = changes;
    changes.push("offline when the share does not answer".to_owned());
    Verdict {
        state,
        reason,
        rule: None,
        facts,
        changes,
        by_choice: false,
    }
}

/// There is no link, whatever the policy.
#[must_use]
pub fn no_link() -> Verdict {
    Verdict {
        state: State::Offline,
        reason: "the share does not answer".to_owned(),
        rule: None,
        facts: vec![Fact {
            condition: "the share answers".to_owned(),
            now: "it does not".to_owned(),
            holds: Some(false),
        }],
        changes: vec!["another state when the share answers again".to_owned()],
        by_choice: false,
    }
}
