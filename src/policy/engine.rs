//! What turns verdicts into states: a minimum stay, a pause before something better is believed, and
//! what was asked by hand, for a time or for good.

use std::collections::VecDeque;
use std::time::Duration;

use super::auto::{self, Borders};
use super::rules::{Rules, Then};
use super::{Fact, Policy, Seen, State, Verdict};

/// What the engine goes by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// A state that the link or a rule led to is kept for so long at least.
    pub stay: Duration,
    /// Something better must last for so long before it is believed.
    pub better: Duration,
    /// A measured rate counts for so long at first; then it is tried anew.
    pub counts: Duration,
    /// The borders of `auto`.
    pub borders: Borders,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stay: Duration::from_secs(30),
            better: Duration::from_secs(3),
            counts: Duration::from_secs(120),
            borders: Borders::default(),
        }
    }
}

/// Losses of the link are remembered for so long.
const OUTAGES: Duration = Duration::from_secs(60);
/// A rate that proved right again and again counts for so long at most.
const COUNTS_MOST: Duration = Duration::from_secs(3600);

/// What was before: all that a decision depends on besides what is seen.
#[derive(Clone, Debug)]
pub struct Memory {
    policy: Policy,
    /// When another policy comes back, and which.
    until: Option<(Duration, Policy)>,
    state: State,
    /// When the state came; none where it may change at once.
    since: Option<Duration>,
    reachable: bool,
    outages: VecDeque<Duration>,
    /// Since when something better than the state would be right.
    better: Option<Duration>,
    counts: Option<Duration>,
    /// When a state was last left for a safer one before its stay was over.
    fled: Option<Duration>,
    /// Online was entered, at this time, without knowing the rate.
    trial: Option<Duration>,
}

/// What is decided at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The state from now on.
    pub state: State,
    /// Whether it is another than before.
    pub changed: bool,
    /// What the policy would have.
    pub verdict: Verdict,
    /// Why the state is not yet the verdict's, if it is not.
    pub held: Option<Held>,
}

/// Why a drive is not yet in the state that its policy would have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// For how long at least.
    pub left: Duration,
    /// Why, in a sentence.
    pub why: String,
}

impl Memory {
    /// A drive that begins, with this policy, in this state.
    #[must_use]
    pub fn new(policy: Policy, state: State) -> Self {
        Self {
            policy,
            until: None,
            state,
            since: None,
            reachable: true,
            outages: VecDeque::new(),
            better: None,
            counts: None,
            fled: None,
            trial: None,
        }
    }

    /// The policy in force.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// When another policy comes back, and which.
    #[must_use]
    pub fn until(&self) -> Option<(Duration, Policy)> {
        self.until
    }

    /// What was asked for a time goes on after a restart: for `left` longer, then as this begins.
    pub fn resume(&mut self, now: Duration, policy: Policy, left: Duration) {
        self.until = Some((now.saturating_add(left), self.policy));
        self.policy = policy;
        self.free();
    }

    /// The user asks for a policy, for good or for a time. For a time again, it is still the one from
    /// before the first that comes back.
    pub fn ask(&mut self, now: Duration, policy: Policy, time: Option<Duration>) {
        self.until = time.map(|time| {
            let before = self.until.map_or(self.policy, |(_, before)| before);
            (now.saturating_add(time), before)
        });
        self.policy = policy;
        self.free();
    }

    /// What a user asked for is done at once.
    fn free(&mut self) {
        (self.since, self.better) = (None, None);
    }

    /// One look: the state from now on. To be called with times that do not go back.
    pub fn step(&mut self, settings: &Settings, rules: Option<&Rules>, seen: &Seen) -> Decision {
        let now = seen.at;
        if let Some((until, before)) = self.until
            && now >= until
        {
            (self.policy, self.until) = (before, None);
            self.free();
        }
        if self.reachable && !seen.reachable {
            self.outages.push_back(now);
        }
        self.reachable = seen.reachable;
        while self
            .outages
            .front()
            .is_some_and(|at| now.saturating_sub(*at) > OUTAGES)
        {
            self.outages.pop_front();
        }
        let verdict = self.verdict(settings, rules, seen);
        let held = self.held(settings, &verdict, now);
        let changed = held.is_none() && verdict.state != self.state;
        if changed {
            self.enter(settings, &verdict, seen);
        }
        Decision {
            state: self.state,
            changed,
            verdict,
            held,
        }
    }

    fn enter(&mut self, settings: &Settings, verdict: &Verdict, seen: &Seen) {
        let now = seen.at;
        if let Some(since) = self.since
            && now.saturating_sub(since) < settings.stay
        {
            self.fled = Some(now);
        }
        let known = self.rate(settings, seen).is_some();
        if verdict.state == State::Online {
            self.trial = (!known).then_some(now);
            if known {
                self.counts = None;
            }
        } else if let Some(began) = self.trial.take()
            && now.saturating_sub(began) < settings.stay * 3
        {
            // The link was as poor as it had been: it is tried less often.
            let counts = self.counts.unwrap_or(settings.counts) * 2;
            self.counts = Some(counts.min(COUNTS_MOST));
        }
        self.state = verdict.state;
        self.since = Some(now);
        self.better = None;
    }

    /// The rate, while it is recent enough to count.
    fn rate(&self, settings: &Settings, seen: &Seen) -> Option<f64> {
        let counts = self.counts.unwrap_or(settings.counts);
        let fresh = |f: Option<crate::link::Figure>| {
            f.filter(|f| f.age <= counts && f.confidence > 0.0)
                .map(|f| f.value)
        };
        let sides = [fresh(seen.figures.up), fresh(seen.figures.down)];
        sides.into_iter().flatten().min_by(f64::total_cmp)
    }

    fn verdict(&self, settings: &Settings, rules: Option<&Rules>, seen: &Seen) -> Verdict {
        match self.policy {
            Policy::Auto => self.auto(settings, seen),
            Policy::Rules => self.by_rules(settings, rules, seen),
            Policy::Online => by_hand(State::Online, seen),
            Policy::Cached if !seen.reachable => auto::no_link(),
            Policy::Cached => by_hand(State::Cached, seen),
            Policy::Offline => by_hand(State::Offline, seen),
        }
    }

    fn auto(&self, settings: &Settings, seen: &Seen) -> Verdict {
        auto::judge(
            &settings.borders,
            self.state == State::Online,
            self.outages.len(),
            self.rate(settings, seen),
            seen,
        )
    }

    fn by_rules(&self, settings: &Settings, rules: Option<&Rules>, seen: &Seen) -> Verdict {
        let none: Rules = Rules::default();
        let found = rules.unwrap_or(&none).first(seen);
        let then = found.rule.map_or(Then::Auto, |rule| rule.then);
        let why = match found.rule {
            Some(rule) => format!("line {}: {}", rule.line, rule.text),
            None => "no rule holds, so as `auto`".to_owned(),
        };
        let line = found.rule.map(|rule| rule.line);
        let offline = then == Then::State(State::Offline);
        let mut verdict = match then {
            _ if !seen.reachable && !offline => auto::no_link(),
            Then::State(state) => Verdict {
                state,
                reason: why.clone(),
                rule: None,
                facts: Vec::new(),
                changes: Vec::new(),
                by_choice: offline,
            },
            Then::Auto => self.auto(settings, seen),
        };
        if verdict.reason != why {
            verdict.reason = format!("{} ({why})", verdict.reason);
        }
        verdict.rule = line;
        let mut facts = found.facts;
        facts.append(&mut verdict.facts);
        verdict.facts = facts;
        let mut changes = found.changes;
        changes.append(&mut verdict.changes);
        verdict.changes = changes;
        verdict
    }

    /// Whether the state stays for now although the verdict is another.
    fn held(&mut self, settings: &Settings, verdict: &Verdict, now: Duration) -> Option<Held> {
        if verdict.state == self.state {
            self.better = None;
            return None;
        }
        let since = self.since?;
        let stayed = now.saturating_sub(since);
        let rank = |state: State| match state {
            State::Online => 2,
            State::Cached => 1,
            State::Offline => 0,
        };
        let better = rank(verdict.state) > rank(self.state);
        // A link that does not flap: what makes nothing worse is done at once. To a drive, a poor link
        // and none are the same until something is to be sent.
        let calm = self.outages.len() <= 1
            && self
                .fled
                .is_none_or(|at| now.saturating_sub(at) >= settings.stay * 2);
        if calm && !better {
            self.better = None;
            return None;
        }
        let lasts = if better && calm && verdict.state == State::Cached {
            settings.better
        } else if better {
            now.saturating_sub(*self.better.get_or_insert(now))
        } else {
            self.better = None;
            settings.better
        };
        let stay = settings.stay.saturating_sub(stayed);
        let settle = settings.better.saturating_sub(lasts);
        if stay.is_zero() && settle.is_zero() {
            return None;
        }
        let why = if stay >= settle {
            format!(
                "{} is kept for {} s at least",
                self.state,
                settings.stay.as_secs()
            )
        } else {
            "something better must last before it is believed".to_owned()
        };
        Some(Held {
            left: stay.max(settle),
            why,
        })
    }
}

fn by_hand(state: State, seen: &Seen) -> Verdict {
    let reason = if state == State::Online && !seen.reachable {
        "by hand; the share does not answer, so the cache serves".to_owned()
    } else {
        "by hand".to_owned()
    };
    let mut changes = vec!["`pstsyncd mode` sets another policy".to_owned()];
    if state == State::Cached {
        changes.push("offline is shown when the share does not answer".to_owned());
    }
    Verdict {
        state,
        reason,
        rule: None,
        facts: vec![Fact {
            condition: "the share answers".to_owned(),
            now: if seen.reachable {
                "it does"
            } else {
                "it does not"
            }
            .to_owned(),
            holds: Some(seen.reachable),
        }],
        changes,
        by_choice: state == State::Offline,
    }
}
