//! The user's rules: what they mean. How they are written is [`parse`]'s, and docs/RULES.md's.
//!
//! A condition on something that is not known is neither true nor false: such a rule does not decide,
//! and neither does its opposite.

mod parse;

pub use parse::{ParseError, bits, parse};

use super::{Fact, Seen, State, or_unknown, show_ms, show_rate};

/// What a rule leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// This state.
    State(State),
    /// What `auto` says.
    Auto,
}

/// What a rule may lead to, as it is written.
pub trait Outcome: Sized {
    /// What belongs at the end of a rule, for a message.
    const WANTED: &'static str;

    /// Reads it from the first of these words, in lower case; with how many they were.
    fn read(words: &[String]) -> Option<(Self, usize)>;
}

impl Outcome for Then {
    const WANTED: &'static str = "`online`, `cached`, `offline` or `auto`";

    fn read(words: &[String]) -> Option<(Self, usize)> {
        let then = match words.first()?.as_str() {
            "online" => Self::State(State::Online),
            "cached" => Self::State(State::Cached),
            "offline" => Self::State(State::Offline),
            "auto" => Self::Auto,
            _ => return None,
        };
        Some((then, 1))
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule<T = Then> {
    /// Its line in the file, from 1.
    pub line: usize,
    /// As it was written.
    pub text: String,
    /// When it decides; none: always.
    pub when: Option<Expr>,
    /// What it decides.
    pub then: T,
}

/// All of a file, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules<T = Then>(pub Vec<Rule<T>>);

impl<T> Default for Rules<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// Conditions together.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// Any of these.
    Any(Vec<Expr>),
    /// All of these.
    All(Vec<Expr>),
    /// Not this.
    Not(Box<Expr>),
    /// This.
    Is(Condition),
}

/// A measured value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The worse of both rates.
    Rate,
    /// To the share.
    Up,
    /// From the share.
    Down,
    /// Round trip.
    RoundTrip,
    /// Jitter.
    Jitter,
    /// Loss.
    Loss,
}

/// How it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Than {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    More,
    /// `>=`
    AtLeast,
}

/// One condition.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// A measure against a limit: bits a second, milliseconds, or a part of 1.
    Limit(Measure, Than, f64),
    /// A connection of this name is active.
    Network(String),
    /// The connection is paid by volume.
    Metered,
    /// The time of day lies between these minutes; the second is not in it. Over midnight where the
    /// first is the later one.
    Time(u16, u16),
    /// The machine runs on its battery.
    Battery,
    /// The machine has mains power.
    Mains,
}

impl Condition {
    fn fact(&self, seen: &Seen) -> Fact {
        let percent = |l: f64| format!("{:.1} %", l * 100.0);
        match self {
            Self::Limit(measure, than, limit) => {
                type Show = fn(f64) -> String;
                let (name, value, show): (_, _, Show) = match measure {
                    Measure::Rate => ("rate", seen.rate(), show_rate),
                    Measure::Up => ("up", seen.up(), show_rate),
                    Measure::Down => ("down", seen.down(), show_rate),
                    Measure::RoundTrip => ("rtt", seen.round_trip(), show_ms),
                    Measure::Jitter => ("jitter", seen.jitter(), show_ms),
                    Measure::Loss => ("loss", seen.loss(), percent),
                };
                let (sign, holds): (_, fn(f64, f64) -> bool) = match than {
                    Than::Less => ("<", |a, b| a < b),
                    Than::AtMost => ("<=", |a, b| a <= b),
                    Than::More => (">", |a, b| a > b),
                    Than::AtLeast => (">=", |a, b| a >= b),
                };
                Fact {
                    condition: format!("{name} {sign} {}", show(*limit)),
                    now: or_unknown(value, show),
                    holds: value.map(|v| holds(v, *limit)),
                }
            }
            Self::Network(name) => Fact {
                condition: format!("network {name:?}"),
                now: match &seen.hints.networks {
                    None => "not known".to_owned(),
                    Some(names) if names.is_empty() => "no network".to_owned(),
                    Some(names) => names.join(", "),
                },
                holds: seen.hints.networks.as_ref().map(|n| n.contains(name)),
            },
            Self::Metered => Fact {
                condition: "metered".to_owned(),
                now: known(seen.hints.metered, "metered", "not metered"),
                holds: seen.hints.metered,
            },
            Self::Time(from, to) => {
                let now = seen.minute;
                let clock = |m: u16| format!("{:02}:{:02}", m / 60, m % 60);
                Fact {
                    condition: format!("time {}-{}", clock(*from), clock(*to)),
                    now: clock(now),
                    holds: Some(if from <= to {
                        (*from..*to).contains(&now)
                    } else {
                        now >= *from || now < *to
                    }),
                }
            }
            Self::Battery => Fact {
                condition: "on battery".to_owned(),
                now: known(seen.hints.on_battery, "on battery", "on mains"),
                holds: seen.hints.on_battery,
            },
            Self::Mains => Fact {
                condition: "on mains".to_owned(),
                now: known(seen.hints.on_battery, "on battery", "on mains"),
                holds: seen.hints.on_battery.map(|b| !b),
            },
        }
    }
}

fn known(value: Option<bool>, yes: &str, no: &str) -> String {
    match value {
        Some(true) => yes,
        Some(false) => no,
        None => "not known",
    }
    .to_owned()
}

impl Expr {
    /// Whether it holds (none: not known), and every condition in it as a fact.
    fn look(&self, seen: &Seen, facts: &mut Vec<Fact>) -> Option<bool> {
        match self {
            Self::Is(condition) => {
                let fact = condition.fact(seen);
                let holds = fact.holds;
                if !facts.contains(&fact) {
                    facts.push(fact);
                }
                holds
            }
            Self::Not(inner) => inner.look(seen, facts).map(|holds| !holds),
            Self::Any(parts) => fold(parts, seen, facts, true),
            Self::All(parts) => fold(parts, seen, facts, false),
        }
    }
}

/// Decided by the first part that is `by`; else unknown if one is; else the opposite. Every part is
/// looked at, so that every fact is there.
fn fold(parts: &[Expr], seen: &Seen, facts: &mut Vec<Fact>, by: bool) -> Option<bool> {
    let answers: Vec<_> = parts.iter().map(|p| p.look(seen, facts)).collect();
    if answers.contains(&Some(by)) {
        Some(by)
    } else if answers.contains(&None) {
        None
    } else {
        Some(!by)
    }
}

/// What the rules say.
pub struct Match<'a, T = Then> {
    /// The first rule that holds.
    pub rule: Option<&'a Rule<T>>,
    /// What was looked at up to it.
    pub facts: Vec<Fact>,
    /// What would change it.
    pub changes: Vec<String>,
}

impl<T> Rules<T> {
    /// The first rule that holds.
    #[must_use]
    pub fn first(&self, seen: &Seen) -> Match<'_, T> {
        let mut found = Match {
            rule: None,
            facts: Vec::new(),
            changes: Vec::new(),
        };
        for rule in &self.0 {
            let mut facts = Vec::new();
            let holds = rule
                .when
                .as_ref()
                .map_or(Some(true), |when| when.look(seen, &mut facts));
            let of = |wanted: &dyn Fn(&Fact) -> bool| {
                let some = facts.iter().filter(|f| wanted(f));
                let some: Vec<_> = some
                    .map(|f| format!("{} (now {})", f.condition, f.now))
                    .collect();
                some.join(", ")
            };
            if holds == Some(true) {
                if rule.when.is_some() {
                    let line = rule.line;
                    found.changes.push(format!(
                        "line {line} ends when it holds no more: {}",
                        of(&|_| true)
                    ));
                }
                found.facts.extend(facts);
                found.rule = Some(rule);
                return found;
            }
            found.changes.push(format!(
                "line {} would decide first if it held: {}",
                rule.line,
                of(&|_| true)
            ));
            found.facts.extend(facts);
        }
        found
    }
}
